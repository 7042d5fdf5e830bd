//! Counts of what happened to commands, and the rates computed from them.

use std::collections::BTreeMap;

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A fact that is counted. Its word is its name in requests and in storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    Proposed,
    Approved,
    Rejected,
    Succeeded,
    Failed,
    RolledBack,
    Incident,
    IncidentCritical,
    IncidentAutonomous,
    ConstraintViolation,
    EmergencyAbort,
    SafetyGate,
}

impl Fact {
    pub const ALL: [Self; 12] = [
        Self::Proposed,
        Self::Approved,
        Self::Rejected,
        Self::Succeeded,
        Self::Failed,
        Self::RolledBack,
        Self::Incident,
        Self::IncidentCritical,
        Self::IncidentAutonomous,
        Self::ConstraintViolation,
        Self::EmergencyAbort,
        Self::SafetyGate,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proposed => "proposed",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
            Self::Incident => "incident",
            Self::IncidentCritical => "incident_critical",
            Self::IncidentAutonomous => "incident_autonomous",
            Self::ConstraintViolation => "constraint_violation",
            Self::EmergencyAbort => "emergency_abort",
            Self::SafetyGate => "safety_gate",
        }
    }
}

/// Counts of a period, by the words of the facts.
pub type Counts = BTreeMap<String, i64>;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Period {
    pub start: EpochMs,
    pub end: EpochMs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Commands {
    pub total: i64,
    pub proposed: i64,
    pub approved: i64,
    pub rejected: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub rolled_back: i64,
}

impl Commands {
    /// Returns the number of commands that succeeded or failed.
    pub(crate) const fn ended(&self) -> i64 {
        self.succeeded.saturating_add(self.failed)
    }
}

/// Rates, each between 0 and 1; 0 if the divisor is 0.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    pub success_rate: f64,
    pub approval_rate: f64,
    pub rollback_rate: f64,
    pub error_rate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Incidents {
    pub total: i64,
    pub critical: i64,
    pub from_autonomous_actions: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Safety {
    pub constraint_violations: i64,
    pub emergency_aborts: i64,
    pub safety_gate_triggers: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AutonomyMetrics {
    pub period: Period,
    pub commands: Commands,
    pub rates: Rates,
    pub incidents: Incidents,
    pub safety: Safety,
}

impl AutonomyMetrics {
    #[must_use]
    pub fn of(period: Period, counts: &Counts) -> Self {
        let n = |fact: Fact| counts.get(fact.as_str()).copied().unwrap_or(0).max(0);
        let share = |part: i64, whole: i64| {
            if whole > 0 { (part as f64 / whole as f64).clamp(0.0, 1.0) } else { 0.0 }
        };
        let commands = Commands {
            total: n(Fact::Proposed),
            proposed: n(Fact::Proposed),
            approved: n(Fact::Approved),
            rejected: n(Fact::Rejected),
            succeeded: n(Fact::Succeeded),
            failed: n(Fact::Failed),
            rolled_back: n(Fact::RolledBack),
        };
        Self {
            period,
            commands,
            rates: Rates {
                success_rate: share(commands.succeeded, commands.ended()),
                approval_rate: share(commands.approved, commands.proposed),
                rollback_rate: share(commands.rolled_back, commands.succeeded),
                // Relative to commands that ended: one that fails now was proposed earlier.
                error_rate: share(commands.failed, commands.ended()),
            },
            incidents: Incidents {
                total: n(Fact::Incident),
                critical: n(Fact::IncidentCritical),
                from_autonomous_actions: n(Fact::IncidentAutonomous),
            },
            safety: Safety {
                constraint_violations: n(Fact::ConstraintViolation),
                emergency_aborts: n(Fact::EmergencyAbort),
                safety_gate_triggers: n(Fact::SafetyGate),
            },
        }
    }
}
