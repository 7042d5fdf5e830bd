//! Tests that recorded roasts, served by an independent Modbus server and read by the real agent,
//! arrive in PostgreSQL through Mosquitto sample for sample.

use std::time::Duration;

use crate::support::{Cloud, PATIENCE, script};
use testbed::{Process, free_port, recordings, wait_for, wait_for_port, workspace_root};

const RECORDINGS: [&str; 3] = [
    "skywalker/roast_25-10-05_1708.alog",
    "skywalker/roast_25-09-06_1409.alog",
    "hottop/hottop2kplus_2026-06-07_session.roast.csv",
];

/// The profile of the machine that `modbus_roaster.py` simulates.
const PROFILE: &str = r#"
[machine]
id = "test.recordings.pymodbus"
name = "Recorded roasts"
controller = "pymodbus"
version = 1
fuel = "either"
source = "modbus_roaster.py"

[transport]
kind = "modbus-tcp"
host = "127.0.0.1"

[timing]
poll_ms = 50
timeout_ms = 25

[[channel]]
name = "btC"
addr = "holding 0"
type = "f32"
order = "high-first"
unit = "C"
valid = [-50, 600]

[[channel]]
name = "etC"
addr = "holding 2"
type = "f32"
order = "high-first"
unit = "C"
valid = [-50, 600]

[[state]]
name = "charged"
addr = "holding 4"
type = "u16"
equals = 1
mark = "CHARGE"

[[state]]
name = "dropped"
addr = "holding 4"
type = "u16"
equals = 2
mark = "DROP"

[safe_state]
order = []
"#;

#[tokio::test]
async fn every_recorded_sample_arrives_once_and_in_order() -> anyhow::Result<()> {
    let Some(folder) = recordings()? else { return Ok(()) };
    let cloud = Cloud::start().await?;
    let port = free_port()?;
    let served = cloud.folder.path().join("served.jsonl");
    let mut arguments = vec![
        script("modbus_roaster.py").display().to_string(),
        port.to_string(),
        served.display().to_string(),
    ];
    arguments.extend(RECORDINGS.iter().map(|name| folder.join(name).display().to_string()));
    let python = workspace_root().join("target/python/bin/python");
    let mut machine = Process::new(python, arguments, cloud.folder.path().join("machine.log"));
    machine.start()?;
    wait_for_port(port).await?;

    let profile = cloud.folder.path().join("recordings.toml");
    std::fs::write(&profile, PROFILE)?;
    let driver = format!(
        "driver = \"profile\"\n[sampling]\nperiod_ms = 25\nframe_ms = 250\n\
         [machine.profile]\nfile = \"{}\"\nport = {port}\n",
        profile.display()
    );
    let mut agent = cloud.agent("sky-1", &driver)?;
    agent.start().await?;
    for _ in 0..1200 {
        if !machine.is_running() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!machine.is_running(), "still playing: {:?}", agent.status().await?);

    let expected = std::fs::read_to_string(&served)?;
    let expected: Vec<(Option<f32>, Option<f32>, i64)> =
        expected.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    wait_for("all samples are stored", PATIENCE, || async {
        cloud
            .database
            .query_number("SELECT count(*) FROM points")
            .is_ok_and(|n| n == expected.len() as i64)
    })
    .await
    .map_err(|error| {
        let found = cloud.database.query_number("SELECT count(*) FROM points");
        error.context(format!("{found:?} of {} samples", expected.len()))
    })?;
    let rows = cloud.database.query(
        "simcorp",
        "SELECT json_build_array(bt_c, et_c) FROM points WHERE org_id = 'org' ORDER BY seq",
    )?;
    for (i, (row, (bt, et, _))) in rows.lines().zip(&expected).enumerate() {
        let found: (Option<f32>, Option<f32>) = serde_json::from_str(row)?;
        assert_eq!(found, (*bt, *et), "sample {i}");
    }

    // CHARGE and DROP are where the recordings have them, as reported by the machine.
    let word = |from: i64, to: i64| {
        let states = expected.iter().map(|(_, _, state)| *state);
        let before = std::iter::once(0).chain(states.clone());
        let changes = before.zip(states).enumerate();
        changes
            .filter(move |(_, (before, now))| *now == to && (*before == from))
            .map(|(seq, _)| seq.to_string())
            .collect::<Vec<_>>()
    };
    let marked = |kind: &str| {
        let sql = format!("SELECT seq FROM events WHERE kind = '{kind}' ORDER BY seq");
        Ok::<_, anyhow::Error>(
            cloud.database.query("simcorp", &sql)?.lines().map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    assert_eq!(marked("CHARGE")?, word(0, 1));
    assert_eq!(marked("DROP")?, word(1, 2));
    let roasts = word(1, 2).len();
    assert!(roasts >= 2, "the recordings show no roast");
    let sessions =
        "SELECT count(*) FROM sessions WHERE status = 'CLOSED' AND completeness = 'complete'";
    wait_for("all roasts are complete", PATIENCE, || async {
        cloud.database.query_number(sessions).is_ok_and(|n| n == roasts as i64)
    })
    .await
    .map_err(|error| {
        let found = "SELECT session_id, status, completeness, first_seq, last_seq FROM sessions";
        error.context(format!(
            "{:?}\n{}",
            cloud.database.query("simcorp", found),
            cloud.simcorp.log()
        ))
    })?;
    assert_eq!(cloud.database.query_number("SELECT count(*) FROM frames WHERE trust <> 0")?, 0);
    Ok(())
}
