//! Opens the machine that the configuration names, and formats its readings.

use driver::{Driver, DriverError, DriverHandles, Reading, Replay, Simulated};

use crate::config::{DriverKind, EdgeConfig};

/// Opens the machine's driver. `share` is what other tasks may read and move through it; only a
/// driver by profile uses it.
///
/// # Errors
/// When a recording or a profile cannot be read.
pub fn open(config: &EdgeConfig, share: DriverHandles) -> Result<Box<dyn Driver>, DriverError> {
    let machine = &config.machine;
    match machine.driver {
        DriverKind::Simulated => {
            let s = &machine.simulated;
            Ok(Box::new(Simulated::new(&s.preset, s.seed, s.charge_after_s, s.speed)))
        }
        DriverKind::Replay => {
            Ok(Box::new(Replay::open(&machine.replay.file, machine.replay.speed)?))
        }
        DriverKind::Profile => {
            let p = &machine.profile;
            let checked = p.load().map_err(|problem| DriverError::Profile(p.name(), problem))?;
            driver::open(&checked.profile, &p.connection_settings(), share)
        }
    }
}

/// Formats a reading as one line for people.
#[must_use]
pub fn format_reading(reading: &Reading) -> String {
    let values = reading.values.iter().map(|(channel, value)| match value {
        Some(value) => format!("{} {value:.1}", channel.as_str()),
        None => format!("{} —", channel.as_str()),
    });
    values.chain(reading.failed_units.iter().cloned()).collect::<Vec<_>>().join(", ")
}
