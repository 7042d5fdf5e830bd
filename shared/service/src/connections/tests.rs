//! Tests the bounds with real connections on loopback, each peer with an address of its own.

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

use super::*;

const LIMITS: ConnectionLimits = ConnectionLimits {
    total: 6,
    probes: 2,
    per_peer: 3,
    per_local_peer: 3,
    idle: Duration::from_millis(300),
    request: Duration::from_millis(200),
};

async fn serve(limits: ConnectionLimits) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let app = Router::new()
        .route("/", get(async || "here"))
        .route("/health", get(async || "healthy"))
        .route("/openapi.json", get(async || "large"));
    let listener = BoundedListener::new(tcp, limits);
    tokio::spawn(crate::http::serve(listener, app, CancellationToken::new()));
    address
}

/// Connects from the loopback address 127.0.0.`peer`.
async fn connect_from(peer: u8, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, peer], 0))).unwrap();
    socket.connect(address).await.unwrap()
}

async fn connect(address: SocketAddr) -> TcpStream {
    connect_from(1, address).await
}

async fn request(stream: &mut TcpStream, path: &str) {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).await; // the server may have closed it
}

/// Sends a request and reads the start of the response, which leaves the connection open.
async fn is_served(stream: &mut TcpStream) -> bool {
    request(stream, "/").await;
    let mut answer = String::new();
    while !answer.ends_with("here") {
        let mut bytes = [0; 512];
        match stream.read(&mut bytes).await {
            Ok(count) if count > 0 => answer += &String::from_utf8_lossy(&bytes[..count]),
            _ => return false,
        }
    }
    answer.starts_with("HTTP/1.1 200")
}

/// Waits until the server closes the connection, and returns what it sent.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text);
    let closed = tokio::time::timeout(Duration::from_secs(10), read).await;
    let _ = closed.expect("the connection stays open"); // closed or reset
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn listeners_share_the_files_and_leave_some() {
    assert_eq!(ConnectionLimits::shared(1_024, 12).total, 64);
    assert_eq!(ConnectionLimits::shared(65_536, 12).total, 4_096);
    assert_eq!(ConnectionLimits::shared(100, 12).total, 16);
    let files = raise_file_limit(RESERVED_FILES);
    assert!(files >= RESERVED_FILES && raise_file_limit(RESERVED_FILES) == files, "{files}");
}

#[test]
fn a_peer_has_no_more_than_its_share_of_the_places() {
    for (total, probes, half, quarter) in
        [(16, 4, 6, 3), (32, 4, 14, 7), (64, 4, 30, 15), (4_096, 32, 2_032, 1_016)]
    {
        let limits = ConnectionLimits::new(total);
        assert_eq!((limits.probes, limits.per_peer, limits.per_local_peer), (probes, half, half));
        let limits = limits.with_quarter_per_peer();
        assert_eq!((limits.per_peer, limits.per_local_peer), (quarter, half), "{total}");
    }
}

#[test]
fn the_addresses_of_one_ipv6_network_are_one_peer() {
    let same = |a: &str, b: &str| network_of(a.parse().unwrap()) == network_of(b.parse().unwrap());
    assert!(same("2001:db8::1", "2001:db8::ffff:2"));
    assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
    assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
    assert!(!same("192.0.2.1", "192.0.2.2"));
    // All computers of a local network share its first 64 bits.
    assert!(!same("fe80::1", "fe80::2") && !same("fd00::1", "fd00::2"));
}

fn peer(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

#[tokio::test]
async fn a_further_place_ends_the_oldest() {
    let places = YieldingPlaces::new(2);
    let [first, second, third] = [1, 2, 3].map(|n| places.take(peer(n)));
    first.ended().await;
    assert!(!second.end.is_cancelled() && !third.end.is_cancelled());
    drop(third);
    let _fourth = places.take(peer(4));
    assert!(!second.end.is_cancelled(), "a place had come back");
}

#[test]
fn a_peer_that_takes_places_again_and_again_ends_its_own() {
    let places = YieldingPlaces::new(3);
    let honest = places.take(peer(1));
    let flood: Vec<_> = (0..20).map(|_| places.take(peer(2))).collect();
    assert!(!honest.end.is_cancelled(), "the oldest of all");
    let open = flood.iter().filter(|place| !place.end.is_cancelled()).count();
    assert_eq!(open, 2);
    let second = places.take(peer(3));
    assert!(!honest.end.is_cancelled() && !second.end.is_cancelled());
}

#[tokio::test]
async fn a_silent_and_a_slow_connection_are_closed() {
    let address = serve(LIMITS).await;
    let mut silent = connect(address).await;
    let mut slow = connect(address).await;
    // A byte in each half of the time limit: the connection is never idle.
    let (mut reader, mut writer) = slow.split();
    let trickle = async {
        let head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".iter().chain([b'x'; 200].iter());
        for byte in head {
            if writer.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server waits for a slow request");
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = trickle => {}
        _ = reader.read_to_end(&mut answer) => {}
    }
    assert!(!String::from_utf8_lossy(&answer).contains("here"));
    assert_eq!(rest(&mut silent).await, "");
}

#[tokio::test]
async fn one_peer_does_not_take_every_place_and_a_place_comes_back() {
    let address = serve(LIMITS).await;
    let mut held = Vec::new();
    for _ in 0..LIMITS.per_local_peer {
        let mut stream = connect(address).await;
        assert!(is_served(&mut stream).await);
        held.push(stream);
    }
    let mut further = connect(address).await;
    request(&mut further, "/").await;
    let refused = rest(&mut further).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    assert!(refused.contains("x-content-type-options: nosniff"), "{refused}");
    assert!(is_served(&mut connect_from(2, address).await).await, "another peer has places");
    drop(held);
    // The server sees the ends of the others at some moment.
    for _ in 0..100 {
        let mut stream = connect(address).await;
        if is_served(&mut stream).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no place came back");
}

#[tokio::test]
async fn health_is_answered_while_four_peers_hold_every_place() {
    let limits = ConnectionLimits {
        total: 10,
        per_local_peer: 2,
        idle: Duration::from_secs(30),
        request: Duration::from_secs(30),
        ..LIMITS
    };
    let address = serve(limits).await;
    let (mut held, mut probing) = (Vec::new(), Vec::new());
    for peer in 2..6 {
        for _ in 0..limits.per_local_peer {
            let mut stream = connect_from(peer, address).await;
            assert!(is_served(&mut stream).await, "127.0.0.{peer}");
            held.push(stream);
        }
        // Each also holds places for probes, and sends nothing.
        for _ in 0..PROBES_PER_PEER_MAX {
            probing.push(connect_from(peer, address).await);
        }
    }
    let ask = async |path: &str| {
        let mut stream = connect(address).await;
        let start = Instant::now();
        request(&mut stream, path).await;
        (rest(&mut stream).await, start.elapsed())
    };
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let (healthy, time) = ask("/health").await;
        assert!(healthy.starts_with("HTTP/1.1 200") && healthy.ends_with("healthy"), "{healthy}");
        assert!(healthy.contains("connection: close"), "{healthy}");
        fastest = fastest.min(time);
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    for path in ["/", "/openapi.json", "/none"] {
        let (refused, _) = ask(path).await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{path}: {refused}");
    }
    // No connection was ended for a new one except those for probes.
    for stream in &mut held {
        assert!(is_served(stream).await);
    }
    let [oldest, ..] = &mut probing[..] else { unreachable!() };
    assert_eq!(rest(oldest).await, "");
}
