//! Exponential backoff with jitter: how long to wait before a retry. The wait doubles up to a bound
//! and is randomised, so that a fleet does not reconnect all at once.

use std::time::Duration;

/// A sequence of waits between retries.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// Creates a sequence whose first wait is at most `first` and whose longest is `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, tries: 0 }
    }

    /// Returns the next wait: between half and all of `first · 2ⁿ`, at most `max`. `random` is any
    /// number; only its remainder is used.
    pub fn next(&mut self, random: u64) -> Duration {
        let full = self.first.saturating_mul(1 << self.tries.min(16)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        let half = full.checked_div(2).unwrap_or(full);
        let spread = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        half.saturating_add(Duration::from_millis(random.checked_rem(spread).unwrap_or(0)))
    }

    /// Starts again with the shortest wait. Call this after a success.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let waits: Vec<_> = (0..40).map(|i| backoff.next(i * 7_919)).collect();
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] <= Duration::from_millis(100));
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(5)));
        assert!(waits[39] >= Duration::from_millis(2_500));
        backoff.reset();
        assert!(backoff.next(0) <= Duration::from_millis(100));
    }
}
