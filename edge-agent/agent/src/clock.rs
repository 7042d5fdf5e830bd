//! The agent's two clocks: the monotonic clock and the wall clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use contract::{ClockQuality, EpochMs};

/// The file that systemd-timesyncd writes once the clock has been set from the network. With a
/// clock chip that keeps local time, timesyncd does not mark the kernel clock as synchronised, so
/// the file is checked too.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// Reads the system's clocks. This is the only place in the agent that does.
#[derive(Debug, Clone, Copy)]
pub struct GatewayClock {
    started: Instant,
    /// For tests: a fixed wall clock.
    #[cfg(test)]
    set: Option<EpochMs>,
}

#[allow(clippy::disallowed_methods, clippy::unused_self)] // time is read only here
impl GatewayClock {
    /// Starts the monotonic clock at zero.
    #[must_use]
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            #[cfg(test)]
            set: None,
        }
    }

    /// Returns a clock whose wall clock is fixed at `at`.
    #[cfg(test)]
    pub fn at(at: EpochMs) -> Self {
        Self { set: Some(at), ..Self::start() }
    }

    /// Returns the milliseconds since the agent started.
    #[must_use]
    pub fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the wall clock's date; a date before 1970 counts as 1970.
    #[must_use]
    pub fn wall(&self) -> EpochMs {
        #[cfg(test)]
        if let Some(at) = self.set {
            return at;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        EpochMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Returns whether the wall clock is synchronised, by the kernel's or timesyncd's state.
    #[must_use]
    pub fn quality(&self) -> ClockQuality {
        let synchronised = clock_sync::is_synchronised() == Some(true)
            || std::path::Path::new(SYNCHRONISED).exists();
        if synchronised { ClockQuality::Synchronised } else { ClockQuality::FreeRunning }
    }
}
