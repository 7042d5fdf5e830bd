//! The wait before a batch is committed again, while the database is unavailable.

use std::time::Duration;

use database::StoreError;
use service::backoff::Backoff;

pub(super) const fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(5))
}

/// Returns the next wait before a retry, with jitter, so that instances do not retry together.
fn retry_pause(wait: &mut Backoff) -> Duration {
    wait.next(trust::jitter())
}

/// Waits while the database is unavailable: received messages stay in memory, bounded by the queue,
/// and none is acknowledged.
pub(super) async fn wait_for_database(wait: &mut Backoff, error: &StoreError) {
    let pause = retry_pause(wait);
    tracing::error!(%error, retry_ms = pause.as_millis(), "the database did not accept a batch");
    tokio::time::sleep(pause).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_at_the_bound_are_spread_over_half_of_it() {
        let mut wait = backoff();
        let pauses: Vec<Duration> = (0..100).map(|_| retry_pause(&mut wait)).skip(50).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*least >= Duration::from_millis(2_500) && *most <= Duration::from_secs(5));
        assert!(most.saturating_sub(*least) > Duration::from_secs(1), "from {least:?} to {most:?}");
    }
}
