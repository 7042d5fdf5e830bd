//! Turns stored rows into the JSON of upstream Sim-Corp: frames into telemetry points, events into
//! roast events, both into the envelopes of the streams. Pure. The API, the streams and the live
//! tail all use these functions, so that a row looks the same wherever a client reads it.

use std::collections::HashMap;

use contract::envelope::{Envelope, Payload, Verification};
use contract::point::{ExtraValue, RoastEvent, TelemetryPoint};
use contract::{Channel, EpochMs, EventKind, MachineId, OrgId, Origin, SiteId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::{ArrivedFrame, EventRow, FrameRow, SessionRow};

/// One committed row as the subscribers of a stream receive it: a frame's points, or one event.
#[derive(Debug)]
pub struct CommittedRow {
    pub arrival: i64,
    pub origin: Origin,
    pub envelopes: Vec<Envelope>,
}

/// A telemetry point with its organisation and site, for lists and streams over several machines.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocatedPoint {
    #[serde(flatten)]
    pub point: TelemetryPoint,
    pub org_id: OrgId,
    pub site_id: SiteId,
}

/// A roast event with its organisation and site, for lists and streams over several machines.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocatedEvent {
    #[serde(flatten)]
    pub event: RoastEvent,
    pub org_id: OrgId,
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

/// Returns a committed frame as upstream Sim-Corp envelopes, one for each sample. `running` holds
/// the running sessions by machine number.
pub fn committed_frame(
    row: ArrivedFrame,
    running: &HashMap<i64, SessionRow>,
) -> Option<CommittedRow> {
    let origin = origin_of(&row.org_id, &row.site_id, &row.machine_id)?;
    let session =
        running.get(&row.frame.machine_no).filter(|session| session.chain_no == row.frame.chain_no);
    let kid = (!row.kid.is_empty()).then_some(row.kid);
    let verification = Verification { verified: row.frame.trust == 0, error: None };
    let points = telemetry_points(&row.frame, &origin.machine, session, i64::MIN, i64::MAX);
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
pub fn committed_event(org: &str, row: EventRow) -> Option<CommittedRow> {
    let origin = origin_of(org, &row.site_id, &row.machine_id)?;
    let event = roast_event(&row, &origin.machine)?;
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
pub fn roast_event(row: &EventRow, machine: &MachineId) -> Option<RoastEvent> {
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
pub fn telemetry_points(
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
                Some(session) => ts.0.saturating_sub(session.started_ms),
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
