//! The values that an emulated machine shows: a simulated roast, as raw values of a profile. A
//! control that a client moves is shown where the client moved it, except on Modbus, where
//! registers keep the written value. The simulated roast does not follow such writes.

use std::collections::BTreeMap;

use contract::EventKind;
use firmware_profiles::address::{Access, Address};
use firmware_profiles::encoding::{Order, Type};
use firmware_profiles::{Profile, Unit};
use roast::twin::{PRESETS, Reading, Twin};

/// The time from the start to the first CHARGE, ms.
const CHARGE_AT_MS: u64 = 20_000;
/// The most served readings that are kept.
const SERVED_MAX: usize = 100_000;

/// One reading as a correct driver must decode it: the value of each channel, read ones before
/// derived ones (temperatures in °C), and the events.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedReading {
    pub values: Vec<f64>,
    pub marks: Vec<EventKind>,
}

/// The address of a value and its current raw value.
pub struct ValueSlot {
    pub address: Address,
    pub kind: Type,
    pub order: Order,
    pub raw: f64,
    read: bool,
}

pub struct Panel {
    profile: Profile,
    twin: Twin,
    step_ms: u64,
    /// The slots of the channels, then those of the states.
    slots: Vec<ValueSlot>,
    /// The positions of controls that the roast does not move, by the channel that shows them.
    positions: BTreeMap<String, f64>,
    now: ServedReading,
    served: Vec<ServedReading>,
}

impl Panel {
    #[must_use]
    pub fn new(profile: &Profile, seed: u64, step_ms: u64) -> Self {
        let channels = profile.channels.iter().map(|c| (c.station, &c.addr, c.kind, c.order));
        let states = profile.states.iter().map(|s| (s.station, &s.addr, s.kind, s.order));
        let slots = channels.chain(states).filter_map(|(station, addr, kind, order)| {
            let address = Address::parse(profile, station, addr, Access::Read).ok()?;
            let (kind, order) = (kind.unwrap_or(Type::F32), order.unwrap_or_default());
            Some(ValueSlot { address, kind, order, raw: 0.0, read: false })
        });
        let positions = profile.controls.iter().filter_map(|control| {
            let ([low, high], channel) = (control.range?, control.readback.clone()?);
            (!ROASTED.contains(&channel.as_str())).then(|| (channel, f64::midpoint(low, high)))
        });
        let mut show = Self {
            slots: slots.collect(),
            positions: positions.collect(),
            twin: Twin::new(PRESETS[0], seed, CHARGE_AT_MS),
            step_ms,
            now: ServedReading { values: Vec::new(), marks: Vec::new() },
            served: Vec::new(),
            profile: profile.clone(),
        };
        show.step();
        show
    }

    /// Advances the roast by one step. The previous reading counts as served if all its values were
    /// read.
    fn step(&mut self) {
        if !self.slots.is_empty() && self.slots.iter().all(|p| p.read) {
            self.served.push(self.now.clone());
            self.served.truncate(SERVED_MAX);
        }
        let marks = self.twin.advance(self.step_ms);
        let reading = self.twin.reading();
        let profile = &self.profile;
        let mut values = Vec::with_capacity(profile.channels.len());
        for (i, (channel, slot)) in profile.channels.iter().zip(&mut self.slots).enumerate() {
            let position = self.positions.get(&channel.name).copied();
            let value = position.unwrap_or_else(|| channel_value(profile, i, &reading));
            let raw = channel.raw(value);
            slot.raw = quantise(&profile.transport, slot, raw);
            slot.read = false;
            values.push(channel.value(slot.raw).unwrap_or(f64::NAN));
        }
        let first_state = profile.channels.len();
        for (state, slot) in profile.states.iter().zip(&mut self.slots[first_state..]) {
            slot.read = false;
            let Some(mark) = state.mark.as_deref().and_then(EventKind::parse) else { continue };
            let begins = marks.contains(&mark);
            // The state of a phase ends with the roast; the state of the roast's end ends with the
            // next roast.
            let ends = marks.iter().any(|m| matches!(m, EventKind::Charge | EventKind::Drop));
            if begins {
                slot.raw = state.equals;
            } else if ends {
                slot.raw = if state.equals == 0.0 { 1.0 } else { 0.0 };
            }
        }
        for derived in &self.profile.derived {
            let terms = derived.terms.iter().map(|term| {
                let at = self.profile.channels.iter().position(|c| c.name == term.channel);
                at.map_or(f64::NAN, |at| values[at] * term.factor)
            });
            let value = terms.sum::<f64>() + derived.offset;
            values.push(value);
        }
        self.now = ServedReading { values, marks };
    }

    /// Returns the raw value at `index`. Reading the same value again advances the roast.
    pub fn read(&mut self, index: usize) -> f64 {
        if self.slots.get(index).is_some_and(|p| p.read) {
            self.step();
        }
        self.slots.get_mut(index).map_or(0.0, |slot| {
            slot.read = true;
            slot.raw
        })
    }

    /// Returns all values of the next reading: each channel's raw value by the name of its address,
    /// and the events.
    pub fn next_values(&mut self) -> (Vec<(String, f64)>, Vec<EventKind>) {
        if self.slots.iter().any(|p| p.read) {
            self.step();
        }
        for slot in &mut self.slots {
            slot.read = true;
        }
        let channels = self.slots.iter().take(self.profile.channels.len());
        let values = channels.filter_map(|slot| match &slot.address {
            Address::Name(name) => Some((name.clone(), slot.raw)),
            Address::Target(target) => Some((format!("{target:02X}"), slot.raw)),
            _ => None,
        });
        (values.collect(), self.now.marks.clone())
    }

    /// Repeats the current reading for a client that has reconnected, since it did not receive the
    /// last answer.
    pub fn repeat_last(&mut self) {
        for slot in &mut self.slots {
            slot.read = false;
        }
    }

    pub fn slots(&self) -> &[ValueSlot] {
        &self.slots
    }

    /// Writes a raw value to a control; the next reading shows it. Returns `false` when no control
    /// has this address.
    pub fn write_control(&mut self, address: &Address, raw: f64) -> bool {
        let profile = &self.profile;
        let at = |control: &&firmware_profiles::Control| {
            Address::parse(profile, control.station, &control.addr, Access::Write).as_ref()
                == Ok(address)
        };
        let Some(control) = profile.controls.iter().find(at) else { return false };
        let released = control.auto_raw.is_some_and(|auto| (auto - raw).abs() < 1e-9);
        if let Some(channel) = &control.readback {
            if released {
                self.positions.remove(channel);
            } else {
                self.positions.insert(channel.clone(), control.value(raw));
            }
        }
        true
    }

    /// Returns the addresses that can be written, and the number of registers of each.
    #[must_use]
    pub fn controls(&self) -> Vec<(Address, u16)> {
        let parse =
            |station, text: &str| Address::parse(&self.profile, station, text, Access::Write);
        let controls = self.profile.controls.iter().flat_map(|control| {
            let own = (parse(control.station, &control.addr), control.kind.map_or(1, Type::words));
            let apply = control.apply.as_ref().map(|a| (parse(control.station, &a.addr), 1));
            [Some(own), apply]
        });
        controls.flatten().filter_map(|(address, words)| Some((address.ok()?, words))).collect()
    }

    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    #[must_use]
    pub fn served(&self) -> Vec<ServedReading> {
        let whole = self.slots.iter().all(|p| p.read);
        self.served.iter().chain(whole.then_some(&self.now)).cloned().collect()
    }
}

/// The channels that the simulated roast moves.
const ROASTED: [&str; 6] = ["btC", "etC", "gasPct", "fanPct", "drumRpm", "ambientC"];

/// Returns the value of a channel: the simulated roast's, or the one from which a derived channel
/// gets it.
fn channel_value(profile: &Profile, index: usize, reading: &Reading) -> f64 {
    let channel = &profile.channels[index];
    let own = || value_shown(&channel.name, channel.unit, index, reading);
    if ROASTED.contains(&channel.name.as_str()) {
        return own();
    }
    let mut derived = profile.derived.iter().filter_map(|derived| match &derived.terms[..] {
        [term] if term.channel == channel.name => Some((derived, term.factor)),
        _ => None,
    });
    derived.find(|(derived, _)| ROASTED.contains(&derived.name.as_str())).map_or_else(
        own,
        |(derived, factor)| {
            (value_shown(&derived.name, derived.unit, index, reading) - derived.offset) / factor
        },
    )
}

/// Returns the value that the machine shows on a channel.
fn value_shown(name: &str, unit: Option<Unit>, index: usize, reading: &Reading) -> f64 {
    match name {
        "btC" => reading.bt_c,
        "etC" => reading.et_c,
        "gasPct" => reading.gas_pct,
        "fanPct" => reading.fan_pct,
        "drumRpm" => reading.drum_rpm,
        "ambientC" => reading.ambient_c,
        _ => match unit {
            Some(Unit::C | Unit::F) => reading.et_c + 2.0 * index as f64,
            Some(Unit::Percent) => reading.fan_pct,
            Some(Unit::Hz | Unit::Rpm) => reading.drum_rpm,
            _ => 40.0 + index as f64,
        },
    }
}

/// Rounds a raw value to the resolution of the machine's protocol.
fn quantise(transport: &firmware_profiles::Transport, slot: &ValueSlot, raw: f64) -> f64 {
    use firmware_profiles::Transport;
    match transport {
        // Whole degrees and per cent; fans in tenths of their range.
        Transport::Hottop { .. } => match &slot.address {
            Address::Name(name) if name.ends_with("fan") => (raw / 10.0).round() * 10.0,
            _ => raw.round().max(0.0),
        },
        Transport::Santoker { .. } => raw.round().max(0.0),
        Transport::Tc4 { .. } | Transport::Kaleido { .. } | Transport::Line { .. } => {
            (raw * 100.0).round() / 100.0
        }
        _ => {
            let (low, high) = slot.kind.bounds();
            let words = slot.kind.encode(slot.order, raw.clamp(low, high));
            words.and_then(|words| slot.kind.decode(slot.order, &words)).unwrap_or(0.0)
        }
    }
}
