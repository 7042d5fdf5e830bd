//! Hostile requests, and connections that are held without one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::json;
use service::shutdown::CancellationToken;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use super::HostileKeys;

/// The address that hostile requests come from.
const REQUESTS_FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The address of connections that are only held.
const HOLDS_FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const PAUSE: Duration = Duration::from_millis(50);
/// The connections that are held on each port.
const HELD_A_PORT: usize = 200;

type Ports = BTreeMap<&'static str, u16>;

/// What one hostile request is.
struct HostileRequest {
    kind: &'static str,
    service: &'static str,
    method: Method,
    path: String,
    body: Vec<u8>,
    /// Uses the operator's key in place of the viewer's.
    operator: bool,
    header: Option<(&'static str, String)>,
}

impl HostileRequest {
    fn get(kind: &'static str, service: &'static str, path: &str) -> Self {
        let path = path.to_owned();
        Self {
            kind,
            service,
            method: Method::GET,
            path,
            body: Vec::new(),
            operator: false,
            header: None,
        }
    }

    fn post(
        kind: &'static str,
        service: &'static str,
        path: &str,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        let get = Self::get(kind, service, path);
        Self { method: Method::POST, body: body.into(), operator: true, ..get }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.header = Some((name, value.into()));
        self
    }
}

fn next(turn: u64) -> anyhow::Result<HostileRequest> {
    use HostileRequest as R;
    Ok(match turn % 12 {
        0 => {
            let method = Method::from_bytes(format!("M{turn:X}").as_bytes())?;
            R { method, ..R::get("made-up methods", "ingestion", "/sessions") }
        }
        1 => R::get("unknown paths", "kernel", &format!("/{turn}/../{turn}")),
        2 => {
            let card =
                json!({"name": "a".repeat(200), "description": "b".repeat(60_000), "n": turn});
            R::post("stored responses", "kernel", "/agents", card.to_string())
                .with("idempotency-key", format!("k{turn}"))
        }
        3 => {
            let roast = json!({"sampleIntervalSeconds": 0.1, "targetFirstCrackSeconds": 3000,
                               "targetDropSeconds": 3600, "seed": turn});
            R {
                operator: false,
                ..R::post("large simulations", "twin", "/simulate/roast", roast.to_string())
            }
        }
        4 => R::get("all telemetry", "ingestion", "/telemetry?limit=1000"),
        5 => R::get("streams from the beginning", "ingestion", "/stream/telemetry")
            .with("last-event-id", "0"),
        6 => {
            let mission = json!({"goal": "generate-roast-report", "priority": "HIGH",
                                 "params": {"sessionId": format!("none-{turn}")},
                                 "context": {"machineId": format!("invented-{turn}")}});
            R::post("missions", "kernel", "/missions", mission.to_string())
        }
        7 => R::post("deep JSON", "kernel", "/missions", vec![b'['; 200_000]),
        8 => R::post("bodies at the bound", "kernel", "/traces", vec![b' '; 1_000_000]),
        9 => {
            let file = format!("{{'timex': [{}", "0.0, ".repeat(100_000));
            R::post("hostile recordings", "ingestion", "/profiles/import?format=alog", file)
        }
        10 => {
            let rows = format!("name,origin\n{}", "=HYPERLINK(1),\"\n".repeat(2_000));
            R::post("hostile tables", "ingestion", "/profiles/import?format=csv", rows)
        }
        _ => R::post("frames of noise", "ingestion", "/v1/frames", vec![0xd2; 300_000]),
    })
}

/// Sends hostile requests until `stop`; returns how many of each kind.
#[allow(clippy::disallowed_methods)] // a client without our limits, as an attacker has
pub async fn flood(
    ports: Ports,
    keys: HostileKeys,
    only: String,
    stop: CancellationToken,
) -> anyhow::Result<Vec<(&'static str, u64)>> {
    let client = Client::builder().local_address(REQUESTS_FROM).build()?;
    let mut sent = BTreeMap::new();
    let mut running = tokio::task::JoinSet::new();
    for turn in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let hostile = next(turn)?;
        if !hostile.kind.contains(&only) {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        *sent.entry(hostile.kind).or_default() += 1;
        let url = format!("http://127.0.0.1:{}{}", ports[hostile.service], hostile.path);
        let key = if hostile.operator { &keys.operator } else { &keys.viewer };
        let mut request = client
            .request(hostile.method, url)
            .bearer_auth(key)
            .header("content-type", "application/json")
            .timeout(Duration::from_secs(20))
            .body(hostile.body);
        if let Some((name, value)) = hostile.header {
            request = request.header(name, value);
        }
        running.spawn(async move {
            // Refused, answered or cut off: only what the honest tenant notices counts.
            if let Ok(answer) = request.send().await {
                let _ = answer.bytes().await;
            }
        });
        while running.len() > 40 {
            running.join_next().await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    running.shutdown().await;
    Ok(sent.into_iter().collect())
}

/// Holds connections to every port until `stop`: half of them silent, half with a request that never
/// ends. Those that a server closes are opened again.
pub async fn hold_connections(
    ports: Ports,
    stop: CancellationToken,
) -> anyhow::Result<Vec<(&'static str, u64)>> {
    let mut held: Vec<(u16, Option<TcpStream>)> = ports
        .values()
        .flat_map(|port| std::iter::repeat_with(|| (*port, None)).take(HELD_A_PORT))
        .collect();
    let mut opened = 0;
    while !stop.is_cancelled() {
        for (i, (port, connection)) in held.iter_mut().enumerate() {
            let alive = match connection {
                Some(stream) if i % 2 == 0 => stream.write_all(b"x").await.is_ok(),
                Some(stream) => stream.try_write(b"").is_ok(),
                None => false,
            };
            if alive {
                continue;
            }
            *connection = connect(*port).await;
            if let (Some(stream), true) = (connection, i % 2 == 0) {
                opened += 1;
                let _ = stream
                    .write_all(b"POST /missions HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
                    .await;
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
    Ok(vec![("connections with a request that never ends", opened)])
}

async fn connect(port: u16) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::new(HOLDS_FROM, 0)).ok()?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    tokio::time::timeout(Duration::from_millis(200), socket.connect(to)).await.ok()?.ok()
}
