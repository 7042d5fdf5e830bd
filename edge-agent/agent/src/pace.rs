//! The send window: how many frames may be in flight, and how long an acknowledgement may take.
//! Both adapt to the measured round-trip time, because a broker nearby answers in a millisecond and
//! one over a satellite link in seconds.
//!
//! The time limit is the retransmission timer of RFC 6298: smoothed round-trip time and variation,
//! doubled at each timeout, never measured with a frame that was sent twice. The window is additive
//! increase, multiplicative decrease (AIMD): it grows by one with each acknowledgement, and halves
//! at each timeout. Above its start value it grows only while acknowledgements are fast, and
//! shrinks by one with each slow one: frames that wait in a slow link would only delay the live
//! frames.

use std::time::Duration;

/// The largest window, in frames. `uplink::UNDER_WAY_BYTES_MAX` bounds the total size of the
/// frames.
const WINDOW_MAX: usize = 256;
const WINDOW_START: usize = 64;
const WINDOW_MIN: usize = 2;
const LIMIT_MIN: Duration = Duration::from_secs(1);
const LIMIT_START: Duration = Duration::from_secs(3);
const LIMIT_MAX: Duration = Duration::from_mins(2);

/// An acknowledgement that takes longer than this means that frames queue up in the link.
const SOON: Duration = Duration::from_millis(250);

/// The send window and the time limit of one connection.
#[derive(Debug, Clone)]
pub struct Pace {
    window: usize,
    limit: Duration,
    /// The smoothed round-trip time and its variation, in s; `None` before the first measurement.
    learned: Option<(f64, f64)>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window: WINDOW_START, limit: LIMIT_START, learned: None }
    }
}

impl Pace {
    /// Returns how many frames may be in flight at once.
    pub const fn window(&self) -> usize {
        self.window
    }

    /// Returns the time limit: a frame that is not acknowledged within it is sent again.
    pub const fn limit(&self) -> Duration {
        self.limit
    }

    /// Records that an acknowledgement arrived `after` its frame was sent. The frame must have been
    /// sent only once.
    pub fn answered(&mut self, after: Duration) {
        let took = after.as_secs_f64();
        let (smooth, spread) = match self.learned {
            None => (took, took / 2.0),
            Some((smooth, spread)) => {
                (0.875 * smooth + 0.125 * took, 0.75 * spread + 0.25 * (smooth - took).abs())
            }
        };
        self.learned = Some((smooth, spread));
        let limit = Duration::from_secs_f64((smooth + 4.0 * spread).min(LIMIT_MAX.as_secs_f64()));
        self.limit = limit.clamp(LIMIT_MIN, LIMIT_MAX);
        self.window = match self.window {
            window if window >= WINDOW_START && after > SOON => (window - 1).max(WINDOW_START),
            window => (window + 1).min(WINDOW_MAX),
        };
    }

    /// Records that acknowledgements did not arrive in time: doubles the limit and halves the
    /// window.
    pub fn timed_out(&mut self) {
        self.limit = (self.limit * 2).min(LIMIT_MAX);
        self.window = (self.window / 2).max(WINDOW_MIN);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break
mod tests {
    use super::*;

    #[test]
    fn a_quick_link_is_timed_tightly_and_a_slow_one_is_given_time() {
        let mut quick = Pace::default();
        let mut slow = Pace::default();
        for _ in 0..50 {
            quick.answered(Duration::from_millis(2));
            slow.answered(Duration::from_secs(20));
        }
        assert_eq!((quick.limit(), quick.window()), (LIMIT_MIN, WINDOW_START + 50));
        assert_eq!(slow.window(), WINDOW_START);
        for _ in 0..1_000 {
            quick.answered(Duration::from_millis(2));
        }
        assert_eq!(quick.window(), WINDOW_MAX);
        for _ in 0..1_000 {
            quick.answered(Duration::from_millis(300));
        }
        assert_eq!(quick.window(), WINDOW_START, "slow acknowledgements shrink the window");
        assert!((20..40).contains(&slow.limit().as_secs()), "{:?}", slow.limit());
    }

    #[test]
    fn silence_halves_the_window_and_doubles_the_limit_within_bounds() {
        let mut pace = Pace::default();
        pace.timed_out();
        assert_eq!((pace.window(), pace.limit()), (32, LIMIT_START * 2));
        for _ in 0..20 {
            pace.timed_out();
        }
        assert_eq!((pace.window(), pace.limit()), (WINDOW_MIN, LIMIT_MAX));
        pace.answered(Duration::from_secs(1));
        assert_eq!((pace.window(), pace.limit()), (WINDOW_MIN + 1, Duration::from_secs(3)));
    }
}
