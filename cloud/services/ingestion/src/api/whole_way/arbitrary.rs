//! Arbitrary frames, receipts and JSON messages: what machines send, and the extremes that the
//! decoders accept or refuse.

use contract::envelope::PayloadKind;
use contract::{
    Channel, ClockQuality, Column, Digest, EpochMs, EventKind, EventSource, Frame, MachineEvent,
    Quality, Receipt, SessionId,
};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::{CHAIN, NOW, origin};

/// Few, so that frames and receipts meet in them.
const SESSIONS: [&str; 2] = ["S-1", "S-2"];
/// The largest number and the last time that the decoders accept.
pub(super) const NUMBER_MAX: u64 = (1 << 53) - 1;
const TIME_MAX_MS: i64 = 253_402_207_200_000;

/// What arrives for one organisation.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Each with its first sample number; `None` to continue the frame before.
    pub(super) frames: Vec<(Option<u64>, Frame)>,
    /// The bit that is flipped in a copy of each frame.
    pub(super) damage: (Index, u8),
    pub(super) receipt: Option<(bool, Receipt)>,
    pub(super) messages: Vec<(PayloadKind, Value)>,
    pub(super) noise: Vec<u8>,
}

fn time() -> impl Strategy<Value = EpochMs> {
    prop_oneof![
        4 => (-100_000..100_000_i64).prop_map(|ms| NOW.plus_ms(ms)),
        1 => Just(EpochMs(0)),
        1 => Just(EpochMs(TIME_MAX_MS)),
        1 => (0..TIME_MAX_MS).prop_map(EpochMs),
    ]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..500_u64,
        1 => Just(0_u64),
        1 => Just(NUMBER_MAX),
        1 => 0..NUMBER_MAX,
    ]
}

fn value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        4 => (-30_000_i64..300_000).prop_map(|v| Some(v as f64 / 100.0)),
        1 => prop::num::f64::NORMAL.prop_map(Some),
        1 => prop::sample::select(vec![f64::MAX, f64::MIN, f64::MIN_POSITIVE, 1e6]).prop_map(Some),
        1 => Just(None),
    ]
}

prop_compose! {
    fn event()(
        kind in prop::sample::select(EventKind::ALL.to_vec()),
        source in prop::sample::select(EventSource::ALL.to_vec()),
        seq in number(),
        at in time(),
        elapsed_s in prop_oneof![4 => 0.0..1_500.0_f64, 1 => Just(0.0_f64), 1 => Just(1e7_f64)],
        session in prop::sample::select(SESSIONS.to_vec()),
        bt_c in value(),
        note in prop::option::of(".{0,20}"),
    ) -> MachineEvent {
        let session = SessionId::new(session).unwrap();
        MachineEvent { kind, seq, at, elapsed_s, session, source, bt_c, note }
    }
}

prop_compose! {
    fn frame()(
        first_seq in prop::option::of(number()),
        boot_id in prop::sample::select(vec![1, 2, u64::MAX]),
        mono_ms in number(),
        wall in time(),
        clock in prop::sample::select(vec![
            ClockQuality::Unknown, ClockQuality::FreeRunning, ClockQuality::Synchronised,
        ]),
        steps in prop::collection::vec(prop_oneof![9 => 0..3_000_u32, 1 => 0..7_000_000_u32], 0..12),
        channels in prop::sample::subsequence(
            vec!["btC", "etC", "gasPct", "inletC", "motor_rpm"], 0..=5),
        values in prop::collection::vec(value(), 60),
        remarks in prop::collection::btree_set(0..12_u16, 0..3),
        events in prop::collection::vec(event(), 0..3),
    ) -> (Option<u64>, Frame) {
        let mut sum = 0;
        let offsets = steps.iter().enumerate().map(|(i, step)| {
            sum += if i == 0 { 0 } else { *step };
            sum
        });
        let offsets_ms: Vec<u32> = offsets.collect();
        let count = offsets_ms.len();
        let quality: Vec<_> = remarks.into_iter().filter(|i| usize::from(*i) < count)
            .map(|i| (i, Quality::Spike)).collect();
        let columns = channels.iter().zip(values.chunks(12)).map(|(name, values)| Column {
            channel: Channel::parse(name).unwrap(),
            values: values[..count].to_vec(),
            quality: quality.clone(),
        });
        let frame = Frame {
            origin: origin("none", "r-1"),
            chain: CHAIN,
            number: 1,
            previous: None,
            boot_id,
            first_seq: 0,
            mono_ms,
            wall,
            clock,
            profile_digest: None,
            offsets_ms,
            columns: columns.collect(),
            events,
        };
        (first_seq, frame)
    }
}

prop_compose! {
    /// Its organisation and, if it is `honest`, its frames are set when it is sent.
    fn receipt()(
        honest in any::<bool>(),
        session in prop::sample::select(SESSIONS.to_vec()),
        (first_frame, frames) in (number(), number()),
        (first_seq, samples) in (number(), number()),
        (started, ended) in (time(), time()),
    ) -> (bool, Receipt) {
        let last = |first: u64, more: u64| first.saturating_add(more).min(NUMBER_MAX);
        let receipt = Receipt {
            origin: origin("none", "r-1"),
            session: SessionId::new(session).unwrap(),
            chain: CHAIN,
            first_frame,
            last_frame: last(first_frame, frames),
            first_seq,
            last_seq: last(first_seq, samples),
            started,
            ended,
            digest: Digest([0; 32]),
        };
        (honest, receipt)
    }
}

fn json_number() -> impl Strategy<Value = Value> {
    let hostile = vec![
        Value::Null,
        json!(-1),
        json!(1e308),
        json!(-1e308),
        json!(1e7),
        json!(u64::MAX),
        json!(i64::MIN),
        json!("NaN"),
        json!([1]),
    ];
    prop_oneof![
        6 => (-50.0..1_000.0_f64).prop_map(|number| json!(number)),
        1 => prop::sample::select(hostile),
    ]
}

fn json_time() -> impl Strategy<Value = Value> {
    let hostile = vec![
        Value::Null,
        json!("-009999-01-01T00:00:00Z"),
        json!("9999-12-31T23:59:59Z"),
        json!("2025-10-09T08:53"),
        json!(5),
    ];
    prop_oneof![
        6 => time().prop_map(|time| json!(time)),
        1 => prop::sample::select(hostile),
    ]
}

prop_compose! {
    fn message()(
        is_event in prop::bool::weighted(0.3),
        ts in json_time(),
        elapsed in json_number(),
        bt in json_number(),
        extra in json_number(),
        kind in prop::sample::select(EventKind::ALL.to_vec()),
    ) -> (PayloadKind, Value) {
        if is_event {
            let payload = json!({"elapsedSeconds": elapsed, "btC": bt, "extra": extra});
            let event = json!({"ts": ts, "machineId": "r-2", "type": kind, "payload": payload});
            return (PayloadKind::Event, event);
        }
        let point = json!({
            "ts": ts, "machineId": "r-2", "elapsedSeconds": elapsed, "btC": bt, "gasPct": bt,
            "extras": {"inletC": extra},
        });
        (PayloadKind::Telemetry, point)
    }
}

prop_compose! {
    pub(super) fn delivery()(
        frames in prop::collection::vec(frame(), 0..5),
        damage in (any::<Index>(), 0..8_u8),
        receipt in prop::option::of(receipt()),
        messages in prop::collection::vec(message(), 0..6),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) -> Delivery {
        Delivery { frames, damage, receipt, messages, noise }
    }
}
