//! Whether agents are ready for more autonomy: eighty points, of which 28 are measured and 52 are
//! declared by people.

use std::collections::BTreeMap;

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::metrics::AutonomyMetrics;
use super::{AutonomyState, Phase};

/// Agents are ready from this share of all points.
pub const THRESHOLD: f64 = 0.95;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Item {
    pub name: String,
    pub weight: f64,
    pub required: bool,
    pub status: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checklist {
    /// Points earned.
    pub score: f64,
    pub max_score: f64,
    pub items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Overall {
    /// 0 to 1.
    pub score: f64,
    pub ready: bool,
    /// Required items that do not hold.
    pub blockers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    pub timestamp: EpochMs,
    pub current_phase: Phase,
    pub days_since_phase_start: i64,
    pub overall: Overall,
    pub technical: Checklist,
    pub process: Checklist,
    pub organizational: Checklist,
    pub recommendations: Vec<Recommendation>,
    pub next_actions: Vec<NextAction>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Recommendation {
    #[serde(rename = "type")]
    pub kind: String,
    pub priority: String,
    pub rationale: String,
    /// What to do.
    #[serde(deserialize_with = "action_texts")]
    pub actions: Vec<String>,
}

/// Reads actions: texts, or the objects that earlier versions stored.
fn action_texts<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Object(NextAction),
    }
    let actions =
        Vec::<Stored>::deserialize(deserializer)?.into_iter().map(|action| match action {
            Stored::Text(text) => text,
            Stored::Object(action) => action.description,
        });
    Ok(actions.collect())
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NextAction {
    pub description: String,
    #[serde(default)]
    pub completed: bool,
}

/// What people declare, by upstream's names: (name, points, required, index of the checklist).
const DECLARED: [(&str, f64, bool, usize); 17] = [
    ("MONITORING_OPERATIONAL", 3.0, true, 0),
    ("KILL_SWITCH_TESTED", 2.0, true, 0),
    ("CHAOS_TESTS_PASSING", 2.0, true, 0),
    ("INCIDENT_PLAYBOOK_COMPLETE", 5.0, true, 1),
    ("RUNBOOKS_COMPLETE", 3.0, true, 1),
    ("ACCOUNTABILITY_FRAMEWORK_DOCUMENTED", 2.0, true, 1),
    ("APPROVAL_WORKFLOW_DEFINED", 5.0, true, 1),
    ("ESCALATION_PATHS_ESTABLISHED", 3.0, true, 1),
    ("ROLLBACK_PROCEDURES_TESTED", 2.0, true, 1),
    ("COMPLIANCE_REQUIREMENTS_VALIDATED", 3.0, false, 1),
    ("AUDIT_TRAIL_COMPREHENSIVE", 2.0, true, 1),
    ("TEAM_TRAINED_ON_MONITORING", 5.0, true, 2),
    ("ON_CALL_ROTATION_ESTABLISHED", 3.0, true, 2),
    ("COVERAGE_24X7_AVAILABLE", 2.0, false, 2),
    ("LEADERSHIP_APPROVAL_OBTAINED", 5.0, true, 2),
    ("CUSTOMER_COMMUNICATION_PLAN_READY", 3.0, false, 2),
    ("DESIGN_PARTNER_VALIDATION_COMPLETE", 2.0, true, 2),
];

/// Returns the names of the items that may be declared.
pub fn declarable() -> impl Iterator<Item = &'static str> {
    DECLARED.iter().map(|(name, ..)| *name)
}

/// Measurements beside the counts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measured {
    /// Share of the last 30 days' roasts that were evaluated; `None` if it is not known now.
    pub eval_coverage: Option<f64>,
}

/// Computes an organisation's readiness. `metrics` must be those of the last 30 days.
#[must_use]
pub fn assess(
    state: &AutonomyState,
    metrics: &AutonomyMetrics,
    measured: &Measured,
    now: EpochMs,
) -> Readiness {
    let mut lists: [Vec<Item>; 3] = [technical(state, metrics, measured, now), vec![], vec![]];
    for (name, weight, required, list) in DECLARED {
        let status = state.known.declared.get(name).copied().unwrap_or(false);
        let details = (!status).then(|| "not declared".to_owned());
        lists[list].push(Item { name: name.to_owned(), weight, required, status, details });
    }
    let [technical, process, organizational] = lists.map(|items| {
        let points = |of: &dyn Fn(&&Item) -> bool| -> f64 {
            items.iter().filter(|i| of(i)).map(|i| i.weight).sum()
        };
        Checklist { score: points(&|i| i.status), max_score: points(&|_| true), items }
    });
    let all = [&technical, &process, &organizational];
    let earned: f64 = all.iter().map(|list| list.score).sum();
    let most: f64 = all.iter().map(|list| list.max_score).sum();
    let blockers: Vec<String> = all
        .iter()
        .flat_map(|list| &list.items)
        .filter(|item| item.required && !item.status)
        .map(|item| item.name.clone())
        .collect();
    let score = earned / most;
    // Upstream lists blockers but ignores them; here every required item must hold.
    let ready = score >= THRESHOLD && blockers.is_empty();
    let recommendations = recommend(score, ready, metrics, all);
    let next_actions = recommendations
        .iter()
        .filter(|r| r.priority == "high")
        .flat_map(|r| r.actions.clone())
        .map(|description| NextAction { description, completed: false });
    Readiness {
        timestamp: now,
        current_phase: state.phase,
        days_since_phase_start: state.days(now),
        overall: Overall { score, ready, blockers },
        next_actions: next_actions.collect(),
        recommendations,
        technical,
        process,
        organizational,
    }
}

fn technical(
    state: &AutonomyState,
    metrics: &AutonomyMetrics,
    measured: &Measured,
    now: EpochMs,
) -> Vec<Item> {
    let rates = &metrics.rates;
    let days = state.days(now);
    let percent = |rate: f64| Some(format!("{:.1} %", rate * 100.0));
    let item = |name: &str, weight, required, status, details| Item {
        name: name.to_owned(),
        weight,
        required,
        status,
        details,
    };
    let coverage = measured.eval_coverage;
    let detail = coverage.map_or_else(|| Some("eval does not answer".to_owned()), percent);
    let autonomous = metrics.incidents.from_autonomous_actions;
    vec![
        item("180_DAYS_IN_PHASE", 5.0, true, days >= 180, Some(format!("{days} days"))),
        item("SUCCESS_RATE", 5.0, true, rates.success_rate > 0.995, percent(rates.success_rate)),
        item("APPROVAL_RATE", 3.0, false, rates.approval_rate > 0.80, percent(rates.approval_rate)),
        // Without successful commands there were no rollbacks, but there is no evidence either.
        item(
            "ROLLBACK_RATE",
            2.0,
            false,
            metrics.commands.succeeded > 0 && rates.rollback_rate < 0.02,
            percent(rates.rollback_rate),
        ),
        item("EVAL_COVERAGE", 5.0, true, coverage.is_some_and(|share| share > 0.90), detail),
        item(
            "NO_INCIDENTS_FROM_AUTONOMOUS_ACTIONS",
            5.0,
            true,
            autonomous == 0,
            Some(format!("{autonomous} in 30 days")),
        ),
        item("CIRCUIT_BREAKERS_IMPLEMENTED", 3.0, true, true, Some("active".to_owned())),
    ]
}

fn recommend(
    score: f64,
    ready: bool,
    metrics: &AutonomyMetrics,
    lists: [&Checklist; 3],
) -> Vec<Recommendation> {
    let mut recommendations = Vec::new();
    let mut add = |kind: &str, priority: &str, rationale: String, actions: Vec<String>| {
        let (kind, priority) = (kind.to_owned(), priority.to_owned());
        recommendations.push(Recommendation { kind, priority, rationale, actions });
    };
    let share = format!("{:.1} % of the points", score * 100.0);
    if ready {
        let todo = vec!["review and decide the proposal to expand".to_owned()];
        add("expand_scope", "high", format!("ready: {share}"), todo);
    } else if score >= 0.90 {
        add("maintain", "medium", format!("nearly ready: {share}"), vec![]);
    } else if score < 0.80 {
        let todo = vec!["work on the missing items of the checklists".to_owned()];
        add("investigate", "high", format!("far from ready: {share}"), todo);
    }
    let kinds = ["technical", "process", "organizational"];
    for (name, list) in kinds.into_iter().zip(lists) {
        let missing: Vec<String> = list
            .items
            .iter()
            .filter(|item| item.required && !item.status)
            .map(|item| format!("fulfil {}", item.name))
            .collect();
        if list.score / list.max_score < 0.90 && !missing.is_empty() {
            let kind = if name == "technical" { "investigate" } else { "maintain" };
            add(kind, "high", format!("{name} readiness has gaps"), missing);
        }
    }
    let rates = &metrics.rates;
    let worked = metrics.commands.ended() > 0;
    if worked && (rates.success_rate < 0.995 || rates.error_rate > 0.05) {
        let todo = vec!["find why commands fail".to_owned()];
        add("investigate", "high", format!("success {:.3}", rates.success_rate), todo);
    }
    if metrics.incidents.critical > 0 {
        let todo = vec!["roll back, and document what happened".to_owned()];
        let rationale = format!("{} critical incidents", metrics.incidents.critical);
        add("rollback", "high", rationale, todo);
    }
    if metrics.safety.constraint_violations > 10 {
        let rationale = format!("{} constraint violations", metrics.safety.constraint_violations);
        add("investigate", "medium", rationale, vec![]);
    }
    if metrics.commands.proposed > 0 && rates.approval_rate < 0.80 {
        add("maintain", "medium", format!("approval {:.3}", rates.approval_rate), vec![]);
    }
    recommendations
}

/// Returns all items that may be declared, as declared.
#[must_use]
pub fn all_declared() -> BTreeMap<String, bool> {
    declarable().map(|name| (name.to_owned(), true)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::AutonomyDetails;
    use super::super::metrics::{Counts, Period};
    use super::*;

    const NOW: EpochMs = EpochMs(1_760_000_000_000);

    #[test]
    fn readiness_needs_eighty_points_and_every_required_item() {
        let counts: Counts =
            [("proposed", 1000), ("approved", 990), ("succeeded", 999), ("failed", 1)]
                .map(|(k, n)| (k.to_owned(), n))
                .into();
        let metrics = AutonomyMetrics::of(Period { start: NOW, end: NOW }, &counts);
        let since = NOW.plus_ms(-200 * 86_400_000);
        let known = AutonomyDetails { declared: all_declared(), ..AutonomyDetails::default() };
        let state = AutonomyState { phase: Phase::L3, since, known };
        let covered = Measured { eval_coverage: Some(0.95) };
        let found = assess(&state, &metrics, &covered, NOW);
        let most = found.technical.max_score + found.process.max_score;
        assert!((most + found.organizational.max_score - 80.0).abs() < 1e-9);
        assert!(found.overall.ready && found.overall.blockers.is_empty(), "{found:?}");
        assert_eq!(found.recommendations[0].kind, "expand_scope");
        // One required item is missing, although the score is high enough.
        let away = assess(&state, &metrics, &Measured::default(), NOW);
        assert!(!away.overall.ready);
        assert_eq!(away.overall.blockers, ["EVAL_COVERAGE"]);
        // An idle organisation without declarations is not ready, and gets next actions.
        let idle = AutonomyMetrics::of(Period { start: NOW, end: NOW }, &Counts::new());
        let begin = assess(&AutonomyState::new(NOW), &idle, &Measured::default(), NOW);
        assert!(begin.overall.score < 0.2 && !begin.next_actions.is_empty());
        // Upstream's schema has texts in a recommendation, and objects in the next actions.
        let shown = serde_json::to_value(&begin).unwrap();
        let action = &shown["recommendations"][0]["actions"][0];
        assert_eq!(action, "work on the missing items of the checklists");
        assert_eq!(shown["nextActions"][0]["description"], *action);
    }

    #[test]
    fn recommendations_of_earlier_versions_are_read_as_texts() {
        let stored = serde_json::json!({"type": "maintain", "priority": "high", "rationale": "r",
            "actions": [{"description": "old", "completed": false}, "new"]});
        let read: Recommendation = serde_json::from_value(stored).unwrap();
        assert_eq!(read.actions, ["old", "new"]);
    }
}
