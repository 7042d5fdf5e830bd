//! The arrival numbers that a pass has seen, and what the next one reads.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::subscribers::WantedOrgs;
use super::{Position, is_full};
use crate::store::Arrival;

/// An arrival number that is missing for longer belongs to a transaction that was rolled back.
const HOLE_TIME_MAX: Duration = Duration::from_secs(10);
const HOLES_MAX: usize = 10_000;
/// The number of samples that a pass reads, but for a frame that has more.
const SAMPLES_A_PASS: usize = contract::frame::SAMPLES_MAX;
/// A pass that has found this many late frames reads no more of them: they may be large.
const LATE_MAX: usize = 4;

/// The arrival numbers of one kind of rows that have been seen.
pub struct Arrivals {
    pub newest: i64,
    /// The numbers below `newest` that have not been seen, and since when they are missing.
    holes: BTreeMap<i64, Instant>,
}

impl Arrivals {
    /// Begins behind the newest numbers, given the newest first.
    pub fn begin(newest_first: &[i64], now: Instant) -> Self {
        let oldest = newest_first.last().copied().unwrap_or(0);
        let mut arrivals = Self { newest: oldest, holes: BTreeMap::new() };
        for arrival in newest_first.iter().rev() {
            arrivals.see(*arrival, now);
        }
        arrivals
    }

    /// Notes a row: one that was missing, or one after all others.
    pub fn see(&mut self, arrival: i64, now: Instant) {
        self.holes.remove(&arrival);
        if arrival > self.newest {
            let free = HOLES_MAX.saturating_sub(self.holes.len());
            let missing = (self.newest.saturating_add(1)..arrival).take(free);
            self.holes.extend(missing.map(|hole| (hole, now)));
            self.newest = arrival;
        }
    }

    /// Gives up the numbers that have been missing for too long; returns the others.
    pub fn missing(&mut self, now: Instant) -> Vec<i64> {
        self.holes.retain(|_, since| now.duration_since(*since) < HOLE_TIME_MAX);
        self.holes.keys().copied().collect()
    }

    pub fn position(&self) -> Position {
        Position { arrival: self.newest, missing: self.holes.keys().copied().collect() }
    }
}

/// What a pass does with the frames that have arrived.
pub struct Batch {
    /// The frames that are read for subscribers.
    pub read: Vec<i64>,
    /// The frames that need no further pass: those that are read, and those without a subscriber.
    pub seen: Vec<i64>,
}

impl Batch {
    /// Chooses from late and new frames, oldest first: as many as one pass may read. Returns whether
    /// some are left.
    pub fn choose(late: &[Arrival], new: &[Arrival], wanted: &WantedOrgs) -> (Self, bool) {
        let mut batch = Self { read: Vec::new(), seen: Vec::new() };
        let (mut late_read, mut more) = (0_usize, is_full(new.len()));
        for frame in late {
            if wanted.wants(&frame.org_id) {
                if late_read == LATE_MAX {
                    more = true; // the next pass finds the others
                    continue;
                }
                late_read = late_read.saturating_add(1);
                batch.read.push(frame.arrival);
            }
            batch.seen.push(frame.arrival);
        }
        let mut samples = 0_usize;
        for frame in new {
            if wanted.wants(&frame.org_id) {
                samples = samples.saturating_add(usize::try_from(frame.samples).unwrap_or(0));
                if samples > SAMPLES_A_PASS && batch.read.len() > late_read {
                    return (batch, true);
                }
                batch.read.push(frame.arrival);
            }
            batch.seen.push(frame.arrival);
        }
        (batch, more)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_that_are_missing_are_known_until_they_come_or_time_out() {
        let now = Instant::now();
        let mut arrivals = Arrivals::begin(&[9, 7, 6, 3], now);
        assert_eq!(arrivals.position(), Position { arrival: 9, missing: [4, 5, 8].into() });
        arrivals.see(5, now);
        arrivals.see(11, now + Duration::from_secs(5));
        assert_eq!(arrivals.missing(now + Duration::from_secs(9)), [4, 8, 10]);
        assert_eq!(arrivals.missing(now + Duration::from_secs(11)), [10]);
        arrivals.see(1_000_000, now);
        assert_eq!(arrivals.holes.len(), HOLES_MAX, "bounded");
        assert_eq!(Arrivals::begin(&[], now).position().arrival, 0);
    }

    #[test]
    fn a_pass_reads_only_frames_that_are_wanted_and_only_so_many() {
        let frame =
            |arrival, org: &str, samples| Arrival { arrival, org_id: org.to_owned(), samples };
        let wanted = WantedOrgs { orgs: BTreeSet::from(["acme".to_owned()]), generation: 1 };
        let late: Vec<_> =
            (1..=10).map(|n| frame(n, if n % 2 == 0 { "acme" } else { "other" }, 1)).collect();
        let new = [
            frame(20, "other", 4_096),
            frame(21, "acme", 4_000),
            frame(22, "other", 4_096),
            frame(23, "acme", 96),
            frame(24, "acme", 1),
        ];
        let (batch, more) = Batch::choose(&late, &new, &wanted);
        assert_eq!(batch.read, [2, 4, 6, 8, 21, 23]);
        assert_eq!(batch.seen, [1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 21, 22, 23]);
        assert!(more, "10 and 24 are left");
        let (batch, more) = Batch::choose(&[], &[frame(1, "acme", 1_000_000)], &wanted);
        assert_eq!((batch.read, more), (vec![1], false), "one frame whatever its size");
    }
}
