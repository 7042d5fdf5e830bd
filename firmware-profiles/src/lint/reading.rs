//! Rules about channels and states.

use super::{Findings, has_channel};
use crate::address::{Access, Address, Table};
use crate::condition::is_name;
use crate::document::{Channel, Profile, State, Transport, Unit};
use crate::encoding::Type;

pub(super) fn check(profile: &Profile, findings: &mut Findings) {
    let units = profile.channels.iter().map(|c| c.unit);
    let mut units = units.chain(profile.derived.iter().map(|d| d.unit));
    findings.require(
        units.any(|unit| unit.is_some_and(Unit::is_temperature)),
        "no-temperature",
        "profile",
        "no channel is a temperature, read or derived",
    );
    let columns = profile.channels.len().saturating_add(profile.derived.len());
    if columns > contract::frame::COLUMNS_MAX - 1 {
        findings.add("too-many", "profile", "more channels than a frame holds");
    }
    for (i, channel) in profile.channels.iter().enumerate() {
        let at = format!("channel {}", channel.name);
        check_name(profile, &channel.name, i, &at, findings);
        check_unit(&channel.name, channel.unit, &at, findings);
        check_address(profile, channel.station, &channel.addr, Access::Read, &at, findings);
        check_encoding(profile, channel, &at, findings);
        findings.require(
            channel.valid.is_some() || !channel.unit.is_some_and(Unit::is_temperature),
            "valid",
            &at,
            "is a temperature without valid, so the value of a broken probe would be accepted",
        );
        check_bounds(channel.valid, channel.max_step_per_s, &at, findings);
    }
    for (i, derived) in profile.derived.iter().enumerate() {
        let at = format!("derived {}", derived.name);
        check_name(profile, &derived.name, profile.channels.len().saturating_add(i), &at, findings);
        check_unit(&derived.name, derived.unit, &at, findings);
        check_bounds(derived.valid, derived.max_step_per_s, &at, findings);
        findings.require(
            !derived.terms.is_empty()
                && derived.terms.iter().all(|t| t.factor.is_finite() && t.factor != 0.0),
            "terms",
            &at,
            "has no terms, or a factor of 0",
        );
        for term in &derived.terms {
            let read = profile.channels.iter().any(|c| c.name == term.channel);
            if !read {
                findings.add(
                    "terms",
                    &at,
                    format!("{} is not a channel that is read", term.channel),
                );
            }
        }
    }
    for (i, state) in profile.states.iter().enumerate() {
        let at = format!("state {}", state.name);
        let twice = profile.states[..i].iter().any(|s| s.name == state.name)
            || has_channel(profile, &state.name);
        findings.require(!twice, "twice", &at, "the name comes twice");
        findings.require(
            is_name(&state.name),
            "name",
            &at,
            "is not a name of letters, digits and _",
        );
        check_address(profile, state.station, &state.addr, Access::Read, &at, findings);
        check_state_type(profile, state, &at, findings);
        let known = state.mark.as_deref().is_none_or(|m| contract::EventKind::parse(m).is_some());
        findings.require(
            known,
            "mark",
            &at,
            "the mark is not CHARGE, TP, DRY_END, FC, FC_END, SC, SC_END, DROP, COOL_END or NOTE",
        );
    }
}

fn check_name(profile: &Profile, name: &str, index: usize, at: &str, findings: &mut Findings) {
    let known = contract::Channel::parse(name).is_some_and(|c| c != contract::Channel::Ror);
    findings.require(
        known && is_name(name),
        "name",
        at,
        "is not a channel's name (rorCPerMin is computed, never read)",
    );
    let names = profile.channels.iter().map(|c| &c.name);
    let mut earlier = names.chain(profile.derived.iter().map(|d| &d.name)).take(index);
    findings.require(!earlier.any(|n| n == name), "twice", at, "the name comes twice");
}

/// Checks that the unit agrees with the channel's name, which states the unit, as everywhere on the
/// wire.
fn check_unit(name: &str, unit: Option<Unit>, at: &str, findings: &mut Findings) {
    let Some(unit) = unit else {
        findings.add(
            "no-unit",
            at,
            "has no unit; set the unit of the register, not of the panel: C, F, pct, rpm, Hz, Pa, mbar or none",
        );
        return;
    };
    let hot = name.ends_with('C') && name.len() > 1;
    let fits = match name {
        "gasPct" | "fanPct" => unit == Unit::Percent,
        "drumRpm" => unit == Unit::Rpm,
        _ => hot == unit.is_temperature(),
    };
    findings.require(
        fits,
        "unit",
        at,
        "the unit does not match the name (temperatures end in C, gasPct and fanPct are pct, drumRpm is rpm)",
    );
}

pub(super) fn check_address(
    profile: &Profile,
    station: Option<u8>,
    text: &str,
    access: Access,
    at: &str,
    findings: &mut Findings,
) -> Option<Address> {
    if station.is_some() && profile.transport.station().is_none() {
        findings.add("station", at, "has a station, which only Modbus has");
    }
    match Address::parse(profile, station, text, access) {
        Ok(address) => {
            if let Address::Modbus { table, register, station, .. } = &address {
                // Manuals print these tables as 4xxxx and 3xxxx; the protocol counts from 0.
                let printed = match table {
                    Table::Holding => (40_001..=49_999).contains(register),
                    Table::Input => (30_001..=39_999).contains(register),
                    _ => false,
                };
                findings.require(
                    !printed,
                    "printed-address",
                    at,
                    "looks like an address as tables print it; subtract 40001 (holding) or 30001 (input)",
                );
                findings.require(
                    (1..=247).contains(station),
                    "station",
                    at,
                    "the station is not between 1 and 247",
                );
            }
            Some(address)
        }
        Err(expected) => {
            findings.add("address", at, format!("{text:?} is not {expected}"));
            None
        }
    }
}

/// Checks that protocols of binary words give each value a type. An untyped write once opened a
/// flap.
pub(super) fn check_type(
    profile: &Profile,
    kind: Option<Type>,
    ordered: bool,
    at: &str,
    findings: &mut Findings,
) {
    let modbus = profile.transport.station().is_some();
    if !modbus && !matches!(profile.transport, Transport::S7 { .. }) {
        findings.require(kind.is_none(), "type", at, "has a type, which only Modbus and S7 use");
        return;
    }
    let Some(kind) = kind else {
        findings.add(
            "no-type",
            at,
            "has no type; say bool, u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bcd16 or bcd32",
        );
        return;
    };
    findings.require(
        !modbus || kind.words() == 1 || ordered,
        "word-order",
        at,
        "takes several words and does not say their order; set order to high-first (ABCD), low-first (CDAB), high-first-swapped (BADC) or low-first-swapped (DCBA)",
    );
}

fn check_encoding(profile: &Profile, channel: &Channel, at: &str, findings: &mut Findings) {
    check_type(profile, channel.kind, channel.order.is_some(), at, findings);
    findings.require(
        channel.order.is_none() || !channel.kind.is_some_and(Type::is_byte),
        "word-order",
        at,
        "has an order, which a single byte does not have",
    );
    findings.require(
        matches!(channel.divisor, 1 | 10 | 100 | 1000),
        "divisor",
        at,
        "the divisor is not 1, 10, 100 or 1000",
    );
    check_bit_type(profile, channel.station, &channel.addr, channel.kind, at, findings);
}

/// Checks that an address with a bit has the type bool and a bool has a bit, and that half a
/// register has the type of a byte and a byte of a register says which half.
pub(super) fn check_bit_type(
    profile: &Profile,
    station: Option<u8>,
    addr: &str,
    kind: Option<Type>,
    at: &str,
    findings: &mut Findings,
) {
    let bit = match Address::parse(profile, station, addr, Access::Read) {
        Ok(Address::Modbus { table, bit, half, .. }) => {
            findings.require(
                half.is_some() == kind.is_some_and(Type::is_byte),
                "byte",
                at,
                "a u8 or i8 of a register is `.high` or `.low` of it, and nothing else is",
            );
            bit.is_some() || matches!(table, Table::Coil | Table::Discrete)
        }
        Ok(Address::S7 { bit, .. }) => bit.is_some(),
        _ => return,
    };
    if let Some(kind) = kind {
        findings.require(
            bit == (kind == Type::Bool),
            "bit",
            at,
            "a coil, a discrete input or an address with a bit is a bool, and nothing else is",
        );
    }
}

fn check_state_type(profile: &Profile, state: &State, at: &str, findings: &mut Findings) {
    check_type(profile, state.kind, true, at, findings);
    check_bit_type(profile, state.station, &state.addr, state.kind, at, findings);
    let (low, high) = state.kind.map_or((f64::MIN, f64::MAX), Type::bounds);
    findings.require(
        (low..=high).contains(&state.equals),
        "state",
        at,
        "equals a value that its type does not have",
    );
}

fn check_bounds(
    valid: Option<[f64; 2]>,
    max_step_per_s: Option<f64>,
    at: &str,
    findings: &mut Findings,
) {
    findings.require(
        valid.is_none_or(|[low, high]| low < high),
        "valid",
        at,
        "valid is not [lowest, highest]",
    );
    findings.require(
        max_step_per_s.is_none_or(|step| step.is_finite() && step > 0.0),
        "max-step",
        at,
        "max_step_per_s is not above 0",
    );
}
