//! Tests that encoded data decodes to the same value, and that no bytes make a decoder panic.

use contract::envelope::{self, PayloadKind};
use contract::point::ExtraValue;
use contract::*;
use proptest::prelude::*;

fn origin() -> Origin {
    Origin {
        org: OrgId::new("acme").unwrap(),
        site: SiteId::new("leipzig").unwrap(),
        machine: MachineId::new("r-1").unwrap(),
    }
}

/// Generates values as machines send them: tenths, hundredths, raw doubles, and missing values.
fn value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        4 => (-300_000_i64..3_000_000).prop_map(|v| Some(v as f64 / 100.0)),
        1 => prop::num::f64::NORMAL.prop_map(Some),
        1 => Just(Some(0.0)),
        1 => Just(None),
    ]
}

prop_compose! {
    fn event()(
        kind in prop::sample::select(EventKind::ALL.to_vec()),
        source in prop::sample::select(EventSource::ALL.to_vec()),
        seq in 0..1_u64 << 53,
        at in 0..253_402_207_200_000_i64,
        elapsed_s in 0.0..5000.0,
        bt_c in prop::option::of(-50.0..400.0),
        note in prop::option::of(".{0,40}"),
    ) -> MachineEvent {
        let session = SessionId::compose(&origin(), EpochMs(at), 7);
        MachineEvent { kind, seq, at: EpochMs(at), elapsed_s, session, source, bt_c, note }
    }
}

prop_compose! {
    fn frame()(
        number in 1..1_u64 << 53,
        previous in prop::option::of(any::<[u8; 32]>()),
        profile in prop::option::of(any::<[u8; 32]>()),
        chain in any::<[u8; 16]>(),
        boot_id in any::<u64>(),
        first_seq in 0..1_u64 << 40,
        mono_ms in 0..1_u64 << 53,
        wall in 0..253_402_207_200_000_i64,
        steps in prop::collection::vec(0..5_000_u32, 0..40),
        names in prop::collection::hash_set("[a-zA-Z][a-zA-Z0-9_]{0,31}", 0..5),
        standard in prop::sample::subsequence(Channel::STANDARD.to_vec(), 0..=7),
        pool in prop::collection::vec(value(), 500),
        marks in prop::collection::btree_set(0..40_u16, 0..4),
        events in prop::collection::vec(event(), 0..4),
    ) -> Frame {
        let mut sum = 0;
        let offsets_ms: Vec<u32> = steps.iter().enumerate().map(|(i, step)| {
            if i > 0 { sum += step; }
            sum
        }).collect();
        let n = offsets_ms.len();
        let channels = standard.into_iter().chain(names.iter().filter_map(|n| Channel::parse(n)));
        let mut columns: Vec<Column> = Vec::new();
        for (i, channel) in channels.enumerate() {
            if columns.iter().any(|c| c.channel == channel) { continue; }
            let values = (0..n).map(|j| pool[(i * 41 + j) % pool.len()]).collect();
            let quality = marks.iter().filter(|m| usize::from(**m) < n)
                .map(|m| (*m, Quality::Spike)).collect();
            columns.push(Column { channel, values, quality });
        }
        Frame {
            origin: origin(), chain: ChainId(chain), number, previous: previous.map(Digest), boot_id,
            first_seq, mono_ms, wall: EpochMs(wall), clock: ClockQuality::Synchronised,
            profile_digest: profile.map(Digest),
            offsets_ms, columns, events,
        }
    }
}

proptest! {
    #[test]
    fn a_frame_decodes_to_the_same_bits(frame in frame()) {
        let bytes = frame.encode();
        let back = Frame::decode(&bytes).unwrap();
        prop_assert_eq!(&back, &frame);
        prop_assert_eq!(back.encode(), bytes);
    }

    #[test]
    fn a_damaged_frame_does_not_panic_and_a_cut_one_is_an_error(
        frame in frame(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>()
    ) {
        let whole = frame.encode();
        let mut bytes = whole.clone();
        let i = at.index(bytes.len());
        bytes[i] ^= 1 << bit;
        let _ = Frame::decode(&bytes);
        prop_assert!(Frame::decode(&whole[..cut.index(whole.len())]).is_err());
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Frame::decode(&bytes);
        let _ = Receipt::decode(&bytes);
        let _ = envelope::decode(&bytes, PayloadKind::Telemetry, &origin());
        let _ = serde_json::from_slice::<Ack>(&bytes);
    }

    #[test]
    fn no_json_makes_the_envelope_reader_panic(text in r#"\{("(ts|payload|origin|machineId|elapsedSeconds|gasPct|extras|sig)":(1|-1|null|"x"|\{\}|\[\]|"2025-01-01T00:00:00Z"),?){0,6}\}"#) {
        let _ = envelope::decode(text.as_bytes(), PayloadKind::Telemetry, &origin());
        let _ = envelope::decode(text.as_bytes(), PayloadKind::Event, &origin());
    }

    #[test]
    fn a_receipt_decodes_to_the_same_value(first in 1..1_u64 << 40, frames in 0..9_999_u64, seq in 0..1_u64 << 40, n in 0..99_999_u64, d in any::<[u8; 32]>()) {
        let receipt = Receipt {
            origin: origin(), session: SessionId::new("S-1").unwrap(), chain: ChainId([3; 16]),
            first_frame: first, last_frame: first + frames, first_seq: seq, last_seq: seq + n,
            started: EpochMs(1), ended: EpochMs(2), digest: Digest(d),
        };
        prop_assert_eq!(Receipt::decode(&receipt.encode()).unwrap(), receipt);
    }
}

const POINT: &str = r#"{"ts":"2025-10-05T21:08:15.250Z","machineId":"r-1","elapsedSeconds":12.5,"btC":150.2,"etC":0,"gasPct":65,"extras":{"inletC":240.5,"note":"x"},"unknown":1}"#;

#[test]
fn nested_and_flat_envelopes_decode_to_the_same_payload() {
    let flat = envelope::decode(POINT.as_bytes(), PayloadKind::Telemetry, &origin()).unwrap();
    let nested = format!(
        r#"{{"ts":"2025-10-05T21:08:15Z","origin":{{"orgId":"acme","siteId":"leipzig","machineId":"r-1"}},"topic":"telemetry","payload":{POINT}}}"#
    );
    let nested = envelope::decode(nested.as_bytes(), PayloadKind::Telemetry, &origin()).unwrap();
    assert_eq!(flat.payload, nested.payload);
    assert!(nested.nested && !flat.nested);
    let envelope::Payload::Telemetry(point) = flat.payload else { panic!("a point") };
    assert_eq!(point.et_c, Some(0.0), "zero is a value");
    assert_eq!(
        serde_json::to_string(&point).unwrap(),
        r#"{"ts":"2025-10-05T21:08:15.250Z","machineId":"r-1","elapsedSeconds":12.5,"btC":150.2,"etC":0.0,"gasPct":65.0,"extras":{"inletC":240.5,"note":"x"}}"#
    );
}

#[test]
fn a_field_that_cannot_be_read_is_named_and_costs_only_itself() {
    for (from, to, expected) in [
        (r#""ts":"2025-10-05T21:08:15.250Z","#, "", "ts: missing"),
        ("2025-10-05T21:08:15.250Z", "2025-10-05", "ts: \"2025-10-05\" is not a full ISO 8601"),
        (r#""2025-10-05T21:08:15.250Z""#, "1759698495", "ts: 1759698495 is not an ISO 8601 text"),
        (r#""elapsedSeconds":12.5"#, r#""elapsedSeconds":"12""#, "elapsedSeconds: \"12\" is not a"),
        (r#""elapsedSeconds":12.5"#, r#""elapsedSeconds":-1"#, "elapsedSeconds: -1 is not between"),
        (r#""elapsedSeconds":12.5,"#, "", "elapsedSeconds: missing"),
        (r#""gasPct":65"#, r#""gasPct":100.4"#, "gasPct: 100.4 is not between 0 and 100"),
        (r#""etC":0"#, r#""etC":"210.5""#, "etC: \"210.5\" is not a number"),
        (r#""etC":0"#, r#""etC":NaN"#, "etC: \"NaN\" is not a number"),
        (r#""etC":0"#, r#""etC":-Infinity"#, "etC: \"-Infinity\" is not a number"),
        (r#""etC":0"#, r#""etC":1e300"#, "etC: 1"),
        (r#""note":"x""#, r#""note":[1]"#, "extras.note: neither a number nor a text"),
        (r#""note":"x""#, r#""a\nb":[1]"#, r"extras.a\nb: neither a number nor a text"),
        (r#""gasPct":65"#, r#""batchId":7"#, "batchId: not a string"),
    ] {
        let text = POINT.replace(from, to);
        let read = envelope::decode(text.as_bytes(), PayloadKind::Telemetry, &origin()).unwrap();
        let named: Vec<String> = read.problems.iter().map(ToString::to_string).collect();
        assert!(named.len() == 1 && named[0].starts_with(expected), "{named:?} is not {expected}");
        assert_eq!(read.ts_known, !expected.starts_with("ts"), "{text}");
        assert_eq!(read.elapsed_known, !expected.starts_with("elapsed"), "{text}");
        let envelope::Payload::Telemetry(point) = read.payload else { panic!("a point") };
        assert_eq!(point.bt_c, Some(150.2), "{text}");
        assert_eq!(point.extras.get("inletC"), Some(&ExtraValue::Number(240.5)), "{text}");
    }
    let null = POINT.replace(r#""etC":0"#, r#""etC":null"#);
    let read = envelope::decode(null.as_bytes(), PayloadKind::Telemetry, &origin()).unwrap();
    assert_eq!(read.problems, [], "null is a missing value");
}

#[test]
fn a_message_without_its_machine_or_kind_is_refused_with_the_field() {
    let refused = |text: &str, kind, expected: &str| {
        let error = envelope::decode(text.as_bytes(), kind, &origin()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error} is not {expected}");
    };
    let machine = |to: &str| POINT.replace(r#""machineId":"r-1""#, to);
    for (to, expected) in [
        (r#""machineId":"r/1""#, "machineId: machineId contains '/'"),
        (r#""machineId":"r-2""#, "origin says r-2, the topic says r-1"),
        (r#""machineId":1"#, "machineId: not a string"),
        (r#""m":1"#, "machineId: missing field `machineId`"),
    ] {
        refused(&machine(to), PayloadKind::Telemetry, expected);
    }
    let event = r#"{"ts":"2025-10-05T21:08:15Z","machineId":"r-1","type":"BANG"}"#;
    refused(event, PayloadKind::Event, "type: unknown type \"BANG\"");
    refused(POINT, PayloadKind::Event, "type: missing field `type`");
    refused("[1]", PayloadKind::Event, "message: not a JSON object");
    refused(r#"{"a":NaN"#, PayloadKind::Event, "not JSON: ");
}

#[test]
fn an_event_keeps_its_payload_without_impossible_numbers() {
    let text = r#"{"ts":"2025-10-05T21:08:15Z","machineId":"r-1","type":"NOTE","batchId":"B-7",
        "payload":{"elapsedSeconds":1e300,"btC":"hot","text":"smells of hay","deep":{"a":[1]}}}"#;
    let read = envelope::decode(text.as_bytes(), PayloadKind::Event, &origin()).unwrap();
    assert_eq!((read.problems.len(), read.elapsed_known), (2, false));
    let envelope::Payload::Event(event) = read.payload else { panic!("an event") };
    let payload = serde_json::json!({"text": "smells of hay", "deep": {"a": [1]}});
    assert_eq!(event.payload.map(serde_json::Value::Object), Some(payload));
    assert_eq!(event.batch_id.as_deref(), Some("B-7"));
    let long = text.replace("smells of hay", &"x".repeat(20_000)).replace("1e300", "12");
    let read = envelope::decode(long.as_bytes(), PayloadKind::Event, &origin()).unwrap();
    let envelope::Payload::Event(event) = read.payload else { panic!("an event") };
    assert_eq!((event.elapsed_seconds(), event.payload.map(|p| p.len())), (Some(12.0), Some(1)));
}

#[test]
fn an_envelope_that_names_another_machine_is_refused() {
    let nested = format!(
        r#"{{"origin":{{"orgId":"rival","siteId":"leipzig","machineId":"r-1"}},"topic":"telemetry","payload":{POINT}}}"#
    );
    let error = envelope::decode(nested.as_bytes(), PayloadKind::Telemetry, &origin()).unwrap_err();
    assert_eq!(error.to_string(), "origin says rival/leipzig/r-1, the topic says acme/leipzig/r-1");
}

#[test]
fn a_minute_at_ten_hertz_takes_less_than_seven_bytes_per_sample() {
    let n: i32 = 600;
    let column = |channel, f: &dyn Fn(f64) -> f64| Column {
        channel,
        values: (0..n).map(|i| Some((f(f64::from(i) / 10.0) * 100.0).round() / 100.0)).collect(),
        quality: Vec::new(),
    };
    let frame = Frame {
        origin: origin(),
        chain: ChainId([1; 16]),
        number: 1,
        previous: None,
        boot_id: 1,
        first_seq: 0,
        mono_ms: 0,
        wall: EpochMs(0),
        clock: ClockQuality::Unknown,
        profile_digest: None,
        offsets_ms: (0..n.cast_unsigned()).map(|i| i * 100).collect(),
        columns: vec![
            column(Channel::Bt, &|t| 150.0 + t * 0.2 + (t * 3.0).sin() * 0.1),
            column(Channel::Et, &|t| 190.0 + t * 0.1),
            column(Channel::Gas, &|_| 65.0),
        ],
        events: vec![],
    };
    let per_sample = frame.encode().len() as f64 / f64::from(n);
    assert!(per_sample < 7.0, "{per_sample} bytes a sample");
}

#[test]
fn numbers_outside_their_meaning_are_refused() {
    let event = |seq: u64, at: i64, elapsed_s: f64| MachineEvent {
        kind: EventKind::Charge,
        seq,
        at: EpochMs(at),
        elapsed_s,
        session: SessionId::compose(&origin(), EpochMs(0), 7),
        source: EventSource::Machine,
        bt_c: None,
        note: None,
    };
    let decode = |event: MachineEvent| {
        let frame = Frame {
            origin: origin(),
            chain: ChainId([7; 16]),
            number: 1,
            previous: None,
            boot_id: u64::MAX,
            first_seq: 0,
            mono_ms: 0,
            wall: EpochMs(0),
            clock: ClockQuality::Unknown,
            profile_digest: None,
            offsets_ms: Vec::new(),
            columns: Vec::new(),
            events: vec![event],
        };
        Frame::decode(&frame.encode())
    };
    assert!(decode(event((1 << 53) - 1, 253_402_207_200_000, 1e7)).is_ok());
    for (seq, at, elapsed_s, field) in [
        (0, 0, -1e300, "elapsed"),
        (0, 0, -0.001, "elapsed"),
        (0, 0, 1e300, "elapsed"),
        (0, 0, 1e7 + 1.0, "elapsed"),
        (u64::MAX, 0, 0.0, "seq"),
        (1 << 53, 0, 0.0, "seq"),
        (0, i64::MIN, 0.0, "at"),
        (0, 253_402_207_200_001, 0.0, "at"),
    ] {
        let error = decode(event(seq, at, elapsed_s)).unwrap_err().to_string();
        assert!(error.contains(&format!("events[].{field}")), "{seq} {at} {elapsed_s}: {error}");
    }
}
