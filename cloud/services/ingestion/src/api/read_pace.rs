//! The pace at which an organisation's clients read samples. What a read costs, in the database and
//! here, grows with its cells (samples by columns): each organisation may read so many a second, and
//! who reads more waits. A stream goes on more slowly; a request that would wait for long is refused.
//!
//! What has been read waits in memory, so few reads of an organisation are under way at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::OrgId;
use http_stack::error::ApiError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// An organisation may read as many cells at once as it may read in this time.
const BURST: Duration = Duration::from_secs(10);
/// The longest time that one read counts for, so that an organisation that reads nothing else can
/// read a frame or a curve of any size.
const ONE_READ_MAX: Duration = BURST;
/// The longest time that a request waits. Less than a response may take.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// The most replays of an organisation, and the most requests, that read at once.
const TURNS: usize = 4;
/// Organisations beyond this number push out those that have not read for a while.
const ORGS_MAX: usize = 10_000;

/// The pace of all organisations; clones share it.
#[derive(Clone)]
pub struct ReadPace {
    cells_per_second: f64,
    replays: Turns,
    requests: Turns,
    /// When each organisation's cells will be paid for (GCRA: the bucket is full at that time).
    paid_at: Arc<Mutex<HashMap<OrgId, Instant>>>,
}

impl ReadPace {
    /// Creates the pace of so many cells a second for each organisation.
    pub fn new(cells_per_second: u32) -> Self {
        Self {
            cells_per_second: cells_per_second.max(1).into(),
            replays: Turns::default(),
            requests: Turns::default(),
            paid_at: Arc::default(),
        }
    }

    /// Waits for the turn of a stream to replay rows, until it is dropped.
    pub async fn replay_turn(&self, org: &OrgId) -> Option<OwnedSemaphorePermit> {
        self.replays.of(org).acquire_owned().await.ok()
    }

    /// Waits for the turn of a request to read rows, until it is dropped.
    ///
    /// # Errors
    /// 503 when that takes longer than a request may wait.
    pub async fn request_turn(
        &self,
        org: &OrgId,
    ) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let turn = self.requests.of(org).acquire_owned();
        match tokio::time::timeout(REQUEST_WAIT_MAX, turn).await {
            Ok(turn) => Ok(turn.ok()),
            Err(_) => Err(reads_too_much()),
        }
    }

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
            return Err(reads_too_much());
        };
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Counts cells; returns how long to wait for them, or `None` if that is longer than `most`.
    fn reserve(&self, org: &OrgId, cells: usize, most: Duration) -> Option<Duration> {
        let now = Instant::now();
        let takes_s = (cells as f64 / self.cells_per_second).min(ONE_READ_MAX.as_secs_f64());
        let takes = Duration::from_secs_f64(takes_s);
        let mut all = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ORGS_MAX && !all.contains_key(org) {
            all.retain(|_, paid_at| *paid_at > now);
            if all.len() >= ORGS_MAX {
                return Some(Duration::ZERO); // so many read at once: their requests are limited too
            }
        }
        let paid_at = all.get(org).copied().unwrap_or(now).max(now);
        let wait = (paid_at + takes).saturating_duration_since(now + BURST);
        if wait > most {
            return None;
        }
        all.insert(org.clone(), paid_at + takes);
        Some(wait)
    }
}

fn reads_too_much() -> ApiError {
    let text = "your organisation reads more samples than it may at once; try again later";
    ApiError::Unavailable(text.to_owned())
}

/// The turns of each organisation.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<HashMap<OrgId, Arc<Semaphore>>>>);

impl Turns {
    fn of(&self, org: &OrgId) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ORGS_MAX {
            // A turn that is taken or waited for holds its semaphore.
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        all.entry(org.clone()).or_insert_with(|| Arc::new(Semaphore::new(TURNS))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_organisation_that_reads_much_waits_and_no_other() {
        let pace = ReadPace::new(100_000);
        let (busy, quiet) = (OrgId::new("busy").unwrap(), OrgId::new("quiet").unwrap());
        let start = Instant::now();
        pace.wait(&busy, 1_000_000).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "the burst");
        pace.wait(&busy, 300_000).await;
        assert_eq!(start.elapsed().as_secs(), 3);
        pace.wait_in_request(&quiet, 1_000_000).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 3, "another organisation does not wait");
        pace.wait_in_request(&busy, 800_000).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 11);
        // A stream has counted, and waits.
        let waits = pace.reserve(&busy, 800_000, Duration::MAX).unwrap();
        assert!(waits > Duration::from_secs(7), "{waits:?}");
        let refused = pace.wait_in_request(&busy, 300_000).await.unwrap_err();
        assert!(matches!(refused, ApiError::Unavailable(_)));
        assert_eq!(start.elapsed().as_secs(), 11, "refused at once");
        pace.wait_in_request(&busy, 100_000).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 20, "and it cost nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn few_reads_of_an_organisation_are_under_way_at_once() {
        let pace = ReadPace::new(100_000);
        let (busy, quiet) = (OrgId::new("busy").unwrap(), OrgId::new("quiet").unwrap());
        let mut turns = Vec::new();
        for _ in 0..TURNS {
            turns.push((pace.replay_turn(&busy).await, pace.request_turn(&busy).await.unwrap()));
        }
        assert!(pace.request_turn(&busy).await.is_err(), "after the longest wait");
        assert!(pace.request_turn(&quiet).await.is_ok());
        let waiting = tokio::time::timeout(REQUEST_WAIT_MAX, pace.replay_turn(&busy));
        assert!(waiting.await.is_err(), "a stream waits");
        turns.pop();
        assert!(pace.replay_turn(&busy).await.is_some());
        assert!(pace.request_turn(&busy).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_curve_can_be_read_by_an_organisation_that_reads_nothing_else() {
        let (pace, org) = (ReadPace::new(100_000), OrgId::new("acme").unwrap());
        let start = Instant::now();
        for _ in 0..2 {
            pace.wait_in_request(&org, 288_000 * 60).await.unwrap();
        }
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}
