//! How often the language model is asked about the runs of one organisation. Each question costs
//! money, and an organisation can create any number of runs.

use std::collections::BTreeMap;

use contract::{EpochMs, OrgId};

const DAY_MS: i64 = 86_400_000;

/// The budget of each organisation for a day of UTC. Each instance of eval has its own.
#[derive(Debug)]
pub struct JudgeBudget {
    per_day: u32,
    /// The day that is counted, since 1970.
    day: i64,
    /// The questions of that day. Only organisations that were asked about are listed.
    asked: BTreeMap<OrgId, u32>,
}

/// A budget that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetUsedUp {
    /// When the next day begins.
    pub until: EpochMs,
    /// Whether this is the first question of the day that is refused.
    pub is_first: bool,
}

impl JudgeBudget {
    #[must_use]
    pub const fn new(per_day: u32) -> Self {
        Self { per_day, day: 0, asked: BTreeMap::new() }
    }

    /// Takes one question of an organisation from its budget.
    ///
    /// # Errors
    /// [`BudgetUsedUp`] if it has none left today.
    pub fn take(&mut self, org: &OrgId, now: EpochMs) -> Result<(), BudgetUsedUp> {
        let day = now.0.div_euclid(DAY_MS);
        if day != self.day {
            self.day = day;
            self.asked.clear();
        }
        let asked = self.asked.entry(org.clone()).or_default();
        if *asked < self.per_day {
            *asked = asked.saturating_add(1);
            return Ok(());
        }
        let is_first = *asked == self.per_day;
        *asked = self.per_day.saturating_add(1);
        let until = EpochMs(day.saturating_add(1).saturating_mul(DAY_MS));
        Err(BudgetUsedUp { until, is_first })
    }

    #[must_use]
    pub const fn per_day(&self) -> u32 {
        self.per_day
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_organisation_has_its_own_budget_of_a_day() {
        let (acme, calm) = (OrgId::new("acme").unwrap(), OrgId::new("calm").unwrap());
        let noon = EpochMs(20_000 * DAY_MS + DAY_MS / 2);
        let midnight = EpochMs(20_001 * DAY_MS);
        let mut budget = JudgeBudget::new(2);
        assert_eq!((budget.take(&acme, noon), budget.take(&acme, noon)), (Ok(()), Ok(())));
        let used_up = |is_first| Err(BudgetUsedUp { until: midnight, is_first });
        assert_eq!(budget.take(&acme, noon), used_up(true));
        assert_eq!(budget.take(&acme, midnight.plus_ms(-1)), used_up(false));
        assert_eq!(budget.take(&calm, noon), Ok(()));
        assert_eq!(budget.take(&acme, midnight), Ok(()));
        assert_eq!(budget.asked.len(), 1, "yesterday is forgotten");
    }
}
