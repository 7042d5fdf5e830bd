//! Logs the first refusal of each machine and reason, and counts all: a broken device must not fill
//! the log.

use contract::{Origin, Refusal};
use quick_cache::sync::Cache;

use crate::metric;

/// The maximum number of machines and reasons that are remembered. At this bound each new one
/// evicts one that was not refused again, which may be logged once more.
const REMEMBERED_MAX: usize = 10_000;

pub(super) struct RefusalLog {
    logged: Cache<(Origin, Refusal), ()>,
}

impl Default for RefusalLog {
    fn default() -> Self {
        Self::with_capacity(REMEMBERED_MAX)
    }
}

impl RefusalLog {
    fn with_capacity(remembered_max: usize) -> Self {
        Self { logged: Cache::new(remembered_max) }
    }

    /// Counts a refused message, and logs it if it is the first of its machine for this reason.
    pub(super) fn record(&self, origin: &Origin, refusal: Refusal, frame: Option<u64>) {
        metric::refused(refusal);
        if self.is_first(origin, refusal) {
            tracing::warn!(
                %origin, frame, reason = refusal.as_str(),
                "refused a frame: {refusal}; further ones of this kind are only counted"
            );
        }
    }

    fn is_first(&self, origin: &Origin, refusal: Refusal) -> bool {
        let key = (origin.clone(), refusal);
        let first = self.logged.get(&key).is_none();
        if first {
            self.logged.insert(key, ());
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(n: usize) -> Origin {
        format!("acme/leipzig/roaster-{n}").parse().unwrap()
    }

    #[test]
    fn a_machine_that_is_refused_again_and_again_is_logged_once() {
        let log = RefusalLog::with_capacity(100);
        assert!(log.is_first(&origin(0), Refusal::UnknownKey));
        assert!(log.is_first(&origin(0), Refusal::BadSignature), "another reason");
        for n in 1..1_000 {
            assert!(log.is_first(&origin(n), Refusal::UnknownKey));
            assert!(!log.is_first(&origin(0), Refusal::UnknownKey), "after {n} others");
            assert!(log.logged.len() <= 100);
        }
    }
}
