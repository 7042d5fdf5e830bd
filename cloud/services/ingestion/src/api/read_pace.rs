//! The pace at which an organisation's clients read samples. What a read costs, in the database and
//! here, grows with its cells (samples by columns): each organisation may read so many a second, and
//! who reads more waits. A stream goes on more slowly; a request that would wait for long is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::OrgId;
use http_stack::error::ApiError;
use tokio::time::Instant;

/// The cells that an organisation reads a second: 100 streams of ten machines each with ten channels
/// a second take a hundredth. As JSON they keep a processor busy for about a fifth of the time.
const CELLS_A_SECOND: f64 = 1_000_000.0;
/// The cells that an organisation may read at once: about 200 roasts.
const BURST: f64 = 2_000_000.0;
/// The most cells that one read counts for, so that an organisation that reads nothing else can read
/// a frame or a curve of any size.
const CELLS_MAX: usize = 8_000_000;
/// The longest time that a request waits. Less than a response may take.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// Organisations beyond this number push out those that have not read for a while.
const ORGS_MAX: usize = 10_000;

/// The pace of all organisations; clones share it.
#[derive(Clone, Default)]
pub struct ReadPace {
    /// When each organisation's cells will be paid for (GCRA: the bucket is full at that time).
    paid_at: Arc<Mutex<HashMap<OrgId, Instant>>>,
}

impl ReadPace {
    /// Waits until an organisation may have read `cells` more.
    pub async fn wait(&self, org: &OrgId, cells: usize) {
        if let Some(wait) = self.reserve(org, cells, Duration::MAX) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits until an organisation may have read `cells` more.
    ///
    /// # Errors
    /// 503 when that takes longer than a request may wait; nothing is counted then.
    pub async fn wait_in_request(&self, org: &OrgId, cells: usize) -> Result<(), ApiError> {
        let Some(wait) = self.reserve(org, cells, REQUEST_WAIT_MAX) else {
            let text = "your organisation reads more samples than it may at once; try again later";
            return Err(ApiError::Unavailable(text.to_owned()));
        };
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Counts cells; returns how long to wait for them, or `None` if that is longer than `most`.
    fn reserve(&self, org: &OrgId, cells: usize, most: Duration) -> Option<Duration> {
        let now = Instant::now();
        let takes = Duration::from_secs_f64(cells.min(CELLS_MAX) as f64 / CELLS_A_SECOND);
        let burst = Duration::from_secs_f64(BURST / CELLS_A_SECOND);
        let mut all = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ORGS_MAX && !all.contains_key(org) {
            all.retain(|_, paid_at| *paid_at > now);
            if all.len() >= ORGS_MAX {
                return Some(Duration::ZERO); // so many read at once: their requests are limited too
            }
        }
        let paid_at = all.get(org).copied().unwrap_or(now).max(now);
        let wait = (paid_at + takes).saturating_duration_since(now + burst);
        if wait > most {
            return None;
        }
        all.insert(org.clone(), paid_at + takes);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_organisation_that_reads_much_waits_and_no_other() {
        let pace = ReadPace::default();
        let (busy, quiet) = (OrgId::new("busy").unwrap(), OrgId::new("quiet").unwrap());
        let start = Instant::now();
        pace.wait(&busy, 2_000_000).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "the burst");
        pace.wait(&busy, 3_000_000).await;
        assert_eq!(start.elapsed().as_secs(), 3);
        pace.wait_in_request(&quiet, 1_000_000).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 3, "another organisation does not wait");
        pace.wait_in_request(&busy, 8_000_000).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 11);
        // A stream has counted, and waits.
        let waits = pace.reserve(&busy, 8_000_000, Duration::MAX).unwrap();
        assert!(waits > Duration::from_secs(7), "{waits:?}");
        let refused = pace.wait_in_request(&busy, 3_000_000).await.unwrap_err();
        assert!(matches!(refused, ApiError::Unavailable(_)));
        assert_eq!(start.elapsed().as_secs(), 11, "refused at once");
        pace.wait_in_request(&busy, 1_000_000).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 20, "and it cost nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_curve_can_be_read_by_an_organisation_that_reads_nothing_else() {
        let (pace, org) = (ReadPace::default(), OrgId::new("acme").unwrap());
        let start = Instant::now();
        for _ in 0..2 {
            pace.wait_in_request(&org, 288_000 * 60).await.unwrap();
        }
        assert_eq!(start.elapsed().as_secs(), 14);
    }
}
