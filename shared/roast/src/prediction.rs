//! Predicts first crack and DROP of a running roast in the form of upstream's `RoastPrediction`
//! (its `HEURISTIC_V1`): from a line through the last 90 s, and from a profile's targets.
//! [`crate::forecast`] is more accurate for machines that are tracked sample by sample; this module
//! is for clients that have only points.

use contract::EventKind;
use serde::Serialize;

use crate::analysis::advice::Severity;
use crate::analysis::phase::{Phase, PhaseLimits};
use crate::analysis::{Curve, Marks};
use crate::recording::Recording;

/// The span of readings through which the line is fitted, ms.
const WINDOW_MS: i64 = 90_000;
/// With a slower rise than this, °C/s, no temperature is predicted to be reached.
const RISE_MIN: f64 = 0.01;
/// The temperature of first crack if no profile gives one, °C.
const CRACK_C: f64 = 196.0;
/// The longest roast that is predicted, s.
const LONGEST_S: f64 = 3_600.0;
const FEW_POINTS: usize = 12;
const VOLATILE: f64 = 2.0;

/// A profile's targets, in °C, in s from CHARGE, and as a share.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProfileTargets {
    /// Bean temperature at first crack, °C.
    pub first_crack_c: Option<f64>,
    /// Bean temperature at DROP, °C.
    pub drop_c: Option<f64>,
    /// Time of first crack, s from CHARGE.
    pub first_crack_s: Option<f64>,
    /// Time of DROP, s from CHARGE.
    pub drop_s: Option<f64>,
    /// Development time as a share of the whole roast time, 0..1.
    pub development_ratio: Option<f64>,
}

/// A prediction; `…_at_elapsed_seconds` count from the start of the recording.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Prediction {
    /// The phase of the newest reading, by its name on the wire.
    pub phase: &'static str,
    /// The number of readings that the line is fitted through.
    pub points_used: usize,
    /// The time of first crack, s: its mark, or else the prediction.
    pub fc_at_elapsed_seconds: Option<f64>,
    /// The time of DROP, s: its mark, or else the prediction.
    pub drop_at_elapsed_seconds: Option<f64>,
    /// The time from the newest sample to first crack, s; `None` once it is past.
    pub eta_to_fc: Option<f64>,
    /// The time from the newest sample to DROP, s; `None` once it is past.
    pub eta_to_drop: Option<f64>,
    /// Development time as a share of the whole roast time, 0..1.
    pub predicted_dev_ratio: Option<f64>,
    /// From 0 to 1: overall, and for data, model, phase and profile.
    pub confidence: Confidence,
    /// What the prediction is based on, and what limits it, in words.
    pub reasons: Vec<&'static str>,
    /// Suggestions in upstream Sim-Corp's form, for people only.
    pub suggestions: Vec<Suggestion>,
    /// The values that the prediction was computed from.
    pub features: PredictionFeatures,
    /// The time of the newest sample, s.
    pub last_elapsed_seconds: f64,
    /// The newest bean temperature, °C.
    pub last_bt_c: Option<f64>,
    /// The newest rate of rise of the bean temperature, °C/min.
    pub last_ror_c_per_min: Option<f64>,
}

/// How sure a prediction is. Each value is from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Confidence {
    /// The mean of the other values.
    pub overall: f64,
    /// How many readings there are, and whether they include a bean temperature.
    pub data_quality: f64,
    /// How close the readings lie to the line.
    pub model_fit: f64,
    /// How far the roast has progressed: a later phase is easier to predict.
    pub phase_fit: f64,
    /// How much the profile states; `None` without a profile.
    pub profile_fit: Option<f64>,
}

/// What a person might change.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Suggestion {
    /// What the suggestion is about.
    pub kind: SuggestionKind,
    /// The suggestion in a few words.
    pub title: &'static str,
    /// The suggestion and its reason, in a sentence.
    pub detail: String,
    /// How serious the cause is.
    pub severity: Severity,
    /// Always false: a suggestion changes nothing at the machine.
    pub requires_approval: bool,
}

/// What a suggestion is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SuggestionKind {
    /// The time of the next events.
    Timing,
    /// The course of the rate of rise.
    Stability,
    /// The share of the roast after first crack.
    Development,
}

/// The values from which a prediction is computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PredictionFeatures {
    /// The slope of the fitted line, °C/s.
    pub slope: f64,
    /// The line's value at the start of the recording, °C.
    pub intercept: f64,
    /// The standard deviation of the rate of rise, °C/min.
    pub volatility: f64,
    /// The number of points that the line was fitted to.
    pub regression_points: usize,
    /// Whether a profile with targets was given.
    pub has_profile: bool,
}

/// The last 90 s: the fitted line, how far the readings lie from it, and how much the rate of rise
/// varies.
struct Trend {
    points: usize,
    /// The slope, °C/s, and the value at the start of the recording, °C.
    line: Option<(f64, f64)>,
    residual_c: f64,
    volatility: f64,
}

/// Predicts first crack and DROP of a recording that may still be running.
#[must_use]
pub fn predict(recording: &Recording, marks: &Marks, aims: Option<&ProfileTargets>) -> Prediction {
    let curve = Curve::of(recording);
    let last_ms = recording.samples.last().map_or(0, |sample| sample.t_ms);
    let seconds = |ms: i64| ms as f64 / 1000.0;
    let at = |kind| marks.ms(kind).map(seconds);
    let last = seconds(last_ms);
    let charge = at(EventKind::Charge).unwrap_or(0.0);
    let trend = trend(&curve, last_ms);
    let mut reasons = Vec::new();
    // When the line reaches a temperature: not before CHARGE, and within the longest roast.
    let reaches = |target: f64| {
        let (slope, start) = trend.line.filter(|(slope, _)| *slope > RISE_MIN)?;
        let then = (target - start) / slope;
        (then.is_finite() && then >= charge && then <= LONGEST_S).then_some(then)
    };
    let of = |aim: fn(&ProfileTargets) -> Option<f64>| aims.and_then(aim);
    let cracked = at(EventKind::Fc).or_else(|| {
        let target = of(|a| a.first_crack_c);
        if target.is_some() {
            reasons.push("first crack is predicted from the profile's temperature");
        }
        reaches(target.unwrap_or(CRACK_C)).or_else(|| {
            let then = of(|a| a.first_crack_s).map(|s| charge + s);
            reasons.extend(then.map(|_| "first crack is predicted from the profile's time"));
            then
        })
    });
    let dropped = at(EventKind::Drop).or_else(|| {
        if let Some(s) = of(|a| a.drop_s) {
            reasons.push("DROP is predicted from the profile's time");
            return Some(charge + s);
        }
        if let Some(then) = of(|a| a.drop_c).and_then(reaches) {
            reasons.push("DROP is predicted from the profile's temperature");
            return Some(then);
        }
        let ratio = of(|a| a.development_ratio).filter(|ratio| *ratio < 0.99)?;
        reasons.push("DROP is predicted from the profile's development ratio");
        cracked.map(|fc| charge + (fc - charge) / (1.0 - ratio))
    });
    let ratio = cracked.zip(dropped).filter(|(fc, drop)| *fc < *drop && *drop > charge);
    let ratio = ratio.map(|(fc, drop)| ((drop - fc) / (drop - charge)).clamp(0.0, 1.0));
    let phase = phase(marks, &curve, last_ms);
    let bt = curve.bt.iter().any(|reading| reading.value.is_some());
    for (holds, reason) in [
        (!bt, "no bean temperature"),
        (trend.points < FEW_POINTS, "few points"),
        (trend.volatility > VOLATILE, "the rate of rise is unstable"),
        (
            trend.line.is_none_or(|(slope, _)| slope <= RISE_MIN),
            "the bean temperature does not rise",
        ),
    ] {
        if holds {
            reasons.push(reason);
        }
    }
    let over = at(EventKind::Drop).is_some();
    let eta = |then: Option<f64>| then.map(|then| then - last).filter(|s| *s > 0.0 && !over);
    let (slope, start) = trend.line.unwrap_or((0.0, 0.0));
    Prediction {
        phase,
        points_used: trend.points,
        eta_to_fc: eta(cracked),
        eta_to_drop: eta(dropped),
        fc_at_elapsed_seconds: cracked,
        drop_at_elapsed_seconds: dropped,
        predicted_dev_ratio: ratio,
        confidence: confidence(&trend, bt, phase, aims),
        suggestions: suggestions(aims, (charge, dropped, ratio), trend.volatility),
        features: PredictionFeatures {
            slope,
            intercept: start,
            volatility: trend.volatility,
            regression_points: trend.points,
            has_profile: aims.is_some(),
        },
        reasons,
        last_elapsed_seconds: last.max(0.0),
        last_bt_c: curve.bt_at(last_ms),
        last_ror_c_per_min: curve.ror.last().map(|(_, ror)| *ror),
    }
}

fn trend(curve: &Curve, last_ms: i64) -> Trend {
    let recent = |t_ms: i64| last_ms.saturating_sub(t_ms) <= WINDOW_MS;
    let points: Vec<(f64, f64)> = curve
        .bt
        .iter()
        .filter(|reading| recent(reading.t_ms))
        .filter_map(|reading| Some((reading.t_ms as f64 / 1000.0, reading.value?)))
        .collect();
    let line = crate::analysis::fit_line(&points).map(|(slope, start, _)| (slope, start));
    let n = points.len().max(1) as f64;
    let off = |(slope, start): (f64, f64)| {
        points.iter().map(|(t, bt)| (bt - start - slope * t).abs()).sum::<f64>() / n
    };
    let from_ms = last_ms.saturating_sub(WINDOW_MS);
    let rates: Vec<f64> = curve.ror_between(from_ms, last_ms).map(|(_, r)| r).collect();
    let mean = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
    let square = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / rates.len().max(1) as f64;
    Trend {
        points: points.len(),
        line,
        residual_c: line.map_or(0.0, off),
        volatility: square.sqrt(),
    }
}

/// Returns the phase of the newest reading.
fn phase(marks: &Marks, curve: &Curve, last_ms: i64) -> &'static str {
    if marks.ms(EventKind::Drop).is_some() {
        return "POST_DROP";
    }
    let Some(bt) = curve.bt.iter().rev().find_map(|reading| reading.value) else {
        return "UNKNOWN";
    };
    if marks.ms(EventKind::Fc).is_some() {
        return "DEVELOPMENT";
    }
    if let Some(charge) = marks.ms(EventKind::Charge) {
        let limits = PhaseLimits {
            charge,
            turned: marks.ms(EventKind::Tp),
            dried: marks.ms(EventKind::DryEnd),
            cracked: None,
            until: last_ms,
        };
        if limits.dried.is_some() {
            let newest = limits.spans().last().map(|span| span.phase);
            return if newest == Some(Phase::Drying) { "DRYING" } else { "MAILLARD" };
        }
    }
    match bt {
        bt if bt < 80.0 => "PREHEAT",
        bt if bt < 150.0 => "DRYING",
        bt if bt < 190.0 => "MAILLARD",
        _ => "DEVELOPMENT",
    }
}

fn confidence(trend: &Trend, bt: bool, phase: &str, aims: Option<&ProfileTargets>) -> Confidence {
    let data_quality =
        0.5 * (trend.points as f64 / 50.0).min(1.0) + 0.5 * if bt { 1.0 } else { 0.4 };
    let fits = 1.0 - (trend.residual_c / 25.0).min(1.0);
    let model_fit = if trend.line.is_some() { fits } else { 0.3 };
    let phase_fit = match phase {
        "DEVELOPMENT" => 0.9,
        "MAILLARD" => 0.7,
        "DRYING" => 0.5,
        _ => 0.3,
    };
    let profile_fit = aims.map(|aims| {
        let given = |aim: Option<f64>, worth: f64| if aim.is_some() { worth } else { 0.0 };
        let anchor = if aims.drop_s.is_some() { 0.4 } else { 0.2 };
        let fit = anchor + given(aims.development_ratio, 0.3) + given(aims.first_crack_c, 0.3);
        f64::min(fit, 1.0)
    });
    let parts = [Some(data_quality), Some(model_fit), Some(phase_fit), profile_fit];
    let known: Vec<f64> = parts.into_iter().flatten().collect();
    let overall = known.iter().sum::<f64>() / known.len() as f64;
    Confidence { overall, data_quality, model_fit, phase_fit, profile_fit }
}

fn suggestions(
    aims: Option<&ProfileTargets>,
    (charge, dropped, ratio): (f64, Option<f64>, Option<f64>),
    volatility: f64,
) -> Vec<Suggestion> {
    let mut suggestions = Vec::new();
    let mut add = |kind, severity, title, detail| {
        suggestions.push(Suggestion { kind, title, detail, severity, requires_approval: false });
    };
    let aim = aims.and_then(|aims| aims.drop_s).zip(dropped);
    if let Some(late) = aim.map(|(s, then)| then - charge - s).filter(|late| late.abs() > 10.0) {
        add(
            SuggestionKind::Timing,
            Severity::Warn,
            "DROP is off the profile's time",
            format!("DROP differs by {late:+.0} s from the profile's"),
        );
    }
    if volatility > VOLATILE {
        let detail = format!("the rate of rise varies by {volatility:.1} °C/min");
        add(SuggestionKind::Stability, Severity::Info, "Unstable rate of rise", detail);
    }
    let aim = aims.and_then(|aims| aims.development_ratio).zip(ratio);
    if let Some(off) = aim.map(|(aim, ratio)| ratio - aim).filter(|off| off.abs() > 0.03) {
        let detail = format!("development is {:+.0} points off the profile's", off * 100.0);
        let title = "Development is off the profile's";
        add(SuggestionKind::Development, Severity::Info, title, detail);
    }
    suggestions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    /// Returns a recording that rises from 100 °C at 60 s by 12 °C/min.
    fn running(until: i64) -> Recording {
        let samples =
            (0..until).map(|s| Sample::bean(s * 1000, Some(100.0 + 0.2 * (s - 60) as f64)));
        Recording {
            samples: samples.collect(),
            marks: vec![(EventKind::Charge, 0)],
            ..Recording::default()
        }
    }

    #[test]
    fn a_steady_rise_reaches_first_crack_when_it_must() {
        let recording = running(400);
        let marks = Marks::of(&recording, &[]);
        let aims = ProfileTargets {
            first_crack_c: Some(190.0),
            development_ratio: Some(0.2),
            ..ProfileTargets::default()
        };
        let found = predict(&recording, &marks, Some(&aims));
        assert_eq!(found.phase, "MAILLARD");
        let fc = found.fc_at_elapsed_seconds.unwrap();
        assert!((fc - 510.0).abs() < 1.0, "{fc}");
        assert!((found.drop_at_elapsed_seconds.unwrap() - fc / 0.8).abs() < 0.1);
        assert!((found.predicted_dev_ratio.unwrap() - 0.2).abs() < 1e-9);
        assert!((found.eta_to_fc.unwrap() - 111.0).abs() < 1.5, "{:?}", found.eta_to_fc);
        assert!((0.0..=1.0).contains(&found.confidence.overall));
    }

    #[test]
    fn what_cannot_be_known_is_not_said() {
        let empty = predict(&Recording::default(), &Marks::default(), None);
        assert_eq!((empty.phase, empty.fc_at_elapsed_seconds), ("UNKNOWN", None));
        let mut falling = running(200);
        for sample in &mut falling.samples {
            sample.bt_c = sample.bt_c.map(|bt| 250.0 - bt);
        }
        let found = predict(&falling, &Marks::of(&falling, &[]), None);
        assert_eq!((found.fc_at_elapsed_seconds, found.drop_at_elapsed_seconds), (None, None));
        assert!(found.reasons.contains(&"the bean temperature does not rise"));
        let mut over = running(600);
        over.marks.push((EventKind::Drop, 500));
        let found = predict(&over, &Marks::of(&over, &[]), None);
        assert_eq!((found.phase, found.eta_to_drop), ("POST_DROP", None));
    }
}
