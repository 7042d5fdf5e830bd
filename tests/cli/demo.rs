//! Tests `make demo` as a new user runs it: in a terminal, until Ctrl-C.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::client;
use testbed::{binary_path, wait_for, workspace_root};

/// Returns an offset at which all ports of the demo are free.
fn free_shift() -> u16 {
    let ports = [8080, 4001, 1883, 1884, 4104, 4105, 4106];
    let free =
        |shift: &u16| ports.iter().all(|p| TcpListener::bind(("127.0.0.1", p + shift)).is_ok());
    (20_000..50_000).step_by(701).find(free).unwrap()
}

/// Returns the programs that were started with `word` in their command line.
fn processes_with(word: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(word) && line.contains("simcorp")).collect()
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // measures the time that a user waits
async fn three_machines_roast_on_the_console_and_one_ctrl_c_stops_all() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().join("demo");
    let shift = free_shift();
    let simcorp = binary_path("simcorp").unwrap();
    binary_path("simcorp-edge").unwrap();
    let said = home.with_extension("log");
    let log = std::fs::File::create(&said).unwrap();
    // `script` runs the demo in its own terminal, where Ctrl-C is a key.
    let mut demo = Command::new("script")
        .args(["--quiet", "--flush", "--return", "--command", "tools/demo", "/dev/null"])
        .current_dir(workspace_root())
        .env("CARGO_TARGET_DIR", simcorp.parent().unwrap().parent().unwrap())
        .env("DEMO_HOME", &home)
        .env("DEMO_PORTS_SHIFT", shift.to_string())
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let machines = format!("http://127.0.0.1:{}/machines", 4001 + shift);
    let roasting = || async {
        let Ok(answer) = client().get(&machines).send().await else { return false };
        let list: serde_json::Value = answer.json().await.unwrap_or_default();
        let list = list.as_array().cloned().unwrap_or_default();
        let live = list.iter().filter(|m| m["btC"].is_number()).count();
        live == 3 && list.iter().any(|m| m["sessionId"].is_string())
    };
    let within = Duration::from_secs(15);
    wait_for("three machines are listed and one is roasting", within, roasting)
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", std::fs::read_to_string(&said).unwrap()));
    let page = client().get(format!("http://127.0.0.1:{}/", 8080 + shift)).send().await.unwrap();
    let page = page.text().await.unwrap();
    for machine in ["drum-15kg", "sample-250g", "air-5kg"] {
        assert!(page.contains(machine), "{machine} is not on the console");
    }

    let pressed = Instant::now();
    demo.stdin.as_mut().unwrap().write_all(&[3]).unwrap();
    wait_for("the demo exits", Duration::from_secs(5), || {
        let ended = demo.try_wait().unwrap().is_some();
        async move { ended }
    })
    .await
    .unwrap();
    assert!(pressed.elapsed() < Duration::from_secs(5));
    let word = home.display().to_string();
    assert_eq!(processes_with(&word), Vec::<String>::new(), "processes are left behind");
}
