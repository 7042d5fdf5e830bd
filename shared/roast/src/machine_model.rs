//! The model of one machine: where its marks lie, learned from the marks of its earlier roasts.
//!
//! All learning is prequential: a roast is evaluated with the model of the roasts before it, and
//! then its marks are learned. Every parameter starts from a stated prior, so the first roast gets
//! a sensible result with a wide interval that states its true uncertainty.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, BatchOffsets};
use crate::rise_model::RiseModel;
use crate::roast_course::RoastCourse;

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
    /// The factor of the 90 % interval, adapted so that it covers nine of ten marks.
    #[serde(default = "one")]
    interval_factor: f64,
}

const fn one() -> f64 {
    1.0
}

/// The interval factor grows by this share at a missed mark, less a tenth of it at every mark.
const INTERVAL_GAIN: f64 = 0.2;
const INTERVAL_FACTOR_RANGE: (f64, f64) = (0.5, 4.0);

/// Two consecutive marks with residuals larger than this on the same side, in deviations, indicate
/// another bean or another probe.
const CHANGED: f64 = 1.5;
/// The time of the roast at which the line's level is defined, s: in the middle of the usual times
/// of first crack, so that level and slope are learned independently.
pub const LINE_CENTRE_S: f64 = 450.0;
/// The line slopes within this of its centre, s, and is level beyond.
const LINE_SPAN_S: f64 = 225.0;
/// A mark's residual is limited to this, in deviations.
const SURPRISE_MAX: f64 = 2.0;
/// The standard deviation of the level's drift from roast to roast, °C.
const WANDER_C: f64 = 1.0;
/// How fast old scatter is forgotten: it never weighs more than this many marks.
const SCATTER_MARKS_MAX: f64 = 25.0;
/// The normal distribution's quantile, in standard deviations: 90 % lie within ± this.
pub const Z90: f64 = 1.645;

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

    fn variance(&self, x: f64) -> f64 {
        self.p[0] + 2.0 * x * self.p[1] + x * x * self.p[2] + self.scatter
    }

    /// Learns a mark at `t_s` after CHARGE and `bt_c`.
    pub fn learn(&mut self, t_s: f64, bt_c: f64) {
        let surprise = bt_c - self.expected_c(t_s);
        let missed = if surprise.abs() > self.half_c(t_s) { 1.0 } else { 0.0 };
        let factor = self.interval_factor * (1.0 + INTERVAL_GAIN * (missed - 0.1));
        self.interval_factor = factor.clamp(INTERVAL_FACTOR_RANGE.0, INTERVAL_FACTOR_RANGE.1);
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
        self.marks += 1;
    }
}

/// The offset between the moment that a person marks and the moment that the curve shows: a door is
/// opened before the probe reacts to air, and a key is pressed after the beans have fallen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MarkOffset {
    /// Time of the mark minus time of the curve, ms; the newest is last.
    seen: VecDeque<i64>,
    /// How far each mark was from where the earlier ones had placed it, ms; the newest is last.
    #[serde(default)]
    errors: VecDeque<i64>,
}

const OFFSETS_MAX: usize = 12;
const ERRORS_MAX: usize = 30;
/// With fewer errors than this an interval keeps its prior width.
const ERRORS_MIN: usize = 5;
/// With fewer marks than this the offset counts as chance.
const OFFSETS_MIN: usize = 3;
/// A mark with a larger offset than this, in ms, was set for another reason and is ignored.
const OFFSET_MS_MAX: i64 = 90_000;
/// The spread that is assumed before any mark, and the number of marks that it represents.
const SPREAD_MS: i64 = 6_000;
const SPREAD_MARKS: i64 = 2;
/// The half width of the 90 % interval is at least this, ms: about one sample.
const HALF_MS_MIN: i64 = 2_000;

impl MarkOffset {
    /// Learns the offset of a mark from the curve's moment, ms.
    pub fn learn(&mut self, ms: i64) {
        if ms.abs() > OFFSET_MS_MAX {
            return;
        }
        let error = (ms - self.correction_ms()).abs();
        push_bounded(&mut self.errors, error, ERRORS_MAX);
        push_bounded(&mut self.seen, ms, OFFSETS_MAX);
    }

    /// Returns what to add to the curve's moment, ms: the median, shrunk towards 0 while the marks
    /// are few, and 0 until there are enough.
    #[must_use]
    pub fn correction_ms(&self) -> i64 {
        let n = i64::try_from(self.seen.len()).unwrap_or(0);
        if self.seen.len() < OFFSETS_MIN { 0 } else { median(&self.seen) * n / (n + 2) }
    }

    /// Returns the median distance of the marks from their median, ms, drawn towards a usual one
    /// while the marks are few; `None` until there are enough.
    #[must_use]
    pub fn spread_ms(&self) -> Option<i64> {
        if self.seen.len() < OFFSETS_MIN {
            return None;
        }
        let middle = median(&self.seen);
        let off: VecDeque<i64> = self.seen.iter().map(|ms| (ms - middle).abs()).collect();
        let n = i64::try_from(off.len()).unwrap_or(0);
        Some((median(&off) * n + SPREAD_MS * SPREAD_MARKS) / (n + SPREAD_MARKS))
    }

    /// Returns the half width of the 90 % interval of the next mark, ms: the ninth decile of the
    /// errors so far, and `prior_ms` while they are too few.
    #[must_use]
    pub fn half_ms(&self, prior_ms: i64) -> i64 {
        let mut sorted: Vec<i64> = self.errors.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * 9).div_ceil(10).max(ERRORS_MIN);
        sorted.get(rank - 1).map_or(prior_ms, |error| (*error).max(HALF_MS_MIN))
    }
}

fn push_bounded(values: &mut VecDeque<i64>, value: i64, most: usize) {
    if values.len() >= most {
        values.pop_front();
    }
    values.push_back(value);
}

fn median(values: &VecDeque<i64>) -> i64 {
    let mut sorted: Vec<i64> = values.iter().copied().collect();
    sorted.sort_unstable();
    let n = sorted.len();
    if n == 0 { 0 } else { i64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]) }
}

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

/// The model learned from one machine's earlier roasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineModel {
    /// The number of roasts learned.
    pub roasts: u32,
    /// The line of dry end.
    pub dry_end: MarkLine,
    /// The line of first crack.
    pub first_crack: MarkLine,
    /// How first crack deviates from that line, by beans and batch size.
    #[serde(default)]
    pub habits: BatchOffsets,
    /// The line of second crack.
    pub second_crack: MarkLine,
    /// The line of DROP.
    pub drop: MarkLine,
    /// The time from first crack to its end.
    pub first_crack_lasts: MarkDelay,
    /// The time from second crack to its end.
    pub second_crack_lasts: MarkDelay,
    /// The time from DROP to cool beans.
    pub cooling_lasts: MarkDelay,
    /// The offset of the CHARGE mark from the bean curve's knee.
    pub charge_offset: MarkOffset,
    /// The offset of the turning point's mark from the lowest reading.
    pub tp_offset: MarkOffset,
    /// The offset of the DROP mark from the bean curve's knee.
    pub drop_offset: MarkOffset,
    /// The offset of the DROP mark from the moment the burner goes out.
    pub burner_offset: MarkOffset,
    /// The offset of the DROP mark from the exhaust curve's knee.
    #[serde(default)]
    pub exhaust_offset: MarkOffset,
    /// The usual course of a roast, for roasts whose beginning was not recorded.
    #[serde(default)]
    pub course: RoastCourse,
    /// The models of the next minute of BT and of ET.
    pub ahead: [RiseModel; 2],
}

impl Default for MachineModel {
    fn default() -> Self {
        Self {
            roasts: 0,
            dry_end: MarkLine::dry_end(),
            first_crack: MarkLine::first_crack(),
            habits: BatchOffsets::default(),
            second_crack: MarkLine::second_crack(),
            drop: MarkLine::drop(),
            first_crack_lasts: MarkDelay::prior(90.0, 30.0),
            second_crack_lasts: MarkDelay::prior(60.0, 40.0),
            cooling_lasts: MarkDelay::prior(240.0, 120.0),
            charge_offset: MarkOffset::default(),
            tp_offset: MarkOffset::default(),
            drop_offset: MarkOffset::default(),
            burner_offset: MarkOffset::default(),
            exhaust_offset: MarkOffset::default(),
            course: RoastCourse::default(),
            ahead: [RiseModel::default(), RiseModel::default()],
        }
    }
}

impl MachineModel {
    /// Returns the model for this batch: the machine's line of first crack, moved by the habits.
    #[must_use]
    pub fn for_batch(&self, batch: &Batch) -> Self {
        let mut expected = self.clone();
        // The scatter of marks is learned after the habits are subtracted, so it already includes
        // the uncertainty of the habits.
        expected.first_crack.level_c += self.habits.offset_c(batch);
        expected
    }

    /// Learns a first crack of this batch at `t_s` after CHARGE and `bt_c`.
    pub fn learn_first_crack(&mut self, batch: &Batch, t_s: f64, bt_c: f64) {
        let habit = self.habits.offset_c(batch);
        self.habits.learn(batch, bt_c - self.first_crack.expected_c(t_s));
        self.first_crack.learn(t_s, bt_c - habit);
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

    #[test]
    fn an_offset_waits_for_three_marks_and_forgets_what_is_no_mark() {
        let mut offset = MarkOffset::default();
        offset.learn(-14_000);
        offset.learn(-13_000);
        assert_eq!((offset.correction_ms(), offset.spread_ms()), (0, None));
        offset.learn(600_000);
        offset.learn(-16_000);
        assert_eq!((offset.correction_ms(), offset.spread_ms()), (-8_400, Some(3_000)));
    }
}
