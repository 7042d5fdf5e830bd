//! The gateway's local page. The first byte chooses between any bytes, a body of `POST /marks`, and
//! names of hosts and origins that are not the page's own.
#![no_main]
use std::sync::LazyLock;

use fuzz::MemoryServer;
use serde_json::Value;

static PAGE: LazyLock<MemoryServer> =
    LazyLock::new(|| MemoryServer::start(simcorp_edge::fuzzing::local_page().unwrap()));

/// Sends a request with a JSON body, and returns the status of the answer.
fn post(headers: &str, body: &[u8]) -> Option<u16> {
    let length = body.len();
    let head = format!(
        "POST /marks HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    MemoryServer::status(&PAGE.ask(&[head.as_bytes(), body].concat()))
}

/// Sends a mark, which is recorded only if its body is an event of a known type.
fn mark(body: &[u8]) {
    let status = post("Host: 127.0.0.1:4004", body);
    let event = serde_json::from_slice::<Value>(body).ok();
    // The fields may also come as a list.
    let named = event.is_some_and(|event| event["type"].is_string() || event.is_array());
    assert!(status == Some(400) || (status == Some(204) && named), "{status:?}");
}

/// Sends a mark as a browser sends it for a page of another site: it is never recorded.
fn mark_from_elsewhere(name: &str) {
    // A name that ends like this is neither localhost nor an address.
    let name: String = name.chars().filter(|c| !c.is_ascii_control()).collect();
    if name.to_ascii_lowercase().contains("localhost:4004") {
        return; // perhaps the page's own origin
    }
    let own = "Host: localhost:4004\r\n";
    for headers in [
        format!("Host: {name}.example"),
        format!("{own}Origin: http://{name}.example"),
        format!("{own}Origin: {name}"),
    ] {
        let status = post(&headers, br#"{"type":"CHARGE"}"#);
        assert!(matches!(status, Some(400 | 403 | 421)), "{headers}: {status:?}");
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, content)) = bytes.split_first() else { return };
    match (choice % 3, std::str::from_utf8(content)) {
        (0, _) => drop(PAGE.send(content)),
        (1, Ok(name)) => mark_from_elsewhere(name),
        _ => mark(content),
    }
    // Whatever was sent, the page serves the next client.
    let next = PAGE.ask(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(MemoryServer::status(&next), Some(200), "{}", next.escape_ascii());
});
