//! Notifies systemd that the agent is ready, and that its sampler and its journal writer make
//! progress. When one of these threads hangs, the notifications stop, and systemd restarts the
//! agent.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Part};
use crate::clock::Clock;

/// After this long without a heartbeat, in ms, a thread counts as hung: longer than any read, disk
/// write or signature may take.
const STILL_MS_MAX: u64 = 30_000;

/// Notifies systemd that the agent is ready. Does nothing without systemd.
pub fn ready() {
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// Returns whether both threads have sent a recent heartbeat. `idle_ms` is how long they may wait
/// by configuration; twice that is added to the limit.
fn moves(board: &Board, mono_ms: u64, idle_ms: u64) -> bool {
    [Part::Sampler, Part::Keeper].into_iter().all(|part| {
        let still_ms = mono_ms.saturating_sub(board.beat_of(part));
        still_ms <= STILL_MS_MAX + 2 * idle_ms
    })
}

/// Notifies systemd's watchdog while both threads make progress, twice in each watchdog period (but
/// not more often than every 500 ms). Returns at once if no watchdog is configured.
pub async fn guard(board: Board, clock: Clock, idle_ms: u64, stop: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut every = tokio::time::interval(period.max(Duration::from_secs(1)) / 2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        if moves(&board, clock.mono_ms(), idle_ms) {
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
    fn a_thread_that_stands_still_is_missed() {
        let board = Board::new("org/s/r-1".to_owned());
        assert!(moves(&board, 10_000, 1_000), "just started");
        board.beat(Part::Sampler, 100_000);
        assert!(!moves(&board, 100_000, 1_000), "the journal writer has not moved since the start");
        board.beat(Part::Keeper, 99_000);
        assert!(moves(&board, 120_000, 1_000));
        assert!(!moves(&board, 200_000, 1_000));
    }
}
