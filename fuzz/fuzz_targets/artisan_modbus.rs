//! The Modbus port for Artisan: the check of requests, the library behind it, and the registers.
#![no_main]
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use protocols::modbus_tcp::first_request;
use simcorp_edge::fuzzing::{REGISTERS, serve_artisan_modbus};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long the port may take to end a connection, also on a busy machine.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
const HEADER_BYTES: usize = 7;
/// A read of the first register.
const READ: [u8; 12] = [0, 9, 0, 0, 0, 6, 1, 3, 0, 0, 0, 1];

static PORT: LazyLock<(Runtime, SocketAddr)> = LazyLock::new(|| {
    let runtime = fuzz::runtime();
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(serve_artisan_modbus(listener));
    (runtime, address)
});

/// Sends bytes on a new connection, and returns what the port answers until it ends.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    thread_local!(static CLIENT: Cell<u32> = const { Cell::new(0) });
    // Each client has an address of its own: a closed connection keeps its port for a minute.
    let client = CLIENT.replace(CLIENT.get().wrapping_add(1)) % 0x00ff_fffd;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(0x7f00_0002 + client), 0).into()).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let mut answers = Vec::new();
    // An error: the port ended the connection before it read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut answers).await;
    answers
}

/// Returns the requests that the port passes on, up to the first that it refuses.
fn requests(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Ok(Some(length)) = first_request(bytes) {
        let (request, rest) = bytes.split_at(length);
        found.push(request);
        bytes = rest;
    }
    found
}

/// Returns whether an answer is one to a request, and tells only what the port may tell: writes are
/// off, and other registers do not exist.
fn fits(request: &[u8], answer: &[u8]) -> bool {
    let (asked, told) = (&request[HEADER_BYTES..], &answer[HEADER_BYTES..]);
    if request[..2] != answer[..2] || request[6] != answer[6] || told.len() < 2 {
        return false;
    }
    if told[0] == asked[0] | 0x80 {
        return told.len() == 2;
    }
    if told[0] != asked[0] || !(1..=4).contains(&told[0]) || request[6] != 1 {
        return false;
    }
    let word = |at: usize| usize::from(u16::from_be_bytes([asked[at], asked[at + 1]]));
    let (first, count) = (word(1), word(3));
    let bytes = if told[0] <= 2 { count.div_ceil(8) } else { 2 * count };
    first + count <= usize::from(REGISTERS)
        && usize::from(told[1]) == bytes
        && told.len() == 2 + bytes
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (runtime, address) = &*PORT;
    let answers = runtime.block_on(async {
        let answers = timeout(ANSWER_TIME_MAX, exchange(*address, bytes)).await;
        let next = timeout(ANSWER_TIME_MAX, exchange(*address, &READ)).await;
        assert_eq!(next.expect("the port stalls"), [0, 9, 0, 0, 0, 5, 1, 3, 2, 0, 0]);
        answers.expect("the port does not end the connection")
    });
    let mut asked = requests(bytes).into_iter();
    let mut rest = &answers[..];
    while let Some(header) = rest.first_chunk::<HEADER_BYTES>() {
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        // The connection may end within an answer.
        let Some(answer) = rest.get(..6 + length).filter(|answer| answer.len() > HEADER_BYTES)
        else {
            break;
        };
        assert!(asked.any(|request| fits(request, answer)), "no request for {answer:x?}");
        rest = &rest[answer.len()..];
    }
});
