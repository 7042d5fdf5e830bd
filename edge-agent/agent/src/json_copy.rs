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
    /// CHARGE, or the first sample before any roast.
    began: Option<Beginning>,
}

/// The beginning of a roast on the monotonic clock of one start of the agent. The wall clock may be
/// set at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beginning {
    boot_id: u64,
    /// Negative if the roast began before the agent was restarted.
    mono_ms: i64,
}

impl JsonCopies {
    /// Returns the copies of a signed frame: its samples, then its events. `roast_started` is the date
    /// at which the running roast began, if one is running. Returns none of a message that is not a
    /// frame.
    pub fn of_signed(&mut self, signed: &[u8], roast_started: Option<EpochMs>) -> Vec<JsonCopy> {
        let message = trust::SignedMessage::parse(signed).ok();
        let frame = message.and_then(|message| Frame::decode(message.payload()).ok());
        frame.map(|frame| self.of_frame(&frame, roast_started)).unwrap_or_default()
    }

    fn of_frame(&mut self, frame: &Frame, roast_started: Option<EpochMs>) -> Vec<JsonCopy> {
        let first_ms = i64::try_from(frame.mono_ms).unwrap_or(i64::MAX);
        // The dates of a frame, of its events and of their roast are on one line, which the agent counts
        // by the monotonic clock.
        let on_clock = |at: EpochMs| Beginning {
            boot_id: frame.boot_id,
            mono_ms: first_ms.saturating_add(at.ms_since(frame.wall)),
        };
        // The roast that runs now may have begun after this frame.
        let running = roast_started.filter(|started| *started <= frame.wall).map(on_clock);
        let known = self.began.filter(|began| began.boot_id == frame.boot_id);
        let before = running.or(known).unwrap_or_else(|| on_clock(frame.wall));
        let started = frame.events.last().map_or(before, |event| on_clock(start_of(event)));
        self.began = Some(started);
        let samples = (0..frame.sample_count()).map(|index| {
            let ts = frame.wall_at(index);
            let mono_ms = first_ms.saturating_add(ts.ms_since(frame.wall));
            let began = if mono_ms < started.mono_ms { before } else { started };
            let elapsed_ms = mono_ms.saturating_sub(began.mono_ms);
            let point = point_of(frame, index, ts, elapsed_ms);
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
    event.at.minus_ms((event.elapsed_s * 1000.0) as i64)
}

fn point_of(frame: &Frame, index: usize, ts: EpochMs, elapsed_ms: i64) -> TelemetryPoint {
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
        elapsed_seconds: elapsed_ms.max(0) as f64 / 1000.0,
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
            mono_ms: u64::try_from(wall.ms_since(NOW)).unwrap(),
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
        let first = copies.of_frame(&frame(NOW, vec![charge]), None);
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
        let second = bodies(&copies.of_frame(&frame(NOW.plus_ms(31_000), vec![]), None));
        assert_eq!(second[1]["payload"]["elapsedSeconds"], 31.0);
    }

    #[test]
    fn elapsed_times_count_from_charge_after_a_restart_and_when_the_clock_is_set() {
        let elapsed = |copies: &[JsonCopy]| -> Vec<Value> {
            bodies(copies).iter().map(|body| body["payload"]["elapsedSeconds"].clone()).collect()
        };
        // The agent was started in mid-roast, and its connection begins with this frame.
        let (mut copies, charge) = (JsonCopies::default(), NOW.plus_ms(-299_000));
        let first = frame(NOW.plus_ms(1_000), vec![]);
        assert_eq!(elapsed(&copies.of_frame(&first, Some(charge))), [json!(300.0), json!(301.0)]);
        // The roast has ended, and the clock was set two weeks ahead.
        let mut second = frame(NOW.plus_ms(3_000), vec![]);
        second.wall = second.wall.plus_ms(14 * 86_400_000);
        assert_eq!(elapsed(&copies.of_frame(&second, None)), [json!(302.0), json!(303.0)]);
        // A roast that begins after a frame does not count for it.
        let third = frame(NOW.plus_ms(5_000), vec![]);
        let later = Some(NOW.plus_ms(9_000));
        assert_eq!(elapsed(&copies.of_frame(&third, later)), [json!(304.0), json!(305.0)]);
        // A frame of an earlier start of the agent has another monotonic clock.
        let other = Frame { boot_id: 2, ..frame(NOW.plus_ms(60_000), vec![]) };
        assert_eq!(elapsed(&copies.of_frame(&other, None)), [json!(0.0), json!(1.0)]);
    }

    #[test]
    fn our_own_services_recognise_a_copy() {
        let frame = frame(NOW, vec![]);
        let copy = JsonCopies::default().of_frame(&frame, None).remove(0);
        let read = decode(&copy.body, PayloadKind::Telemetry, &frame.origin);
        assert_eq!(read, Err(EnvelopeError::Copy));
    }
}
