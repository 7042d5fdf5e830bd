//! The live stream: follows the rows that any instance commits. It must never show a row that is
//! not committed.
//!
//! Arrival numbers come from a sequence, so two writers may commit them out of order: a missing
//! number is remembered and queried again for a while. Rows are read only while there are
//! subscribers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ::database::StoreError;
use contract::envelope::{Envelope, Payload, Verification};
use contract::point::{ExtraValue, RoastEvent, TelemetryPoint};
use contract::{Channel, EpochMs, EventKind, MachineId, OrgId, Origin, SiteId};
use service::shutdown::CancellationToken;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::store::{ArrivedFrame, EventRow, FrameRow, IngestStore, SessionRow};

/// How often commits of other instances are polled.
const POLL_EVERY: Duration = Duration::from_millis(200);
const ROWS_A_PASS: i64 = 2_000;
/// A subscriber that is this many rows behind is disconnected; it resumes from its last id.
const BEHIND_MAX: usize = 4_096;
/// An arrival number that is missing for longer belongs to a transaction that was rolled back.
const HOLE_TIME_MAX: Duration = Duration::from_secs(10);
const HOLES_MAX: usize = 10_000;

/// One committed row as subscribers receive it: a frame's points, or one event.
#[derive(Debug)]
pub struct CommittedRow {
    pub arrival: i64,
    pub origin: Origin,
    pub envelopes: Vec<Envelope>,
}

/// Sends committed rows to all subscribers.
#[derive(Clone)]
pub struct Tail {
    telemetry: broadcast::Sender<Arc<CommittedRow>>,
    events: broadcast::Sender<Arc<CommittedRow>>,
    wake: Arc<Notify>,
}

impl Tail {
    pub fn start(store: IngestStore, tracker: &TaskTracker, stop: CancellationToken) -> Self {
        let tail = Self {
            telemetry: broadcast::channel(BEHIND_MAX).0,
            events: broadcast::channel(BEHIND_MAX).0,
            wake: Arc::new(Notify::new()),
        };
        tracker.spawn(follow(tail.clone(), store, stop));
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
    let roasts = if arrived.is_empty() { HashMap::new() } else { running_sessions(store).await? };
    for row in arrived {
        let arrival = row.frame.arrival;
        if arrival > at.frames {
            for hole in (at.frames + 1..arrival).take(HOLES_MAX - at.holes.len().min(HOLES_MAX)) {
                at.holes.insert(hole, now);
            }
            at.frames = arrival;
        }
        if let Some(live) = live_frame(row, &roasts) {
            // It is fine if there is no subscriber.
            let _ = tail.telemetry.send(Arc::new(live));
        }
    }
    for (org, row) in store.events_after(None, at.events, ROWS_A_PASS).await? {
        at.events = at.events.max(row.arrival);
        if let Some(live) = live_event(&org, row) {
            let _ = tail.events.send(Arc::new(live));
        }
    }
    Ok(())
}

/// Returns the running sessions by machine number.
pub async fn running_sessions(store: &IngestStore) -> Result<HashMap<i64, SessionRow>, StoreError> {
    Ok(store.running().await?.into_iter().map(|session| (session.machine_no, session)).collect())
}

fn origin_of(org: &str, site: &str, machine: &str) -> Option<Origin> {
    Some(Origin {
        org: OrgId::new(org).ok()?,
        site: SiteId::new(site).ok()?,
        machine: MachineId::new(machine).ok()?,
    })
}

/// Returns a committed frame as upstream Sim-Corp envelopes, one for each sample.
pub fn live_frame(row: ArrivedFrame, roasts: &HashMap<i64, SessionRow>) -> Option<CommittedRow> {
    let origin = origin_of(&row.org_id, &row.site_id, &row.machine_id)?;
    let session =
        roasts.get(&row.frame.machine_no).filter(|session| session.chain_no == row.frame.chain_no);
    let kid = (!row.kid.is_empty()).then_some(row.kid);
    let verification = Verification { verified: row.frame.trust == 0, error: None };
    let points = points_of(&row.frame, &origin.machine, session, i64::MIN, i64::MAX);
    let envelopes = points
        .into_iter()
        .map(|(seq, point)| {
            let within = session.filter(|s| s.first_seq.is_none_or(|first| seq >= first));
            Envelope {
                ts: point.ts,
                origin: origin.clone(),
                topic: "telemetry",
                payload: Payload::Telemetry(point),
                session_id: within.map(|s| s.session_id.clone()),
                sig: None,
                kid: kid.clone(),
                verification: Some(verification.clone()),
            }
        })
        .collect();
    Some(CommittedRow { arrival: row.frame.arrival, origin, envelopes })
}

/// Returns a committed event as an upstream Sim-Corp envelope; kinds that its clients do not know
/// become notes.
pub fn live_event(org: &str, row: EventRow) -> Option<CommittedRow> {
    let origin = origin_of(org, &row.site_id, &row.machine_id)?;
    let event = event_of(&row, &origin.machine)?;
    let envelope = Envelope {
        ts: event.ts,
        origin: origin.clone(),
        topic: "event",
        payload: Payload::Event(event),
        session_id: Some(row.session_id),
        sig: None,
        kid: None,
        verification: Some(Verification { verified: row.trust == 0, error: None }),
    };
    Some(CommittedRow { arrival: row.arrival, origin, envelopes: vec![envelope] })
}

/// Returns an event in upstream Sim-Corp's format. A kind that it lacks becomes a `NOTE` whose
/// `mark` names the kind.
pub fn event_of(row: &EventRow, machine: &MachineId) -> Option<RoastEvent> {
    let kind = EventKind::parse(&row.kind)?;
    let mut payload = serde_json::Map::new();
    payload.insert("elapsedSeconds".to_owned(), row.elapsed_s.into());
    payload.insert("source".to_owned(), row.source.clone().into());
    if let Some(bt) = row.bt_c {
        payload.insert("btC".to_owned(), bt.into());
    }
    if let Some(note) = &row.note {
        payload.insert("note".to_owned(), note.clone().into());
    }
    if !kind.in_legacy() {
        payload.insert("mark".to_owned(), kind.as_str().into());
    }
    Some(RoastEvent {
        ts: EpochMs(row.at_ms),
        machine_id: machine.clone(),
        batch_id: None,
        kind: if kind.in_legacy() { kind } else { EventKind::Note },
        payload: Some(payload),
    })
}

/// Returns a frame's samples from `first_seq` to `last_seq` as points. Elapsed time counts from the
/// start of the session; outside of a session, from the start of the gateway.
pub fn points_of(
    frame: &FrameRow,
    machine: &MachineId,
    session: Option<&SessionRow>,
    first_seq: i64,
    last_seq: i64,
) -> Vec<(i64, TelemetryPoint)> {
    let extras: HashMap<String, Vec<Option<f64>>> = frame
        .extras
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let inside = |i: &usize| (first_seq..=last_seq).contains(&frame.seq_at(*i));
    (0..frame.offsets_ms.len())
        .filter(inside)
        .map(|i| {
            let ts = frame.sample_at(i);
            let elapsed_ms = match session {
                Some(session) => ts.0 - session.started_ms,
                None => frame.mono_ms + i64::from(frame.offsets_ms[i]),
            };
            let extra = |(name, values): (&String, &Vec<Option<f64>>)| {
                Some((name.clone(), ExtraValue::Number((*values.get(i)?)?)))
            };
            let point = TelemetryPoint {
                ts,
                machine_id: machine.clone(),
                batch_id: None,
                elapsed_seconds: elapsed_ms.max(0) as f64 / 1000.0,
                bt_c: frame.value(&Channel::Bt, i),
                et_c: frame.value(&Channel::Et, i),
                ror_c_per_min: frame.value(&Channel::Ror, i),
                gas_pct: frame.value(&Channel::Gas, i),
                fan_pct: frame.value(&Channel::Fan, i),
                drum_rpm: frame.value(&Channel::Drum, i),
                ambient_c: frame.value(&Channel::Ambient, i),
                extras: extras.iter().filter_map(extra).collect(),
            };
            (frame.seq_at(i), point)
        })
        .collect()
}
