//! Drivers: each driver has exclusive access to its machine and reads its current values.
//!
//! A driver reads, and writes what its [`ControlQueue`] has allowed, where it has one. It never waits
//! longer than its own time limit, so a dead unit costs the schedule only that unit's own samples.
//! The profile describes what a machine offers and in which form; a bus reads the raw values, and
//! the module `profile` converts them.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod bus;
mod connection;
mod control_queue;
mod error;
mod health;
mod interlock;
mod modbus;
mod open;
mod polled_text;
mod profile;
mod push_stream;
mod register_cache;
mod replay;
mod s7;
mod simulated;
mod thermocouples;

use std::future::Future;
use std::pin::Pin;

use contract::{Channel, EventKind, Quality};
use firmware_profiles::Profile;

pub use control_queue::ControlQueue;
pub use error::DriverError;
pub use interlock::WriteError;
pub use modbus::is_modbus_read;
pub use open::ConnectionSettings;
pub use register_cache::{CacheMiss, RegisterCache};
pub use replay::Replay;
pub use simulated::Simulated;

/// One reading of a machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    pub values: Vec<(Channel, Option<f64>)>,
    /// The quality flags of values that are present.
    pub quality_flags: Vec<(Channel, Quality)>,
    /// Events that the machine reported since the last reading.
    pub events: Vec<EventKind>,
    /// Notes to show beside the curve: a gap and its reason, a write to a control.
    pub notes: Vec<String>,
    /// Sentences about parts of the machine that do not answer although others do.
    pub failed_units: Vec<String>,
}

type ReadFuture<'d> = Pin<Box<dyn Future<Output = Result<Reading, DriverError>> + 'd>>;

/// A machine as the sampler sees it. `mono_ms` is the sampler's monotonic clock, so that simulated
/// and recorded machines need no clock of their own.
pub trait Driver {
    /// Reads the machine once.
    fn read(&mut self, mono_ms: u64) -> ReadFuture<'_>;

    /// Waits until a write to a control is queued. Cancel-safe.
    fn wait_for_write(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::pending())
    }

    /// Returns what to try for the failures of the last reading.
    fn advice(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Executes the next queued write; takes no longer than one answer.
    fn execute_pending(&mut self, _mono_ms: u64) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// The access that other programs have to a machine through its driver.
#[derive(Debug, Clone, Default)]
pub struct DriverHandles {
    /// The registers that a Modbus machine returned last.
    pub registers: RegisterCache,
    /// The queue of writes; `None` where the agent never writes.
    pub controls: Option<ControlQueue>,
}

/// Opens the driver of a machine that is described by a profile.
///
/// # Errors
/// When the machine's address is missing, or an address in the profile is malformed.
pub fn open(
    profile: &Profile,
    settings: &ConnectionSettings,
    share: DriverHandles,
) -> Result<Box<dyn Driver>, DriverError> {
    open::open(profile, settings, share)
}
