//! Tests of whole messages on SQLite: from the bytes of a publisher to what clients read.
#![allow(clippy::cast_possible_truncation, clippy::float_cmp)] // small, exact numbers

mod content;
mod roasts;
mod times;

use serde_json::{Value, json};

use super::*;
use crate::row_json;
use crate::store::{Outcome, SessionFilter};

const NOW: EpochMs = EpochMs(1_795_000_000_000);

/// A publisher of one machine, and what the cloud has stored of it.
struct Publisher {
    store: IngestStore,
    keys: KeyCache,
    origin: Origin,
    _folder: tempfile::TempDir,
}

impl Publisher {
    async fn new() -> Self {
        let (folder, database) = service_testbed::open_sqlite().await;
        Self {
            store: IngestStore::new(database),
            keys: KeyCache::default(),
            origin: "org/leipzig/r-1".parse().unwrap(),
            _folder: folder,
        }
    }

    async fn read(&self, kind: PayloadKind, body: &Value, s: f64) -> LegacyMessage {
        let (bytes, now) = (serde_json::to_vec(body).unwrap(), after(s));
        read(&self.store, &self.keys, &self.origin, kind, &bytes, true, now).await.unwrap()
    }

    async fn commit(&self, frame: VerifiedFrame) -> Outcome {
        let now = frame.received;
        let no = self.store.chain_no(&self.origin, CHAIN, "", now).await.unwrap();
        self.store.commit(&[no], &[frame], now).await.unwrap().outcomes[0]
    }

    /// Stores a point that arrives `s` seconds after [`NOW`].
    async fn point(&self, body: &Value, s: f64) -> Outcome {
        self.commit(self.read(PayloadKind::Telemetry, body, s).await.frame).await
    }

    /// Stores an event that arrives `s` seconds after [`NOW`].
    async fn event(&self, body: &Value, s: f64) -> Outcome {
        self.commit(self.read(PayloadKind::Event, body, s).await.frame).await
    }

    /// Returns the sessions, the oldest first.
    async fn sessions(&self) -> Vec<SessionRow> {
        let filter = SessionFilter { limit: 100, ..SessionFilter::default() };
        let mut sessions = self.store.sessions(&self.origin.org, &filter).await.unwrap();
        sessions.reverse();
        sessions
    }

    async fn count(&self, session: &SessionRow) -> i64 {
        self.store.totals(&self.origin.org, session).await.unwrap().points
    }

    /// Returns all points as a stream sends them.
    async fn streamed(&self) -> Vec<envelope::Envelope> {
        let rows = self.store.frames_after(None, 0, 10_000).await.unwrap();
        let machines: Vec<i64> = rows.iter().map(|row| row.frame.machine_no).collect();
        let running = self.store.running_sessions(machines).await.unwrap();
        let committed = rows.into_iter().filter_map(|row| row_json::committed_frame(row, &running));
        committed.flat_map(|row| row.envelopes(0, usize::MAX)).collect()
    }
}

fn after(s: f64) -> EpochMs {
    NOW.plus_ms((s * 1000.0) as i64)
}

/// A point `elapsed` seconds into a roast that began `start` seconds after [`NOW`].
fn point(start: f64, elapsed: f64) -> Value {
    let ts = after(start + elapsed);
    json!({"ts": ts, "machineId": "r-1", "elapsedSeconds": elapsed, "btC": 200.0})
}

fn event(kind: &str, start: f64, elapsed: f64) -> Value {
    let payload = json!({"elapsedSeconds": elapsed});
    json!({"ts": after(start + elapsed), "machineId": "r-1", "type": kind, "payload": payload})
}

fn elapsed_of(envelope: &envelope::Envelope) -> f64 {
    match &envelope.payload {
        Payload::Telemetry(point) => point.elapsed_seconds,
        Payload::Event(_) => panic!("a point"),
    }
}
