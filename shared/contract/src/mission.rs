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
            /// All values, in their order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the name on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Parses the name on the wire, ignoring its case; `None` for any other text.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str().eq_ignore_ascii_case(text))
            }
        }
    };
}

words! {
    /// The state of a mission.
    MissionStatus {
        /// Waits for a worker.
        Pending = "PENDING",
        /// A worker holds its lease.
        Running = "RUNNING",
        /// Waits for its next attempt.
        Retry = "RETRY",
        /// A worker completed it.
        Done = "DONE",
        /// It failed for good: no attempt is left, or another would not help.
        Failed = "FAILED",
        /// Waits for a person: the governor quarantined it, or it crashed its workers.
        Quarantined = "QUARANTINED",
        /// The policy does not allow it.
        Blocked = "BLOCKED",
        /// A person cancelled it.
        Canceled = "CANCELED",
    }
}

words! {
    /// The priority of a mission: which missions workers receive first.
    #[derive(Default, PartialOrd, Ord)]
    Priority {
        /// Before all others.
        High = "HIGH",
        /// The default.
        #[default]
        Medium = "MEDIUM",
        /// After all others.
        Low = "LOW",
    }
}

words! {
    /// A decision of the governor.
    Action {
        /// The mission may run.
        Allow = "ALLOW",
        /// The mission waits for a person.
        Quarantine = "QUARANTINE",
        /// The mission must not run.
        Block = "BLOCK",
        /// The mission waits, and may run later.
        RetryLater = "RETRY_LATER",
    }
}

words! {
    /// How sure a decision is.
    #[derive(Default)]
    Confidence {
        /// The governor knows little about the subject.
        #[default]
        Low = "LOW",
        /// The governor knows enough to decide.
        Med = "MED",
        /// All that the decision depends on is known.
        High = "HIGH",
    }
}

words! {
    /// Who made a decision.
    #[derive(Default)]
    Decider {
        /// The kernel's governor.
        #[default]
        Governor = "KERNEL_GOVERNOR",
        /// A person.
        Human = "HUMAN",
    }
}

words! {
    /// Why a roast ended, as far as ingestion could tell.
    CloseReason {
        /// The beans left the drum.
        Drop = "DROP",
        /// No sample arrived for some time, and no DROP was known.
        Silence = "SILENCE_CLOSE",
    }
}

/// The goal of a mission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "GoalForm")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Goal {
    /// The name by which workers claim missions, such as `generate-roast-report`.
    pub title: String,
    /// What is to be done, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What the mission should achieve, for people.
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
    /// The machine-readable name of the reason.
    pub code: String,
    /// The reason in words.
    pub message: String,
    /// The values that the reason is based on: free-form JSON, which depends on the code.
    #[serde(default)]
    pub details: Map<String, Value>,
}

impl Reason {
    /// Creates a reason without details.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), details: Map::new() }
    }

    /// Adds a value that the reason is based on.
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
    /// What was decided.
    pub action: Action,
    /// How sure the decision is.
    #[serde(default)]
    pub confidence: Confidence,
    /// Why it was decided.
    #[serde(default)]
    pub reasons: Vec<Reason>,
    /// When it was decided.
    pub decided_at: EpochMs,
    /// Whether the governor or a person decided.
    #[serde(default)]
    pub decided_by: Decider,
}

/// What is known about the session that a mission is about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionSignals {
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Why the roast ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<CloseReason>,
    /// The duration of the session, s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_sec: Option<f64>,
    /// The number of samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry_points: Option<u64>,
    /// Whether the session has bean temperatures.
    #[serde(default, rename = "hasBT", skip_serializing_if = "Option::is_none")]
    pub has_bt: Option<bool>,
    /// Whether the session has environment temperatures.
    #[serde(default, rename = "hasET", skip_serializing_if = "Option::is_none")]
    pub has_et: Option<bool>,
    /// The time from the last sample to the end of the session, s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_telemetry_delta_sec: Option<f64>,
}

/// What the governor knows about a mission's subject.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MissionSignals {
    /// What is known about the session; empty if the subject is not a session.
    #[serde(default)]
    pub session: SessionSignals,
}

/// A mission as its creator sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewMission {
    /// The identity of the mission; the kernel chooses one if it is absent.
    #[serde(default, alias = "id", skip_serializing_if = "Option::is_none")]
    pub mission_id: Option<String>,
    /// A second request with the same key creates no second mission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// A title, or title, description and desired outcome.
    pub goal: Goal,
    /// What the mission is about, such as a session's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_id: Option<String>,
    /// Parameters for the worker: free-form JSON of the creator, whose fields depend on the goal.
    #[serde(default)]
    pub params: Map<String, Value>,
    /// Free-form JSON: `orgId`, `siteId`, `machineId`, and further fields of the creator.
    #[serde(default)]
    pub context: Map<String, Value>,
    /// Conditions that the worker must observe: free-form JSON of the creator.
    #[serde(default)]
    pub constraints: Vec<Value>,
    /// The name of the requester, as the creator gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// What the creator knows about the subject; the governor decides with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<MissionSignals>,
    /// Which missions workers receive first.
    #[serde(default)]
    pub priority: Priority,
    /// The largest number of attempts, 1 to 100; 5 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// When the mission was created, by the creator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<EpochMs>,
}

/// Why the last attempt failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastError {
    /// The error in words.
    pub error: String,
    /// Further values that the worker reported: free-form JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Map<String, Value>>,
}

/// A mission as the kernel stores it. A field without a value is absent, never `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MissionRecord {
    /// The identity of the mission.
    pub mission_id: String,
    /// The same as `missionId`.
    pub id: String,
    /// The key by which a second request for the same mission is recognised.
    pub idempotency_key: String,
    /// What the mission is to achieve.
    pub goal: Goal,
    /// The state of the mission.
    pub status: MissionStatus,
    /// Which missions workers receive first.
    pub priority: Priority,
    /// The number of attempts so far.
    pub attempts: u32,
    /// The largest number of attempts.
    pub max_attempts: u32,
    /// What the mission is about, such as a session's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_id: Option<String>,
    /// Parameters for the worker: free-form JSON of the creator.
    pub params: Map<String, Value>,
    /// `orgId`, `siteId`, `machineId`, and further fields of the creator: free-form JSON.
    pub context: Map<String, Value>,
    /// Conditions that the worker must observe: free-form JSON of the creator.
    pub constraints: Vec<Value>,
    /// The name of the requester, as the creator gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// What the creator knew about the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<MissionSignals>,
    /// The newest decision about the mission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<GovernanceDecision>,
    /// When the mission was created.
    pub created_at: EpochMs,
    /// When the mission was last changed.
    pub updated_at: EpochMs,
    /// When the next attempt may begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry_at: Option<EpochMs>,
    /// The worker that holds the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
    /// When that worker claimed the mission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<EpochMs>,
    /// The identity of the lease, which the worker sends with each report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<String>,
    /// When the lease expires unless the worker renews it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_expires_at: Option<EpochMs>,
    /// When the worker last renewed the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_at: Option<EpochMs>,
    /// When a worker completed the mission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<EpochMs>,
    /// When the mission failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<EpochMs>,
    /// The result that the worker reported.
    /// Free-form JSON of the worker: the summary with which it completed the mission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_meta: Option<Map<String, Value>>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// The authenticated actor that created the mission, or that last decided about it.
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
