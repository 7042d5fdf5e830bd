//! What has been found about receipts that do not fit yet. Pure.
//!
//! Counting a receipt's frames is the expensive part, and its result cannot change: stored frames
//! stay as they are. So a digest that differs is found once. What a receipt still lacks is
//! requested again at growing intervals, and at once when the lack has changed.

use std::time::Duration;

use contract::{Digest, FrameRange};
use quick_cache::sync::Cache;
use tokio::time::Instant;

/// The maximum number of remembered receipts. At this bound each new one evicts one that is rarely
/// looked at; an evicted one is checked again.
const RECEIPTS_MAX: usize = 50_000;
/// The wait before a verdict is sent again: the first, doubled each time, and the longest.
const RESEND: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));

/// Why a receipt does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Frames have not arrived.
    Frames(Vec<FrameRange>),
    /// All frames have arrived, and their digest is another.
    Digest,
}

#[derive(Debug, Clone)]
struct Remembered {
    /// The digest of the signed receipt: a session may get another one.
    receipt: Digest,
    lack: Lack,
    wait: Duration,
    resend: Instant,
}

/// The remembered verdicts, by organisation and session.
pub struct Verdicts(Cache<(String, String), Remembered>);

impl Default for Verdicts {
    fn default() -> Self {
        Self(Cache::new(RECEIPTS_MAX))
    }
}

impl Verdicts {
    /// Returns whether a receipt's digest is known to differ.
    pub fn digest_differs(&self, session: &(String, String), receipt: Digest) -> bool {
        let known = self.0.get(session);
        known.is_some_and(|known| known.receipt == receipt && known.lack == Lack::Digest)
    }

    /// Remembers what a receipt lacks; returns whether the gateway is to be told now.
    pub fn note(
        &self,
        session: (String, String),
        receipt: Digest,
        lack: Lack,
        now: Instant,
    ) -> bool {
        let known = self.0.get(&session);
        let same = known.filter(|known| known.receipt == receipt && known.lack == lack);
        let wait = match same {
            Some(same) if now < same.resend => return false,
            Some(same) => same.wait.saturating_mul(2).min(RESEND.1),
            None => RESEND.0,
        };
        self.0.insert(session, Remembered { receipt, lack, wait, resend: now + wait });
        true
    }

    /// Forgets a receipt, which fits by now.
    pub fn forget(&self, session: &(String, String)) {
        self.0.remove(session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_that_never_fits_is_told_at_growing_intervals() {
        let (verdicts, begin) = (Verdicts::default(), Instant::now());
        let session = ("acme".to_owned(), "S-1".to_owned());
        let (receipt, other) = (Digest([1; 32]), Digest([2; 32]));
        let note = |seconds, lack: Lack| {
            let now = begin + Duration::from_secs(seconds);
            verdicts.note(session.clone(), receipt, lack, now)
        };
        let missing = |last| Lack::Frames(vec![FrameRange { first: 7, last }]);
        let told: Vec<u64> = (0..3_600).filter(|second| note(*second, missing(9))).collect();
        assert_eq!(told[..6], [0, 5, 15, 35, 75, 155]);
        assert!((12..=20).contains(&told.len()), "{told:?}");
        assert!(note(3_601, missing(8)), "a part has arrived");
        assert!(!verdicts.digest_differs(&session, receipt));
        assert!(note(3_602, Lack::Digest));
        assert!(!note(3_603, Lack::Digest));
        assert!(verdicts.digest_differs(&session, receipt), "it is not counted again");
        assert!(!verdicts.digest_differs(&session, other), "another receipt is");
        verdicts.forget(&session);
        assert!(!verdicts.digest_differs(&session, receipt));
    }
}
