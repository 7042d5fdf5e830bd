//! Forwards the reads and streams that browsers may request to ingestion. It must never forward
//! anything else.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State as Extract};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use contract::point::{RoastEvent, TelemetryPoint};
use futures_util::StreamExt as _;
use http_stack::error::ApiError;

use crate::ConsoleState;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Sim-Corp console", description = "The data that the console's pages read."),
    paths(telemetry, events, stream)
)]
pub struct Doc;

pub fn routes() -> Router<ConsoleState> {
    Router::new()
        .route("/api/sessions/{id}/telemetry", get(telemetry))
        .route("/api/sessions/{id}/events", get(events))
        .route("/stream/envelopes/{what}", get(stream))
}

/// Returns a session's telemetry points.
#[utoipa::path(get, path = "/api/sessions/{id}/telemetry", params(("id" = String, Path)),
    responses((status = 200, body = Vec<TelemetryPoint>), (status = 503)))]
async fn telemetry(
    Extract(state): Extract<ConsoleState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    forward_session(&state, &id, "telemetry", query).await
}

/// Returns a session's events.
#[utoipa::path(get, path = "/api/sessions/{id}/events", params(("id" = String, Path)),
    responses((status = 200, body = Vec<RoastEvent>), (status = 503)))]
async fn events(
    Extract(state): Extract<ConsoleState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    forward_session(&state, &id, "events", None).await
}

/// Streams live envelopes. `what` is `telemetry` or `events`.
#[utoipa::path(get, path = "/stream/envelopes/{what}", params(("what" = String, Path)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404)))]
async fn stream(
    Extract(state): Extract<ConsoleState>,
    Path(what): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if what != "telemetry" && what != "events" {
        return Err(ApiError::NotFound("stream"));
    }
    forward(&state, &format!("/stream/envelopes/{what}"), query, &headers).await
}

/// Parses a session id. A valid one has only characters that are safe in a path, so that it cannot
/// address another path.
fn parse_session_id(id: &str) -> Result<contract::SessionId, ApiError> {
    id.parse().map_err(|error: contract::IdError| ApiError::Invalid(error.to_string()))
}

/// Forwards a request for a part of a session, such as its events.
async fn forward_session(
    state: &ConsoleState,
    id: &str,
    part: &str,
    query: Option<String>,
) -> Result<Response, ApiError> {
    let path = format!("/sessions/{}/{part}", parse_session_id(id)?);
    forward(state, &path, query, &HeaderMap::new()).await
}

async fn forward(
    state: &ConsoleState,
    path: &str,
    query: Option<String>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let away = |error: reqwest::Error| {
        tracing::warn!(%error, path, "ingestion does not answer");
        ApiError::Unavailable(
            "ingestion does not answer; gateways store what they measure meanwhile".to_owned(),
        )
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut request = state.http.get(format!("{}{path}{query}", state.ingestion));
    let last = HeaderName::from_static("last-event-id");
    if let Some(id) = headers.get(&last) {
        request = request.header(last, id);
    }
    let answer = request.send().await.map_err(away)?;
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
    let stop = state.stop.clone();
    // Streams end when the console stops; otherwise open browsers would delay the shutdown.
    let body = answer.bytes_stream().take_until(async move { stop.cancelled().await });
    let mut response = (status, Body::from_stream(body)).into_response();
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok(response)
}
