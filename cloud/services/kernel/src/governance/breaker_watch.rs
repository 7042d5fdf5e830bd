//! The circuit breaker's loop: evaluates the rules of every organisation with counted facts, and
//! acts.

use std::time::Duration;

use contract::{Actor, ActorKind, EpochMs, OrgId};
use database::StoreError;
use service::tasks;
use tokio_util::sync::CancellationToken;

use super::breaker::{BreakerAction, BreakerEvent, Condition, Rule};
use super::{AutonomyState, Phase};
use crate::governor::AutonomyLevel;
use crate::store::{GovernanceRecord, KernelStore, RecordFilter, RecordKind};
use service::clock::Clock;

const EVALUATE_INTERVAL: Duration = Duration::from_mins(1);
/// The longest window, ms; older facts cannot make a rule hold.
const LOOK_BACK_MS: i64 = 90 * 86_400_000;

fn breaker() -> Actor {
    Actor {
        kind: ActorKind::System,
        id: "circuit-breaker".to_owned(),
        display: Some("Circuit breaker".to_owned()),
        org: None,
    }
}

/// Evaluates all rules every minute until `stop`. If several instances find the same, one acts.
pub async fn watch(store: KernelStore, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVALUATE_INTERVAL) => {}
        }
        let now = clock();
        let orgs = match store.active_orgs(now.plus_ms(-LOOK_BACK_MS)).await {
            Ok(orgs) => orgs,
            Err(error) => {
                tracing::warn!(%error, "could not evaluate the circuit breaker; retrying");
                continue;
            }
        };
        for org in orgs {
            match tasks::isolate("evaluate-breaker", evaluate(&store, &org, now)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, %org, "could not evaluate the circuit breaker; retrying");
                }
                Err(panicked) => {
                    tracing::error!(error = %panicked, %org, "skipped an organisation's rules");
                }
            }
        }
    }
}

/// Evaluates one organisation's rules. Returns the events that were triggered.
///
/// # Errors
/// When the database does not answer.
pub async fn evaluate(
    store: &KernelStore,
    org: &OrgId,
    now: EpochMs,
) -> Result<Vec<BreakerEvent>, StoreError> {
    // An event's action may have been interrupted half way, so it is repeated until a person has
    // resolved the event.
    let filter = RecordFilter { status: Some("open"), limit: 100, id: None };
    let open: Vec<BreakerEvent> = store.records(org, RecordKind::Event, filter).await?;
    for event in &open {
        apply_action(store, org, event, now).await?;
    }
    let filter = RecordFilter { status: Some("resolved"), limit: 100, id: None };
    let resolved: Vec<BreakerEvent> = store.records(org, RecordKind::Event, filter).await?;
    let mut triggered = Vec::new();
    for rule in store.breaker_rules(org).await?.into_iter().filter(|rule| rule.enabled) {
        // A rule is validated before it is stored.
        let (Ok(window_ms), Ok(condition)) = (rule.window_ms(), Condition::parse(&rule.condition))
        else {
            tracing::error!(rule = rule.name, "a rule is invalid and is skipped");
            continue;
        };
        // Facts until a person resolved the event do not count again; facts are counted by the
        // minute.
        let resolved_until = resolved.iter().filter(|event| event.rule.name == rule.name);
        let resolved_until = resolved_until.filter_map(|event| event.resolved_at).max();
        let from =
            now.minus_ms(window_ms).max(resolved_until.map_or(EpochMs(0), |at| at.plus_ms(60_000)));
        let metrics = store.autonomy_metrics(org, (from, now)).await?;
        if !condition.holds(&metrics) {
            continue;
        }
        let id = trust::random_id().map_err(|e| StoreError::row("naming an event", e))?;
        let event = BreakerEvent {
            id,
            timestamp: now,
            action: rule.action,
            details: format!(
                "{} over {}: {}",
                rule.condition,
                rule.window,
                action_text(rule.action)
            ),
            rule,
            metrics,
            resolved: false,
            resolved_at: None,
        };
        // A rule creates no new event while its last event is open.
        let record = GovernanceRecord {
            kind: RecordKind::Event,
            id: &event.id,
            at: now,
            status: "open",
            unique_key: Some(&event.rule.name),
            body: &event,
        };
        if store.insert_record(org, &record).await? {
            apply_action(store, org, &event, now).await?;
            metrics::counter!("simcorp_governance_circuit_breaker_events_total",
                "rule_name" => event.rule.name.clone(), "action" => action_label(event.action),
                "alert_severity" => event.rule.alert_severity.as_str())
            .increment(1);
            tracing::error!(%org, rule = event.rule.name, details = event.details,
                "the circuit breaker has acted");
            triggered.push(event);
        }
    }
    Ok(triggered)
}

const fn action_label(action: BreakerAction) -> &'static str {
    match action {
        BreakerAction::RevertToL3 => "revert_to_l3",
        BreakerAction::PauseCommandType => "pause_command_type",
        BreakerAction::AlertOnly => "alert_only",
    }
}

const fn action_text(action: BreakerAction) -> &'static str {
    match action {
        BreakerAction::RevertToL3 => "reverted to L3",
        BreakerAction::PauseCommandType => "commands are paused until this is resolved",
        BreakerAction::AlertOnly => "a person should check",
    }
}

async fn apply_action(
    store: &KernelStore,
    org: &OrgId,
    event: &BreakerEvent,
    now: EpochMs,
) -> Result<(), StoreError> {
    let actor = breaker();
    let Rule { action, .. } = event.rule;
    match action {
        // Commands are paused while such an event is open; each decision about a command checks
        // that.
        BreakerAction::AlertOnly | BreakerAction::PauseCommandType => {}
        BreakerAction::RevertToL3 => {
            let revert = |state: &mut AutonomyState| {
                if state.since < event.timestamp || state.phase > Phase::L3 {
                    state.phase = Phase::L3;
                    state.since = event.timestamp.max(state.since);
                    state.known.whitelist.clear();
                }
            };
            store.change_autonomy(org, &actor, ("breaker.revert", now), revert).await?;
            store.reject_pending_proposals(org).await?;
            // The policy, which decides about commands, follows the phase.
            loop {
                let before = store.governor_config(org).await?;
                if before.config.command_autonomy.autonomy_level <= AutonomyLevel::L3 {
                    break;
                }
                let mut config = before.config.clone();
                config.command_autonomy.autonomy_level = AutonomyLevel::L3;
                if store.set_governor_config(org, &before, config, &actor, now).await?.is_some() {
                    break;
                }
            }
        }
    }
    Ok(())
}
