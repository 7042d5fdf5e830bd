//! The types of the profile's TOML file. Fields that an author may forget are optional here, so
//! that the linter can report them in a sentence; `docs/reference/profiles.md` explains each field.

use serde::{Deserialize, Serialize};

use crate::encoding::{Order, Type};

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

/// The connection to the machine. Addresses are the maker's defaults; the agent's configuration
/// sets those of the site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Transport {
    ModbusTcp {
        host: String,
        #[serde(default = "modbus_port")]
        port: u16,
        /// The Modbus unit of channels that do not name one.
        #[serde(default = "first_station")]
        station: u8,
    },
    ModbusRtu {
        serial: Serial,
        #[serde(default = "first_station")]
        station: u8,
    },
    /// The frames of Modbus RTU over TCP, as behind a serial server.
    ModbusRtuOverTcp {
        host: String,
        #[serde(default = "modbus_port")]
        port: u16,
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
        /// The TSAP of the agent, as `02.00`; without it, `01.00`.
        #[serde(default)]
        local_tsap: Option<String>,
        /// The TSAP of the controller, as `02.00`, instead of rack and slot.
        #[serde(default)]
        remote_tsap: Option<String>,
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
    /// One line per reading, over TCP.
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
            Self::ModbusRtuOverTcp { .. } => "modbus-rtu-over-tcp",
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
            Self::ModbusTcp { station, .. }
            | Self::ModbusRtu { station, .. }
            | Self::ModbusRtuOverTcp { station, .. } => Some(*station),
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

/// The format of a text line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum LineFormat {
    /// A JSON object.
    Jsonl,
    /// Values between commas, semicolons or tabs; the first line names the columns.
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

/// The timing of the requests to the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Timing {
    /// The time from one reading to the next, ms.
    pub poll_ms: u64,
    /// The time limit for an answer, ms.
    pub timeout_ms: u64,
    /// The shortest time between two requests, ms.
    pub min_gap_ms: u64,
    /// The time between opening the port and the first request, ms.
    pub settle_ms: u64,
    /// The largest number of words in one request.
    pub block_max: u16,
    /// Whether one request may also read unused registers between two used ones.
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
    /// Never: some controllers report a fault on registers that they do not have.
    #[default]
    Never,
    /// Up to eight unused words.
    Small,
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
