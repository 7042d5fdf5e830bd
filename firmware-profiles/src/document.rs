//! The types of the profile's TOML file. Fields that an author may forget are optional here, so
//! that the linter can report them in a sentence; `docs/reference/profiles.md` explains each field.

use serde::{Deserialize, Serialize};

use crate::encoding::{Order, Type};

/// What one controller generation of a machine offers.
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

/// Which machine, and how far this page about it can be believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Machine {
    /// `maker.model.controller`: two generations of one model are two profiles.
    pub id: String,
    /// The machine's usual name.
    pub name: String,
    /// What tells this controller generation from the others.
    pub controller: String,
    /// Grows with every change of the file.
    pub version: u32,
    pub fuel: Fuel,
    #[serde(default)]
    pub capacity_kg: Option<f64>,
    /// Where the numbers come from.
    pub source: String,
    /// True only with a bring-up record.
    #[serde(default)]
    pub verified: bool,
    #[serde(default)]
    pub writes: Writes,
    #[serde(default)]
    pub bring_up: Option<BringUp>,
    /// What the installer should know.
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

/// Whether anything may be written to the machine at all.
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
    /// The two people who did it.
    pub by: Vec<String>,
    /// The day, `2026-11-22`.
    pub on: String,
    /// Where the record is kept.
    pub record: String,
}

/// How the machine is reached. Addresses are the maker's defaults; the agent's configuration says
/// what they are at this site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Transport {
    ModbusTcp {
        host: String,
        #[serde(default = "modbus_port")]
        port: u16,
        /// The unit that channels without one are at.
        #[serde(default = "first_station")]
        station: u8,
    },
    ModbusRtu {
        serial: Serial,
        #[serde(default = "first_station")]
        station: u8,
    },
    S7 {
        host: String,
        #[serde(default = "s7_port")]
        port: u16,
        #[serde(default)]
        rack: u8,
        #[serde(default)]
        slot: u8,
    },
    Tc4 {
        serial: Serial,
    },
    Kaleido {
        serial: Serial,
    },
    Hottop {
        serial: Serial,
    },
    Santoker {
        host: String,
        port: u16,
    },
    /// One line a reading, over TCP.
    Line {
        host: String,
        port: u16,
        format: LineFormat,
    },
    /// Thermocouple boards on the gateway's own SPI and I²C buses.
    Boards {},
}

impl Transport {
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ModbusTcp { .. } => "modbus-tcp",
            Self::ModbusRtu { .. } => "modbus-rtu",
            Self::S7 { .. } => "s7",
            Self::Tc4 { .. } => "tc4",
            Self::Kaleido { .. } => "kaleido",
            Self::Hottop { .. } => "hottop",
            Self::Santoker { .. } => "santoker",
            Self::Line { .. } => "line",
            Self::Boards {} => "boards",
        }
    }

    /// Returns the serial line; `None` for other transports.
    #[must_use]
    pub const fn serial(&self) -> Option<&Serial> {
        match self {
            Self::ModbusRtu { serial, .. }
            | Self::Tc4 { serial }
            | Self::Kaleido { serial }
            | Self::Hottop { serial } => Some(serial),
            _ => None,
        }
    }

    /// Returns the Modbus unit of channels that do not name one; `None` for other transports.
    #[must_use]
    pub const fn station(&self) -> Option<u8> {
        match self {
            Self::ModbusTcp { station, .. } | Self::ModbusRtu { station, .. } => Some(*station),
            _ => None,
        }
    }
}

const fn modbus_port() -> u16 {
    502
}

const fn s7_port() -> u16 {
    102
}

const fn first_station() -> u8 {
    1
}

/// What a text line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum LineFormat {
    /// A JSON object.
    Jsonl,
    /// Values between commas; the first line names the columns.
    Csv,
}

/// A serial line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Serial {
    pub baud: u32,
    #[serde(default = "eight")]
    pub data_bits: u8,
    #[serde(default)]
    pub parity: Parity,
    #[serde(default = "first_station")]
    pub stop_bits: u8,
}

const fn eight() -> u8 {
    8
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Parity {
    #[default]
    None,
    Odd,
    Even,
}

/// When and how the machine is polled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Timing {
    /// From one reading to the next, ms.
    pub poll_ms: u64,
    /// The time limit for an answer, ms.
    pub timeout_ms: u64,
    /// Between two requests, ms.
    pub min_gap_ms: u64,
    /// Between opening the port and the first request, ms.
    pub settle_ms: u64,
    /// Words in one request.
    pub block_max: u16,
    /// Whether unused registers may be read to join two used ones.
    pub gaps: Gap,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll_ms: 1000,
            timeout_ms: 300,
            min_gap_ms: 0,
            settle_ms: 0,
            block_max: 100,
            gaps: Gap::Never,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Gap {
    /// Some controllers fault on registers they do not have.
    #[default]
    Never,
    /// Up to eight words are read over.
    Small,
}

/// The unit of the machine's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Unit {
    /// °C
    C,
    /// °F; a channel's value is °C all the same.
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

/// One value that is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Channel {
    /// `btC`, `etC`, `gasPct`, `fanPct`, `drumRpm`, `ambientC`, or a name of your own.
    pub name: String,
    /// Where, in the transport's own words.
    pub addr: String,
    /// The Modbus unit, where it is not the transport's.
    #[serde(default)]
    pub station: Option<u8>,
    #[serde(default, rename = "type")]
    pub kind: Option<Type>,
    /// Which word of two comes first.
    #[serde(default)]
    pub order: Option<Order>,
    /// The raw value is divided by this: 1, 10, 100 or 1000.
    #[serde(default = "one")]
    pub divisor: u16,
    #[serde(default)]
    pub unit: Option<Unit>,
    /// What the value can be, in the channel's unit (temperatures in °C).
    #[serde(default)]
    pub valid: Option<[f64; 2]>,
    /// A step beyond this, in units a second, is remarked as a spike.
    #[serde(default)]
    pub max_step_per_s: Option<f64>,
    /// Without a valid value of it, nothing is written that does not reduce heat.
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
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Term {
    pub channel: String,
    pub factor: f64,
}

/// What a control moves. The linter and the edge's own rules go by it, not by the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Role {
    Burner,
    Air,
    Drum,
    /// A temperature that the machine's own controller holds.
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

/// Whether the agent may move a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Remote {
    /// This agent never writes it.
    Never,
    /// An approved command, within every limit here.
    Guarded,
}

/// One thing that can be moved.
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
    /// What may be asked for, before `map`.
    #[serde(default)]
    pub range: Option<[f64; 2]>,
    #[serde(default)]
    pub map: Map,
    /// The raw value by which the machine takes the control back.
    #[serde(default)]
    pub auto_raw: Option<f64>,
    /// A write that makes the machine take the value.
    #[serde(default)]
    pub apply: Option<MaskWrite>,
    /// The value is taken back after this, ms.
    #[serde(default)]
    pub pulse_ms: Option<u64>,
    /// The channel that shows the effect, or `none`.
    #[serde(default)]
    pub readback: Option<String>,
    /// How far the read-back may lie from what was asked, in the control's unit.
    #[serde(default)]
    pub readback_tol: Option<f64>,
    /// How soon it must lie there, s.
    #[serde(default)]
    pub readback_s: Option<f64>,
    /// The largest step, in the control's unit.
    #[serde(default)]
    pub max_step: Option<f64>,
    #[serde(default)]
    pub min_interval_s: Option<f64>,
    /// What must hold: a state's name, or `drumRpm >= 20`.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Whether doing it twice is the same as doing it once; a toggle is not.
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
    /// The raw value at which the state holds.
    pub equals: f64,
    /// The event that happens when the state begins: `CHARGE`, `DROP`, ….
    #[serde(default)]
    pub mark: Option<String>,
}

/// What the agent does when it must make the machine safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SafeState {
    /// One after the other: `burner=0`, `air=max`, `drum=keep`. Empty where nothing can be moved.
    pub order: Vec<String>,
    /// What never happens: `drum=0 while btC > 60`, `charge`.
    #[serde(default)]
    pub forbid: Vec<String>,
}

/// Where the agent itself trips (rule S14).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Limits {
    /// °C
    pub bt_max_c: f64,
    /// °C
    pub et_max_c: f64,
    /// The drum turns while the beans are hotter than this, °C.
    pub drum_stop_below_c: f64,
    /// Written values an hour; flash in some panels wears.
    pub writes_per_hour_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bt_max_c: 235.0, et_max_c: 300.0, drum_stop_below_c: 60.0, writes_per_hour_max: 360 }
    }
}
