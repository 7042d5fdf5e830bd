//! What the governor decides about a mission before anybody may claim it. Pure: policy and mission
//! in, decision out. Rules and codes are the reference's.

use std::collections::BTreeMap;

use contract::EpochMs;
use contract::mission::{
    Action, CloseReason, Confidence, Decider, GovernanceDecision, NewMission, REPORT_GOAL, Reason,
    SessionSignals,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// From here on a roast is long and dense enough to be sure of.
const SURE_POINTS: u64 = 300;
const SURE_SECONDS: f64 = 360.0;
const GOALS_MAX: usize = 100;

/// An organisation's policy. Parts that are left out have their defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GovernorConfig {
    /// How many missions of a goal one machine may ask for.
    pub rate_limits: BTreeMap<String, RateLimit>,
    pub gates: BTreeMap<String, Gate>,
    pub command_autonomy: CommandAutonomy,
    pub policy: Policy,
}

/// A bucket of tokens: a mission takes one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    pub capacity: f64,
    pub refill_per_sec: f64,
}

/// What a roast must show to be reported on without a person's look.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gate {
    pub min_telemetry_points: u64,
    pub min_duration_sec: f64,
    #[serde(rename = "requireBTorET")]
    pub require_bt_or_et: bool,
    pub quarantine_on_missing_signals: bool,
    pub quarantine_on_silence_close: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            min_telemetry_points: 60,
            min_duration_sec: 90.0,
            require_bt_or_et: true,
            quarantine_on_missing_signals: true,
            quarantine_on_silence_close: true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum AutonomyLevel {
    /// Agents and people propose nothing.
    L1,
    /// People propose.
    L2,
    /// Agents propose, people approve.
    L3,
    L4,
    L5,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CommandAutonomy {
    pub autonomy_level: AutonomyLevel,
    pub require_approval_for_all: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_commands_per_session: Option<u32>,
    pub command_failure_threshold: f64,
    pub evaluation_window_minutes: u32,
}

impl Default for CommandAutonomy {
    fn default() -> Self {
        Self {
            autonomy_level: AutonomyLevel::L3,
            require_approval_for_all: true,
            max_commands_per_session: None,
            command_failure_threshold: 0.3,
            evaluation_window_minutes: 60,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// Goals that missions may have.
    pub allowed_goals: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { allowed_goals: vec![REPORT_GOAL.to_owned()] }
    }
}

impl Default for GovernorConfig {
    fn default() -> Self {
        let goal = REPORT_GOAL.to_owned();
        let limit = RateLimit { capacity: 10.0, refill_per_sec: 10.0 / 3600.0 };
        Self {
            rate_limits: BTreeMap::from([(goal.clone(), limit)]),
            gates: BTreeMap::from([(goal, Gate::default())]),
            command_autonomy: CommandAutonomy::default(),
            policy: Policy::default(),
        }
    }
}

impl GovernorConfig {
    /// What no policy may say, each with its field.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, &'static str)> {
        let mut found = Vec::new();
        let mut require = |holds: bool, field: String, problem| {
            if !holds {
                found.push((field, problem));
            }
        };
        for (goal, limit) in &self.rate_limits {
            let finite = limit.capacity.is_finite() && limit.refill_per_sec.is_finite();
            require(
                finite && limit.capacity > 0.0 && limit.refill_per_sec >= 0.0,
                format!("rateLimits.{goal}"),
                "capacity must be above 0 and refillPerSec not below",
            );
        }
        for (goal, gate) in &self.gates {
            require(
                gate.min_duration_sec.is_finite() && gate.min_duration_sec >= 0.0,
                format!("gates.{goal}.minDurationSec"),
                "must not be below 0",
            );
        }
        let autonomy = &self.command_autonomy;
        require(
            (0.0..=1.0).contains(&autonomy.command_failure_threshold),
            "commandAutonomy.commandFailureThreshold".to_owned(),
            "must be between 0 and 1",
        );
        require(
            autonomy.evaluation_window_minutes > 0,
            "commandAutonomy.evaluationWindowMinutes".to_owned(),
            "must be above 0",
        );
        require(
            autonomy.max_commands_per_session != Some(0),
            "commandAutonomy.maxCommandsPerSession".to_owned(),
            "must be above 0",
        );
        let names = self.rate_limits.keys().chain(self.gates.keys());
        let names = names.chain(&self.policy.allowed_goals);
        let lists = [self.rate_limits.len(), self.gates.len(), self.policy.allowed_goals.len()];
        require(
            lists.iter().all(|n| *n <= GOALS_MAX)
                && names.into_iter().all(|goal| (1..=200).contains(&goal.len())),
            "policy".to_owned(),
            "at most 100 goals, each of 1 to 200 bytes",
        );
        found
    }
}

/// Policy and gate; the rate limit is asked afterwards, since it spends something.
#[must_use]
pub fn decide(config: &GovernorConfig, mission: &NewMission, now: EpochMs) -> GovernanceDecision {
    let goal = mission.goal.title.as_str();
    let decided = |action, confidence, reasons| GovernanceDecision {
        action,
        confidence,
        reasons,
        decided_at: now,
        decided_by: Decider::Governor,
    };
    if !config.policy.allowed_goals.iter().any(|allowed| allowed == goal) {
        let reason = Reason::new("GOAL_NOT_ALLOWED", format!("the policy does not allow {goal}"));
        return decided(Action::Block, Confidence::Low, vec![reason.with("goal", goal)]);
    }
    if goal != REPORT_GOAL {
        return decided(Action::Allow, Confidence::Med, Vec::new());
    }
    let gate = config.gates.get(goal).copied().unwrap_or_default();
    let signals = mission.signals.clone().unwrap_or_default().session;
    let reasons = doubts(&gate, &signals);
    if !reasons.is_empty() {
        return decided(Action::Quarantine, Confidence::Low, reasons);
    }
    decided(Action::Allow, confidence(&gate, &signals), Vec::new())
}

fn doubts(gate: &Gate, s: &SessionSignals) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let nothing = s.telemetry_points.is_none()
        && s.duration_sec.is_none()
        && s.has_bt.is_none()
        && s.has_et.is_none()
        && s.close_reason.is_none();
    if gate.quarantine_on_missing_signals && nothing {
        reasons.push(Reason::new("MISSING_SIGNALS", "nothing is known of the roast"));
    }
    if let Some(points) = s.telemetry_points.filter(|n| *n < gate.min_telemetry_points) {
        let message = format!("{points} points, fewer than {}", gate.min_telemetry_points);
        reasons.push(Reason::new("LOW_TELEMETRY_POINTS", message).with("telemetryPoints", points));
    }
    if let Some(seconds) = s.duration_sec.filter(|s| *s < gate.min_duration_sec) {
        let message = format!("{seconds:.0} s, shorter than {:.0} s", gate.min_duration_sec);
        reasons.push(Reason::new("SHORT_SESSION", message).with("durationSec", seconds));
    }
    let temperature = s.has_bt == Some(true) || s.has_et == Some(true);
    if gate.require_bt_or_et && !temperature {
        reasons.push(Reason::new("NO_TEMP_CHANNELS", "neither BT nor ET was recorded"));
    }
    let strong =
        s.telemetry_points.is_some_and(|n| n >= gate.min_telemetry_points.saturating_mul(2))
            && s.duration_sec.is_some_and(|d| d >= 2.0 * gate.min_duration_sec);
    let silent = s.close_reason == Some(CloseReason::Silence);
    if silent && gate.quarantine_on_silence_close && !strong {
        reasons.push(Reason::new("SILENCE_CLOSE", "the roast ended in silence, without a DROP"));
    }
    reasons
}

fn confidence(gate: &Gate, s: &SessionSignals) -> Confidence {
    let points = s.telemetry_points.unwrap_or(0);
    let seconds = s.duration_sec.unwrap_or(0.0);
    let (bt, et) = (s.has_bt == Some(true), s.has_et == Some(true));
    if points >= SURE_POINTS && seconds >= SURE_SECONDS && bt {
        Confidence::High
    } else if points >= gate.min_telemetry_points && seconds >= gate.min_duration_sec && (bt || et)
    {
        Confidence::Med
    } else {
        Confidence::Low
    }
}

/// The bucket a mission takes its token from: one machine's, for one goal.
#[must_use]
pub fn bucket(mission: &NewMission, org: &str) -> String {
    let part = |name: &str| mission.context.get(name).and_then(serde_json::Value::as_str);
    format!(
        "{org}/{}/{}|{}",
        part("siteId").unwrap_or("unknown-site"),
        part("machineId").unwrap_or("unknown-machine"),
        mission.goal.title
    )
}

/// The decision of an empty bucket.
#[must_use]
pub fn rate_limited(goal: &str, bucket: &str, next: EpochMs, now: EpochMs) -> GovernanceDecision {
    let reason =
        Reason::new("RATE_LIMITED", format!("too many missions of {goal}; next at {next}"))
            .with("scopeKey", bucket)
            .with("goal", goal)
            .with("nextRetryAt", next.to_string());
    GovernanceDecision {
        action: Action::RetryLater,
        confidence: Confidence::Med,
        reasons: vec![reason],
        decided_at: now,
        decided_by: Decider::Governor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: EpochMs = EpochMs(1_760_000_000_000);

    fn decided(body: &str) -> GovernanceDecision {
        let mission: NewMission = serde_json::from_str(body).unwrap();
        decide(&GovernorConfig::default(), &mission, NOW)
    }

    fn codes(decision: &GovernanceDecision) -> Vec<&str> {
        decision.reasons.iter().map(|reason| reason.code.as_str()).collect()
    }

    #[test]
    fn each_rule_of_the_gate_says_why() {
        let of = |signals: &str| {
            decided(&format!(
                r#"{{"goal":"generate-roast-report","signals":{{"session":{signals}}}}}"#
            ))
        };
        assert_eq!(codes(&decided(r#"{"goal":"sing"}"#)), ["GOAL_NOT_ALLOWED"]);
        let nothing = decided(r#"{"goal":"generate-roast-report"}"#);
        assert_eq!(codes(&nothing), ["MISSING_SIGNALS", "NO_TEMP_CHANNELS"]);
        assert_eq!(nothing.action, Action::Quarantine);
        let short = of(r#"{"telemetryPoints":59,"durationSec":89.9,"hasBT":true}"#);
        assert_eq!(codes(&short), ["LOW_TELEMETRY_POINTS", "SHORT_SESSION"]);
        let silent = of(
            r#"{"telemetryPoints":119,"durationSec":200,"hasBT":true,"closeReason":"SILENCE_CLOSE"}"#,
        );
        assert_eq!(codes(&silent), ["SILENCE_CLOSE"]);
        let strong = of(
            r#"{"telemetryPoints":120,"durationSec":180,"hasBT":true,"closeReason":"SILENCE_CLOSE"}"#,
        );
        assert_eq!((strong.action, strong.confidence), (Action::Allow, Confidence::Med));
        let sure = of(r#"{"telemetryPoints":300,"durationSec":360,"hasBT":true}"#);
        assert_eq!((sure.action, sure.confidence), (Action::Allow, Confidence::High));
    }

    #[test]
    fn a_policy_without_a_part_has_that_part_s_default() {
        let config: GovernorConfig =
            serde_json::from_str(r#"{"commandAutonomy":{"autonomyLevel":"L2"}}"#).unwrap();
        assert_eq!(config.policy.allowed_goals, [REPORT_GOAL]);
        assert_eq!(config.gates[REPORT_GOAL].min_telemetry_points, 60);
        assert!(config.command_autonomy.require_approval_for_all);
        let wrong: GovernorConfig = serde_json::from_str(
            r#"{"rateLimits":{"x":{"capacity":0,"refillPerSec":1}},
                "commandAutonomy":{"commandFailureThreshold":1.5}}"#,
        )
        .unwrap();
        assert_eq!(wrong.problems().len(), 2);
    }
}
