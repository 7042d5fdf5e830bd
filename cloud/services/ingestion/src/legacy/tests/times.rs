//! Times that cannot be right, stand still or are rounded.

use contract::point::ExtraValue;

use super::*;

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
            (0..f64::ceil(2.2 * rate) as i32).map(|n| f64::from(n) / rate).collect();
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
