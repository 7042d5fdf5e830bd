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

const TRACE_BYTES_MAX: usize = 128 * 1024;

/// Stores a trace. Each attempt at a mission has its own trace.
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
    let size = text.len();
    if size > TRACE_BYTES_MAX {
        return Err(ApiError::TooLarge(format!(
            "the trace has {size} bytes; at most {TRACE_BYTES_MAX} are accepted"
        )));
    }
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

/// Lists traces, newest first.
#[utoipa::path(get, path = "/traces", tag = "traces",
    params(("limit" = Option<i64>, Query, description = "1 to 200; default 50"), ("cursor" = Option<String>, Query),
           ("missionId" = Option<String>, Query),
           ("agentId" = Option<String>, Query), ("status" = Option<String>, Query),
           ("q" = Option<String>, Query, description = "Text in the trace; case is ignored"), ("orgId" = Option<String>, Query)),
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
    let traces = state.store.traces(&request.org, &filter).await?;
    Ok(query::page(traces, filter.limit, |trace: &Trace| {
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
    let found = state.store.traces(&request.org, &filter).await?.into_iter().next();
    found.map(Json).ok_or(ApiError::NotFound("trace"))
}
