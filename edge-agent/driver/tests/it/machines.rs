//! Reads the emulated machine of every profile during a simulated roast: no sample is lost or
//! wrong, and when the machine has a fault no value is invented.

use std::time::Duration;

use contract::EventKind;
use driver::{ConnectionSettings, ControlQueue, Driver, DriverHandles, Reading, WriteError};
use emulator::{Emulator, Endpoint, Fault, ServedReading};
use firmware_profiles::{Profile, SHIPPED, Transport, check, shipped};
use futures_util::future::join_all;
use tokio::time::Instant;

/// The time by which the roast advances from one reading to the next, ms.
const STEP_MS: u64 = 4_000;
/// The readings of one test: a roast takes about eleven minutes; CHARGE comes after twenty seconds.
const READINGS: usize = 260;

pub fn profile(id: &str) -> Profile {
    let mut profile = check(shipped(id).unwrap().text).unwrap().profile;
    // A real machine needs a pause between two requests; an emulated one does not.
    profile.timing.min_gap_ms = 0;
    profile.timing.settle_ms = 0;
    // No local answer takes longer, however busy this computer is.
    profile.timing.timeout_ms = 5_000;
    profile
}

async fn start(profile: &Profile) -> (Emulator, Box<dyn Driver>) {
    start_shared(profile, DriverHandles::default(), STEP_MS).await
}

pub async fn start_shared(
    profile: &Profile,
    share: DriverHandles,
    step_ms: u64,
) -> (Emulator, Box<dyn Driver>) {
    let any = "127.0.0.1:0".parse().unwrap();
    let every = Duration::from_millis(5);
    let emulator = Emulator::start(profile, any, step_ms, every).await.unwrap();
    let settings = match emulator.endpoint() {
        Endpoint::Tcp(address) => ConnectionSettings {
            host: Some(address.ip().to_string()),
            port: Some(address.port()),
            ..ConnectionSettings::default()
        },
        Endpoint::Serial(device) => {
            ConnectionSettings { device: Some(device.clone()), ..ConnectionSettings::default() }
        }
    };
    let driver = driver::open(profile, &settings, share).unwrap();
    (emulator, driver)
}

const fn sends_unpolled(profile: &Profile) -> bool {
    matches!(
        profile.transport,
        Transport::Hottop { .. } | Transport::Santoker { .. } | Transport::Line { .. }
    )
}

fn same(reading: &Reading, served: &ServedReading) -> bool {
    reading.values.len() == served.values.len()
        && reading
            .values
            .iter()
            .zip(&served.values)
            .all(|((_, found), shown)| found.is_some_and(|found| (found - shown).abs() < 1e-9))
}

/// Checks that each reading equals a served one, later than the one before it. With `all`, no
/// served reading may be missing.
pub fn follows(id: &str, readings: &[Reading], served: &[ServedReading], all: bool) {
    let mut at = 0;
    for (i, reading) in readings.iter().enumerate() {
        let found = served[at..].iter().position(|s| same(reading, s));
        let found =
            found.unwrap_or_else(|| panic!("{id}: reading {i} was never shown: {reading:?}"));
        assert!(!all || found == 0, "{id}: {found} readings were lost before reading {i}");
        at += found + 1;
    }
}

#[tokio::test]
async fn each_machine_is_read_during_a_roast_without_lost_or_wrong_samples() {
    let emulated = SHIPPED.iter().filter(|e| e.id != "generic.probes.boards");
    let machines = join_all(emulated.map(|entry| read_a_roast(entry.id))).await.len();
    assert_eq!(machines, SHIPPED.len() - 1);
}

async fn read_a_roast(id: &str) {
    let profile = profile(id);
    let (emulator, mut driver) = start(&profile).await;
    let mut readings = Vec::new();
    for i in 0..READINGS as u64 {
        let reading = driver.read(i * 1000).await;
        readings.push(reading.unwrap_or_else(|e| panic!("{id}: reading {i}: {e}")));
    }
    follows(id, &readings, &emulator.served(), !sends_unpolled(&profile));
    let bt: Vec<f64> = readings.iter().filter_map(|r| r.values[0].1).collect();
    let (low, high) = bt.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    assert!(low < 120.0 && high > 190.0, "{id}: no roast: {low} to {high} °C");
    if profile.states.iter().any(|s| s.mark.is_some()) {
        let told: Vec<EventKind> = readings.iter().flat_map(|r| r.events.clone()).collect();
        let told = told.iter().filter(|m| matches!(m, EventKind::Charge | EventKind::Drop));
        assert!(told.count() >= 1, "{id}: the machine's events were not received");
    }
}

#[tokio::test]
async fn faults_invent_no_values_and_reading_recovers() {
    let faults = [
        Fault::Silent,
        Fault::Slow(Duration::from_millis(180)),
        Fault::Refuses(4),
        Fault::Garbage,
        Fault::HangsUp,
        Fault::OtherMaster,
    ];
    let machines = [
        "toper.tkm-sx.plc",
        "coffeetech.fz94.rtu",
        "giesen.wxa.s7-2019",
        "tc4.arduino.artisanq",
        "kaleido.m.serial",
        "hottop.kn8828b2k.serial",
        "santoker.rmaster.wifi",
        "generic.line.jsonl",
    ];
    for fault in faults {
        join_all(machines.map(|id| read_through_fault(id, fault))).await;
    }
}

/// Reads ten times without the fault, ten times with it, and twenty times after it.
async fn read_through_fault(id: &str, fault: Fault) {
    let mut profile = profile(id);
    profile.timing.timeout_ms = 60;
    let (emulator, mut driver) = start(&profile).await;
    let mut readings = Vec::new();
    for i in 0..40 {
        match i {
            10 => emulator.inject_fault(None, fault),
            20 => emulator.clear_faults(),
            _ => {}
        }
        if let Ok(reading) = driver.read((i + 1) * 1000).await {
            readings.push((i, reading));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = readings.iter().filter(|(i, _)| *i >= 24).count();
    assert!(after >= 12, "{id}: {fault:?}: did not recover: {after} of 16 readings");
    let served = emulator.served();
    for (i, reading) in &readings {
        // A complete reading equals a served one. In an incomplete reading, values are missing but
        // never invented.
        let whole = reading.values.iter().all(|(_, v)| v.is_some());
        let shown = served.iter().any(|s| same(reading, s));
        let in_part = sends_unpolled(&profile) || id == "coffeetech.fz94.rtu";
        assert!(!whole || shown || in_part, "{id}: {fault:?}: reading {i} was never shown");
        for (channel, value) in &reading.values {
            let can_be = value.is_none_or(|v| (-20.0..600.0).contains(&v));
            assert!(can_be, "{id}: {fault:?}: reading {i} has {channel:?} {value:?}");
        }
    }
}

#[tokio::test]
async fn an_open_probe_costs_a_text_line_only_its_own_value() {
    for id in ["tc4.arduino.artisanq", "kaleido.m.serial", "generic.line.jsonl", "generic.line.csv"]
    {
        let (emulator, mut driver) = start(&profile(id)).await;
        emulator.inject_fault(None, Fault::OpenProbe);
        let reading = driver.read(0).await.unwrap_or_else(|e| panic!("{id}: {e}"));
        for (i, (channel, value)) in reading.values.iter().enumerate() {
            assert_eq!(value.is_none(), i == 1, "{id}: {channel:?} is {value:?}");
        }
    }
}

#[tokio::test]
async fn one_silent_unit_of_three_does_not_delay_the_others() {
    let mut profile = profile("coffeetech.fz94.rtu");
    profile.channels.retain(|c| matches!(c.station, Some(11..=13)));
    profile.timing.timeout_ms = 500;
    let read_all = async |driver: &mut Box<dyn Driver>, from: u64| {
        let mut slowest = Duration::ZERO;
        let (mut whole, mut slow) = (0, 0);
        for i in 0..60 {
            let began = Instant::now();
            let reading = driver.read((from + i) * 1000).await.unwrap();
            let took = began.elapsed();
            slowest = slowest.max(took);
            slow += usize::from(took > Duration::from_millis(500));
            let living = reading
                .values
                .iter()
                .filter(|(c, _)| c.as_str() != "drumC" && c.as_str() != "setpointC");
            whole += usize::from(
                living.clone().count() == 2 && living.clone().all(|(_, v)| v.is_some()),
            );
        }
        (whole, slow, slowest)
    };
    let (emulator, mut driver) = start(&profile).await;
    let (whole, slow, _) = read_all(&mut driver, 0).await;
    assert_eq!(whole, 60, "{slow} of them slow");
    emulator.inject_fault(Some(12), Fault::Silent);
    let (whole, slow, slowest) = read_all(&mut driver, 60).await;
    assert_eq!(whole, 60, "the others are read every time, before the silent unit");
    assert!(slow <= 20, "the silent unit was polled {slow} times in a minute");
    assert!(
        slowest < Duration::from_secs(1),
        "a reading took longer than one time limit: {slowest:?}"
    );
    emulator.clear_faults();
    let mut back = 0;
    for i in 0..10 {
        let reading = driver.read((120 + i) * 1000).await.unwrap();
        back += usize::from(reading.values.iter().all(|(_, v)| v.is_some()));
    }
    assert!(back >= 4, "not read again within five seconds: {back}");
}

#[tokio::test]
async fn a_queued_write_is_executed_between_two_runs_of_registers() {
    let mut profile = profile("toper.tkm-sx.plc");
    profile.machine.writes = firmware_profiles::Writes::Enabled;
    profile.timing.block_max = 1;
    let controls = ControlQueue::new(&profile, Duration::from_secs(5));
    let share = DriverHandles { controls: Some(controls.clone()), ..DriverHandles::default() };
    let (emulator, mut driver) = start_shared(&profile, share, STEP_MS).await;
    driver.read(0).await.unwrap();
    let off = tokio_modbus::Request::WriteSingleRegister(1105, 0);
    // A write requested during a slow reading waits for one of its many answers.
    emulator.inject_fault(None, Fault::Slow(Duration::from_millis(100)));
    let runs = profile.channels.len() + profile.states.len();
    assert!(runs >= 3, "{runs}");
    let began = Instant::now();
    let moved = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        controls.write_modbus("a test", 1, &off, 100).await.map(|_| began.elapsed())
    };
    let (reading, moved) = tokio::join!(driver.read(100), moved);
    let took = began.elapsed();
    let moved = moved.unwrap();
    assert!(
        moved < Duration::from_millis(550) && moved + Duration::from_millis(150) < took,
        "{moved:?} of {took:?}"
    );
    let reading = reading.unwrap();
    assert!(
        reading.values.iter().all(|(_, value)| value.is_some()),
        "the write cost the reading a value"
    );
    assert_eq!(reading.notes, ["a test: burner to 0"]);
    emulator.clear_faults();
    // A write is also executed between two readings.
    let (moved, ()) = tokio::join!(controls.write_modbus("a test", 1, &off, 200), async {
        driver.wait_for_write().await;
        driver.execute_pending(200).await;
    });
    assert_eq!(moved.unwrap(), "burner to 0");
    emulator.inject_fault(None, Fault::Refuses(4));
    let off = tokio_modbus::Request::WriteSingleRegister(1105, 0);
    let (moved, ()) = tokio::join!(controls.write_modbus("a test", 1, &off, 300), async {
        driver.wait_for_write().await;
        driver.execute_pending(300).await;
    });
    assert!(matches!(moved, Err(WriteError::Unconfirmed(_))), "{moved:?}");
    emulator.clear_faults();
    let notes = driver.read(1_000).await.unwrap().notes;
    assert_eq!(notes[0], "a test: burner to 0");
    let doubt = "a test: burner to 0; the machine did not confirm it";
    assert!(notes[1].starts_with(doubt), "{notes:?}");
}

#[tokio::test]
async fn an_emulated_machine_executes_a_write_unless_it_ignores_writes() {
    use tokio_modbus::prelude::{ExceptionCode, Reader as _, Slave, Writer as _};
    let profile = profile("imf.rm.tcp");
    let (emulator, _driver) = start(&profile).await;
    let Endpoint::Tcp(address) = emulator.endpoint().clone() else { panic!("a serial line") };
    let mut client = tokio_modbus::client::tcp::connect_slave(address, Slave(1)).await.unwrap();
    client.write_single_register(40, 0x42a0).await.unwrap().unwrap();
    assert_eq!(client.read_holding_registers(40, 1).await.unwrap().unwrap(), [0x42a0]);
    emulator.inject_fault(None, Fault::Ignores);
    client.write_single_register(40, 0x4120).await.unwrap().unwrap();
    assert_eq!(client.read_holding_registers(40, 1).await.unwrap().unwrap(), [0x42a0]);
    let refused = client.write_single_register(7, 1).await.unwrap();
    assert_eq!(refused, Err(ExceptionCode::IllegalDataAddress));
    let refused = client.write_single_coil(40, true).await.unwrap();
    assert_eq!(refused, Err(ExceptionCode::IllegalDataAddress), "another table has no such coil");
}

/// A machine with writes enabled, its control queue, and the time of its clock, ms.
struct Held {
    profile: Profile,
    emulator: Emulator,
    driver: Box<dyn Driver>,
    controls: ControlQueue,
    now_ms: u64,
}

impl Held {
    async fn start(id: &str) -> Self {
        let mut profile = profile(id);
        profile.machine.writes = firmware_profiles::Writes::Enabled;
        profile.timing.timeout_ms = 1_000;
        let controls = ControlQueue::new(&profile, Duration::from_secs(1));
        let share = DriverHandles { controls: Some(controls.clone()), ..DriverHandles::default() };
        // With a small step: a machine that sends without being polled goes on while no test reads
        // it, and a jump would count as a spike.
        let (emulator, driver) = start_shared(&profile, share, 200).await;
        let mut held = Self { profile, emulator, driver, controls, now_ms: 0 };
        // Reads until the roast runs, since the burner needs air.
        for _ in 0..20 {
            held.shows("btC").await;
        }
        held
    }

    /// Returns the value of a channel one second later.
    async fn shows(&mut self, channel: &str) -> f64 {
        for _ in 0..20 {
            self.now_ms += 1_000;
            let Ok(reading) = self.driver.read(self.now_ms).await else { continue };
            let found = reading.values.iter().find(|(c, _)| c.as_str() == channel);
            if let Some((_, Some(value))) = found {
                return *value;
            }
        }
        panic!("{}: {channel} is not shown", self.profile.machine.id);
    }

    async fn moves(&mut self, control: &str, value: f64) -> Result<String, WriteError> {
        let (asked, ()) =
            tokio::join!(self.controls.set("a test", control, value, self.now_ms), async {
                // A write that is refused at once never reaches the driver.
                let asked =
                    tokio::time::timeout(Duration::from_millis(50), self.driver.wait_for_write());
                if asked.await.is_ok() {
                    self.driver.execute_pending(self.now_ms).await;
                }
            });
        asked
    }
}

#[tokio::test]
async fn each_machine_executes_writes_in_its_own_protocol_and_its_readback_confirms_them() {
    for id in ["giesen.wxa.s7-pro", "probat.g.s7", "kaleido.m.serial", "santoker.rmaster.wifi"] {
        let mut machine = Held::start(id).await;
        let guarded = machine.profile.controls.clone().into_iter();
        let guarded = guarded.filter(|c| c.remote == firmware_profiles::Remote::Guarded);
        let mut moved = 0;
        for control in guarded {
            let channel = control.readback.clone().unwrap();
            let stands = machine.shows(&channel).await;
            let [low, high] = control.range.unwrap();
            let step = control.max_step.unwrap().min((high - low) / 5.0).floor();
            // Air is raised, since it must not be reduced while the burner needs it.
            let up = !control.role.heats() && stands + step < high;
            let to = if up { stands + step } else { (stands - step).max(low) }.round();
            let said = machine.moves(&control.name, to).await;
            assert_eq!(
                said.unwrap_or_else(|e| panic!("{id}: {}: {e:?}", control.name)),
                format!("{} to {to}", control.name),
                "{id}"
            );
            let mut shown = f64::NAN;
            for _ in 0..5 {
                shown = machine.shows(&channel).await;
            }
            assert!((shown - to).abs() < 0.6, "{id}: {} shows {shown}, not {to}", control.name);
            // The machine acknowledges the next write and does nothing: from then on the interlock
            // refuses to raise the control.
            machine.emulator.inject_fault(None, Fault::Ignores);
            machine.now_ms += 5_000;
            machine.shows(&channel).await;
            let step = control.readback_tol.unwrap() + 1.0;
            let away = if up && to + step < high { to + step } else { to - step };
            machine.moves(&control.name, away).await.unwrap();
            machine.now_ms += 30_000;
            assert!(
                (machine.shows(&channel).await - to).abs() < 0.6,
                "{id}: the write was executed"
            );
            let again = machine.moves(&control.name, to + 1.0).await;
            assert_eq!(again, Err(WriteError::NotFollowed(control.name.clone())), "{id}");
            machine.emulator.clear_faults();
            moved += 1;
        }
        assert!(moved >= 2, "{id}: {moved}");
        for control in machine.profile.controls.clone() {
            if control.remote == firmware_profiles::Remote::Never {
                let refused = Err(WriteError::LocalOnly(control.name.clone()));
                assert_eq!(machine.moves(&control.name, 0.0).await, refused, "{id}");
            }
        }
        assert_eq!(machine.moves("nothing", 0.0).await, Err(WriteError::NoSuchControl));
    }
}

#[tokio::test]
async fn a_write_without_acknowledgement_is_unconfirmed() {
    let mut machine = Held::start("giesen.wxa.s7-pro").await;
    for fault in [
        Fault::Refuses(0x85),
        // Without an answer it is unknown whether the write was executed.
        Fault::Silent,
        Fault::HangsUp,
        Fault::OtherMaster,
    ] {
        machine.emulator.inject_fault(None, fault);
        let refused = machine.moves("burner", 0.0).await;
        assert!(matches!(refused, Err(WriteError::Unconfirmed(_))), "{fault:?}: {refused:?}");
        machine.emulator.clear_faults();
        // The next request receives its own answer, and its write is executed.
        machine.shows("gasPct").await;
        machine.now_ms += 5_000;
        machine.shows("gasPct").await;
        let raised = machine.moves("burner", 15.0).await;
        assert!(raised.is_ok(), "{fault:?}: {raised:?}");
        machine.shows("gasPct").await;
        let shown = machine.shows("gasPct").await;
        assert!((shown - 15.0).abs() < 0.6, "{fault:?}: {shown}");
    }
}
