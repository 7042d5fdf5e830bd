//! Decides the time of a message whose own time cannot be right: a publisher whose clock was never
//! set, or a simulation that counts from 1970.
//!
//! The rule: a time more than [`BEHIND_MAX_MS`] before or [`AHEAD_MAX_MS`] after the arrival, or one
//! that cannot be read, is replaced. The first such message gets the time of its arrival; the next
//! ones are moved by the same amount while that keeps them near their arrival, so that the intervals
//! between them stay as they were.

use contract::EpochMs;

/// Publishers that were offline send what they kept for this long.
pub const BEHIND_MAX_MS: i64 = 7 * 86_400_000;
/// A simulated roast may run faster than time, and be ahead by its whole length.
pub const AHEAD_MAX_MS: i64 = 45 * 60_000;
/// How long after its moved time a point may arrive; after more the publisher has started again.
pub const POINT_LATE_MAX_MS: i64 = 60_000;
/// Events are detected and corrected later than points.
pub const EVENT_LATE_MAX_MS: i64 = 30 * 60_000;

/// A publisher whose times are this near their arrival has a clock that is right.
const ON_TIME_MS: i64 = 60_000;

/// The time with which a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub at: EpochMs,
    /// True if it is not the message's own time.
    pub restamped: bool,
    /// By how much the message's own time was moved; `None` if it was not moved or not readable.
    pub moved_ms: Option<i64>,
}

impl Stamp {
    /// Returns the stamp of a message that arrived at `now`. `moved_ms` is by how much the machine's
    /// previous point was moved, and `late_max_ms` how long after its moved time the message may
    /// arrive.
    pub fn new(
        own: Option<EpochMs>,
        now: EpochMs,
        moved_ms: Option<i64>,
        late_max_ms: i64,
    ) -> Self {
        let Some(own) = own else { return Self::of_arrival(None, now) };
        let within = |at: EpochMs, behind_ms: i64, ahead_ms: i64| {
            (now.plus_ms(behind_ms.saturating_neg())..=now.plus_ms(ahead_ms)).contains(&at)
        };
        let on_time = within(own, ON_TIME_MS, ON_TIME_MS);
        let moved = moved_ms.map(|ms| own.plus_ms(ms));
        match moved.filter(|at| within(*at, late_max_ms, AHEAD_MAX_MS)) {
            // Until its clock is right, so that a roast does not change from one rule to the other.
            Some(at) if !on_time => Self { at, restamped: true, moved_ms },
            _ if within(own, BEHIND_MAX_MS, AHEAD_MAX_MS) => {
                Self { at: own, restamped: false, moved_ms: None }
            }
            _ => Self::of_arrival(Some(own), now),
        }
    }

    /// Returns the stamp with the time of arrival.
    pub fn of_arrival(own: Option<EpochMs>, now: EpochMs) -> Self {
        Self { at: now, restamped: true, moved_ms: own.map(|own| now.ms_since(own)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: EpochMs = EpochMs(1_795_000_000_000);
    const YEAR_MS: i64 = 365 * 86_400_000;

    #[test]
    fn a_time_near_the_arrival_is_kept() {
        for ms in [0, -BEHIND_MAX_MS, AHEAD_MAX_MS, -3_600_000] {
            let own = NOW.plus_ms(ms);
            let stamp = Stamp::new(Some(own), NOW, Some(5), POINT_LATE_MAX_MS);
            assert_eq!(stamp, Stamp { at: own, restamped: false, moved_ms: None }, "{ms}");
        }
    }

    #[test]
    fn a_time_far_from_the_arrival_becomes_the_arrival_and_keeps_its_intervals() {
        for own in [EpochMs(1_000_000), NOW.plus_ms(5 * YEAR_MS), NOW.plus_ms(86_400_000)] {
            let first = Stamp::new(Some(own), NOW, None, POINT_LATE_MAX_MS);
            assert_eq!((first.at, first.restamped), (NOW, true));
            // Two seconds later by the publisher's clock, three by ours.
            let (later, now) = (own.plus_ms(2_000), NOW.plus_ms(3_000));
            let second = Stamp::new(Some(later), now, first.moved_ms, POINT_LATE_MAX_MS);
            assert_eq!((second.at, second.moved_ms), (NOW.plus_ms(2_000), first.moved_ms));
            // The same roast is played again an hour later.
            let again = NOW.plus_ms(3_600_000);
            let again = Stamp::new(Some(own), again, first.moved_ms, POINT_LATE_MAX_MS);
            assert_eq!(again.at, NOW.plus_ms(3_600_000));
        }
        // A clock at the limit does not change from one rule to the other within a roast.
        let own = NOW.plus_ms(AHEAD_MAX_MS + 1);
        let first = Stamp::new(Some(own), NOW, None, POINT_LATE_MAX_MS);
        let now = NOW.plus_ms(5_000);
        let second = Stamp::new(Some(own.plus_ms(1_000)), now, first.moved_ms, POINT_LATE_MAX_MS);
        assert_eq!((second.at, second.restamped), (NOW.plus_ms(1_000), true));
        let unreadable = Stamp::new(None, NOW, Some(7), POINT_LATE_MAX_MS);
        assert_eq!(unreadable, Stamp { at: NOW, restamped: true, moved_ms: None });
    }
}
