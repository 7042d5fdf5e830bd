//! A mission worker: claims missions, works on them, renews their leases, and reports trace and
//! result.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::mission::MissionRecord;
use contract::{EpochMs, OrgId};
use serde::Serialize;
use serde_json::{Value, json};
use service::clock::Clock;
use service::tasks;
use service_client::ServiceClient;
use tokio_util::sync::CancellationToken;

use crate::error::WorkError;
use crate::tools::MissionTools;

/// The result of a mission, as the kernel stores it.
pub enum Outcome {
    Done(Value),
    /// An earlier attempt had already done it.
    AlreadyDone(Value),
}

/// The future of one mission's work.
pub type JobFuture<'d> = Pin<Box<dyn Future<Output = Result<Outcome, WorkError>> + Send + 'd>>;

/// The work that a worker does.
pub trait Job: Send + Sync + 'static {
    /// Returns the goal; the worker claims missions of this goal alone.
    fn goal(&self) -> &'static str;
    /// Returns the name under which the worker claims, and the name of its agent.
    fn names(&self) -> (&'static str, &'static str);
    /// Works on one mission. May be called again for a mission that was done before.
    fn run<'r>(
        &'r self,
        tools: &'r mut MissionTools<'_>,
        mission: &'r MissionRecord,
    ) -> JobFuture<'r>;
}

/// Returns the id of the trace of an attempt at a mission. Each attempt has its own.
#[must_use]
pub fn trace_id(mission: &MissionRecord) -> String {
    let lease = mission.lease_id.as_deref().unwrap_or("0");
    format!("T-{}-{}-{lease}", mission.mission_id, mission.attempts)
}

/// A worker's intervals and time limit.
#[derive(Debug, Clone, Copy)]
pub struct WorkerTimings {
    /// The mean interval between claims while there are no missions.
    pub poll: Duration,
    /// The time limit of one mission, ms.
    pub mission_ms: u32,
    pub heartbeat: Duration,
}

/// Statistics of what the workers have done so far.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStats {
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

/// Adds one to a counter.
const fn increment(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

/// The statistics, shared by the workers of this process.
#[derive(Clone, Default)]
pub struct SharedStats(Arc<Mutex<WorkerStats>>);

impl SharedStats {
    #[must_use]
    pub fn snapshot(&self) -> WorkerStats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, change: impl FnOnce(&mut WorkerStats)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Claims missions of one goal and works on them.
pub struct Worker<J> {
    pub job: J,
    pub kernel: ServiceClient,
    pub clock: Clock,
    pub status: SharedStats,
    pub pace: WorkerTimings,
}

impl<J: Job> Worker<J> {
    /// Works until `stop`. A mission that is already claimed is finished.
    pub async fn run(&self, stop: CancellationToken) {
        let mut failure_logged = false;
        while !stop.is_cancelled() {
            let claim = json!({"agentName": self.job.names().0, "goals": [self.job.goal()]});
            let path = ["missions", "claim"];
            let claimed = self.kernel.post::<_, MissionRecord>(None, &path, &claim).await;
            match claimed {
                Ok(Some(answer)) => {
                    failure_logged = false;
                    self.work(answer.body).await;
                    continue; // there may be more missions
                }
                Ok(None) => failure_logged = false,
                Err(error) if failure_logged => tracing::debug!(%error, "could not claim"),
                Err(error) => {
                    tracing::warn!(%error, goal = self.job.goal(), "could not claim; trying again");
                    failure_logged = true;
                }
            }
            // Jitter, so that workers that started together do not claim together.
            let most = u64::try_from(self.pace.poll.as_millis()).unwrap_or(u64::MAX);
            let spread = trust::jitter().checked_rem(most).unwrap_or(0);
            let half = self.pace.poll.checked_div(2).unwrap_or_default();
            let wait = half.saturating_add(Duration::from_millis(spread));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn work(&self, mission: MissionRecord) {
        let begun = (self.clock)();
        self.status.update(|done| {
            done.last_run_at = Some(begun);
            done.running = true;
        });
        let org = mission.context.get("orgId").and_then(Value::as_str);
        if let Some(org) = org.and_then(|org| OrgId::new(org).ok()) {
            self.work_for(&org, &mission, begun).await;
        } else {
            tracing::error!(mission = mission.id, "a mission has no organisation");
            let error = WorkError::Permanent("the mission has no organisation".to_owned());
            self.report_result(None, &mission, Err(error)).await;
        }
        self.status.update(|done| done.running = false);
    }

    async fn work_for(&self, org: &OrgId, mission: &MissionRecord, begun: EpochMs) {
        let agent = self.job.names().1;
        let id = &mission.mission_id;
        let mut tools = MissionTools::new(&self.kernel, agent, &self.clock, org.clone(), id);
        let limit = Duration::from_millis(self.pace.mission_ms.into());
        let work = tasks::isolate("mission", self.job.run(&mut tools, mission));
        let result = tokio::select! {
            done = tokio::time::timeout(limit, work) => match done {
                Ok(Ok(result)) => result,
                Ok(Err(panicked)) => Err(WorkError::from(panicked)),
                Err(_) => Err(WorkError::Timeout(self.pace.mission_ms / 1000)),
            },
            lost = self.renew_lease(org, mission) => Err(lost),
        };
        let calls = std::mem::take(&mut tools.calls);
        self.store_trace(org, mission, begun, calls, &result).await;
        self.report_result(Some(org), mission, result).await;
    }

    /// Renews the lease until it is lost, then returns that error.
    async fn renew_lease(&self, org: &OrgId, mission: &MissionRecord) -> WorkError {
        let body = json!({"leaseId": mission.lease_id, "agentName": self.job.names().0});
        let path = ["missions", mission.mission_id.as_str(), "heartbeat"];
        loop {
            tokio::time::sleep(self.pace.heartbeat).await;
            match self.kernel.post::<_, Value>(Some(org), &path, &body).await {
                Ok(_) => {}
                Err(error) if error.is_transient() => {
                    self.status.update(|done| increment(&mut done.metrics.heartbeat_failures));
                    tracing::debug!(%error, "could not renew a lease; trying again");
                }
                Err(error) => {
                    self.status.update(|done| increment(&mut done.metrics.heartbeat_failures));
                    tracing::warn!(%error, mission = mission.mission_id, "the lease is lost");
                    return WorkError::LeaseLost;
                }
            }
        }
    }

    /// Reports a result to the kernel. Without an organisation, the kernel takes that of the worker.
    async fn report_result(
        &self,
        org: Option<&OrgId>,
        mission: &MissionRecord,
        result: Result<Outcome, WorkError>,
    ) {
        let id = mission.mission_id.as_str();
        let (step, body) = match &result {
            Ok(Outcome::Done(summary) | Outcome::AlreadyDone(summary)) => {
                ("complete", json!({"leaseId": mission.lease_id, "summary": summary}))
            }
            Err(WorkError::LeaseLost) => ("", Value::Null),
            Err(error) => (
                "fail",
                json!({"leaseId": mission.lease_id, "error": error.to_string(),
                       "retryable": error.is_retryable()}),
            ),
        };
        self.status.update(|done| {
            let counters = &mut done.metrics;
            increment(&mut done.processed_count);
            match &result {
                Ok(Outcome::Done(_)) => increment(&mut counters.successes),
                Ok(Outcome::AlreadyDone(_)) => increment(&mut counters.already_exists),
                Err(error) => {
                    increment(&mut counters.failures);
                    if error.is_retryable() {
                        increment(&mut counters.retryable_failures);
                    }
                    if matches!(error, WorkError::Timeout(_)) {
                        increment(&mut counters.timeouts);
                    }
                    done.last_error = Some(error.to_string());
                }
            }
        });
        let word = if result.is_ok() { "done" } else { "failed" };
        metrics::counter!("simcorp_missions_worked_total", "goal" => self.job.goal(),
            "result" => word)
        .increment(1);
        if let Err(error) = &result {
            tracing::warn!(%error, mission = id, goal = self.job.goal(), "an attempt failed");
        }
        if step.is_empty() {
            return;
        }
        // If the kernel does not receive it, the lease expires and the next attempt finds what was
        // done.
        let path = ["missions", id, step];
        if let Err(error) = self.kernel.post::<_, Value>(org, &path, &body).await {
            tracing::warn!(%error, mission = id, step, "could not report a mission's result");
        }
    }

    async fn store_trace(
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
            tracing::warn!(%error, mission = id, "could not store a trace");
        }
    }
}
