//! Drivers: each owns its machine alone and answers one question — what do you show now?
//!
//! A driver reads, and writes what its [`Hand`] has allowed, where it has one. It never waits longer than its own time limit, so a dead unit costs the
//! schedule nothing but its own samples. What a machine offers and in which form, its profile says;
//! a bus brings the raw values, `profile` knows what they mean.

mod boards;
mod guard;
mod hand;
mod health;
mod image;
mod modbus;
mod port;
mod profile;
mod replay;
mod s7;
mod simulated;
mod streams;
mod texts;

use std::future::Future;
use std::pin::Pin;

use contract::{Channel, EventKind, Quality};
use firmware_profiles::Profile;

pub use guard::Refused;
pub use hand::Hand;
pub use image::{Image, NoImage};
pub use profile::Site;
pub use replay::Replay;
pub use simulated::Simulated;

/// One answer of a machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    pub values: Vec<(Channel, Option<f64>)>,
    /// What is wrong with values that are there.
    pub remarks: Vec<(Channel, Quality)>,
    /// What the machine says happened since the last answer.
    pub marks: Vec<EventKind>,
    /// What a person should read beside the curve: a gap, and why.
    pub notes: Vec<String>,
    /// Parts of the machine that do not answer, while others do.
    pub ailing: Vec<String>,
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
    /// The port has just been opened, and the machine may be starting.
    #[error("{0} has been opened; it settles for another {1} ms")]
    Settling(String, u64),
    #[error("cannot read the recording {0}: {1}")]
    Recording(String, String),
    #[error("the profile {0}: {1}")]
    Profile(String, String),
    /// Nothing more will come: a recording has been played.
    #[error("the recording has ended")]
    Ended,
}

type Answer<'d> = Pin<Box<dyn Future<Output = Result<Reading, DriverError>> + 'd>>;

/// A machine as the sampler sees it. `mono_ms` is the sampler's clock, so that simulated and
/// recorded machines need none of their own.
pub trait Driver {
    fn read(&mut self, mono_ms: u64) -> Answer<'_>;

    /// Waits until a control is to be moved. May be given up at any time.
    fn asked(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::pending())
    }

    /// Moves what is to be moved; takes no longer than one answer.
    fn obey(&mut self, _mono_ms: u64) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// What other programs may see and move of a machine through its driver.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// What a Modbus machine has answered.
    pub image: Image,
    /// None where nothing is ever moved.
    pub hand: Option<Hand>,
}

/// The driver of a machine that is read by its profile.
///
/// # Errors
/// When the site's address is missing.
pub fn open(profile: &Profile, site: &Site, share: Share) -> Result<Box<dyn Driver>, DriverError> {
    profile::open(profile, site, share)
}
