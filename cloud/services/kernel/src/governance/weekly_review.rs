//! The weekly review: a report and, if all conditions hold, a proposal to expand autonomy.

use std::fmt::Write as _;

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::breaker::BreakerEvent;
use super::metrics::AutonomyMetrics;
use super::readiness::{NextAction, Readiness, Recommendation};
use super::{AutonomyState, Phase};

/// How many circuit-breaker events a report contains.
pub const REPORT_EVENTS_MAX: usize = 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Expansion {
    pub current_phase: Phase,
    pub target_phase: Phase,
    pub commands_to_whitelist: Vec<String>,
    /// Days.
    pub validation_period: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rationale {
    pub metrics: AutonomyMetrics,
    pub readiness: Readiness,
    pub key_achievements: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Risk {
    pub level: String,
    pub mitigations: Vec<String>,
    pub rollback_plan: String,
}

/// A person's approval of a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// Which of the required approvals it is.
    #[serde(rename = "as")]
    pub role: String,
    pub approved_by: String,
    pub at: EpochMs,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    pub proposal_id: String,
    pub timestamp: EpochMs,
    pub proposed_by: String,
    pub expansion: Expansion,
    pub rationale: Rationale,
    pub risk_assessment: Risk,
    pub required_approvals: Vec<String>,
    #[serde(default)]
    pub approvals: Vec<Approval>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub id: String,
    pub week_start: EpochMs,
    pub week_end: EpochMs,
    pub generated_at: EpochMs,
    pub metrics: AutonomyMetrics,
    pub readiness: Readiness,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expansion: Option<Proposal>,
    pub circuit_breaker_events: Vec<BreakerEvent>,
    /// Markdown.
    pub summary: String,
    pub recommendations: Vec<Recommendation>,
    pub next_actions: Vec<NextAction>,
}

/// Returns the proposal to expand to the next phase; `None` in the last phase.
#[must_use]
pub fn propose(
    state: &AutonomyState,
    metrics: &AutonomyMetrics,
    readiness: &Readiness,
    (id, now): (String, EpochMs),
) -> Option<Proposal> {
    let target = state.phase.next()?;
    let (commands, days): (&[&str], u32) = match target {
        Phase::L3 | Phase::L3Plus => (&["SET_POWER", "SET_FAN"], 14),
        Phase::L4 => (&["SET_DRUM", "SET_AIRFLOW"], 21),
        Phase::L4Plus => (&["PREHEAT", "COOLING_CYCLE"], 30),
        Phase::L5 => (&["EMERGENCY_SHUTDOWN", "ABORT"], 60),
    };
    let approvers = ["tech-lead", "ops-lead", "product-lead", "exec-sponsor"];
    let needed = Phase::ALL.iter().position(|phase| *phase == target).unwrap_or(1);
    let rates = &metrics.rates;
    let risky = rates.success_rate < 0.997
        || rates.error_rate > 0.02
        || readiness.overall.score < 0.97
        || target >= Phase::L4Plus;
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    Some(Proposal {
        proposal_id: id,
        timestamp: now,
        proposed_by: "autonomy-governance-agent".to_owned(),
        expansion: Expansion {
            current_phase: state.phase,
            target_phase: target,
            commands_to_whitelist: owned(commands),
            validation_period: days,
        },
        rationale: Rationale {
            metrics: *metrics,
            readiness: readiness.clone(),
            key_achievements: vec![
                format!("{:.2} % of commands succeeded", rates.success_rate * 100.0),
                format!("{} days in {}", readiness.days_since_phase_start, state.phase.as_str()),
                format!("readiness {:.1} %", readiness.overall.score * 100.0),
            ],
        },
        risk_assessment: Risk {
            level: if risky { "medium" } else { "low" }.to_owned(),
            mitigations: owned(&[
                "circuit breakers revert to L3",
                "every command needs a person's approval",
                "the edge enforces the limits of the machine's profile",
            ]),
            rollback_plan: "revert to L3 at once and empty the whitelist".to_owned(),
        },
        required_approvals: owned(&approvers[..needed.min(approvers.len())]),
        approvals: Vec::new(),
    })
}

/// Returns a week's report as Markdown.
#[must_use]
pub fn summary(state: &AutonomyState, report: &Report) -> String {
    let mut text = format!("# Autonomy, week to {}\n\n", report.week_end);
    let (m, r) = (&report.metrics, &report.readiness);
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "- {what}: {value}");
    };
    line("Phase", format!("{}, for {} days", state.phase.as_str(), r.days_since_phase_start));
    line(
        "Commands",
        format!(
            "{} proposed, {} approved, {} succeeded, {} failed, {} rolled back",
            m.commands.proposed,
            m.commands.approved,
            m.commands.succeeded,
            m.commands.failed,
            m.commands.rolled_back
        ),
    );
    line("Incidents", format!("{}, {} critical", m.incidents.total, m.incidents.critical));
    line(
        "Safety",
        format!(
            "{} constraint violations, {} emergency aborts, {} gates",
            m.safety.constraint_violations,
            m.safety.emergency_aborts,
            m.safety.safety_gate_triggers
        ),
    );
    line("Readiness", format!("{:.1} %", r.overall.score * 100.0));
    line("Circuit breaker events", report.circuit_breaker_events.len().to_string());
    if let Some(proposal) = &report.expansion {
        line("Proposed", proposal.expansion.target_phase.as_str().to_owned());
    }
    if !r.overall.blockers.is_empty() {
        text.push_str("\n## Missing\n\n");
        for blocker in &r.overall.blockers {
            let _ = writeln!(text, "- {blocker}");
        }
    }
    text
}
