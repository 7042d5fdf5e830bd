//! Decides the time of a message whose own time cannot be right: a publisher whose clock was never
//! set, is ahead or stands still, or a simulation that counts from 1970 or runs faster than time.
//!
//! The rule: a time more than [`BEHIND_MAX_MS`] before or [`AHEAD_MAX_MS`] after the arrival, or one
//! that cannot be read, is replaced and marked. The first such message gets the time of its arrival;
//! the next ones are moved by the same amount while that keeps them near their arrival, so that the
//! intervals between them stay as they were. A point that runs ahead of its arrival, such as that of a
//! fast simulation, gets the time of the point before and 1 ms, or of the arrival if that is later. A
//! time that stands still while points arrive is replaced by the arrival of each, at any rate, as soon
//! as it has been the same for longer than a publisher that rounds its times says one.

use contract::EpochMs;

/// Publishers that were offline send what they kept for this long.
pub const BEHIND_MAX_MS: i64 = 7 * 86_400_000;
/// The clocks of publishers differ by up to this from the server's. Nothing is stored with a later
/// time than this after its arrival, so nothing heads a list by a date in the future for longer.
pub const AHEAD_MAX_MS: i64 = 2 * 60_000;
/// A simulated roast may run faster than time, and be ahead by its whole length.
pub const FAST_MAX_MS: i64 = 45 * 60_000;
/// How long after its moved time a point may arrive; after more the publisher has started again.
pub const POINT_LATE_MAX_MS: i64 = 60_000;
/// Events are detected and corrected later than points.
pub const EVENT_LATE_MAX_MS: i64 = 30 * 60_000;
/// A point that arrives this long after the point before, with the same time, has a time that stands
/// still. Shorter than the second to which some publishers round their times.
pub const STOPPED_AFTER_MS: i64 = 700;
/// Some publishers round their times to this many seconds, and say each for as long.
pub const ROUNDED_S: f64 = 1.0;
/// A time that points have had for this long, from the first arrival to the last, stands still,
/// however quickly the points follow each other: longer than [`ROUNDED_S`] and the differences
/// between the delays of two messages.
pub const STOPPED_LONG_MS: i64 = 1_500;

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
    /// The message's own time, if it stands still.
    pub stopped: Option<EpochMs>,
}

/// What the point before says about the time of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeBefore {
    /// By how much the point's own time was moved.
    pub moved_ms: Option<i64>,
    /// The time for a message that runs ahead like the point before; `None` if that did not.
    pub reached: Option<EpochMs>,
}

impl Stamp {
    /// Returns the stamp of a message that arrived at `now`; it may arrive `late_max_ms` after its
    /// moved time.
    pub fn new(own: Option<EpochMs>, now: EpochMs, before: TimeBefore, late_max_ms: i64) -> Self {
        let Some(own) = own else { return Self::of_arrival(None, now) };
        let within = |at: EpochMs, behind_ms: i64, ahead_ms: i64| {
            (now.plus_ms(behind_ms.saturating_neg())..=now.plus_ms(ahead_ms)).contains(&at)
        };
        let on_time = within(own, ON_TIME_MS, ON_TIME_MS);
        let TimeBefore { moved_ms, reached } = before;
        let moved = moved_ms.map(|ms| own.plus_ms(ms));
        match moved.filter(|at| within(*at, late_max_ms, FAST_MAX_MS)) {
            // Until its clock is right, so that a roast does not change from one rule to the other.
            Some(at) if !on_time => {
                let possible = within(at, late_max_ms, AHEAD_MAX_MS);
                let at = if possible { at } else { reached.unwrap_or(now) };
                Self { at, restamped: true, moved_ms, stopped: None }
            }
            _ if within(own, BEHIND_MAX_MS, AHEAD_MAX_MS) => {
                Self { at: own, restamped: false, moved_ms: None, stopped: None }
            }
            _ => match reached.filter(|_| within(own, 0, FAST_MAX_MS)) {
                Some(at) => Self { at, restamped: true, moved_ms: None, stopped: None },
                None => Self::of_arrival(Some(own), now),
            },
        }
    }

    /// Returns the stamp with the time of arrival.
    pub fn of_arrival(own: Option<EpochMs>, now: EpochMs) -> Self {
        let moved_ms = own.map(|own| now.ms_since(own));
        Self { at: now, restamped: true, moved_ms, stopped: None }
    }

    /// Returns the stamp of a point that arrived at `now` and whose own time stands still.
    pub const fn of_stopped(own: EpochMs, now: EpochMs) -> Self {
        Self { at: now, restamped: true, moved_ms: None, stopped: Some(own) }
    }

    /// Returns the stamp of an event with the own time of a point that was stored with the time `at`.
    pub const fn beside(at: EpochMs) -> Self {
        Self { at, restamped: true, moved_ms: None, stopped: None }
    }

    /// Returns what is wrong with a message's own time; `None` if it was kept.
    pub fn problem(&self, own: Option<EpochMs>) -> Option<String> {
        let own = own.filter(|_| self.restamped)?;
        let wrong = if self.stopped.is_some() {
            "is the time of the point before, which arrived earlier"
        } else {
            "is far from its arrival"
        };
        Some(format!("{own} {wrong}; stored as {}", self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: EpochMs = EpochMs(1_795_000_000_000);
    const YEAR_MS: i64 = 365 * 86_400_000;

    const FIRST: TimeBefore = TimeBefore { moved_ms: None, reached: None };

    fn after(moved_ms: Option<i64>) -> TimeBefore {
        TimeBefore { moved_ms, reached: None }
    }

    #[test]
    fn a_time_near_the_arrival_is_kept() {
        for ms in [0, -BEHIND_MAX_MS, AHEAD_MAX_MS, -3_600_000] {
            let own = NOW.plus_ms(ms);
            let stamp = Stamp::new(Some(own), NOW, FIRST, POINT_LATE_MAX_MS);
            let kept = Stamp { at: own, restamped: false, moved_ms: None, stopped: None };
            assert_eq!((stamp, stamp.problem(Some(own))), (kept, None), "{ms}");
        }
        let stamp = Stamp::new(Some(NOW), NOW, after(Some(5)), POINT_LATE_MAX_MS);
        assert!(!stamp.restamped, "its clock is right again");
    }

    #[test]
    fn a_time_far_from_the_arrival_becomes_the_arrival_and_keeps_its_intervals() {
        for own in [EpochMs(1_000_000), NOW.plus_ms(5 * YEAR_MS), NOW.plus_ms(86_400_000)] {
            let first = Stamp::new(Some(own), NOW, FIRST, POINT_LATE_MAX_MS);
            assert_eq!((first.at, first.restamped), (NOW, true));
            // Two seconds later by the publisher's clock, three by ours.
            let (later, now) = (own.plus_ms(2_000), NOW.plus_ms(3_000));
            let first_time = after(first.moved_ms);
            let second = Stamp::new(Some(later), now, first_time, POINT_LATE_MAX_MS);
            assert_eq!((second.at, second.moved_ms), (NOW.plus_ms(2_000), first.moved_ms));
            // The same roast is played again an hour later.
            let again = NOW.plus_ms(3_600_000);
            let again = Stamp::new(Some(own), again, first_time, POINT_LATE_MAX_MS);
            assert_eq!(again.at, NOW.plus_ms(3_600_000));
        }
        // A clock at the limit does not change from one rule to the other within a roast.
        let own = NOW.plus_ms(AHEAD_MAX_MS + 1);
        let first = Stamp::new(Some(own), NOW, FIRST, POINT_LATE_MAX_MS);
        let now = NOW.plus_ms(5_000);
        let second = after(first.moved_ms);
        let second = Stamp::new(Some(own.plus_ms(1_000)), now, second, POINT_LATE_MAX_MS);
        assert_eq!((second.at, second.restamped), (NOW.plus_ms(1_000), true));
        let unreadable = Stamp::new(None, NOW, after(Some(7)), POINT_LATE_MAX_MS);
        let of_arrival = Stamp { at: NOW, restamped: true, moved_ms: None, stopped: None };
        assert_eq!(unreadable, of_arrival);
    }

    #[test]
    fn a_roast_that_runs_faster_than_time_is_dated_in_order_and_not_in_the_future() {
        // Thirty times as fast as time, by a right clock and by one that counts from 1970.
        for start in [NOW, EpochMs(42_000)] {
            let mut last: Option<Stamp> = None;
            for s in 0..600 {
                let (own, now) = (start.plus_ms(s * 1_000), NOW.plus_ms(s * 33));
                let latest = now.plus_ms(AHEAD_MAX_MS);
                let reached = last.map(|last| last.at.plus_ms(1)).filter(|at| *at > now);
                let before = TimeBefore {
                    moved_ms: last.and_then(|last| last.moved_ms),
                    reached: reached.map(|at| at.min(latest)),
                };
                let stamp = Stamp::new(Some(own), now, before, POINT_LATE_MAX_MS);
                assert!(stamp.at <= latest, "{s}: {}", stamp.at);
                assert!(last.is_none_or(|last| last.at <= stamp.at), "{s}: {}", stamp.at);
                assert_eq!(stamp.problem(Some(own)).is_some(), stamp.restamped, "{s}");
                last = Some(stamp);
            }
        }
    }
}
