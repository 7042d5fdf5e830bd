//! Serves Artisan's JSON protocol over a WebSocket: `{"command":"getData","id":7}` is answered with
//! `{"id":7,"data":{"BT":180.5,"ET":201.2}}`, and events are pushed without a request. Names and
//! messages are Artisan's defaults.

use std::time::Duration;

use axum::Router;
use axum::extract::State as Extract;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::middleware::from_fn;
use axum::response::Response;
use contract::{Channel, EventKind};
use serde_json::{Map, Value, json};
use service::connections::ConnectionLimits;
use service::origin::refuse_foreign_pages;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use crate::agent_state::AgentState;
use crate::clock::GatewayClock;

/// The bounds on open connections: 8, of which a computer has at most 2, and the programs of this
/// one 4. A further one is refused with 503, as long as there are fewer than 4 of these.
pub const CONNECTIONS: ConnectionLimits = ConnectionLimits::new(12).with_quarter_per_peer();
/// The longest message accepted; a request is a few dozen bytes.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// When a connection ends whose client is gone or never answers, so that it does not keep Artisan
/// out: after a short loss of the wireless network Artisan connects again, and its computer has only
/// two of [`CONNECTIONS`].
#[derive(Debug, Clone, Copy)]
struct SilenceLimits {
    /// How often the client is asked whether it still lives.
    ping_interval: Duration,
    /// For how long it may be silent.
    silence_max: Duration,
}

impl Default for SilenceLimits {
    fn default() -> Self {
        Self { ping_interval: Duration::from_secs(10), silence_max: Duration::from_secs(35) }
    }
}

/// The state from which all connections are served.
#[derive(Clone)]
struct WebSocketState {
    agent: AgentState,
    clock: GatewayClock,
    age_max_ms: u64,
    silence: SilenceLimits,
    stop: CancellationToken,
}

/// Returns the router. It accepts any path, because the path is configurable in Artisan.
pub fn app(
    agent: AgentState,
    clock: GatewayClock,
    age_max_ms: u64,
    stop: CancellationToken,
) -> Router {
    let silence = SilenceLimits::default();
    router(WebSocketState { agent, clock, age_max_ms, silence, stop })
}

fn router(state: WebSocketState) -> Router {
    Router::new()
        .fallback(axum::routing::get(connect))
        .with_state(state)
        .layer(from_fn(refuse_foreign_pages))
}

async fn connect(Extract(state): Extract<WebSocketState>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.max_message_size(MESSAGE_BYTES_MAX).on_upgrade(move |socket| serve(socket, state))
}

async fn serve(mut socket: WebSocket, state: WebSocketState) {
    let mut live = state.agent.subscribe();
    let SilenceLimits { ping_interval, silence_max } = state.silence;
    let mut ping = interval_at(Instant::now() + ping_interval, ping_interval);
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
            _ = ping.tick() => {
                if heard.elapsed() > silence_max
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use service::connections::BoundedListener;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn start(silence: SilenceLimits) -> SocketAddr {
        let state = WebSocketState {
            agent: AgentState::new("org/s/m".to_owned()),
            clock: GatewayClock::start(),
            age_max_ms: 1_000,
            silence,
            stop: CancellationToken::new(),
        };
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = BoundedListener::new(tcp, CONNECTIONS);
        let serving = service::http::serve(listener, router(state), CancellationToken::new());
        tokio::spawn(serving);
        address
    }

    /// Asks for a WebSocket from the loopback address 127.0.0.`peer`, and returns the connection and
    /// the status. `more` are further header lines.
    async fn open(address: SocketAddr, peer: u8, more: &str) -> (TcpStream, u16) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, peer], 0))).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let head = format!(
            "GET /WebSocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        let status = String::from_utf8_lossy(&answer[9..]).parse().unwrap();
        (stream, status)
    }

    #[tokio::test]
    async fn a_page_of_another_site_opens_no_websocket() {
        let address = start(SilenceLimits::default()).await;
        let foreign = "Origin: https://evil.example\r\n";
        assert_eq!(open(address, 1, foreign).await.1, 403);
        assert_eq!(open(address, 1, &format!("Origin: http://{address}\r\n")).await.1, 101);
        assert_eq!(open(address, 1, "").await.1, 101, "Artisan is no browser");
    }

    #[tokio::test]
    async fn a_silent_client_is_disconnected_and_one_that_answers_stays() {
        let address = start(SilenceLimits {
            ping_interval: Duration::from_millis(20),
            silence_max: Duration::from_millis(100),
        })
        .await;
        let (mut answering, _) = open(address, 1, "").await;
        let (mut silent, _) = open(address, 1, "").await;
        let answers = async {
            // Masked pongs without data.
            while answering.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let ended = async {
            let mut rest = Vec::new();
            let _ = silent.read_to_end(&mut rest).await; // closed or reset
        };
        tokio::select! {
            () = answers => panic!("the client that answers was disconnected"),
            ended = timeout(PATIENCE, ended) => ended.expect("the silent client stays"),
        }
        let question = br#"{"command":"getData","id":7}"#;
        let length = 0x80 | u8::try_from(question.len()).unwrap();
        let message = [&[0x81, length, 0, 0, 0, 0][..], question].concat();
        answering.write_all(&message).await.unwrap();
        let mut received = String::new();
        while !received.contains(r#""id":7"#) {
            let mut bytes = [0; 512];
            let count = timeout(PATIENCE, answering.read(&mut bytes)).await.unwrap().unwrap();
            assert!(count > 0, "the client that answers was disconnected");
            received += &String::from_utf8_lossy(&bytes[..count]);
        }
    }

    #[tokio::test]
    async fn one_computer_does_not_take_the_places_of_the_others() {
        let address = start(SilenceLimits::default()).await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS.per_local_peer {
            let (stream, status) = open(address, 2, "").await;
            assert_eq!(status, 101);
            held.push(stream);
        }
        assert_eq!(open(address, 2, "").await.1, 503);
        assert_eq!(open(address, 3, "").await.1, 101);
    }
}
