//! Server-sent events. `id` is the row's arrival number: a browser that reconnects sends its
//! position (`Last-Event-ID`) and misses nothing, up to `REPLAY_ROWS_MAX` rows. A comment every few
//! seconds keeps the connection open.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use contract::envelope::Payload;
use contract::{OrgId, Origin};
use futures_util::stream::{self, Stream};
use http_stack::error::ApiError;
use serde::Deserialize;
use tokio::sync::broadcast;

use super::RequestState;
use crate::live_tail::{self, CommittedRow};

const HEARTBEAT: Duration = Duration::from_secs(10);
/// The maximum number of rows that a reconnecting browser receives at once; further rows it reads
/// from the session.
const REPLAY_ROWS_MAX: i64 = 5_000;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(clippy::struct_field_names)] // the names of the query parameters
pub struct StreamQuery {
    org_id: String,
    site_id: String,
    machine_id: String,
}

impl StreamQuery {
    fn wants(&self, org: &OrgId, origin: &Origin) -> bool {
        let fits = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        origin.org == *org
            && fits(&self.org_id, origin.org.as_str())
            && fits(&self.site_id, origin.site.as_str())
            && fits(&self.machine_id, origin.machine.as_str())
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
    state: RequestState,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(state, query, &headers, StreamKind::Telemetry, Form::Legacy).await
}

/// Streams live events: `event: roastEvent`.
#[utoipa::path(get, path = "/stream/events", tag = "streams",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn events(
    state: RequestState,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(state, query, &headers, StreamKind::Events, Form::Legacy).await
}

/// Streams live telemetry as full envelopes with `sessionId` and `_verification`.
#[utoipa::path(get, path = "/stream/envelopes/telemetry", tag = "streams",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn envelopes_telemetry(
    state: RequestState,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(state, query, &headers, StreamKind::Telemetry, Form::Envelope).await
}

/// Streams live events as full envelopes.
#[utoipa::path(get, path = "/stream/envelopes/events", tag = "streams",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn envelopes_events(
    state: RequestState,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    stream(state, query, &headers, StreamKind::Events, Form::Envelope).await
}

async fn stream(
    state: RequestState,
    query: StreamQuery,
    headers: &HeaderMap,
    what: StreamKind,
    form: Form,
) -> Result<Response, ApiError> {
    // Subscribes before it reads the replay, so that no row is lost between the two.
    let live = match what {
        StreamKind::Telemetry => state.tail.telemetry(),
        StreamKind::Events => state.tail.events(),
    };
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse::<i64>().ok());
    let mut replayed = last.unwrap_or(0);
    let mut ready = VecDeque::new();
    if let Some(last) = last {
        for row in replay(&state, what, last).await? {
            replayed = replayed.max(row.arrival);
            if query.wants(&state.org, &row.origin) {
                ready.extend(messages(&row, what, form));
            }
        }
    }
    let source = Source { live, ready, replayed, query, what, form, state };
    let keep_alive = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    let mut response = Sse::new(source.into_stream()).keep_alive(keep_alive).into_response();
    // Proxies must not hold events back to fill a buffer.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

async fn replay(
    state: &RequestState,
    what: StreamKind,
    after: i64,
) -> Result<Vec<CommittedRow>, ApiError> {
    let (store, org) = (&state.store, Some(&state.org));
    Ok(match what {
        StreamKind::Telemetry => {
            let roasts = live_tail::running_sessions(store).await?;
            let rows = store.frames_after(org, after, REPLAY_ROWS_MAX).await?;
            rows.into_iter().filter_map(|row| live_tail::live_frame(row, &roasts)).collect()
        }
        StreamKind::Events => {
            let rows = store.events_after(org, after, REPLAY_ROWS_MAX).await?;
            rows.into_iter().filter_map(|(org, row)| live_tail::live_event(&org, row)).collect()
        }
    })
}

struct Source {
    live: broadcast::Receiver<Arc<CommittedRow>>,
    ready: VecDeque<Event>,
    replayed: i64,
    query: StreamQuery,
    what: StreamKind,
    form: Form,
    state: RequestState,
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
                () = self.state.stop.cancelled() => return None,
                row = self.live.recv() => row.ok()?,
            };
            if row.arrival > self.replayed && self.query.wants(&self.state.org, &row.origin) {
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
        Form::Legacy => {
            let mut body = match &envelope.payload {
                Payload::Telemetry(point) => serde_json::to_value(point).ok()?,
                Payload::Event(event) => serde_json::to_value(event).ok()?,
            };
            let ids: HashMap<String, String> =
                serde_json::from_value(serde_json::to_value(&envelope.origin).ok()?).ok()?;
            let fields = body.as_object_mut()?;
            fields.extend(ids.into_iter().map(|(name, id)| (name, id.into())));
            Some(body.to_string())
        }
    });
    texts
        .enumerate()
        .map(|(i, text)| {
            let event = Event::default().event(name).data(text);
            if i + 1 == count { event.id(row.arrival.to_string()) } else { event }
        })
        .collect()
}
