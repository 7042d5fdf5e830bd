//! Routes of governance's measurements: facts, incidents, metrics and readiness.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use contract::{Actor, EpochMs, OrgId};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::Params;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiState;
use super::responses::OkResponse;
use crate::governance::breaker::{BreakerAction, BreakerEvent, Severity};
use crate::governance::metrics::{AutonomyMetrics, Fact};
use crate::governance::readiness::{self, Measured, Overall, Readiness, THRESHOLD, assess};
use crate::governance::{AutonomyState, breaker_watch};
use crate::metric;
use crate::store::{GovernanceRecord, RecordFilter, RecordKind};

pub(super) const DAY_MS: i64 = 86_400_000;
const COVERAGE_DAYS: i64 = 30;

pub(super) fn new_id() -> Result<String, ApiError> {
    trust::random_id().map_err(ApiError::internal)
}

impl ApiState {
    /// Returns whether the circuit breaker has paused commands: true while an event with that
    /// action is open.
    pub(super) async fn paused(&self, org: &OrgId) -> Result<bool, ApiError> {
        let filter = RecordFilter { status: Some("open"), limit: 100, id: None };
        let open: Vec<BreakerEvent> = self.store.records(org, RecordKind::Event, filter).await?;
        Ok(open.iter().any(|event| event.action == BreakerAction::PauseCommandType))
    }

    /// Returns the share of the last 30 days' roasts that eval has evaluated, 0 to 1; `None` if
    /// eval does not answer.
    async fn coverage(&self, org: &OrgId, now: EpochMs) -> Result<Option<f64>, ApiError> {
        let roasts = self.store.roasts_since(org, now.plus_ms(-COVERAGE_DAYS * DAY_MS)).await?;
        let days = COVERAGE_DAYS.to_string();
        let path = ["evaluations", "coverage"];
        let response = self.eval.get::<EvalCoverage>(org, &path, &[("days", &days)]).await;
        let evaluated = response.ok().flatten().map(|response| response.sessions_evaluated);
        Ok(evaluated.map(|n| if roasts > 0 { (n / roasts as f64).min(1.0) } else { 0.0 }))
    }

    /// Computes the metrics of a period, and stores them as the latest.
    async fn store_metrics(
        &self,
        request: &OrgRequest,
        period: (EpochMs, EpochMs),
    ) -> Result<Json<AutonomyMetrics>, ApiError> {
        let metrics = self.store.autonomy_metrics(&request.org, period).await?;
        let kind = RecordKind::Metrics;
        self.store.upsert_latest(&request.org, kind, request.now(), &metrics).await?;
        Ok(Json(metrics))
    }

    /// Returns the metrics of the last 30 days, and the readiness computed from them.
    pub(super) async fn readiness(
        &self,
        org: &OrgId,
        now: EpochMs,
    ) -> Result<(AutonomyMetrics, Readiness), ApiError> {
        let (_, state) = self.store.autonomy_state(org, now).await?;
        let metrics = self.store.autonomy_metrics(org, (now.plus_ms(-30 * DAY_MS), now)).await?;
        let measured = Measured { eval_coverage: self.coverage(org, now).await? };
        let readiness = assess(&state, &metrics, &measured, now);
        metric::readiness(&state, &metrics, &readiness, now);
        Ok((metrics, readiness))
    }
}

/// The part of eval's coverage that the kernel reads.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EvalCoverage {
    sessions_evaluated: f64,
}

/// A fact about commands, to be counted.
#[derive(Deserialize, ToSchema)]
pub struct NewFacts {
    pub what: Fact,
    /// How often it happened; default 1.
    #[serde(default = "default_count")]
    pub n: i64,
}

const fn default_count() -> i64 {
    1
}

/// Records what happened to commands. For services.
///
/// Metrics, circuit breaker and readiness are computed from these facts.
#[utoipa::path(post, path = "/api/governance/facts", tag = "governance", request_body = NewFacts,
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = OkResponse), (status = 400), (status = 403)))]
pub async fn tell(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(new): JsonBody<NewFacts>,
) -> Result<Json<OkResponse>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    if !(1..=1_000).contains(&new.n) {
        return Err(ApiError::Issues(vec![Issue::new("n", "not between 1 and 1000")]));
    }
    state.store.count_fact(&request.org, new.what, new.n, request.now()).await?;
    Ok(Json(OkResponse::OK))
}

/// An incident to report.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewIncident {
    pub title: String,
    pub severity: Severity,
    /// True if an agent's action caused it.
    #[serde(default)]
    pub from_autonomous_action: bool,
    #[serde(default)]
    pub details: Option<String>,
}

/// A reported incident.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Empty if the report had none.
    pub details: String,
    /// True if an agent's action caused it.
    pub from_autonomous_action: bool,
    pub id: String,
    pub reported_by: Actor,
    pub severity: Severity,
    pub timestamp: EpochMs,
    pub title: String,
}

/// Reports an incident. A critical incident trips the circuit breaker.
#[utoipa::path(post, path = "/api/incidents", tag = "governance", request_body = NewIncident,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = Incident), (status = 400), (status = 403)))]
pub async fn report_incident(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(new): JsonBody<NewIncident>,
) -> Result<(StatusCode, Json<Incident>), ApiError> {
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    caller.require_role(Role::Operator)?;
    let details = new.details.unwrap_or_default();
    let fits = (1..=200).contains(&new.title.len()) && details.len() <= 4_000;
    if !fits || new.title.contains('\0') || details.contains('\0') {
        let problem = "title: 1 to 200 bytes; details: at most 4000; no NUL";
        return Err(ApiError::Issues(vec![Issue::new("title", problem)]));
    }
    let incident = Incident {
        details,
        from_autonomous_action: new.from_autonomous_action,
        id: new_id()?,
        reported_by: caller.actor,
        severity: new.severity,
        timestamp: now,
        title: new.title,
    };
    let record = GovernanceRecord {
        kind: RecordKind::Incident,
        id: &incident.id,
        at: now,
        status: "kept",
        unique_key: None,
        body: &incident,
    };
    let critical = incident.severity == Severity::Critical;
    let autonomous = incident.from_autonomous_action;
    let mut facts = vec![Fact::Incident];
    facts.extend(critical.then_some(Fact::IncidentCritical));
    facts.extend(autonomous.then_some(Fact::IncidentAutonomous));
    state.store.insert_record_with_facts(&org, &record, &facts).await?;
    metrics::counter!("simcorp_governance_incidents_total",
        "severity" => incident.severity.as_str())
    .increment(1);
    if critical {
        // A critical incident must not wait for the next periodic evaluation.
        breaker_watch::evaluate(&state.store, &org, now).await?;
    }
    Ok((StatusCode::CREATED, Json(incident)))
}

/// Lists incidents, newest first.
#[utoipa::path(get, path = "/api/incidents", tag = "governance",
    params(("limit" = Option<i64>, Query), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Incident>), (status = 400), (status = 403)))]
pub async fn incidents(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<Incident>>, ApiError> {
    let filter = RecordFilter { limit: request.params.limit(50, 200)?, ..RecordFilter::default() };
    Ok(Json(state.store.records(&request.org, RecordKind::Incident, filter).await?))
}

/// Returns the time in a query parameter.
fn time(params: &Params, name: &str) -> Result<Option<EpochMs>, ApiError> {
    let read = |text: &str| {
        let time: Option<EpochMs> = serde_json::from_value(text.into()).ok();
        let time = time.filter(|time| time.is_plausible());
        time.ok_or_else(|| ApiError::Invalid(format!("{name}: not an ISO time with its offset")))
    };
    params.get(name).map(read).transpose()
}

/// Counts what happened to commands from `start` to `end`; default: the last 24 hours.
#[utoipa::path(get, path = "/api/metrics/current", tag = "governance",
    params(("start" = Option<String>, Query), ("end" = Option<String>, Query), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = AutonomyMetrics), (status = 400), (status = 403)))]
pub async fn metrics_current(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<AutonomyMetrics>, ApiError> {
    let end = time(&request.params, "end")?.unwrap_or(request.now());
    let start = time(&request.params, "start")?.unwrap_or(end.plus_ms(-DAY_MS));
    if start > end {
        return Err(ApiError::Invalid("start: after end".to_owned()));
    }
    state.store_metrics(&request, (start, end)).await
}

/// Counts what happened to commands in the last seven days.
#[utoipa::path(get, path = "/api/metrics/weekly", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = AutonomyMetrics), (status = 403)))]
pub async fn metrics_weekly(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<AutonomyMetrics>, ApiError> {
    state.store_metrics(&request, (request.now().plus_ms(-7 * DAY_MS), request.now())).await
}

/// Returns the newest record of a kind, or the one with the identity `id`. As upstream, a missing
/// record is returned as `null`.
pub(super) async fn latest<T: DeserializeOwned>(
    state: &ApiState,
    org: &OrgId,
    kind: RecordKind,
    id: Option<&str>,
) -> Result<Json<Option<T>>, ApiError> {
    let filter = RecordFilter { id, limit: 1, ..RecordFilter::default() };
    let found: Vec<T> = state.store.records(org, kind, filter).await?;
    Ok(Json(found.into_iter().next()))
}

/// Returns the metrics that were last computed, or `null`.
#[utoipa::path(get, path = "/api/metrics/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<AutonomyMetrics>), (status = 403)))]
pub async fn metrics_latest(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Option<AutonomyMetrics>>, ApiError> {
    latest(&state, &request.org, RecordKind::Metrics, None).await
}

/// Computes whether agents are ready for more autonomy.
#[utoipa::path(get, path = "/api/readiness/current", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Readiness), (status = 403)))]
pub async fn readiness_current(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Readiness>, ApiError> {
    let now = request.now();
    let OrgRequest { org, .. } = request;
    let (_, readiness) = state.readiness(&org, now).await?;
    state.store.upsert_latest(&org, RecordKind::Readiness, now, &readiness).await?;
    Ok(Json(readiness))
}

/// Returns the readiness that was last computed, or `null`.
#[utoipa::path(get, path = "/api/readiness/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Readiness>), (status = 403)))]
pub async fn readiness_latest(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Option<Readiness>>, ApiError> {
    latest(&state, &request.org, RecordKind::Readiness, None).await
}

/// The readiness in short.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessScore {
    /// Required items that do not hold.
    pub blockers: Vec<String>,
    pub ready: bool,
    /// 0 to 1.
    pub score: f64,
    /// The lowest score at which agents are ready.
    pub threshold: f64,
}

/// Returns the readiness score, 0 to 1.
#[utoipa::path(get, path = "/api/readiness/score", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = ReadinessScore), (status = 403)))]
pub async fn readiness_score(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<ReadinessScore>, ApiError> {
    let (_, readiness) = state.readiness(&request.org, request.now()).await?;
    let Overall { score, ready, blockers } = readiness.overall;
    Ok(Json(ReadinessScore { blockers, ready, score, threshold: THRESHOLD }))
}

/// Checklist items by name, each with whether it holds.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeclaredItems(BTreeMap<String, bool>);

/// Declares checklist items that cannot be measured, by name: `{"RUNBOOKS_COMPLETE": true}`.
#[utoipa::path(put, path = "/api/readiness/declared", tag = "governance", request_body = DeclaredItems,
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = DeclaredItems), (status = 400), (status = 403)))]
pub async fn declare(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(DeclaredItems(items)): JsonBody<DeclaredItems>,
) -> Result<Json<DeclaredItems>, ApiError> {
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    caller.require_person_as(Role::Admin)?;
    let unknown = items.keys().find(|name| !readiness::declarable().any(|known| known == **name));
    if let Some(name) = unknown {
        return Err(ApiError::Issues(vec![Issue::new(name, "not an item that can be declared")]));
    }
    let doing = ("readiness.declare", now);
    let change = |s: &mut AutonomyState| s.known.declared.extend(items.clone());
    let after = state.store.change_autonomy(&org, &caller.actor, doing, change).await?;
    Ok(Json(DeclaredItems(after.known.declared)))
}
