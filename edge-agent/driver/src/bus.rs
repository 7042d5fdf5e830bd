//! What a protocol offers to the driver: it polls raw values and writes raw values.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use firmware_profiles::address::Address;
use firmware_profiles::encoding::{self, Type};
use firmware_profiles::{Control, Timing};

use crate::DriverError;
use crate::interlock::{Command, WriteError};

/// One raw value to read, for a channel or a state of the profile.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadPoint {
    pub address: Address,
    pub kind: Type,
    pub order: encoding::Order,
    /// Whether the point is read before others: a roast is not recorded without it.
    pub read_first: bool,
}

/// The result of one poll: one raw value per point, in the order of the points.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawValues {
    pub values: Vec<Option<f64>>,
    /// Sentences about units that did not answer although others did.
    pub failed_units: Vec<String>,
}

pub type PollFuture<'b> = Pin<Box<dyn Future<Output = Result<RawValues, DriverError>> + 'b>>;

pub type WriteFuture<'b> = Pin<Box<dyn Future<Output = Result<(), WriteError>> + 'b>>;

/// A connection to a machine in one protocol.
pub trait Bus {
    /// Reads every point once. Returns an error only when nothing answered at all.
    fn poll(&mut self, mono_ms: u64) -> PollFuture<'_>;

    /// Returns what to try for the failures of the last poll.
    fn advice(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Writes one allowed value, within one time limit. `Ok` means that the machine acknowledged it
    /// or, in protocols without acknowledgement, that it was sent.
    fn write(&mut self, _command: Command, _mono_ms: u64) -> WriteFuture<'_> {
        Box::pin(std::future::ready(Err(write_unsupported())))
    }
}

/// Returns the error for protocols on which this agent never writes.
pub fn write_unsupported() -> WriteError {
    WriteError::NotSent("this agent never writes to this type of machine".to_owned())
}

/// A control and its parsed address, as a bus writes it.
#[derive(Debug, Clone)]
pub struct WritableControl {
    pub address: Address,
    pub control: Control,
}

impl WritableControl {
    /// Returns the raw value to write; `None` where the write has no single value.
    pub fn raw(&self, command: Command) -> Option<f64> {
        match command {
            Command::Set(_, value) => Some(self.control.raw(value)),
            Command::ReleaseToLocal(_) => self.control.auto_raw,
            Command::Apply(_) => None,
        }
    }
}

/// The writable controls, by the controls' index in the profile.
pub struct WritableControls(pub Vec<Option<WritableControl>>);

impl WritableControls {
    /// Returns the control that a command writes, and the raw value.
    ///
    /// # Errors
    /// When the profile describes no write for it.
    pub fn resolve(&self, command: Command) -> Result<(&WritableControl, f64), WriteError> {
        let control = self.0.get(command.control()).and_then(Option::as_ref);
        control
            .and_then(|control| Some((control, control.raw(command)?)))
            .ok_or(WriteError::NoSuchControl)
    }
}

/// Returns the time limit for one answer.
pub fn answer_timeout(timing: &Timing) -> Duration {
    Duration::from_millis(timing.timeout_ms)
}
