//! The agent's two clocks: one that only runs forward, one that says the date.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use contract::{ClockQuality, EpochMs};

/// Written by systemd-timesyncd once the clock has been set from the network. Beside a clock chip
/// that keeps local time it does not tell the kernel.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// Reads the system's clocks. The one place that does.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    /// For tests: a wall clock that was set, and stands still.
    #[cfg(test)]
    set: Option<EpochMs>,
}

#[allow(clippy::disallowed_methods, clippy::unused_self)] // this is where time enters, by a value
impl Clock {
    #[must_use]
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            #[cfg(test)]
            set: None,
        }
    }

    /// A wall clock that says `at`.
    #[cfg(test)]
    pub fn at(at: EpochMs) -> Self {
        Self { set: Some(at), ..Self::start() }
    }

    /// Milliseconds since the agent started.
    #[must_use]
    pub fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    #[must_use]
    pub fn wall(&self) -> EpochMs {
        #[cfg(test)]
        if let Some(at) = self.set {
            return at;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        EpochMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    #[must_use]
    pub fn quality(&self) -> ClockQuality {
        let synchronised = clock_sync::is_synchronised() == Some(true)
            || std::path::Path::new(SYNCHRONISED).exists();
        if synchronised { ClockQuality::Synchronised } else { ClockQuality::FreeRunning }
    }
}
