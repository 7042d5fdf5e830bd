//! Opens the driver of a machine: chooses the protocol by the profile, and the address by the
//! connection settings.

use std::path::PathBuf;

use firmware_profiles::address::{Access, Address, Tsaps};
use firmware_profiles::encoding::{self, Type};
use firmware_profiles::{Channel, Control, Profile, Transport};
use protocols::modbus_answer::Framing;

use crate::bus::{Bus, ReadPoint, WritableControl, WritableControls};
use crate::connection::Endpoint;
use crate::profile::ProfileDriver;
use crate::{
    Driver, DriverError, DriverHandles, modbus, polled_text, push_stream, s7, thermocouples,
};

/// The address, baud rate and timeout of the machine at this site. A field that is `None` keeps the
/// profile's value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionSettings {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub device: Option<PathBuf>,
    pub baud: Option<u32>,
    pub timeout_ms: Option<u64>,
}

pub fn open(
    profile: &Profile,
    settings: &ConnectionSettings,
    share: DriverHandles,
) -> Result<Box<dyn Driver>, DriverError> {
    let id = profile.machine.id.clone();
    let wrong = |problem: String| DriverError::Profile(id.clone(), problem);
    let mut profile = profile.clone();
    if let Some(timeout_ms) = settings.timeout_ms {
        profile.timing.timeout_ms = timeout_ms;
    }
    let points = points(&profile).map_err(wrong)?;
    let controls = writable_controls(&profile);
    let timing = profile.timing.clone();
    let address = || endpoint(&profile, settings).map_err(wrong);
    let bus: Box<dyn Bus> = match &profile.transport {
        Transport::ModbusTcp { .. } => {
            let framing = Framing::Tcp;
            Box::new(modbus::Modbus::new(address()?, framing, timing, &points, share.clone()))
        }
        Transport::ModbusRtuOverTcp { .. } | Transport::ModbusRtu { .. } => {
            let framing = Framing::Rtu;
            Box::new(modbus::Modbus::new(address()?, framing, timing, &points, share.clone()))
        }
        Transport::S7 { .. } => {
            let tsaps = Tsaps::of(&profile.transport)
                .ok_or_else(|| wrong("a TSAP is not like 02.00".to_owned()))?;
            Box::new(s7::S7::new(address()?, tsaps, timing, points, controls))
        }
        Transport::Tc4 { .. } => Box::new(polled_text::PolledText::new(
            address()?,
            timing,
            (points, controls),
            polled_text::Dialect::Tc4,
        )),
        Transport::Kaleido { .. } => Box::new(polled_text::PolledText::new(
            address()?,
            timing,
            (points, controls),
            polled_text::Dialect::Kaleido,
        )),
        Transport::Line { format, .. } => Box::new(push_stream::PushStream::new(
            address()?,
            timing,
            (points, controls),
            push_stream::StreamDecoder::line(*format),
        )),
        Transport::Hottop { .. } => Box::new(push_stream::PushStream::new(
            address()?,
            timing,
            (points, controls),
            push_stream::StreamDecoder::hottop(),
        )),
        Transport::Santoker { .. } => Box::new(push_stream::PushStream::new(
            address()?,
            timing,
            (points, controls),
            push_stream::StreamDecoder::santoker(),
        )),
        Transport::Boards {} => Box::new(thermocouples::Thermocouples::new(&points)),
    };
    Ok(Box::new(ProfileDriver::new(profile, bus, share.controls)))
}

/// Returns the configured address, or the profile's where none is configured.
fn endpoint(profile: &Profile, settings: &ConnectionSettings) -> Result<Endpoint, String> {
    match &profile.transport {
        Transport::ModbusTcp { host, port, .. }
        | Transport::ModbusRtuOverTcp { host, port, .. }
        | Transport::S7 { host, port, .. }
        | Transport::Santoker { host, port }
        | Transport::Line { host, port, .. } => {
            let host = settings.host.clone().unwrap_or_else(|| host.clone());
            Ok(Endpoint::Tcp { host, port: settings.port.unwrap_or(*port) })
        }
        Transport::ModbusRtu { serial, .. }
        | Transport::Tc4 { serial }
        | Transport::Kaleido { serial }
        | Transport::Hottop { serial } => {
            let device = settings.device.clone().ok_or(
                "uses a serial line; set machine.profile.device, such as \
                 /dev/serial/by-id/…",
            )?;
            let baud = settings.baud.unwrap_or(serial.baud);
            let serial = firmware_profiles::Serial { baud, ..serial.clone() };
            Ok(Endpoint::Serial { device, serial })
        }
        Transport::Boards {} => Err("has no address".to_owned()),
    }
}

/// Returns the points to read: channels first, then states.
pub fn points(profile: &Profile) -> Result<Vec<ReadPoint>, String> {
    let channels = profile.channels.iter().map(|c| (c.station, &c.addr, c.kind, c.order));
    let states = profile.states.iter().map(|s| (s.station, &s.addr, s.kind, s.order));
    let mut read_first = profile.channels.iter().map(|channel| is_read_first(profile, channel));
    let point =
        |(station, addr, kind, order): (_, &String, Option<Type>, Option<encoding::Order>)| {
            let address = Address::parse(profile, station, addr, Access::Read)
                .map_err(|expected| format!("{addr:?} is not {expected}"))?;
            // Text protocols carry plain numbers and need no type.
            Ok(ReadPoint {
                address,
                kind: kind.unwrap_or(Type::F32),
                order: order.unwrap_or_default(),
                read_first: read_first.next().unwrap_or(false),
            })
        };
    channels.chain(states).map(point).collect()
}

/// Returns whether a channel is read before others: it is required, or the bean temperature is
/// computed from it.
fn is_read_first(profile: &Profile, channel: &Channel) -> bool {
    let is_bean_term = profile
        .derived
        .iter()
        .filter(|derived| derived.name == "btC")
        .any(|derived| derived.terms.iter().any(|term| term.channel == channel.name));
    channel.required || channel.name == "btC" || is_bean_term
}

fn writable_controls(profile: &Profile) -> WritableControls {
    let writable = |control: &Control| {
        let address =
            Address::parse(profile, control.station, &control.addr, Access::Write).ok()?;
        Some(WritableControl { address, control: control.clone() })
    };
    WritableControls(profile.controls.iter().map(writable).collect())
}
