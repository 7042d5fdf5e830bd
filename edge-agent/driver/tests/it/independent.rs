//! Tests drivers against machines simulated by programs that share no code with this project.
//! (Modbus: `tests/ingestion/recordings.rs`.)

use std::time::Duration;

use driver::{ConnectionSettings, ControlQueue, DriverHandles, WriteError};
use firmware_profiles::{check, shipped};
use testbed::{Process, free_port, wait_for_port, workspace_root};

#[tokio::test]
async fn an_independent_s7_server_is_read_and_written() {
    let port = free_port().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snap7_giesen.py");
    let python = workspace_root().join("target/python/bin/python");
    let arguments = [script.to_owned(), port.to_string()];
    let mut controller = Process::new(python, arguments, folder.path().join("snap7.log"));
    controller.start().unwrap();
    wait_for_port(port).await.unwrap();
    let mut profile = check(shipped("giesen.wxa.s7-2019").unwrap().text).unwrap().profile;
    profile.machine.writes = firmware_profiles::Writes::Enabled;
    let hand = ControlQueue::new(&profile, Duration::from_millis(profile.timing.timeout_ms));
    let share = DriverHandles { controls: Some(hand.clone()), ..DriverHandles::default() };
    let settings = ConnectionSettings {
        host: Some("127.0.0.1".to_owned()),
        port: Some(port),
        ..ConnectionSettings::default()
    };
    let mut driver = driver::open(&profile, &settings, share).unwrap();
    for second in 0..3 {
        let reading = driver.read(second * 1000).await.unwrap();
        let found: Vec<(&str, f64)> =
            reading.values.iter().map(|(c, v)| (c.as_str(), v.unwrap_or(f64::NAN))).collect();
        let expected = [
            ("btC", 187.25),
            ("etC", 211.5),
            ("gasPct", 63.0),
            ("fanPct", 40.0),
            ("drumPressurePa", 110.0),
            ("drumSetHz", 44.0),
        ];
        assert_eq!(found, expected);
    }
    // The server shows the air where the write has set it.
    let (moved, ()) = tokio::join!(hand.set("a test", "air", 120.0, 3_000), async {
        driver.wait_for_write().await;
        driver.execute_pending(3_000).await;
    });
    assert_eq!(moved, Ok("air to 120".to_owned()));
    let mut shown = None;
    for second in 4..14 {
        let reading = driver.read(second * 1000).await.unwrap();
        shown = reading.values[4].1;
        if shown == Some(120.0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(shown, Some(120.0));
    let burner = hand.set("a test", "burner", 0.0, 14_000).await;
    assert_eq!(
        burner,
        Err(WriteError::LocalOnly("burner".to_owned())),
        "0 means AUTO on this controller"
    );
}
