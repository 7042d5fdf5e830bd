//! Rules about controls.

use super::reading::{check_address, check_bit_type, check_type};
use super::{Findings, has_channel, unknown_reference};
use crate::address::{Access, Address, Table};
use crate::condition::{Condition, is_name};
use crate::document::{Control, Profile, Remote, Role, Writes};
use crate::encoding::Type;

/// The largest single step of heat, in %.
const HEAT_STEP_MAX: f64 = 20.0;
/// The shortest time between two steps, s.
const INTERVAL_S_MIN: f64 = 2.0;

pub(super) fn check(profile: &Profile, findings: &mut Findings) {
    if profile.machine.writes == Writes::Enabled {
        check_judging_channels(profile, findings);
    }
    for (i, control) in profile.controls.iter().enumerate() {
        let at = format!("control {}", control.name);
        let twice = profile.controls[..i].iter().any(|c| c.name == control.name);
        findings.require(!twice, "twice", &at, "the name comes twice");
        findings.require(
            is_name(&control.name),
            "name",
            &at,
            "is not a name of letters, digits and _",
        );
        let address =
            check_address(profile, control.station, &control.addr, Access::Write, &at, findings);
        check_type(profile, control.kind, control.order.is_some(), &at, findings);
        check_bit_type(profile, control.station, &control.addr, control.kind, &at, findings);
        findings.require(
            control.unit.is_some(),
            "no-unit",
            &at,
            "has no unit; say C, F, pct, rpm, Hz, Pa, mbar or none",
        );
        if let Some(address) = &address {
            check_shared_address(profile, i, address, &at, findings);
            check_function(control, address, &at, findings);
        }
        check_range(control, &at, findings);
        check_readback(profile, control, &at, findings);
        check_remote(profile, control, &at, findings);
    }
}

/// Checks that every channel that the write rules use has bounds when writes are enabled: a broken
/// sensor's value might satisfy a need, or make more heat look like less.
fn check_judging_channels(profile: &Profile, findings: &mut Findings) {
    let read = profile.channels.iter().map(|c| (c.name.as_str(), c.required, c.valid));
    let derived = profile.derived.iter().map(|d| (d.name.as_str(), d.required, d.valid));
    findings.require(
        read.chain(derived)
            .any(|(name, required, valid)| name == "btC" && required && valid.is_some()),
        "judged",
        "channel btC",
        "is not required with valid, and writes are enabled",
    );
    for control in profile.controls.iter().filter(|control| control.remote == Remote::Guarded) {
        let at = format!("control {}", control.name);
        let needs = control.needs.iter().filter_map(|need| match Condition::parse(need)? {
            Condition::Compare { channel, .. } => Some(channel),
            Condition::State(_) => None,
        });
        // A derived channel without bounds of its own is only as reliable as the channels it is
        // computed from.
        let terms = |name: String| -> Vec<String> {
            let derived = profile.derived.iter().find(|derived| derived.name == name);
            if derived.is_some_and(|derived| derived.valid.is_some()) {
                return Vec::new();
            }
            let of = derived.map(|d| d.terms.iter().map(|term| term.channel.clone()).collect());
            of.unwrap_or_else(|| vec![name])
        };
        let judged = needs.chain(control.readback.clone()).flat_map(terms);
        let unbounded = judged.filter(|name| {
            let mut own = profile.channels.iter().filter(|channel| channel.name == *name);
            own.any(|channel| channel.valid.is_none())
        });
        for name in unbounded {
            let sentence =
                format!("is judged by {name}, which has no valid, and writes are enabled");
            findings.add("judged", &at, sentence);
        }
        let own = profile.channels.iter().map(|channel| (&channel.name, channel.unit));
        let derived = profile.derived.iter().map(|derived| (&derived.name, derived.unit));
        let mut shown =
            own.chain(derived).filter(|(name, _)| Some(*name) == control.readback.as_ref());
        findings.require(
            shown.all(|(_, unit)| unit == control.unit),
            "judged",
            &at,
            "is in another unit than its readback, and writes are enabled",
        );
        let near = control.readback_tol.zip(control.max_step).is_none_or(|(tol, step)| tol <= step);
        findings.require(
            near,
            "judged",
            &at,
            "has a readback_tol above its max_step, so the readback cannot show a single step",
        );
        findings.require(
            control.role != Role::Burner || control.range.is_none_or(|[low, _]| low <= 0.0),
            "judged",
            &at,
            "is a burner whose range does not begin at 0, so it could not be turned off",
        );
    }
}

/// Checks that no two controls write the same address. A shipped setup once moved the burner with
/// the drum's slider.
fn check_shared_address(
    profile: &Profile,
    index: usize,
    address: &Address,
    at: &str,
    findings: &mut Findings,
) {
    for other in &profile.controls[..index] {
        let theirs = Address::parse(profile, other.station, &other.addr, Access::Write);
        let own = profile.controls[index].kind;
        if theirs.is_ok_and(|theirs| overlaps(address, own, &theirs, other.kind)) {
            findings.add("shared-address", at, format!("writes where {} writes", other.name));
        }
    }
}

fn overlaps(a: &Address, a_kind: Option<Type>, b: &Address, b_kind: Option<Type>) -> bool {
    let apart = |a: u16, a_length: u16, b: u16, b_length: u16| {
        let ends_before = |a: u16, length: u16, b: u16| {
            u32::from(a).saturating_add(u32::from(length)) <= u32::from(b)
        };
        ends_before(a, a_length, b) || ends_before(b, b_length, a)
    };
    match (a, b) {
        (
            Address::Modbus { station, table, register, bit, .. },
            Address::Modbus {
                station: station_b,
                table: table_b,
                register: register_b,
                bit: bit_b,
                ..
            },
        ) => {
            let words = |kind: Option<Type>| kind.map_or(1, Type::words);
            let bits_apart = bit.is_some() && bit_b.is_some() && bit != bit_b;
            (station, table) == (station_b, table_b)
                && !apart(*register, words(a_kind), *register_b, words(b_kind))
                && !bits_apart
        }
        (
            Address::S7 { area, byte, bit },
            Address::S7 { area: area_b, byte: byte_b, bit: bit_b },
        ) => {
            let bytes = |bit: &Option<u8>, kind: Option<Type>| {
                if bit.is_some() { 1 } else { kind.map_or(2, Type::bytes) }
            };
            let bits_apart = bit.is_some() && bit_b.is_some() && bit != bit_b;
            area == area_b
                && !apart(*byte, bytes(bit, a_kind), *byte_b, bytes(bit_b, b_kind))
                && !bits_apart
        }
        _ => a == b,
    }
}

/// Checks that the Modbus function fits the address. A change of an untyped write from function 6
/// to 16 once started a fan.
fn check_function(control: &Control, address: &Address, at: &str, findings: &mut Findings) {
    let Address::Modbus { table, bit, .. } = address else {
        findings.require(
            control.function.is_none() && control.apply.is_none(),
            "function",
            at,
            "has a function or apply, which only Modbus has",
        );
        return;
    };
    let words = control.kind.map_or(1, Type::words);
    let fits = match (control.function, table) {
        (None, _) => {
            findings.add("no-function", at, "has no function; say 5, 6, 15, 16 or 22");
            return;
        }
        (Some(5 | 15), Table::Coil) => true,
        (Some(6), Table::Holding) => words == 1 && bit.is_none(),
        (Some(16), Table::Holding) => bit.is_none(),
        (Some(22), Table::Holding) => bit.is_some(),
        _ => false,
    };
    findings.require(
        fits,
        "function",
        at,
        "the function does not write that: 5 and 15 write coils, 6 one register, 16 registers, 22 a bit of one",
    );
}

fn check_range(control: &Control, at: &str, findings: &mut Findings) {
    let Some([low, high]) = control.range else {
        findings.require(
            control.kind == Some(Type::Bool),
            "range",
            at,
            "has no range; set range = [lowest, highest]",
        );
        return;
    };
    if !(low < high && low.is_finite() && high.is_finite()) {
        findings.add("range", at, "the range is not [lowest, highest]");
        return;
    }
    let m = control.map;
    if !(m.factor.is_finite() && m.factor != 0.0 && m.offset.is_finite()) {
        findings.add("map", at, "the map has a factor of 0");
        return;
    }
    let (a, b) = (low * m.factor + m.offset, high * m.factor + m.offset);
    let (raw_low, raw_high) = (a.min(b), a.max(b));
    if let Some(kind) = control.kind {
        let (least, most) = kind.bounds();
        if raw_low < least || raw_high > most {
            findings.add(
                "range-outside-type",
                at,
                format!("the range becomes {raw_low} to {raw_high}, and the type holds {least} to {most}"),
            );
        }
    }
    // The raw value 0 means AUTO on one controller generation and 0 % on the next.
    if control.auto_raw.is_some_and(|auto| (raw_low..=raw_high).contains(&auto)) {
        findings.add(
            "auto-inside-range",
            at,
            "a value of the range is the raw value that returns the control to the machine (auto_raw); change map or range",
        );
    }
}

fn check_readback(profile: &Profile, control: &Control, at: &str, findings: &mut Findings) {
    match control.readback.as_deref() {
        None => findings.add(
            "no-readback",
            at,
            "has no readback; name the channel that shows the effect, or say \"none\"",
        ),
        Some("none") => findings.require(
            control.remote == Remote::Never,
            "blind",
            at,
            "may be moved remotely, but no channel shows the effect; set remote to never",
        ),
        Some(name) if !has_channel(profile, name) => {
            findings.add("no-readback", at, format!("the readback {name} is no [[channel]] here"));
        }
        Some(_) => {
            let given = |v: Option<f64>| v.is_some_and(|v| v.is_finite() && v >= 0.0);
            findings.require(
                given(control.readback_tol)
                    && control.readback_s.is_some_and(|s| s > 0.0 && s <= 120.0),
                "readback-bounds",
                at,
                "has a readback without readback_tol (the largest difference) and readback_s (the time limit)",
            );
        }
    }
}

fn check_remote(profile: &Profile, control: &Control, at: &str, findings: &mut Findings) {
    for need in &control.needs {
        if let Some(problem) = unknown_reference(profile, Condition::parse(need).as_ref()) {
            findings.add("needs", at, format!("{need:?} {problem}"));
        }
    }
    if control.remote == Remote::Never {
        return;
    }
    findings.require(
        control.idempotent && control.pulse_ms.is_none(),
        "not-idempotent",
        at,
        "is a toggle, a pulse or a step: two equal writes differ from one; set remote to never",
    );
    let lit = ["ignit", "reset", "burner_on", "power", "purge"];
    let name_matches = lit.iter().any(|word| control.name.to_lowercase().contains(word));
    findings.require(
        !control.role.is_local_only() && !name_matches,
        "local-only",
        at,
        "is ignition, reset, burner on, power, purge, gas valve or charge, which must only be operated at the machine; set remote to never",
    );
    if !matches!(control.role, Role::Burner | Role::Air | Role::Drum | Role::Setpoint) {
        return;
    }
    findings.require(
        control.max_step.is_some_and(|s| s > 0.0)
            && control.min_interval_s.is_some_and(|s| s >= INTERVAL_S_MIN),
        "step",
        at,
        "may be moved remotely without max_step and a min_interval_s of at least 2",
    );
    if control.role == Role::Burner {
        findings.require(
            control.max_step.is_none_or(|s| s <= HEAT_STEP_MAX),
            "step",
            at,
            "raises the heat by more than 20 % at once",
        );
    }
    if control.role.heats() {
        findings.require(
            !control.needs.is_empty(),
            "heat-needs",
            at,
            "heats remotely without a condition; name in needs what shows that the drum turns and air moves",
        );
    }
}
