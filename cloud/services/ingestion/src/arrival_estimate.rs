//! Estimates a gateway's clock offset from when its frames arrive. Pure.
//!
//! A frame cannot arrive before its last sample was made, so each arrival is an upper bound of the
//! offset, and the smallest bound is the best. It is close only while frames arrive live: then they
//! arrive at the rate at which they were made. A backlog arrives faster, and its bounds fall.

use contract::EpochMs;

/// How much the delay of live frames may vary, in ms.
const JITTER_MS: i64 = 2_000;
/// Frames are live once they have arrived at the rate of the monotonic clock for this long, in ms.
const LIVE_AFTER_MS: i64 = 10_000;

/// What the arrivals of one boot have shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArrivalEstimate {
    /// The smallest bound, ms.
    bound_ms: i64,
    /// The frame since which the bounds have not fallen: its monotonic time and its bound, ms. A
    /// backlog's bounds fall by a little with each frame.
    since: (i64, i64),
}

impl ArrivalEstimate {
    /// Returns the greatest offset that the arrivals allow, in ms.
    pub const fn bound_ms(self) -> i64 {
        self.bound_ms
    }

    /// Adds a frame whose last sample was made at `made_ms` by the monotonic clock. Returns the
    /// estimated offset too (wall-clock time minus monotonic time, ms) if the frame arrived live.
    pub fn update(before: Option<Self>, made_ms: i64, received: EpochMs) -> (Self, Option<i64>) {
        let bound_ms = received.0.saturating_sub(made_ms);
        let begins = Self { bound_ms, since: (made_ms, bound_ms) };
        let Some(before) = before else { return (begins, None) };
        if bound_ms.saturating_add(JITTER_MS) < before.since.1 {
            return (begins, None);
        }
        let after = Self { bound_ms: before.bound_ms.min(bound_ms), ..before };
        let on_time = bound_ms <= after.bound_ms.saturating_add(JITTER_MS);
        let live = on_time && made_ms.saturating_sub(after.since.0) >= LIVE_AFTER_MS;
        (after, live.then_some(after.bound_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSET: i64 = 1_760_000_000_000;

    /// Adds frames (made, received), both in seconds since the gateway started, and returns the
    /// last estimate.
    fn estimate(frames: impl IntoIterator<Item = (i64, i64)>) -> Option<i64> {
        let (mut so_far, mut last) = (None, None);
        for (made_s, received_s) in frames {
            let received = EpochMs(OFFSET + received_s * 1_000);
            let (next, offset) = ArrivalEstimate::update(so_far, made_s * 1_000, received);
            (so_far, last) = (Some(next), offset.or(last));
        }
        last
    }

    #[test]
    fn frames_that_arrive_live_give_the_offset() {
        assert_eq!(estimate((0..9).map(|s| (s, s + 1))), None, "too few to tell");
        let jitter = |s: i64| (s, s + 1 + s % 3 / 2);
        assert_eq!(estimate((0..60).map(jitter)), Some(OFFSET + 1_000));
    }

    #[test]
    fn a_backlog_gives_no_offset_until_live_frames_follow() {
        // An hour that is sent in a minute, and then live frames.
        let backlog = (0..3_600).map(|s| (s, 3_600 + s / 60));
        assert_eq!(estimate(backlog.clone()), None);
        let live = (3_660..3_700).map(|s| (s, s + 1));
        assert_eq!(estimate(backlog.chain(live)), Some(OFFSET + 1_000));
    }

    #[test]
    fn late_frames_between_live_ones_do_not_matter() {
        let mixed = (0..60).flat_map(|s| [(1_000 + s, 1_001 + s), (s * 10, 1_001 + s)]);
        assert_eq!(estimate(mixed), Some(OFFSET + 1_000));
    }

    #[test]
    fn impossible_times_give_no_offset() {
        let (one, _) = ArrivalEstimate::update(None, i64::MAX, EpochMs(i64::MIN));
        let (_, offset) = ArrivalEstimate::update(Some(one), i64::MIN, EpochMs(i64::MAX));
        assert_eq!(offset, None);
    }
}
