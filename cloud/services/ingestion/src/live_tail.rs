//! The live stream: follows the rows that any instance commits. It must never show a row that is
//! not committed.
//!
//! Arrival numbers come from a sequence, so two writers may commit them out of order: a missing
//! number is remembered and queried again for a while. The tail looks at the arrival numbers of all
//! organisations, and reads the frames of those that have subscribers.
//!
//! Rows that subscribers have not received yet are kept up to a number of bytes. Beyond it the
//! largest are dropped first: a subscriber that wanted a dropped row is disconnected, and resumes
//! from the database.
//!
//! A row that panics is left out. A batch that panics is skipped: all subscribers are disconnected,
//! and resume from the database.

mod arrivals;
mod kept_rows;
mod subscribers;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ::database::StoreError;
use contract::{OrgId, Origin};
use service::shutdown::CancellationToken;
use service::tasks::{self, Tasks};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use self::arrivals::{Arrivals, Batch};
use self::kept_rows::KeptRows;
use self::subscribers::{SubscribedOrgs, WantedOrgs};
use crate::row_json::{self, CommittedRow};
use crate::store::IngestStore;

/// How often commits of other instances are polled.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// The maximum memory of the rows that subscribers may still read, for frames and for events each.
const BEHIND_BYTES_MAX: usize = 12 * 1024 * 1024;
/// The shortest time between two passes: what is committed meanwhile is read at once.
const PASS_EVERY: Duration = Duration::from_millis(50);
const ROWS_A_PASS: i64 = 2_000;
/// A subscriber that is this many rows behind is disconnected; it resumes from its last id.
const BEHIND_MAX: usize = 4_096;
/// The number of missing arrival numbers that one query asks for.
const HOLES_A_QUERY: usize = 500;
/// The number of newest rows among which missing numbers are looked for at the start.
const LOOK_BACK: i64 = 256;
/// The longest wait for the first pass.
const SUBSCRIBE_TIME_MAX: Duration = Duration::from_secs(5);

/// A committed row, and the arrival numbers that were missing when it was read.
#[derive(Debug)]
pub struct LiveRow {
    pub row: CommittedRow,
    pub missing: Arc<[i64]>,
}

/// Tells the subscribers of a row; whether they want it, they see by its origin.
#[derive(Debug)]
pub struct Notice {
    pub origin: Origin,
    /// Gone if the row was dropped before the subscriber read it.
    pub row: Weak<LiveRow>,
}

/// How far the tail has read: all committed rows up to `arrival`, but for the missing ones, which it
/// still waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub arrival: i64,
    /// In ascending order.
    pub missing: Arc<[i64]>,
}

/// Each committed row after `position`, and those that are missing there once they are committed.
/// Rows up to `position` may come as well.
pub struct Subscription {
    pub notices: broadcast::Receiver<Arc<Notice>>,
    pub position: Position,
    pub place: SubscriberPlace,
}

/// A subscriber of an organisation, until it is dropped.
pub struct SubscriberPlace {
    feed: Arc<Feed>,
    org: OrgId,
}

impl Drop for SubscriberPlace {
    fn drop(&mut self) {
        self.feed.orgs().leave(&self.org);
    }
}

/// One kind of rows: frames or events.
struct Feed {
    /// Replaced to disconnect all subscribers.
    notices: Mutex<broadcast::Sender<Arc<Notice>>>,
    /// `None` while nothing is followed. It is set before the rows up to it are sent: a subscriber
    /// that missed one of them reads a position that includes it. Beside it the generation of the
    /// organisations whose rows are sent.
    position: watch::Sender<Option<(u64, Position)>>,
    orgs: Mutex<SubscribedOrgs>,
}

/// Sends committed rows to all subscribers.
#[derive(Clone)]
pub struct Tail {
    telemetry: Arc<Feed>,
    events: Arc<Feed>,
    wake: Arc<Notify>,
}

impl Feed {
    fn new() -> Self {
        let notices = Mutex::new(broadcast::channel(BEHIND_MAX).0);
        Self { notices, position: watch::channel(None).0, orgs: Mutex::default() }
    }

    fn orgs(&self) -> MutexGuard<'_, SubscribedOrgs> {
        self.orgs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self) -> WantedOrgs {
        self.orgs().wanted()
    }

    fn notices(&self) -> MutexGuard<'_, broadcast::Sender<Arc<Notice>>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the subscriptions. The subscribers resume from the database.
    fn disconnect(&self) {
        *self.notices() = broadcast::channel(BEHIND_MAX).0;
        self.position.send_replace(None);
    }
}

impl Tail {
    pub fn start(store: IngestStore, tasks: &Tasks, stop: CancellationToken) -> Self {
        let tail = Self {
            telemetry: Arc::new(Feed::new()),
            events: Arc::new(Feed::new()),
            wake: Arc::new(Notify::new()),
        };
        let followed = tail.clone();
        tasks.spawn_restarting_with("live-tail", false, move |was_started| {
            if std::mem::replace(was_started, true) {
                // What was read and not sent is lost.
                followed.disconnect();
            }
            Box::pin(follow(followed.clone(), store.clone(), stop.clone()))
        });
        tail
    }

    /// Returns the notifier that the pipeline fires at each commit of this instance.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Subscribes to an organisation's frames; `None` if the database has not answered in time.
    pub async fn telemetry(&self, org: &OrgId) -> Option<Subscription> {
        self.subscribe(&self.telemetry, org).await
    }

    /// Subscribes to an organisation's events; `None` if the database has not answered in time.
    pub async fn events(&self, org: &OrgId) -> Option<Subscription> {
        self.subscribe(&self.events, org).await
    }

    async fn subscribe(&self, feed: &Arc<Feed>, org: &OrgId) -> Option<Subscription> {
        let since = feed.orgs().join(org);
        let place = SubscriberPlace { feed: feed.clone(), org: org.clone() };
        // Before the position is read: a row sent in between comes twice, and is not missed.
        let notices = feed.notices().subscribe();
        let mut position = feed.position.subscribe();
        self.wake.notify_one();
        // A pass that began before the organisation came reads none of its rows.
        let known = position.wait_for(|known| known.as_ref().is_some_and(|(of, _)| *of >= since));
        let known = tokio::time::timeout(SUBSCRIBE_TIME_MAX, known).await.ok()?.ok()?.clone();
        known.map(|(_, position)| Subscription { notices, position, place })
    }

    fn has_subscribers(&self) -> bool {
        !self.telemetry.orgs().is_empty() || !self.events.orgs().is_empty()
    }

    fn disconnect(&self) {
        self.telemetry.disconnect();
        self.events.disconnect();
    }

    /// Makes further subscribers wait for the next pass.
    fn clear_positions(&self) {
        self.telemetry.position.send_replace(None);
        self.events.position.send_replace(None);
    }
}

/// What the tail has read of both kinds of rows.
struct Cursor {
    frames: Arrivals,
    events: Arrivals,
    kept_frames: KeptRows,
    kept_events: KeptRows,
}

impl Cursor {
    async fn begin(store: &IngestStore) -> Result<Self, StoreError> {
        let (frames, events) = store.newest_arrivals(LOOK_BACK).await?;
        let now = Instant::now();
        Ok(Self {
            frames: Arrivals::begin(&frames, now),
            events: Arrivals::begin(&events, now),
            kept_frames: KeptRows::default(),
            kept_events: KeptRows::default(),
        })
    }
}

async fn follow(tail: Tail, store: IngestStore, stop: CancellationToken) {
    let mut cursor: Option<Cursor> = None;
    let mut more = false;
    while !stop.is_cancelled() {
        if !more {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PASS_EVERY) => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tail.wake.notified() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
        }
        more = false;
        if !tail.has_subscribers() {
            tail.clear_positions();
            // A subscriber that came before the positions were cleared still has one of them.
            if !tail.has_subscribers() {
                cursor = None;
                continue;
            }
        }
        match tasks::isolate("live-batch", pass(&tail, &store, &mut cursor)).await {
            Ok(Ok(left)) => more = left,
            Ok(Err(error)) => {
                tracing::debug!(%error, "could not read the live stream; the next pass retries");
            }
            Err(panicked) => {
                tracing::error!(
                    error = %panicked,
                    "skipped a batch of the live stream; its subscribers resume from the database"
                );
                tail.disconnect();
                cursor = None;
            }
        }
    }
}

/// Sends the rows that have been committed since the pass before. Returns whether there may be
/// more.
async fn pass(
    tail: &Tail,
    store: &IngestStore,
    cursor: &mut Option<Cursor>,
) -> Result<bool, StoreError> {
    let cursor = match cursor {
        Some(cursor) => cursor,
        None => cursor.insert(Cursor::begin(store).await?),
    };
    let more_frames = pass_frames(tail, store, cursor).await?;
    let more_events = pass_events(tail, store, cursor).await?;
    Ok(more_frames || more_events)
}

async fn pass_frames(
    tail: &Tail,
    store: &IngestStore,
    cursor: &mut Cursor,
) -> Result<bool, StoreError> {
    let (now, wanted) = (Instant::now(), tail.telemetry.wanted());
    let mut late = Vec::new();
    for some in cursor.frames.missing(now).chunks(HOLES_A_QUERY) {
        late.extend(store.arrivals_at(some).await?);
    }
    let new = store.arrivals_after(cursor.frames.newest, ROWS_A_PASS).await?;
    let (batch, more) = Batch::choose(&late, &new, &wanted);
    let late = late_of(&batch.read, &cursor.frames);
    let frames = store.frames_of(&batch.read).await?;
    let roasts = store.running_sessions(frames.iter().map(|row| row.frame.chain_no)).await?;
    for arrival in batch.seen {
        cursor.frames.see(arrival, now);
    }
    let position = publish_position(&tail.telemetry, &cursor.frames, wanted.generation);
    for row in frames {
        let arrival = row.frame.arrival;
        if let Some(row) = committed(arrival, || row_json::committed_frame(row, &roasts)) {
            let missing = missing_after(&position, &late, arrival);
            send(&tail.telemetry, &mut cursor.kept_frames, row, missing).await;
        }
    }
    Ok(more)
}

async fn pass_events(
    tail: &Tail,
    store: &IngestStore,
    cursor: &mut Cursor,
) -> Result<bool, StoreError> {
    let (now, wanted) = (Instant::now(), tail.events.wanted());
    let mut arrived = Vec::new();
    for some in cursor.events.missing(now).chunks(HOLES_A_QUERY) {
        arrived.extend(store.events_at(None, some).await?);
    }
    let late: Vec<i64> = arrived.iter().map(|row| row.event.arrival).collect();
    arrived.extend(store.events_after(None, cursor.events.newest, ROWS_A_PASS).await?);
    let more = is_full(arrived.len().saturating_sub(late.len()));
    for row in &arrived {
        cursor.events.see(row.event.arrival, now);
    }
    let position = publish_position(&tail.events, &cursor.events, wanted.generation);
    for row in arrived.into_iter().filter(|row| wanted.wants(&row.org_id)) {
        let arrival = row.event.arrival;
        if let Some(row) = committed(arrival, || row_json::committed_event(&row.org_id, row.event))
        {
            let missing = missing_after(&position, &late, arrival);
            send(&tail.events, &mut cursor.kept_events, row, missing).await;
        }
    }
    Ok(more)
}

/// Returns a row for the streams. One that panics is left out.
fn committed(arrival: i64, convert: impl FnOnce() -> Option<CommittedRow>) -> Option<CommittedRow> {
    tasks::catch("live-row", convert).unwrap_or_else(|panicked| {
        tracing::error!(error = %panicked, arrival, "left a row out of the live stream");
        None
    })
}

fn is_full(rows: usize) -> bool {
    i64::try_from(rows).is_ok_and(|rows| rows >= ROWS_A_PASS)
}

fn publish_position(feed: &Feed, arrivals: &Arrivals, generation: u64) -> Position {
    let position = arrivals.position();
    let known = Some((generation, position.clone()));
    feed.position.send_if_modified(|published| {
        let changed = *published != known;
        if changed {
            *published = known;
        }
        changed
    });
    position
}

/// Returns which of the frames that are read were missing until now.
fn late_of(read: &[i64], before: &Arrivals) -> Vec<i64> {
    read.iter().copied().filter(|arrival| *arrival <= before.newest).collect()
}

/// Returns the numbers that a subscriber lacks after the row `sent`: those that are missing at
/// `position`, and the `late` ones of this pass that are sent after it.
fn missing_after(position: &Position, late: &[i64], sent: i64) -> Arc<[i64]> {
    let unsent: Vec<i64> = late.iter().copied().filter(|arrival| *arrival > sent).collect();
    if unsent.is_empty() {
        return position.missing.clone();
    }
    let all: BTreeSet<i64> = position.missing.iter().chain(&unsent).copied().collect();
    all.into_iter().collect()
}

/// Sends a row, then lets the subscribers take it before the next one.
async fn send(feed: &Feed, kept: &mut KeptRows, row: CommittedRow, missing: Arc<[i64]>) {
    let origin = row.origin.clone();
    let row = Arc::new(LiveRow { row, missing });
    // It is fine if there is no subscriber.
    let _ = feed.notices().send(Arc::new(Notice { origin, row: Arc::downgrade(&row) }));
    kept.push(row, BEHIND_BYTES_MAX);
    tokio::task::yield_now().await;
}

#[cfg(test)]
mod tests {
    use super::kept_rows::tests::row;
    use super::*;

    #[test]
    fn a_row_that_panics_is_left_out_of_the_live_stream() {
        assert!(committed(7, || panic!("odd")).is_none());
        assert!(committed(7, || Arc::into_inner(row(8, 1)).map(|live| live.row)).is_some());
    }

    #[tokio::test]
    async fn subscribers_of_a_skipped_batch_are_disconnected_and_new_ones_wait_for_the_next() {
        let feed = Feed::new();
        publish_position(&feed, &Arrivals::begin(&[5], Instant::now()), 1);
        let mut notices = feed.notices().subscribe();
        feed.disconnect();
        assert!(matches!(notices.recv().await, Err(broadcast::error::RecvError::Closed)));
        assert!(feed.position.borrow().is_none());
        let mut kept = KeptRows::default();
        let mut notices = feed.notices().subscribe();
        let sent = Arc::into_inner(row(6, 1)).unwrap().row;
        send(&feed, &mut kept, sent, Arc::from([])).await;
        assert!(notices.recv().await.unwrap().row.upgrade().is_some());
    }

    #[test]
    fn a_client_that_leaves_between_late_rows_knows_the_ones_that_follow() {
        let mut arrivals = Arrivals::begin(&[10, 9, 6, 5, 3, 1], Instant::now());
        let late = late_of(&[4, 7, 8, 11, 12], &arrivals);
        assert_eq!(late, [4, 7, 8]);
        for arrival in [4, 7, 8, 11, 12] {
            arrivals.see(arrival, Instant::now());
        }
        let position = arrivals.position();
        let after = |sent| missing_after(&position, &late, sent).to_vec();
        assert_eq!(after(4), [2, 7, 8]);
        assert_eq!(after(7), [2, 8]);
        assert_eq!((after(8), after(11), after(12)), (vec![2], vec![2], vec![2]));
    }
}
