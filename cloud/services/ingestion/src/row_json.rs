//! Turns stored rows into the JSON of upstream Sim-Corp: frames into telemetry points, events into
//! roast events, both into the envelopes of the streams. Pure. The API, the streams and the live
//! tail all use these functions, so that a row looks the same wherever a client reads it.

use std::collections::HashMap;

use contract::envelope::{Envelope, Payload, Verification};
use contract::point::{ExtraValue, RoastEvent, TelemetryPoint};
use contract::{Channel, EpochMs, EventKind, MachineId, OrgId, Origin, SiteId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::published::{FROM_ARRIVAL, PublishedEvent, PublishedSamples, TIME_SOURCE};
use crate::store::{ArrivedFrame, EventRow, Extras, FrameRow, SessionRow};

/// A publisher's elapsed time that differs from its session's by more than this counts from another
/// moment than the session's beginning.
const ELAPSED_TOLERANCE_S: f64 = 5.0;

/// One committed row as the subscribers of a stream receive it: a frame, or one event. It keeps the
/// row and makes its envelopes in parts: those of a large frame need far more memory.
#[derive(Debug)]
pub struct CommittedRow {
    pub arrival: i64,
    pub origin: Origin,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Frame {
        frame: Box<FrameRow>,
        /// Parsed once, in place of the row's text.
        extras: Extras,
        kid: Option<String>,
        session: Option<Box<SessionRow>>,
    },
    Event {
        envelope: Box<Envelope>,
        memory: usize,
    },
}

impl CommittedRow {
    /// Returns the number of envelopes: one for each sample of a frame, or one for an event.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Frame { frame, .. } => frame.len(),
            Content::Event { .. } => 1,
        }
    }

    /// Returns the number of cells: samples by columns. What a client costs is counted in them.
    pub fn cells(&self) -> usize {
        match &self.content {
            Content::Frame { frame, extras, .. } => frame.cells(extras.len()),
            Content::Event { .. } => 1,
        }
    }

    /// Returns about how many bytes of memory the row takes.
    pub fn memory(&self) -> usize {
        const ROW: usize = 1_000;
        let content = match &self.content {
            Content::Frame { frame, extras, .. } => {
                let columns = frame.values.iter().flatten().count();
                let quality = frame.quality.as_ref().map_or(0, String::len);
                let texts = extras.memory().saturating_add(quality);
                let published = frame.published.as_ref().map_or(0, PublishedSamples::memory);
                let values =
                    frame.len().saturating_mul(columns.saturating_mul(8).saturating_add(4));
                values.saturating_add(texts).saturating_add(published)
            }
            Content::Event { memory, .. } => *memory,
        };
        content.saturating_add(ROW)
    }

    /// Returns up to `most` envelopes from the one at index `from`.
    pub fn envelopes(&self, from: usize, most: usize) -> Vec<Envelope> {
        match &self.content {
            Content::Frame { frame, extras, kid, session } => {
                let end = from.saturating_add(most).min(frame.len());
                if from >= end {
                    return Vec::new();
                }
                let range = (frame.seq_at(from), frame.seq_at(end.saturating_sub(1)));
                let frame = (&**frame, extras);
                frame_envelopes(frame, &self.origin, kid.as_deref(), session.as_deref(), range)
            }
            Content::Event { envelope, .. } if from == 0 => vec![(**envelope).clone()],
            Content::Event { .. } => Vec::new(),
        }
    }
}

/// A telemetry point with its organisation and site, for lists and streams over several machines.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocatedPoint {
    #[serde(flatten)]
    pub point: TelemetryPoint,
    pub org_id: OrgId,
    #[serde(serialize_with = "contract::upstream_id::serialize")]
    pub site_id: SiteId,
}

/// A roast event with its organisation and site, for lists and streams over several machines.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocatedEvent {
    #[serde(flatten)]
    pub event: RoastEvent,
    pub org_id: OrgId,
    #[serde(serialize_with = "contract::upstream_id::serialize")]
    pub site_id: SiteId,
}

impl LocatedPoint {
    /// Adds the organisation and site of `origin`, the machine that measured the point.
    pub fn new(point: TelemetryPoint, origin: &Origin) -> Self {
        Self { point, org_id: origin.org.clone(), site_id: origin.site.clone() }
    }
}

impl LocatedEvent {
    /// Adds the organisation and site of `origin`, the machine at which the event happened.
    pub fn new(event: RoastEvent, origin: &Origin) -> Self {
        Self { event, org_id: origin.org.clone(), site_id: origin.site.clone() }
    }
}

/// Returns an envelope's payload as JSON, with its organisation and site.
///
/// # Errors
/// When it cannot be serialised, which does not happen with our types.
pub fn located_json(envelope: &Envelope) -> Result<String, serde_json::Error> {
    match &envelope.payload {
        Payload::Telemetry(point) => {
            serde_json::to_string(&LocatedPoint::new(point.clone(), &envelope.origin))
        }
        Payload::Event(event) => {
            serde_json::to_string(&LocatedEvent::new(event.clone(), &envelope.origin))
        }
    }
}

/// Returns the origin that a row's texts name; `None` if one of them is not an identity.
pub fn origin_of(org: &str, site: &str, machine: &str) -> Option<Origin> {
    Some(Origin {
        org: OrgId::new(org).ok()?,
        site: SiteId::new(site).ok()?,
        machine: MachineId::new(machine).ok()?,
    })
}

/// Returns a committed frame for the streams. `running` holds the running sessions by chain number.
pub fn committed_frame(
    mut row: ArrivedFrame,
    running: &HashMap<i64, SessionRow>,
) -> Option<CommittedRow> {
    let origin = origin_of(&row.org_id, &row.site_id, &row.machine_id)?;
    let session = running.get(&row.frame.chain_no).cloned().map(Box::new);
    let kid = (!row.kid.is_empty()).then_some(row.kid);
    let arrival = row.frame.arrival;
    let extras = Extras::parse(row.frame.extras.take().as_deref());
    let content = Content::Frame { frame: Box::new(row.frame), extras, kid, session };
    Some(CommittedRow { arrival, origin, content })
}

/// Returns the samples of a frame in a range of sample numbers as upstream Sim-Corp envelopes.
fn frame_envelopes(
    (frame, extras): (&FrameRow, &Extras),
    origin: &Origin,
    kid: Option<&str>,
    session: Option<&SessionRow>,
    (first_seq, last_seq): (i64, i64),
) -> Vec<Envelope> {
    let verification = Verification { verified: frame.trust == 0, error: None };
    let points = telemetry_points((frame, extras), &origin.machine, session, first_seq, last_seq);
    points
        .map(|(seq, point)| {
            let within = session.filter(|s| s.first_seq.is_none_or(|first| seq >= first));
            let at = usize::try_from(seq.saturating_sub(frame.first_seq)).unwrap_or(usize::MAX);
            let said = frame.published.as_ref().and_then(|published| published.context(at));
            let session_id = said.and_then(|said| said.session_id.clone());
            let kid_said = said.and_then(|said| said.kid.clone());
            Envelope {
                ts: point.ts,
                origin: origin.clone(),
                topic: "telemetry",
                payload: Payload::Telemetry(point),
                session_id: session_id.or_else(|| within.map(|s| s.session_id.clone())),
                sig: None,
                kid: kid_said.or_else(|| kid.map(str::to_owned)),
                verification: Some(verification.clone()),
            }
        })
        .collect()
}

/// Returns a committed event as an upstream Sim-Corp envelope; kinds that its clients do not know
/// become notes.
pub fn committed_event(org: &str, row: EventRow) -> Option<CommittedRow> {
    let origin = origin_of(org, &row.site_id, &row.machine_id)?;
    let event = roast_event(&row, &origin.machine)?;
    let kid = PublishedEvent::parse(row.published.as_deref()).kid;
    // Its parsed payload takes a multiple of its text.
    let memory = row.published.as_ref().map_or(0, String::len).saturating_mul(4);
    let envelope = Envelope {
        ts: event.ts,
        origin: origin.clone(),
        topic: "event",
        payload: Payload::Event(event),
        session_id: Some(row.session_id),
        sig: None,
        kid,
        verification: Some(Verification { verified: row.trust == 0, error: None }),
    };
    let content = Content::Event { envelope: Box::new(envelope), memory };
    Some(CommittedRow { arrival: row.arrival, origin, content })
}

/// Returns an event in upstream Sim-Corp's format, with the payload that its publisher gave it. A
/// kind that the format lacks becomes a `NOTE` whose `mark` names the kind.
pub fn roast_event(row: &EventRow, machine: &MachineId) -> Option<RoastEvent> {
    let kind = EventKind::parse(&row.kind)?;
    let PublishedEvent { mut payload, batch_id, .. } =
        PublishedEvent::parse(row.published.as_deref());
    let mut complete = |name: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            payload.entry(name).or_insert(value);
        }
    };
    complete("elapsedSeconds", Some(row.elapsed_s.into()));
    complete("source", Some(row.source.clone().into()));
    complete("btC", row.bt_c.map(Into::into));
    complete("note", row.note.clone().map(Into::into));
    if !kind.in_legacy() {
        payload.insert("mark".to_owned(), kind.as_str().into());
    }
    Some(RoastEvent {
        ts: EpochMs(row.at_ms),
        machine_id: machine.clone(),
        batch_id,
        kind: if kind.in_legacy() { kind } else { EventKind::Note },
        payload: Some(payload),
    })
}

/// Returns by how much the elapsed seconds of a session's publisher exceed the time since the
/// session's beginning. `frame` holds the session's first sample, number `first`. A session that
/// begins with a CHARGE in a running stream has an elapsed time of its own; small differences between
/// a publisher's clocks do not count.
pub fn elapsed_shift_s(frame: &FrameRow, session: &SessionRow, first: i64) -> f64 {
    let Some(i) = (0..frame.len()).find(|i| frame.seq_at(*i) >= first) else { return 0.0 };
    let Some(said_s) = frame.published.as_ref().and_then(|p| p.elapsed_s(i)) else { return 0.0 };
    let since_start_ms = frame.sample_at(i).0.saturating_sub(session.started_ms);
    let shift_s = said_s - since_start_ms as f64 / 1000.0;
    if shift_s.abs() > ELAPSED_TOLERANCE_S { shift_s } else { 0.0 }
}

/// Returns a frame's samples from `first_seq` to `last_seq` as points. Elapsed time is what a
/// publisher of upstream Sim-Corp said; else it counts from the start of the session; outside of a
/// session, from the start of the gateway. Points are made one by one: those of a large frame need far
/// more memory than its row.
pub fn telemetry_points<'f>(
    (frame, extras): (&'f FrameRow, &'f Extras),
    machine: &'f MachineId,
    session: Option<&'f SessionRow>,
    first_seq: i64,
    last_seq: i64,
) -> impl Iterator<Item = (i64, TelemetryPoint)> + 'f {
    let inside = move |i: &usize| (first_seq..=last_seq).contains(&frame.seq_at(*i));
    (0..frame.offsets_ms.len()).filter(inside).map(move |i| {
        let ts = frame.sample_at(i);
        let elapsed_ms = match session {
            Some(session) => session.elapsed_ms(frame, i),
            None => frame.mono_ms.saturating_add(i64::from(frame.offsets_ms[i])),
        };
        let elapsed_said = frame.published.as_ref().and_then(|p| p.elapsed_s(i));
        let said = frame.published.as_ref().and_then(|published| published.context(i));
        let restamped = said
            .is_some_and(|said| said.restamped)
            .then(|| (TIME_SOURCE.to_owned(), ExtraValue::Text(FROM_ARRIVAL.to_owned())));
        let point = TelemetryPoint {
            ts,
            machine_id: machine.clone(),
            batch_id: said.and_then(|said| said.batch_id.clone()),
            elapsed_seconds: elapsed_said.unwrap_or(elapsed_ms.max(0) as f64 / 1000.0),
            bt_c: frame.value(&Channel::Bt, i),
            et_c: frame.value(&Channel::Et, i),
            ror_c_per_min: frame.value(&Channel::Ror, i),
            gas_pct: frame.value(&Channel::Gas, i),
            fan_pct: frame.value(&Channel::Fan, i),
            drum_rpm: frame.value(&Channel::Drum, i),
            ambient_c: frame.value(&Channel::Ambient, i),
            extras: extras.of_sample(i).chain(restamped).collect(),
        };
        (frame.seq_at(i), point)
    })
}
