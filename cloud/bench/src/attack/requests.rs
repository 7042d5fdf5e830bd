//! Hostile requests to the services, and what is held on their ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::json;
use service::shutdown::CancellationToken;

use super::connections::Hold;
use super::frames::{RUNNING_ROAST, RUNNING_SESSION};
use super::{HostileKeys, SentCounts};

/// The address that hostile requests come from.
const REQUESTS_FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The address of connections that are only held.
pub const HOLDS_FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PAUSE: Duration = Duration::from_millis(50);
/// The connections that are held on each port.
pub const HELD_A_PORT: usize = 200;

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
    Ok(match turn % 15 {
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
        11 => R::get(RUNNING_ROAST, "ingestion", "/sessions?limit=500"),
        12 => R::get(RUNNING_ROAST, "ingestion", "/machines"),
        13 => {
            let path = format!("/sessions/{RUNNING_SESSION}/telemetry?limit=100000");
            R::get(RUNNING_ROAST, "ingestion", &path)
        }
        _ => R::post("frames of noise", "ingestion", "/v1/frames", vec![0xd2; 300_000]),
    })
}

/// Returns what is held on every port: connections that are silent, and as many with a request that
/// never ends.
pub fn holds(ports: &Ports) -> Vec<Hold> {
    const START: &[u8] = b"POST /missions HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
    let count = HELD_A_PORT / 2;
    let of_port = |port: u16| {
        [
            Hold { kind: "silent connections", port, count, start: b"" },
            Hold { kind: "connections with a request that never ends", port, count, start: START },
        ]
    };
    ports.values().copied().flat_map(of_port).collect()
}

/// Sends hostile requests until `stop`; returns how many of each kind.
#[allow(clippy::disallowed_methods)] // a client without our limits, as an attacker has
pub async fn flood(
    ports: Ports,
    keys: HostileKeys,
    only: String,
    stop: CancellationToken,
) -> anyhow::Result<SentCounts> {
    let client = Client::builder().local_address(REQUESTS_FROM).build()?;
    let mut sent = SentCounts::new();
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
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_roast_is_asked_for_by_all_its_lists() {
        let running = (0..15).map(|turn| next(turn).unwrap());
        let running = running.filter(|request| request.kind == RUNNING_ROAST);
        let paths: Vec<String> = running.map(|request| request.path).collect();
        let telemetry = "/sessions/S-hostile-running/telemetry?limit=100000";
        assert_eq!(paths, ["/sessions?limit=500", "/machines", telemetry]);
    }

    #[test]
    fn silent_and_slow_connections_are_held_on_every_port() {
        let holds = holds(&Ports::from([("kernel", 1), ("fleet", 2)]));
        let held = |port: u16| -> usize {
            holds.iter().filter(|hold| hold.port == port).map(|hold| hold.count).sum()
        };
        assert_eq!((holds.len(), held(1), held(2)), (4, HELD_A_PORT, HELD_A_PORT));
    }
}
