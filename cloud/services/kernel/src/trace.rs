//! What an agent did on a mission: its five-step loop, as the agent reports it.

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The most steps of one trace, and below it the most tool calls of one step.
pub const ENTRIES_MAX: usize = 1_000;
pub const CALLS_MAX: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TraceStatus {
    #[default]
    Success,
    Error,
    Aborted,
    Timeout,
    MaxIterations,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Step {
    Get,
    GetMission,
    Scan,
    Think,
    Act,
    Observe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StepStatus {
    #[default]
    Success,
    Error,
    Skipped,
    Cancelled,
}

/// A complete run of an agent on a mission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    pub trace_id: String,
    pub agent_id: String,
    pub mission_id: String,
    /// The mission as the agent received it, as free-form JSON.
    pub mission: Map<String, Value>,
    #[serde(default)]
    pub status: TraceStatus,
    pub started_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    pub entries: Vec<Entry>,
    /// Free-form JSON of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub mission_id: String,
    pub loop_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iteration: Option<u32>,
    pub step: Step,
    #[serde(default)]
    pub status: StepStatus,
    pub started_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    #[serde(default)]
    pub metrics: Vec<Metric>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolCall {
    pub tool_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Free-form JSON of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Map<String, Value>>,
    /// Free-form JSON of the tool. A value that is not an object is wrapped as `{"value": …}`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "wrapped")]
    pub output: Option<Map<String, Value>>,
    /// ms
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_by_policy: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

fn wrapped<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Map<String, Value>>, D::Error> {
    Ok(match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => None,
        Some(Value::Object(map)) => Some(map),
        Some(value) => Some(Map::from_iter([("value".to_owned(), value)])),
    })
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Metric {
    pub name: String,
    pub value: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl Trace {
    /// Returns the number of tool calls that the policy denied.
    #[must_use]
    pub fn denied(&self) -> usize {
        let calls = self.entries.iter().flat_map(|entry| &entry.tool_calls);
        calls.filter(|call| call.denied_by_policy == Some(true)).count()
    }

    /// Returns the status as stored and searched.
    #[must_use]
    pub const fn status(&self) -> &'static str {
        match self.status {
            TraceStatus::Success => "SUCCESS",
            TraceStatus::Error => "ERROR",
            TraceStatus::Aborted => "ABORTED",
            TraceStatus::Timeout => "TIMEOUT",
            TraceStatus::MaxIterations => "MAX_ITERATIONS",
        }
    }

    /// Returns the first violated limit that the types do not check, as (field, problem).
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let id = |text: &str| (1..=200).contains(&text.len());
        if !(id(&self.trace_id) && id(&self.agent_id) && id(&self.mission_id)) {
            return Some(("traceId", "ids have 1 to 200 bytes".to_owned()));
        }
        if self.entries.len() > ENTRIES_MAX {
            return Some(("entries", format!("more than {ENTRIES_MAX}")));
        }
        let calls = self.entries.iter().find(|entry| entry.tool_calls.len() > CALLS_MAX);
        calls.map(|_| ("entries", format!("more than {CALLS_MAX} tool calls in one step")))
    }
}
