//! Tests each rule of the linter with a change that breaks it.

use firmware_profiles::{lint, parse, shipped};

/// Returns the rules that a shipped profile breaks after `from` is replaced with `to`.
fn broken(id: &str, from: &str, to: &str) -> Vec<&'static str> {
    let text = shipped(id).unwrap().text;
    assert!(text.contains(from), "{id} has no {from:?}");
    let profile = parse(&text.replacen(from, to, 1)).unwrap_or_else(|e| panic!("{to}: {e}"));
    let mut rules: Vec<_> = lint(&profile).into_iter().map(|f| f.rule).collect();
    rules.dedup();
    rules
}

const TOPER: &str = "toper.tkm-sx.plc";
const GIESEN: &str = "giesen.wxa.s7-2019";
const BESCA: &str = "besca.bsc.auto-tcp";

#[test]
fn every_rule_finds_its_mistake() {
    let drum_slider = "[[control]]\nname = \"drum\"\nrole = \"drum\"\naddr = \"holding 1105\"\n\
        type = \"u16\"\nfunction = 6\nunit = \"pct\"\nrange = [0, 100]\nreadback = \"none\"\n\
        idempotent = true\nremote = \"never\"\n\n[safe_state]";
    let two = "addr = \"holding 4\"\ntype = \"f32\"\norder = \"low-first\"";
    for (id, from, to, rule) in [
        // A public setup makes this mistake for this very machine.
        (TOPER, "[safe_state]", drum_slider, "shared-address"),
        (TOPER, "range = [0, 100]", "range = [0, 70000]", "range-outside-type"),
        (TOPER, "range = [0, 100]\n", "", "range"),
        (TOPER, "readback = \"gasPct\"\n", "", "no-readback"),
        (TOPER, "readback = \"gasPct\"", "readback = \"burnerPct\"", "no-readback"),
        (TOPER, "readback = \"gasPct\"", "readback = \"none\"", "blind"),
        (TOPER, "readback_s = 10\n", "", "readback-bounds"),
        (TOPER, "idempotent = true", "idempotent = false", "not-idempotent"),
        (TOPER, "role = \"burner\"", "role = \"ignition\"", "local-only"),
        (TOPER, "name = \"burner\"", "name = \"burner_on\"", "local-only"),
        (TOPER, "max_step = 20", "max_step = 50", "step"),
        (TOPER, "min_interval_s = 2", "min_interval_s = 0.5", "step"),
        (TOPER, "needs = [\"drumPct >= 20\", \"fanPct >= 20\"]\n", "", "heat-needs"),
        (TOPER, "drumPct >= 20", "flame_ok", "needs"),
        (TOPER, "function = 6\n", "", "no-function"),
        (TOPER, "function = 6", "function = 16\npulse_ms = 5", "not-idempotent"),
        (TOPER, "function = 6", "function = 5", "function"),
        (TOPER, "unit = \"C\"\n", "", "no-unit"),
        (TOPER, "unit = \"C\"", "unit = \"pct\"", "unit"),
        (TOPER, "type = \"u16\"\n", "", "no-type"),
        (TOPER, "type = \"u16\"", "type = \"f32\"", "word-order"),
        (TOPER, "type = \"u16\"", "type = \"bool\"", "bit"),
        (TOPER, "divisor = 10", "divisor = 7", "divisor"),
        (TOPER, "valid = [-20, 350]\n", "", "valid"),
        (TOPER, "valid = [-20, 350]", "valid = [350, -20]", "valid"),
        (TOPER, "holding 20", "holding 40021", "printed-address"),
        (TOPER, "holding 20", "D20", "address"),
        (TOPER, "name = \"inletC\"", "name = \"btC\"", "twice"),
        (TOPER, "name = \"inletC\"", "name = \"rorCPerMin\"", "name"),
        (TOPER, "order = [\"burner=0\", \"air=max\"]", "order = [\"air=max\"]", "safe-state"),
        (TOPER, "burner=0", "burner=30", "heat-in-safe-state"),
        (TOPER, "air=max", "air=200", "safe-state"),
        (TOPER, "air=max", "cyclone=max", "safe-state"),
        (TOPER, "timeout_ms = 300", "timeout_ms = 600", "timeout"),
        (TOPER, "poll_ms = 1000", "poll_ms = 5", "poll"),
        (TOPER, "timeout_ms = 300", "timeout_ms = 300\nblock_max = 200", "block"),
        (TOPER, "station = 1\n", "station = 0\n", "station"),
        (TOPER, "verified = false", "verified = true", "verified"),
        (TOPER, "writes = \"disabled\"", "writes = \"enabled\"", "writes"),
        (TOPER, "toper.tkm-sx.plc", "toper", "id"),
        (TOPER, "controller = \"PLC, Modbus TCP\"", "controller = \"\"", "generation"),
        (
            TOPER,
            "source = \"community machine setup, not verified on hardware\"",
            "source = \"\"",
            "source",
        ),
        (TOPER, "version = 1", "version = 0", "version"),
        (
            GIESEN,
            "map = { factor = 1, offset = 1 }",
            "map = { factor = 1, offset = 0 }",
            "auto-inside-range",
        ),
        (GIESEN, "map = { factor = 1, offset = 1 }", "map = { factor = 0, offset = 1 }", "map"),
        (GIESEN, "range = [36, 49]", "range = [0, 49]", ""),
        (GIESEN, "drum=keep", "drum=0", "drum-stop"),
        (GIESEN, "min_gap_ms = 40", "min_gap_ms = 0", "s7-gap"),
        (GIESEN, "addr = \"DB2.16\"", "addr = \"DB2.15\"", "shared-address"),
        (GIESEN, "DB3.112", "DB3,112", "address"),
        (GIESEN, "forbid = [\"machine_power\"]", "forbid = [\"lid while\"]", "forbid"),
        (BESCA, "remote = \"never\"", "remote = \"guarded\"", "blind"),
        ("diedrich.dr.modbus", two, "addr = \"holding 4\"\ntype = \"f32\"", "word-order"),
        ("diedrich.dr.modbus", "order = \"low-first\"", "order = \"low-first-swapped\"", ""),
        (TOPER, "type = \"u16\"", "type = \"f64\"", "word-order"),
        (TOPER, "type = \"u16\"", "type = \"f64\"\norder = \"high-first-swapped\"", ""),
        (TOPER, "type = \"u16\"", "type = \"u16\"\norder = \"high-first-swapped\"", ""),
        (TOPER, "type = \"u16\"", "type = \"u8\"", "byte"),
        (TOPER, "addr = \"holding 2\"", "addr = \"holding 2.high\"", "byte"),
        (TOPER, "addr = \"holding 2\"", "addr = \"holding 2.middle\"", "address"),
        (GIESEN, "slot = 0", "local_tsap = \"02.00\"\nremote_tsap = \"01.0a\"", ""),
        (GIESEN, "slot = 0", "slot = 1\nremote_tsap = \"01.00\"", "tsap"),
        (GIESEN, "slot = 0", "remote_tsap = \"0100\"", "tsap"),
        (GIESEN, "slot = 0", "local_tsap = \"1.0\"", "tsap"),
        ("hottop.kn8828b2k.serial", "poll_ms = 300", "poll_ms = 900", "hottop-watchdog"),
        ("coffeetech.fz94.rtu", "baud = 19200", "baud = 1200", "bus-load"),
        ("fuji.pxg.rtu", "stop_bits = 1", "stop_bits = 3", "serial"),
        ("tc4.arduino.artisanq", "ch2", "ch9", "address"),
        ("santoker.rmaster.wifi", "mark = \"DROP\"", "mark = \"DORP\"", "mark"),
        ("santoker.rmaster.wifi", "addr = \"F3\"", "addr = \"F3\"\nstation = 3", "station"),
        ("generic.probes.boards", "max31856 /dev/spidev0.0", "max31856 /dev/i2c-1", "address"),
    ] {
        let rules = broken(id, from, to);
        if rule.is_empty() {
            assert!(rules.is_empty(), "{id}: {to:?} should break no rule, but breaks: {rules:?}");
        } else {
            assert!(
                rules.contains(&rule),
                "{id}: {to:?} should break {rule}, but breaks: {rules:?}"
            );
        }
    }
}

#[test]
fn numbers_of_any_size_are_findings_and_never_overflow() {
    const WATLOW: &str = "watlow.pm.rtu";
    let huge = i64::MAX;
    for (from, to, rule) in [
        ("stop_bits = 1", "data_bits = 255, stop_bits = 255".to_owned(), "serial"),
        ("timeout_ms = 300", format!("timeout_ms = 300\nmin_gap_ms = {huge}"), "bus-load"),
        ("timeout_ms = 300", format!("timeout_ms = {huge}"), "timeout"),
        ("poll_ms = 1000", format!("poll_ms = {huge}"), "poll"),
    ] {
        let broken = broken(WATLOW, from, &to);
        assert!(broken.contains(&rule), "{to:?} should break {rule}, but breaks: {broken:?}");
    }
}

#[test]
fn a_missing_safe_state_is_the_only_finding() {
    let text = shipped(TOPER).unwrap().text;
    let without = text.split("[safe_state]").next().unwrap();
    let findings = lint(&parse(without).unwrap());
    assert_eq!(findings.len(), 1);
    assert!(findings[0].to_string().starts_with("safe_state: is missing"), "{}", findings[0]);
}

#[test]
fn enabling_writes_requires_a_bring_up_by_two_different_people() {
    let text = shipped(TOPER).unwrap().text.replace("verified = false", "verified = true");
    let record = |by: &str| {
        let record = format!(
            "[machine.bring_up]\nby = {by}\non = \"2026-11-22\"\nrecord = \"site file 12\"\n\n[transport]"
        );
        let text = text.replace("writes = \"disabled\"", "writes = \"enabled\"");
        lint(&parse(&text.replace("[transport]", &record)).unwrap()).len()
    };
    assert_eq!(record("[\"Ada\", \"Grace\"]"), 0);
    assert!(record("[\"Ada\", \"Ada\"]") > 0);
}

#[test]
fn enabling_writes_requires_reliable_channels() {
    let text = shipped(TOPER).unwrap().text.replace(
        "verified = false\nwrites = \"disabled\"",
        "verified = true\nwrites = \"enabled\"\n\
         bring_up = { by = [\"Ada\", \"Grace\"], on = \"2026-11-22\", record = \"site file 12\" }",
    );
    let rules = |from: &str, to: &str| -> Vec<&'static str> {
        assert!(text.contains(from), "{from}");
        lint(&parse(&text.replacen(from, to, 1)).unwrap()).into_iter().map(|f| f.rule).collect()
    };
    assert!(rules("valid", "valid").is_empty());
    let unit = "addr = \"holding 1215\"\ntype = \"u16\"\nunit = \"pct\"\n";
    let drum = format!("{unit}valid = [0, 100]\n");
    assert_eq!(rules(&drum, unit), ["judged"], "a need of the burner has no bounds");
    assert_eq!(rules("required = true\n", ""), ["judged"], "btC is not required");
    let burner = "function = 6\nunit = \"pct\"";
    assert!(
        rules(burner, "function = 6\nunit = \"none\"").contains(&"judged"),
        "the readback has another unit"
    );
}

#[test]
fn a_byte_of_a_register_is_read_and_never_written() {
    let burner = "addr = \"holding 1105\"\ntype = \"u16\"";
    let high = "addr = \"holding 1105.high\"\ntype = \"u8\"";
    assert!(broken(TOPER, burner, high).is_empty(), "the channel");
    let text = shipped(TOPER).unwrap().text;
    let (channels, controls) = text.split_once("[[control]]").unwrap();
    assert!(controls.contains(burner));
    let profile = parse(&format!("{channels}[[control]]{}", controls.replacen(burner, high, 1)));
    let findings = lint(&profile.unwrap());
    assert!(findings.iter().any(|finding| finding.rule == "address"), "{findings:?}");
}

/// A machine whose only temperature is computed from a raw count.
const COUNTS: &str = "[machine]\nid = \"acme.drum.plc\"\nname = \"n\"\ncontroller = \"c\"\n\
    version = 1\nfuel = \"gas\"\nsource = \"s\"\n\
    [transport]\nkind = \"modbus-tcp\"\nhost = \"h\"\n\
    [[channel]]\nname = \"btRaw\"\naddr = \"holding 70\"\ntype = \"u16\"\nunit = \"none\"\n\
    divisor = 10\n\
    [[derived]]\nname = \"btC\"\nunit = \"C\"\noffset = -200\n\
    terms = [{ channel = \"btRaw\", factor = 1 }]\n\
    valid = [-20, 350]\nmax_step_per_s = 15\nrequired = true\n\
    [safe_state]\norder = []\n";

#[test]
fn a_derived_temperature_is_the_temperature_that_a_profile_needs() {
    let rules = |from: &str, to: &str| -> Vec<&'static str> {
        assert!(COUNTS.contains(from), "{from}");
        lint(&parse(&COUNTS.replacen(from, to, 1)).unwrap()).into_iter().map(|f| f.rule).collect()
    };
    assert!(rules("valid", "valid").is_empty());
    assert!(rules("valid = [-20, 350]\nmax_step_per_s = 15\nrequired = true\n", "").is_empty());
    assert_eq!(
        rules("name = \"btC\"\nunit = \"C\"", "name = \"bt\"\nunit = \"none\""),
        ["no-temperature"]
    );
    assert_eq!(rules("[-20, 350]", "[350, -20]"), ["valid"]);
    assert_eq!(rules("max_step_per_s = 15", "max_step_per_s = 0"), ["max-step"]);
    let enabled = "source = \"s\"\nverified = true\nwrites = \"enabled\"\n\
        bring_up = { by = [\"Ada\", \"Grace\"], on = \"2026-11-22\", record = \"file 12\" }";
    assert!(rules("source = \"s\"", enabled).is_empty(), "btC is required and has bounds");
}

#[test]
fn an_unknown_field_is_reported_with_its_line() {
    let text = shipped(TOPER).unwrap().text.replace("divisor = 10", "divider = 10");
    let error = parse(&text).unwrap_err().to_string();
    assert!(error.contains("divider") && error.contains("line"), "{error}");
}
