//! The dispatcher's HTTP routes: status, configuration and replay.

use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use contract::ops::{SessionClosed, SessionTopic};
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use serde_json::{Value, json};
use service::openapi::with_examples;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{DispatcherConfig, LastError, MissionDispatcher};

const TOPIC: &str = "ops/+/+/+/session/closed";

#[derive(Clone)]
struct State {
    config: DispatcherConfig,
    work: MissionDispatcher,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "Sim-Corp dispatcher", description = "Creates missions for ended roasts."))]
struct Doc;

pub fn routes(
    config: DispatcherConfig,
    work: MissionDispatcher,
) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    debug_assert!(SessionTopic::Closed.shared_filter("x").ends_with(TOPIC));
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(status))
        .routes(routes!(configuration))
        .routes(routes!(replay))
        .with_state(State { config, work })
        .split_for_parts();
    (router, with_examples(openapi, include_str!("examples.json")))
}

/// Returns the counters of what has been done so far, and the last errors.
#[utoipa::path(get, path = "/status", tag = "dispatcher", responses((status = 200, body = Object)))]
async fn status(Extract(state): Extract<State>, caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require_role(Role::Viewer)?;
    let goals = &state.config.goals;
    Ok(Json(state.work.with_stats(|seen| {
        let own = |error: &&LastError| caller.org.is_none() || error.org == caller.org;
        let errors: Vec<_> = seen.errors.iter().filter(own).collect();
        json!({"counters": seen.counters, "lastErrors": errors,
               "subscribedTopics": [TOPIC], "goals": goals})
    })))
}

/// Returns the dispatcher's configuration.
#[utoipa::path(get, path = "/config", tag = "dispatcher", responses((status = 200, body = Object)))]
async fn configuration(
    Extract(state): Extract<State>,
    caller: Caller,
) -> Result<Json<Value>, ApiError> {
    caller.require_role(Role::Viewer)?;
    let config = &state.config;
    Ok(Json(json!({"topics": [TOPIC], "goals": config.goals, "kernelUrl": config.kernel_url,
                   "maxAttempts": config.max_attempts})))
}

/// Dispatches the end of a roast once more. Returns 404 unless `dispatcher.replay` is set.
#[utoipa::path(post, path = "/replay", tag = "dispatcher", request_body = SessionClosed,
    responses((status = 202, body = Object), (status = 400), (status = 403), (status = 404),
              (status = 503)))]
async fn replay(
    Extract(state): Extract<State>,
    caller: Caller,
    JsonBody(event): JsonBody<SessionClosed>,
) -> Result<Response, ApiError> {
    if !state.config.replay {
        return Err(ApiError::NotFound("replay"));
    }
    caller.require_role(Role::Operator)?;
    caller.resolve_org(Some(event.origin.org.as_str()))?;
    if let Some(problem) = event.problem() {
        return Err(ApiError::Issues(vec![Issue::new("type", problem)]));
    }
    state.work.dispatch(&event).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"status": "queued"}))).into_response())
}
