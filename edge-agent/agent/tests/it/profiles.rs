//! Tests the use of profiles from end to end: check, sign, and reading a machine with the agent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod typist;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use contract::{Channel, Frame};
use emulator::{Emulator, Endpoint};
use serde_json::Value;
use testbed::{Process, binary_path, free_port, wait_for};
use tokio::time::Instant;

use typist::Typist;

const PATIENCE: Duration = Duration::from_secs(30);

fn edge(arguments: &[&str]) -> Output {
    Command::new(binary_path("simcorp-edge").unwrap()).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    String::from_utf8_lossy(&output.stdout).into_owned() + &err
}

/// Returns the example from the guide.
fn example() -> String {
    let page = include_str!("../../../../docs/guides/write-a-profile.md");
    let text = page.split("```toml profile\n").nth(1).unwrap();
    text.split("```").next().unwrap().to_owned()
}

#[test]
fn the_example_in_the_guide_is_valid_and_mistakes_in_it_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roaster.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, example()).unwrap();
    let right = edge(&["profile", "check", path]);
    assert!(right.status.success() && said(&right).contains("nothing is wrong"), "{right:?}");
    std::fs::write(&file, example().replace("unit = \"C\"\n", "").replace("holding 20", "20"))
        .unwrap();
    let wrong = edge(&["profile", "check", path, "toper.tkm-sx.plc"]);
    let text = said(&wrong);
    assert!(!wrong.status.success());
    assert!(text.contains("channel btC: has no unit") && text.contains("[address]"), "{text}");
    assert!(text.contains("1 of 2 profiles are wrong"), "{text}");
    let listed = said(&edge(&["profile", "list"]));
    assert!(listed.lines().count() >= 20 && listed.contains("giesen.wxa.s7-pro"), "{listed}");
    assert!(said(&edge(&["profile", "show", "toper.tkm-sx.plc"])).starts_with("# sha256 "));
    assert!(said(&edge(&["profile", "schema"])).contains("\"$schema\""));
    assert!(said(&edge(&["profile", "show", "no-such"])).contains("profile list"));
}

pub(crate) struct Gateway {
    folder: tempfile::TempDir,
    pub(crate) process: Process,
    pub(crate) port: u16,
}

impl Gateway {
    pub(crate) fn new(machine: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port().unwrap());
        let at = folder.path().display();
        let text = format!(
            "[identity]\norg = \"org\"\nsite = \"s\"\ndevice = \"gw\"\nkey_file = \"{at}/key.pem\"\n\
             [journal]\nfolder = \"{at}/journal\"\n[local]\nlisten = \"127.0.0.1:{port}\"\n\
             [sampling]\nperiod_ms = 50\nframe_ms = 200\n\
             [machine]\nid = \"r-1\"\ndriver = \"profile\"\n[machine.profile]\n{machine}\n"
        );
        let config = folder.path().join("edge.toml");
        std::fs::write(&config, text).unwrap();
        let config = config.display().to_string();
        if !folder.path().join("key.pem").exists() {
            let made = edge(&["-c", &config, "key", "create"]);
            assert!(made.status.success(), "{}", said(&made));
        }
        let arguments = ["-c".to_owned(), config, "run".to_owned()];
        let log = folder.path().join("agent.log");
        let process = Process::new(binary_path("simcorp-edge").unwrap(), arguments, log);
        Self { folder, process, port }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    pub(crate) fn frames(&self) -> Vec<Frame> {
        let journal = self.folder.path().join("journal/journal.db");
        let db = rusqlite::Connection::open(journal).unwrap();
        let mut rows = db.prepare("SELECT signed FROM frames ORDER BY id").unwrap();
        let frames = rows.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        let frame = |bytes: Vec<u8>| {
            let signed = trust::SignedMessage::parse(&bytes).unwrap();
            Frame::decode(signed.payload()).unwrap()
        };
        frames.map(|bytes| frame(bytes.unwrap())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_stores_the_shown_values_and_the_digest_of_the_profile() {
    let text = firmware_profiles::shipped("toper.tkm-sx.plc").unwrap().text;
    let checked = firmware_profiles::check(text).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let every = Duration::from_millis(50);
    let machine = Emulator::start(&checked.profile, any, 2_000, every).await.unwrap();
    let Endpoint::Tcp(address) = machine.endpoint() else { panic!("a TCP machine") };
    let mut gateway = Gateway::new(&format!(
        "id = \"toper.tkm-sx.plc\"\nhost = \"127.0.0.1\"\nport = {}\ntimeout_ms = 50\n",
        address.port()
    ));
    gateway.process.start().unwrap();
    wait_for("150 readings are served", PATIENCE * 2, || async { machine.served().len() > 150 })
        .await
        .unwrap_or_else(|e| panic!("{e}: {}", gateway.log()));
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success(), "{}", gateway.port);
    let frames = gateway.frames();
    assert!(frames.iter().all(|frame| frame.profile_digest == Some(checked.digest)));
    let column = |channel: &Channel| -> Vec<f64> {
        let values = frames.iter().flat_map(|f| (0..f.sample_count()).map(|i| f.value(channel, i)));
        values.map(|value| value.unwrap_or(f64::NAN)).collect()
    };
    let (bt, gas) = (column(&Channel::Bt), column(&Channel::Gas));
    let served = machine.served();
    // Every reading was served by the machine, and in this order. On a busy computer an answer may
    // come too late for its sample and count for the next one; `driver/tests` shows that none is
    // lost.
    let mut at = 0;
    for (i, (bt, gas)) in bt.iter().zip(&gas).enumerate() {
        let same = |s: &emulator::ServedReading| {
            (bt - s.values[0]).abs() < 1e-9 && (gas - s.values[3]).abs() < 1e-9
        };
        let found = served[at..].iter().position(same);
        at += found.unwrap_or_else(|| panic!("sample {i}: {bt} °C, {gas} % was never shown")) + 1;
    }
    assert!(at <= bt.len() + 5, "{} samples of {at} readings", bt.len());
}

/// Sends one Modbus request and returns the PDU of the response. Encoded by hand, independently of
/// any code under test.
fn modbus(port: u16, pdu: &[u8]) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = u8::try_from(pdu.len() + 1).unwrap();
    stream.write_all(&[&[0, 9, 0, 0, 0, length, 1][..], pdu].concat()).unwrap();
    let mut head = [0; 7];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..2], [0, 9]);
    let mut pdu = vec![0; usize::from(head[5]) - 1];
    stream.read_exact(&mut pdu).unwrap();
    pdu
}

/// Returns whether the agent closes the connection on a request, without an answer.
fn is_disconnected(port: u16, pdu: &[u8]) -> bool {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = u8::try_from(pdu.len() + 1).unwrap();
    stream.write_all(&[&[0, 9, 0, 0, 0, length, 1][..], pdu].concat()).unwrap();
    !stream.read(&mut [0; 16]).is_ok_and(|count| count > 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn artisan_reads_the_machine_through_the_agent_and_writes_nothing() {
    let text = firmware_profiles::shipped("toper.tkm-sx.plc").unwrap().text;
    let checked = firmware_profiles::check(text).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let every = Duration::from_millis(50);
    let machine = Emulator::start(&checked.profile, any, 500, every).await.unwrap();
    let Endpoint::Tcp(address) = machine.endpoint() else { panic!("a TCP machine") };
    let port = free_port().unwrap();
    let mut gateway = Gateway::new(&format!(
        "id = \"toper.tkm-sx.plc\"\nhost = \"127.0.0.1\"\nport = {}\ntimeout_ms = 50\n\
         [artisan]\nmodbus = \"127.0.0.1:{port}\"\n",
        address.port()
    ));
    gateway.process.start().unwrap();
    testbed::wait_for_port(port).await.unwrap_or_else(|e| panic!("{e}: {}", gateway.log()));
    wait_for("20 readings are served", PATIENCE, || async { machine.served().len() > 20 })
        .await
        .unwrap();
    let bt = modbus(port, &[3, 0, 2, 0, 1]);
    assert_eq!(bt[..2], [3, 2], "{bt:?}");
    let shown = f64::from(u16::from_be_bytes([bt[2], bt[3]])) / 10.0;
    let known = machine.served().iter().any(|s| (s.values[0] - shown).abs() < 1e-9);
    assert!(known, "{shown} °C was never shown by the machine");
    assert_eq!(modbus(port, &[3, 0, 3, 0, 1]), [0x83, 2], "a register the profile does not read");
    assert_eq!(modbus(port, &[6, 4, 81, 0, 50]), [0x86, 1], "Artisan must not write the burner");
    for hostile in [
        &[0x0f, 0, 0, 0xff, 0xff, 1, 0][..],
        &[0x10, 0, 0, 0x80, 0, 0],
        &[0x17, 0, 0, 0, 1, 0, 0, 0x80, 0, 0],
    ] {
        assert!(is_disconnected(port, hostile), "{hostile:x?}");
        assert_eq!(modbus(port, &[3, 0, 2, 0, 1])[..2], [3, 2], "after {hostile:x?}");
    }
    assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
    machine.inject_fault(None, emulator::Fault::Silent);
    wait_for("the register is stale", PATIENCE, || async {
        modbus(port, &[3, 0, 2, 0, 1]) == [0x83, 11]
    })
    .await
    .unwrap();
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());
}

/// Returns the output of `config check` for a gateway whose configuration lets Artisan write.
fn opened(machine: &str) -> String {
    let gateway = Gateway::new(machine);
    let config = gateway.folder.path().join("edge.toml").display().to_string();
    let open = std::fs::read_to_string(&config).unwrap().replace("writes = false", "writes = true");
    std::fs::write(&config, open).unwrap();
    said(&edge(&["-c", &config, "config", "check"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn artisan_writes_only_what_the_profile_allows_after_a_bring_up() {
    let shipped = firmware_profiles::shipped("toper.tkm-sx.plc").unwrap().text;
    let text = shipped.replace(
        "verified = false\nwrites = \"disabled\"",
        "verified = true\nwrites = \"enabled\"\n\
         bring_up = { by = [\"A\", \"B\"], on = \"2026-11-22\", record = \"binder 7\" }",
    );
    let checked = firmware_profiles::check(&text).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let machine =
        Emulator::start(&checked.profile, any, 500, Duration::from_millis(50)).await.unwrap();
    let Endpoint::Tcp(address) = machine.endpoint() else { panic!("a TCP machine") };
    let port = free_port().unwrap();
    let settings = |writes: bool| {
        format!(
            "host = \"127.0.0.1\"\nport = {}\ntimeout_ms = 50\n\
             [artisan]\nmodbus = \"127.0.0.1:{port}\"\nwrites = {writes}\n",
            address.port()
        )
    };
    // A profile as shipped allows no writes, whatever the configuration says.
    let told = opened(&format!("id = \"toper.tkm-sx.plc\"\n{}", settings(false)));
    assert!(told.contains("artisan.writes: is on, but"), "{told}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("toper.toml");
    std::fs::write(&file, &text).unwrap();
    let (at, key) = (file.display(), folder.path().join("office.key"));
    let kid = "device:office@leipzig";
    let office =
        trust::FileKey::create(&key, kid.parse().unwrap(), trust::Algorithm::EdDsa).unwrap();
    std::fs::write(folder.path().join("office.pub"), office.public_key().to_pem()).unwrap();
    let key = key.display().to_string();
    let signed = ["profile", "sign", &at.to_string(), "--key-file", &key, "--kid", kid];
    assert!(edge(&signed).status.success());
    let trusted = folder.path().join("office.pub");
    let machine_file = format!("file = \"{at}\"\ntrusted_keys = [\"{}\"]\n", trusted.display());
    // Nor does a profile that is not signed by a trusted key.
    let told = opened(&format!("file = \"{at}\"\n{}", settings(false)));
    assert!(told.contains("trusted_keys is empty"), "{told}");
    let burner = |value: u16| {
        let [high, low] = value.to_be_bytes();
        modbus(port, &[6, 4, 81, high, low])
    };
    let mut closed = Gateway::new(&format!("{machine_file}{}", settings(false)));
    closed.process.start().unwrap();
    testbed::wait_for_port(port).await.unwrap_or_else(|e| panic!("{e}: {}", closed.log()));
    wait_for("5 readings are served", PATIENCE, || async { machine.served().len() > 5 })
        .await
        .unwrap();
    assert_eq!(burner(0), [0x86, 1], "the site's configuration must allow writes too");
    assert!(closed.process.stop(PATIENCE).await.unwrap().success());

    let mut gateway = Gateway::new(&format!("{machine_file}{}", settings(true)));
    gateway.process.start().unwrap();
    testbed::wait_for_port(port).await.unwrap_or_else(|e| panic!("{e}: {}", gateway.log()));
    let config = gateway.folder.path().join("edge.toml").display().to_string();
    wait_for("a roast is running", PATIENCE, || async {
        said(&edge(&["-c", &config, "status"])).contains("\"session\": \"")
    })
    .await
    .unwrap();
    assert_eq!(burner(0), [6, 4, 81, 0, 0], "{}", gateway.log());
    wait_for("the register shows the burner at 0", PATIENCE, || async {
        modbus(port, &[3, 4, 81, 0, 1]) == [3, 2, 0, 0]
    })
    .await
    .unwrap();
    assert_eq!(burner(101), [0x86, 3], "outside the range");
    assert_eq!(burner(15), [0x86, 6], "less than two seconds after the last write");
    assert_eq!(
        modbus(port, &[5, 0, 32, 255, 0]),
        [0x85, 1],
        "the feed is operated only at the machine"
    );
    assert_eq!(modbus(port, &[6, 0, 2, 0, 1]), [0x86, 2], "no control has this address");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(burner(45), [0x86, 3], "a step of more than 20");
    assert_eq!(burner(15), [6, 4, 81, 0, 15], "{}", gateway.log());
    // Reducing heat is always allowed; but a machine that does not answer does not count as moved.
    machine.inject_fault(None, emulator::Fault::Silent);
    assert_eq!(burner(0), [0x86, 11]);
    machine.clear_faults();
    wait_for("the write is acknowledged again", PATIENCE, || async {
        burner(0) == [6, 4, 81, 0, 0]
    })
    .await
    .unwrap();
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());
    let events = gateway.frames().into_iter().flat_map(|frame| frame.events);
    let notes: Vec<String> = events.filter_map(|event| event.note).collect();
    for told in ["Artisan: burner to 0", "Artisan: burner to 15"] {
        assert!(notes.iter().any(|note| note == told), "{told}: {notes:?}");
    }
    let doubt = "Artisan: burner to 0; the machine did not confirm it";
    assert!(notes.iter().any(|note| note.starts_with(doubt)), "{notes:?}");
}

#[test]
fn a_custom_profile_is_accepted_only_with_a_valid_signature() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("roaster.toml"), example()).unwrap();
    let kid: contract::KeyId = "device:office@leipzig".parse().unwrap();
    let key = |name: &str| {
        let path = at(&format!("{name}.key"));
        let algorithm = trust::Algorithm::EdDsa;
        let key = trust::FileKey::create(Path::new(&path), kid.clone(), algorithm).unwrap();
        std::fs::write(at(&format!("{name}.pub")), key.public_key().to_pem()).unwrap();
    };
    key("office");
    key("stranger");
    let sign = |by: &str| {
        let (file, key) = (at("roaster.toml"), at(&format!("{by}.key")));
        let kid = "device:office@leipzig";
        let signed = edge(&["profile", "sign", &file, "--key-file", &key, "--kid", kid]);
        assert!(signed.status.success(), "{}", said(&signed));
    };
    sign("office");
    let gateway = Gateway::new(&format!(
        "file = \"{}\"\ntrusted_keys = [\"{}\"]\ntimeout_ms = 50",
        at("roaster.toml"),
        at("office.pub")
    ));
    let config = gateway.folder.path().join("edge.toml").display().to_string();
    let check = || said(&edge(&["-c", &config, "config", "check"]));
    assert!(check().contains("is right"), "{}", check());
    std::fs::write(at("roaster.toml"), example().replace("divisor = 10", "divisor = 100")).unwrap();
    assert!(check().contains("the signature of something else"), "{}", check());
    sign("stranger");
    assert!(check().contains("by none of machine.profile.trusted_keys"), "{}", check());
    std::fs::remove_file(at("roaster.toml.sig")).unwrap();
    assert!(check().contains("roaster.toml.sig"), "{}", check());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bring_up_by_two_people_records_what_they_saw() {
    let text = firmware_profiles::shipped("probat.g.s7").unwrap().text;
    let checked = firmware_profiles::check(text).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let machine =
        Emulator::start(&checked.profile, any, 500, Duration::from_millis(50)).await.unwrap();
    let Endpoint::Tcp(address) = machine.endpoint() else { panic!("a TCP machine") };
    let at = format!(
        "id = \"probat.g.s7\"\nhost = \"127.0.0.1\"\nport = {}\ntimeout_ms = 50\n",
        address.port()
    );
    let mut gateway = Gateway::new(&at);
    let record = gateway.folder.path().join("bring-up.jsonl");
    for (by, typed, expected) in [
        (["Anna", "Anna"], "probat.g.s7", "two people"),
        (["Anna", "Ben"], "yes", "nothing was moved"),
    ] {
        let mut typist = Typist::start(&gateway, by);
        typist.types(typed);
        typist.types("burner 0");
        let (done, told) = typist.ends();
        assert!(!done && told.contains(expected), "{told}");
    }
    assert_eq!(std::fs::read_to_string(&record).unwrap(), "");
    // The running agent has exclusive access to the machine.
    let before = machine.served().len();
    gateway.process.start().unwrap();
    wait_for("the agent samples", PATIENCE, || async { machine.served().len() > before })
        .await
        .unwrap();
    let (done, told) = Typist::start(&gateway, ["Anna", "Ben"]).ends();
    assert!(!done && told.contains("the agent has the machine; stop it first"), "{told}");
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());

    let mut typist = Typist::start(&gateway, ["Anna", "Ben"]);
    typist.types("probat.g.s7");
    typist.reads("btC");
    for (typed, expected) in [
        ("what", "a control and a value move it"),
        ("burner 400", "burner goes from 0 to 100, not to 400"),
        ("air 45", "fanPct follows within"),
        ("drum 56", "drumRpm follows within"),
        ("burner 20", "gasPct follows within"),
    ] {
        typist.types(typed);
        typist.reads(expected);
    }
    // The machine acknowledges each command and does nothing. Turning the burner off does not wait
    // for the end of the observation.
    machine.inject_fault(None, emulator::Fault::Ignores);
    typist.types("burner 10");
    typist.reads("burner to 10");
    let began = Instant::now();
    typist.types("burner 0");
    typist.reads("gasPct was not watched to its end");
    typist.reads("burner to 0");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    typist.reads("gasPct does not follow");
    // A write of the value that the machine already shows proves nothing.
    typist.types("burner 20");
    typist.reads("the machine did not follow when burner was moved last");
    machine.clear_faults();
    for (typed, expected) in [
        ("burner 0", "gasPct follows within"),
        ("air 45", "fanPct showed 45.0 before: it proves nothing"),
        ("end", "burner: followed"),
    ] {
        typist.types(typed);
        typist.reads(expected);
    }
    let (done, told) = typist.ends();
    assert!(done, "{told}");
    let lines = std::fs::read_to_string(&record).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let moved: Vec<&Value> = lines.iter().filter(|line| line["step"] == "moved").collect();
    let controls: Vec<&str> = moved.iter().map(|line| line["control"].as_str().unwrap()).collect();
    let expected =
        ["burner", "air", "drum", "burner", "burner", "burner", "burner", "burner", "air"];
    assert_eq!(controls, expected, "{told}");
    let written: Vec<bool> = moved.iter().map(|line| line["written"].as_bool().unwrap()).collect();
    assert_eq!(written, [false, true, true, true, true, true, false, true, true], "{told}");
    assert!(moved.iter().all(|line| line["by"] == serde_json::json!(["Anna", "Ben"])));
    assert!(moved.iter().all(|line| line["digest"] == checked.digest.to_string()), "{lines:?}");
    let found: Vec<&str> = lines.iter().filter_map(|line| line["found"].as_str()).collect();
    let followed = "followed";
    let expected = [followed, followed, followed, "brokenOff", "notInTime", followed, "stoodThere"];
    assert_eq!(found, expected, "{told}");
    let seen = lines.iter().find(|line| line["step"] == "seen").unwrap();
    assert_eq!((&seen["before"], &seen["shown"]), (&30.0.into(), &45.0.into()));
    assert!(seen["afterS"].is_f64() && told.contains("  air was moved to 45 last\n"), "{told}");
    // The lines that the program prints for the profile are valid in the profile.
    let block = told.split("in [machine]:\n").nth(1).unwrap().trim();
    let brought_up = text.replacen("verified = false\nwrites = \"disabled\"", block, 1);
    let brought_up = firmware_profiles::check(&brought_up).unwrap().profile;
    assert_eq!(brought_up.machine.bring_up.unwrap().by, ["Anna", "Ben"]);
}
