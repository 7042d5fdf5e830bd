//! Reads Modbus machines that behave as people report: they close connections, stand behind gateways
//! and serial servers, and have adapters that return what is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use driver::{ConnectionSettings, ControlQueue, Driver, DriverHandles, Reading, WriteError};
use emulator::{Emulator, Fault};
use firmware_profiles::{Profile, Writes, check};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::machines::{follows, profile, start_shared};

const TCP: &str = "kind = \"modbus-tcp\"\nhost = \"h\"";
const RTU_OVER_TCP: &str = "kind = \"modbus-rtu-over-tcp\"\nhost = \"h\"";
const RTU: &str = "kind = \"modbus-rtu\"\nserial = { baud = 19200 }";

/// Returns a profile with temperatures at holding registers: name, register and unit of each.
fn lab(transport: &str, channels: &[(&str, u16, u8)]) -> Profile {
    let head = "[machine]\nid = \"lab.test.plc\"\nname = \"n\"\ncontroller = \"c\"\nversion = 1\n\
        fuel = \"gas\"\nsource = \"s\"\n[safe_state]\norder = []\n";
    let channels = channels.iter().map(|(name, register, station)| {
        let required = if *name == "btC" { "max_step_per_s = 15\nrequired = true\n" } else { "" };
        format!(
            "[[channel]]\nname = \"{name}\"\naddr = \"holding {register}\"\nstation = {station}\n\
             type = \"u16\"\nunit = \"C\"\ndivisor = 10\nvalid = [-20, 500]\n{required}"
        )
    });
    let text = format!("{head}[transport]\n{transport}\n{}", channels.collect::<String>());
    let mut profile = check(&text).unwrap().profile;
    // No local answer takes longer, however busy this computer is.
    profile.timing.timeout_ms = 5_000;
    profile
}

async fn start(profile: &Profile) -> (Emulator, Box<dyn Driver>) {
    start_shared(profile, DriverHandles::default(), 4_000).await
}

/// Starts a machine with writes enabled.
async fn start_writable(id: &str) -> (Emulator, Box<dyn Driver>, ControlQueue) {
    let (profile, share, controls) = writable(id);
    let (emulator, driver) = start_shared(&profile, share, 4_000).await;
    (emulator, driver, controls)
}

fn writable(id: &str) -> (Profile, DriverHandles, ControlQueue) {
    let mut profile = profile(id);
    profile.machine.writes = Writes::Enabled;
    profile.timing.timeout_ms = 300;
    let controls = ControlQueue::new(&profile, Duration::from_secs(5));
    let share = DriverHandles { controls: Some(controls.clone()), ..DriverHandles::default() };
    (profile, share, controls)
}

/// Turns the burner off, and returns the outcome.
async fn turn_off(
    controls: &ControlQueue,
    driver: &mut Box<dyn Driver>,
    now_ms: u64,
) -> Result<String, WriteError> {
    let (outcome, ()) = tokio::join!(controls.set("a test", "burner", 0.0, now_ms), async {
        driver.wait_for_write().await;
        driver.execute_pending(now_ms).await;
    });
    outcome
}

fn is_whole(reading: &Reading) -> bool {
    reading.failed_units.is_empty() && reading.values.iter().all(|(_, value)| value.is_some())
}

#[tokio::test]
async fn a_machine_that_closes_the_connection_after_each_answer_is_read_completely() {
    for transport in [TCP, RTU_OVER_TCP] {
        // Two runs of registers: the second one meets a closed connection within one reading.
        let (emulator, mut driver) =
            start(&lab(transport, &[("btC", 0, 1), ("etC", 100, 1)])).await;
        emulator.inject_fault(None, Fault::ClosesAfterAnswer);
        for second in 0..10 {
            let reading = driver.read(second * 1_000).await.unwrap();
            assert!(is_whole(&reading), "{transport}: {reading:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_ends_between_two_readings_costs_no_sample() {
    for fault in [Fault::ClosesIdle(Duration::from_millis(40)), Fault::ResetsReused] {
        let (emulator, mut driver) = start(&lab(TCP, &[("btC", 0, 1)])).await;
        emulator.inject_fault(None, fault);
        for second in 0..5 {
            let reading = driver.read(second * 1_000).await;
            assert!(reading.as_ref().is_ok_and(is_whole), "{fault:?}: {reading:?}");
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
    }
}

#[tokio::test]
async fn an_idle_connection_that_an_s7_controller_closes_costs_no_sample() {
    let (emulator, mut driver) = start(&profile("giesen.wxa.s7-2019")).await;
    emulator.inject_fault(None, Fault::ClosesIdle(Duration::from_millis(200)));
    for second in 0..3 {
        let reading = driver.read(second * 1_000).await;
        assert!(reading.as_ref().is_ok_and(is_whole), "{reading:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Answers reads with zeros and closes the connection at a write, which it counts.
async fn serve_until_write(mut stream: TcpStream, writes: &AtomicUsize) {
    let mut request = [0; 12];
    while stream.read_exact(&mut request).await.is_ok() {
        let [high, low, .., function, _, _, _, count] = request;
        if function > 4 {
            writes.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let data = vec![0; usize::from(if function > 2 { 2 * count } else { count.div_ceil(8) })];
        let bytes = u8::try_from(data.len()).unwrap();
        let head = [high, low, 0, 0, 0, bytes + 3, request[6], function, bytes];
        stream.write_all(&[&head[..], &data].concat()).await.unwrap();
    }
}

#[tokio::test]
async fn a_write_without_an_answer_is_never_repeated() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let writes = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let writes = Arc::clone(&writes);
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve_until_write(stream, &writes).await;
            }
        }
    });
    let (profile, share, controls) = writable("toper.tkm-sx.plc");
    let settings = ConnectionSettings {
        host: Some("127.0.0.1".to_owned()),
        port: Some(port),
        ..ConnectionSettings::default()
    };
    let mut driver = driver::open(&profile, &settings, share).unwrap();
    driver.read(0).await.unwrap();
    let outcome = turn_off(&controls, &mut driver, 100).await;
    let Err(WriteError::Unconfirmed(why)) = &outcome else { panic!("{outcome:?}") };
    assert!(why.contains("before it answered"), "{why}");
    driver.read(1_000).await.unwrap();
    assert_eq!(writes.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_write_on_a_connection_that_the_machine_has_closed_is_sent_on_a_new_one() {
    let (emulator, mut driver, controls) = start_writable("toper.tkm-sx.plc").await;
    emulator.inject_fault(None, Fault::ClosesAfterAnswer);
    driver.read(0).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(turn_off(&controls, &mut driver, 100).await, Ok("burner to 0".to_owned()));
}

#[tokio::test]
async fn units_that_answer_by_exception_rest_and_cost_the_bean_temperature_nothing() {
    // The dead units come first in the profile, and have the lower numbers.
    let channels =
        [("p2C", 1, 2), ("p3C", 1, 3), ("p4C", 1, 4), ("p5C", 1, 5), ("btC", 0, 9), ("etC", 1, 9)];
    let mut profile = lab(TCP, &channels);
    // The exceptions of the four units take longer than one poll.
    profile.timing.poll_ms = 70;
    for code in [0x0A, 0x0B, 0x04, 0x05, 0x06] {
        let (emulator, mut driver) = start(&profile).await;
        for unit in 2..=5 {
            let late = Fault::RefusesLate(code, Duration::from_millis(20));
            emulator.inject_fault(Some(unit), late);
        }
        let mut resting = Vec::new();
        for second in 0..8 {
            let reading = driver.read(second * 1_000).await.unwrap();
            let beans: Vec<bool> =
                reading.values.iter().skip(4).map(|(_, value)| value.is_some()).collect();
            assert_eq!(beans, [true, true], "{code:#x}: {reading:?}");
            resting = reading.failed_units;
            resting.retain(|text| text.contains("is not polled until its next retry"));
        }
        assert!(resting.len() >= 3, "{code:#x}: {resting:?}");
        let named = format!("exception 0x{code:02X}");
        assert!(resting.iter().all(|text| text.contains(&named)), "{resting:?}");
        emulator.clear_faults();
        let mut last = driver.read(20_000).await.unwrap();
        for second in 21..30 {
            last = driver.read(second * 1_000).await.unwrap();
        }
        assert!(is_whole(&last), "{code:#x}: {last:?}");
    }
}

#[tokio::test]
async fn an_exception_now_and_then_does_not_rest_a_unit() {
    let (emulator, mut driver) = start(&lab(TCP, &[("btC", 0, 1), ("etC", 0, 2)])).await;
    for second in 0..12 {
        if second % 3 == 2 {
            emulator.inject_fault(Some(2), Fault::Refuses(6));
        } else {
            emulator.clear_faults();
        }
        let reading = driver.read(second * 1_000).await.unwrap();
        assert_eq!(is_whole(&reading), second % 3 != 2, "{second}: {reading:?}");
    }
}

#[tokio::test]
async fn rtu_frames_over_tcp_and_behind_an_echo_are_read_without_lost_samples() {
    for (transport, fault) in [
        (RTU_OVER_TCP, None),
        (RTU_OVER_TCP, Some(Fault::Echoes)),
        (RTU, Some(Fault::Echoes)),
        (RTU, Some(Fault::OtherMaster)),
    ] {
        let channels = [("btC", 0, 1), ("etC", 1, 1), ("drumC", 7, 2)];
        let (emulator, mut driver) = start(&lab(transport, &channels)).await;
        if let Some(fault) = fault {
            emulator.inject_fault(None, fault);
        }
        let mut readings = Vec::new();
        for second in 0..20 {
            let reading = driver.read(second * 1_000).await.unwrap();
            assert!(is_whole(&reading), "{transport}: {fault:?}: {reading:?}");
            readings.push(reading);
        }
        follows(transport, &readings, &emulator.served(), true);
    }
}

#[tokio::test]
async fn the_echo_of_a_write_does_not_confirm_it() {
    let (emulator, mut driver, controls) = start_writable("millcity.dcp.rtu").await;
    // The first request is the write: what the line does is not known yet.
    emulator.inject_fault(None, Fault::Echoes);
    let outcome = turn_off(&controls, &mut driver, 0).await;
    assert_eq!(outcome, Ok("burner to 0".to_owned()));
    emulator.inject_fault(None, Fault::EchoesOnly);
    let outcome = turn_off(&controls, &mut driver, 10_000).await;
    let Err(WriteError::Unconfirmed(why)) = &outcome else { panic!("{outcome:?}") };
    assert!(why.contains("only the echo of the request came back"), "{why}");
}

#[tokio::test]
async fn an_error_says_what_came_on_the_wire_and_what_to_try() {
    for (transport, fault, text) in [
        (TCP, Fault::Silent, "unit 1 does not answer within 100 ms"),
        (TCP, Fault::OtherUnit, "an answer came, but from unit 65"),
        (TCP, Fault::OtherMaster, "an answer came, but to another request"),
        (TCP, Fault::CutsShort, "only 5 of 11 bytes of the answer came"),
        (TCP, Fault::HangsUp, "only 5 of 11 bytes of the answer came"),
        (TCP, Fault::Garbage, "11 bytes came that are not a Modbus answer"),
        (TCP, Fault::Refuses(2), "exception 0x02 (illegal data address)"),
        (TCP, Fault::Refuses(6), "exception 0x06 (server device busy)"),
        (TCP, Fault::Refuses(11), "exception 0x0B (gateway target device failed to respond)"),
        (RTU_OVER_TCP, Fault::HangsUp, "only 3 of 7 bytes of the answer came"),
        (RTU, Fault::Silent, "unit 1 does not answer within 100 ms"),
        (RTU, Fault::OtherUnit, "an answer came, but from unit 65"),
        (RTU, Fault::WrongChecksum, "an answer came with a wrong checksum (CRC)"),
        (RTU, Fault::CutsShort, "only 3 of 7 bytes of the answer came"),
        (RTU, Fault::EchoesOnly, "only the echo of the request came back"),
    ] {
        let mut profile = lab(transport, &[("btC", 0, 1)]);
        profile.timing.timeout_ms = 100;
        let (emulator, mut driver) = start(&profile).await;
        emulator.inject_fault(None, fault);
        let error = driver.read(0).await.unwrap_err();
        let found = error.to_string();
        assert!(found.contains(text), "{transport}: {fault:?}: {found}");
        let advice: Vec<&str> = error.advice().into_iter().chain(driver.advice()).collect();
        assert!(!advice.is_empty(), "{found}");
    }
}

#[tokio::test]
async fn a_text_machine_that_sends_unreadable_bytes_is_not_reported_as_silent() {
    let mut profile = profile("tc4.arduino.artisanq");
    profile.timing.timeout_ms = 100;
    let (emulator, mut driver) = start(&profile).await;
    emulator.inject_fault(None, Fault::Garbage);
    let error = driver.read(0).await.unwrap_err();
    assert!(error.to_string().contains("bytes came within 100 ms, but no answer"), "{error}");
    assert!(error.advice().is_some());
}

#[tokio::test]
async fn a_connection_without_an_answer_is_not_reported_as_an_unreachable_machine() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read_exact(&mut [0; 12]).await;
        }
    });
    let settings = ConnectionSettings {
        host: Some("127.0.0.1".to_owned()),
        port: Some(port),
        ..ConnectionSettings::default()
    };
    let profile = lab(TCP, &[("btC", 0, 1)]);
    let mut driver = driver::open(&profile, &settings, DriverHandles::default()).unwrap();
    let error = driver.read(0).await.unwrap_err().to_string();
    let expected = format!("127.0.0.1:{port} unit 1 closed the connection before it answered");
    assert_eq!(error, expected);
}
