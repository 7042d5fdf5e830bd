//! Hostile bytes to the ports of a gateway: Artisan's Modbus and WebSocket, and the local page.
//!
//! They come from one address, and held connections from another. Either may take half of a
//! port's places, so that the bytes reach the decoders. The agent's own tests hold connections on
//! every place.

use std::net::Ipv4Addr;
use std::time::Duration;

use service::shutdown::CancellationToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::SentCounts;
use super::connections::{Hold, connect};
use super::frames::noise;
use super::gateway::GatewayPorts;

/// The address that hostile bytes come from.
const SENDS_FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 1);
/// The address of connections that are only held.
pub const HOLDS_FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 2);
const PAUSE: Duration = Duration::from_millis(30);
/// How long a client waits for the beginning of an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(50);
/// The connections of each kind that are held on a port; more than their address may have.
const HELD_A_PORT: usize = 8;

const MODBUS: &str = "Modbus requests to a gateway";
const WEBSOCKET: &str = "WebSocket messages to a gateway";
const PAGE: &str = "page requests to a gateway";
const SILENT: &str = "silent connections to a gateway";
const UNENDING: &str = "requests that never end to a gateway";
const UNREAD: &str = "live streams of a gateway that are hardly read";

/// Returns what is held on the ports.
pub fn holds(ports: GatewayPorts) -> Vec<Hold> {
    let hold = |kind: &'static str, port: u16, start: &'static [u8]| Hold {
        kind,
        port,
        count: HELD_A_PORT,
        start,
    };
    vec![
        hold(SILENT, ports.page, b""),
        hold(SILENT, ports.modbus, b""),
        hold(SILENT, ports.websocket, b""),
        hold(UNENDING, ports.page, b"POST /marks HTTP/1.1\r\nHost: localhost\r\nx-slow: "),
        hold(UNENDING, ports.modbus, &[0, 9, 0, 0, 0, 200, 1]),
        hold(UNENDING, ports.websocket, b"GET /WebSocket HTTP/1.1\r\nHost: localhost\r\nx-slow: "),
        hold(UNREAD, ports.page, b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ]
}

/// Returns bytes for the Modbus port: requests of the wrong form, of addresses that do not exist,
/// and to write.
fn modbus(turn: u64) -> anyhow::Result<Vec<u8>> {
    /// A valid request for one register of the bean temperature.
    const READ: [u8; 12] = [0, 9, 0, 0, 0, 6, 1, 3, 0, 2, 0, 1];
    Ok(match turn % 10 {
        0 => vec![0, 9, 0, 0, 0, 0, 1],                // a length of 0
        1 => vec![0, 9, 0, 0, 0xff, 0xff, 1, 3],       // a length of 65535
        2 => vec![0, 9, 0, 7, 0, 6, 1, 3, 0, 2, 0, 1], // another protocol
        3 => vec![0, 1, 0, 0, 0, 8, 1, 0x0f, 0, 0, 0xff, 0xff, 1, 0], // 65535 coils in a byte
        4 => vec![0, 1, 0, 0, 0, 8, 1, 0x10, 0, 0, 0, 1, 1, 0], // half a register
        5 => vec![0, 9, 0, 0, 0, 6, 1, 3, 0, 2, 0, 0], // no register
        6 => vec![0, 9, 0, 0, 0, 6, 1, 3, 0xff, 0xff, 0, 125], // beyond the last address
        7 => vec![0, 9, 0, 0, 0, 6, 1, 6, 4, 0x51, 0, 100], // the burner to 100 %
        8 => READ.repeat(500),
        _ => noise(turn, 2_000)?,
    })
}

/// Returns a frame of a WebSocket client whose mask changes nothing.
fn websocket_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[first, 0x80 | 0x7e][..], &length, &[0; 4], payload].concat()
}

/// Returns bytes for the WebSocket port: the request for a WebSocket with what follows it.
fn websocket(port: u16, turn: u64) -> anyhow::Result<Vec<u8>> {
    const TEXT: u8 = 0x81;
    let upgrade = |more: &str| {
        format!(
            "GET /WebSocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        )
        .into_bytes()
    };
    let with = |frame: &[u8]| [&upgrade("")[..], frame].concat();
    Ok(match turn % 10 {
        0 => upgrade("Origin: https://evil.example\r\n"),
        1 => with(&websocket_frame(TEXT, &[b'['; 4_000])),
        2 => with(&websocket_frame(TEXT, &[0xff; 1_000])), // no UTF-8
        3 => with(&[TEXT, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        4 => with(&[TEXT, 5, b'h', b'e', b'l', b'l', b'o']), // without a mask
        5 => with(&websocket_frame(0x09, &[0; 1_000])),      // a ping in parts, and too long
        6 => with(&websocket_frame(TEXT, br#"{"command":"setControlValue","id":1,"value":1e999}"#)),
        7 => {
            let question = websocket_frame(TEXT, br#"{"command":"getData","id":7}"#);
            with(&question.repeat(200))
        }
        8 => with(&noise(turn, 2_000)?),
        _ => noise(turn, 20_000)?,
    })
}

/// Returns bytes for the port of the local page. None of them is a valid mark.
fn page(turn: u64) -> anyhow::Result<Vec<u8>> {
    let post = |length: usize, body: &[u8]| {
        let head = format!(
            "POST /marks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    Ok(match turn % 9 {
        0 => b"GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec(),
        1 => post(50_000, &b"[".repeat(50_000)),
        2 => post(usize::MAX, b"{"),
        3 => post(40, br#"{"type":"DROP","note":"\u0000","more":1}"#),
        4 => format!("GET / HTTP/1.1\r\nHost: localhost\r\nx: {}\r\n\r\n", "a".repeat(200_000))
            .into_bytes(),
        5 => b"POST /marks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
               ffffffffffffffff\r\n"
            .to_vec(),
        6 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        7 => b"GET /points HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20),
        _ => noise(turn, 4_000)?,
    })
}

/// Returns the kind, port and bytes of a turn.
fn next(ports: GatewayPorts, turn: u64) -> anyhow::Result<(&'static str, u16, Vec<u8>)> {
    let of_kind = turn / 3;
    Ok(match turn % 3 {
        0 => (MODBUS, ports.modbus, modbus(of_kind)?),
        1 => (WEBSOCKET, ports.websocket, websocket(ports.websocket, of_kind)?),
        _ => (PAGE, ports.page, page(of_kind)?),
    })
}

/// Sends the bytes on a connection of their own, and waits a moment for the beginning of an answer.
async fn send(port: u16, bytes: &[u8]) {
    let Some(mut stream) = connect(SENDS_FROM, port).await else { return };
    let exchange = async {
        stream.write_all(bytes).await?;
        stream.read(&mut [0; 4_096]).await
    };
    // Refused, answered or cut off: only what the agent does meanwhile counts.
    let _ = tokio::time::timeout(ANSWER_TIME_MAX, exchange).await;
}

/// Sends hostile bytes until `stop`; returns how many of each kind.
pub async fn attack(
    ports: GatewayPorts,
    only: String,
    stop: CancellationToken,
) -> anyhow::Result<SentCounts> {
    let mut sent = SentCounts::new();
    for turn in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let (kind, port, bytes) = next(ports, turn)?;
        if kind.contains(&only) {
            send(port, &bytes).await;
            *sent.entry(kind).or_default() += 1;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PORTS: GatewayPorts = GatewayPorts { page: 1, modbus: 2, websocket: 3 };

    #[test]
    fn all_kinds_are_named_after_the_gateway_and_sent_to_their_port() {
        let sent = (0..9).map(|turn| next(PORTS, turn).unwrap());
        let sent: BTreeSet<(&str, u16)> = sent.map(|(kind, port, _)| (kind, port)).collect();
        assert_eq!(sent, BTreeSet::from([(MODBUS, 2), (WEBSOCKET, 3), (PAGE, 1)]));
        let held: BTreeSet<&str> = holds(PORTS).iter().map(|hold| hold.kind).collect();
        let all: Vec<&str> = sent.iter().map(|(kind, _)| *kind).chain(held).collect();
        assert!(all.iter().all(|kind| kind.contains("gateway")), "--only gateway selects {all:?}");
    }

    #[test]
    fn no_request_to_the_page_is_a_mark_that_the_agent_would_record() {
        for turn in 0..9 {
            let request = String::from_utf8_lossy(&page(turn).unwrap()).into_owned();
            let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let mark: Result<serde_json::Value, _> = serde_json::from_str(body);
            // The agent refuses unknown fields.
            assert!(!mark.is_ok_and(|mark| mark.get("more").is_none()), "{request}");
        }
    }

    #[test]
    fn a_websocket_frame_has_its_length_and_a_mask() {
        let frame = websocket_frame(0x81, b"{}");
        assert_eq!(frame, [0x81, 0xfe, 0, 2, 0, 0, 0, 0, b'{', b'}']);
    }
}
