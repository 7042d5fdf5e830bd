//! Serves Artisan's JSON protocol over a WebSocket: `{"command":"getData","id":7}` is answered with
//! `{"id":7,"data":{"BT":180.5,"ET":201.2}}`, and events are pushed without a request. Names and
//! messages are Artisan's defaults.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Extract;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse as _, Response};
use contract::{Channel, EventKind};
use serde_json::{Map, Value, json};
use service::origin::refuse_foreign_pages;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use crate::agent_state::AgentState;
use crate::clock::GatewayClock;

/// The number of open connections; a further one is refused with 503.
const CONNECTIONS_MAX: usize = 8;
/// The longest message accepted; a request is a few dozen bytes.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// How often a connection is asked whether it still lives, and for how long it may be silent.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const SILENCE_MAX: Duration = Duration::from_secs(95);

/// The state from which all connections are served.
#[derive(Clone)]
struct WebSocketState {
    agent: AgentState,
    clock: GatewayClock,
    age_max_ms: u64,
    open: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// Returns the router. It accepts any path, because the path is configurable in Artisan.
pub fn app(
    agent: AgentState,
    clock: GatewayClock,
    age_max_ms: u64,
    stop: CancellationToken,
) -> Router {
    let state = WebSocketState { agent, clock, age_max_ms, open: Arc::default(), stop };
    Router::new()
        .fallback(axum::routing::get(connect))
        .with_state(state)
        .layer(from_fn(refuse_foreign_pages))
}

async fn connect(Extract(state): Extract<WebSocketState>, upgrade: WebSocketUpgrade) -> Response {
    if state.open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        state.open.fetch_sub(1, Ordering::Relaxed);
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let slot = ConnectionSlot(state.open.clone());
    upgrade.max_message_size(MESSAGE_BYTES_MAX).on_upgrade(async move |socket| {
        serve(socket, state).await;
        drop(slot);
    })
}

/// Counts one open connection until it is dropped.
struct ConnectionSlot(Arc<AtomicUsize>);

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(mut socket: WebSocket, state: WebSocketState) {
    let mut live = state.agent.subscribe();
    let mut ping = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            () = state.stop.cancelled() => return,
            received = socket.recv() => {
                heard = Instant::now();
                match received {
                    Some(Ok(Message::Text(text))) => answer(&text, &state),
                    Some(Ok(_)) => None, // pings are answered below us
                    Some(Err(_)) | None => return,
                }
            }
            // A client that is gone, or never answers, must not keep Artisan out.
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE_MAX
                    || socket.send(Message::Ping(Vec::new().into())).await.is_err()
                {
                    return;
                }
                None
            }
            point = live.recv() => match point {
                Ok(point) => point.mark.and_then(push_message),
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => return,
            },
        };
        if let Some(message) = message
            && socket.send(Message::Text(message.to_string().into())).await.is_err()
        {
            return;
        }
    }
}

/// Returns the response to a request. A message without an id gets no response. Any command other
/// than `getData` gets an error, because nothing is written to the machine here.
fn answer(text: &str, state: &WebSocketState) -> Option<Value> {
    let request: Value = serde_json::from_str(text).ok()?;
    let id = request.get("id").filter(|id| id.is_number() || id.is_string())?;
    if request["command"] != "getData" {
        tracing::warn!(command = %request["command"], "a command by Artisan was refused");
        let error = "this gateway shows the machine and moves nothing";
        return Some(json!({"id": id, "error": error}));
    }
    let mut data = Map::new();
    // An old value is left out, so that Artisan shows a gap.
    let newest = state.agent.newest();
    let now = state.clock.mono_ms();
    if let Some(newest) = newest.filter(|n| now.saturating_sub(n.mono_ms) <= state.age_max_ms) {
        for (channel, value) in newest.values {
            data.insert(artisan_name(&channel).to_owned(), json!(value));
        }
    }
    Some(json!({"id": id, "data": data}))
}

/// Returns Artisan's name of a channel; an extra channel keeps its own name.
fn artisan_name(channel: &Channel) -> &str {
    match channel {
        Channel::Bt => "BT",
        Channel::Et => "ET",
        Channel::Ror => "RoR",
        Channel::Gas => "burner",
        Channel::Fan => "fan",
        Channel::Drum => "drum",
        Channel::Ambient => "ambient",
        Channel::Extra(name) => name,
    }
}

/// Returns the message that announces an event to Artisan; `None` for events it does not know.
fn push_message(mark: EventKind) -> Option<Value> {
    let event = match mark {
        EventKind::Charge => return Some(json!({"pushMessage": "startRoasting"})),
        EventKind::Drop => return Some(json!({"pushMessage": "endRoasting"})),
        EventKind::DryEnd => "colorChangeEvent",
        EventKind::Fc => "firstCrackBeginningEvent",
        EventKind::FcEnd => "firstCrackEndEvent",
        EventKind::Sc => "secondCrackBeginningEvent",
        EventKind::ScEnd => "secondCrackEndEvent",
        _ => return None,
    };
    Some(json!({"pushMessage": "addEvent", "data": {"event": event}}))
}
