//! Warnings about the data and the roast, and recommendations, each with its evidence.
//!
//! This module only advises people. It must never control a machine.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::crash_flick::CrashFlick;
use super::phase::Phase;
use super::{Analysis, Curve};
use crate::clean::ValueQuality;

/// How serious a warning is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Severity {
    /// Worth knowing; the analysis is still reliable.
    Info,
    /// The roast or its data has a defect.
    Warn,
    /// The data is wrong unless it is corrected.
    Alert,
}

/// A warning about the data or the roast.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Warning {
    /// The machine-readable name, such as `CRASH`.
    pub code: &'static str,
    /// How serious it is.
    pub severity: Severity,
    /// The warning in words.
    pub message: String,
    /// When it occurred first, s from CHARGE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_seconds: Option<f64>,
    /// The evidence.
    pub details: Map<String, Value>,
}

/// How sure a recommendation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Confidence {
    /// The evidence is weak.
    Low,
    /// The evidence points to a cause.
    Med,
    /// The evidence is strong.
    High,
}

/// A recommendation for the next roast.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Recommendation {
    /// The machine-readable name, such as `DEVELOPMENT`.
    pub code: &'static str,
    /// The recommendation in words.
    pub message: String,
    /// How sure it is.
    pub confidence: Confidence,
    /// The evidence.
    pub details: Map<String, Value>,
}

fn details(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// Returns the warnings about a roast from `charge` to `until`, in ms of the recording, whose rate of
/// rise had this `shape` after a certain first crack.
pub fn warnings(
    a: &Analysis,
    shape: &CrashFlick,
    curve: &Curve,
    (charge, until): (i64, i64),
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |code, severity, message: String, at_seconds, evidence: Value| {
        let details = details(&evidence);
        warnings.push(Warning { code, severity, message, at_seconds, details });
    };
    let roast: Vec<_> = curve.bt.iter().filter(|c| (charge..=until).contains(&c.t_ms)).collect();
    let count = |why| roast.iter().filter(|c| c.quality == why).count();
    let first = |why| {
        let found = roast.iter().find(|c| c.quality == why);
        found.map(|c| super::tenths(c.t_ms.saturating_sub(charge) as f64 / 1000.0))
    };
    for (why, code, severity, what) in [
        (
            ValueQuality::UnitFlip,
            "UNIT_FLIP",
            Severity::Alert,
            "readings arrived in the other temperature unit and were converted",
        ),
        (
            ValueQuality::Stuck,
            "STUCK",
            Severity::Warn,
            "readings did not change while the roast continued",
        ),
        (
            ValueQuality::Range,
            "RANGE",
            Severity::Warn,
            "readings were outside the range of a probe",
        ),
        (ValueQuality::Spike, "SPIKE", Severity::Info, "readings jumped and were rejected"),
        (ValueQuality::Missing, "DROPOUT", Severity::Info, "readings were missing"),
        (
            ValueQuality::Staircase,
            "STAIRCASE",
            Severity::Info,
            "readings change in steps: few digits, or polled too fast",
        ),
    ] {
        let found = count(why);
        if found > 0 {
            let share = found as f64 / roast.len().max(1) as f64;
            let message = format!("{found} of {} {what}", roast.len());
            warn(code, severity, message, first(why), json!({"count": found, "share": share}));
        }
    }
    if shape.crash_detected {
        let message = "the rate of rise fell far below its trend after first crack".to_owned();
        let evidence = json!(shape.details);
        warn("CRASH", Severity::Warn, message, shape.crash_at_seconds, evidence);
    }
    if shape.flick_detected {
        let message = "the rate of rise increased again before the drop".to_owned();
        let evidence = json!(shape.details);
        warn("FLICK", Severity::Warn, message, shape.flick_at_seconds, evidence);
    }
    if a.drop_seconds.is_none() {
        let message = "the roast has no DROP: it still runs, or DROP was not recorded".to_owned();
        warn("NO_DROP", Severity::Info, message, None, json!({}));
    }
    warnings
}

/// The development ratios that most roasters aim for. A ratio outside them gets a recommendation.
const DEVELOPMENT: std::ops::RangeInclusive<f64> = 0.10..=0.30;

/// Returns the recommendations that follow from an analysis whose CHARGE and first crack are certain.
/// `shape` is the course of the rate of rise during development; `None` if DROP is not certain, so
/// that nothing is known about development.
pub fn recommendations(a: &Analysis, shape: Option<CrashFlick>) -> Vec<Recommendation> {
    let mut advice = Vec::new();
    let mut advise = |code, message: &str, confidence, evidence: Value| {
        let (message, details) = (message.to_owned(), details(&evidence));
        advice.push(Recommendation { code, message, confidence, details });
    };
    if let Some(shape) = shape.filter(|shape| shape.crash_detected) {
        let late = a.fc_seconds.map(|fc| {
            let cuts = a.controls.iter().filter(|m| {
                m.control == super::controls::Control::Gas
                    && m.to_pct < m.from_pct
                    && (fc - 60.0..=fc + 60.0).contains(&m.seconds)
            });
            cuts.map(|m| json!({"atSeconds": m.seconds, "fromPct": m.from_pct, "toPct": m.to_pct}))
                .collect::<Vec<_>>()
        });
        advise(
            "SMOOTHER_INTO_FC",
            "Reduce heat earlier and in smaller steps before first crack, and less around it: \
             the rate of rise crashed after first crack.",
            if late.as_ref().is_some_and(|cuts| !cuts.is_empty()) {
                Confidence::Med
            } else {
                Confidence::Low
            },
            json!({"shape": shape.details, "gasCutsNearFirstCrack": late}),
        );
    }
    if let Some(shape) = shape.filter(|shape| shape.flick_detected && !shape.crash_detected) {
        advise(
            "LOWER_END",
            "Use less heat or more air at the end: the rate of rise increased before the drop.",
            Confidence::Low,
            json!({"shape": shape.details}),
        );
    }
    if let Some(ratio) = a.development_ratio.filter(|_| shape.is_some())
        && a.drop_seconds.is_some()
        && !DEVELOPMENT.contains(&ratio)
    {
        let message = if ratio < *DEVELOPMENT.start() {
            "Development is short: drop later or slow down before first crack, if it tastes better."
        } else {
            "Development is long: drop sooner or heat more before first crack, if it tastes better."
        };
        advise("DEVELOPMENT", message, Confidence::Low, json!({"developmentRatio": ratio}));
    }
    let rough = a.phase_stats.iter().find(|p| {
        p.phase == Phase::Maillard && p.ror_smoothness_score.is_some_and(|score| score < 0.6)
    });
    if let Some(rough) = rough {
        advise(
            "STEADIER_MAILLARD",
            "The rate of rise varies a lot before first crack: change controls less and earlier.",
            Confidence::Low,
            json!({"smoothness": rough.ror_smoothness_score, "moves": a.controls.len()}),
        );
    }
    advice
}
