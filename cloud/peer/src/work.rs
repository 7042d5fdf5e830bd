//! A worker of missions: claims, works, says that it lives, tells the trace, and says how it went.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::mission::MissionRecord;
use contract::{EpochMs, OrgId};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::tools::Tools;
use crate::{Peer, PeerError};

/// The wall clock, passed in so that tests can hold it.
pub type Clock = Arc<dyn Fn() -> EpochMs + Send + Sync>;

/// Why a mission was not done.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("the policy denies {0}")]
    Denied(&'static str),
    /// Another attempt would fail alike.
    #[error("{0}")]
    Impossible(String),
    /// Something of the worker's own is away: later may be better.
    #[error("{0}")]
    Away(String),
    #[error("not done within {0} s")]
    Timeout(u32),
    /// Another worker has it by now: nothing more is to be said.
    #[error("the lease is lost")]
    LeaseLost,
}

impl WorkError {
    /// True when another attempt may help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Peer(error) => error.is_transient(),
            Self::Timeout(_) | Self::Away(_) => true,
            Self::Denied(_) | Self::Impossible(_) | Self::LeaseLost => false,
        }
    }
}

/// How a mission went: what the kernel keeps of it.
pub enum Outcome {
    Done(Value),
    /// An earlier attempt had done it.
    Known(Value),
}

/// A mission in the making.
pub type Doing<'d> = Pin<Box<dyn Future<Output = Result<Outcome, WorkError>> + Send + 'd>>;

/// What a worker does.
pub trait Job: Send + Sync + 'static {
    /// The goal it claims.
    fn goal(&self) -> &'static str;
    /// Under which name it claims, and under which its agent is known.
    fn names(&self) -> (&'static str, &'static str);
    /// Does one mission. May be called again for one that was done before.
    fn run<'r>(&'r self, tools: &'r mut Tools<'_>, mission: &'r MissionRecord) -> Doing<'r>;
}

/// The trace of an attempt at a mission. Each attempt has its own, however often it is tried anew.
#[must_use]
pub fn trace_id(mission: &MissionRecord) -> String {
    let lease = mission.lease_id.as_deref().unwrap_or("0");
    format!("T-{}-{}-{lease}", mission.mission_id, mission.attempts)
}

/// How patient a worker is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often to ask for work when there was none.
    pub poll: Duration,
    /// One mission takes no longer, ms.
    pub mission_ms: u32,
    pub heartbeat: Duration,
}

/// What the workers have done so far.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    #[serde(skip_serializing_if = "Option::is_none")]
    last_run_at: Option<EpochMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    processed_count: u64,
    running: bool,
    metrics: Counters,
}

#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
struct Counters {
    successes: u64,
    failures: u64,
    retryable_failures: u64,
    already_exists: u64,
    timeouts: u64,
    heartbeat_failures: u64,
}

/// Shared by the workers of this process.
#[derive(Clone, Default)]
pub struct Status(Arc<Mutex<Done>>);

impl Status {
    #[must_use]
    pub fn now(&self) -> Done {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut Done)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Claims missions of one goal and does them.
pub struct Worker<J> {
    pub job: J,
    pub kernel: Peer,
    pub clock: Clock,
    pub status: Status,
    pub pace: Pace,
}

impl<J: Job> Worker<J> {
    /// Works until `stop`; a mission in hand is finished.
    pub async fn run(self, stop: CancellationToken) {
        let mut told = false;
        while !stop.is_cancelled() {
            let claim = json!({"agentName": self.job.names().0, "goals": [self.job.goal()]});
            let path = ["missions", "claim"];
            let claimed = self.kernel.post::<_, MissionRecord>(None, &path, &claim).await;
            match claimed {
                Ok(Some(answer)) => {
                    told = false;
                    self.work(answer.body).await;
                    continue; // there may be more
                }
                Ok(None) => told = false,
                Err(error) if told => tracing::debug!(%error, "no missions"),
                Err(error) => {
                    tracing::warn!(%error, goal = self.job.goal(), "no missions; trying again");
                    told = true;
                }
            }
            // Spread, so that workers that began together do not ask together.
            let spread = trust::spread();
            let most = u64::try_from(self.pace.poll.as_millis()).unwrap_or(u64::MAX).max(1);
            let wait = self.pace.poll / 2 + Duration::from_millis(spread % most);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn work(&self, mission: MissionRecord) {
        let begun = (self.clock)();
        self.status.note(|done| {
            done.last_run_at = Some(begun);
            done.running = true;
        });
        let org = mission.context.get("orgId").and_then(Value::as_str);
        let Some(org) = org.and_then(|org| OrgId::new(org).ok()) else {
            tracing::error!(mission = mission.id, "a mission of no organisation");
            return;
        };
        let agent = self.job.names().1;
        let id = &mission.mission_id;
        let mut tools = Tools::new(&self.kernel, agent, &self.clock, org.clone(), id);
        let limit = Duration::from_millis(self.pace.mission_ms.into());
        let result = tokio::select! {
            done = tokio::time::timeout(limit, self.job.run(&mut tools, &mission)) => {
                done.unwrap_or(Err(WorkError::Timeout(self.pace.mission_ms / 1000)))
            }
            lost = self.beat(&org, &mission) => Err(lost),
        };
        let calls = std::mem::take(&mut tools.calls);
        self.tell_trace(&org, &mission, begun, calls, &result).await;
        self.settle(&org, &mission, result).await;
        self.status.note(|done| done.running = false);
    }

    /// Says that the worker lives until the lease is lost; then answers so.
    async fn beat(&self, org: &OrgId, mission: &MissionRecord) -> WorkError {
        let body = json!({"leaseId": mission.lease_id, "agentName": self.job.names().0});
        let path = ["missions", mission.mission_id.as_str(), "heartbeat"];
        loop {
            tokio::time::sleep(self.pace.heartbeat).await;
            match self.kernel.post::<_, Value>(Some(org), &path, &body).await {
                Ok(_) => {}
                Err(error) if error.is_transient() => {
                    self.status.note(|done| done.metrics.heartbeat_failures += 1);
                    tracing::debug!(%error, "could not say that the worker lives");
                }
                Err(error) => {
                    self.status.note(|done| done.metrics.heartbeat_failures += 1);
                    tracing::warn!(%error, mission = mission.mission_id, "the mission is lost");
                    return WorkError::LeaseLost;
                }
            }
        }
    }

    async fn settle(
        &self,
        org: &OrgId,
        mission: &MissionRecord,
        result: Result<Outcome, WorkError>,
    ) {
        let id = mission.mission_id.as_str();
        let (step, body) = match &result {
            Ok(Outcome::Done(summary) | Outcome::Known(summary)) => {
                ("complete", json!({"leaseId": mission.lease_id, "summary": summary}))
            }
            Err(WorkError::LeaseLost) => ("", Value::Null),
            Err(error) => (
                "fail",
                json!({"leaseId": mission.lease_id, "error": error.to_string(),
                       "retryable": error.is_retryable()}),
            ),
        };
        self.status.note(|done| {
            let counters = &mut done.metrics;
            done.processed_count += 1;
            match &result {
                Ok(Outcome::Done(_)) => counters.successes += 1,
                Ok(Outcome::Known(_)) => counters.already_exists += 1,
                Err(error) => {
                    counters.failures += 1;
                    counters.retryable_failures += u64::from(error.is_retryable());
                    counters.timeouts += u64::from(matches!(error, WorkError::Timeout(_)));
                    done.last_error = Some(error.to_string());
                }
            }
        });
        let word = if result.is_ok() { "done" } else { "failed" };
        metrics::counter!("simcorp_missions_worked_total", "goal" => self.job.goal(),
            "result" => word)
        .increment(1);
        if let Err(error) = &result {
            tracing::warn!(%error, mission = id, goal = self.job.goal(), "a mission was not done");
        }
        if step.is_empty() {
            return;
        }
        // If the kernel does not hear it the lease ends, and the next attempt finds what was done.
        let path = ["missions", id, step];
        if let Err(error) = self.kernel.post::<_, Value>(Some(org), &path, &body).await {
            tracing::warn!(%error, mission = id, step, "the kernel did not hear how a mission went");
        }
    }

    async fn tell_trace(
        &self,
        org: &OrgId,
        mission: &MissionRecord,
        begun: EpochMs,
        calls: Vec<Value>,
        result: &Result<Outcome, WorkError>,
    ) {
        let now = (self.clock)();
        let (status, entry) = match result {
            Ok(_) => ("SUCCESS", "SUCCESS"),
            Err(WorkError::Timeout(_)) => ("TIMEOUT", "ERROR"),
            Err(WorkError::LeaseLost) => ("ABORTED", "CANCELLED"),
            Err(_) => ("ERROR", "ERROR"),
        };
        let id = &mission.mission_id;
        let trace_id = trace_id(mission);
        let mut trace = json!({
            "traceId": trace_id, "agentId": self.job.names().1, "missionId": id,
            "mission": mission, "status": status, "startedAt": begun, "completedAt": now,
            "entries": [{"missionId": id, "loopId": trace_id, "iteration": 1, "step": "ACT",
                         "status": entry, "startedAt": begun, "completedAt": now,
                         "toolCalls": calls}],
            "metadata": {"iterations": 1, "attempt": mission.attempts},
        });
        if let Err(error) = result {
            trace["error"] = json!({"message": error.to_string()});
        }
        if let Err(error) = self.kernel.post::<_, Value>(Some(org), &["traces"], &trace).await {
            tracing::warn!(%error, mission = id, "a trace was not kept");
        }
    }
}
