//! Notifies systemd that the agent is ready, and that its sampler and its journal writer make
//! progress. When one of these threads hangs, the notifications stop, and systemd restarts the
//! agent.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::agent_state::{AgentState, WatchedThread};
use crate::clock::GatewayClock;

/// After this long without a heartbeat, in ms, a thread counts as hung: longer than any read, disk
/// write or signature may take.
const STILL_MS_MAX: u64 = 30_000;

/// Notifies systemd that the agent is ready. Does nothing without systemd.
pub fn ready() {
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// Returns whether both threads have sent a recent heartbeat. `idle_ms` is how long they may wait
/// by configuration; twice that is added to the limit.
fn threads_are_alive(state: &AgentState, mono_ms: u64, idle_ms: u64) -> bool {
    [WatchedThread::Sampler, WatchedThread::JournalWriter].into_iter().all(|part| {
        let still_ms = mono_ms.saturating_sub(state.last_heartbeat_ms(part));
        still_ms <= STILL_MS_MAX.saturating_add(idle_ms.saturating_mul(2))
    })
}

/// Notifies systemd's watchdog while both threads make progress, twice in each watchdog period (but
/// not more often than every 500 ms). Returns at once if no watchdog is configured.
pub async fn run(state: AgentState, clock: GatewayClock, idle_ms: u64, stop: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let half = period.mul_f64(0.5).max(Duration::from_millis(500));
    let mut every = tokio::time::interval(half);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        if threads_are_alive(&state, clock.mono_ms(), idle_ms) {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the sampler or the journal writer hangs; systemd restarts the agent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_reports_no_progress_is_detected() {
        let state = AgentState::new("org/s/r-1".to_owned());
        assert!(threads_are_alive(&state, 10_000, 1_000), "just started");
        state.heartbeat(WatchedThread::Sampler, 100_000);
        assert!(
            !threads_are_alive(&state, 100_000, 1_000),
            "the journal writer has reported nothing since the start"
        );
        state.heartbeat(WatchedThread::JournalWriter, 99_000);
        assert!(threads_are_alive(&state, 120_000, 1_000));
        assert!(!threads_are_alive(&state, 200_000, 1_000));
    }
}
