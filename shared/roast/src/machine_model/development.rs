//! The usual share of development in a roast.

use serde::{Deserialize, Serialize};

use super::Z90;
use super::calibration::Errors;
use super::learned_mean::LearnedMean;

/// The share before any mark and its standard deviation: eight of ten roasts have 12–32 %.
const PRIOR: (f64, f64) = (0.22, 0.08);
/// The share follows the style of about so many roasts.
const MEMORY_ROASTS: f64 = 8.0;
/// A larger share than this is no development but a mark that was set for another reason.
const SHARE_MAX: f64 = 0.6;

/// The share of the time from first crack to DROP in the whole roast, learned from people's marks.
///
/// People drop some time after the first crack that they heard. So DROP shows when first crack was,
/// as far as this time is regular on the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DevelopmentShare {
    share: LearnedMean,
    /// The errors of the newest first cracks that were revised by DROP, in deviations.
    errors: Errors,
    /// The factor of the 90 % interval with which it holds nine of ten of these errors.
    interval_factor: f64,
}

impl Default for DevelopmentShare {
    fn default() -> Self {
        Self {
            share: LearnedMean::prior(PRIOR.0, PRIOR.1),
            errors: Errors::NONE,
            interval_factor: 1.0,
        }
    }
}

impl DevelopmentShare {
    /// Returns the expected share and its standard deviation.
    #[must_use]
    pub fn expected(&self) -> (f64, f64) {
        (self.share.mean(), self.share.deviation())
    }

    /// Returns the half width of the 90 % interval of a revised first crack, in its deviations.
    pub(crate) fn half_deviations(&self) -> f64 {
        Z90 * self.interval_factor
    }

    /// Learns the share of a roast whose first crack and DROP people marked, from times in s.
    pub fn learn(&mut self, charge_s: f64, first_crack_s: f64, drop_s: f64) {
        let share = (drop_s - first_crack_s) / (drop_s - charge_s);
        if share > 0.0 && share < SHARE_MAX {
            self.share.forget_beyond(MEMORY_ROASTS);
            self.share.learn(share);
        }
    }

    /// Learns the error of a revised first crack, as a share of the half width of its interval.
    pub(crate) fn learn_error(&mut self, error: f64) {
        self.errors.learn(error * self.half_deviations());
        self.interval_factor = self.errors.half_width(Z90) / Z90;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_development_follows_the_newest_roasts_and_ignores_what_is_none() {
        let mut development = DevelopmentShare::default();
        let (prior, prior_deviation) = development.expected();
        for _ in 0..12 {
            development.learn(60.0, 510.0, 660.0); // 150 s of 600 s
        }
        let (share, deviation) = development.expected();
        assert!((share - 0.25).abs() < 0.01 && (share - 0.25).abs() < (prior - 0.25).abs());
        assert!(deviation < prior_deviation / 2.0);
        for (first_crack_s, drop_s) in [(660.0, 600.0), (100.0, 660.0), (60.0, 60.0)] {
            development.learn(60.0, first_crack_s, drop_s);
        }
        assert!((development.expected().0 - share).abs() < f64::EPSILON);
        for _ in 0..20 {
            development.learn(60.0, 600.0, 660.0);
        }
        assert!((development.expected().0 - 0.1).abs() < 0.04, "{development:?}");
    }

    #[test]
    fn the_interval_of_a_revised_first_crack_grows_with_its_errors() {
        let mut development = DevelopmentShare::default();
        let before = development.half_deviations();
        for _ in 0..30 {
            development.learn_error(1.5 * Z90 / development.half_deviations());
        }
        let after = development.half_deviations();
        assert!((after / before - 1.5).abs() < 0.05, "{before} {after}");
    }
}
