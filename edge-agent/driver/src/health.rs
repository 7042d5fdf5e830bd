//! Which units of a bus are polled, and when: one circuit breaker per unit. Pure; the clock is
//! passed in.

/// Failures in a row after which polling of a unit pauses.
const FAILURES_MAX: u32 = 3;
const PAUSE_MS_MIN: u64 = 500;
/// The longest pause: a controller that is switched on again during a roast is polled by then.
const PAUSE_MS_MAX: u64 = 5_000;

/// The state of one unit's circuit breaker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    failures: u32,
    /// The unit is not polled before this time, monotonic ms.
    retry_at_ms: u64,
}

impl Health {
    pub const fn answered(&mut self) {
        self.failures = 0;
        self.retry_at_ms = 0;
    }

    /// Records a failure. `salt` spreads the retries of units that failed together.
    pub fn failed(&mut self, mono_ms: u64, salt: u64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            let doublings = self.failures.saturating_sub(FAILURES_MAX).min(8);
            let pause = (PAUSE_MS_MIN << doublings).min(PAUSE_MS_MAX);
            let mixed = u64::from(self.failures).wrapping_mul(104_729);
            let mixed = mixed.wrapping_add(salt.wrapping_mul(7_919));
            let spread = mixed.checked_rem(pause / 4).unwrap_or(0);
            self.retry_at_ms = mono_ms.saturating_add(pause).saturating_sub(spread);
        }
    }

    pub const fn is_healthy(&self) -> bool {
        self.failures == 0
    }

    pub const fn is_backing_off(&self, mono_ms: u64) -> bool {
        mono_ms < self.retry_at_ms
    }
}

/// Returns the order in which to poll units now: healthy ones first, then at most one failed unit
/// whose pause is over, so that failed units use only the remaining time and never another unit's.
/// The first `read_first` units do not wait for a turn: each of them whose pause is over is polled
/// before the other failed unit. A single unit is always polled, since no other unit waits for it.
#[must_use]
pub fn poll_order(units: &[Health], read_first: usize, mono_ms: u64) -> Vec<usize> {
    if units.len() == 1 {
        return vec![0];
    }
    let is_due = |i: &usize| !units[*i].is_healthy() && !units[*i].is_backing_off(mono_ms);
    let mut poll_order: Vec<usize> = (0..units.len()).filter(|i| units[*i].is_healthy()).collect();
    poll_order.extend((0..read_first).filter(is_due));
    // The failed unit that has waited longest, so that each gets its turn.
    let others = (read_first..units.len()).filter(is_due);
    poll_order.extend(others.min_by_key(|i| (units[*i].retry_at_ms, *i)));
    poll_order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_unit_is_polled_last_then_rarely_until_it_answers() {
        let mut units = vec![Health::default(); 3];
        assert_eq!(poll_order(&units, 0, 0), [0, 1, 2]);
        units[0].failed(0, 0);
        assert_eq!(
            poll_order(&units, 0, 100),
            [1, 2, 0],
            "last, so that it does not delay the others"
        );
        units[0].failed(100, 0);
        units[0].failed(200, 0);
        assert_eq!(poll_order(&units, 0, 300), [1, 2]);
        assert_eq!(poll_order(&units, 0, 800), [1, 2, 0]);
        units[0].answered();
        assert_eq!(poll_order(&units, 0, 900), [0, 1, 2]);
    }

    #[test]
    fn failed_units_are_retried_one_at_a_time_in_turn() {
        let mut units = vec![Health::default(); 3];
        let mut tried = [0; 3];
        for tick in 0..100 {
            let now = tick * 1000;
            let poll_order = poll_order(&units, 0, now);
            assert!(tick == 0 || poll_order.len() <= 2, "{poll_order:?}");
            for unit in poll_order.into_iter().filter(|unit| *unit > 0) {
                tried[unit] += 1;
                units[unit].failed(now, unit as u64);
            }
        }
        assert!(tried[1] > 10 && tried[2] > 10, "{tried:?}");
    }

    #[test]
    fn a_failed_unit_that_is_read_first_does_not_wait_for_the_turns_of_others() {
        let mut units = vec![Health::default(); 5];
        for unit in units.iter_mut().take(4) {
            unit.failed(0, 0);
        }
        assert_eq!(poll_order(&units, 1, 1_000), [4, 0, 1]);
        for _ in 0..9 {
            units[0].failed(1_000, 0);
        }
        assert_eq!(poll_order(&units, 1, 1_100), [4, 1], "it pauses like others");
        assert_eq!(poll_order(&units, 1, 9_000), [4, 0, 1]);
    }

    #[test]
    fn a_pause_is_at_most_five_seconds_after_any_number_of_failures() {
        let mut unit = Health::default();
        for _ in 0..1000 {
            unit.failed(1_000_000, 9);
        }
        assert!(
            unit.is_backing_off(1_000_000 + 3_000)
                && !unit.is_backing_off(1_000_000 + PAUSE_MS_MAX)
        );
    }
}
