//! Copies of live samples and events in upstream Sim-Corp's JSON, for its subscribers.
//!
//! Each copy is marked as one ([`contract::envelope::COPY_OF`]), so that ingestion and inference,
//! which have the signed frame, ignore it. Copies are not signed, not stored and not sent again.

use std::collections::BTreeMap;

use contract::envelope::{COPY_OF, Envelope, Payload};
use contract::point::{ExtraValue, RoastEvent, TelemetryPoint};
use contract::topic::TopicKind;
use contract::{Channel, EpochMs, EventSource, Frame, MachineEvent};
use serde_json::{Map, Value, json};

/// The longest time since CHARGE that upstream's clients accept, in s.
const ELAPSED_MAX_S: f64 = 1e7;

/// A message on one of upstream's topics.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonCopy {
    pub topic: TopicKind,
    pub body: Vec<u8>,
}

/// Makes copies; knows when the roast began that elapsed times refer to.
#[derive(Debug, Default)]
pub struct JsonCopies {
    /// The time of CHARGE, or of the first sample before any event.
    began: Option<EpochMs>,
}

impl JsonCopies {
    /// Returns the copies of a signed frame: its samples, then its events. Returns none of a
    /// message that is not a frame.
    pub fn of_signed(&mut self, signed: &[u8]) -> Vec<JsonCopy> {
        let message = trust::SignedMessage::parse(signed).ok();
        let frame = message.and_then(|message| Frame::decode(message.payload()).ok());
        frame.map(|frame| self.of_frame(&frame)).unwrap_or_default()
    }

    fn of_frame(&mut self, frame: &Frame) -> Vec<JsonCopy> {
        let before = *self.began.get_or_insert(frame.wall);
        let started = frame.events.iter().map(start_of).next_back().unwrap_or(before);
        self.began = Some(started);
        let samples = (0..frame.sample_count()).map(|index| {
            let ts = frame.wall_at(index);
            let began = if ts < started { before } else { started };
            let point = point_of(frame, index, ts, began);
            if !ts.is_plausible() || point.elapsed_seconds > ELAPSED_MAX_S {
                return None; // the gateway's clock is wrong; the signed frame says so
            }
            copy_of(frame, TopicKind::Telemetry, ts, Payload::Telemetry(point))
        });
        let events = frame.events.iter().map(|event| {
            let payload = Payload::Event(roast_event(frame, event));
            copy_of(frame, TopicKind::Events, event.at, payload)
        });
        samples.chain(events).flatten().collect()
    }
}

/// Returns when the roast of an event began.
#[allow(clippy::cast_possible_truncation)] // at most 1e10 ms: checked when the frame was decoded
fn start_of(event: &MachineEvent) -> EpochMs {
    event.at.plus_ms(-((event.elapsed_s * 1000.0) as i64))
}

fn point_of(frame: &Frame, index: usize, ts: EpochMs, began: EpochMs) -> TelemetryPoint {
    let value = |channel: &Channel| frame.value(channel, index);
    let percent = |channel: &Channel| value(channel).map(|value| value.clamp(0.0, 100.0));
    let extras = frame.columns.iter().filter_map(|column| {
        let Channel::Extra(name) = &column.channel else { return None };
        Some((name.to_string(), ExtraValue::Number(value(&column.channel)?)))
    });
    TelemetryPoint {
        ts,
        machine_id: frame.origin.machine.clone(),
        batch_id: None,
        elapsed_seconds: ts.ms_since(began).max(0) as f64 / 1000.0,
        bt_c: value(&Channel::Bt),
        et_c: value(&Channel::Et),
        ror_c_per_min: value(&Channel::Ror),
        gas_pct: percent(&Channel::Gas),
        fan_pct: percent(&Channel::Fan),
        drum_rpm: value(&Channel::Drum),
        ambient_c: value(&Channel::Ambient),
        extras: extras.collect::<BTreeMap<_, _>>(),
    }
}

fn roast_event(frame: &Frame, event: &MachineEvent) -> RoastEvent {
    let mut payload = Map::new();
    payload.insert("elapsedSeconds".to_owned(), json!(event.elapsed_s));
    if let Some(bt_c) = event.bt_c {
        payload.insert("btC".to_owned(), json!(bt_c));
    }
    if event.source == EventSource::Inferred {
        payload.insert("source".to_owned(), json!("inference"));
    }
    if let Some(note) = &event.note {
        payload.insert("text".to_owned(), json!(note));
    }
    RoastEvent {
        ts: event.at,
        machine_id: frame.origin.machine.clone(),
        batch_id: None,
        kind: event.kind,
        payload: Some(payload),
    }
}

fn copy_of(frame: &Frame, topic: TopicKind, ts: EpochMs, payload: Payload) -> Option<JsonCopy> {
    let envelope = Envelope {
        ts,
        origin: frame.origin.clone(),
        topic: if topic == TopicKind::Events { "event" } else { "telemetry" },
        payload,
        session_id: None,
        sig: None,
        kid: None,
        verification: None,
    };
    let Ok(Value::Object(mut fields)) = serde_json::to_value(envelope) else { return None };
    fields.insert(COPY_OF.to_owned(), json!("frames"));
    Some(JsonCopy { topic, body: serde_json::to_vec(&fields).ok()? })
}

#[cfg(test)]
mod tests {
    use contract::envelope::{EnvelopeError, PayloadKind, decode};
    use contract::{ChainId, ClockQuality, Column, EventKind, SessionId};

    use super::*;

    const NOW: EpochMs = EpochMs(1_760_000_000_000);

    fn frame(wall: EpochMs, events: Vec<MachineEvent>) -> Frame {
        let column = |channel, values| Column { channel, values, quality: vec![] };
        Frame {
            origin: "acme/leipzig/r-1".parse().unwrap(),
            chain: ChainId([1; 16]),
            number: 1,
            previous: None,
            boot_id: 1,
            first_seq: 0,
            mono_ms: 0,
            wall,
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: vec![0, 1_000],
            columns: vec![
                column(Channel::Bt, vec![Some(190.0), None]),
                column(Channel::Gas, vec![Some(100.4), Some(50.0)]),
                column(Channel::parse("inletC").unwrap(), vec![Some(300.5), None]),
            ],
            events,
        }
    }

    fn bodies(copies: &[JsonCopy]) -> Vec<Value> {
        copies.iter().map(|copy| serde_json::from_slice(&copy.body).unwrap()).collect()
    }

    #[test]
    fn samples_and_events_have_upstream_s_form_and_times_since_charge() {
        let mut copies = JsonCopies::default();
        let charge = MachineEvent {
            kind: EventKind::Charge,
            seq: 1,
            at: NOW.plus_ms(1_000),
            elapsed_s: 0.0,
            session: SessionId::new("S-1").unwrap(),
            source: EventSource::Machine,
            bt_c: Some(190.0),
            note: None,
        };
        let first = copies.of_frame(&frame(NOW, vec![charge]));
        let topics: Vec<_> = first.iter().map(|copy| copy.topic).collect();
        assert_eq!(topics, [TopicKind::Telemetry, TopicKind::Telemetry, TopicKind::Events]);
        let told = bodies(&first);
        assert_eq!(
            told[0]["payload"],
            json!({"ts": NOW, "machineId": "r-1", "elapsedSeconds": 0.0, "btC": 190.0,
                   "gasPct": 100.0, "extras": {"inletC": 300.5}})
        );
        assert_eq!((&told[0]["topic"], &told[2]["topic"]), (&json!("telemetry"), &json!("event")));
        assert_eq!(told[2]["payload"]["type"], "CHARGE");
        let second = bodies(&copies.of_frame(&frame(NOW.plus_ms(31_000), vec![])));
        assert_eq!(second[1]["payload"]["elapsedSeconds"], 31.0);
    }

    #[test]
    fn our_own_services_recognise_a_copy() {
        let frame = frame(NOW, vec![]);
        let copy = JsonCopies::default().of_frame(&frame).remove(0);
        let read = decode(&copy.body, PayloadKind::Telemetry, &frame.origin);
        assert_eq!(read, Err(EnvelopeError::Copy));
    }
}
