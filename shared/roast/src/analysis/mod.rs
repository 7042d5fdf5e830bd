//! Analysis of a finished roast: times, phases, areas, shapes, controls, warnings and
//! recommendations.
//!
//! Everything is computed from the clean view and the marks. Seconds count from CHARGE. A field has
//! upstream Sim-Corp's name if upstream has that field; the other fields are additions.

pub mod advice;
pub mod compare;
pub mod controls;
pub mod crash_flick;
pub mod phase;

use contract::EventKind;
use serde::Serialize;

use crate::clean::{self, CleanValue};
use crate::event::DetectedMark;
use crate::recording::Recording;
use crate::replay::interpolate_at;
use crate::ror::RateOfRise;

use advice::{Recommendation, Warning};
use controls::{ControlMove, Energy};
use crash_flick::CrashFlick;
use phase::{PhaseSpan, PhaseStats};

/// Artisan's base temperature for the area under the curve, °C.
pub const AUC_BASE_C: f64 = 100.0;
/// The minimum recorded time before CHARGE for an analysis of the time between batches, ms.
const BBP_MS_MIN: i64 = 90_000;

/// Marks with a lower confidence than this cause no warning and no recommendation.
pub const CONFIDENCE_MIN: f64 = 0.5;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    kind: EventKind,
    at_ms: i64,
    confidence: f64,
}

/// A roast's marks, in ms of the recording. A mark by a person replaces a detected one of its kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Marks(Vec<Mark>);

impl Marks {
    /// Returns the detected marks.
    #[must_use]
    pub fn detected(marks: &[DetectedMark]) -> Self {
        let mark =
            |m: &DetectedMark| Mark { kind: m.kind, at_ms: m.at_ms, confidence: m.confidence };
        Self(marks.iter().map(mark).collect())
    }

    /// Returns the marks of the file, and the detected marks of the kinds that the file lacks.
    #[must_use]
    pub fn of(recording: &Recording, detected: &[DetectedMark]) -> Self {
        let mut marks = Self::detected(detected);
        for (kind, _) in &recording.marks {
            if let Some(at_ms) = recording.mark_ms(*kind) {
                marks.0.retain(|known| known.kind != *kind);
                marks.0.push(Mark { kind: *kind, at_ms, confidence: 1.0 });
            }
        }
        marks
    }

    /// Sets the confidence of a mark.
    #[must_use]
    pub fn with_confidence(mut self, kind: EventKind, confidence: f64) -> Self {
        for mark in self.0.iter_mut().filter(|mark| mark.kind == kind) {
            mark.confidence = confidence;
        }
        self
    }

    /// Returns the time of a mark, in ms of the recording.
    #[must_use]
    pub fn ms(&self, kind: EventKind) -> Option<i64> {
        self.0.iter().find(|mark| mark.kind == kind).map(|mark| mark.at_ms)
    }

    /// Returns true if there is a mark with a confidence of at least [`CONFIDENCE_MIN`].
    #[must_use]
    pub fn is_confident(&self, kind: EventKind) -> bool {
        self.0.iter().any(|mark| mark.kind == kind && mark.confidence >= CONFIDENCE_MIN)
    }

    /// Returns true if there is a DROP whose time is not certain. A DROP within a silence has the
    /// lowest confidence that counts, and may be minutes off.
    fn is_drop_uncertain(&self) -> bool {
        self.0.iter().any(|mark| mark.kind == EventKind::Drop && mark.confidence <= CONFIDENCE_MIN)
    }
}

/// The clean curves of a recording, and the rate of rise without its lag.
#[derive(Debug, Clone, Default)]
pub struct Curve {
    /// The clean bean temperature, °C.
    pub bt: Vec<CleanValue>,
    /// The clean environment temperature, °C.
    pub et: Vec<CleanValue>,
    /// (ms, °C/min): each slope at the middle of its fitted span.
    pub ror: Vec<(i64, f64)>,
}

impl Curve {
    /// Cleans the curves of a recording and derives the rate of rise.
    #[must_use]
    pub fn of(recording: &Recording) -> Self {
        let bt = clean::clean_channel(recording.samples.iter().map(|s| (s.t_ms, s.bt_c)));
        let et = clean::clean_channel(recording.samples.iter().map(|s| (s.t_ms, s.et_c)));
        let mut rate = RateOfRise::default();
        let rise = |c: &CleanValue| {
            let rise = rate.push(c.t_ms, c.value)?;
            Some((c.t_ms.saturating_sub(rise.span_ms / 2), rise.c_per_min))
        };
        let ror = bt.iter().filter_map(rise).collect();
        Self { bt, et, ror }
    }

    /// Returns the clean bean temperature at a time, °C, interpolated between its neighbours.
    #[must_use]
    pub fn bt_at(&self, t_ms: i64) -> Option<f64> {
        interpolate_at(&self.bt, t_ms)
    }

    /// Returns the rates of rise in a span of time, both ends included.
    pub fn ror_between(&self, from_ms: i64, to_ms: i64) -> impl Iterator<Item = (i64, f64)> + '_ {
        let from = self.ror.partition_point(|(t, _)| *t < from_ms);
        self.ror[from..].iter().copied().take_while(move |(t, _)| *t <= to_ms)
    }
}

/// The time between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BetweenBatches {
    /// Time from the start of the recording to CHARGE.
    pub seconds: f64,
    /// The lowest bean temperature, °C.
    pub bottom_c: f64,
    /// Time of the lowest temperature, in seconds before CHARGE.
    pub bottom_seconds: f64,
    /// Slope to the lowest temperature, °C/min.
    pub fall_c_per_min: Option<f64>,
    /// Slope from the lowest temperature to CHARGE, °C/min.
    pub rise_c_per_min: Option<f64>,
}

/// The analysis of a finished roast, or of the part that has been recorded so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Analysis {
    /// The time of CHARGE: always 0.
    pub charge_seconds: Option<f64>,
    /// The time of the turning point, s.
    pub tp_seconds: Option<f64>,
    /// The time of dry end, s.
    pub dry_end_seconds: Option<f64>,
    /// The time of first crack, s.
    pub fc_seconds: Option<f64>,
    /// The time of DROP, s; `None` while the roast runs.
    pub drop_seconds: Option<f64>,
    /// The time to DROP, or to the newest sample while the roast runs, s.
    pub total_duration_seconds: Option<f64>,
    /// Bean temperature at CHARGE, °C.
    pub charge_bt_c: Option<f64>,
    /// Bean temperature at the turning point, °C.
    pub tp_bt_c: Option<f64>,
    /// Bean temperature at first crack, °C.
    pub fc_bt_c: Option<f64>,
    /// Bean temperature at DROP, °C.
    pub drop_bt_c: Option<f64>,
    /// The highest bean temperature of the roast, °C.
    pub max_bt_c: Option<f64>,
    /// Bean temperature at DROP, or at the newest sample while the roast runs, °C.
    pub end_bt_c: Option<f64>,
    /// The phases, in order.
    pub phases: Vec<PhaseSpan>,
    /// The statistics of each phase, in order.
    pub phase_stats: Vec<PhaseStats>,
    /// The share of the development phase in the whole roast, 0..1.
    pub development_ratio: Option<f64>,
    /// °C·min above [`AUC_BASE_C`], from the turning point to DROP.
    pub auc_c_min: Option<f64>,
    /// The time before CHARGE, if enough of it was recorded.
    pub between_batches: Option<BetweenBatches>,
    /// The crash and the flick after first crack.
    pub crash_flick: CrashFlick,
    /// Every change of a control, in the order of time.
    pub controls: Vec<ControlMove>,
    /// The weight that the beans lost, % of the green weight.
    pub weight_loss_pct: Option<f64>,
    /// The energy that the burner used, if its setting was recorded.
    pub energy: Option<Energy>,
    /// Warnings about the data and the roast.
    pub warnings: Vec<Warning>,
    /// Recommendations for the next roast.
    pub recommendations: Vec<Recommendation>,
}

/// Analyses one roast of a recording. Returns `None` without a CHARGE, because all times count from
/// it.
#[must_use]
pub fn analyze(recording: &Recording, marks: &Marks) -> Option<Analysis> {
    let charge = marks.ms(EventKind::Charge)?;
    let curve = Curve::of(recording);
    let end = recording.samples.last().map_or(charge, |s| s.t_ms);
    let dropped = marks.ms(EventKind::Drop).filter(|t| *t > charge);
    let until = dropped.unwrap_or(end);
    let seconds = |t: i64| tenths(t.saturating_sub(charge) as f64 / 1000.0);
    // Ignore marks outside the roast or out of order, such as a first crack after the end.
    let inside = |kind| marks.ms(kind).filter(|t| (charge..=until).contains(t));
    let turned = inside(EventKind::Tp);
    let dried = inside(EventKind::DryEnd).filter(|t| turned.is_none_or(|tp| *t >= tp));
    let cracked = inside(EventKind::Fc).filter(|t| dried.is_none_or(|dry| *t >= dry));
    let bt = |t: Option<i64>| t.and_then(|t| curve.bt_at(t)).map(tenths);
    let total = seconds(until).max(0.0);
    let limits = phase::PhaseLimits { charge, turned, dried, cracked, until };
    let roasting = |c: &&CleanValue| (charge..=until).contains(&c.t_ms);
    let max = curve.bt.iter().filter(roasting).filter_map(|c| c.value).reduce(f64::max);
    let mut analysis = Analysis {
        charge_seconds: Some(0.0),
        tp_seconds: turned.map(seconds),
        dry_end_seconds: dried.map(seconds),
        fc_seconds: cracked.map(seconds),
        drop_seconds: dropped.map(seconds),
        total_duration_seconds: Some(total),
        charge_bt_c: bt(Some(charge)),
        tp_bt_c: bt(turned),
        fc_bt_c: bt(cracked),
        drop_bt_c: bt(dropped),
        max_bt_c: max.map(tenths),
        end_bt_c: bt(Some(until)),
        phases: limits.spans(),
        phase_stats: limits.stats(&curve),
        development_ratio: cracked
            .filter(|_| total > 0.0)
            .map(|t| thousandths(until.saturating_sub(t) as f64 / 1000.0 / total)),
        auc_c_min: turned.map(|t| tenths(auc(&curve, t, until))),
        between_batches: between_batches(recording, &curve, charge),
        crash_flick: crash_flick::crash_flick(&curve, charge, cracked, until),
        controls: controls::control_moves(recording, charge),
        weight_loss_pct: weight_loss(recording),
        energy: controls::energy(recording, charge, until),
        ..Analysis::default()
    };
    // The shape of the curve between an uncertain first crack and an uncertain DROP says nothing
    // about the roast.
    let development = marks.is_confident(EventKind::Fc) && !marks.is_drop_uncertain();
    let shape = if development { analysis.crash_flick } else { CrashFlick::default() };
    analysis.warnings = advice::warnings(&analysis, &shape, &curve, (charge, until));
    if marks.is_confident(EventKind::Charge) && marks.is_confident(EventKind::Fc) {
        analysis.recommendations = advice::recommendations(&analysis, development.then_some(shape));
    }
    Some(analysis)
}

/// Returns Artisan's area under the curve: the mean temperature above the base, times the time.
fn auc(curve: &Curve, from: i64, to: i64) -> f64 {
    let known = curve.bt.iter().filter(|c| (from..=to).contains(&c.t_ms));
    let mut points = known.filter_map(|c| Some((c.t_ms, c.value?)));
    let Some(mut last) = points.next() else { return 0.0 };
    let mut area = 0.0;
    for point in points {
        let over = f64::midpoint(last.1, point.1) - AUC_BASE_C;
        area += over.max(0.0) * point.0.saturating_sub(last.0) as f64 / 60_000.0;
        last = point;
    }
    area
}

fn between_batches(recording: &Recording, curve: &Curve, charge: i64) -> Option<BetweenBatches> {
    let start = recording.samples.first()?.t_ms;
    if charge.saturating_sub(start) < BBP_MS_MIN {
        return None;
    }
    let before = curve.bt.iter().filter(|c| c.t_ms < charge);
    let known: Vec<(i64, f64)> = before.filter_map(|c| Some((c.t_ms, c.value?))).collect();
    let (first, last) = (*known.first()?, *known.last()?);
    let bottom = known.iter().copied().reduce(|a, b| if b.1 < a.1 { b } else { a })?;
    let slope = |a: (i64, f64), b: (i64, f64)| {
        let ms = b.0.saturating_sub(a.0);
        (ms >= 15_000).then(|| tenths((b.1 - a.1) / (ms as f64 / 60_000.0)))
    };
    Some(BetweenBatches {
        seconds: tenths(charge.saturating_sub(start) as f64 / 1000.0),
        bottom_c: tenths(bottom.1),
        bottom_seconds: tenths(charge.saturating_sub(bottom.0) as f64 / 1000.0),
        fall_c_per_min: slope(first, bottom),
        rise_c_per_min: slope(bottom, last),
    })
}

fn weight_loss(recording: &Recording) -> Option<f64> {
    let (green, roasted) = (recording.weight_in_g?, recording.weight_out_g?);
    (green > 0.0 && roasted <= green).then(|| tenths((green - roasted) / green * 100.0))
}

pub(crate) fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

pub(crate) fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Fits a least-squares line through (x, y). Returns (slope, value at x = 0, standard deviation of
/// the residuals), or `None` for fewer than three points or a single x.
pub(crate) fn fit_line(points: &[(f64, f64)]) -> Option<(f64, f64, f64)> {
    let n = points.len() as f64;
    if points.len() < 3 {
        return None;
    }
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
    let under: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.0 - mean_x)).sum();
    if under <= 0.0 {
        return None;
    }
    let slope = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum::<f64>() / under;
    let start = mean_y - slope * mean_x;
    let rest: f64 = points.iter().map(|p| (p.1 - start - slope * p.0).powi(2)).sum();
    Some((slope, start, (rest / (n - 2.0).max(1.0)).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_model::MachineModel;
    use crate::replay::replay;
    use crate::sample::Sample;

    /// Returns ten minutes at 1 Hz: down to 90 °C at 60 s, then up at a falling rate to 210 °C.
    pub(super) fn recording() -> Recording {
        let bt = |s: f64| match s {
            s if s < 0.0 => 190.0,
            s if s < 60.0 => 190.0 - 100.0 * (1.0 - (1.0 - s / 60.0).powi(2)),
            s => 90.0 + 120.0 * (1.0 - (1.0 - (s - 60.0) / 900.0).powi(2)) / 0.84,
        };
        let samples = (-120..=600).map(|s| Sample {
            t_ms: (s + 120) * 1000,
            bt_c: Some(bt(s as f64)),
            et_c: Some(bt(s as f64) + 20.0),
            gas_pct: Some(if s < 300 { 80.0 } else { 60.0 }),
            fan_pct: Some(30.0),
            ..Sample::default()
        });
        let mark = |s: usize| s + 120;
        Recording {
            weight_in_g: Some(1000.0),
            weight_out_g: Some(850.0),
            samples: samples.collect(),
            marks: vec![
                (EventKind::Charge, mark(0)),
                (EventKind::Tp, mark(60)),
                (EventKind::DryEnd, mark(240)),
                (EventKind::Fc, mark(480)),
                (EventKind::Drop, mark(600)),
            ],
            ..Recording::default()
        }
    }

    #[test]
    fn an_analysis_names_the_phases_and_events_of_a_roast() {
        let recording = recording();
        let analysis = analyze(&recording, &Marks::of(&recording, &[])).unwrap();
        assert_eq!(analysis.fc_seconds, Some(480.0));
        assert_eq!(analysis.development_ratio, Some(0.2));
        assert_eq!(analysis.weight_loss_pct, Some(15.0));
        assert_eq!(analysis.tp_bt_c, Some(90.0));
        assert!((analysis.drop_bt_c.unwrap() - 210.0).abs() < 0.2, "{:?}", analysis.drop_bt_c);
        let shares: f64 = analysis.phase_stats.iter().map(|p| p.share).sum();
        assert!((shares - 1.0).abs() < 1e-6);
        let gas: Vec<_> = analysis.controls.iter().map(|m| (m.seconds, m.to_pct)).collect();
        assert_eq!(gas, [(300.0, 60.0)]);
        assert_eq!(analysis.between_batches.map(|b| b.seconds), Some(120.0));
        assert!(!analysis.crash_flick.crash_detected && !analysis.crash_flick.flick_detected);
        // 540 s from the turning point, the mean of (BT − 100) over them where it is positive.
        assert!((450.0..700.0).contains(&analysis.auc_c_min.unwrap()), "{:?}", analysis.auc_c_min);
    }

    #[test]
    fn an_uncertain_first_crack_gives_no_advice() {
        let mut recording = recording();
        recording.marks.retain(|(kind, _)| *kind != EventKind::Fc);
        recording.marks.push((EventKind::Fc, 120 + 300));
        let advised = |confidence| {
            let marks = Marks::of(&recording, &[]).with_confidence(EventKind::Fc, confidence);
            analyze(&recording, &marks).unwrap()
        };
        assert!(advised(0.9).recommendations.iter().any(|r| r.code == "DEVELOPMENT"));
        let unsure = advised(0.3);
        assert_eq!((unsure.recommendations.len(), unsure.fc_seconds), (0, Some(300.0)));
    }

    #[test]
    fn an_uncertain_drop_gives_no_advice_about_development() {
        let mut recording = recording();
        recording.marks.retain(|(kind, _)| *kind != EventKind::Drop);
        recording.marks.push((EventKind::Drop, 120 + 500)); // 20 s of development
        let advised = |confidence| {
            let marks = Marks::of(&recording, &[]).with_confidence(EventKind::Drop, confidence);
            let analysis = analyze(&recording, &marks).unwrap();
            assert_eq!(analysis.drop_seconds, Some(500.0));
            analysis.recommendations.iter().any(|advice| advice.code == "DEVELOPMENT")
        };
        assert!(advised(0.95));
        assert!(!advised(CONFIDENCE_MIN), "DROP lies somewhere in a silence");
        assert!(!advised(0.3));
    }

    #[test]
    fn a_flick_before_an_uncertain_drop_gives_neither_warning_nor_advice() {
        let mut recording = recording();
        // The rate of rise increases from 40 s before DROP on.
        for sample in &mut recording.samples {
            let s = sample.t_ms as f64 / 1000.0 - 680.0;
            sample.bt_c = sample.bt_c.map(|bt| bt + 0.004 * s.max(0.0).powi(2));
        }
        let flicked = |confidence| {
            let marks = Marks::of(&recording, &[]).with_confidence(EventKind::Drop, confidence);
            let analysis = analyze(&recording, &marks).unwrap();
            assert!(analysis.crash_flick.flick_detected);
            let warned = analysis.warnings.iter().any(|warning| warning.code == "FLICK");
            let advised = analysis.recommendations.iter().any(|advice| advice.code == "LOWER_END");
            [warned, advised]
        };
        assert_eq!(flicked(0.95), [true, true]);
        assert_eq!(flicked(0.3), [false, false]);
    }

    #[test]
    fn a_roast_without_charge_or_drop_is_analysed_as_far_as_it_goes() {
        let mut recording = recording();
        assert_eq!(analyze(&recording, &Marks::default()), None);
        recording.marks = vec![(EventKind::Charge, 120)];
        let analysis = analyze(&recording, &Marks::of(&recording, &[])).unwrap();
        assert_eq!((analysis.drop_seconds, analysis.development_ratio), (None, None));
        assert_eq!(analysis.phases.len(), 1);
    }

    #[test]
    fn times_at_the_limits_of_a_number_are_analysed() {
        let mut recording = recording();
        recording.samples.first_mut().unwrap().t_ms = i64::MIN;
        recording.samples.last_mut().unwrap().t_ms = i64::MAX;
        let mut learned = MachineModel::default();
        let replayed = replay(&recording, &learned);
        learned.learn_from_recording(&recording, &replayed);
        let analysis = analyze(&recording, &Marks::of(&recording, &[])).unwrap();
        assert!(analysis.total_duration_seconds.unwrap() > 1e12);
        assert!(analysis.between_batches.unwrap().seconds > 1e12);
    }
}
