//! What a publisher says, and what comes back of it.

use contract::point::ExtraValue;

use super::*;
use crate::store::Extras;

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
