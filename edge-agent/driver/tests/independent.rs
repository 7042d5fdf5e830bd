//! Machines by programs that share no code with us. (Modbus: `cloud/simcorp/tests/recordings.rs`.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use driver::{Share, Site};
use firmware_profiles::{check, shipped};
use testbed::{Process, answers, free_port, workspace};

#[tokio::test]
async fn a_siemens_controller_is_read_as_it_is() {
    let port = free_port().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snap7_giesen.py");
    let python = workspace().join("target/python/bin/python");
    let arguments = [script.to_owned(), port.to_string()];
    let mut controller = Process::new(python, arguments, folder.path().join("snap7.log"));
    controller.start().unwrap();
    answers(port).await.unwrap();
    let profile = check(shipped("giesen.wxa.s7-2019").unwrap().text).unwrap().profile;
    let site = Site { host: Some("127.0.0.1".to_owned()), port: Some(port), ..Site::default() };
    let mut driver = driver::open(&profile, &site, Share::default()).unwrap();
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
}
