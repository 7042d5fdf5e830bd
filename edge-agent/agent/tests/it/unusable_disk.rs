//! Tests the agent as a process on a disk that cannot be used: it samples from memory, says why, and
//! moves to disk when it can.

use std::process::Command;
use std::time::Duration;

use testbed::{Process, binary_path, wait_for, wait_for_port};

use crate::offline::{Gateway, stored_frames};

const PATIENCE: Duration = Duration::from_secs(30);

fn journal_in_memory(status: &serde_json::Value) -> bool {
    status["journalError"].as_str().is_some_and(|said| said.contains("kept in memory"))
}

/// Waits until the agent has taken samples into memory, and checks that the page and `/ready` say
/// why.
async fn check_memory(gateway: &Gateway, reason: &str) {
    wait_for_port(gateway.port).await.unwrap_or_else(|e| panic!("{e}: {}", gateway.process.log()));
    wait_for("samples are taken", PATIENCE, || async {
        let status = gateway.status();
        status["samples"].as_u64() > Some(20) && journal_in_memory(&status)
    })
    .await
    .unwrap();
    let shown = gateway.status()["journalError"].to_string();
    assert!(shown.contains(reason), "{shown}");
    let ready = gateway.ask("GET /ready", "");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("kept in memory"), "{ready}");
    assert!(ready.contains(reason), "{ready}");
}

/// Waits until the journal is on disk, with the frames that were in memory.
async fn check_moved(gateway: &Gateway) {
    wait_for("the journal moves to disk", PATIENCE, || async {
        let status = gateway.status();
        status["journalError"].is_null() && status["journal"]["unsentFrames"].as_i64() > Some(10)
    })
    .await
    .unwrap_or_else(|e| panic!("{e}: {}", gateway.process.log()));
    assert!(gateway.ask("GET /ready", "").starts_with("HTTP/1.1 200"));
}

fn gateway() -> Gateway {
    Gateway::new("driver = \"simulated\"\n[sampling]\nperiod_ms = 20\nframe_ms = 40\n")
}

#[tokio::test]
async fn an_agent_without_a_usable_disk_samples_from_memory_and_moves_to_disk_later() {
    let mut gateway = gateway();
    let folder = gateway.folder.path().join("journal");
    // No journal can be created where a file is.
    std::fs::write(&folder, "").unwrap();
    gateway.process.start().unwrap();
    check_memory(&gateway, "cannot create the journal's folder").await;
    std::fs::remove_file(&folder).unwrap();
    check_moved(&gateway).await;
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());
    assert!(stored_frames(&folder.join("journal.db")) > 10);
}

/// Starts the agent in a mount namespace of its own, after the commands `mounts`. The mounts end with
/// the agent.
fn start_in_namespace(gateway: &mut Gateway, mounts: &str) {
    let folder = gateway.folder.path();
    let script = format!(
        "{mounts} exec {edge} -c {config} run",
        edge = binary_path("simcorp-edge").unwrap().display(),
        config = folder.join("edge.toml").display(),
    );
    let arguments = ["--map-root-user", "--mount", "sh", "-c", script.as_str()];
    let log = folder.join("agent.log");
    gateway.process = Process::new("/usr/bin/unshare".into(), arguments, log);
    gateway.process.start().unwrap();
}

/// Runs a command in the agent's mount namespace.
fn run_in_namespace(gateway: &Gateway, command: &str) {
    let pid = gateway.process.pid().unwrap().to_string();
    let entered = Command::new("nsenter")
        .args([
            "--preserve-credentials",
            "--target",
            &pid,
            "--user",
            "--mount",
            "sh",
            "-c",
            command,
        ])
        .output()
        .unwrap();
    assert!(entered.status.success(), "{command}: {entered:?}");
}

/// The disk of the whole agent (journal, key, identity and configuration) is read-only at its start.
#[tokio::test]
async fn an_agent_on_a_read_only_disk_samples_from_memory_and_moves_to_disk_later() {
    let mut gateway = gateway();
    let at = gateway.folder.path().display().to_string();
    let journal = gateway.folder.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    let mounts = format!("mount --bind {at} {at} && mount -o remount,bind,ro {at} &&");
    start_in_namespace(&mut gateway, &mounts);
    check_memory(&gateway, "the disk is read-only").await;
    run_in_namespace(&gateway, &format!("mount -o remount,bind,rw {at}"));
    check_moved(&gateway).await;
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());
    assert!(stored_frames(&journal.join("journal.db")) > 10);
}

#[tokio::test]
async fn an_agent_on_a_full_disk_samples_from_memory_and_moves_to_disk_later() {
    let mut gateway = gateway();
    let journal = gateway.folder.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    let at = journal.display();
    // dd ends with an error, because the disk is full then.
    let mounts = format!(
        "mount -t tmpfs -o size=16m simcorp {at} && \
         (dd if=/dev/zero of={at}/other bs=64k || true) &&"
    );
    start_in_namespace(&mut gateway, &mounts);
    check_memory(&gateway, "the disk is full").await;
    run_in_namespace(&gateway, &format!("rm {at}/other"));
    check_moved(&gateway).await;
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());
}
