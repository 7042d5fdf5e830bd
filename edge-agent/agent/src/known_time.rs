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

use crate::clock::Clock;
use crate::identity::write_whole;

/// 2026-11-22, the date of the source: the agent cannot run before it was written.
const WRITTEN: EpochMs = EpochMs(1_795_305_600_000);
/// The latest date accepted. A file with a later date is damaged; if it were accepted, every
/// certificate would count as expired for ever.
const LATEST: EpochMs = EpochMs(WRITTEN.0 + 30 * 365 * 86_400_000);
const FILE: &str = "known-time";

/// The date that expiry dates are compared with.
#[derive(Clone)]
pub struct KnownTime {
    clock: Clock,
    /// A lower bound of the date, and the monotonic time in ms at which it was set.
    known: Arc<Mutex<(EpochMs, u64)>>,
    /// The last time that the fleet sent in this run, and the monotonic time in ms of its arrival.
    told: Arc<Mutex<Option<(EpochMs, u64)>>>,
    file: PathBuf,
}

impl KnownTime {
    /// Opens the date stored by the last run, beside the wall clock. A missing or damaged file
    /// counts as the date of this program.
    #[must_use]
    pub fn open(folder: &Path, clock: Clock) -> Self {
        let file = folder.join(FILE);
        let kept = std::fs::read_to_string(&file).ok();
        let kept = kept.and_then(|text| text.trim().parse().ok()).map_or(WRITTEN, EpochMs);
        let known = if kept.0 > LATEST.0 { WRITTEN } else { kept.max(WRITTEN) };
        let known = Arc::new(Mutex::new((known, clock.mono_ms())));
        Self { clock, known, told: Arc::default(), file }
    }

    /// Returns the later of the wall clock and the lower bound.
    #[must_use]
    pub fn now(&self) -> EpochMs {
        self.clock.wall().max(self.floor())
    }

    /// Returns the fleet's time if it was received in this run; otherwise [`KnownTime::now`]. A
    /// wall clock that is far ahead must not cause one renewal after another.
    #[must_use]
    pub fn by_the_fleet(&self) -> EpochMs {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.map_or_else(|| self.now(), |(at, mono_ms)| self.since(at, mono_ms))
    }

    /// Records the time that the fleet has sent.
    pub fn tell(&self, at: EpochMs) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((at, self.clock.mono_ms()));
        self.at_least(at);
    }

    fn since(&self, at: EpochMs, mono_ms: u64) -> EpochMs {
        let since = self.clock.mono_ms().saturating_sub(mono_ms);
        at.plus(i64::try_from(since).unwrap_or(0))
    }

    fn floor(&self) -> EpochMs {
        let (at, mono_ms) = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.since(at, mono_ms)
    }

    /// Raises the lower bound to `at`, which comes from a trusted source, and stores it. A date
    /// after [`LATEST`] is ignored.
    pub fn at_least(&self, at: EpochMs) {
        if at.0 > LATEST.0 {
            return;
        }
        if at > self.floor() {
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = (at, self.clock.mono_ms());
        }
        self.keep();
    }

    /// Stores the lower bound for the next start.
    pub fn keep(&self) {
        if let Err(error) = write_whole(&self.file, self.floor().0.to_string().as_bytes()) {
            tracing::debug!(%error, "the date could not be stored for the next start");
        }
    }
}

impl std::fmt::Debug for KnownTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KnownTime({})", self.now())
    }
}

/// The time that TLS uses: with a clock in 1970 no certificate is valid yet, and the time from the
/// network needs connections that need a valid certificate themselves.
impl TimeProvider for KnownTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = u64::try_from(self.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_once_is_never_unknown_again() {
        let folder = tempfile::tempdir().unwrap();
        let long_ago = Clock::at(EpochMs(86_400_000));
        let time = KnownTime::open(folder.path(), long_ago);
        assert!(time.now() >= WRITTEN, "a clock that says 1970");
        let told = WRITTEN.plus(40 * 86_400_000);
        time.at_least(told);
        time.at_least(told.plus(-86_400_000));
        assert!(time.now() >= told);
        // The next start, after the clock was set back.
        let again = KnownTime::open(folder.path(), Clock::at(WRITTEN));
        assert!(again.now() >= told);
        // A clock that is ahead counts while the agent runs, and is not stored.
        let ahead = KnownTime::open(folder.path(), Clock::at(told.plus(86_400_000)));
        assert!(ahead.now() >= told.plus(86_400_000));
        ahead.keep();
        let back = KnownTime::open(folder.path(), Clock::at(WRITTEN));
        assert!(back.now() < told.plus(86_400_000));
        // A damaged file does not make all certificates expire.
        std::fs::write(folder.path().join(FILE), "9223372036854775807").unwrap();
        assert!(KnownTime::open(folder.path(), long_ago).now() < LATEST);
        again.at_least(EpochMs(i64::MAX));
        assert!(again.now() < LATEST);
    }
}
