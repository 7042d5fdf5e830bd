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
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_START: Duration = Duration::from_secs(3);
const TIMEOUT_MAX: Duration = Duration::from_mins(2);

/// An acknowledgement that takes longer than this means that frames queue up in the link.
const FAST_ACK_MAX: Duration = Duration::from_millis(250);

/// The send window and the time limit of one connection.
#[derive(Debug, Clone)]
pub struct SendWindow {
    max_in_flight: usize,
    timeout: Duration,
    /// The smoothed round-trip time and its variation, in s; `None` before the first measurement.
    round_trip_s: Option<(f64, f64)>,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { max_in_flight: WINDOW_START, timeout: TIMEOUT_START, round_trip_s: None }
    }
}

impl SendWindow {
    /// Returns how many frames may be in flight at once.
    pub const fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    /// Returns the time limit: a frame that is not acknowledged within it is sent again.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Records that an acknowledgement arrived `after` its frame was sent. The frame must have been
    /// sent only once.
    pub fn on_ack(&mut self, after: Duration) {
        let took = after.as_secs_f64();
        let (smooth, spread) = match self.round_trip_s {
            None => (took, took / 2.0),
            Some((smooth, spread)) => {
                (0.875 * smooth + 0.125 * took, 0.75 * spread + 0.25 * (smooth - took).abs())
            }
        };
        self.round_trip_s = Some((smooth, spread));
        let limit = Duration::from_secs_f64((smooth + 4.0 * spread).min(TIMEOUT_MAX.as_secs_f64()));
        self.timeout = limit.clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        self.max_in_flight = match self.max_in_flight {
            window if window >= WINDOW_START && after > FAST_ACK_MAX => {
                window.saturating_sub(1).max(WINDOW_START)
            }
            window => window.saturating_add(1).min(WINDOW_MAX),
        };
    }

    /// Records that acknowledgements did not arrive in time: doubles the limit and halves the
    /// window.
    pub fn on_timeout(&mut self) {
        self.timeout = self.timeout.saturating_mul(2).min(TIMEOUT_MAX);
        self.max_in_flight = (self.max_in_flight / 2).max(WINDOW_MIN);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break
mod tests {
    use super::*;

    #[test]
    fn the_timeout_and_the_window_follow_the_time_to_the_acknowledgement() {
        let mut quick = SendWindow::default();
        let mut slow = SendWindow::default();
        for _ in 0..50 {
            quick.on_ack(Duration::from_millis(2));
            slow.on_ack(Duration::from_secs(20));
        }
        assert_eq!((quick.timeout(), quick.max_in_flight()), (TIMEOUT_MIN, WINDOW_START + 50));
        assert_eq!(slow.max_in_flight(), WINDOW_START);
        for _ in 0..1_000 {
            quick.on_ack(Duration::from_millis(2));
        }
        assert_eq!(quick.max_in_flight(), WINDOW_MAX);
        for _ in 0..1_000 {
            quick.on_ack(Duration::from_millis(300));
        }
        assert_eq!(quick.max_in_flight(), WINDOW_START, "slow acknowledgements shrink the window");
        assert!((20..40).contains(&slow.timeout().as_secs()), "{:?}", slow.timeout());
    }

    #[test]
    fn a_timeout_halves_the_window_and_doubles_the_timeout_within_bounds() {
        let mut pace = SendWindow::default();
        pace.on_timeout();
        assert_eq!((pace.max_in_flight(), pace.timeout()), (32, TIMEOUT_START * 2));
        for _ in 0..20 {
            pace.on_timeout();
        }
        assert_eq!((pace.max_in_flight(), pace.timeout()), (WINDOW_MIN, TIMEOUT_MAX));
        pace.on_ack(Duration::from_secs(1));
        assert_eq!(
            (pace.max_in_flight(), pace.timeout()),
            (WINDOW_MIN + 1, Duration::from_secs(3))
        );
    }
}
