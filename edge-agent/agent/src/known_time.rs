//! The date as far as nobody can turn it back. A gateway without a clock chip wakes up in 1970, and
//! whoever holds one can set it to any day: what expires must not begin to count again.
//!
//! It is never before this program was made, before what the fleet has said over TLS, before our own
//! certificate was issued, or before what was known at the last start; from each of these on it runs
//! with the clock that only runs forward. The wall clock may be ahead of it, never behind.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use contract::EpochMs;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::clock::Clock;
use crate::identity::write_whole;

/// 2026-11-22: no program of ours runs before it was written.
const WRITTEN: EpochMs = EpochMs(1_795_305_600_000);
/// A file that says more is damaged; believed, it would end every certificate for ever.
const LATEST: EpochMs = EpochMs(WRITTEN.0 + 30 * 365 * 86_400_000);
const FILE: &str = "known-time";

/// The date that expiries are held against.
#[derive(Clone)]
pub struct KnownTime {
    clock: Clock,
    /// No earlier than this, when the agent had run for so many ms.
    known: Arc<Mutex<(EpochMs, u64)>>,
    /// What the fleet said in this run, and when the agent had run for so many ms.
    told: Arc<Mutex<Option<(EpochMs, u64)>>>,
    file: PathBuf,
}

impl KnownTime {
    /// What was known when the agent last ran, and the wall clock.
    #[must_use]
    pub fn open(folder: &Path, clock: Clock) -> Self {
        let file = folder.join(FILE);
        let kept = std::fs::read_to_string(&file).ok();
        let kept = kept.and_then(|text| text.trim().parse().ok()).map_or(WRITTEN, EpochMs);
        let known = if kept.0 > LATEST.0 { WRITTEN } else { kept.max(WRITTEN) };
        let known = Arc::new(Mutex::new((known, clock.mono_ms())));
        Self { clock, known, told: Arc::default(), file }
    }

    #[must_use]
    pub fn now(&self) -> EpochMs {
        self.clock.wall().max(self.floor())
    }

    /// The fleet's own time, once it has said it in this run; else [`KnownTime::now`]. A clock that is
    /// far ahead must not have certificates renewed again and again.
    #[must_use]
    pub fn by_the_fleet(&self) -> EpochMs {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.map_or_else(|| self.now(), |(at, mono_ms)| self.since(at, mono_ms))
    }

    /// The fleet has said what time it is.
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

    /// Somebody who is believed says that it is at least this late.
    pub fn at_least(&self, at: EpochMs) {
        if at.0 > LATEST.0 {
            return;
        }
        if at > self.floor() {
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = (at, self.clock.mono_ms());
        }
        self.keep();
    }

    /// Writes down what is known, for the next start.
    pub fn keep(&self) {
        if let Err(error) = write_whole(&self.file, self.floor().0.to_string().as_bytes()) {
            tracing::debug!(%error, "could not write down what time it is");
        }
    }
}

impl std::fmt::Debug for KnownTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KnownTime({})", self.now())
    }
}

/// For TLS: with a clock in 1970 no certificate is good yet, and the time from the network is behind
/// the very connections that need one.
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
        // The next start, and the clock was set back.
        let again = KnownTime::open(folder.path(), Clock::at(WRITTEN));
        assert!(again.now() >= told);
        // A clock ahead counts while it runs, and is not remembered.
        let ahead = KnownTime::open(folder.path(), Clock::at(told.plus(86_400_000)));
        assert!(ahead.now() >= told.plus(86_400_000));
        ahead.keep();
        let back = KnownTime::open(folder.path(), Clock::at(WRITTEN));
        assert!(back.now() < told.plus(86_400_000));
        // And a damaged file does not end everything.
        std::fs::write(folder.path().join(FILE), "9223372036854775807").unwrap();
        assert!(KnownTime::open(folder.path(), long_ago).now() < LATEST);
        again.at_least(EpochMs(i64::MAX));
        assert!(again.now() < LATEST);
    }
}
