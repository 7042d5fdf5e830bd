//! How often the language model is asked about the runs of one organisation. Each question costs
//! money, and an organisation can create any number of runs. All instances of eval count in
//! the same row of the database, and a restart does not reset the count.

use contract::EpochMs;

const DAY_MS: i64 = 86_400_000;

/// A day of UTC, numbered since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetDay(pub i64);

impl BudgetDay {
    /// Returns the day of a time.
    #[must_use]
    pub const fn of(at: EpochMs) -> Self {
        Self(at.0.div_euclid(DAY_MS))
    }

    /// Returns when the next day begins.
    #[must_use]
    pub const fn end(self) -> EpochMs {
        EpochMs(self.0.saturating_add(1).saturating_mul(DAY_MS))
    }
}

/// A budget that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetUsedUp {
    /// When the next day begins.
    pub until: EpochMs,
    /// Whether this is the first question of the day that is refused.
    pub is_first: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_at_midnight_of_utc() {
        let midnight = EpochMs(20_001 * DAY_MS);
        assert_eq!(BudgetDay::of(midnight.plus_ms(-1)), BudgetDay(20_000));
        assert_eq!(BudgetDay::of(midnight), BudgetDay(20_001));
        assert_eq!(BudgetDay(20_000).end(), midnight);
        assert_eq!(BudgetDay::of(EpochMs(-1)), BudgetDay(-1), "before 1970");
    }
}
