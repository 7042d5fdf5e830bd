//! The time from one mark to the next.

use serde::{Deserialize, Serialize};

use super::{SCATTER_MARKS_MAX, SURPRISE_MAX};

/// The time from one mark to the next, s: mean and scatter, learned from people's marks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MarkDelay {
    mean_s: f64,
    /// Variance of one mark, s².
    scatter: f64,
    /// The number of marks that mean and scatter represent.
    weight: f64,
    marks: u32,
}

impl MarkDelay {
    pub(crate) const fn prior(mean_s: f64, deviation_s: f64) -> Self {
        Self { mean_s, scatter: deviation_s * deviation_s, weight: 2.0, marks: 0 }
    }

    /// Returns the number of delays learned so far.
    #[must_use]
    pub const fn mark_count(&self) -> u32 {
        self.marks
    }

    /// Returns the expected delay, s.
    #[must_use]
    pub const fn mean_s(&self) -> f64 {
        self.mean_s
    }

    /// Returns the standard deviation of the next delay, s.
    #[must_use]
    pub fn deviation_s(&self) -> f64 {
        (self.scatter * (1.0 + 1.0 / self.weight)).sqrt()
    }

    /// Learns a delay, s.
    pub fn learn(&mut self, seconds: f64) {
        let surprise = seconds - self.mean_s;
        let pull = SURPRISE_MAX * self.deviation_s();
        let pull = surprise.clamp(-pull, pull);
        self.mean_s += pull / (self.weight + 1.0);
        self.scatter = (self.scatter * self.weight + pull * pull) / (self.weight + 1.0);
        self.weight = (self.weight + 1.0).min(SCATTER_MARKS_MAX);
        self.marks += 1;
    }
}
