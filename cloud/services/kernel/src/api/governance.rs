//! Routes of governance's measurements: facts, incidents, metrics and readiness.

use axum::Json;
use axum::extract::State as Extract;
use contract::{EpochMs, OrgId};
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::Params;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ApiState;
use crate::governance::breaker::{BreakerAction, BreakerEvent, Severity};
use crate::governance::metrics::{AutonomyMetrics, Fact};
use crate::governance::readiness::{self, Measured, Readiness, THRESHOLD, assess};
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

    async fn keep<T: serde::Serialize>(
        &self,
        org: &OrgId,
        kind: RecordKind,
        at: EpochMs,
        body: &T,
    ) -> Result<(), ApiError> {
        Ok(self.store.upsert_latest(org, kind, at, body).await?)
    }

    /// Returns the share of the last 30 days' roasts that eval has evaluated, 0 to 1; `None` if
    /// eval does not answer.
    async fn coverage(&self, org: &OrgId, now: EpochMs) -> Result<Option<f64>, ApiError> {
        let roasts = self.store.roasts_since(org, now.plus_ms(-COVERAGE_DAYS * DAY_MS)).await?;
        let days = COVERAGE_DAYS.to_string();
        let path = ["evaluations", "coverage"];
        let told = self.eval.get::<Value>(org, &path, &[("days", &days)]).await;
        let evaluated = told.ok().flatten().and_then(|told| told["sessionsEvaluated"].as_f64());
        Ok(evaluated.map(|n| if roasts > 0 { (n / roasts as f64).min(1.0) } else { 0.0 }))
    }

    pub(super) async fn readiness(
        &self,
        org: &OrgId,
    ) -> Result<(AutonomyMetrics, Readiness), ApiError> {
        let now = (self.clock)();
        let (_, state) = self.store.autonomy_state(org, now).await?;
        let metrics = self.store.autonomy_metrics(org, (now.plus_ms(-30 * DAY_MS), now)).await?;
        let measured = Measured { eval_coverage: self.coverage(org, now).await? };
        let readiness = assess(&state, &metrics, &measured, now);
        metrics::gauge!("simcorp_governance_readiness_score").set(readiness.overall.score);
        Ok((metrics, readiness))
    }
}

#[derive(Deserialize, ToSchema)]
pub struct Happened {
    pub what: Fact,
    /// How often it happened; default 1.
    #[serde(default = "once")]
    pub n: i64,
}

const fn once() -> i64 {
    1
}

/// Records what happened to commands. For services.
///
/// Metrics, circuit breaker and readiness are computed from these facts.
#[utoipa::path(post, path = "/api/governance/facts", tag = "governance", request_body = Happened,
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403)))]
pub async fn tell(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
    JsonBody(happened): JsonBody<Happened>,
) -> Result<Json<Value>, ApiError> {
    caller.require_role(Role::Admin)?;
    let org = caller.resolve_org(params.get("orgId"))?;
    if !(1..=1_000).contains(&happened.n) {
        return Err(ApiError::Issues(vec![Issue::new("n", "not between 1 and 1000")]));
    }
    state.store.count_fact(&org, happened.what, happened.n, (state.clock)()).await?;
    Ok(Json(json!({"ok": true})))
}

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

/// Reports an incident. A critical incident trips the circuit breaker.
#[utoipa::path(post, path = "/api/incidents", tag = "governance", request_body = NewIncident,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = Object), (status = 400), (status = 403)))]
pub async fn report_incident(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
    JsonBody(new): JsonBody<NewIncident>,
) -> Result<(axum::http::StatusCode, Json<Value>), ApiError> {
    caller.require_role(Role::Operator)?;
    let org = caller.resolve_org(params.get("orgId"))?;
    let details = new.details.as_deref().unwrap_or_default();
    let fits = (1..=200).contains(&new.title.len()) && details.len() <= 4_000;
    if !fits || new.title.contains('\0') || details.contains('\0') {
        let problem = "title: 1 to 200 bytes; details: at most 4000; no NUL";
        return Err(ApiError::Issues(vec![Issue::new("title", problem)]));
    }
    let now = (state.clock)();
    let id = new_id()?;
    let body = json!({"id": id, "timestamp": now, "title": new.title, "severity": new.severity,
                      "fromAutonomousAction": new.from_autonomous_action,
                      "details": details, "reportedBy": caller.actor});
    let record = GovernanceRecord {
        kind: RecordKind::Incident,
        id: &id,
        at: now,
        status: "kept",
        unique_key: None,
        body: &body,
    };
    let critical = new.severity == Severity::Critical;
    let autonomous = new.from_autonomous_action;
    let mut facts = vec![Fact::Incident];
    facts.extend(critical.then_some(Fact::IncidentCritical));
    facts.extend(autonomous.then_some(Fact::IncidentAutonomous));
    state.store.insert_record_with_facts(&org, &record, &facts).await?;
    metrics::counter!("simcorp_governance_incidents_total", "severity" => new.severity.as_str())
        .increment(1);
    if critical {
        // A critical incident must not wait for the next periodic evaluation.
        crate::governance::watch::evaluate(&state.store, &org, now).await?;
    }
    Ok((axum::http::StatusCode::CREATED, Json(body)))
}

/// Lists incidents, newest first.
#[utoipa::path(get, path = "/api/incidents", tag = "governance",
    params(("limit" = Option<i64>, Query), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Object>), (status = 400), (status = 403)))]
pub async fn incidents(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let filter = RecordFilter { limit: params.limit(50, 200)?, ..RecordFilter::default() };
    Ok(Json(state.store.records(&org, RecordKind::Incident, filter).await?))
}

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
    caller: Caller,
    params: Params,
) -> Result<Json<AutonomyMetrics>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let now = (state.clock)();
    let end = time(&params, "end")?.unwrap_or(now);
    let start = time(&params, "start")?.unwrap_or(end.plus_ms(-DAY_MS));
    if start > end {
        return Err(ApiError::Invalid("start: after end".to_owned()));
    }
    let metrics = state.store.autonomy_metrics(&org, (start, end)).await?;
    state.keep(&org, RecordKind::Metrics, now, &metrics).await?;
    Ok(Json(metrics))
}

/// Counts what happened to commands in the last seven days.
#[utoipa::path(get, path = "/api/metrics/weekly", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = AutonomyMetrics), (status = 403)))]
pub async fn metrics_weekly(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<AutonomyMetrics>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let now = (state.clock)();
    let metrics = state.store.autonomy_metrics(&org, (now.plus_ms(-7 * DAY_MS), now)).await?;
    state.keep(&org, RecordKind::Metrics, now, &metrics).await?;
    Ok(Json(metrics))
}

pub(super) async fn latest(
    state: &ApiState,
    caller: &Caller,
    params: &Params,
    kind: RecordKind,
    id: Option<&str>,
) -> Result<Json<Value>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let filter = RecordFilter { id, limit: 1, ..RecordFilter::default() };
    let found: Vec<Value> = state.store.records(&org, kind, filter).await?;
    // As upstream: a missing record is returned as `null`.
    Ok(Json(found.into_iter().next().unwrap_or(Value::Null)))
}

/// Returns the metrics that were last computed, or `null`.
#[utoipa::path(get, path = "/api/metrics/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<AutonomyMetrics>), (status = 403)))]
pub async fn metrics_latest(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, RecordKind::Metrics, None).await
}

/// Computes whether agents are ready for more autonomy.
#[utoipa::path(get, path = "/api/readiness/current", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Readiness), (status = 403)))]
pub async fn readiness_current(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Readiness>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let (_, readiness) = state.readiness(&org).await?;
    state.keep(&org, RecordKind::Readiness, readiness.timestamp, &readiness).await?;
    Ok(Json(readiness))
}

/// Returns the readiness that was last computed, or `null`.
#[utoipa::path(get, path = "/api/readiness/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Readiness>), (status = 403)))]
pub async fn readiness_latest(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, RecordKind::Readiness, None).await
}

/// Returns the readiness score, 0 to 1.
#[utoipa::path(get, path = "/api/readiness/score", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 403)))]
pub async fn readiness_score(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let (_, readiness) = state.readiness(&org).await?;
    let overall = &readiness.overall;
    Ok(Json(json!({"score": overall.score, "ready": overall.ready,
                   "blockers": overall.blockers, "threshold": THRESHOLD})))
}

/// Declares checklist items that cannot be measured, by name: `{"RUNBOOKS_COMPLETE": true}`.
#[utoipa::path(put, path = "/api/readiness/declared", tag = "governance", request_body = Object,
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403)))]
pub async fn declare(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
    JsonBody(said): JsonBody<std::collections::BTreeMap<String, bool>>,
) -> Result<Json<Value>, ApiError> {
    caller.require_person()?;
    caller.require_role(Role::Admin)?;
    let org = caller.resolve_org(params.get("orgId"))?;
    let unknown = said.keys().find(|name| !readiness::declarable().any(|known| known == **name));
    if let Some(name) = unknown {
        return Err(ApiError::Issues(vec![Issue::new(name, "not an item that can be declared")]));
    }
    let doing = ("readiness.declare", (state.clock)());
    let change = |s: &mut crate::governance::AutonomyState| s.known.declared.extend(said.clone());
    let after = state.store.change_autonomy(&org, &caller.actor, doing, change).await?;
    Ok(Json(json!(after.known.declared)))
}
