//! Tests of whole messages on SQLite: from the bytes of a publisher to what clients read.
#![allow(clippy::cast_possible_truncation, clippy::float_cmp)] // small, exact numbers

use contract::point::ExtraValue;
use serde_json::{Value, json};

use super::*;
use crate::row_json;
use crate::store::{Extras, Outcome, SessionFilter};

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

#[tokio::test]
async fn a_charge_that_overtakes_the_first_point_opens_the_next_roast() {
    for with_drop in [true, false] {
        let publisher = Publisher::new().await;
        for s in 0..4 {
            let s = f64::from(s) * 50.0;
            publisher.point(&point(0.0, s), s).await;
        }
        if with_drop {
            publisher.event(&event("DROP", 0.0, 150.0), 150.0).await;
        }
        publisher.event(&event("CHARGE", 200.0, 0.0), 200.0).await;
        for s in 0..3 {
            let s = f64::from(s);
            publisher.point(&point(200.0, s), 200.0 + s).await;
        }
        let sessions = publisher.sessions().await;
        let starts: Vec<i64> = sessions.iter().map(|s| s.started_ms - NOW.0).collect();
        assert_eq!(starts, [0, 200_000], "DROP {with_drop}");
        assert_eq!(
            (publisher.count(&sessions[0]).await, publisher.count(&sessions[1]).await),
            (4, 3)
        );
        assert!(sessions[0].last_seq.is_some(), "its end is stored");
        assert_eq!(sessions[0].duration_s(), with_drop.then_some(150.0));
    }
}

#[tokio::test]
async fn a_charge_opens_the_first_roast_of_a_machine() {
    let publisher = Publisher::new().await;
    publisher.event(&event("CHARGE", 0.0, 0.0), 0.0).await;
    publisher.point(&point(0.0, 0.0), 0.0).await;
    publisher.point(&point(0.0, 1.0), 1.0).await;
    let sessions = publisher.sessions().await;
    assert_eq!((sessions.len(), sessions[0].started_ms), (1, NOW.0));
    assert_eq!(publisher.count(&sessions[0]).await, 2);
    let events = publisher.store.events_of(&publisher.origin.org, &sessions[0].session_id).await;
    assert_eq!(events.unwrap().len(), 1);
}

#[tokio::test]
async fn a_roast_without_a_drop_keeps_only_its_own_points() {
    let publisher = Publisher::new().await;
    for start in [0.0, 60.0, 120.0] {
        for s in 0..3 {
            let s = f64::from(s);
            publisher.point(&point(start, s), start + s).await;
        }
    }
    let sessions = publisher.sessions().await;
    let ends: Vec<Option<i64>> = sessions.iter().map(|session| session.last_seq).collect();
    assert_eq!(ends, [Some(3), Some(6), None]);
    for session in &sessions {
        assert_eq!(publisher.count(session).await, 3);
    }
}

/// The elapsed time of some publishers never starts over, and their CHARGE is detected late.
#[tokio::test]
async fn a_charge_that_is_detected_late_takes_the_samples_since_its_time() {
    let publisher = Publisher::new().await;
    for s in [0.0, 50.0, 100.0, 150.0] {
        publisher.point(&point(0.0, s), s).await;
    }
    publisher.event(&event("DROP", 0.0, 150.0), 150.0).await;
    for s in [190.0, 200.0, 210.0, 220.0] {
        publisher.point(&point(0.0, s), s).await;
    }
    publisher.event(&event("CHARGE", 200.0, 0.0), 225.0).await;
    publisher.point(&point(0.0, 230.0), 230.0).await;
    let sessions = publisher.sessions().await;
    assert_eq!((sessions.len(), sessions[1].started_ms), (2, NOW.0 + 200_000));
    let counts = (publisher.count(&sessions[0]).await, publisher.count(&sessions[1]).await);
    assert_eq!(counts, (4, 4), "the samples between the roasts belong to none");
    let (store, org) = (&publisher.store, &publisher.origin.org);
    let (first, last) = store.sample_range(&sessions[1]).await.unwrap();
    let chain = sessions[1].chain_no;
    let frames = store.frames_of_range(org, chain, first, last, 100).await.unwrap();
    assert_eq!(row_json::elapsed_shift_s(&frames[0], &sessions[1], first), 200.0);
    assert_eq!(row_json::elapsed_shift_s(&frames[1], &sessions[0], first), 0.0, "its own");
}

#[tokio::test]
async fn what_a_publisher_says_comes_back_as_it_came() {
    let publisher = Publisher::new().await;
    for s in 0..3 {
        // Ten times as fast as it was roasted, with a clock of its own.
        let mut body = point(0.0, f64::from(s) * 1.02);
        body["elapsedSeconds"] = json!(f64::from(s) * 10.0);
        body["batchId"] = json!("B-7");
        body["extras"] = json!({"Inlet temp (°C)": 240.5, "damper": "open", "btC": 1});
        publisher.point(&body, f64::from(s)).await;
    }
    let mut note = event("NOTE", 0.0, 1.0);
    note["payload"]["text"] = json!("smells of hay");
    note["payload"]["targetSeconds"] = json!(480);
    note["batchId"] = json!("B-7");
    publisher.event(&note, 3.0).await;
    publisher.event(&event("DROP", 0.0, 20.0), 4.0).await;
    let mut cooling = point(0.0, 25.0);
    cooling["elapsedSeconds"] = json!(30.0);
    publisher.point(&cooling, 5.0).await;

    let streamed = publisher.streamed().await;
    assert_eq!(streamed.iter().map(elapsed_of).collect::<Vec<_>>(), [0.0, 10.0, 20.0, 30.0]);
    let session = publisher.sessions().await.remove(0);
    for envelope in &streamed {
        assert_eq!(envelope.session_id.as_deref(), Some(session.session_id.as_str()));
    }
    assert_eq!(session.duration_s(), Some(20.0), "as its DROP says");
    // From the frames, and from the curve, which remains when the frames are dropped.
    let (store, org) = (&publisher.store, &publisher.origin.org);
    store.make_curve(org, &session, true, NOW).await.unwrap();
    let (first, last) = store.sample_range(&session).await.unwrap();
    let frames = store.frames_of_range(org, session.chain_no, first, last, 100).await.unwrap();
    let curve = store.curve(org, &session.session_id).await.unwrap().unwrap();
    for rows in [frames, vec![curve]] {
        let machine = &publisher.origin.machine;
        let mut points: Vec<TelemetryPoint> = Vec::new();
        for row in &rows {
            let row = (row, &Extras::parse(row.extras.as_deref()));
            let of_row = row_json::telemetry_points(row, machine, Some(&session), first, last);
            points.extend(of_row.map(|(_, point)| point));
        }
        assert_eq!(points.len(), 3);
        for (i, point) in points.iter().enumerate() {
            assert_eq!(point.elapsed_seconds, i as f64 * 10.0);
            assert_eq!((point.batch_id.as_deref(), point.bt_c), (Some("B-7"), Some(200.0)));
            let extras: Vec<_> = point.extras.iter().map(|(name, v)| (name.as_str(), v)).collect();
            let text = ExtraValue::Text("open".to_owned());
            let (inlet, bt) = (ExtraValue::Number(240.5), ExtraValue::Number(1.0));
            assert_eq!(extras, [("Inlet temp (°C)", &inlet), ("btC", &bt), ("damper", &text)]);
        }
    }
    let events = store.events_of(org, &session.session_id).await.unwrap();
    let note = row_json::roast_event(&events[0], &publisher.origin.machine).unwrap();
    let expected = json!({"elapsedSeconds": 1.0, "text": "smells of hay", "targetSeconds": 480,
                          "source": "machine"});
    assert_eq!(
        (note.payload.map(Value::Object), note.batch_id.as_deref()),
        (Some(expected), Some("B-7"))
    );
}

#[tokio::test]
async fn the_key_of_signed_points_names_the_device_of_the_session() {
    let publisher = Publisher::new().await;
    let mut message = publisher.read(PayloadKind::Telemetry, &point(0.0, 0.0), 0.0).await;
    let kid = "device:r-1@leipzig".to_owned();
    if let Some(PublishedMessage::Sample(samples, _)) = &mut message.frame.published {
        samples.contexts[0].1.kid = Some(kid.clone());
    }
    message.frame.trust = Trust::Verified;
    publisher.commit(message.frame).await;
    publisher.point(&point(0.0, 1.0), 1.0).await;
    let kids: Vec<Option<String>> =
        publisher.streamed().await.into_iter().map(|envelope| envelope.kid).collect();
    assert_eq!(kids, [Some(kid.clone()), None]);
    let session = publisher.sessions().await.remove(0);
    let (totals, kids) =
        publisher.store.totals_with_kids(&publisher.origin.org, &session).await.unwrap();
    assert_eq!((totals.verified, totals.unsigned), (1, 1));
    assert_eq!(kids.into_iter().collect::<Vec<_>>(), [kid]);
}

#[tokio::test]
async fn a_time_far_from_the_arrival_is_replaced_and_marked() {
    for wrong in [
        json!("1970-01-01T00:16:40Z"),
        json!("2099-12-31T23:59:59Z"),
        json!(1_795_000_000),
        json!("2026-11-18T12:00:00"),
    ] {
        let publisher = Publisher::new().await;
        for s in 0..3 {
            let mut body = point(0.0, f64::from(s));
            body["ts"] = wrong.clone();
            let message = publisher.read(PayloadKind::Telemetry, &body, f64::from(s)).await;
            assert_eq!(message.problems[0].field, "ts");
            assert_eq!(publisher.commit(message.frame).await, Outcome::Stored, "{wrong}");
        }
        let sessions = publisher.sessions().await;
        assert_eq!(sessions.len(), 1, "{wrong}");
        assert_eq!(sessions[0].started_ms, NOW.0, "{wrong}");
        let streamed = publisher.streamed().await;
        assert_eq!(streamed.iter().map(elapsed_of).collect::<Vec<_>>(), [0.0, 1.0, 2.0]);
        for envelope in &streamed {
            let Payload::Telemetry(point) = &envelope.payload else { panic!("a point") };
            let mark = ExtraValue::Text(FROM_ARRIVAL.to_owned());
            assert_eq!(point.extras.get(TIME_SOURCE), Some(&mark));
            assert!((NOW..=after(2.0)).contains(&point.ts), "{}", point.ts);
        }
    }
}

#[tokio::test]
async fn a_machine_whose_name_is_no_identity_is_returned_as_its_publisher_names_it() {
    let topic = "roaster/org/Halle 1/Loring S35/telemetry";
    let (origin, _) = contract::topic::parse_topic(topic).unwrap();
    let publisher = Publisher { origin, ..Publisher::new().await };
    let mut body = point(0.0, 0.0);
    body["machineId"] = json!("Loring S35");
    assert_eq!(publisher.point(&body, 0.0).await, Outcome::Stored);
    let payload = point(0.0, 1.0);
    let named = json!({"orgId": "org", "siteId": "Halle 1", "machineId": "Loring S35"});
    let mut nested = json!({"ts": NOW, "origin": named, "topic": "telemetry", "payload": payload});
    nested["payload"]["machineId"] = json!("Loring S35");
    assert_eq!(publisher.point(&nested, 1.0).await, Outcome::Stored);
    let session = publisher.sessions().await.remove(0);
    assert_eq!(
        (session.machine_id.as_str(), session.site_id.as_str()),
        ("@Loring:20S35", "@Halle:201")
    );
    for envelope in publisher.streamed().await {
        let sent = serde_json::to_value(&envelope).unwrap();
        assert_eq!(
            (&sent["origin"], &sent["payload"]["machineId"]),
            (&named, &json!("Loring S35"))
        );
        let located: Value =
            serde_json::from_str(&row_json::located_json(&envelope).unwrap()).unwrap();
        assert_eq!(
            (&located["siteId"], &located["machineId"]),
            (&json!("Halle 1"), &json!("Loring S35"))
        );
    }
}

/// The clock of `r-1` is 30 minutes ahead; its roast began five minutes before that of `r-2`.
#[tokio::test]
async fn a_publisher_ahead_of_its_arrival_heads_no_list() {
    let ahead = Publisher::new().await;
    for s in 0..3 {
        let s = f64::from(s);
        let message = ahead.read(PayloadKind::Telemetry, &point(1_800.0, s), s).await;
        assert!(message.problems[0].problem.contains("is far from its arrival"));
        ahead.commit(message.frame).await;
    }
    for envelope in ahead.streamed().await {
        assert!(envelope.ts <= after(2.0), "{}", envelope.ts);
        let Payload::Telemetry(point) = &envelope.payload else { panic!("a point") };
        assert!(point.extras.contains_key(TIME_SOURCE));
    }
    let right = Publisher { origin: "org/leipzig/r-2".parse().unwrap(), ..ahead };
    let mut body = point(300.0, 0.0);
    body["machineId"] = json!("r-2");
    right.point(&body, 300.0).await;
    let begun: Vec<_> =
        right.sessions().await.into_iter().map(|s| (s.machine_id, s.status)).collect();
    let active = |machine: &str| (machine.to_owned(), "ACTIVE".to_owned());
    assert_eq!(begun, [active("r-1"), active("r-2")], "the newest last");
}

#[tokio::test]
async fn a_publisher_whose_time_stands_still_loses_no_point() {
    for elapsed in [json!("soon"), json!(0.0)] {
        let publisher = Publisher::new().await;
        let mut body = point(0.0, 0.0);
        body["elapsedSeconds"] = elapsed;
        for s in 0..5 {
            let s = f64::from(s);
            assert_eq!(publisher.point(&body, s).await, Outcome::Stored, "{s}");
            assert_eq!(publisher.point(&body, s).await, Outcome::Duplicate, "at once");
        }
        let drop = json!({"ts": NOW, "machineId": "r-1", "type": "DROP", "payload": {}});
        publisher.event(&drop, 4.5).await;
        let session = publisher.sessions().await.remove(0);
        assert_eq!((publisher.count(&session).await, session.duration_s()), (5, Some(4.0)));
        let times: Vec<EpochMs> = publisher.streamed().await.iter().map(|one| one.ts).collect();
        assert_eq!(times, [0.0, 1.0, 2.0, 3.0, 4.0].map(after));
    }
    // A point that is sent again after a while says the same elapsed time.
    let publisher = Publisher::new().await;
    publisher.point(&point(0.0, 7.0), 7.0).await;
    assert_eq!(publisher.point(&point(0.0, 7.0), 20.0).await, Outcome::Duplicate);
}

/// The publisher says its elapsed time, or none; its clock stands at a possible time, or at 1970.
#[tokio::test]
async fn a_time_that_stands_still_is_recognised_at_any_rate() {
    for (rate, with_elapsed, ts) in [
        (1.5, true, NOW),
        (1.5, false, NOW),
        (5.0, true, NOW),
        (5.0, false, NOW),
        (20.0, true, EpochMs(1_000)),
        (20.0, false, EpochMs(1_000)),
    ] {
        let publisher = Publisher::new().await;
        let arrivals: Vec<f64> =
            (0..(2.2 * rate).ceil() as i32).map(|n| f64::from(n) / rate).collect();
        for s in &arrivals {
            let elapsed = if with_elapsed { json!(s) } else { json!("soon") };
            let body = json!({"ts": ts, "machineId": "r-1", "elapsedSeconds": elapsed,
                "btC": 200.0 + s});
            assert_eq!(publisher.point(&body, *s).await, Outcome::Stored, "{rate} Hz at {s} s");
        }
        let times: Vec<EpochMs> = publisher.streamed().await.iter().map(|one| one.ts).collect();
        assert_eq!(times.len(), arrivals.len(), "{rate} Hz");
        for (time, s) in times.iter().zip(&arrivals).filter(|(_, s)| **s >= 1.6) {
            assert_eq!(*time, after(*s), "{rate} Hz, elapsed time {with_elapsed}");
        }
        assert!(times.is_sorted(), "{rate} Hz: {times:?}");
    }
}

/// Five samples a second have one time, and some of them are held up on the way.
#[tokio::test]
async fn many_points_with_one_rounded_time_are_kept() {
    let publisher = Publisher::new().await;
    for n in 0..20 {
        let s = f64::from(n) / 5.0;
        let mut body = point(0.0, s);
        body["ts"] = json!(after(s.floor()));
        let arrival = if n < 7 { s + 2.0 } else { 5.0_f64.max(s + 2.0) };
        assert_eq!(publisher.point(&body, arrival).await, Outcome::Stored, "{s}");
    }
    let times: Vec<EpochMs> = publisher.streamed().await.iter().map(|one| one.ts).collect();
    let expected: Vec<EpochMs> = (0..20).map(|n| after((f64::from(n) / 5.0).floor())).collect();
    assert_eq!(times, expected);
}

/// The publisher's clock is half a minute late, and it has a sample a little more often than each
/// second.
#[tokio::test]
async fn times_that_are_rounded_to_seconds_are_kept() {
    let publisher = Publisher::new().await;
    for n in 40..60 {
        let s = f64::from(n) * 0.98;
        let mut body = point(0.0, s);
        body["ts"] = json!(after(s.floor() - 30.0));
        assert_eq!(publisher.point(&body, s).await, Outcome::Stored, "{s}");
    }
    let streamed = publisher.streamed().await;
    assert_eq!(streamed.len(), 20);
    for (n, envelope) in (40..60).zip(&streamed) {
        assert_eq!(envelope.ts, after((f64::from(n) * 0.98).floor() - 30.0));
    }
}

/// The clocks of publisher and server are set back by ten minutes between two roasts.
#[tokio::test]
async fn the_samples_order_the_roasts_of_a_publisher_and_no_date_does() {
    let publisher = Publisher::new().await;
    for start in [0.0, -600.0] {
        for s in [0.0, 50.0, 100.0] {
            publisher.point(&point(start, s), start + s).await;
        }
        publisher.event(&event("FC", start, 90.0), start + 100.0).await;
        publisher.event(&event("DROP", start, 100.0), start + 101.0).await;
    }
    let sessions = publisher.sessions().await;
    let starts: Vec<i64> = sessions.iter().map(|s| s.started_ms - NOW.0).collect();
    assert_eq!(starts, [-600_000, 0]);
    for session in &sessions {
        assert_eq!((session.fc_s, session.drop_s), (Some(90.0), Some(100.0)));
        assert_eq!(publisher.count(session).await, 3);
    }
}

/// A simulation with a fixed seed counts from 1970: each of its roasts has the same bytes.
#[tokio::test]
async fn the_same_roast_played_twice_is_two_sessions() {
    // In its own time with pauses; ten times as fast; at once.
    for (speed, pause) in [(1.0, 300.0), (10.0, 1.0), (1_000.0, 0.01)] {
        let publisher = Publisher::new().await;
        let seeded = |mut body: Value, elapsed: f64| {
            body["ts"] = json!(EpochMs(42_000).plus_ms((elapsed * 1000.0) as i64));
            body
        };
        for round in [0.0, 1.0] {
            let start = round * (130.0 / speed + pause);
            for s in 0..=13 {
                let s = f64::from(s) * 10.0;
                let body = seeded(point(0.0, s), s);
                let arrival = start + s / speed;
                assert_eq!(publisher.point(&body, arrival).await, Outcome::Stored);
                assert_eq!(publisher.point(&body, arrival).await, Outcome::Duplicate, "at once");
            }
            let drop = seeded(event("DROP", 0.0, 130.0), 130.0);
            publisher.event(&drop, start + 130.0 / speed).await;
        }
        let sessions = publisher.sessions().await;
        assert_eq!(sessions.len(), 2, "speed {speed}");
        for session in &sessions {
            assert_eq!(publisher.count(session).await, 14, "speed {speed}");
            assert_eq!((session.status.as_str(), session.drop_s), ("CLOSED", Some(130.0)));
        }
        assert!(sessions[1].started_ms > sessions[0].started_ms);
    }
}

#[tokio::test]
async fn an_event_of_a_roast_of_which_nothing_arrived_is_refused() {
    let publisher = Publisher::new().await;
    let body = serde_json::to_vec(&event("FC", 0.0, 500.0)).unwrap();
    let (store, keys, origin) = (&publisher.store, &publisher.keys, &publisher.origin);
    let error =
        read(store, keys, origin, PayloadKind::Event, &body, true, NOW).await.err().unwrap();
    assert_eq!(error.to_string(), "a FC of a roast of which nothing was received");
}

#[tokio::test]
async fn a_point_without_its_elapsed_time_does_not_begin_a_roast() {
    let publisher = Publisher::new().await;
    for s in 0..20 {
        let mut body = point(0.0, f64::from(s));
        if s > 0 {
            body["elapsedSeconds"] = json!("soon");
        }
        publisher.point(&body, f64::from(s)).await;
    }
    let sessions = publisher.sessions().await;
    assert_eq!((sessions.len(), publisher.count(&sessions[0]).await), (1, 20));
    let elapsed: Vec<f64> = publisher.streamed().await.iter().map(elapsed_of).collect();
    assert_eq!(elapsed, (0..20).map(f64::from).collect::<Vec<_>>(), "by its time");
}

#[tokio::test]
async fn a_quiet_machine_has_its_newest_events_too() {
    let publisher = Publisher::new().await;
    publisher.event(&event("CHARGE", 0.0, 0.0), 0.0).await;
    let busy = Publisher { origin: "org/leipzig/r-2".parse().unwrap(), ..publisher };
    for s in 0..5 {
        let mut body = event(if s == 0 { "CHARGE" } else { "NOTE" }, 0.0, f64::from(s));
        body["machineId"] = json!("r-2");
        busy.event(&body, f64::from(s)).await;
    }
    let org = &busy.origin.org;
    let newest = async |site: Option<&'static str>, machine: Option<&'static str>| {
        let rows = busy.store.newest_events(org, (site, machine), 2).await.unwrap();
        rows.into_iter().map(|row| format!("{} {}", row.machine_id, row.kind)).collect::<Vec<_>>()
    };
    assert_eq!(newest(None, None).await, ["r-2 NOTE", "r-2 NOTE"]);
    assert_eq!(newest(None, Some("r-1")).await, ["r-1 CHARGE"]);
    assert_eq!(newest(Some("leipzig"), Some("r-2")).await.len(), 2);
    assert!(newest(Some("elsewhere"), None).await.is_empty());
    let (org, machine) = (Some(org), (None, Some("r-2")));
    let all = (0, i64::MAX);
    let resumed = busy.store.events_between(org, machine, all, 1).await.unwrap();
    assert_eq!((resumed.len(), resumed[0].event.machine_id.as_str()), (1, "r-2"));
    let frames = busy.store.frames_between(org, machine, all, (1, 100)).await.unwrap();
    assert_eq!((frames.len(), frames[0].machine_id.as_str()), (1, "r-2"));
}

/// Two instances read the first messages of a roast before either has stored one. The publisher's
/// clock and its elapsed time differ by milliseconds, and so do the starts that they compute.
#[tokio::test]
async fn a_roast_that_two_instances_begin_to_read_at_once_is_one_session() {
    for (charge, second_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let publisher = Publisher::new().await;
        // Half an hour ago the machine had another roast.
        publisher.point(&point(-2_000.0, 0.0), -2_000.0).await;
        let other = IngestStore::new(publisher.store.database().clone());
        let first = if charge {
            publisher.read(PayloadKind::Event, &event("CHARGE", 0.0, 0.0), 0.5).await
        } else {
            publisher.read(PayloadKind::Telemetry, &point(0.0, 0.5), 0.5).await
        };
        let mut body = point(0.0, 1.5);
        body["ts"] = json!(after(1.503));
        let bytes = serde_json::to_vec(&body).unwrap();
        let (keys, origin) = (KeyCache::default(), &publisher.origin);
        let kind = PayloadKind::Telemetry;
        let second = read(&other, &keys, origin, kind, &bytes, true, after(1.6)).await.unwrap();
        let no = other.chain_no(origin, CHAIN, "", NOW).await.unwrap();
        let mut frames = [(&publisher.store, first.frame), (&other, second.frame)];
        if second_first {
            frames.reverse();
        }
        for (store, frame) in frames {
            let done = store.commit(&[no], &[frame], after(2.0)).await.unwrap();
            assert_eq!(done.outcomes, [Outcome::Stored]);
        }
        publisher.point(&point(0.0, 2.5), 2.5).await;
        let case = format!("CHARGE {charge}, the second first {second_first}");
        let sessions = publisher.sessions().await;
        assert_eq!(sessions.len(), 2, "{case}");
        assert_eq!(publisher.count(&sessions[0]).await, 1, "{case}");
        let points = if charge { 2 } else { 3 };
        assert_eq!(publisher.count(&sessions[1]).await, points, "{case}");
        let org = &publisher.origin.org;
        let events = publisher.store.events_of(org, &sessions[1].session_id).await.unwrap();
        assert_eq!(events.len(), usize::from(charge), "{case}");
        let last = publisher.store.newest_frames(org, no.chain, 2).await.unwrap();
        for frame in last.iter().filter(|frame| !frame.is_empty()) {
            let context = frame.published.as_ref().and_then(|published| published.context(0));
            let session = context.and_then(|context| context.session_id.as_deref());
            assert_eq!(session, Some(sessions[1].session_id.as_str()), "{case}");
        }
    }
}

/// The publisher sends two roasts of the day before that it had kept, after one of today. The first
/// points of the second one are lost.
#[tokio::test]
async fn roasts_that_a_publisher_kept_join_none_that_began_later() {
    let publisher = Publisher::new().await;
    let (kept, next) = (-86_400.0, -80_000.0);
    publisher.point(&point(0.0, 0.0), 0.0).await;
    publisher.point(&point(0.0, 20.0), 20.0).await;
    publisher.event(&event("DROP", 0.0, 20.0), 20.5).await;
    publisher.point(&point(kept, 0.0), 30.0).await;
    publisher.point(&point(kept, 20.0), 30.1).await;
    publisher.point(&point(next, 30.0), 31.0).await;
    let sessions = publisher.sessions().await;
    let started: Vec<i64> = sessions.iter().map(|session| session.started_ms).collect();
    assert_eq!(started, [after(kept).0, after(next).0, NOW.0]);
    for (session, points) in sessions.iter().zip([2, 1, 2]) {
        assert_eq!(publisher.count(session).await, points, "{}", session.started_ms);
    }
}

/// The machine has a gateway too, whose roast has begun since.
#[tokio::test]
async fn a_late_sample_belongs_to_its_roast_whatever_other_chains_hold() {
    let publisher = Publisher::new().await;
    for s in [0.0, 1.0, 2.0] {
        publisher.point(&point(0.0, s), s).await;
    }
    publisher.event(&event("DROP", 0.0, 3.0), 3.0).await;
    let chain = ChainId([7; 16]);
    let receipt = contract::Receipt {
        origin: publisher.origin.clone(),
        session: SessionId::new("S-gateway").unwrap(),
        chain,
        first_frame: 1,
        last_frame: 2,
        first_seq: 0,
        last_seq: 10,
        started: after(1.0),
        ended: after(4.0),
        digest: contract::Digest([0; 32]),
    };
    let store = &publisher.store;
    let no = store.chain_no(&publisher.origin, chain, "kid", after(4.0)).await.unwrap();
    store.store_receipt(no, &receipt, b"signed", after(4.0)).await.unwrap();
    publisher.point(&point(0.0, 2.5), 4.0).await;
    let sessions = publisher.sessions().await;
    let ended: Vec<_> = sessions.iter().map(|session| session.last_seq).collect();
    assert_eq!((sessions.len(), ended), (2, vec![Some(5), Some(10)]));
    assert_eq!(publisher.count(&sessions[0]).await, 4);
}
