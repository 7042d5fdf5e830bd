//! The governor's decision about a mission, made before a worker may claim it.
//!
//! Pure functions: policy and mission in, decision out. Rules and codes are upstream's.

use std::collections::BTreeMap;

use contract::mission::{
    Action, CloseReason, Confidence, Decider, EVAL_GOAL, GovernanceDecision, NewMission,
    REPORT_GOAL, Reason, SessionSignals,
};
use contract::{ActorKind, EpochMs};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// From these values on, a roast is long and dense enough for a high confidence.
const HIGH_CONFIDENCE_POINTS: u64 = 300;
const HIGH_CONFIDENCE_SECONDS: f64 = 360.0;
const GOALS_MAX: usize = 100;

/// An organisation's policy. Omitted parts have their defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GovernorConfig {
    /// By goal: how many missions one machine may request. All machines of the organisation together
    /// may request a hundred times as many.
    pub rate_limits: BTreeMap<String, RateLimit>,
    pub gates: BTreeMap<String, Gate>,
    pub command_autonomy: CommandAutonomy,
    pub policy: Policy,
}

/// All machines of an organisation together may request as many missions as this many machines.
const MACHINES_A_ORG: f64 = 100.0;

/// A token bucket; each mission takes one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    pub capacity: f64,
    pub refill_per_sec: f64,
}

/// The minimum data that a roast needs for a report without a person's approval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[allow(clippy::struct_excessive_bools)] // upstream's switches, by its names
pub struct Gate {
    pub min_telemetry_points: u64,
    pub min_duration_sec: f64,
    #[serde(rename = "requireBTorET")]
    pub require_bt_or_et: bool,
    pub quarantine_on_missing_signals: bool,
    pub quarantine_on_silence_close: bool,
    /// Accept only roasts that eval allows to be promoted.
    pub require_promotion: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            min_telemetry_points: 60,
            min_duration_sec: 90.0,
            require_bt_or_et: true,
            quarantine_on_missing_signals: true,
            quarantine_on_silence_close: true,
            require_promotion: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum AutonomyLevel {
    /// Neither agents nor people may propose commands.
    L1,
    /// Only people may propose commands.
    L2,
    /// Agents may propose commands; people approve them.
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
        Self { allowed_goals: [REPORT_GOAL, EVAL_GOAL].map(str::to_owned).to_vec() }
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
    /// Returns the policy's invalid values, each as (field, problem).
    #[must_use]
    pub fn problems(&self) -> Vec<(String, &'static str)> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, field: String, problem| {
            if !holds {
                problems.push((field, problem));
            }
        };
        for (goal, limit) in &self.rate_limits {
            let finite = limit.capacity.is_finite() && limit.refill_per_sec.is_finite();
            require(
                finite && limit.capacity > 0.0 && limit.refill_per_sec >= 0.0,
                format!("rateLimits.{goal}"),
                "capacity must be above 0 and refillPerSec at least 0",
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
        problems
    }
}

/// Returns a decision that the governor makes, not a person.
pub(crate) fn governor_decision(
    action: Action,
    confidence: Confidence,
    reasons: Vec<Reason>,
    now: EpochMs,
) -> GovernanceDecision {
    GovernanceDecision {
        action,
        confidence,
        reasons,
        decided_at: now,
        decided_by: Decider::Governor,
    }
}

/// Decides by policy and gate. The rate limit is checked afterwards, because its check takes a
/// token.
#[must_use]
pub fn decide(config: &GovernorConfig, mission: &NewMission, now: EpochMs) -> GovernanceDecision {
    let goal = mission.goal.title.as_str();
    let decided = |action, confidence, reasons| governor_decision(action, confidence, reasons, now);
    if !config.policy.allowed_goals.iter().any(|allowed| allowed == goal) {
        let reason = Reason::new("GOAL_NOT_ALLOWED", format!("the policy does not allow {goal}"));
        return decided(Action::Block, Confidence::Low, vec![reason.with("goal", goal)]);
    }
    if goal != REPORT_GOAL {
        return decided(Action::Allow, Confidence::Med, Vec::new());
    }
    let gate = config.gates.get(goal).copied().unwrap_or_default();
    let signals = mission.signals.clone().unwrap_or_default().session;
    let reasons = gate_violations(&gate, &signals);
    if !reasons.is_empty() {
        return decided(Action::Quarantine, Confidence::Low, reasons);
    }
    decided(Action::Allow, confidence(&gate, &signals), Vec::new())
}

/// Returns the session id of the mission's roast if the policy requires eval's promotion decision
/// before the mission may run; an empty string if the mission names no roast.
#[must_use]
pub fn session_requiring_promotion<'m>(
    config: &GovernorConfig,
    mission: &'m NewMission,
) -> Option<&'m str> {
    let gate = config.gates.get(&mission.goal.title)?;
    if !gate.require_promotion {
        return None;
    }
    let session_id = mission.params.get("sessionId").and_then(serde_json::Value::as_str);
    Some(session_id.or(mission.subject_id.as_deref()).unwrap_or_default())
}

/// Applies eval's answer to `decision`. `blocker` is `None` if eval allows the roast's promotion.
#[must_use]
pub fn apply_promotion_blocker(
    mut decision: GovernanceDecision,
    blocker: Option<Reason>,
) -> GovernanceDecision {
    let Some(blocker) = blocker else { return decision };
    if decision.action == Action::Allow {
        decision.action = Action::Quarantine;
        decision.confidence = Confidence::Low;
    }
    decision.reasons.push(blocker);
    decision
}

/// Reason code: eval has not evaluated the roast yet.
pub const NOT_EVALUATED: &str = "NOT_EVALUATED";
/// Reason code: eval does not allow the roast to be promoted.
pub const NOT_PROMOTED: &str = "NOT_PROMOTED";

/// Returns whether only eval's evaluation is missing.
#[must_use]
pub fn waits_for_eval(decision: &GovernanceDecision) -> bool {
    !decision.reasons.is_empty()
        && decision.reasons.iter().all(|reason| reason.code == NOT_EVALUATED)
}

/// A command to be checked before it is proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandRequest {
    pub command_type: String,
    /// The kind of actor that proposes it.
    #[schema(value_type = String)]
    pub proposed_by: ActorKind,
    /// Number of commands in this roast so far.
    #[serde(default)]
    pub commands_in_session: u32,
}

/// The facts on which the decision about a command depends.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CommandFacts {
    /// 0 to 1, over the policy's window.
    pub failure_rate: f64,
    /// The circuit breaker has paused commands.
    pub paused: bool,
    /// The phase's whitelist has this command type, so that a high autonomy level counts for it.
    pub whitelisted: bool,
}

/// Decides about a command by the autonomy level and the facts.
///
/// Allowed means that the command may be proposed. A person must still approve it.
#[must_use]
pub fn decide_command(
    autonomy: &CommandAutonomy,
    command: &CommandRequest,
    facts: &CommandFacts,
    now: EpochMs,
) -> GovernanceDecision {
    let decided = |action, confidence, reasons| governor_decision(action, confidence, reasons, now);
    let block = |confidence, code, message: String| {
        decided(Action::Block, confidence, vec![Reason::new(code, message)])
    };
    let level = autonomy.autonomy_level;
    let agent = command.proposed_by == ActorKind::Agent;
    if level == AutonomyLevel::L1 {
        return block(
            Confidence::High,
            "AUTONOMY_LEVEL_TOO_LOW",
            "the policy allows no commands (L1)".to_owned(),
        );
    }
    if level == AutonomyLevel::L2 && agent {
        return block(
            Confidence::High,
            "AGENT_COMMANDS_NOT_ALLOWED",
            "the policy lets only people propose commands (L2)".to_owned(),
        );
    }
    if facts.paused {
        return block(
            Confidence::High,
            "COMMANDS_PAUSED",
            "the circuit breaker has paused commands; resolve its event first".to_owned(),
        );
    }
    if facts.failure_rate > autonomy.command_failure_threshold {
        let message = format!("{:.0} % of recent commands failed", facts.failure_rate * 100.0);
        return block(Confidence::High, "HIGH_FAILURE_RATE", message);
    }
    if autonomy.max_commands_per_session.is_some_and(|most| command.commands_in_session >= most) {
        let message = format!("{} commands in this roast", command.commands_in_session);
        return block(Confidence::Med, "SESSION_COMMAND_LIMIT", message);
    }
    // For agents, a level above L3 counts only for command types on the organisation's whitelist.
    let level = if agent && !facts.whitelisted { level.min(AutonomyLevel::L3) } else { level };
    let mut reasons = vec![match level {
        AutonomyLevel::L1 | AutonomyLevel::L2 => {
            Reason::new("MANUAL_COMMAND_ALLOWED", "a person proposes it")
        }
        AutonomyLevel::L3 => Reason::new("APPROVAL_REQUIRED", "a person must approve it"),
        AutonomyLevel::L4 | AutonomyLevel::L5 => {
            Reason::new("HIGH_AUTONOMY_LEVEL", "agents may propose more at this level")
        }
    }];
    if level != AutonomyLevel::L3 {
        reasons.push(Reason::new("APPROVAL_REQUIRED", "a person must approve it"));
    }
    decided(Action::Allow, Confidence::High, reasons)
}

fn gate_violations(gate: &Gate, s: &SessionSignals) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let nothing = s.telemetry_points.is_none()
        && s.duration_sec.is_none()
        && s.has_bt.is_none()
        && s.has_et.is_none()
        && s.close_reason.is_none();
    if gate.quarantine_on_missing_signals && nothing {
        reasons.push(Reason::new("MISSING_SIGNALS", "the mission has no signals about the roast"));
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
        reasons.push(Reason::new("SILENCE_CLOSE", "the roast ended by silence, without a DROP"));
    }
    reasons
}

fn confidence(gate: &Gate, s: &SessionSignals) -> Confidence {
    let points = s.telemetry_points.unwrap_or(0);
    let seconds = s.duration_sec.unwrap_or(0.0);
    let (bt, et) = (s.has_bt == Some(true), s.has_et == Some(true));
    if points >= HIGH_CONFIDENCE_POINTS && seconds >= HIGH_CONFIDENCE_SECONDS && bt {
        Confidence::High
    } else if points >= gate.min_telemetry_points && seconds >= gate.min_duration_sec && (bt || et)
    {
        Confidence::Med
    } else {
        Confidence::Low
    }
}

/// Returns the name of the bucket from which a mission takes its token: one per machine and goal.
#[must_use]
pub fn bucket_name(mission: &NewMission, org: &str) -> String {
    let part = |name: &str| mission.context.get(name).and_then(serde_json::Value::as_str);
    format!(
        "{org}/{}/{}|{}",
        part("siteId").unwrap_or("unknown-site"),
        part("machineId").unwrap_or("unknown-machine"),
        mission.goal.title
    )
}

/// Returns the name and the limit of the bucket from which all missions of an organisation and goal
/// take another token: the client names the machines, and may name ever new ones.
#[must_use]
pub fn org_bucket(goal: &str, org: &str, of_machine: &RateLimit) -> (String, RateLimit) {
    let limit = RateLimit {
        capacity: of_machine.capacity * MACHINES_A_ORG,
        refill_per_sec: of_machine.refill_per_sec * MACHINES_A_ORG,
    };
    (format!("{org}|{goal}"), limit)
}

/// Returns the decision for a mission that finds its bucket empty.
#[must_use]
pub fn rate_limited(goal: &str, bucket: &str, next: EpochMs, now: EpochMs) -> GovernanceDecision {
    let reason =
        Reason::new("RATE_LIMITED", format!("too many missions of {goal}; retry at {next}"))
            .with("scopeKey", bucket)
            .with("goal", goal)
            .with("nextRetryAt", next.to_string());
    governor_decision(Action::RetryLater, Confidence::Med, vec![reason], now)
}

#[cfg(test)]
mod tests;
