//! Server-sent events. `id` is the stream's position ([`ResumeId`]): a browser that reconnects sends
//! it (`Last-Event-ID`) and misses nothing. A comment every few seconds keeps the connection open.
//!
//! A stream holds one row, or a page of rows that it replays, and makes their messages in parts: a
//! client that does not read takes no further memory.

mod replay;

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
use service::tasks;
use tokio::sync::broadcast;

use self::replay::{Replay, reached, read_page};
use super::SharedState;
use super::machine_filter::MachineFilter;
use super::read_pace::ReadPace;
use super::resume_id::ResumeId;
use crate::live_tail::{LiveRow, Notice, SubscriberPlace, Subscription};
use crate::row_json;
use crate::store::IngestStore;

const HEARTBEAT: Duration = Duration::from_secs(10);
/// The number of messages that are made at once.
const MESSAGES: usize = 64;

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
    let names = shared.store.machine_names(&request.org).await?;
    let machines = MachineFilter::new(&request.params).with_names(&names);
    let filter = StreamFilter { org: request.org.clone(), machines };
    let subscription = match what {
        StreamKind::Telemetry => shared.tail.telemetry(&request.org).await,
        StreamKind::Events => shared.tail.events(&request.org).await,
    };
    let Some(Subscription { notices, position, place }) = subscription else {
        return Err(ApiError::Unavailable("the live stream does not run yet".to_owned()));
    };
    let last = headers.get("last-event-id").and_then(|v| ResumeId::parse(v.to_str().ok()?));
    let last = match last {
        Some(last) if last.arrival > position.arrival => reached(&shared.store, what, last).await?,
        last => last,
    };
    let source = Source {
        notices,
        _place: place,
        newest: last.as_ref().map_or(0, |last| last.arrival),
        replay: last.map(|last| Replay::new(last, position)),
        page: VecDeque::new(),
        current: None,
        ready: VecDeque::new(),
        filter,
        what,
        form,
        store: shared.store.clone(),
        pace: shared.pace.clone(),
        stop: shared.stop.clone(),
    };
    let keep_alive = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    let mut response = Sse::new(source.into_stream()).keep_alive(keep_alive).into_response();
    // Proxies must not hold events back to fill a buffer.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct Source {
    notices: broadcast::Receiver<Arc<Notice>>,
    _place: SubscriberPlace,
    /// The newest row that the client has received.
    newest: i64,
    replay: Option<Replay>,
    /// Replayed rows that have not been sent.
    page: VecDeque<Arc<LiveRow>>,
    /// The row that is being sent, and how many of its messages have been made.
    current: Option<(Arc<LiveRow>, usize)>,
    ready: VecDeque<Event>,
    filter: StreamFilter,
    what: StreamKind,
    form: Form,
    store: IngestStore,
    pace: ReadPace,
    stop: CancellationToken,
}

impl Source {
    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut source| async move {
            let event = source.next().await?;
            Some((Ok(event), source))
        })
    }

    /// Returns the next event. `None` ends the stream: the service stops, the database does not
    /// answer, or the client fell behind; it reconnects with its last id.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if let Some((row, made)) = self.current.take() {
                let arrival = row.row.arrival;
                let made = tasks::catch("live-messages", || self.make_messages(row, made));
                if let Err(panicked) = made {
                    tracing::error!(error = %panicked, arrival, "left a row out of a stream");
                }
                continue;
            }
            if let Some(row) = self.page.pop_front() {
                if self.filter.matches(&row.row.origin) {
                    self.current = Some((row, 0)); // its page has been waited for
                }
                continue;
            }
            let stop = self.stop.clone();
            if let Some(replay) = self.replay.as_mut().filter(|replay| !replay.is_done()) {
                let page = tokio::select! {
                    () = stop.cancelled() => return None,
                    page = read_page(replay, &self.store, &self.pace, &self.filter, self.what) => page,
                };
                match page {
                    Ok(rows) => self.page.extend(rows.into_iter().map(Arc::new)),
                    Err(error) => {
                        tracing::debug!(%error, "could not replay a stream; its client reconnects");
                        return None;
                    }
                }
                continue;
            }
            let notice = tokio::select! {
                () = stop.cancelled() => return None,
                notice = self.notices.recv() => notice.ok()?,
            };
            if !self.filter.matches(&notice.origin) {
                continue;
            }
            let row = notice.row.upgrade()?;
            if self.replay.as_ref().is_some_and(|replay| !replay.lacks(row.row.arrival)) {
                continue;
            }
            let cells = row.row.cells();
            drop(row); // the tail decides how long it keeps a row for those that wait
            tokio::select! {
                () = stop.cancelled() => return None,
                () = self.pace.wait(&self.filter.org, cells) => {}
            }
            self.current = Some((notice.row.upgrade()?, 0));
        }
    }

    /// Makes the next messages of a row, of which `made` have been made before. Only the last one
    /// has an id, so that a client resumes after a whole frame.
    fn make_messages(&mut self, row: Arc<LiveRow>, made: usize) {
        let name = match self.what {
            StreamKind::Telemetry => "telemetry",
            StreamKind::Events => "roastEvent",
        };
        let envelopes = row.row.envelopes(made, MESSAGES);
        let made = made.saturating_add(envelopes.len());
        let texts = envelopes.iter().filter_map(|envelope| match self.form {
            Form::Envelope => serde_json::to_string(envelope).ok(),
            Form::Legacy => row_json::located_json(envelope).ok(),
        });
        let mut messages: Vec<_> =
            texts.map(|text| Event::default().event(name).data(text)).collect();
        if made < row.row.len() {
            self.current = Some((row, made));
        } else if let Some(last) = messages.pop() {
            self.newest = self.newest.max(row.row.arrival);
            messages.push(last.id(ResumeId::text(self.newest, &row.missing)));
        }
        self.ready.extend(messages);
    }
}
