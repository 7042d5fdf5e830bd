//! A trusted date that cannot be set back. A gateway without a clock chip starts in 1970, and a
//! person with access to a gateway can set its clock to any day: what has expired must never become
//! valid again.
//!
//! The date is never before this program was built, before the time that the fleet has sent over
//! TLS, before the gateway's own certificate was issued, or before the date stored at the last run.
//! From the latest of these it advances with the monotonic clock. The wall clock may be ahead of
//! this lower bound; a wall clock behind it is ignored.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use contract::EpochMs;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::clock::GatewayClock;
use crate::files::write_atomically;

/// 2026-11-22, the date of the source: the agent cannot run before it was written.
const EARLIEST: EpochMs = EpochMs(1_795_305_600_000);
/// The latest date accepted. A file with a later date is damaged; if it were accepted, every
/// certificate would count as expired for ever.
const LATEST: EpochMs = EpochMs(EARLIEST.0 + 30 * 365 * 86_400_000);
const FILE: &str = "known-time";

/// The date that expiry dates are compared with.
#[derive(Clone)]
pub struct TrustedClock {
    clock: GatewayClock,
    /// A lower bound of the date, and the monotonic time in ms at which it was set.
    floor: Arc<Mutex<(EpochMs, u64)>>,
    /// The last time that the fleet sent in this run, and the monotonic time in ms of its arrival.
    fleet_time: Arc<Mutex<Option<(EpochMs, u64)>>>,
    file: PathBuf,
}

impl TrustedClock {
    /// Opens the date stored by the last run, beside the wall clock. A missing or damaged file
    /// counts as the date of this program.
    #[must_use]
    pub fn open(folder: &Path, clock: GatewayClock) -> Self {
        let file = folder.join(FILE);
        let stored = std::fs::read_to_string(&file).ok();
        let stored = stored.and_then(|text| text.trim().parse().ok()).map_or(EARLIEST, EpochMs);
        let bound = if stored.0 > LATEST.0 { EARLIEST } else { stored.max(EARLIEST) };
        let floor = Arc::new(Mutex::new((bound, clock.mono_ms())));
        Self { clock, floor, fleet_time: Arc::default(), file }
    }

    /// Returns the later of the wall clock and the lower bound. A wall clock after [`LATEST`] is
    /// wrong and is ignored.
    #[must_use]
    pub fn now(&self) -> EpochMs {
        let (wall, floor) = (self.clock.wall(), self.floor());
        if wall.0 > LATEST.0 { floor } else { wall.max(floor) }
    }

    /// Returns the fleet's time if it was received in this run; otherwise `TrustedClock::snapshot`. A
    /// wall clock that is far ahead must not cause one renewal after another.
    #[must_use]
    pub fn fleet_time(&self) -> EpochMs {
        let received = *self.fleet_time.lock().unwrap_or_else(PoisonError::into_inner);
        received.map_or_else(|| self.now(), |(at, mono_ms)| self.advanced(at, mono_ms))
    }

    /// Records the time that the fleet has sent.
    pub fn set_fleet_time(&self, at: EpochMs) {
        *self.fleet_time.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((at, self.clock.mono_ms()));
        self.raise_floor(at);
    }

    fn advanced(&self, at: EpochMs, mono_ms: u64) -> EpochMs {
        let since = self.clock.mono_ms().saturating_sub(mono_ms);
        at.plus_ms(i64::try_from(since).unwrap_or(0))
    }

    fn floor(&self) -> EpochMs {
        let (at, mono_ms) = *self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        self.advanced(at, mono_ms)
    }

    /// Raises the lower bound to `at`, which comes from a trusted source, and stores it. A date
    /// after [`LATEST`] is ignored.
    pub fn raise_floor(&self, at: EpochMs) {
        if at.0 > LATEST.0 {
            return;
        }
        if at > self.floor() {
            *self.floor.lock().unwrap_or_else(PoisonError::into_inner) = (at, self.clock.mono_ms());
        }
        self.save();
    }

    /// Stores the lower bound for the next start.
    pub fn save(&self) {
        if let Err(error) = write_atomically(&self.file, self.floor().0.to_string().as_bytes()) {
            tracing::debug!(%error, "the date could not be stored for the next start");
        }
    }
}

impl std::fmt::Debug for TrustedClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KnownTime({})", self.now())
    }
}

/// The time that TLS uses: with a clock in 1970 no certificate is valid yet, and the time from the
/// network needs connections that need a valid certificate themselves.
impl TimeProvider for TrustedClock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = u64::try_from(self.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back_behind_a_confirmed_time() {
        let folder = tempfile::tempdir().unwrap();
        let long_ago = GatewayClock::at(EpochMs(86_400_000));
        let time = TrustedClock::open(folder.path(), long_ago);
        assert!(time.now() >= EARLIEST, "the wall clock is in 1970");
        let told = EARLIEST.plus_ms(40 * 86_400_000);
        time.raise_floor(told);
        time.raise_floor(told.plus_ms(-86_400_000));
        assert!(time.now() >= told);
        // The next start, after the clock was set back.
        let again = TrustedClock::open(folder.path(), GatewayClock::at(EARLIEST));
        assert!(again.now() >= told);
        // A clock that is ahead is used while the agent runs, and its time is not stored.
        let ahead = TrustedClock::open(folder.path(), GatewayClock::at(told.plus_ms(86_400_000)));
        assert!(ahead.now() >= told.plus_ms(86_400_000));
        ahead.save();
        let back = TrustedClock::open(folder.path(), GatewayClock::at(EARLIEST));
        assert!(back.now() < told.plus_ms(86_400_000));
        // A damaged file does not make all certificates expire.
        std::fs::write(folder.path().join(FILE), "9223372036854775807").unwrap();
        assert!(TrustedClock::open(folder.path(), long_ago).now() < LATEST);
        again.raise_floor(EpochMs(i64::MAX));
        assert!(again.now() < LATEST);
        // A clock that has leapt to 2106 does not either.
        let leapt = GatewayClock::at(EpochMs(4_294_967_296_000));
        assert!(TrustedClock::open(folder.path(), leapt).now() < LATEST);
    }
}
