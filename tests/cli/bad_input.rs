//! Tests that every mistake is reported in one clear sentence with an exit code, never with a
//! backtrace or a hang.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::Agent;
use testbed::{Postgres, binary_path, free_port};

/// Runs a program to its end, at most ten seconds, and returns its exit code and standard error.
async fn complaint(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary_path(program).unwrap());
    command.args(arguments).env("RUST_BACKTRACE", "1").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    for _ in 0..1000 {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if child.try_wait().unwrap().is_none() {
        child.kill().unwrap();
        panic!("{program} {arguments:?} hangs");
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = text.lines().filter(|line| !line.starts_with('{')).collect();
    assert!(!text.contains("stack backtrace") && !text.contains("panicked"), "{text}");
    (output.status.code(), ours.join("\n"))
}

#[tokio::test]
async fn the_control_plane_reports_mistakes_in_its_configuration() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let data = format!("--set=database.data={}", folder.path().display());
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = format!("--set=ingestion.listen={}", taken.local_addr()?);
    let busy = std::net::TcpListener::bind(taken.trim_start_matches("--set=ingestion.listen="));
    let free = format!("--set=ingestion.listen=127.0.0.1:{}", free_port()?);
    for (arguments, code, expected) in [
        (vec!["serve", "--set=colour=1", "--set=ingestion.writers=0"], 64, "colour: unknown field"),
        (
            vec!["serve", "--set=ingestion.writers=99"],
            64,
            "ingestion.writers: not between 1 and 16",
        ),
        (vec!["serve", "--set=console.listen=0.0.0.0:8080"], 64, "not a loopback address"),
        (vec!["serve", "--set=auth.mode=none"], 64, "auth.mode: unknown variant"),
        (
            vec!["serve", "--set=auth.mode=oidc", "--set=auth.oidc.issuer=https://issuer.example"],
            64,
            "auth.oidc.audience: is required",
        ),
        (vec!["serve", "--config=/nowhere.toml"], 64, "/nowhere.toml: cannot be read"),
        (vec!["serve", "ingestion", &data, &taken], 1, "is in use by another program"),
        (
            vec!["serve", "ingestion", &free, "--set=database.url=postgres://x@127.0.0.1:1/x"],
            1,
            "cannot open the database",
        ),
        (
            vec!["serve", "ingestion", &free, "--set=database.url=file:/nowhere"],
            1,
            "/nowhere cannot be read",
        ),
        (vec!["device", "add", "/nowhere.json", &data], 1, "cannot read /nowhere.json"),
        (vec!["migrate", "up", "--set=database.data=/proc/x"], 1, "cannot make the data folder"),
    ] {
        let (found, text) = complaint("simcorp", &arguments).await;
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    drop(busy);
    Ok(())
}

#[tokio::test]
async fn a_database_with_an_older_or_newer_schema_is_refused() -> anyhow::Result<()> {
    let cluster = Postgres::start().await?;
    let url = format!("--set=database.url={}", cluster.url());
    let listen = format!("--set=ingestion.listen=127.0.0.1:{}", free_port()?);
    let serve = ["serve", "ingestion", &url, &listen, "--set=broker.embedded=false"];
    let (code, text) = complaint("simcorp", &serve).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("too old") && text.contains("simcorp migrate up"), "{text}");
    assert_eq!(complaint("simcorp", &["migrate", "up", &url]).await.0, Some(0));
    assert_eq!(
        complaint("simcorp", &["migrate", "up", &url]).await.0,
        Some(0),
        "a second migration changes nothing"
    );
    cluster.query(
        "simcorp",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'future', true, '', 0)",
    )?;
    let (code, text) = complaint("simcorp", &serve).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("too new") && text.contains("9999"), "{text}");
    Ok(())
}

#[tokio::test]
async fn the_agent_reports_mistakes_in_its_configuration() -> anyhow::Result<()> {
    let agent = Agent::new("r-1", "driver = \"simulated\"", "host = \"\"")?;
    let config = agent.config.display().to_string();
    let run = ["--config", config.as_str(), "run"];
    let (code, text) = complaint("simcorp-edge", &run).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot open the key"), "{text}");
    agent.command(&["key", "create"])?;
    let key = agent.folder.path().join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let (_, text) = complaint("simcorp-edge", &run).await;
    assert!(text.contains("chmod 600"), "{text}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = format!("--set=local.listen={}", taken.local_addr()?);
    let (_, text) = complaint("simcorp-edge", &[&run[..], &[&port]].concat()).await;
    assert!(text.contains("local.listen"), "{text}");

    let wrong = "[identity]\norg = \"a/b\"\nsite = \"s\"\n[machine]\ndriver = \"profile\"\n\
                 [machine.profile]\nid = \"tc4.arduino.artisanq\"\ntimeout_ms = 9999\n\
                 [uplink]\nhost = \"192.0.2.1\"\n[sampling]\nperiod_ms = 1\n";
    std::fs::write(&agent.config, wrong)?;
    let (code, text) = complaint("simcorp-edge", &["--config", &config, "config", "check"]).await;
    assert_eq!(code, Some(64));
    for expected in [
        "edge.toml:2: identity.org: orgId contains '/'",
        "edge.toml:1: identity.device: deviceId is empty",
        "edge.toml:8: machine.profile.timeout_ms: not between",
        "edge.toml:6: machine.profile.device: is not set, and this machine is on a serial line",
        "edge.toml:9: uplink.ca_file: is required to connect to another host",
        "edge.toml:12: sampling.period_ms: not between 20 and 60000",
    ] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn the_agent_samples_and_stops_without_a_broker() -> anyhow::Result<()> {
    let mut agent = Agent::new("r-1", "driver = \"simulated\"", "host = \"127.0.0.1\"\nport = 1")?;
    agent.command(&["key", "create"])?;
    agent.start().await?;
    testbed::wait_for("samples are taken", crate::support::PATIENCE, || async {
        agent
            .status()
            .await
            .is_ok_and(|s| s["samples"].as_u64() > Some(2) && s["uplinkError"].is_string())
    })
    .await?;
    let doctor = Command::new(binary_path("simcorp-edge")?)
        .arg("--config")
        .arg(&agent.config)
        .arg("doctor")
        .output()?;
    let said = String::from_utf8(doctor.stdout)?;
    assert!(said.contains("WRONG cloud: 127.0.0.1:1: "), "{said}");
    assert!(!doctor.status.success());
    assert!(agent.process.stop(Duration::from_secs(5)).await?.success());
    Ok(())
}

/// With a disk of two megabytes, sampling continues, the page states why, and nothing is damaged.
#[tokio::test]
async fn a_full_disk_is_reported_and_damages_nothing() -> anyhow::Result<()> {
    let agent = Agent::new(
        "r-1",
        "driver = \"simulated\"\n[sampling]\nperiod_ms = 20\nframe_ms = 100\n",
        "host = \"\"",
    )?;
    agent.command(&["key", "create"])?;
    let journal = agent.journal();
    std::fs::create_dir_all(&journal)?;
    // The mount is in its own namespace, so that it does not outlive the test.
    let script = format!(
        "mount -t tmpfs -o size=300k simcorp {at} && exec {edge} --config {config} run",
        at = journal.display(),
        edge = binary_path("simcorp-edge")?.display(),
        config = agent.config.display(),
    );
    let mut process = testbed::Process::new(
        "/usr/bin/unshare".into(),
        ["--map-root-user", "--mount", "sh", "-c", &script],
        agent.folder.path().join("agent.log"),
    );
    process.start()?;
    testbed::wait_for_port(agent.port).await.map_err(|e| e.context(process.log()))?;
    testbed::wait_for("the full disk is reported", crate::support::PATIENCE, || async {
        agent
            .status()
            .await
            .is_ok_and(|s| s["journalError"].as_str().is_some_and(|e| e.contains("disk is full")))
    })
    .await?;
    let before = agent.status().await?["samples"].as_u64();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(agent.status().await?["samples"].as_u64() > before, "sampling must continue");
    let ready = crate::support::client()
        .get(format!("http://127.0.0.1:{}/ready", agent.port))
        .send()
        .await?;
    assert_eq!(ready.status().as_u16(), 503);
    assert!(ready.text().await?.contains("disk is full"));
    assert!(process.is_running());
    let said = process.log().lines().filter(|l| l.contains("the journal cannot be used")).count();
    assert_eq!(said, 1, "must be logged once: {}", process.log());
    Ok(())
}
