//! What systemd is told: that the agent is ready, and that its sampler and its keeper move. A thread
//! that stands still is missed here, and systemd starts the agent anew.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Part};
use crate::clock::Clock;

/// Longer than any read, disk write or signature may take.
const STILL_MS_MAX: u64 = 30_000;

/// Says that samples flow. Without systemd nobody hears it.
pub fn ready() {
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// Whether both threads have moved of late; `idle_ms` is how long they may rest by configuration.
fn moves(board: &Board, mono_ms: u64, idle_ms: u64) -> bool {
    [Part::Sampler, Part::Keeper].into_iter().all(|part| {
        let still_ms = mono_ms.saturating_sub(board.beat_of(part));
        still_ms <= STILL_MS_MAX + 2 * idle_ms
    })
}

/// Tells the watchdog while all is well, twice in each of its periods.
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
            tracing::error!("the sampler or the keeper stands still; waiting to be started anew");
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
        assert!(!moves(&board, 100_000, 1_000), "the keeper has not moved since the start");
        board.beat(Part::Keeper, 99_000);
        assert!(moves(&board, 120_000, 1_000));
        assert!(!moves(&board, 200_000, 1_000));
    }
}
