//! The rules on when and how often a control is written.

use super::{Interlock, WriteError};

pub(super) const HOUR_MS: u64 = 3_600_000;

impl Interlock {
    /// Checks the profile's shortest time between two writes to this control.
    pub(super) fn check_min_interval(&self, at: usize, now_ms: u64) -> Result<(), WriteError> {
        let control = &self.profile.controls[at];
        let least = ms(control.min_interval_s.unwrap_or(0.0));
        let passed = self.controls[at].at_ms.map_or(u64::MAX, |then| now_ms.saturating_sub(then));
        if passed < least {
            let (control, wait_ms) = (control.name.clone(), least.saturating_sub(passed));
            return Err(WriteError::TooSoon { control, wait_ms });
        }
        Ok(())
    }

    /// Checks that the machine followed the writes to this control, or still has time to
    /// (`readback_s`).
    pub(super) fn check_followed(&self, at: usize, now_ms: u64) -> Result<(), WriteError> {
        let control = &self.profile.controls[at];
        let since =
            self.controls[at].unconfirmed.map(|writes| now_ms.saturating_sub(writes.since_ms));
        if since.is_some_and(|since| since > ms(control.readback_s.unwrap_or(0.0))) {
            return Err(WriteError::NotFollowed(control.name.clone()));
        }
        Ok(())
    }

    /// Checks the number of writes in the last hour: some panels store writes in a memory that
    /// wears out.
    pub(super) fn check_write_budget(&self, now_ms: u64) -> Result<(), WriteError> {
        let most = self.profile.limits.writes_per_hour_max;
        let within = |at: &&u64| now_ms.saturating_sub(**at) < HOUR_MS;
        if self.written_ms.iter().filter(within).count() >= most as usize {
            return Err(WriteError::WriteBudgetSpent(most));
        }
        Ok(())
    }

    /// Counts a write. Keeps at most `writes_per_hour_max` times, which is enough to detect the
    /// limit.
    pub(super) fn count_write(&mut self, now_ms: u64) {
        let full = self.written_ms.len() >= self.profile.limits.writes_per_hour_max as usize;
        self.evicted_ms = if full { self.written_ms.pop_front() } else { None };
        self.written_ms.push_back(now_ms);
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // the linter bounds seconds
fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}
