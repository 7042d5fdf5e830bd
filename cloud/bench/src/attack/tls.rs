//! The fleet's TLS listener for gateways: hostile connections to it, and an honest client of it.
//!
//! No hostile client here completes its handshake, and each comes from one of a few addresses. The
//! honest client comes from another one, and has no certificate, like a gateway that enrols.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Client;
use service::shutdown::CancellationToken;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use super::SentCounts;
use super::connections::{connect, is_open, send_byte};
use super::frames::noise;
use super::watch::AnswerTimes;

/// The address of the honest client.
const ASKS_FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 2, 200));
/// How many addresses hostile connections come from: 127.0.2.1 and following.
const PEERS: u8 = 8;
const PAUSE: Duration = Duration::from_millis(30);
/// The connections of one turn. With two kinds of four that are held for the 10 s of a handshake,
/// there are more of them than the listener has places for handshakes (512).
const CONNECTIONS_A_TURN: usize = 4;
/// The largest number of connections held at once.
pub const HELD_MAX: usize = 1_000;
/// How many held connections get their next byte in a turn: each about twice in 10 s.
const CONTINUED_A_TURN: usize = 5;

const SILENT: &str = "silent TLS connections";
const UNENDING: &str = "TLS handshakes that never end";

/// The beginning of a `ClientHello` of 508 bytes, in a record of 512.
const CLIENT_HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// Returns the kind of a turn's connections, and the bytes that each of them begins with.
fn next(turn: u64) -> anyhow::Result<(&'static str, Vec<u8>)> {
    Ok(match turn % 4 {
        0 => (SILENT, Vec::new()),
        1 => (UNENDING, CLIENT_HELLO.to_vec()),
        2 => {
            let request = b"GET /v1/time HTTP/1.1\r\nhost: localhost\r\n\r\n";
            ("HTTP without TLS", request.to_vec())
        }
        _ => ("noise in place of TLS", noise(turn, 2_000)?),
    })
}

struct HeldConnection {
    kind: &'static str,
    stream: TcpStream,
}

/// Sends the next byte of a few handshakes that never end, and drops connections that the server
/// has closed.
fn continue_handshakes(held: &mut VecDeque<HeldConnection>) {
    for _ in 0..CONTINUED_A_TURN.min(held.len()) {
        let Some(connection) = held.pop_front() else { return };
        let stream = &connection.stream;
        if is_open(stream) && (connection.kind != UNENDING || send_byte(stream)) {
            held.push_back(connection);
        }
    }
}

/// Opens hostile connections until `stop`; returns how many of each kind.
pub async fn attack(
    port: u16,
    only: String,
    stop: CancellationToken,
) -> anyhow::Result<SentCounts> {
    let mut sent = SentCounts::new();
    let mut held = VecDeque::new();
    let mut peers = (1..=PEERS).cycle();
    for turn in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let (kind, start) = next(turn)?;
        if kind.contains(&only) {
            for peer in peers.by_ref().take(CONNECTIONS_A_TURN) {
                let from = Ipv4Addr::new(127, 0, 2, peer);
                let Some(stream) = connect(from, port).await else { continue };
                let _ = stream.try_write(&start); // an error: the server has closed it
                *sent.entry(kind).or_default() += 1;
                if matches!(kind, SILENT | UNENDING) {
                    held.push_back(HeldConnection { kind, stream });
                }
            }
            while held.len() > HELD_MAX {
                held.pop_front();
            }
        }
        continue_handshakes(&mut held);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(sent)
}

/// Asks the fleet for the time once a second until `stop`, each time over a new TLS connection that
/// verifies the fleet's certificate against `authority`, a file.
#[allow(clippy::disallowed_methods)] // one client of this program; its limits are set here
pub async fn ask(
    port: u16,
    authority: PathBuf,
    stop: CancellationToken,
) -> anyhow::Result<AnswerTimes> {
    let pem = std::fs::read(&authority)
        .with_context(|| format!("the fleet's authority {}", authority.display()))?;
    let client = Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&pem)?])
        .resolve("localhost", SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .local_address(ASKS_FROM)
        .timeout(Duration::from_secs(10))
        .pool_max_idle_per_host(0)
        .build()?;
    let url = format!("https://localhost:{port}/v1/time");
    let mut answers = AnswerTimes::default();
    let mut every = interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(answers),
            _ = every.tick() => {}
        }
        answers.ask(client.get(&url)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_connection_comes_in_turn_and_is_named_after_tls() {
        let kinds: BTreeSet<&str> = (0..8).map(|turn| next(turn).unwrap().0).collect();
        assert_eq!(kinds.len(), 4);
        assert!(kinds.iter().all(|kind| kind.contains("TLS")), "--only TLS selects {kinds:?}");
    }

    #[test]
    fn the_beginning_of_the_handshake_promises_more_than_is_ever_sent() {
        let record = usize::from(u16::from_be_bytes([CLIENT_HELLO[3], CLIENT_HELLO[4]]));
        let message = usize::from(u16::from_be_bytes([CLIENT_HELLO[7], CLIENT_HELLO[8]]));
        assert_eq!((record, message), (512, 508));
    }
}
