//! The gateway's local page and API, on loopback. They show the live curve without any cloud.

use std::convert::Infallible;

use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use contract::EventKind;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use service::health::Health;
use service::http::{self, CONCURRENT_REQUESTS_MAX, ConcurrencyLimit};
use service::metrics::Metrics;
use service::origin::refuse_foreign_pages;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use utoipa::{OpenApi as _, ToSchema};

use crate::agent_state::{AgentState, AgentStatus, ChartPoint};
use crate::clock::GatewayClock;
use crate::journal_writer::JournalCommand;

const PAGE: &str = include_str!("local.html");
const STYLE: &str = include_str!("local.css");
const SCRIPT: &str = include_str!("local.js");

#[derive(Clone)]
struct LocalState {
    state: AgentState,
    commands: SyncSender<JournalCommand>,
    stop: CancellationToken,
}

/// An event that a person marks.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EventBody {
    #[serde(rename = "type")]
    kind: EventKind,
    /// At most 1024 bytes.
    note: Option<String>,
}

/// Returns the routes of the local page and API.
pub fn app(
    state: AgentState,
    commands: SyncSender<JournalCommand>,
    clock: GatewayClock,
    metrics: Metrics,
    stop: CancellationToken,
) -> Router {
    let checked_state = state.clone();
    let health =
        Health::new("edge", Arc::new(move || clock.wall())).with_check("journal", move || {
            let problem = checked_state.status().journal_error;
            async move { problem.map_or(Ok(()), Err) }
        });
    let checked_state = state.clone();
    let health = health.with_check("machine", move || {
        let problem = checked_state.status().driver_error;
        async move { problem.map_or(Ok(()), Err) }
    });
    let routes = Router::new()
        .route("/", get(page))
        .route("/page.css", get(style))
        .route("/page.js", get(script))
        .route("/status", get(status))
        .route("/points", get(points))
        .route("/live", get(live))
        .route("/marks", post(mark))
        .with_state(LocalState { state, commands, stop });
    let limit = ConcurrencyLimit::new(CONCURRENT_REQUESTS_MAX);
    // The last `layer` is the first that a request passes.
    routes
        .layer(from_fn_with_state(limit, http::limit_concurrency))
        .merge(http::open_routes(&Doc::openapi(), health, metrics))
        .fallback(http::not_found)
        .layer(RequestBodyLimitLayer::new(http::BODY_BYTES_MAX))
        .layer(http::response_timeout())
        .layer(CatchPanicLayer::new())
        .layer(from_fn(http::restrict_browser))
        .layer(from_fn(refuse_foreign_pages))
        .layer(from_fn_with_state("edge", http::record_metrics))
        .layer(from_fn(http::assign_request_id))
}

/// An error as the page reads it: a status, and a sentence as `error`.
type Refusal = (StatusCode, Json<ErrorBody>);

#[derive(Serialize)]
struct ErrorBody {
    error: String,
}

fn refuse(status: StatusCode, sentence: &str) -> Refusal {
    (status, Json(ErrorBody { error: sentence.to_owned() }))
}

fn refuse_invalid(sentence: &str) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, sentence)
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Sim-Corp edge agent", description = "The gateway's local API, on loopback."),
    paths(status, points, live, mark)
)]
struct Doc;

async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response()
}

async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE).into_response()
}

async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT).into_response()
}

/// Returns the agent's state: machine, disk, cloud and the running roast.
#[utoipa::path(get, path = "/status", responses((status = 200, body = AgentStatus)))]
async fn status(Extract(local): Extract<LocalState>) -> Json<AgentStatus> {
    Json(local.state.status())
}

/// Returns the newest samples and events, at most 12000 points.
#[utoipa::path(get, path = "/points", responses((status = 200, body = Vec<ChartPoint>)))]
async fn points(Extract(local): Extract<LocalState>) -> Json<Vec<ChartPoint>> {
    Json(local.state.points())
}

/// Streams samples and events as server-sent events, as each frame is made.
#[utoipa::path(get, path = "/live",
    responses((status = 200, content_type = "text/event-stream", body = String)))]
async fn live(Extract(local): Extract<LocalState>) -> Response {
    let (watch, stop) = (local.state.subscribe(), local.stop);
    let points = stream::unfold((watch, stop), |(mut watch, stop)| async move {
        tokio::select! {
            () = stop.cancelled() => None,
            // A page that falls behind is disconnected; its browser reconnects.
            point = watch.recv() => {
                let event = Event::default().json_data(point.ok()?).ok()?;
                Some((Ok::<_, Infallible>(event), (watch, stop)))
            }
        }
    });
    Sse::new(points.boxed()).keep_alive(KeepAlive::default()).into_response()
}

/// Records an event that a person marks at the machine, such as CHARGE or DROP.
///
/// The body must be JSON: a browser sends JSON to another origin only after a CORS preflight, so no
/// page of another origin can mark a roast.
#[utoipa::path(post, path = "/marks", request_body = EventBody,
    responses((status = 204), (status = 400, description = "No roast is running, or unknown type")))]
async fn mark(
    Extract(local): Extract<LocalState>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Result<StatusCode, Refusal> {
    let json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !json {
        return Err(refuse_invalid("content-type must be application/json"));
    }
    let mark: EventBody =
        serde_json::from_slice(&body).map_err(|error| refuse_invalid(&error.to_string()))?;
    if let Some(note) = &mark.note
        && (note.len() > contract::event::NOTE_BYTES_MAX || note.contains('\0'))
    {
        return Err(refuse_invalid("note: longer than 1024 bytes, or with a NUL"));
    }
    let (done, waiting) = oneshot::channel();
    let command = JournalCommand::RecordEvent { kind: mark.kind, note: mark.note, done };
    local
        .commands
        .try_send(command)
        .map_err(|_| refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is busy"))?;
    match waiting.await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        _ => Err(refuse_invalid("no roast is running")),
    }
}
