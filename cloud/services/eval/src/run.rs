//! Evaluation runs: the result of a roast, or of an agent, against a golden case.

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// Every gate of the case was measured and passed.
    Pass,
    /// No gate failed, but at least one that the case requires could not be measured.
    Warn,
    Fail,
    /// Nothing could be measured, or the agent refused for an unexpected reason: a person decides.
    NeedsReview,
}

impl Outcome {
    pub const ALL: [Self; 4] = [Self::Pass, Self::Warn, Self::Fail, Self::NeedsReview];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::NeedsReview => "NEEDS_REVIEW",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// The measurements of a run, in seconds, °C and °C/min.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Measured {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fc_seconds_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_seconds_error: Option<f64>,
    /// A fraction of 1, not a percentage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub development_ratio_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fc_temp_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_temp_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ror_std_dev: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ror_spikes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ror_crashes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands_proposed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands_approved: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands_executed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands_failed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands_deviation: Option<u32>,
    /// 0..1
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_success_rate: Option<f64>,
}

/// The value of a gate that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GateMetric {
    /// The gate's name.
    pub name: String,
    /// The tolerance of the case.
    pub target: f64,
    pub unit: String,
    /// `null` for a value that is too large for JSON.
    pub value: Option<f64>,
}

/// The roast's first crack and drop, for the readers of a run: s since CHARGE, and °C.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Observed {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crash_or_flick: Option<bool>,
    /// 0..1
    #[serde(skip_serializing_if = "Option::is_none")]
    pub development_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_temp_c: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fc_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fc_temp_c: Option<f64>,
}

impl Observed {
    /// Returns true if nothing was observed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A command in the state that it had when the run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunCommand {
    pub proposal_id: String,
    pub command_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_value: Option<f64>,
    pub proposed_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_at: Option<EpochMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed_at: Option<EpochMs>,
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// A language model's opinion of a run. It decides nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Each of the four scores is between 0 and 100.
    pub plan_clarity: f64,
    pub physics_plausibility: f64,
    pub constraint_respect: f64,
    pub safety_score: f64,
    pub safety_warnings: Vec<String>,
    pub physics_violations: Vec<String>,
    pub constraint_violations: Vec<String>,
    pub model_id: String,
    pub evaluated_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

/// An evaluation run as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalRun {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mission_id: Option<String>,
    pub golden_case_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator_id: Option<String>,
    pub run_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_number: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_set_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_trials: Option<u32>,
    pub outcome: Outcome,
    pub passed_gates: Vec<String>,
    pub failed_gates: Vec<String>,
    /// Gates of the case that could not be measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmeasured_gates: Vec<String>,
    pub agent_rejected: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejection_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejection_appropriate: Option<bool>,
    pub detailed_metrics: Measured,
    pub metrics: Vec<GateMetric>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lm_judge: Option<Judgement>,
    /// Why the language model has not been asked about the run yet, if its organisation's budget is
    /// used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge_waits: Option<String>,
    pub human_reviewed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_notes: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reviewed_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reviewed_at: Option<EpochMs>,
    pub commands: Vec<RunCommand>,
    /// The lines of the agent's transcript. Free-form: eval stores them unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_transcript: Option<Vec<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    pub artifacts: Vec<String>,
    #[serde(default, skip_serializing_if = "Observed::is_empty")]
    pub observed: Observed,
}

impl EvalRun {
    /// Returns the final outcome: a person's review takes precedence over the gates.
    #[must_use]
    pub fn effective_outcome(&self) -> Outcome {
        self.human_outcome.unwrap_or(self.outcome)
    }
}

/// The combined result of several runs of one case.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialSet {
    pub trial_set_id: String,
    pub golden_case_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    pub evaluated_at: EpochMs,
    pub total_trials: u32,
    pub passed_trials: u32,
    pub failed_trials: u32,
    pub warn_trials: u32,
    /// The probability that at least one of k trials passes.
    pub pass_at_k: f64,
    /// The probability that all of k trials pass.
    pub pass_to_k: f64,
    pub consistency_verdict: &'static str,
    pub meets_threshold: bool,
    pub trial_run_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avg_fc_seconds_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avg_drop_seconds_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avg_ror_std_dev: Option<f64>,
}
