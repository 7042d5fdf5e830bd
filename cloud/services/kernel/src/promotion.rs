//! Eval's promotion decisions about roasts, for policies that require one before a mission runs.

use std::time::Duration;

use contract::mission::{Action, Confidence, MissionRecord, Reason};
use contract::{EpochMs, OrgId};
use database::StoreError;
use serde_json::Value;
use service::tasks;
use service_client::ServiceClient;
use tokio_util::sync::CancellationToken;

use crate::governor::{NOT_EVALUATED, NOT_PROMOTED, governor_decision};
use crate::store::KernelStore;
use service::clock::Clock;

const POLL_INTERVAL: Duration = Duration::from_secs(5);
const BATCH_MAX: i64 = 20;
/// A mission whose roast eval has not evaluated by then waits for a person's approval, ms.
const EVAL_TIMEOUT_MS: i64 = 86_400_000;

/// Returns why eval does not allow a roast to be promoted; `None` if it does.
pub async fn promotion_blocker(eval: &ServiceClient, org: &OrgId, session: &str) -> Option<Reason> {
    if session.is_empty() {
        let message = "the mission names no roast that could be promoted";
        return Some(Reason::new(NOT_PROMOTED, message));
    }
    let path = ["evaluations", "promotion", session];
    match eval.get::<Value>(org, &path, &[]).await {
        Ok(Some(response)) if response["allowed"] == true => None,
        Ok(response) => {
            let reason = response.as_ref().and_then(|response| response["reason"].as_str());
            let evaluated = response.as_ref().is_some_and(|response| response["evaluated"] == true);
            let code = if evaluated { NOT_PROMOTED } else { NOT_EVALUATED };
            Some(Reason::new(code, reason.unwrap_or("eval does not allow the promotion")))
        }
        Err(error) => Some(Reason::new(NOT_EVALUATED, format!("no decision from eval: {error}"))),
    }
}

/// Queries eval about the missions that wait for it, until `stop`. Any number of instances may run
/// this.
pub async fn poll_eval(
    store: KernelStore,
    eval: ServiceClient,
    clock: Clock,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let now = clock();
        let waiting = match store.waiting_for_eval(now, BATCH_MAX).await {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::warn!(%error, "could not list missions that wait for eval; trying again");
                continue;
            }
        };
        for (org, mission) in waiting {
            let settled = settle_mission(&store, &eval, (&org, &mission), now);
            match tasks::isolate("settle-mission", settled).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, mission = mission.id, "could not store eval's decision");
                }
                Err(panicked) => {
                    tracing::error!(error = %panicked, mission = mission.id, "skipped a mission");
                }
            }
        }
    }
}

async fn settle_mission(
    store: &KernelStore,
    eval: &ServiceClient,
    (org, mission): (&OrgId, &MissionRecord),
    now: EpochMs,
) -> Result<(), StoreError> {
    let session_id = mission.params.get("sessionId").and_then(Value::as_str);
    let session = session_id.or(mission.subject_id.as_deref()).unwrap_or_default();
    let blocker = promotion_blocker(eval, org, session).await;
    let late = now.ms_since(mission.created_at) > EVAL_TIMEOUT_MS;
    if blocker.as_ref().is_some_and(|reason| reason.code == NOT_EVALUATED) && !late {
        return Ok(()); // the next pass asks again
    }
    let (action, confidence) = match blocker {
        None => (Action::Allow, Confidence::Med),
        Some(_) => (Action::Quarantine, Confidence::Low),
    };
    let decision = governor_decision(action, confidence, blocker.into_iter().collect(), now);
    store.record_eval_decision(org, &mission.mission_id, &decision, now).await
}
