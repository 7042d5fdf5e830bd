//! The circuit breaker at work: looks at every organisation of which something was counted, and acts.

use std::time::Duration;

use contract::{Actor, ActorKind, EpochMs, OrgId};
use store::StoreError;
use tokio_util::sync::CancellationToken;

use super::breaker::{BreakerAction, BreakerEvent, Condition, Rule};
use super::{Phase, State};
use crate::Clock;
use crate::governor::AutonomyLevel;
use crate::store::{KernelStore, Kind, Record, RecordFilter};

const LOOK_EVERY: Duration = Duration::from_mins(1);
/// The longest window; nothing older can make a rule hold.
const LOOK_BACK_MS: i64 = 90 * 86_400_000;

fn breaker() -> Actor {
    Actor {
        kind: ActorKind::System,
        id: "circuit-breaker".to_owned(),
        display: Some("Circuit breaker".to_owned()),
        org: None,
    }
}

/// Looks until `stop`. Of several instances that find the same, one acts.
pub async fn watch(store: KernelStore, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = clock();
        let orgs = match store.active_orgs(now.plus(-LOOK_BACK_MS)).await {
            Ok(orgs) => orgs,
            Err(error) => {
                tracing::warn!(%error, "the circuit breaker could not look; it looks again");
                continue;
            }
        };
        for org in orgs {
            if let Err(error) = look(&store, &org, now).await {
                tracing::warn!(%error, %org, "the circuit breaker could not look; it looks again");
            }
        }
    }
}

/// Looks at one organisation; answers what has been triggered.
///
/// # Errors
/// When the database does not answer.
pub async fn look(
    store: &KernelStore,
    org: &OrgId,
    now: EpochMs,
) -> Result<Vec<BreakerEvent>, StoreError> {
    // What an event asked for may have been broken off half way: it is asked for until somebody has
    // resolved it.
    let filter = RecordFilter { status: Some("open"), limit: 100, id: None };
    let open: Vec<BreakerEvent> = store.records(org, Kind::Event, filter).await?;
    for event in &open {
        act(store, org, event, now).await?;
    }
    let filter = RecordFilter { status: Some("resolved"), limit: 100, id: None };
    let resolved: Vec<BreakerEvent> = store.records(org, Kind::Event, filter).await?;
    let mut triggered = Vec::new();
    for rule in store.breaker_rules(org).await?.into_iter().filter(|rule| rule.enabled) {
        // A rule is checked before it is kept.
        let (Ok(window_ms), Ok(condition)) = (rule.window_ms(), Condition::parse(&rule.condition))
        else {
            tracing::error!(rule = rule.name, "a rule that can never hold");
            continue;
        };
        // What a person has seen to does not count again; facts are counted by the minute.
        let seen_to = resolved.iter().filter(|event| event.rule.name == rule.name);
        let seen_to = seen_to.filter_map(|event| event.resolved_at).max();
        let from = now.plus(-window_ms).max(seen_to.map_or(EpochMs(0), |at| at.plus(60_000)));
        let metrics = store.autonomy(org, (from, now)).await?;
        if !condition.holds(&metrics) {
            continue;
        }
        let id = trust::random_id().map_err(|e| StoreError::row("naming an event", e))?;
        let event = BreakerEvent {
            id,
            timestamp: now,
            action: rule.action,
            details: format!("{} over {}: {}", rule.condition, rule.window, told(rule.action)),
            rule,
            metrics,
            resolved: false,
            resolved_at: None,
        };
        // While its last event is open a rule has said what it has to say.
        let record = Record {
            kind: Kind::Event,
            id: &event.id,
            at: now,
            status: "open",
            once: Some(&event.rule.name),
            body: &event,
        };
        if store.keep_record(org, &record).await? {
            act(store, org, &event, now).await?;
            metrics::counter!("simcorp_governance_circuit_breaker_events_total",
                "rule_name" => event.rule.name.clone(), "action" => word(event.action),
                "alert_severity" => event.rule.alert_severity.as_str())
            .increment(1);
            tracing::error!(%org, rule = event.rule.name, details = event.details,
                "the circuit breaker has acted");
            triggered.push(event);
        }
    }
    Ok(triggered)
}

const fn word(action: BreakerAction) -> &'static str {
    match action {
        BreakerAction::RevertToL3 => "revert_to_l3",
        BreakerAction::PauseCommandType => "pause_command_type",
        BreakerAction::AlertOnly => "alert_only",
    }
}

const fn told(action: BreakerAction) -> &'static str {
    match action {
        BreakerAction::RevertToL3 => "back to L3",
        BreakerAction::PauseCommandType => "commands are paused until this is resolved",
        BreakerAction::AlertOnly => "somebody should look",
    }
}

async fn act(
    store: &KernelStore,
    org: &OrgId,
    event: &BreakerEvent,
    now: EpochMs,
) -> Result<(), StoreError> {
    let actor = breaker();
    let Rule { action, .. } = event.rule;
    match action {
        // Commands are paused while such an event is open: whoever decides about one looks.
        BreakerAction::AlertOnly | BreakerAction::PauseCommandType => {}
        BreakerAction::RevertToL3 => {
            let revert = |state: &mut State| {
                if state.since < event.timestamp || state.phase > Phase::L3 {
                    state.phase = Phase::L3;
                    state.since = event.timestamp.max(state.since);
                    state.known.whitelist.clear();
                }
            };
            store.change_autonomy(org, &actor, ("breaker.revert", now), revert).await?;
            store.drop_proposals(org).await?;
            // The policy that decides about commands follows.
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
