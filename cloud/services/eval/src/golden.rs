//! Golden cases: what a roast of a machine must be like, or what an agent must refuse.

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What a correct agent does with the case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Expectation {
    #[default]
    ShouldSucceed,
    ShouldReject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DangerLevel {
    #[default]
    Safe,
    Caution,
    Danger,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SourceType {
    #[default]
    Synthetic,
    RealSuccess,
    RealFailure,
}

/// A roast that shows how to meet the case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceSolution {
    pub session_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roaster_name: Option<String>,
    pub achieved_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    #[serde(default)]
    pub expert_reviewed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SensoryRange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f64>,
    #[serde(default)]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaselineCommand {
    pub command_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_value: Option<f64>,
    pub timestamp_seconds: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

/// A golden case as its author writes it. Unset fields are absent from the JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewCase {
    pub name: String,
    pub machine_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing_method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variety: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_year: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_roast_color: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size_kg: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charge_temp_c: Option<f64>,
    #[serde(default, rename = "targetFCTempC", skip_serializing_if = "Option::is_none")]
    pub target_fc_temp_c: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_drop_temp_c: Option<f64>,
    /// s since CHARGE
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_first_crack_seconds: Option<f64>,
    /// s since CHARGE
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_drop_seconds: Option<f64>,
    /// Percent of the roast's duration, 0 to 100
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_development_percentage: Option<f64>,
    /// s
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fc_seconds_error_tolerance: Option<f64>,
    /// s
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_seconds_error_tolerance: Option<f64>,
    /// Percentage points
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev_percentage_error_tolerance: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ror_spikes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ror_crashes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensory_range: Option<SensoryRange>,
    #[serde(default)]
    pub baseline_commands: Vec<BaselineCommand>,
    #[serde(default = "one")]
    pub trials_required: u32,
    /// 0..1
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_at_k_threshold: Option<f64>,
    #[serde(default)]
    pub expectation: Expectation,
    /// The expected reason for a refusal, in words. If a given reason contains at least one of its
    /// words of four letters or more, it is the expected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject_reason_expected: Option<String>,
    #[serde(default)]
    pub danger_level: DangerLevel,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_solution: Option<ReferenceSolution>,
    #[serde(default)]
    pub source_type: SourceType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub archived: bool,
    /// Free-form: the author's own fields, which eval stores unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

const fn one() -> u32 {
    1
}

/// A golden case as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenCase {
    pub id: String,
    pub created_at: EpochMs,
    #[serde(flatten)]
    pub case: NewCase,
}

/// The limits of a case; a genuine case needs no more.
const TRIALS_MAX: u32 = 1_000;
const LIST_MAX: usize = 200;
/// The largest case, in bytes of JSON.
pub const CASE_BYTES_MAX: usize = 64 * 1024;

impl NewCase {
    /// Returns the problems of the case, each with its field.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, field, problem| {
            if !holds {
                problems.push((field, problem));
            }
        };
        let valid_length = |text: &str| (1..=200).contains(&text.len());
        require(valid_length(&self.name), "name", "not 1 to 200 bytes");
        require(valid_length(&self.machine_id), "machineId", "not 1 to 200 bytes");
        require(self.batch_size_kg.is_none_or(|kg| kg > 0.0), "batchSizeKg", "not above 0");
        for (field, value) in [
            ("targetFirstCrackSeconds", self.target_first_crack_seconds),
            ("targetDropSeconds", self.target_drop_seconds),
            ("fcSecondsErrorTolerance", self.fc_seconds_error_tolerance),
            ("dropSecondsErrorTolerance", self.drop_seconds_error_tolerance),
            ("devPercentageErrorTolerance", self.dev_percentage_error_tolerance),
        ] {
            require(value.is_none_or(|v| v >= 0.0), field, "below 0");
        }
        let share = |value: Option<f64>, most| value.is_none_or(|v| (0.0..=most).contains(&v));
        require(
            share(self.target_development_percentage, 100.0),
            "targetDevelopmentPercentage",
            "not between 0 and 100",
        );
        require(share(self.pass_at_k_threshold, 1.0), "passAtKThreshold", "not between 0 and 1");
        let score = self.sensory_range.as_ref().and_then(|range| range.min_score);
        require(share(score, 100.0), "sensoryRange.minScore", "not between 0 and 100");
        require(
            (1..=TRIALS_MAX).contains(&self.trials_required),
            "trialsRequired",
            "not between 1 and 1000",
        );
        require(
            self.baseline_commands.len() <= LIST_MAX && self.tags.len() <= LIST_MAX,
            "tags",
            "more than 200 tags or baseline commands",
        );
        let text = serde_json::to_string(self).unwrap_or_default();
        require(text.len() <= CASE_BYTES_MAX, "description", "the case has more than 64 KiB");
        // PostgreSQL's text type cannot store a NUL.
        require(!text.contains("\\u0000"), "description", "contains a NUL");
        problems
    }

    /// Creates a case with this name and machine, and the default of every other field.
    #[must_use]
    pub fn named(name: &str, machine: &str) -> Self {
        let text = serde_json::json!({"name": name, "machineId": machine});
        // Every other field has a default, so the JSON above is a valid case.
        serde_json::from_value(text).unwrap_or_else(|_| unreachable!("a case with defaults"))
    }
}
