//! The metrics of the kernel, with upstream Sim-Corp's names and labels. No label is a text that a
//! caller may choose: each would be a time series for ever.

use std::collections::BTreeMap;

use contract::EpochMs;
use contract::mission::{EVAL_GOAL, MissionRecord, MissionStatus, REPORT_GOAL};

use crate::governance::metrics::AutonomyMetrics;
use crate::governance::readiness::{Checklist, Readiness};
use crate::governance::{AutonomyState, Phase};

fn goal(mission: &MissionRecord) -> &'static str {
    if mission.goal.title == REPORT_GOAL { REPORT_GOAL } else { "other" }
}

/// Returns the agent that missions of this goal are for: a mission keeps the name of its worker only
/// while it runs.
fn agent(mission: &MissionRecord) -> &'static str {
    agent_of(&mission.goal.title)
}

fn agent_of(goal: &str) -> &'static str {
    match goal {
        REPORT_GOAL => "report-agent",
        EVAL_GOAL => "eval-agent",
        _ => "other",
    }
}

pub fn queued(mission: &MissionRecord) {
    metrics::counter!("simcorp_missions_queued_total", "goal" => goal(mission),
        "agent_id" => agent(mission), "status" => mission.status.as_str())
    .increment(1);
}

/// Counts the end of an attempt: `status` is upstream's word for it, and `state` the mission's own.
pub fn ended(mission: &MissionRecord) {
    let status = match mission.status {
        MissionStatus::Done => "success",
        MissionStatus::Retry => "retry",
        _ => "failed",
    };
    metrics::counter!("simcorp_missions_completed_total", "goal" => goal(mission),
        "agent_id" => agent(mission), "status" => status, "state" => mission.status.as_str())
    .increment(1);
}

/// Publishes the number of missions by status, and of the running ones by the agent that their goal
/// is for. `of_agents` holds those of the goals that an agent is known for.
pub fn counts(counts: BTreeMap<String, i64>, of_agents: &BTreeMap<String, i64>) {
    let running = counts.get(MissionStatus::Running.as_str()).copied().unwrap_or(0);
    for (agent, n) in active(running, of_agents) {
        metrics::gauge!("simcorp_missions_active", "agent_id" => agent).set(n as f64);
    }
    for (what, n) in counts {
        metrics::gauge!("simcorp_missions", "status" => what).set(n as f64);
    }
}

/// Returns the running missions of each agent.
fn active(running: i64, of_agents: &BTreeMap<String, i64>) -> BTreeMap<&'static str, i64> {
    let mut active: BTreeMap<&'static str, i64> = BTreeMap::new();
    for goal in [REPORT_GOAL, EVAL_GOAL] {
        let of_agent = active.entry(agent_of(goal)).or_default();
        *of_agent = of_agent.saturating_add(of_agents.get(goal).copied().unwrap_or(0));
    }
    let known: i64 = active.values().sum();
    active.insert("other", running.saturating_sub(known).max(0));
    active
}

/// Publishes the number of unresolved events of the circuit breaker, of all organisations.
pub fn unresolved_events(n: i64) {
    metrics::gauge!("simcorp_governance_circuit_breaker_events_unresolved").set(n as f64);
}

/// Publishes the readiness that was computed last, of whichever organisation asked for it.
pub fn readiness(
    state: &AutonomyState,
    metrics: &AutonomyMetrics,
    readiness: &Readiness,
    now: EpochMs,
) {
    let rates = &metrics.rates;
    metrics::gauge!("simcorp_governance_readiness_score").set(readiness.overall.score);
    metrics::gauge!("simcorp_governance_days_since_phase_start").set(state.days(now) as f64);
    metrics::gauge!("simcorp_governance_command_success_rate").set(rates.success_rate);
    metrics::gauge!("simcorp_governance_command_approval_rate").set(rates.approval_rate);
    metrics::gauge!("simcorp_governance_command_error_rate").set(rates.error_rate);
    metrics::gauge!("simcorp_governance_command_rollback_rate").set(rates.rollback_rate);
    for phase in Phase::ALL {
        let current = if phase == state.phase { 1.0 } else { 0.0 };
        metrics::gauge!("simcorp_governance_current_phase_info", "phase" => phase.as_str())
            .set(current);
    }
    let commands = &metrics.commands;
    for (status, n) in [
        ("proposed", commands.proposed),
        ("approved", commands.approved),
        ("rejected", commands.rejected),
        ("succeeded", commands.succeeded),
        ("failed", commands.failed),
        ("rolled_back", commands.rolled_back),
    ] {
        metrics::gauge!("simcorp_governance_commands_total", "status" => status).set(n as f64);
    }
    let safety = &metrics.safety;
    metrics::gauge!("simcorp_governance_safety_constraint_violations_total")
        .set(safety.constraint_violations as f64);
    metrics::gauge!("simcorp_governance_safety_emergency_aborts_total")
        .set(safety.emergency_aborts as f64);
    checklist("technical", &readiness.technical);
    checklist("process", &readiness.process);
    checklist("organizational", &readiness.organizational);
}

fn checklist(name: &str, list: &Checklist) {
    let gauge = |what: &str| metrics::gauge!(format!("simcorp_governance_readiness_{name}_{what}"));
    gauge("score").set(list.score);
    gauge("max").set(list.max_score);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_from_a_fixed_set() {
        for (title, labels) in [
            (REPORT_GOAL, (REPORT_GOAL, "report-agent")),
            (EVAL_GOAL, ("other", "eval-agent")),
            ("of a caller's own invention", ("other", "other")),
        ] {
            let mission: MissionRecord = serde_json::from_value(json!({
                "missionId": "m", "id": "m", "idempotencyKey": "k", "goal": {"title": title},
                "status": "DONE", "priority": "MEDIUM", "attempts": 1, "maxAttempts": 5,
                "params": {}, "context": {}, "constraints": [],
                "createdAt": EpochMs(0), "updatedAt": EpochMs(0),
            }))
            .unwrap();
            assert_eq!((goal(&mission), agent(&mission)), labels);
        }
    }

    #[test]
    fn running_missions_are_counted_by_agent() {
        let of_agents = BTreeMap::from([(REPORT_GOAL.to_owned(), 2), (EVAL_GOAL.to_owned(), 1)]);
        let expected = BTreeMap::from([("report-agent", 2), ("eval-agent", 1), ("other", 4)]);
        assert_eq!(active(7, &of_agents), expected);
        let none = BTreeMap::from([("report-agent", 0), ("eval-agent", 0), ("other", 0)]);
        assert_eq!(active(0, &BTreeMap::new()), none, "also after all have ended");
    }
}
