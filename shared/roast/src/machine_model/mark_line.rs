//! The line of a mark: at which bean temperature it lies, by the time of the roast.

use serde::{Deserialize, Serialize};

use super::calibration::Errors;
use super::{SCATTER_MARKS_MAX, SURPRISE_MAX, Z90};

/// A line of bean temperature over roast time on which a mark lies: its level at [`LINE_CENTRE_S`] and its
/// slope. Slowly heated beans crack at a lower reading, because the difference between probe and
/// bean core is smaller, so the line falls with time. The difference has limits, so the line is level
/// further than `LINE_SPAN_S` from its centre.
///
/// The line is a Kalman filter over marks. Level and slope are the state. The level drifts between
/// roasts, because beans, probes and seasons change. The scatter of the marks themselves is learned
/// too (scaled inverse χ²). An outlier has no more influence than a mark at `SURPRISE_MAX`
/// deviations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MarkLine {
    level_c: f64,
    slope_c_per_s: f64,
    /// Covariance of level and slope.
    p: [f64; 3],
    /// Variance of a mark about its line, °C², and the number of marks that it represents.
    scatter: f64,
    weight: f64,
    marks: u32,
    /// The residual of the previous mark, in deviations. `None` for marks that people set by eye,
    /// where a large residual shows a habit and not another bean.
    before: Option<f64>,
    /// The errors of the newest marks, in deviations.
    #[serde(default)]
    errors: Errors,
    /// The factor of the 90 % interval with which it holds nine of ten of these errors.
    #[serde(default = "one")]
    interval_factor: f64,
}

const fn one() -> f64 {
    1.0
}

/// Two consecutive marks with residuals larger than this on the same side, in deviations, indicate
/// another bean or another probe.
const CHANGED: f64 = 1.5;
/// The time of the roast at which the line's level is defined, s: in the middle of the usual times
/// of first crack, so that level and slope are learned independently.
pub const LINE_CENTRE_S: f64 = 450.0;
/// The line slopes within this of its centre, s, and is level beyond.
const LINE_SPAN_S: f64 = 225.0;
/// The standard deviation of the level's drift from roast to roast, °C.
const WANDER_C: f64 = 1.0;

impl MarkLine {
    /// Returns the prior of first crack: 187 °C ± 14 (165 to 205 °C, by probe).
    #[must_use]
    pub const fn first_crack() -> Self {
        let mut line = Self::prior(187.0, 14.0, -0.04, 0.03, 4.0);
        line.before = Some(0.0);
        line
    }

    /// Returns the prior of second crack: some 35 °C above first crack on a fast probe, less on a
    /// slow one.
    #[must_use]
    pub const fn second_crack() -> Self {
        Self::prior(219.0, 14.0, 0.0, 0.005, 4.0)
    }

    /// Returns the prior of dry end: 150 °C by convention. From a person who marks it by colour
    /// another value is learned.
    #[must_use]
    pub const fn dry_end() -> Self {
        Self::prior(150.0, 3.0, 0.0, 0.003, 5.0)
    }

    /// Returns the prior of DROP. It is only a start value: no DROP is forecast before the
    /// machine's first roast.
    #[must_use]
    pub const fn drop() -> Self {
        Self::prior(205.0, 15.0, 0.0, 0.01, 5.0)
    }

    /// Returns the prior of CHARGE, which does not depend on the time.
    #[must_use]
    pub(crate) const fn charge() -> Self {
        Self::prior(180.0, 25.0, 0.0, 0.0, 10.0)
    }

    const fn prior(level_c: f64, sd: f64, slope: f64, slope_sd: f64, scatter_c: f64) -> Self {
        Self {
            level_c,
            slope_c_per_s: slope,
            p: [sd * sd, 0.0, slope_sd * slope_sd],
            scatter: scatter_c * scatter_c,
            weight: 6.0,
            marks: 0,
            before: None,
            errors: Errors::NONE,
            interval_factor: 1.0,
        }
    }

    /// Returns the time on the line's axis, s: from the line's centre, within its span.
    fn axis(t_s: f64) -> f64 {
        (t_s - LINE_CENTRE_S).clamp(-LINE_SPAN_S, LINE_SPAN_S)
    }

    /// Returns the number of marks learned so far.
    #[must_use]
    pub const fn mark_count(&self) -> u32 {
        self.marks
    }

    /// Returns the temperature at which the mark is expected `t_s` after CHARGE, °C.
    #[must_use]
    pub fn expected_c(&self, t_s: f64) -> f64 {
        self.level_c + self.slope_c_per_s * Self::axis(t_s)
    }

    /// Returns the slope at `t_s` after CHARGE, °C/s.
    #[must_use]
    pub fn slope_c_per_s(&self, t_s: f64) -> f64 {
        if (t_s - LINE_CENTRE_S).abs() > LINE_SPAN_S { 0.0 } else { self.slope_c_per_s }
    }

    /// Returns the standard deviation of the next mark about [`MarkLine::expected_c`], °C.
    #[must_use]
    pub fn deviation_c(&self, t_s: f64) -> f64 {
        (self.variance(Self::axis(t_s)) + WANDER_C * WANDER_C).sqrt()
    }

    /// Returns the half width of the 90 % interval of the next mark's temperature, °C.
    #[must_use]
    pub fn half_c(&self, t_s: f64) -> f64 {
        Z90 * self.interval_factor * self.deviation_c(t_s)
    }

    /// Moves the line up by `off_c`, °C.
    pub(super) fn shift(&mut self, off_c: f64) {
        self.level_c += off_c;
    }

    fn variance(&self, x: f64) -> f64 {
        self.p[0] + 2.0 * x * self.p[1] + x * x * self.p[2] + self.scatter
    }

    /// Learns a mark at `t_s` after CHARGE and `bt_c`.
    pub fn learn(&mut self, t_s: f64, bt_c: f64) {
        let surprise = bt_c - self.expected_c(t_s);
        self.errors.learn(surprise / self.deviation_c(t_s));
        self.interval_factor = self.errors.half_width(Z90) / Z90;
        self.p[0] += WANDER_C * WANDER_C;
        let x = Self::axis(t_s);
        let surprising = surprise / self.variance(x).sqrt();
        let changed = self.before.is_some_and(|before| {
            surprising.abs() > CHANGED && before.abs() > CHANGED && surprising * before > 0.0
        });
        if changed {
            self.p[0] += surprise * surprise;
        }
        self.before = self.before.map(|_| surprising);
        let variance = self.variance(x);
        let gain = [(self.p[0] + x * self.p[1]) / variance, (self.p[1] + x * self.p[2]) / variance];
        let deviation = variance.sqrt();
        let pull = surprise.clamp(-SURPRISE_MAX * deviation, SURPRISE_MAX * deviation);
        self.level_c += gain[0] * pull;
        self.slope_c_per_s += gain[1] * pull;
        let h = [self.p[0] + x * self.p[1], self.p[1] + x * self.p[2]];
        self.p[0] -= gain[0] * h[0];
        self.p[1] -= gain[0] * h[1];
        self.p[2] -= gain[1] * h[1];
        // The part of the residual that the state's variance does not explain is scatter, or drift.
        let share = self.scatter / variance;
        let observed = pull * pull * share;
        if !changed {
            self.scatter = (self.scatter * self.weight + observed) / (self.weight + 1.0);
            self.weight = (self.weight + 1.0).min(SCATTER_MARKS_MAX);
        }
        self.marks = self.marks.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_learned_from_its_marks_and_says_how_sure_it_is() {
        let mut line = MarkLine::first_crack();
        let (before, mut noise) = (line.deviation_c(LINE_CENTRE_S), crate::noise::Noise::new(7, 3));
        let truth = |t: f64| 174.0 - 0.03 * (t - LINE_CENTRE_S);
        let (mut inside, roasts) = (0, 300);
        for i in 0..roasts {
            let t = 380.0 + f64::from(i * 37 % 150);
            let mark = truth(t) + 2.0 * noise.normal();
            let half = Z90 * line.deviation_c(t);
            inside += i32::from((mark - line.expected_c(t)).abs() <= half);
            line.learn(t, mark);
        }
        assert!((line.expected_c(400.0) - truth(400.0)).abs() < 1.5, "{line:?}");
        assert!((line.expected_c(520.0) - truth(520.0)).abs() < 1.5, "{line:?}");
        assert!(line.deviation_c(LINE_CENTRE_S) < before / 2.0);
        let share = f64::from(inside) / f64::from(roasts);
        assert!((0.86..=0.97).contains(&share), "{share} within 90 % intervals");
    }

    #[test]
    fn one_wild_mark_does_not_move_a_machine() {
        let mut line = MarkLine::first_crack();
        for _ in 0..10 {
            line.learn(LINE_CENTRE_S, 186.0);
        }
        let settled = line.expected_c(LINE_CENTRE_S);
        line.learn(LINE_CENTRE_S, 349.0);
        assert!(
            (line.expected_c(LINE_CENTRE_S) - settled).abs() < 3.0,
            "{} → {}",
            settled,
            line.expected_c(LINE_CENTRE_S)
        );
    }
}
