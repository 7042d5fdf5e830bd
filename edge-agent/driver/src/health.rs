//! Which units of a bus are asked, and when: a breaker a unit. Pure; the clock is passed in.

/// Failures in a row until a unit is left alone for a while.
const FAILURES_MAX: u32 = 3;
const PAUSE_MS_MIN: u64 = 500;
/// A controller that is switched on again in the middle of a roast is not missed for longer.
const PAUSE_MS_MAX: u64 = 5_000;

/// One unit's record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    failures: u32,
    /// Until then it is not asked, on the monotonic clock.
    rests_until_ms: u64,
}

impl Health {
    pub const fn answered(&mut self) {
        self.failures = 0;
        self.rests_until_ms = 0;
    }

    /// Notes that it did not answer. `salt` spreads units that died together.
    pub fn failed(&mut self, mono_ms: u64, salt: u64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            let doublings = (self.failures - FAILURES_MAX).min(8);
            let pause = (PAUSE_MS_MIN << doublings).min(PAUSE_MS_MAX);
            let spread = (salt * 7_919 + u64::from(self.failures) * 104_729) % (pause / 4);
            self.rests_until_ms = mono_ms + pause - spread;
        }
    }

    pub const fn is_well(&self) -> bool {
        self.failures == 0
    }

    pub const fn rests(&self, mono_ms: u64) -> bool {
        mono_ms < self.rests_until_ms
    }
}

/// The order in which units are asked now: the well ones first, then at most one that failed and
/// does not rest, so that dead ones cost what is left of the time, and never another's. A unit that
/// is alone is always asked, since nobody waits behind it.
#[must_use]
pub fn order(units: &[Health], mono_ms: u64) -> Vec<usize> {
    if units.len() == 1 {
        return vec![0];
    }
    let mut order: Vec<usize> = (0..units.len()).filter(|i| units[*i].is_well()).collect();
    let ailing = (0..units.len()).filter(|i| !units[*i].is_well() && !units[*i].rests(mono_ms));
    // The one that has waited longest, so that each gets its turn.
    order.extend(ailing.min_by_key(|i| (units[*i].rests_until_ms, *i)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_unit_is_asked_last_then_seldom_then_again() {
        let mut units = vec![Health::default(); 3];
        assert_eq!(order(&units, 0), [0, 1, 2]);
        units[0].failed(0, 0);
        assert_eq!(order(&units, 100), [1, 2, 0], "last, so that it costs the others nothing");
        units[0].failed(100, 0);
        units[0].failed(200, 0);
        assert_eq!(order(&units, 300), [1, 2]);
        assert_eq!(order(&units, 800), [1, 2, 0]);
        units[0].answered();
        assert_eq!(order(&units, 900), [0, 1, 2]);
    }

    #[test]
    fn of_several_dead_units_one_is_tried_at_a_time_and_each_in_turn() {
        let mut units = vec![Health::default(); 3];
        let mut tried = [0; 3];
        for tick in 0..100 {
            let now = tick * 1000;
            let order = order(&units, now);
            assert!(tick == 0 || order.len() <= 2, "{order:?}");
            for unit in order.into_iter().filter(|unit| *unit > 0) {
                tried[unit] += 1;
                units[unit].failed(now, unit as u64);
            }
        }
        assert!(tried[1] > 10 && tried[2] > 10, "{tried:?}");
    }

    #[test]
    fn a_pause_ends_within_five_seconds_however_often_it_failed() {
        let mut unit = Health::default();
        for _ in 0..1000 {
            unit.failed(1_000_000, 9);
        }
        assert!(unit.rests(1_000_000 + 3_000) && !unit.rests(1_000_000 + PAUSE_MS_MAX));
    }
}
