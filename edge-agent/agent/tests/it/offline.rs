//! Tests the agent without a cloud: it offers everything that a person at the machine needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use testbed::{Process, binary_path, free_port, wait_for, wait_for_port};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Gateway {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) process: Process,
}

impl Gateway {
    pub(crate) fn new(machine: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port().unwrap());
        let at = folder.path().display();
        let config = folder.path().join("edge.toml");
        let text = format!(
            "[identity]\norg = \"org\"\nsite = \"s\"\ndevice = \"gw\"\nkey_file = \"{at}/key.pem\"\n\
             [journal]\nfolder = \"{at}/journal\"\n[local]\nlisten = \"127.0.0.1:{port}\"\n\
             [machine]\nid = \"r-1\"\n{machine}\n"
        );
        std::fs::write(&config, text).unwrap();
        let program = binary_path("simcorp-edge").unwrap();
        let made = Command::new(&program).arg("-c").arg(&config).args(["key", "create"]).output();
        assert!(made.unwrap().status.success());
        let arguments = ["-c".to_owned(), config.display().to_string(), "run".to_owned()];
        let process = Process::new(program, arguments, folder.path().join("agent.log"));
        Self { folder, port, process }
    }

    pub(crate) fn ask(&self, request: &str, body: &str) -> String {
        self.ask_as("localhost", request, body)
    }

    /// Sends a request to the local page under the name `host`.
    fn ask_as(&self, host: &str, request: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\
             Content-Type: application/json\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let answer = self.ask("GET /status", "");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

#[tokio::test]
async fn a_person_records_events_and_sees_the_roast_without_a_cloud() {
    let mut gateway = Gateway::new(
        "driver = \"simulated\"\n[machine.simulated]\ncharge_after_s = 600\n[sampling]\nperiod_ms = 50\n",
    );
    gateway.process.start().unwrap();
    wait_for_port(gateway.port).await.unwrap();
    wait_for("six samples are taken", PATIENCE, || async {
        gateway.status()["samples"].as_u64() > Some(5)
    })
    .await
    .unwrap();
    let refused = gateway.ask("POST /marks", r#"{"type":"DROP"}"#);
    assert!(
        refused.starts_with("HTTP/1.1 400") && refused.contains("no roast is running"),
        "{refused}"
    );
    let charged = gateway.ask("POST /marks", r#"{"type":"CHARGE"}"#);
    assert!(charged.starts_with("HTTP/1.1 204"), "{charged}");
    wait_for("a roast is running", PATIENCE, || async { gateway.status()["session"].is_string() })
        .await
        .unwrap();
    // A page of another site, whose name its own DNS points to this gateway, ends no roast.
    for host in ["evil.example", "localhost\r\nOrigin: https://evil.example"] {
        let refused = gateway.ask_as(host, "POST /marks", r#"{"type":"DROP"}"#);
        let foreign = refused.starts_with("HTTP/1.1 421") || refused.starts_with("HTTP/1.1 403");
        assert!(foreign, "{refused}");
    }
    assert!(gateway.ask("POST /marks", r#"{"type":"DROP"}"#).starts_with("HTTP/1.1 204"));
    wait_for("the roast has ended", PATIENCE, || async { gateway.status()["session"].is_null() })
        .await
        .unwrap();
    let points = gateway.ask("GET /points", "");
    assert!(
        points.contains("\"mark\":\"CHARGE\"") && points.contains("\"mark\":\"DROP\""),
        "{points}"
    );
    assert!(gateway.ask("GET /", "").contains("<canvas"));
    assert!(gateway.ask("GET /health", "").starts_with("HTTP/1.1 200"));
    assert!(gateway.ask("GET /metrics", "").contains("simcorp_edge_samples_total"));
    let config = gateway.folder.path().join("edge.toml");
    let status = Command::new(binary_path("simcorp-edge").unwrap())
        .arg("-c")
        .arg(config)
        .arg("status")
        .output();
    assert!(
        String::from_utf8(status.unwrap().stdout).unwrap().contains("\"machine\": \"org/s/r-1\"")
    );
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());
}

#[test]
fn only_its_owner_may_read_a_key_that_the_agent_creates() {
    use std::os::unix::fs::PermissionsExt as _;
    let gateway = Gateway::new("driver = \"simulated\"\n");
    let key = std::fs::metadata(gateway.folder.path().join("key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn every_response_of_the_gateway_limits_what_a_browser_does_with_it() {
    let mut gateway = Gateway::new("driver = \"simulated\"\n");
    gateway.process.start().unwrap();
    wait_for_port(gateway.port).await.unwrap();
    for (host, path) in [
        ("localhost", "/"),
        ("localhost", "/page.css"),
        ("localhost", "/page.js"),
        ("localhost", "/status"),
        ("localhost", "/points"),
        ("localhost", "/health"),
        ("localhost", "/no-such-page"),
        ("evil.example", "/"),
    ] {
        let answer = gateway.ask_as(host, &format!("GET {path}"), "");
        let head = answer.split_once("\r\n\r\n").unwrap().0.to_lowercase();
        let policy = head.lines().find(|line| line.starts_with("content-security-policy: "));
        let policy = policy.unwrap_or_else(|| panic!("{host}{path}: {head}"));
        assert!(policy.contains("default-src 'none'"), "{host}{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{host}{path}: {policy}");
        assert!(!policy.contains("unsafe-inline"), "{host}{path}: {policy}");
        assert!(head.contains("x-content-type-options: nosniff"), "{host}{path}: {head}");
        assert!(head.contains("x-frame-options: deny"), "{host}{path}: {head}");
    }
}

#[tokio::test]
async fn a_silent_machine_is_reported_and_recovers_without_a_restart() {
    let machine = free_port().unwrap();
    let mut gateway = Gateway::new(&format!(
        "driver = \"profile\"\n[machine.profile]\nid = \"toper.tkm-sx.plc\"\n\
         host = \"127.0.0.1\"\nport = {machine}\ntimeout_ms = 50\n[sampling]\nperiod_ms = 50\n"
    ));
    gateway.process.start().unwrap();
    wait_for_port(gateway.port).await.unwrap();
    wait_for("the silent machine is reported", PATIENCE, || async {
        gateway.status()["driverError"].is_string()
    })
    .await
    .unwrap();
    assert!(gateway.ask("GET /ready", "").starts_with("HTTP/1.1 503"));
    // A machine that accepts a connection and never answers loses only its own samples.
    let listener = std::net::TcpListener::bind(("127.0.0.1", machine)).unwrap();
    wait_for("the timeout is reported", PATIENCE, || async {
        gateway.status()["driverError"]
            .as_str()
            .is_some_and(|e| e.contains("does not answer within 50 ms"))
    })
    .await
    .unwrap();
    drop(listener);
    assert!(
        gateway.process.stop(PATIENCE).await.unwrap().success(),
        "a silent machine delayed the stop"
    );
}

#[tokio::test]
async fn a_killed_agent_continues_its_roast_after_a_restart() {
    let mut gateway = Gateway::new(
        "driver = \"simulated\"\n[machine.simulated]\ncharge_after_s = 2\n\
         [sampling]\nperiod_ms = 20\nframe_ms = 100\n",
    );
    gateway.process.start().unwrap();
    wait_for_port(gateway.port).await.unwrap();
    wait_for("a roast is running", PATIENCE, || async { gateway.status()["session"].is_string() })
        .await
        .unwrap();
    gateway.process.kill();
    let journal = gateway.folder.path().join("journal/journal.db");
    let count = |sql: &str| -> i64 {
        rusqlite::Connection::open(&journal).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let first: i64 = count("SELECT first_frame FROM roasts");
    assert!(first > 5, "frames before the roast: {first}");
    // The journal of a killed agent is intact: it has no gap, and it records the open roast.
    assert_eq!(count("SELECT MAX(number) - COUNT(*) FROM frames"), 0);
    gateway.process.start().unwrap();
    wait_for_port(gateway.port).await.unwrap();
    wait_for("the roast continues", PATIENCE, || async { gateway.status()["session"].is_string() })
        .await
        .unwrap();
    gateway.process.stop(PATIENCE).await.unwrap();
    assert_eq!(count("SELECT COUNT(*) FROM roasts"), 1, "the restart continues the same roast");
}

/// Sends kill -9 at arbitrary moments, repeatedly (`KILLS=1000` for a thousand times). The agent
/// always starts again, the chain has no gap, and a stored frame never changes.
#[tokio::test]
async fn an_agent_killed_at_any_moment_restarts_and_loses_no_stored_frame() {
    let kills: u64 = std::env::var("KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let mut gateway = Gateway::new(
        "driver = \"simulated\"\n[machine.simulated]\ncharge_after_s = 1\n\
         [sampling]\nperiod_ms = 20\nframe_ms = 40\n",
    );
    let journal = gateway.folder.path().join("journal/journal.db");
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut starts = 0;
    for kill in 0..kills {
        gateway.process.start().unwrap();
        // Any moment: while the agent opens the journal, while it writes, or in between.
        tokio::time::sleep(Duration::from_millis(30 + (kill * 7_919) % 270)).await;
        assert!(gateway.process.is_running(), "start {kill}: {}", gateway.process.log());
        gateway.process.kill();
        if !journal.exists() {
            continue;
        }
        let db = rusqlite::Connection::open(&journal).unwrap();
        let Ok(mut rows) = db.prepare("SELECT number, signed FROM frames ORDER BY number") else {
            continue; // killed before it had created its tables
        };
        let rows = rows.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?))).unwrap();
        let frames: Vec<(i64, Vec<u8>)> = rows.map(Result::unwrap).collect();
        let numbers: Vec<i64> = frames.iter().map(|(number, _)| *number).collect();
        assert_eq!(
            numbers,
            (1..=i64::try_from(frames.len()).unwrap()).collect::<Vec<_>>(),
            "kill {kill}"
        );
        let now: Vec<Vec<u8>> = frames.into_iter().map(|(_, signed)| signed).collect();
        assert!(now.starts_with(&kept), "kill {kill}: a stored frame has changed");
        starts += usize::from(now.len() > kept.len());
        kept = now;
    }
    assert!(starts as u64 > kills / 3 && kept.len() > 20, "{starts} starts, {} frames", kept.len());
}

#[tokio::test]
async fn artisan_reads_the_machine_over_a_websocket_and_writes_nothing() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    let port = free_port().unwrap();
    // CHARGE three seconds after the start: its push must not come before the connection.
    let mut gateway = Gateway::new(&format!(
        "driver = \"simulated\"\n[machine.simulated]\ncharge_after_s = 60\nspeed = 20\n\
         [sampling]\nperiod_ms = 50\nframe_ms = 100\n[artisan]\nwebsocket = \"127.0.0.1:{port}\"\n"
    ));
    gateway.process.start().unwrap();
    wait_for_port(port).await.unwrap();
    let url = format!("ws://127.0.0.1:{port}/WebSocket");
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let (mut shown, mut begun, mut refused) = (false, false, false);
    let end = tokio::time::Instant::now() + PATIENCE;
    for id in 0.. {
        let question = if id == 3 {
            format!("{{\"command\":\"setBurner\",\"value\":50,\"id\":{id}}}")
        } else {
            format!("{{\"command\":\"getData\",\"id\":{id},\"roasterID\":0}}")
        };
        socket.send(Message::text(question)).await.unwrap();
        // Events are pushed between responses, without a request.
        loop {
            let said = tokio::time::timeout_at(end, socket.next()).await.unwrap().unwrap().unwrap();
            let said: serde_json::Value = serde_json::from_str(said.to_text().unwrap()).unwrap();
            begun |= said["pushMessage"] == "startRoasting";
            if said["id"] == id {
                let (bt, et) = (&said["data"]["BT"], &said["data"]["ET"]);
                shown |= bt.as_f64().is_some_and(|bt| bt > 20.0) && et.is_f64();
                refused |= said["error"].to_string().contains("moves nothing");
                break;
            }
        }
        if shown && begun && refused {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "shown {shown} begun {begun} refused {refused}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns how many frames a stopped agent's journal has, after checking that they are the whole
/// chain from its first frame.
pub(crate) fn stored_frames(journal: &std::path::Path) -> i64 {
    let db = rusqlite::Connection::open(journal).unwrap();
    let count = |sql: &str| -> i64 { db.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT MAX(number) - COUNT(*) FROM frames"), 0);
    count("SELECT COUNT(*) FROM frames")
}

#[tokio::test]
async fn a_damaged_journal_is_salvaged_while_the_agent_samples() {
    let mut gateway =
        Gateway::new("driver = \"simulated\"\n[sampling]\nperiod_ms = 20\nframe_ms = 40\n");
    let folder = gateway.folder.path().join("journal");
    let journal = folder.join("journal.db");
    gateway.process.start().unwrap();
    wait_for_port(gateway.port).await.unwrap();
    wait_for("frames are stored", PATIENCE, || async {
        gateway.status()["journal"]["frames"].as_i64() > Some(60)
    })
    .await
    .unwrap();
    gateway.process.stop(PATIENCE).await.unwrap();
    let before = stored_frames(&journal);
    let mut bytes = std::fs::read(&journal).unwrap();
    let page = bytes.len() / 4096 / 2 * 4096;
    for (i, byte) in bytes[page..page + 4096].iter_mut().enumerate() {
        *byte = u8::try_from(i * 197 % 251).unwrap();
    }
    std::fs::write(&journal, &bytes).unwrap();
    gateway.process.start().unwrap();
    wait_for_port(gateway.port).await.unwrap();
    wait_for("the journal is salvaged", PATIENCE, || async {
        let status = gateway.status();
        status["journalError"].is_null()
            && status["journal"]["unsentFrames"].as_i64() > Some(before - 20)
    })
    .await
    .unwrap();
    gateway.process.stop(PATIENCE).await.unwrap();
    let aside = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    let aside = aside
        .filter(|path| path.display().to_string().contains("journal-damaged-"))
        .find(|path| path.extension().is_some_and(|extension| extension == "db"))
        .expect("the damaged file is kept");
    let tool = |arguments: &[&std::ffi::OsStr]| {
        let config = gateway.folder.path().join("edge.toml");
        Command::new(binary_path("simcorp-edge").unwrap())
            .arg("-c")
            .arg(config)
            .args(["journal", "salvage"])
            .args(arguments)
            .output()
            .unwrap()
    };
    let salvaged = tool(&[aside.as_os_str()]);
    let said = String::from_utf8(salvaged.stdout).unwrap();
    assert!(salvaged.status.success() && said.contains(" frames saved, "), "{said}");
    let refused = tool(&[journal.as_os_str()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("not damaged"), "{said}");
}
