//! The WebSocket port for Artisan. The first byte chooses between any bytes, any frames after the
//! handshake, and a text message in a valid frame.
#![no_main]
use std::sync::LazyLock;

use fuzz::MemoryServer;
use serde_json::Value;

static PORT: LazyLock<MemoryServer> =
    LazyLock::new(|| MemoryServer::start(simcorp_edge::fuzzing::artisan_websocket()));

const HANDSHAKE: &[u8] = b"GET /WebSocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// The longest text message that is sent; the port accepts longer ones.
const TEXT_BYTES_MAX: usize = 4_000;

/// Returns a frame of a client whose mask is zero.
fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let mut frame = vec![0x80 | kind, 0x80 | 126];
    if length < 126 {
        frame[1] = 0x80 | u8::try_from(length).unwrap();
    } else {
        frame.extend_from_slice(&length.to_be_bytes());
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(content);
    frame
}

/// Returns the texts of the server's frames, behind its answer to the handshake.
fn texts(answer: &[u8]) -> Vec<Value> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
    let mut rest = &answer[end + 4..];
    let mut texts = Vec::new();
    while let [kind, length, after @ ..] = rest {
        let (length, after) = match (length, after) {
            (126, [high, low, after @ ..]) => (u16::from_be_bytes([*high, *low]), after),
            _ => (u16::from(*length), after),
        };
        let (content, after) = after.split_at(usize::from(length));
        if *kind == 0x81 {
            texts.push(serde_json::from_slice(content).expect("JSON"));
        }
        rest = after;
    }
    texts
}

/// Sends a text message. An answer has the id of the request, and there is at most one.
fn ask(text: &str) {
    // A close frame without a status follows.
    let request = [HANDSHAKE, &frame(1, text.as_bytes()), &frame(8, &[])].concat();
    let answer = PORT.ask(&request);
    assert_eq!(MemoryServer::status(&answer), Some(101), "{}", answer.escape_ascii());
    let asked: Option<Value> = serde_json::from_str(text).ok();
    let id = asked.as_ref().and_then(|asked| asked.get("id"));
    let id = id.filter(|id| id.is_number() || id.is_string());
    let told = texts(&answer);
    assert_eq!(told.len(), usize::from(id.is_some()), "{text}");
    assert_eq!(told.first().map(|told| &told["id"]), id);
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, content)) = bytes.split_first() else { return };
    match (choice % 3, std::str::from_utf8(content)) {
        (0, _) => drop(PORT.send(content)),
        (2, Ok(text)) if text.len() <= TEXT_BYTES_MAX => ask(text),
        _ => drop(PORT.send(&[HANDSHAKE, content].concat())),
    }
    // Whatever was sent, the port serves the next client.
    if choice % 3 < 2 {
        ask(r#"{"id":7,"command":"getData"}"#);
    }
});
