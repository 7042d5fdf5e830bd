//! Eval's word about roasts, where the policy wants it before a mission runs.

use std::time::Duration;

use contract::mission::{Action, Confidence, Decider, GovernanceDecision, MissionRecord, Reason};
use contract::{EpochMs, OrgId};
use peer::Peer;
use serde_json::Value;
use store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::Clock;
use crate::governor::{NOT_EVALUATED, NOT_PROMOTED};
use crate::store::KernelStore;

const LOOK_EVERY: Duration = Duration::from_secs(5);
const A_LOOK: i64 = 20;
/// A roast about which eval has said nothing by then waits for a person, ms.
const PATIENCE_MS: i64 = 86_400_000;

/// What eval has against a roast; `None`: nothing.
pub async fn against(eval: &Peer, org: &OrgId, session: &str) -> Option<Reason> {
    if session.is_empty() {
        let message = "the mission names no roast to be promoted";
        return Some(Reason::new(NOT_PROMOTED, message));
    }
    let path = ["evaluations", "promotion", session];
    match eval.get::<Value>(org, &path, &[]).await {
        Ok(Some(told)) if told["allowed"] == true => None,
        Ok(told) => {
            let reason = told.as_ref().and_then(|told| told["reason"].as_str());
            let evaluated = told.as_ref().is_some_and(|told| told["evaluated"] == true);
            let code = if evaluated { NOT_PROMOTED } else { NOT_EVALUATED };
            Some(Reason::new(code, reason.unwrap_or("eval does not allow it")))
        }
        Err(error) => Some(Reason::new(NOT_EVALUATED, format!("eval cannot tell: {error}"))),
    }
}

/// Asks about missions that wait for eval, until `stop`. Any number of instances may.
pub async fn ask(store: KernelStore, eval: Peer, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = clock();
        let waiting = match store.waiting_for_eval(now, A_LOOK).await {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::warn!(%error, "missions wait for eval unasked; the next look asks");
                continue;
            }
        };
        for (org, mission) in waiting {
            if let Err(error) = one(&store, &eval, (&org, &mission), now).await {
                tracing::warn!(%error, mission = mission.id, "eval's word was not noted");
            }
        }
    }
}

async fn one(
    store: &KernelStore,
    eval: &Peer,
    (org, mission): (&OrgId, &MissionRecord),
    now: EpochMs,
) -> Result<(), StoreError> {
    let named = mission.params.get("sessionId").and_then(Value::as_str);
    let session = named.or(mission.subject_id.as_deref()).unwrap_or_default();
    let against = against(eval, org, session).await;
    let late = now.since(mission.created_at) > PATIENCE_MS;
    if against.as_ref().is_some_and(|reason| reason.code == NOT_EVALUATED) && !late {
        return Ok(()); // asked again
    }
    let decision = GovernanceDecision {
        action: if against.is_none() { Action::Allow } else { Action::Quarantine },
        confidence: if against.is_none() { Confidence::Med } else { Confidence::Low },
        reasons: against.into_iter().collect(),
        decided_at: now,
        decided_by: Decider::Governor,
    };
    store.eval_has_spoken(org, &mission.mission_id, &decision, now).await
}
