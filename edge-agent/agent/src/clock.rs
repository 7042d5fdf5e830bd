//! The agent's clocks: the monotonic clock, the wall clock, and the kernel's clock, which continues
//! when the agent is restarted.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use contract::{ClockQuality, EpochMs};

use crate::restart::ClockReading;

/// The file that systemd-timesyncd writes once the clock has been set from the network. With a
/// clock chip that keeps local time, timesyncd does not mark the kernel clock as synchronised, so
/// the file is checked too.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// The id of the kernel's current boot. The systemd unit passes it in, because its sandbox hides the
/// file.
const BOOT_ID: &str = "BOOT_ID";
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// The id of one start of the gateway's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelBoot(pub u128);

impl KernelBoot {
    /// Parses an id of 32 hexadecimal digits, with or without hyphens.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().replace('-', "");
        let id = (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten();
        id.map(Self)
    }

    fn current() -> Option<Self> {
        let passed = std::env::var(BOOT_ID).ok().and_then(|text| Self::parse(&text));
        passed.or_else(|| Self::parse(&std::fs::read_to_string(BOOT_ID_FILE).ok()?))
    }
}

impl std::fmt::Display for KernelBoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A time on the kernel's clock, which starts with the kernel and is never set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelTime {
    pub boot: KernelBoot,
    /// Milliseconds since the kernel started. Negative before.
    pub ms: i64,
}

impl KernelTime {
    /// Returns the time `ms` milliseconds later in the same boot.
    #[must_use]
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self { ms: self.ms.saturating_add(ms), ..self }
    }
}

/// Reads the system's clocks. This is the only place in the agent that does.
#[derive(Debug, Clone, Copy)]
pub struct GatewayClock {
    started: Instant,
    /// The kernel's time at the start; `None` if the kernel's boot is not known.
    kernel: Option<KernelTime>,
    /// For tests: a fixed wall clock.
    #[cfg(test)]
    set: Option<EpochMs>,
}

#[allow(clippy::disallowed_methods, clippy::unused_self)] // time is read only here
impl GatewayClock {
    /// Starts the monotonic clock at zero.
    #[must_use]
    pub fn start() -> Self {
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let uptime = std::time::Duration::try_from(uptime).unwrap_or_default();
        let ms = i64::try_from(uptime.as_millis()).unwrap_or(i64::MAX);
        Self {
            started: Instant::now(),
            kernel: KernelBoot::current().map(|boot| KernelTime { boot, ms }),
            #[cfg(test)]
            set: None,
        }
    }

    /// Returns the kernel's time at the start of the agent; `None` if the kernel's boot is not
    /// known.
    #[must_use]
    pub const fn kernel_at_start(&self) -> Option<KernelTime> {
        self.kernel
    }

    /// Returns all clocks at this moment.
    #[must_use]
    pub fn read(&self) -> ClockReading {
        let mono_ms = self.mono_ms();
        let since = i64::try_from(mono_ms).unwrap_or(i64::MAX);
        let kernel = self.kernel.map(|start| start.plus_ms(since));
        ClockReading { mono_ms, wall: self.wall(), kernel }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_the_same_from_the_unit_and_from_the_kernel() {
        let id = KernelBoot::parse("0b9b3f2e-7a64-4d3b-9d0e-0123456789ab\n").unwrap();
        assert_eq!(KernelBoot::parse("0b9b3f2e7a644d3b9d0e0123456789ab"), Some(id));
        assert_eq!(KernelBoot::parse(&id.to_string()), Some(id));
        assert_eq!((KernelBoot::parse(""), KernelBoot::parse("%b")), (None, None));
    }

    #[test]
    fn the_kernel_clock_goes_on_in_the_next_start_of_the_agent() {
        let (first, second) = (GatewayClock::start(), GatewayClock::start());
        let (before, after) = (first.read().kernel, second.kernel_at_start());
        if let (Some(before), Some(after)) = (before, after) {
            assert_eq!(before.boot, after.boot);
            assert!((before.ms - after.ms).abs() < 10_000, "{before:?}, {after:?}");
        }
    }
}
