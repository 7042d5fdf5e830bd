//! Which roast a message belongs to, and where roasts begin and end.

use super::*;

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

/// The machine also has a gateway, which has begun another roast since.
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
