//! Claims, works, says that it lives, and says how it went.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::mission::{MissionRecord, POST_ROAST, REPORT_GOAL};
use contract::session::RoastSession;
use contract::written::{Author, EventOverride, NewReport, RoastReport, SessionMeta, SessionNote};
use contract::{EpochMs, OrgId};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::tools::{AGENT, Tools, WorkError};
use crate::{Clock, Peers, ReportsConfig, markdown};

/// The name under which missions are claimed, the reference's.
const CLAIMANT: &str = "report-agent";

/// What a report holds at most.
const NOTES_MAX: usize = 10;
const MOVES_MAX: usize = 1_000;

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
    pub fn now(&self) -> Done {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut Done)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// How a mission went.
enum Outcome {
    Written(String),
    /// An earlier attempt had written it.
    Known(String),
}

pub struct Worker {
    peers: Peers,
    clock: Clock,
    status: Status,
    poll: Duration,
    mission_ms: u32,
    heartbeat: Duration,
}

impl Worker {
    pub fn new(config: &ReportsConfig, peers: Peers, clock: Clock, status: Status) -> Self {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        Self {
            peers,
            clock,
            status,
            poll: ms(config.poll_ms),
            mission_ms: config.mission_ms,
            heartbeat: ms(config.heartbeat_ms),
        }
    }

    /// Works until `stop`; a mission in hand is finished.
    pub async fn run(self, stop: CancellationToken) {
        let mut told = false;
        while !stop.is_cancelled() {
            let claim = json!({"agentName": CLAIMANT, "goals": [REPORT_GOAL]});
            let path = ["missions", "claim"];
            let claimed = self.peers.kernel.post::<_, MissionRecord>(None, &path, &claim).await;
            match claimed {
                Ok(Some(answer)) => {
                    told = false;
                    self.work(answer.body).await;
                    continue; // there may be more
                }
                Ok(None) => told = false,
                Err(error) if told => tracing::debug!(%error, "no missions"),
                Err(error) => {
                    tracing::warn!(%error, "no missions; trying again");
                    told = true;
                }
            }
            // Spread, so that workers that began together do not ask together.
            let spread = trust::random::<8>().map_or(0, u64::from_le_bytes);
            let most = u64::try_from(self.poll.as_millis()).unwrap_or(u64::MAX).max(1);
            let wait = self.poll / 2 + Duration::from_millis(spread % most);
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
        let mut tools = Tools::new(&self.peers, &self.clock, org.clone(), &mission.mission_id);
        let limit = Duration::from_millis(self.mission_ms.into());
        let result = tokio::select! {
            done = tokio::time::timeout(limit, write(&mut tools, &mission)) => {
                done.unwrap_or(Err(WorkError::Timeout(self.mission_ms / 1000)))
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
        let body = json!({"leaseId": mission.lease_id, "agentName": CLAIMANT});
        let path = ["missions", mission.mission_id.as_str(), "heartbeat"];
        loop {
            tokio::time::sleep(self.heartbeat).await;
            match self.peers.kernel.post::<_, Value>(Some(org), &path, &body).await {
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
        let session = mission.params.get("sessionId");
        let (step, body) = match &result {
            Ok(Outcome::Written(report) | Outcome::Known(report)) => (
                "complete",
                json!({"leaseId": mission.lease_id,
                       "summary": {"reportId": report, "sessionId": session}}),
            ),
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
                Ok(Outcome::Written(_)) => counters.successes += 1,
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
        metrics::counter!("simcorp_reports_total", "result" => word).increment(1);
        if let Err(error) = &result {
            tracing::warn!(%error, mission = id, "a report was not written");
        }
        if step.is_empty() {
            return;
        }
        // If the kernel does not hear it the lease ends, and the next attempt finds the report.
        let path = ["missions", id, step];
        if let Err(error) = self.peers.kernel.post::<_, Value>(Some(org), &path, &body).await {
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
        let trace_id = format!("T-{id}-{}", mission.attempts);
        let mut trace = json!({
            "traceId": trace_id, "agentId": AGENT, "missionId": id,
            "mission": mission, "status": status, "startedAt": begun, "completedAt": now,
            "entries": [{"missionId": id, "loopId": trace_id, "iteration": 1, "step": "ACT",
                         "status": entry, "startedAt": begun, "completedAt": now,
                         "toolCalls": calls}],
            "metadata": {"iterations": 1, "attempt": mission.attempts},
        });
        if let Err(error) = result {
            trace["error"] = json!({"message": error.to_string()});
        }
        if let Err(error) = self.peers.kernel.post::<_, Value>(Some(org), &["traces"], &trace).await
        {
            tracing::warn!(%error, mission = id, "a trace was not kept");
        }
    }
}

/// Writes the report of a mission's roast, unless it is written.
async fn write(tools: &mut Tools<'_>, mission: &MissionRecord) -> Result<Outcome, WorkError> {
    let impossible = |why: &str| WorkError::Impossible(why.to_owned());
    let session = mission.params.get("sessionId").and_then(Value::as_str);
    let id = session.ok_or_else(|| impossible("the mission names no roast (params.sessionId)"))?;
    let known: Option<RoastReport> =
        tools.read("getReport", &["sessions", id, "reports", "latest"]).await?;
    if let Some(report) = known {
        return Ok(Outcome::Known(report.report.report_id.unwrap_or_default()));
    }
    let session: RoastSession = tools
        .read("getSession", &["sessions", id])
        .await?
        .ok_or_else(|| impossible("there is no such roast"))?;
    let meta: Option<SessionMeta> = tools.read("getMeta", &["sessions", id, "meta"]).await?;
    let notes: Vec<SessionNote> =
        tools.read("getNotes", &["sessions", id, "notes"]).await?.unwrap_or_default();
    let notes: Vec<_> = notes.into_iter().take(NOTES_MAX).collect();
    let overrides: Vec<EventOverride> = tools
        .read("getOverrides", &["sessions", id, "events", "overrides"])
        .await?
        .unwrap_or_default();
    let analysis = tools.analysis(id).await?;
    let analysis = analysis.ok_or_else(|| impossible("analytics knows no such roast"))?;
    let next_actions = markdown::next_actions(&analysis);
    let text = markdown::report(&session, &analysis, &notes, &overrides, &next_actions);
    let Value::Object(mut analysis) = analysis else {
        return Err(impossible("analytics answered no object"));
    };
    // The report has it once; and a machine that jitters is not worth a megabyte of moves.
    analysis.remove("meta");
    if let Some(moves) = analysis.get_mut("controls").and_then(Value::as_array_mut) {
        moves.truncate(MOVES_MAX);
    }
    let report = NewReport {
        report_id: None,
        report_kind: POST_ROAST.to_owned(),
        created_by: Author::Agent,
        agent_name: Some(AGENT.to_owned()),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        trace_id: Some(format!("T-{}-{}", mission.mission_id, mission.attempts)),
        analysis,
        markdown: text,
        meta,
        overrides,
        notes,
        trust_metrics: None,
        evaluations: Vec::new(),
        next_actions,
    };
    let kept = tools.write(id, &report).await?;
    let report_id = kept["reportId"].as_str().unwrap_or_default().to_owned();
    tracing::info!(session = id, report = report_id, "wrote a report");
    Ok(Outcome::Written(report_id))
}
