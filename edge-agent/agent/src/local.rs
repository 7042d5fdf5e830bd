//! The gateway's local page and API, on loopback. They show the live curve without any cloud.

use std::convert::Infallible;

use axum::extract::{Query, State as Extract};
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
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use utoipa::{OpenApi as _, ToSchema};

use crate::agent_state::{AgentState, AgentStatus, ChartPoint};
use crate::clock::GatewayClock;
use crate::journal_writer::{JournalCommand, ManualEventResult};

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
    // A gateway without a network is ready; one whose name a second gateway uses needs a person.
    let checked_state = state.clone();
    let health = health.with_check("uplink", move || {
        let problem = checked_state.status().name_conflict;
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
    let measured = http::MeasuredService { name: "edge", metrics: None };
    // The last `layer` is the first that a request passes.
    routes
        .layer(from_fn_with_state(limit, http::limit_concurrency))
        .merge(http::open_routes(&Doc::openapi(), health, metrics))
        .fallback(http::not_found)
        .layer(RequestBodyLimitLayer::new(http::BODY_BYTES_MAX))
        .layer(http::response_timeout())
        .layer(CatchPanicLayer::new())
        .layer(from_fn(refuse_foreign_pages))
        .layer(from_fn(http::restrict_browser))
        .layer(from_fn_with_state(measured, http::record_metrics))
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

/// The header of `/points` with the position from which `/live` continues.
const LIVE_CURSOR_HEADER: &str = "x-live-cursor";

/// A position in the points, as text: the agent's start and the index of the next point.
fn live_cursor(state: &AgentState, next_index: u64) -> String {
    format!("{:x}-{next_index}", state.start_tag())
}

/// Returns the index that a position names: 0 for a position of an earlier start, because the client
/// has none of this start's points.
fn index_of_cursor(state: &AgentState, cursor: &str) -> u64 {
    let parse = || {
        let (tag, index) = cursor.split_once('-')?;
        let same_start = u64::from_str_radix(tag, 16).ok()? == state.start_tag();
        if same_start { index.parse::<u64>().ok() } else { None }
    };
    parse().unwrap_or(0).min(state.next_point_index())
}

/// Returns the newest samples and events, at most 12000 points.
#[utoipa::path(get, path = "/points", responses((status = 200, body = Vec<ChartPoint>)))]
async fn points(Extract(local): Extract<LocalState>) -> Response {
    let (points, next_index) = local.state.points();
    let cursor = live_cursor(&local.state, next_index);
    ([(LIVE_CURSOR_HEADER, cursor)], Json(points)).into_response()
}

#[derive(Deserialize)]
struct LiveQuery {
    from: Option<String>,
}

/// A reader of the points. A slow one falls behind, and misses nothing that is still held.
struct LiveReader {
    state: AgentState,
    /// Wakes the reader when a point is added.
    added: broadcast::Receiver<ChartPoint>,
    next_index: u64,
    stop: CancellationToken,
}

impl LiveReader {
    /// Waits for the next point. Returns `None` when the agent stops.
    async fn next_event(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        while !self.stop.is_cancelled() {
            if let Some((index, point)) = self.state.point_at(self.next_index) {
                self.next_index = index.saturating_add(1);
                let id = live_cursor(&self.state, self.next_index);
                let event = Event::default().id(id).json_data(point).ok()?;
                return Some((Ok(event), self));
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                added = self.added.recv() => {
                    if matches!(added, Err(RecvError::Closed)) {
                        return None;
                    }
                }
            }
        }
        None
    }
}

/// Streams samples and events as server-sent events, as each frame is made.
///
/// The stream begins with the next point. With `from`, the header `x-live-cursor` of `/points`, or
/// with `Last-Event-ID`, which a browser sends when it reconnects, it begins with the first point
/// that the client does not have.
#[utoipa::path(get, path = "/live",
    params(("from" = Option<String>, Query, description = "The header x-live-cursor of /points")),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
async fn live(
    Extract(local): Extract<LocalState>,
    Query(query): Query<LiveQuery>,
    headers: HeaderMap,
) -> Response {
    let state = local.state;
    let reconnected = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let cursor = reconnected.or(query.from.as_deref());
    let added = state.subscribe();
    let next_index =
        cursor.map_or_else(|| state.next_point_index(), |cursor| index_of_cursor(&state, cursor));
    let reader = LiveReader { state, added, next_index, stop: local.stop };
    let points = stream::unfold(reader, LiveReader::next_event);
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
    let kind = mark.kind;
    let command = JournalCommand::RecordEvent { kind, note: mark.note, done };
    local
        .commands
        .try_send(command)
        .map_err(|_| refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is busy"))?;
    match waiting.await {
        Ok(ManualEventResult::Recorded) => Ok(StatusCode::NO_CONTENT),
        Ok(ManualEventResult::NotApplicable) if kind == EventKind::Charge => {
            Err(refuse_invalid("a roast is running already, or nothing was measured yet"))
        }
        Ok(ManualEventResult::NotApplicable) => Err(refuse_invalid("no roast is running")),
        Ok(ManualEventResult::NoRoom) => Err(refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the disk cannot be used and memory is full: nothing is recorded",
        )),
        Err(_) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::{ChainId, Channel, ClockQuality, Column, EpochMs, Frame};

    fn add_samples(state: &AgentState, first_seq: u64, count: u64) {
        let offsets_ms = (0..u32::try_from(count).unwrap()).map(|i| i * 100).collect();
        let values = (first_seq..first_seq + count).map(|seq| Some(seq as f64)).collect();
        let frame = Frame {
            origin: "acme/leipzig/r-1".parse().unwrap(),
            chain: ChainId([1; 16]),
            number: 1,
            previous: None,
            boot_id: 1,
            first_seq,
            mono_ms: 0,
            wall: EpochMs(1_760_000_000_000),
            clock: ClockQuality::Unknown,
            profile_digest: None,
            offsets_ms,
            columns: vec![Column { channel: Channel::Bt, values, quality: vec![] }],
            events: vec![],
        };
        state.add_frame(&frame, 0);
    }

    async fn read(mut reader: LiveReader, count: u64) -> (u64, LiveReader) {
        let mut received = 0;
        for _ in 0..count {
            let (event, same) = reader.next_event().await.unwrap();
            received += u64::from(event.is_ok());
            reader = same;
        }
        (received, reader)
    }

    #[tokio::test]
    async fn a_slow_reader_of_the_live_points_misses_none() {
        let state = AgentState::new("acme/leipzig/r-1".to_owned());
        let reader = LiveReader {
            added: state.subscribe(),
            next_index: state.next_point_index(),
            state: state.clone(),
            stop: CancellationToken::new(),
        };
        // More than the channel of the live points holds.
        for round in 0..10 {
            add_samples(&state, round * 100, 100);
        }
        let (received, reader) = read(reader, 1_000).await;
        assert_eq!((received, reader.next_index), (1_000, 1_000));
        add_samples(&state, 1_000, 1);
        let (_, reader) = read(reader, 1).await;
        assert_eq!(reader.next_index, 1_001);
    }

    #[test]
    fn a_reader_continues_where_it_stopped_and_starts_over_after_a_restart_of_the_agent() {
        let state = AgentState::new("acme/leipzig/r-1".to_owned());
        add_samples(&state, 0, 50);
        assert_eq!(index_of_cursor(&state, &live_cursor(&state, 20)), 20);
        assert_eq!(index_of_cursor(&state, &live_cursor(&state, 99)), 50, "never beyond the end");
        let earlier = format!("{:x}-20", state.start_tag().wrapping_add(1));
        for unknown in [earlier.as_str(), "", "20", "x-y", "-"] {
            assert_eq!(index_of_cursor(&state, unknown), 0, "{unknown}");
        }
    }
}
