//! Rules about the machine, its transport and its timing.

use super::Findings;
use crate::address::{Access, Address, Tsaps};
use crate::document::{Parity, Profile, Serial, Transport, Writes};
use crate::encoding::Type;

pub(super) fn check(profile: &Profile, findings: &mut Findings) {
    check_identity(profile, findings);
    check_verification(profile, findings);
    check_timing(profile, findings);
    if let Some(serial) = profile.transport.serial() {
        check_serial(serial, findings);
    }
    match &profile.transport {
        Transport::ModbusRtu { serial, .. } => check_bus_load(profile, serial, findings),
        // The machine's own limit between two frames is 1 s; after that it ejects the beans.
        Transport::Hottop { .. } => findings.require(
            (100..=500).contains(&profile.timing.poll_ms),
            "hottop-watchdog",
            "timing",
            "a Hottop ejects its beans when it receives nothing for a second; poll_ms must be between 100 and 500",
        ),
        Transport::S7 { rack, slot, remote_tsap, .. } => {
            findings.require(
                profile.timing.min_gap_ms >= 40,
                "s7-gap",
                "timing",
                "an S7 controller needs 40 ms between requests; set min_gap_ms to 40 or more",
            );
            findings.require(
                Tsaps::of(&profile.transport).is_some(),
                "tsap",
                "transport",
                "a TSAP is not two bytes in hexadecimal, such as 02.00",
            );
            findings.require(
                remote_tsap.is_none() || (*rack, *slot) == (0, 0),
                "tsap",
                "transport",
                "has a remote_tsap and a rack or slot; the TSAP says both",
            );
        }
        _ => {}
    }
}

fn check_identity(profile: &Profile, findings: &mut Findings) {
    let m = &profile.machine;
    let parts: Vec<&str> = m.id.split('.').collect();
    let tidy = |part: &&str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    findings.require(
        parts.len() == 3 && parts.iter().all(tidy) && m.id.len() <= 64,
        "id",
        "machine",
        "the id is not maker.model.controller in small letters, digits and -",
    );
    findings.require(
        !m.controller.trim().is_empty(),
        "generation",
        "machine",
        "the controller is empty; say what tells this controller generation from the model's others",
    );
    findings.require(m.version >= 1, "version", "machine", "the version does not begin at 1");
    findings.require(
        !m.source.trim().is_empty(),
        "source",
        "machine",
        "the source is empty; say where the numbers come from",
    );
    findings.require(
        m.capacity_kg.is_none_or(|kg| kg > 0.0 && kg < 2000.0),
        "capacity",
        "machine",
        "capacity_kg is not between 0 and 2000",
    );
}

/// Checks that writes are enabled only after two people have verified the profile at the machine.
fn check_verification(profile: &Profile, findings: &mut Findings) {
    let m = &profile.machine;
    let recorded = m.bring_up.as_ref().is_some_and(|b| {
        let mut by: Vec<&str> = b.by.iter().map(|name| name.trim()).collect();
        by.retain(|name| !name.is_empty());
        by.sort_unstable();
        by.dedup();
        by.len() >= 2 && !b.on.trim().is_empty() && !b.record.trim().is_empty()
    });
    findings.require(
        !m.verified || recorded,
        "verified",
        "machine",
        "verified is true without a bring_up record of two people, a day and where it is kept",
    );
    findings.require(
        m.writes == Writes::Disabled || m.verified,
        "writes",
        "machine",
        "writes are enabled though the profile is not verified at the machine",
    );
}

fn check_timing(profile: &Profile, findings: &mut Findings) {
    let t = &profile.timing;
    findings.require(
        (20..=60_000).contains(&t.poll_ms),
        "poll",
        "timing",
        "poll_ms is not between 20 and 60000",
    );
    findings.require(
        t.timeout_ms >= 10 && t.timeout_ms <= t.poll_ms / 2,
        "timeout",
        "timing",
        "timeout_ms is not between 10 and half of poll_ms; otherwise one lost answer also delays the next sample",
    );
    findings.require(
        (1..=125).contains(&t.block_max),
        "block",
        "timing",
        "block_max is not between 1 and 125, the most registers that Modbus answers at once",
    );
    findings.require(
        t.settle_ms <= 10_000 && t.min_gap_ms <= 1_000,
        "settle",
        "timing",
        "settle_ms is over 10000 or min_gap_ms over 1000",
    );
}

fn check_serial(serial: &Serial, findings: &mut Findings) {
    findings.require(
        (300..=921_600).contains(&serial.baud),
        "serial",
        "transport",
        "baud is not between 300 and 921600",
    );
    findings.require(
        matches!(serial.data_bits, 7 | 8) && matches!(serial.stop_bits, 1 | 2),
        "serial",
        "transport",
        "data_bits must be 7 or 8, and stop_bits 1 or 2",
    );
}

/// Checks that the serial bus can carry the requests of one poll; an overloaded bus always loses
/// samples.
fn check_bus_load(profile: &Profile, serial: &Serial, findings: &mut Findings) {
    // A start bit, the data, parity and the stop bits.
    let bits = [1, serial.data_bits, u8::from(serial.parity != Parity::None), serial.stop_bits];
    let bits: u64 = bits.into_iter().map(u64::from).sum();
    let reads = profile
        .channels
        .iter()
        .map(|c| (c.station, &c.addr, c.kind))
        .chain(profile.states.iter().map(|s| (s.station, &s.addr, s.kind)));
    // The worst case, in which no registers are joined: a request of eight bytes, an answer of five
    // bytes and the words, and twice the pause of 3.5 characters between frames.
    let bytes: u64 = reads
        .filter(|(station, addr, _)| Address::parse(profile, *station, addr, Access::Read).is_ok())
        .map(|(_, _, kind)| u64::from(kind.map_or(1, Type::words)).saturating_mul(2))
        .map(|bytes| bytes.saturating_add(8 + 5 + 7))
        .sum();
    let line_ms = bytes.saturating_mul(bits).saturating_mul(1000);
    let line_ms = line_ms.checked_div(u64::from(serial.baud)).unwrap_or(u64::MAX);
    let gaps_ms = profile.timing.min_gap_ms.saturating_mul(profile.channels.len() as u64);
    let reading_ms = line_ms.saturating_add(gaps_ms);
    if reading_ms.saturating_mul(2) > profile.timing.poll_ms {
        findings.add(
            "bus-load",
            "timing",
            format!(
                "one reading takes {reading_ms} ms of the line, more than half of poll_ms; poll less often or read less"
            ),
        );
    }
}
