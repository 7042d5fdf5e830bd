//! The worker that writes the report of a mission's roast.

use contract::annotations::{
    Author, EventOverride, NewReport, RoastReport, SessionMeta, SessionNote,
};
use contract::mission::{MissionRecord, POST_ROAST, REPORT_GOAL};
use contract::session::RoastSession;
use mission_worker::{Job, JobFuture, MissionTools, Outcome, WorkError, trace_id};
use serde_json::{Value, json};

use crate::{ServiceClients, markdown};

/// The agent name in mission claims, which is upstream's, and the one in reports and traces.
const CLAIMANT: &str = "report-agent";
const AGENT: &str = "report-worker";

/// The maximum number of notes and of control changes in a report.
const NOTES_MAX: usize = 10;
const MOVES_MAX: usize = 1_000;

/// The job of a report worker: writes reports.
pub struct ReportJob(pub ServiceClients);

impl Job for ReportJob {
    fn goal(&self) -> &'static str {
        REPORT_GOAL
    }

    fn names(&self) -> (&'static str, &'static str) {
        (CLAIMANT, AGENT)
    }

    fn run<'r>(
        &'r self,
        tools: &'r mut MissionTools<'_>,
        mission: &'r MissionRecord,
    ) -> JobFuture<'r> {
        Box::pin(write(&self.0, tools, mission))
    }
}

/// Writes the report of a mission's roast, unless the roast has one already.
async fn write(
    clients: &ServiceClients,
    tools: &mut MissionTools<'_>,
    mission: &MissionRecord,
) -> Result<Outcome, WorkError> {
    let ServiceClients { ingestion, analytics, .. } = clients;
    let impossible = |why: &str| WorkError::Permanent(why.to_owned());
    let session = mission.params.get("sessionId").and_then(Value::as_str);
    let id = session.ok_or_else(|| impossible("the mission names no roast (params.sessionId)"))?;
    let existing: Option<RoastReport> =
        tools.read("getReport", ingestion, &["sessions", id, "reports", "latest"], &[]).await?;
    if let Some(report) = existing {
        let report = report.report.report_id;
        return Ok(Outcome::AlreadyDone(json!({"reportId": report, "sessionId": id})));
    }
    let session: RoastSession = tools
        .read("getSession", ingestion, &["sessions", id], &[])
        .await?
        .ok_or_else(|| impossible("ingestion has no such roast"))?;
    let meta: Option<SessionMeta> =
        tools.read("getMeta", ingestion, &["sessions", id, "meta"], &[]).await?;
    let notes: Vec<SessionNote> = tools
        .read("getNotes", ingestion, &["sessions", id, "notes"], &[])
        .await?
        .unwrap_or_default();
    let notes: Vec<_> = notes.into_iter().take(NOTES_MAX).collect();
    let overrides: Vec<EventOverride> = tools
        .read("getOverrides", ingestion, &["sessions", id, "events", "overrides"], &[])
        .await?
        .unwrap_or_default();
    let analysis: Option<Value> =
        tools.read("getAnalysis", analytics, &["analysis", "session", id], &[]).await?;
    let analysis = analysis.ok_or_else(|| impossible("analytics has no such roast"))?;
    let next_actions = markdown::next_actions(&analysis);
    let text = markdown::report(&session, &analysis, &notes, &overrides, &next_actions);
    let Value::Object(mut analysis) = analysis else {
        return Err(impossible("the analysis is not a JSON object"));
    };
    // The report has the metadata in its own field. A machine whose controls jitter must not add a
    // megabyte of control changes.
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
        trace_id: Some(trace_id(mission)),
        analysis,
        markdown: text,
        meta,
        overrides,
        notes,
        trust_metrics: None,
        evaluations: Vec::new(),
        next_actions,
    };
    let stored =
        tools.write("writeReport", ingestion, &["sessions", id, "reports"], &report).await?;
    let report_id = stored["reportId"].as_str().unwrap_or_default().to_owned();
    tracing::info!(session = id, report = report_id, "wrote a report");
    Ok(Outcome::Done(json!({"reportId": report_id, "sessionId": id})))
}
