//! The live stream: follows the rows that any instance commits. It must never show a row that is
//! not committed.
//!
//! Arrival numbers come from a sequence, so two writers may commit them out of order: a missing
//! number is remembered and queried again for a while. Rows are read only while there are
//! subscribers.
//!
//! Rows that subscribers have not received yet are kept up to a number of bytes. Beyond it the
//! largest are dropped first: a subscriber that wanted a dropped row is disconnected, and resumes
//! from the database.
//!
//! A row that panics is left out. A batch that panics is skipped: all subscribers are disconnected,
//! and resume from the database.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ::database::StoreError;
use contract::Origin;
use service::shutdown::CancellationToken;
use service::tasks::{self, Tasks};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use crate::row_json::{self, CommittedRow};
use crate::store::IngestStore;

/// How often commits of other instances are polled.
const POLL_EVERY: Duration = Duration::from_millis(200);
const ROWS_A_PASS: i64 = 2_000;
/// A subscriber that is this many rows behind is disconnected; it resumes from its last id.
const BEHIND_MAX: usize = 4_096;
/// The maximum memory of the rows that subscribers may still read, for frames and for events each.
const BEHIND_BYTES_MAX: usize = 24 * 1024 * 1024;
/// An arrival number that is missing for longer belongs to a transaction that was rolled back.
const HOLE_TIME_MAX: Duration = Duration::from_secs(10);
const HOLES_MAX: usize = 10_000;
/// The number of missing arrival numbers that one query asks for.
const HOLES_A_QUERY: usize = 500;
/// A pass that has found this many late frames reads no more of them: they may be large.
const LATE_MAX: usize = 4;
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
}

/// One kind of rows: frames or events.
struct Feed {
    /// Replaced to disconnect all subscribers.
    notices: Mutex<broadcast::Sender<Arc<Notice>>>,
    /// `None` while nothing is followed. It is set before the rows up to it are sent: a subscriber
    /// that missed one of them reads a position that includes it.
    position: watch::Sender<Option<Position>>,
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
        Self { notices, position: watch::channel(None).0 }
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

    /// Subscribes to frames; `None` if the database has not answered in time.
    pub async fn telemetry(&self) -> Option<Subscription> {
        self.subscribe(&self.telemetry).await
    }

    /// Subscribes to events; `None` if the database has not answered in time.
    pub async fn events(&self) -> Option<Subscription> {
        self.subscribe(&self.events).await
    }

    async fn subscribe(&self, feed: &Feed) -> Option<Subscription> {
        // Before the position is read: a row sent in between comes twice, and is not missed.
        let notices = feed.notices().subscribe();
        let mut position = feed.position.subscribe();
        self.wake.notify_one();
        let known = position.wait_for(Option::is_some);
        let known = tokio::time::timeout(SUBSCRIBE_TIME_MAX, known).await.ok()?.ok()?.clone();
        known.map(|position| Subscription { notices, position })
    }

    fn has_subscribers(&self) -> bool {
        self.telemetry.notices().receiver_count() + self.events.notices().receiver_count() > 0
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

/// The arrival numbers of one kind of rows that have been seen.
struct Arrivals {
    newest: i64,
    /// The numbers below `newest` that have not been seen, and since when they are missing.
    holes: BTreeMap<i64, Instant>,
}

impl Arrivals {
    /// Begins behind the newest numbers, given the newest first.
    fn begin(newest_first: &[i64], now: Instant) -> Self {
        let oldest = newest_first.last().copied().unwrap_or(0);
        let mut arrivals = Self { newest: oldest, holes: BTreeMap::new() };
        for arrival in newest_first.iter().rev() {
            arrivals.see(*arrival, now);
        }
        arrivals
    }

    /// Notes a row: one that was missing, or one after all others.
    fn see(&mut self, arrival: i64, now: Instant) {
        self.holes.remove(&arrival);
        if arrival > self.newest {
            let free = HOLES_MAX.saturating_sub(self.holes.len());
            let missing = (self.newest.saturating_add(1)..arrival).take(free);
            self.holes.extend(missing.map(|hole| (hole, now)));
            self.newest = arrival;
        }
    }

    /// Gives up the numbers that have been missing for too long; returns the others.
    fn missing(&mut self, now: Instant) -> Vec<i64> {
        self.holes.retain(|_, since| now.duration_since(*since) < HOLE_TIME_MAX);
        self.holes.keys().copied().collect()
    }

    fn position(&self) -> Position {
        Position { arrival: self.newest, missing: self.holes.keys().copied().collect() }
    }
}

/// The rows that subscribers may still read, the oldest first.
#[derive(Default)]
struct KeptRows {
    rows: VecDeque<Arc<LiveRow>>,
    bytes: usize,
}

impl KeptRows {
    /// Keeps a row. Drops the oldest of too many rows, and the largest ones of too large rows.
    fn push(&mut self, row: Arc<LiveRow>, bytes_max: usize) {
        self.bytes += row.row.memory();
        self.rows.push_back(row);
        while self.bytes > bytes_max || self.rows.len() > BEHIND_MAX {
            let index = if self.bytes > bytes_max {
                // The oldest of equal ones.
                let rows = self.rows.iter().enumerate().rev();
                rows.max_by_key(|(_, row)| row.row.memory()).map_or(0, |(index, _)| index)
            } else {
                0
            };
            let Some(dropped) = self.rows.remove(index) else { break };
            self.bytes = self.bytes.saturating_sub(dropped.row.memory());
        }
    }
}

async fn follow(tail: Tail, store: IngestStore, stop: CancellationToken) {
    let mut cursor: Option<Cursor> = None;
    let mut more = false;
    while !stop.is_cancelled() {
        if !more {
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
    let now = Instant::now();
    let mut arrived = Vec::new();
    for some in cursor.frames.missing(now).chunks(HOLES_A_QUERY) {
        arrived.extend(store.frames_at(None, some).await?);
        if arrived.len() >= LATE_MAX {
            break; // the next pass finds the others
        }
    }
    let late = arrived.len();
    arrived.extend(store.frames_after(None, cursor.frames.newest, ROWS_A_PASS).await?);
    let roasts = store.running_sessions(arrived.iter().map(|row| row.frame.chain_no)).await?;
    let samples: usize = arrived.iter().skip(late).map(|row| row.frame.len()).sum();
    let more = samples >= contract::frame::SAMPLES_MAX
        || late >= LATE_MAX
        || is_full(arrived.len() - late);
    for row in &arrived {
        cursor.frames.see(row.frame.arrival, now);
    }
    let position = publish_position(&tail.telemetry, &cursor.frames);
    for row in arrived {
        let arrival = row.frame.arrival;
        if let Some(row) = committed(arrival, || row_json::committed_frame(row, &roasts)) {
            send(&tail.telemetry, &mut cursor.kept_frames, row, &position).await;
        }
    }
    let mut arrived = Vec::new();
    for some in cursor.events.missing(now).chunks(HOLES_A_QUERY) {
        arrived.extend(store.events_at(None, some).await?);
    }
    let late = arrived.len();
    arrived.extend(store.events_after(None, cursor.events.newest, ROWS_A_PASS).await?);
    let more = more || is_full(arrived.len() - late);
    for row in &arrived {
        cursor.events.see(row.event.arrival, now);
    }
    let position = publish_position(&tail.events, &cursor.events);
    for row in arrived {
        let arrival = row.event.arrival;
        if let Some(row) = committed(arrival, || row_json::committed_event(&row.org_id, row.event))
        {
            send(&tail.events, &mut cursor.kept_events, row, &position).await;
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

fn publish_position(feed: &Feed, arrivals: &Arrivals) -> Position {
    let position = arrivals.position();
    feed.position.send_if_modified(|published| {
        let changed = published.as_ref() != Some(&position);
        if changed {
            *published = Some(position.clone());
        }
        changed
    });
    position
}

/// Sends a row, then lets the subscribers take it before the next one.
async fn send(feed: &Feed, kept: &mut KeptRows, row: CommittedRow, position: &Position) {
    let origin = row.origin.clone();
    let row = Arc::new(LiveRow { row, missing: position.missing.clone() });
    // It is fine if there is no subscriber.
    let _ = feed.notices().send(Arc::new(Notice { origin, row: Arc::downgrade(&row) }));
    kept.push(row, BEHIND_BYTES_MAX);
    tokio::task::yield_now().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ArrivedFrame, FrameRow};

    fn row(arrival: i64, samples: i32) -> Arc<LiveRow> {
        let frame = FrameRow {
            chain_no: 1,
            number: 1,
            machine_no: 1,
            arrival,
            boot: None,
            mono_ms: 0,
            first_seq: 0,
            t0_ms: 1_760_000_000_000,
            wall_ms: None,
            offsets_ms: (0..samples).collect(),
            values: Default::default(),
            extras: None,
            quality: None,
            trust: 0,
            received_ms: 0,
            published: None,
        };
        let arrived = ArrivedFrame {
            org_id: "acme".to_owned(),
            site_id: "leipzig".to_owned(),
            machine_id: "r-1".to_owned(),
            kid: String::new(),
            frame,
        };
        let row = row_json::committed_frame(arrived, &std::collections::HashMap::new()).unwrap();
        Arc::new(LiveRow { row, missing: Arc::from([]) })
    }

    #[test]
    fn numbers_that_are_missing_are_known_until_they_come_or_time_out() {
        let now = Instant::now();
        let mut arrivals = Arrivals::begin(&[9, 7, 6, 3], now);
        assert_eq!(arrivals.position(), Position { arrival: 9, missing: [4, 5, 8].into() });
        arrivals.see(5, now);
        arrivals.see(11, now + Duration::from_secs(5));
        assert_eq!(arrivals.missing(now + Duration::from_secs(9)), [4, 8, 10]);
        assert_eq!(arrivals.missing(now + Duration::from_secs(11)), [10]);
        arrivals.see(1_000_000, now);
        assert_eq!(arrivals.holes.len(), HOLES_MAX, "bounded");
        assert_eq!(Arrivals::begin(&[], now).position().arrival, 0);
    }

    #[test]
    fn a_row_that_panics_is_left_out_of_the_live_stream() {
        assert!(committed(7, || panic!("odd")).is_none());
        assert!(committed(7, || Arc::into_inner(row(8, 1)).map(|live| live.row)).is_some());
    }

    #[tokio::test]
    async fn subscribers_of_a_skipped_batch_are_disconnected_and_new_ones_wait_for_the_next() {
        let feed = Feed::new();
        publish_position(&feed, &Arrivals::begin(&[5], Instant::now()));
        let mut notices = feed.notices().subscribe();
        feed.disconnect();
        assert!(matches!(notices.recv().await, Err(broadcast::error::RecvError::Closed)));
        assert!(feed.position.borrow().is_none());
        let mut kept = KeptRows::default();
        let mut notices = feed.notices().subscribe();
        let sent = Arc::into_inner(row(6, 1)).unwrap().row;
        send(&feed, &mut kept, sent, &Position { arrival: 6, missing: Arc::from([]) }).await;
        assert!(notices.recv().await.unwrap().row.upgrade().is_some());
    }

    #[test]
    fn large_rows_are_dropped_before_small_ones() {
        let mut kept = KeptRows::default();
        for arrival in 0..20 {
            kept.push(row(arrival, 10), 100_000);
            kept.push(row(1_000 + arrival, 4_096), 100_000);
            assert!(kept.bytes <= 100_000);
        }
        let small = kept.rows.iter().filter(|row| row.row.arrival < 1_000).count();
        assert_eq!(small, 20, "rows of another machine push none of them out");
        for arrival in 0..5_000 {
            kept.push(row(arrival, 1), usize::MAX);
        }
        assert_eq!(kept.rows.len(), BEHIND_MAX);
    }
}
