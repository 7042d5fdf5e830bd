//! Warnings about what publishers send: a machine that sends the same mistake every second is
//! logged once a minute.

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

const EVERY: Duration = Duration::from_mins(1);
/// The maximum number of machines that are remembered. At this bound each new one evicts one that
/// was not warned about again, which may be logged sooner.
const REMEMBERED_MAX: usize = 10_000;

/// When each machine was last warned about, and how many warnings were left out since.
pub struct WarningLog {
    warned: Cache<String, (Instant, u64)>,
}

impl Default for WarningLog {
    fn default() -> Self {
        Self { warned: Cache::new(REMEMBERED_MAX) }
    }
}

impl WarningLog {
    /// Returns whether a warning about `machine` is due at `now`, with the number of warnings that
    /// were left out since the last one.
    pub fn is_due(&self, machine: &str, now: Instant) -> Option<u64> {
        match self.warned.get(machine) {
            Some((last, left_out)) if now.duration_since(last) < EVERY => {
                self.warned.insert(machine.to_owned(), (last, left_out.saturating_add(1)));
                None
            }
            before => {
                self.warned.insert(machine.to_owned(), (now, 0));
                Some(before.map_or(0, |(_, left_out)| left_out))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_warned_about_once_a_minute_with_the_number_left_out() {
        let (log, start) = (WarningLog::default(), Instant::now());
        assert_eq!(log.is_due("a/b/c", start), Some(0));
        for s in 1..60 {
            assert_eq!(log.is_due("a/b/c", start + Duration::from_secs(s)), None);
        }
        assert_eq!(log.is_due("a/b/d", start), Some(0), "another machine");
        assert_eq!(log.is_due("a/b/c", start + EVERY), Some(59));
        assert_eq!(log.is_due("a/b/c", start + EVERY), None);
    }
}
