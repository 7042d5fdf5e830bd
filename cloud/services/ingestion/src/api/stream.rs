//! Server-sent events. `id` is the row's arrival number: a browser that reconnects sends its
//! position (`Last-Event-ID`) and misses nothing, up to `REPLAY_ROWS_MAX` rows. A comment every few
//! seconds keeps the connection open.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use contract::{OrgId, Origin};
use futures_util::stream::{self, Stream};
use http_stack::OrgRequest;
use http_stack::error::ApiError;
use service::shutdown::CancellationToken;
use tokio::sync::broadcast;

use super::SharedState;
use super::machine_filter::MachineFilter;
use crate::row_json::{self, CommittedRow};
use crate::store::IngestStore;

const HEARTBEAT: Duration = Duration::from_secs(10);
/// The maximum number of rows that a reconnecting browser receives at once; further rows it reads
/// from the session.
const REPLAY_ROWS_MAX: i64 = 5_000;

/// Which rows a client receives.
struct StreamFilter {
    org: OrgId,
    machines: MachineFilter,
}

impl StreamFilter {
    fn matches(&self, origin: &Origin) -> bool {
        origin.org == self.org
            && self.machines.matches(origin.site.as_str(), origin.machine.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamKind {
    Telemetry,
    Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The payload with its origin's ids.
    Legacy,
    Envelope,
}

/// Streams live telemetry: `event: telemetry`, one point a message.
#[utoipa::path(get, path = "/stream/telemetry", tag = "streams",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn telemetry(
    State(shared): State<SharedState>,
    request: OrgRequest,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(&shared, &request, &headers, StreamKind::Telemetry, Form::Legacy).await
}

/// Streams live events: `event: roastEvent`.
#[utoipa::path(get, path = "/stream/events", tag = "streams",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn events(
    State(shared): State<SharedState>,
    request: OrgRequest,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(&shared, &request, &headers, StreamKind::Events, Form::Legacy).await
}

/// Streams live telemetry as full envelopes with `sessionId` and `_verification`.
#[utoipa::path(get, path = "/stream/envelopes/telemetry", tag = "streams",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn envelopes_telemetry(
    State(shared): State<SharedState>,
    request: OrgRequest,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(&shared, &request, &headers, StreamKind::Telemetry, Form::Envelope).await
}

/// Streams live events as full envelopes.
#[utoipa::path(get, path = "/stream/envelopes/events", tag = "streams",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn envelopes_events(
    State(shared): State<SharedState>,
    request: OrgRequest,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(&shared, &request, &headers, StreamKind::Events, Form::Envelope).await
}

async fn stream(
    shared: &SharedState,
    request: &OrgRequest,
    headers: &HeaderMap,
    what: StreamKind,
    form: Form,
) -> Result<Response, ApiError> {
    // Subscribes before it reads the replay, so that no row is lost between the two.
    let live = match what {
        StreamKind::Telemetry => shared.tail.telemetry(),
        StreamKind::Events => shared.tail.events(),
    };
    let filter =
        StreamFilter { org: request.org.clone(), machines: MachineFilter::new(&request.params) };
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse::<i64>().ok());
    let mut replayed = last.unwrap_or(0);
    let mut ready = VecDeque::new();
    if let Some(last) = last {
        for row in replay(&shared.store, &filter, what, last).await? {
            replayed = replayed.max(row.arrival);
            if filter.matches(&row.origin) {
                ready.extend(messages(&row, what, form));
            }
        }
    }
    let source = Source { live, ready, replayed, filter, what, form, stop: shared.stop.clone() };
    let keep_alive = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    let mut response = Sse::new(source.into_stream()).keep_alive(keep_alive).into_response();
    // Proxies must not hold events back to fill a buffer.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Returns the rows that have arrived after `after`, the last that the client has received. The limit
/// counts the rows of the requested machines, not those of all.
async fn replay(
    store: &IngestStore,
    filter: &StreamFilter,
    what: StreamKind,
    after: i64,
) -> Result<Vec<CommittedRow>, ApiError> {
    let (org, names, page) = (Some(&filter.org), filter.machines.names(), (after, REPLAY_ROWS_MAX));
    Ok(match what {
        StreamKind::Telemetry => {
            let rows = store.frames_of_machines_after(org, names, page).await?;
            let running = store.running_sessions(rows.iter().map(|row| row.frame.chain_no)).await?;
            rows.into_iter().filter_map(|row| row_json::committed_frame(row, &running)).collect()
        }
        StreamKind::Events => {
            let rows = store.events_of_machines_after(org, names, page).await?;
            rows.into_iter().filter_map(|(org, row)| row_json::committed_event(&org, row)).collect()
        }
    })
}

struct Source {
    live: broadcast::Receiver<Arc<CommittedRow>>,
    ready: VecDeque<Event>,
    replayed: i64,
    filter: StreamFilter,
    what: StreamKind,
    form: Form,
    stop: CancellationToken,
}

impl Source {
    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut source| async move {
            let event = source.next().await?;
            Some((Ok(event), source))
        })
    }

    /// Returns the next event. `None` ends the stream: the service stops, or the client fell behind
    /// and must reconnect with its last id.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let row = tokio::select! {
                () = self.stop.cancelled() => return None,
                row = self.live.recv() => row.ok()?,
            };
            if row.arrival > self.replayed && self.filter.matches(&row.origin) {
                self.ready.extend(messages(&row, self.what, self.form));
            }
        }
    }
}

/// Returns the messages of a row. Only the last one has the id, so that a client resumes after a
/// whole frame.
fn messages(row: &CommittedRow, what: StreamKind, form: Form) -> Vec<Event> {
    let name = match what {
        StreamKind::Telemetry => "telemetry",
        StreamKind::Events => "roastEvent",
    };
    let count = row.envelopes.len();
    let texts = row.envelopes.iter().filter_map(|envelope| match form {
        Form::Envelope => serde_json::to_string(envelope).ok(),
        Form::Legacy => row_json::located_json(envelope).ok(),
    });
    texts
        .enumerate()
        .map(|(i, text)| {
            let event = Event::default().event(name).data(text);
            if i + 1 == count { event.id(row.arrival.to_string()) } else { event }
        })
        .collect()
}
