//! The types of the profile's TOML file. Fields that an author may forget are optional here, so
//! that the linter can report them in a sentence; `docs/reference/profiles.md` explains each field.

mod transport;

use serde::{Deserialize, Serialize};

use crate::encoding::{Order, Type};

pub use transport::{Gap, LineFormat, Parity, Serial, Timing, Transport};

/// Describes what one controller generation of a machine offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Profile {
    pub machine: Machine,
    pub transport: Transport,
    #[serde(default)]
    pub timing: Timing,
    #[serde(default, rename = "channel")]
    pub channels: Vec<Channel>,
    #[serde(default, rename = "derived")]
    pub derived: Vec<Derived>,
    #[serde(default, rename = "control")]
    pub controls: Vec<Control>,
    #[serde(default, rename = "state")]
    pub states: Vec<State>,
    pub safe_state: Option<SafeState>,
    #[serde(default)]
    pub limits: Limits,
}

/// The machine, and whether the profile was verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Machine {
    /// `maker.model.controller`: two generations of one model are two profiles.
    pub id: String,
    /// The machine's usual name.
    pub name: String,
    /// How this controller generation differs from the others.
    pub controller: String,
    /// The version of the file; increases with each change.
    pub version: u32,
    pub fuel: Fuel,
    #[serde(default)]
    pub capacity_kg: Option<f64>,
    /// The source of the addresses and limits.
    pub source: String,
    /// Whether the profile was verified at the machine; requires a bring-up record.
    #[serde(default)]
    pub verified: bool,
    #[serde(default)]
    pub writes: Writes,
    #[serde(default)]
    pub bring_up: Option<BringUp>,
    /// A note for the installer.
    #[serde(default)]
    pub note: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Fuel {
    Gas,
    Electric,
    Either,
}

/// Whether the agent may write to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Writes {
    #[default]
    Disabled,
    Enabled,
}

/// The record that the profile was verified at the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BringUp {
    /// The names of the two people who verified it.
    pub by: Vec<String>,
    /// The date, as `2026-11-22`.
    pub on: String,
    /// Where the record is kept.
    pub record: String,
}

/// The unit of the machine's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Unit {
    /// °C
    C,
    /// °F; the agent converts a channel's value to °C.
    F,
    /// %
    #[serde(rename = "pct")]
    Percent,
    /// 1/min
    #[serde(rename = "rpm")]
    Rpm,
    Hz,
    Pa,
    #[serde(rename = "mbar")]
    Mbar,
    /// A number without a unit, or a switch.
    #[serde(rename = "none")]
    None,
}

impl Unit {
    #[must_use]
    pub const fn is_temperature(self) -> bool {
        matches!(self, Self::C | Self::F)
    }
}

/// A value that the agent reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Channel {
    /// `btC`, `etC`, `gasPct`, `fanPct`, `drumRpm`, `ambientC`, or a name of your own.
    pub name: String,
    /// The address, in the notation of the transport.
    pub addr: String,
    /// The Modbus unit, if it differs from the transport's.
    #[serde(default)]
    pub station: Option<u8>,
    #[serde(default, rename = "type")]
    pub kind: Option<Type>,
    /// The order of the value's words and bytes.
    #[serde(default)]
    pub order: Option<Order>,
    /// The raw value is divided by this: 1, 10, 100 or 1000.
    #[serde(default = "one")]
    pub divisor: u16,
    #[serde(default)]
    pub unit: Option<Unit>,
    /// The valid range of the value, in the channel's unit (temperatures in °C).
    #[serde(default)]
    pub valid: Option<[f64; 2]>,
    /// A step larger than this, in units per second, is flagged as a spike.
    #[serde(default)]
    pub max_step_per_s: Option<f64>,
    /// Without a valid value, only writes that reduce heat are allowed.
    #[serde(default)]
    pub required: bool,
    /// Raw values that mean "no reading".
    #[serde(default)]
    pub missing: Vec<f64>,
}

const fn one() -> u16 {
    1
}

/// A channel computed from others: `offset` + Σ `factor` × channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Derived {
    pub name: String,
    #[serde(default)]
    pub unit: Option<Unit>,
    pub terms: Vec<Term>,
    #[serde(default)]
    pub offset: f64,
    /// The valid range of the value (temperatures in °C).
    #[serde(default)]
    pub valid: Option<[f64; 2]>,
    /// A step larger than this, in units per second, is flagged as a spike.
    #[serde(default)]
    pub max_step_per_s: Option<f64>,
    /// Without a valid value, only writes that reduce heat are allowed.
    #[serde(default)]
    pub required: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Term {
    pub channel: String,
    pub factor: f64,
}

/// What a control moves. The rules of the linter and of the agent use the role, not the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Role {
    Burner,
    Air,
    Drum,
    /// The target temperature of the machine's own controller.
    Setpoint,
    Mode,
    Cooler,
    Stirrer,
    Light,
    Feed,
    Charge,
    Discharge,
    Ignition,
    BurnerOn,
    Reset,
    Power,
    Purge,
    GasValve,
}

impl Role {
    /// Returns whether the control is operated only at the machine, never remotely.
    #[must_use]
    pub const fn is_local_only(self) -> bool {
        matches!(
            self,
            Self::Ignition
                | Self::BurnerOn
                | Self::Reset
                | Self::Power
                | Self::Purge
                | Self::GasValve
                | Self::Charge
        )
    }

    /// Returns whether a higher value of the control means more heat.
    #[must_use]
    pub const fn heats(self) -> bool {
        matches!(self, Self::Burner | Self::Setpoint)
    }
}

/// Whether the agent may write a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Remote {
    /// The agent never writes it.
    Never,
    /// The agent may write it within the profile's limits.
    Guarded,
}

/// A control of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Control {
    pub name: String,
    pub role: Role,
    pub addr: String,
    #[serde(default)]
    pub station: Option<u8>,
    #[serde(default, rename = "type")]
    pub kind: Option<Type>,
    #[serde(default)]
    pub order: Option<Order>,
    /// The Modbus function that writes it: 5, 6, 15, 16 or 22.
    #[serde(default)]
    pub function: Option<u8>,
    #[serde(default)]
    pub unit: Option<Unit>,
    /// The permitted range of a requested value, before `map`.
    #[serde(default)]
    pub range: Option<[f64; 2]>,
    #[serde(default)]
    pub map: Map,
    /// The raw value that returns the control to the machine.
    #[serde(default)]
    pub auto_raw: Option<f64>,
    /// A second write that makes the machine apply the value.
    #[serde(default)]
    pub apply: Option<MaskWrite>,
    /// The time after which the value is reset, ms.
    #[serde(default)]
    pub pulse_ms: Option<u64>,
    /// The channel that shows the effect, or `none`.
    #[serde(default)]
    pub readback: Option<String>,
    /// The largest difference between read-back and requested value, in the control's unit.
    #[serde(default)]
    pub readback_tol: Option<f64>,
    /// The time within which the read-back must reach the requested value, s.
    #[serde(default)]
    pub readback_s: Option<f64>,
    /// The largest step, in the control's unit.
    #[serde(default)]
    pub max_step: Option<f64>,
    #[serde(default)]
    pub min_interval_s: Option<f64>,
    /// The conditions for a write: a state's name, or a comparison such as `drumRpm >= 20`.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Whether two equal writes have the effect of one; false for a toggle.
    pub idempotent: bool,
    pub remote: Remote,
}

/// raw = value × factor + offset.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Map {
    pub factor: f64,
    pub offset: f64,
}

impl Default for Map {
    fn default() -> Self {
        Self { factor: 1.0, offset: 0.0 }
    }
}

/// Modbus function 22: register = (register AND and) OR (or AND NOT and).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MaskWrite {
    pub addr: String,
    pub and: u16,
    pub or: u16,
}

/// A condition that the machine reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct State {
    pub name: String,
    pub addr: String,
    #[serde(default)]
    pub station: Option<u8>,
    #[serde(default, rename = "type")]
    pub kind: Option<Type>,
    /// The order of the value's words and bytes.
    #[serde(default)]
    pub order: Option<Order>,
    /// The raw value at which the state holds.
    pub equals: f64,
    /// The event that happens when the state begins: `CHARGE`, `DROP`, ….
    #[serde(default)]
    pub mark: Option<String>,
}

/// Steps towards the safe state. The linter checks them; this agent does not execute them yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SafeState {
    /// The steps in order: `burner=0`, `air=max`, `drum=keep`. Empty if there are no controls.
    pub order: Vec<String>,
    /// Actions that are never permitted: `drum=0 while btC > 60`, `charge`.
    #[serde(default)]
    pub forbid: Vec<String>,
}

/// Limits at which the interlock refuses a write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Limits {
    /// °C
    pub bt_max_c: f64,
    /// °C
    pub et_max_c: f64,
    /// The drum must turn while the beans are hotter than this, °C.
    pub drum_stop_below_c: f64,
    /// The largest number of writes per hour; flash memory in some panels wears out.
    pub writes_per_hour_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bt_max_c: 235.0, et_max_c: 300.0, drum_stop_below_c: 60.0, writes_per_hour_max: 360 }
    }
}
