//! Saturation: whether golden cases still distinguish good roasts from bad ones. Pure; the
//! thresholds are those of upstream Sim-Corp.

use contract::EpochMs;
use serde::Serialize;
use utoipa::ToSchema;

use crate::golden::{GoldenCase, SourceType};

/// A run younger than this is recent, ms.
pub const RECENT_MS: i64 = 30 * 86_400_000;
const TREND: f64 = 0.1;
const FEW: i64 = 5;

/// The counts of a case's runs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct History {
    pub total: i64,
    pub passed: i64,
    pub recent: i64,
    pub recent_passed: i64,
    /// The number of different outcomes among the recent runs.
    pub recent_outcomes: i64,
    pub first: Option<EpochMs>,
    pub last: Option<EpochMs>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Saturation {
    pub golden_case_id: String,
    pub golden_case_name: String,
    pub machine_id: String,
    pub total_evaluations: i64,
    pub recent_evaluations: i64,
    pub overall_pass_rate: f64,
    pub recent_pass_rate: f64,
    pub pass_rate_trend: &'static str,
    pub is_saturated: bool,
    pub saturation_level: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_evaluated_at: Option<EpochMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_evaluated_at: Option<EpochMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days_since_last_eval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<&'static str>,
    pub source_type: SourceType,
    pub tags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    pub total_cases: usize,
    pub saturated_cases: usize,
    pub saturation_rate: f64,
    pub low_difficulty: usize,
    pub medium_difficulty: usize,
    pub high_difficulty: usize,
    pub saturated: usize,
    pub cases_to_retire: usize,
    pub cases_to_harden: usize,
    pub cases_needing_attention: usize,
    pub needs_action: bool,
    pub severity: &'static str,
    pub calculated_at: EpochMs,
}

/// Rates how saturated a case is from its history.
#[must_use]
pub fn saturation(case: &GoldenCase, history: &History, now: EpochMs) -> Saturation {
    let rate = |passed: i64, of: i64| if of > 0 { passed as f64 / of as f64 } else { 0.0 };
    let overall = rate(history.passed, history.total);
    let judged = history.recent > 0;
    let recent = if judged { rate(history.recent_passed, history.recent) } else { overall };
    // A case without runs is neither hard nor easy.
    let known = history.total > 0;
    let (level, recommendation) = match recent {
        _ if !known => ("LOW", "NEEDS_ATTENTION"),
        r if r < 0.4 && history.recent < FEW => ("LOW", "NEEDS_ATTENTION"),
        r if r < 0.4 => ("LOW", "KEEP"),
        r if r <= 0.6 => ("MEDIUM", "KEEP"),
        r if r <= 0.8 => ("HIGH", "MAKE_HARDER"),
        _ => ("SATURATED", "RETIRE"),
    };
    let trend = match recent - overall {
        d if d > TREND => "IMPROVING",
        d if d < -TREND => "DECLINING",
        _ => "STABLE",
    };
    Saturation {
        golden_case_id: case.id.clone(),
        golden_case_name: case.case.name.clone(),
        machine_id: case.case.machine_id.clone(),
        total_evaluations: history.total,
        recent_evaluations: history.recent,
        overall_pass_rate: overall,
        recent_pass_rate: recent,
        pass_rate_trend: trend,
        is_saturated: level == "SATURATED",
        saturation_level: level,
        consistency_score: judged.then(|| {
            let others = history.recent_outcomes.saturating_sub(1) as f64;
            (1.0 - others / 2.0).clamp(0.0, 1.0)
        }),
        first_evaluated_at: history.first,
        last_evaluated_at: history.last,
        days_since_last_eval: history.last.map(|last| now.ms_since(last).max(0) / 86_400_000),
        recommendation: Some(recommendation),
        source_type: case.case.source_type,
        tags: case.case.tags.clone(),
    }
}

#[must_use]
pub fn summary(cases: &[Saturation], now: EpochMs) -> Summary {
    let level = |name: &str| cases.iter().filter(|c| c.saturation_level == name).count();
    let advice = |name: &str| cases.iter().filter(|c| c.recommendation == Some(name)).count();
    let saturated = level("SATURATED");
    let rate = if cases.is_empty() { 0.0 } else { saturated as f64 / cases.len() as f64 };
    Summary {
        total_cases: cases.len(),
        saturated_cases: saturated,
        saturation_rate: rate,
        low_difficulty: level("LOW"),
        medium_difficulty: level("MEDIUM"),
        high_difficulty: level("HIGH"),
        saturated,
        cases_to_retire: advice("RETIRE"),
        cases_to_harden: advice("MAKE_HARDER"),
        cases_needing_attention: advice("NEEDS_ATTENTION"),
        needs_action: rate > 0.2,
        severity: match rate {
            r if r < 0.1 => "OK",
            r if r < 0.2 => "WARNING",
            _ => "ALERT",
        },
        calculated_at: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::NewCase;

    #[test]
    fn a_case_that_always_passes_is_saturated() {
        let now = EpochMs(1_760_000_000_000);
        let case = GoldenCase {
            id: "golden-1".to_owned(),
            created_at: now,
            case: NewCase::named("c", "m"),
        };
        let history = |total, passed, recent, recent_passed| History {
            total,
            passed,
            recent,
            recent_passed,
            recent_outcomes: 1,
            ..History::default()
        };
        let level = |h| {
            let found = saturation(&case, &h, now);
            (found.saturation_level, found.recommendation.unwrap(), found.pass_rate_trend)
        };
        assert_eq!(level(history(20, 19, 10, 10)), ("SATURATED", "RETIRE", "STABLE"));
        assert_eq!(level(history(20, 10, 10, 7)), ("HIGH", "MAKE_HARDER", "IMPROVING"));
        assert_eq!(level(history(20, 10, 10, 3)), ("LOW", "KEEP", "DECLINING"));
        assert_eq!(level(history(4, 1, 4, 1)), ("LOW", "NEEDS_ATTENTION", "STABLE"));
        let unseen = saturation(&case, &History::default(), now);
        assert_eq!((unseen.consistency_score, unseen.is_saturated), (None, false));
        let all = summary(&[saturation(&case, &history(9, 9, 9, 9), now)], now);
        assert_eq!((all.severity, all.needs_action), ("ALERT", true));
    }
}
