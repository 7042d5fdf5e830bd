//! Missions: work that agents and workers claim, do and report, and the governor's decisions on it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Actor, EpochMs};

/// The goal of missions that write roast reports.
pub const REPORT_GOAL: &str = "generate-roast-report";
/// The goal of missions that compare a roast with the golden cases of its machine.
pub const EVAL_GOAL: &str = "evaluate-roast";
/// The kind of the report that is written after every roast.
pub const POST_ROAST: &str = "POST_ROAST_V1";

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        // By hand, because the derive does not see the names that a macro passes in.
        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some([$($word),+]))
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Parses a name, ignoring its case.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str().eq_ignore_ascii_case(text))
            }
        }
    };
}

words! {
    MissionStatus {
        /// Waits for a worker.
        Pending = "PENDING",
        /// A worker holds its lease.
        Running = "RUNNING",
        /// Waits for its next attempt.
        Retry = "RETRY",
        Done = "DONE",
        Failed = "FAILED",
        /// Waits for a person: the governor quarantined it, or it crashed its workers.
        Quarantined = "QUARANTINED",
        /// The policy does not allow it.
        Blocked = "BLOCKED",
        Canceled = "CANCELED",
    }
}

words! {
    #[derive(Default, PartialOrd, Ord)]
    Priority {
        High = "HIGH",
        #[default]
        Medium = "MEDIUM",
        Low = "LOW",
    }
}

words! {
    /// A decision of the governor.
    Action {
        Allow = "ALLOW",
        Quarantine = "QUARANTINE",
        Block = "BLOCK",
        RetryLater = "RETRY_LATER",
    }
}

words! {
    #[derive(Default)]
    Confidence {
        #[default]
        Low = "LOW",
        Med = "MED",
        High = "HIGH",
    }
}

words! {
    #[derive(Default)]
    Decider {
        #[default]
        Governor = "KERNEL_GOVERNOR",
        Human = "HUMAN",
    }
}

words! {
    /// Why a roast ended, as far as ingestion could tell.
    CloseReason {
        Drop = "DROP",
        Silence = "SILENCE_CLOSE",
    }
}

/// The goal of a mission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "GoalForm")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Goal {
    pub title: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_outcome: Option<String>,
}

/// A goal as clients send it: a title alone, or all fields.
#[derive(Deserialize)]
#[serde(untagged)]
enum GoalForm {
    Title(String),
    #[serde(rename_all = "camelCase")]
    Whole {
        title: String,
        description: Option<String>,
        desired_outcome: Option<String>,
    },
}

impl From<GoalForm> for Goal {
    fn from(form: GoalForm) -> Self {
        match form {
            GoalForm::Title(title) => Self { title, description: None, desired_outcome: None },
            GoalForm::Whole { title, description, desired_outcome } => {
                Self { title, description, desired_outcome }
            }
        }
    }
}

/// A reason for a decision, with the values that it is based on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reason {
    pub code: String,
    pub message: String,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub details: Map<String, Value>,
}

impl Reason {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), details: Map::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }
}

/// The decision about a mission, by the governor or by a person after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GovernanceDecision {
    pub action: Action,
    #[serde(default)]
    pub confidence: Confidence,
    #[serde(default)]
    pub reasons: Vec<Reason>,
    pub decided_at: EpochMs,
    #[serde(default)]
    pub decided_by: Decider,
}

/// What is known about the session that a mission is about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionSignals {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<CloseReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_sec: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry_points: Option<u64>,
    #[serde(default, rename = "hasBT", skip_serializing_if = "Option::is_none")]
    pub has_bt: Option<bool>,
    #[serde(default, rename = "hasET", skip_serializing_if = "Option::is_none")]
    pub has_et: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_telemetry_delta_sec: Option<f64>,
}

/// What the governor knows about a mission's subject.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MissionSignals {
    #[serde(default)]
    pub session: SessionSignals,
}

/// A mission as its creator sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewMission {
    #[serde(default, alias = "id", skip_serializing_if = "Option::is_none")]
    pub mission_id: Option<String>,
    /// A second request with the same key creates no second mission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// A title, or title, description and desired outcome.
    pub goal: Goal,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_id: Option<String>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub params: Map<String, Value>,
    /// `orgId`, `siteId`, `machineId`, and further fields that the creator may add.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub context: Map<String, Value>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub constraints: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<MissionSignals>,
    #[serde(default)]
    pub priority: Priority,
    /// The largest number of attempts, 1 to 100; 5 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<EpochMs>,
}

/// Why the last attempt failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastError {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub details: Option<Map<String, Value>>,
}

/// A mission as the kernel stores it. A field without a value is absent, never `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MissionRecord {
    pub mission_id: String,
    /// The same as `missionId`.
    pub id: String,
    pub idempotency_key: String,
    pub goal: Goal,
    pub status: MissionStatus,
    pub priority: Priority,
    pub attempts: u32,
    pub max_attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_id: Option<String>,
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub params: Map<String, Value>,
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub context: Map<String, Value>,
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub constraints: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<MissionSignals>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<GovernanceDecision>,
    pub created_at: EpochMs,
    pub updated_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_expires_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub result_meta: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_a_title_or_more() {
        let of = |text| serde_json::from_str::<NewMission>(text).unwrap();
        let short = of(r#"{"goal":"tidy up"}"#);
        assert_eq!(short.goal.title, "tidy up");
        assert_eq!((short.priority, short.max_attempts), (Priority::Medium, None));
        let long = of(r#"{"goal":{"title":"t","desiredOutcome":"o"},"priority":"HIGH"}"#);
        assert_eq!(long.goal.desired_outcome.as_deref(), Some("o"));
        assert_eq!(serde_json::to_value(&long.goal).unwrap()["title"], "t");
        assert_eq!(MissionStatus::parse("quarantined"), Some(MissionStatus::Quarantined));
    }
}
