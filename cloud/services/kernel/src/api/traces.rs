//! Routes of traces: what agents did on missions.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::response::Response;
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::{self, Params};

use super::ApiState;
use super::responses::OkResponse;
use crate::governance::metrics::Fact;
use crate::store::TraceFilter;
use crate::trace::Trace;

/// Stores a trace of at most 1 MiB, as long as any request may be. Each attempt at a mission has its
/// own trace.
#[utoipa::path(post, path = "/traces", tag = "traces", request_body = Trace,
    responses((status = 200, body = OkResponse), (status = 400), (status = 403)))]
pub async fn keep(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
    JsonBody(trace): JsonBody<Trace>,
) -> Result<Json<OkResponse>, ApiError> {
    caller.require_role(Role::Operator)?;
    if let Some((field, problem)) = trace.problem() {
        return Err(ApiError::Issues(vec![Issue::new(field, problem)]));
    }
    let text = serde_json::to_string(&trace).map_err(ApiError::internal)?;
    // A value that is wrapped may be nested deeper than what can be read again.
    if serde_json::from_str::<Trace>(&text).is_err() {
        return Err(ApiError::Issues(vec![Issue::new("entries", "nested too deeply")]));
    }
    let trace_org = trace.mission.get("context").and_then(|context| context["orgId"].as_str());
    let org = caller.resolve_org(params.get("orgId").or(trace_org))?;
    let now = (state.clock)();
    if state.store.upsert_trace(&org, &trace, now).await? {
        let denied = i64::try_from(trace.denied()).unwrap_or(i64::MAX);
        if denied > 0 {
            state.store.count_fact(&org, Fact::ConstraintViolation, denied, now).await?;
        }
    }
    Ok(Json(OkResponse::OK))
}

/// Lists traces, newest first. A page ends early when its traces have 8 MiB.
#[utoipa::path(get, path = "/traces", tag = "traces",
    params(("limit" = Option<i64>, Query, description = "1 to 200; default 50"), ("cursor" = Option<String>, Query),
           ("missionId" = Option<String>, Query),
           ("agentId" = Option<String>, Query), ("status" = Option<String>, Query),
           ("q" = Option<String>, Query, description = "Text in the first 128 KiB of the trace; case is ignored"), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Trace>), (status = 400), (status = 403)))]
pub async fn list(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Response, ApiError> {
    let owned = |name: &str| request.params.get(name).map(str::to_owned);
    let filter = TraceFilter {
        mission: owned("missionId"),
        agent: owned("agentId"),
        status: owned("status"),
        text: owned("q"),
        after: request.params.cursor()?,
        limit: request.params.limit(50, 200)?,
    };
    let page = state.store.traces(&request.org, &filter).await?;
    // With fewer traces than the limit, a page that its bytes ended has a cursor too.
    let limit = if page.may_continue { 0 } else { i64::MAX };
    Ok(query::page(page.traces, limit, |trace: &Trace| {
        query::encode_cursor(trace.started_at.0, &trace.trace_id)
    }))
}

/// Returns the newest trace of a mission.
#[utoipa::path(get, path = "/traces/{missionId}", tag = "traces", params(("missionId" = String, Path)),
    responses((status = 200, body = Trace), (status = 404)))]
pub async fn of_mission(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(mission): Path<String>,
) -> Result<Json<Trace>, ApiError> {
    let filter = TraceFilter { mission: Some(mission), limit: 1, ..TraceFilter::default() };
    let found = state.store.traces(&request.org, &filter).await?.traces.into_iter().next();
    found.map(Json).ok_or(ApiError::NotFound("trace"))
}
