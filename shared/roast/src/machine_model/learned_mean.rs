//! The mean and the scatter of a value of each roast.

use serde::{Deserialize, Serialize};

use super::{SCATTER_MARKS_MAX, SURPRISE_MAX};

/// The mean and the scatter of a value of each roast, such as the time from one mark to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnedMean {
    #[serde(rename = "mean_s")]
    mean: f64,
    /// The variance of one value.
    scatter: f64,
    /// The number of values that mean and scatter represent.
    weight: f64,
    marks: u32,
}

impl LearnedMean {
    pub(crate) const fn prior(mean: f64, deviation: f64) -> Self {
        Self { mean, scatter: deviation * deviation, weight: 2.0, marks: 0 }
    }

    /// Returns the number of values learned so far.
    #[must_use]
    pub const fn mark_count(&self) -> u32 {
        self.marks
    }

    /// Returns the expected value.
    #[must_use]
    pub const fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns the standard deviation of the next value.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        (self.scatter * (1.0 + 1.0 / self.weight)).sqrt()
    }

    /// Lets the values so far weigh no more than this number of values.
    pub(super) const fn forget_beyond(&mut self, values: f64) {
        self.weight = self.weight.min(values);
    }

    /// Learns a value.
    pub fn learn(&mut self, value: f64) {
        let surprise = value - self.mean;
        let pull = SURPRISE_MAX * self.deviation();
        let pull = surprise.clamp(-pull, pull);
        self.mean += pull / (self.weight + 1.0);
        self.scatter = (self.scatter * self.weight + pull * pull) / (self.weight + 1.0);
        self.weight = (self.weight + 1.0).min(SCATTER_MARKS_MAX);
        self.marks = self.marks.saturating_add(1);
    }
}
