//! The part of a profile that describes the connection to the machine, and the timing of requests.

use serde::{Deserialize, Serialize};

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
