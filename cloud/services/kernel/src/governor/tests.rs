//! Tests the decisions of the governor.

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
fn each_rule_of_the_gate_gives_its_reason() {
    let of = |signals: &str| {
        decided(&format!(r#"{{"goal":"generate-roast-report","signals":{{"session":{signals}}}}}"#))
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
fn commands_are_allowed_by_autonomy_level_and_breaker_state() {
    use AutonomyLevel::{L1, L2, L3, L4, L5};
    let of = |level, proposed_by, failure_rate, paused| {
        let autonomy = CommandAutonomy {
            autonomy_level: level,
            max_commands_per_session: Some(5),
            ..CommandAutonomy::default()
        };
        let command_type = "SET_POWER".to_owned();
        let command = CommandRequest { command_type, proposed_by, commands_in_session: 2 };
        let facts = CommandFacts { failure_rate, paused, whitelisted: true };
        let decision = decide_command(&autonomy, &command, &facts, NOW);
        (decision.action, decision.reasons[0].code.clone())
    };
    let (agent, person) = (ActorKind::Agent, ActorKind::User);
    let block = |code: &str| (Action::Block, code.to_owned());
    let allow = |code: &str| (Action::Allow, code.to_owned());
    assert_eq!(of(L1, person, 0.0, false), block("AUTONOMY_LEVEL_TOO_LOW"));
    assert_eq!(of(L2, agent, 0.0, false), block("AGENT_COMMANDS_NOT_ALLOWED"));
    assert_eq!(of(L2, person, 0.0, false), allow("MANUAL_COMMAND_ALLOWED"));
    assert_eq!(of(L3, agent, 0.0, false), allow("APPROVAL_REQUIRED"));
    assert_eq!(of(L4, agent, 0.31, false), block("HIGH_FAILURE_RATE"));
    assert_eq!(of(L5, person, 0.0, true), block("COMMANDS_PAUSED"));
    assert_eq!(of(L5, agent, 0.3, false), allow("HIGH_AUTONOMY_LEVEL"));
}

#[test]
fn a_missing_part_of_a_policy_has_its_default() {
    let config: GovernorConfig =
        serde_json::from_str(r#"{"commandAutonomy":{"autonomyLevel":"L2"}}"#).unwrap();
    assert_eq!(config.policy.allowed_goals, [REPORT_GOAL, EVAL_GOAL]);
    assert_eq!(config.gates[REPORT_GOAL].min_telemetry_points, 60);
    assert!(config.command_autonomy.require_approval_for_all);
    let wrong: GovernorConfig = serde_json::from_str(
        r#"{"rateLimits":{"x":{"capacity":0,"refillPerSec":1}},
            "commandAutonomy":{"commandFailureThreshold":1.5}}"#,
    )
    .unwrap();
    assert_eq!(wrong.problems().len(), 2);
}
