//! Drivers: each owns its machine alone and answers one question — what do you show now?
//!
//! A driver only reads. It never waits longer than its own time limit, so a dead unit costs the
//! schedule nothing but its own samples.

mod modbus;
mod replay;
mod simulated;

use std::future::Future;
use std::pin::Pin;

use contract::{Channel, EventKind};

use crate::config::{DriverKind, EdgeConfig};

/// One answer of a machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    pub values: Vec<(Channel, Option<f64>)>,
    /// What the machine says happened since the last answer.
    pub marks: Vec<EventKind>,
}

/// Why a machine did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("cannot reach {0}: {1}")]
    Unreachable(String, std::io::Error),
    #[error("{0} does not answer within {1} ms")]
    Silent(String, u64),
    #[error("{0}: {1}")]
    Protocol(String, String),
    #[error("cannot read the recording {0}: {1}")]
    Recording(String, String),
    /// Nothing more will come: a recording has been played.
    #[error("the recording has ended")]
    Ended,
}

type Answer<'d> = Pin<Box<dyn Future<Output = Result<Reading, DriverError>> + 'd>>;

/// A machine as the sampler sees it. `mono_ms` is the sampler's clock, so that simulated and
/// recorded machines need none of their own.
pub trait Driver {
    fn read(&mut self, mono_ms: u64) -> Answer<'_>;
}

/// The driver that a configuration asks for.
///
/// # Errors
/// When a recording cannot be read.
pub fn open(config: &EdgeConfig) -> Result<Box<dyn Driver>, DriverError> {
    let machine = &config.machine;
    Ok(match machine.driver {
        DriverKind::Simulated => Box::new(simulated::Simulated::new(&machine.simulated)),
        DriverKind::Replay => Box::new(replay::Replay::open(&machine.replay)?),
        DriverKind::Modbus => Box::new(modbus::Modbus::new(&machine.modbus)),
    })
}
