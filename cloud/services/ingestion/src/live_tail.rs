//! The live stream: follows the rows that any instance commits. It must never show a row that is
//! not committed.
//!
//! Arrival numbers come from a sequence, so two writers may commit them out of order: a missing
//! number is remembered and queried again for a while. Rows are read only while there are
//! subscribers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::database::StoreError;
use service::shutdown::CancellationToken;
use service::tasks::Tasks;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::row_json::{self, CommittedRow};
use crate::store::IngestStore;

/// How often commits of other instances are polled.
const POLL_EVERY: Duration = Duration::from_millis(200);
const ROWS_A_PASS: i64 = 2_000;
/// A subscriber that is this many rows behind is disconnected; it resumes from its last id.
const BEHIND_MAX: usize = 4_096;
/// An arrival number that is missing for longer belongs to a transaction that was rolled back.
const HOLE_TIME_MAX: Duration = Duration::from_secs(10);
const HOLES_MAX: usize = 10_000;

/// Sends committed rows to all subscribers.
#[derive(Clone)]
pub struct Tail {
    telemetry: broadcast::Sender<Arc<CommittedRow>>,
    events: broadcast::Sender<Arc<CommittedRow>>,
    wake: Arc<Notify>,
}

impl Tail {
    pub fn start(store: IngestStore, tasks: &Tasks, stop: CancellationToken) -> Self {
        let tail = Self {
            telemetry: broadcast::channel(BEHIND_MAX).0,
            events: broadcast::channel(BEHIND_MAX).0,
            wake: Arc::new(Notify::new()),
        };
        tasks.spawn("live-tail", follow(tail.clone(), store, stop));
        tail
    }

    /// Returns the notifier that the pipeline fires at each commit of this instance.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    pub fn telemetry(&self) -> broadcast::Receiver<Arc<CommittedRow>> {
        self.telemetry.subscribe()
    }

    pub fn events(&self) -> broadcast::Receiver<Arc<CommittedRow>> {
        self.events.subscribe()
    }

    fn has_subscribers(&self) -> bool {
        self.telemetry.receiver_count() + self.events.receiver_count() > 0
    }
}

/// The position up to which the tail has read.
struct Cursor {
    frames: i64,
    events: i64,
    holes: BTreeMap<i64, Instant>,
}

async fn follow(tail: Tail, store: IngestStore, stop: CancellationToken) {
    let mut cursor: Option<Cursor> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tail.wake.notified() => {}
            () = tokio::time::sleep(POLL_EVERY) => {}
        }
        if !tail.has_subscribers() {
            cursor = None;
            continue;
        }
        if let Err(error) = pass(&tail, &store, &mut cursor).await {
            tracing::debug!(%error, "could not read the live stream; the next pass retries");
        }
    }
}

async fn pass(
    tail: &Tail,
    store: &IngestStore,
    cursor: &mut Option<Cursor>,
) -> Result<(), StoreError> {
    let at = if let Some(at) = cursor {
        at
    } else {
        let (frames, events) = store.newest_arrivals().await?;
        cursor.insert(Cursor { frames, events, holes: BTreeMap::new() })
    };
    let mut arrived = store.frames_after(None, at.frames, ROWS_A_PASS).await?;
    let now = Instant::now();
    at.holes.retain(|_, since| now.duration_since(*since) < HOLE_TIME_MAX);
    for hole in at.holes.keys().copied().collect::<Vec<_>>() {
        if let Some(late) = store.frame_at(hole).await? {
            at.holes.remove(&hole);
            arrived.push(late);
        }
    }
    let roasts = store.running_sessions(arrived.iter().map(|row| row.frame.chain_no)).await?;
    for row in arrived {
        let arrival = row.frame.arrival;
        if arrival > at.frames {
            for hole in (at.frames + 1..arrival).take(HOLES_MAX - at.holes.len().min(HOLES_MAX)) {
                at.holes.insert(hole, now);
            }
            at.frames = arrival;
        }
        if let Some(live) = row_json::committed_frame(row, &roasts) {
            // It is fine if there is no subscriber.
            let _ = tail.telemetry.send(Arc::new(live));
        }
    }
    for (org, row) in store.events_after(None, at.events, ROWS_A_PASS).await? {
        at.events = at.events.max(row.arrival);
        if let Some(live) = row_json::committed_event(&org, row) {
            let _ = tail.events.send(Arc::new(live));
        }
    }
    Ok(())
}
