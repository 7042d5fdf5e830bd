//! The dispatcher's HTTP routes: status, configuration and replay.

use axum::Json;
use axum::extract::{FromRequest as _, Request, State as Extract};
use axum::http::StatusCode;
use contract::ops::{SessionClosed, SessionTopic};
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use serde::Serialize;
use service::openapi::with_examples;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{Counters, DispatcherConfig, LastError, MissionDispatcher};

const TOPIC: &str = "ops/+/+/+/session/closed";

#[derive(Clone)]
struct State {
    config: DispatcherConfig,
    mqtt_url: Option<String>,
    work: MissionDispatcher,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "Sim-Corp dispatcher", description = "Creates missions for ended roasts."))]
struct Doc;

pub fn routes(
    config: DispatcherConfig,
    mqtt_url: Option<String>,
    work: MissionDispatcher,
) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    debug_assert!(SessionTopic::Closed.shared_filter("x").ends_with(TOPIC));
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(status))
        .routes(routes!(configuration))
        .routes(routes!(replay))
        .with_state(State { config, mqtt_url, work })
        .split_for_parts();
    (router, with_examples(openapi, include_str!("examples.json")))
}

/// What the dispatcher has done so far.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Status {
    counters: Counters,
    /// The newest errors that the caller may see, newest first.
    last_errors: Vec<LastError>,
    subscribed_topics: Vec<&'static str>,
    goals: Vec<String>,
}

/// Returns the counters of what has been done so far, and the last errors.
#[utoipa::path(get, path = "/status", tag = "dispatcher", responses((status = 200, body = Status)))]
async fn status(Extract(state): Extract<State>, caller: Caller) -> Result<Json<Status>, ApiError> {
    caller.require_role(Role::Viewer)?;
    Ok(Json(state.work.with_stats(|seen| {
        let own = |error: &&LastError| caller.org.is_none() || error.org == caller.org;
        Status {
            counters: seen.counters.clone(),
            last_errors: seen.errors.iter().filter(own).cloned().collect(),
            subscribed_topics: vec![TOPIC],
            goals: state.config.goals.clone(),
        }
    })))
}

/// The settings that the dispatcher runs with.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct EffectiveConfig {
    topics: Vec<&'static str>,
    goals: Vec<String>,
    /// The broker's URL, without a password; absent without a broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    mqtt_url: Option<String>,
    kernel_url: String,
    /// The most attempts of a mission.
    max_attempts: u32,
}

/// Returns the dispatcher's configuration.
#[utoipa::path(get, path = "/config", tag = "dispatcher",
    responses((status = 200, body = EffectiveConfig)))]
async fn configuration(
    Extract(state): Extract<State>,
    caller: Caller,
) -> Result<Json<EffectiveConfig>, ApiError> {
    caller.require_role(Role::Viewer)?;
    let State { config, mqtt_url, .. } = state;
    let DispatcherConfig { goals, kernel_url, max_attempts, .. } = config;
    let topics = vec![TOPIC];
    Ok(Json(EffectiveConfig { topics, goals, mqtt_url, kernel_url, max_attempts }))
}

/// The response to a replay.
#[derive(Serialize, ToSchema)]
struct ReplayAccepted {
    /// Always `queued`.
    status: &'static str,
}

/// Dispatches the end of a roast once more. Returns 404 unless `dispatcher.replay` is set.
#[utoipa::path(post, path = "/replay", tag = "dispatcher", request_body = SessionClosed,
    responses((status = 202, body = ReplayAccepted), (status = 400), (status = 403), (status = 404),
              (status = 503)))]
async fn replay(
    Extract(state): Extract<State>,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<ReplayAccepted>), ApiError> {
    // Checked before the body is read: where there is no such route, no body is wrong.
    if !state.config.replay {
        return Err(ApiError::NotFound("replay"));
    }
    let JsonBody(event) = JsonBody::<SessionClosed>::from_request(request, &()).await?;
    caller.require_role(Role::Operator)?;
    caller.resolve_org(Some(event.origin.org.as_str()))?;
    if let Some(problem) = event.problem() {
        return Err(ApiError::Issues(vec![Issue::new("type", problem)]));
    }
    state.work.dispatch(&event).await?;
    Ok((StatusCode::ACCEPTED, Json(ReplayAccepted { status: "queued" })))
}
