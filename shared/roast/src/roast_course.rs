//! The usual course of a machine's roasts: how warm it is charged, when the curve turns, and when
//! the beans reach certain temperatures. From it follows how long ago a roast was charged whose
//! beginning was not recorded.

use serde::{Deserialize, Serialize};

use crate::machine_model::{LINE_CENTRE_S, LearnedMean, MarkLine};

/// The temperatures whose times are learned, °C.
pub const COURSE_C: [f64; 5] = [100.0, 120.0, 140.0, 160.0, 180.0];

/// The usual course of a machine's roasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoastCourse {
    charge: MarkLine,
    /// From CHARGE to the turning point.
    pub turning: LearnedMean,
    /// From CHARGE to each of [`COURSE_C`].
    reached: [LearnedMean; COURSE_C.len()],
}

impl Default for RoastCourse {
    fn default() -> Self {
        Self {
            charge: MarkLine::charge(),
            turning: LearnedMean::prior(80.0, 25.0),
            reached: [
                LearnedMean::prior(130.0, 50.0),
                LearnedMean::prior(190.0, 60.0),
                LearnedMean::prior(260.0, 70.0),
                LearnedMean::prior(340.0, 90.0),
                LearnedMean::prior(430.0, 110.0),
            ],
        }
    }
}

impl RoastCourse {
    /// Learns the temperature of the empty drum at a CHARGE, °C.
    pub fn learn_charge(&mut self, bt_c: f64) {
        self.charge.learn(LINE_CENTRE_S, bt_c);
    }

    /// Learns when the beans reached the temperature with this index in [`COURSE_C`], s after
    /// CHARGE.
    pub fn learn_reached(&mut self, i: usize, seconds: f64) {
        if let Some(delay) = self.reached.get_mut(i) {
            delay.learn(seconds);
        }
    }

    /// Returns how far a temperature is from those at which this machine is charged, in standard
    /// deviations.
    #[must_use]
    pub fn above_charge(&self, bt_c: f64) -> f64 {
        (bt_c - self.charge.expected_c(LINE_CENTRE_S)) / self.charge.deviation_c(LINE_CENTRE_S)
    }

    /// Returns the number of CHARGEs learned.
    #[must_use]
    pub const fn charge_count(&self) -> u32 {
        self.charge.mark_count()
    }

    /// Returns how long after CHARGE the rising beans reach a temperature, and the standard
    /// deviation of that, s.
    #[must_use]
    pub fn reached_s(&self, bt_c: f64) -> (f64, f64) {
        const LAST: usize = COURSE_C.len() - 1;
        let above = COURSE_C.iter().position(|c| *c > bt_c).unwrap_or(LAST).max(1);
        let below = above.saturating_sub(1);
        let (low, high) = (&self.reached[below], &self.reached[above]);
        let share = (bt_c - COURSE_C[below]) / (COURSE_C[above] - COURSE_C[below]);
        let seconds = low.mean() + (high.mean() - low.mean()) * share;
        let least = self.turning.mean() / 2.0;
        (seconds.max(least), low.deviation().max(high.deviation()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_charge_follows_from_the_temperature() {
        let mut course = RoastCourse::default();
        for _ in 0..10 {
            for (i, seconds) in [100.0, 160.0, 240.0, 330.0, 440.0].into_iter().enumerate() {
                course.learn_reached(i, seconds);
            }
        }
        let (seconds, deviation) = course.reached_s(150.0);
        assert!((seconds - 285.0).abs() < 10.0 && deviation < 60.0, "{seconds} ± {deviation}");
        assert!(course.reached_s(200.0).0 > course.reached_s(180.0).0);
    }
}
