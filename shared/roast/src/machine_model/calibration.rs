//! Calibration of 90 % intervals on a machine's own errors.
//!
//! An error is how far a mark was from where the model of the earlier roasts had placed it. The
//! interval holds nine of ten of the newest errors (conformal prediction; Vovk et al. 2005). While
//! they are few, a normal distribution with the prior's interval counts as up to `PRIOR_ERRORS` further
//! errors.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Z90;

/// The number of errors that the prior represents at first: so many that one outlier among few
/// errors does not set the width.
const PRIOR_ERRORS: f64 = 10.0;
/// The prior fades until this number of errors.
const PRIOR_ENDS: f64 = 15.0;
const ERRORS_MAX: usize = 30;
/// The share of marks that lie in their interval.
const COVERED: f64 = 0.9;
/// The prior's interval grows at most by this factor beyond the largest error.
const FACTOR_MAX: f64 = 4.0;

/// The newest errors of one kind of estimate; the newest is last.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Errors(VecDeque<f64>);

impl Errors {
    pub(super) const NONE: Self = Self(VecDeque::new());

    /// Learns the error of one mark.
    pub(super) fn learn(&mut self, error: f64) {
        if !error.is_finite() {
            return;
        }
        if self.0.len() >= ERRORS_MAX {
            self.0.pop_front();
        }
        // Two decimals are enough, and keep the stored model small.
        self.0.push_back((error.abs() * 100.0).round() / 100.0);
    }

    /// Returns the half width of the 90 % interval of the next error, from the errors so far and
    /// the prior's half width.
    pub(super) fn half_width(&self, prior_half: f64) -> f64 {
        let seen = self.0.len() as f64;
        let known = (seen / PRIOR_ENDS).min(1.0);
        let prior = PRIOR_ERRORS * (1.0 - known);
        // The next error is as likely to be the largest as any of those seen, so it counts too.
        let needed = COVERED * (seen + prior + known);
        let covers = |half: f64| {
            let within = self.0.iter().filter(|error| **error <= half).count() as f64;
            within + prior * normal_share_within(Z90 * half / prior_half) >= needed
        };
        let largest = self.0.iter().copied().fold(0.0, f64::max);
        let (mut low, mut high) = (0.0, largest.max(FACTOR_MAX * prior_half));
        // Bisection: 2⁻³⁰ of the largest width is far below a millisecond.
        for _ in 0..30 {
            let middle = f64::midpoint(low, high);
            if covers(middle) { high = middle } else { low = middle }
        }
        high
    }
}

/// Returns the share of the normal distribution within ±`z` (Abramowitz & Stegun 7.1.27 by `erf`,
/// to 5·10⁻⁴).
pub(crate) fn normal_share_within(z: f64) -> f64 {
    let x = z / std::f64::consts::SQRT_2;
    let sum = 1.0 + x * (0.278_393 + x * (0.230_389 + x * (0.000_972 + x * 0.078_108)));
    1.0 - 1.0 / (sum * sum * sum * sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn without_errors_the_interval_is_the_prior_and_with_many_it_is_their_ninth_decile() {
        let mut errors = Errors::default();
        assert!((errors.half_width(10.0) - 10.0).abs() < 0.05);
        for i in 0..100 {
            errors.learn(f64::from(i % 10) * -0.1);
        }
        let half = errors.half_width(10.0);
        assert!((0.8..=1.5).contains(&half), "{half}");
    }

    /// Tests errors with and without far outliers, from a prior that is too wide or too narrow.
    #[test]
    fn intervals_hold_nine_of_ten_errors_whatever_their_distribution() {
        for (prior_half, outliers) in [(3.0, 0), (10.0, 0), (5.0, 15), (15.0, 15)] {
            let (mut inside, marks) = (0, 2_000);
            let (mut errors, mut noise) = (Errors::default(), Noise::new(5, 11));
            for i in 0..marks {
                let far = outliers > 0 && i % outliers == 0;
                let error = noise.normal() * if far { 20.0 } else { 4.0 };
                inside += i32::from(error.abs() <= errors.half_width(prior_half));
                errors.learn(error);
            }
            let share = f64::from(inside) / f64::from(marks);
            assert!((0.87..=0.93).contains(&share), "{share} with a prior of ±{prior_half}");
        }
    }
}
