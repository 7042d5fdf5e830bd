//! The addresses of values, in the notation of each transport.

use crate::document::{Profile, Transport};

/// A Modbus table; it decides which functions read and write a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Read by function 1, written by 5 or 15.
    Coil,
    /// Read by function 2, never written.
    Discrete,
    /// Read by function 3, written by 6, 16 or 22.
    Holding,
    /// Read by function 4, never written.
    Input,
}

/// One of the two bytes of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    High,
    Low,
}

impl Half {
    /// Returns this byte of `word`.
    #[must_use]
    pub const fn of(self, word: u16) -> u16 {
        match self {
            Self::High => word >> 8,
            Self::Low => word & 0xff,
        }
    }

    /// Returns a word with `byte` in this half and 0 in the other one.
    #[must_use]
    pub const fn place(self, byte: u16) -> u16 {
        match self {
            Self::High => byte << 8,
            Self::Low => byte & 0xff,
        }
    }
}

/// A memory area of an S7 controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// PE: inputs.
    Input,
    /// PA: outputs.
    Output,
    /// MK: flags.
    Flag,
    /// DB, with its number.
    Block(u16),
}

/// The address of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `holding 12393`, `coil 32`, `holding 12318.2`, `holding 60.high`; registers are counted from
    /// 0, as in the protocol.
    Modbus { station: u8, table: Table, register: u16, bit: Option<u8>, half: Option<Half> },
    /// `DB3.112`, `DB2.82.1`, `MK40`: area, byte, bit.
    S7 { area: Area, byte: u16, bit: Option<u8> },
    /// `F1`: one byte, in hexadecimal.
    Target(u8),
    /// A name that the protocol defines, or a name or path that a text line has.
    Name(String),
    /// `max31856 /dev/spidev0.0`, `mcp9600 /dev/i2c-1 0x67`.
    Board {
        chip: Chip,
        device: String,
        /// The address on the I²C bus.
        at: Option<u8>,
    },
}

/// A supported thermocouple chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chip {
    Max31855,
    Max31856,
    Mcp9600,
}

/// The transport addresses of the two ends of an S7 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tsaps {
    /// The agent's.
    pub local: [u8; 2],
    /// The controller's.
    pub remote: [u8; 2],
}

impl Tsaps {
    /// Returns the TSAPs of an S7 transport: those that it names, otherwise `01.00` and the one of
    /// its rack and slot. `None` when a TSAP is malformed, or for another transport.
    #[must_use]
    pub fn of(transport: &Transport) -> Option<Self> {
        let Transport::S7 { rack, slot, local_tsap, remote_tsap, .. } = transport else {
            return None;
        };
        let of_slot = [0x01, ((rack & 0x07) << 5) | (slot & 0x1f)];
        let local = local_tsap.as_deref().map_or(Some([0x01, 0x00]), tsap)?;
        let remote = remote_tsap.as_deref().map_or(Some(of_slot), tsap)?;
        Some(Self { local, remote })
    }
}

/// Parses a TSAP of two bytes, in hexadecimal: `02.00`.
fn tsap(text: &str) -> Option<[u8; 2]> {
    let byte = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
    };
    let (high, low) = text.split_once('.')?;
    Some([byte(high)?, byte(low)?])
}

/// The values of TC4 firmware's answer to `READ`, in its order; [`TC4_WRITES`] are its commands.
pub const TC4_READS: [&str; 6] = ["ambient", "ch1", "ch2", "heater", "fan", "sv"];
pub const TC4_WRITES: [&str; 7] = ["OT1", "OT2", "OT3", "DCFAN", "IO3", "PID;SV", "PID"];
/// Kaleido's variables that can be read; [`KALEIDO_WRITES`] can be written.
pub const KALEIDO_READS: [&str; 10] = ["BT", "ET", "AT", "TS", "HP", "FC", "RC", "AH", "HS", "CS"];
pub const KALEIDO_WRITES: [&str; 7] = ["HP", "FC", "RC", "AH", "TS", "HS", "CS"];
/// The fields of Hottop's status frame; [`HOTTOP_WRITES`] are those of its command frame.
pub const HOTTOP_READS: [&str; 9] = [
    "et",
    "bt",
    "heater",
    "fan",
    "main_fan",
    "solenoid",
    "drum_motor",
    "cooling_motor",
    "chaff_tray",
];
pub const HOTTOP_WRITES: [&str; 6] =
    ["heater", "fan", "main_fan", "solenoid", "drum_motor", "cooling_motor"];

/// Whether an address is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Address {
    /// Parses an address of `profile`'s transport. `station` is the Modbus unit, where it differs
    /// from the transport's.
    ///
    /// # Errors
    /// Returns a description of a valid address of that transport.
    pub fn parse(
        profile: &Profile,
        station: Option<u8>,
        text: &str,
        access: Access,
    ) -> Result<Self, &'static str> {
        let name = |reads: &[&str], writes: &[&str]| {
            let names = if access == Access::Read { reads } else { writes };
            names.contains(&text).then(|| Self::Name(text.to_owned()))
        };
        match &profile.transport {
            Transport::ModbusTcp { station: usual, .. }
            | Transport::ModbusRtu { station: usual, .. }
            | Transport::ModbusRtuOverTcp { station: usual, .. } => {
                modbus(station.unwrap_or(*usual), text, access)
                    .ok_or("`holding 4096`, `input 0`, `coil 32` or `discrete 284`, from 0, a bit as `.2`, and a byte, which is only read, as `.high` or `.low`")
            }
            Transport::S7 { .. } => {
                s7(text).ok_or("`DB3.112`, `DB2.82.1`, `MK40`, `PE0.1` or `PA4`")
            }
            Transport::Tc4 { .. } => name(&TC4_READS, &TC4_WRITES)
                .ok_or("`ambient`, `ch1`, `ch2`, `heater`, `fan`, `sv`, or `OT1`, `OT2`, `OT3`, `DCFAN`, `IO3`, `PID`, `PID;SV`"),
            Transport::Kaleido { .. } => name(&KALEIDO_READS, &KALEIDO_WRITES)
                .ok_or("one of Kaleido's variables, such as `BT`, `ET` or `HP`"),
            Transport::Hottop { .. } => name(&HOTTOP_READS, &HOTTOP_WRITES)
                .ok_or("one of Hottop's fields, such as `bt`, `et` or `heater`"),
            Transport::Santoker { .. } => u8::from_str_radix(text, 16)
                .ok()
                .filter(|_| text.len() == 2)
                .map(Self::Target)
                .ok_or("a target of two hexadecimal digits, such as `F1`"),
            Transport::Line { .. } => (access == Access::Read && !text.is_empty() && text.len() <= 64)
                .then(|| Self::Name(text.to_owned()))
                .ok_or("a column's or field's name, or a path such as `MAX31855.btC`, which is read and never written"),
            Transport::Boards {} => board(text)
                .filter(|_| access == Access::Read)
                .ok_or("`max31855 /dev/spidev0.0`, `max31856 /dev/spidev0.1` or `mcp9600 /dev/i2c-1 0x67`, which are read and never written"),
        }
    }
}

fn modbus(station: u8, text: &str, access: Access) -> Option<Address> {
    let (table, position) = text.split_once(' ')?;
    let table = match table {
        "coil" => Table::Coil,
        "discrete" if access == Access::Read => Table::Discrete,
        "holding" => Table::Holding,
        "input" if access == Access::Read => Table::Input,
        _ => return None,
    };
    let (register, part) = match position.split_once('.') {
        Some((register, part)) if matches!(table, Table::Holding | Table::Input) => {
            (register, Some(part))
        }
        Some(_) => return None,
        None => (position, None),
    };
    let (bit, half) = match part {
        // A write would also set the other byte of the register.
        Some("high" | "low") if access == Access::Write => return None,
        Some("high") => (None, Some(Half::High)),
        Some("low") => (None, Some(Half::Low)),
        Some(bit) => (Some(bit.parse().ok().filter(|bit| *bit < 16)?), None),
        None => (None, None),
    };
    Some(Address::Modbus { station, table, register: number(register)?, bit, half })
}

fn s7(text: &str) -> Option<Address> {
    let (area, rest) = if let Some(rest) = text.strip_prefix("DB") {
        let (block, rest) = rest.split_once('.')?;
        (Area::Block(number(block)?), rest)
    } else {
        let (area, rest) = text.split_at_checked(2)?;
        let area = match area {
            "PE" => Area::Input,
            "PA" => Area::Output,
            "MK" => Area::Flag,
            _ => return None,
        };
        (area, rest)
    };
    let (byte, bit) = match rest.split_once('.') {
        Some((byte, bit)) => (byte, Some(bit.parse().ok().filter(|bit| *bit < 8)?)),
        None => (rest, None),
    };
    Some(Address::S7 { area, byte: number(byte)?, bit })
}

fn board(text: &str) -> Option<Address> {
    let mut parts = text.split(' ');
    let chip = match parts.next()? {
        "max31855" => Chip::Max31855,
        "max31856" => Chip::Max31856,
        "mcp9600" => Chip::Mcp9600,
        _ => return None,
    };
    let device = parts.next()?.to_owned();
    let at = match parts.next() {
        Some(at) => Some(u8::from_str_radix(at.strip_prefix("0x")?, 16).ok()?),
        None => None,
    };
    let fits = match chip {
        Chip::Mcp9600 => device.starts_with("/dev/i2c-") && at.is_some_and(|at| at < 0x80),
        _ => device.starts_with("/dev/spidev") && at.is_none(),
    };
    (fits && parts.next().is_none()).then_some(Address::Board { chip, device, at })
}

/// Parses digits only; `parse` would also accept a sign.
fn number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
