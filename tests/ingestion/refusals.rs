//! Tests that forged, foreign or contradictory data is refused, counted by reason, logged once, and
//! never stored, and that messages of upstream's publishers are accepted in both shapes.

use crate::support::{Cloud, PATIENCE, client};
use contract::*;
use testbed::wait_for;
use trust::{Algorithm, CONTENT_FRAME, FileKey, Signer as _};

fn origin(org: &str, machine: &str) -> Origin {
    Origin {
        org: OrgId::new(org).unwrap(),
        site: SiteId::new("leipzig").unwrap(),
        machine: MachineId::new(machine).unwrap(),
    }
}

fn key(device: &str) -> FileKey {
    FileKey::generate(format!("device:{device}@leipzig").parse().unwrap(), Algorithm::Es256)
        .unwrap()
}

fn frame(origin: Origin, number: u64, bt: f64, previous: Option<Digest>) -> Frame {
    Frame {
        origin,
        chain: ChainId([5; 16]),
        number,
        previous,
        boot_id: 1,
        first_seq: number - 1,
        mono_ms: number,
        wall: EpochMs(1_795_000_000_000),
        clock: ClockQuality::Synchronised,
        profile_digest: None,
        offsets_ms: vec![0],
        columns: vec![Column { channel: Channel::Bt, values: vec![Some(bt)], quality: vec![] }],
        events: vec![],
    }
}

fn signed(key: &FileKey, frame: &Frame) -> Vec<u8> {
    trust::sign_message(key, CONTENT_FRAME, frame.encode()).unwrap()
}

async fn post(cloud: &Cloud, body: Vec<u8>) -> (u16, serde_json::Value) {
    let answer = client().post(cloud.url("/v1/frames")).body(body).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

fn register(cloud: &Cloud, key: &FileKey, machine: &str) -> anyhow::Result<()> {
    let file = cloud.folder.path().join("device.json");
    let device = serde_json::json!({
        "orgId": "org", "siteId": "leipzig", "machines": [machine],
        "kid": key.key_id(), "publicKey": key.public_key().to_pem(),
    });
    std::fs::write(&file, device.to_string())?;
    cloud.operate(&["device", "add", &file.display().to_string()])?;
    Ok(())
}

#[tokio::test]
async fn an_invalid_frame_is_refused_with_its_reason() -> anyhow::Result<()> {
    let cloud = Cloud::start().await?;
    let (ours, other) = (key("gw-1"), key("gw-2"));
    register(&cloud, &ours, "r-1")?;
    register(&cloud, &other, "r-2")?;
    let first = frame(origin("org", "r-1"), 1, 150.0, None);
    let good = signed(&ours, &first);
    let (status, acks) = post(&cloud, good.clone()).await;
    assert_eq!((status, &acks[0]["acked"]), (200, &serde_json::json!([[1, 1]])), "{acks}");
    let (_, again) = post(&cloud, good.clone()).await;
    assert_eq!(again[0]["acked"], serde_json::json!([[1, 1]]), "a duplicate must change nothing");

    let mut flipped = signed(
        &ours,
        &frame(origin("org", "r-1"), 2, 151.0, Some(trust::sha256_digest(&first.encode()))),
    );
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let impostor = FileKey::generate("device:gw-1@leipzig".parse()?, Algorithm::Es256)?;
    let stranger = key("gw-9");
    let second = frame(origin("org", "r-1"), 2, 151.0, Some(trust::sha256_digest(&first.encode())));
    let unlinked = frame(origin("org", "r-1"), 2, 151.0, Some(Digest([1; 32])));
    for (what, body, reason) in [
        ("a flipped bit", flipped, "bad_signature"),
        ("a wrong key of the right name", signed(&impostor, &second), "bad_signature"),
        ("a key nobody knows", signed(&stranger, &second), "unknown_key"),
        ("another device's machine", signed(&other, &second), "wrong_origin"),
        (
            "a used number",
            signed(&ours, &frame(origin("org", "r-1"), 1, 199.0, None)),
            "sequence_reused",
        ),
        ("a broken chain", signed(&ours, &unlinked), "broken_chain"),
    ] {
        for _ in 0..3 {
            let (status, acks) = post(&cloud, body.clone()).await;
            assert_eq!(status, 200, "{what}");
            assert_eq!(acks[0]["refused"][0]["reason"], reason, "{what}: {acks}");
        }
        let line = format!("simcorp_ingest_refused_total{{reason=\"{reason}\"}}");
        assert!(cloud.metric(&line).await >= 3.0, "{what} is not counted");
    }
    let log = cloud.simcorp.log();
    let told = log.lines().filter(|line| line.contains("\"unknown_key\"")).count();
    assert_eq!(told, 1, "must be logged once, then counted:\n{log}");

    let ids = async |given: &'static str| {
        let asked = client().get(cloud.url("/health")).header("x-request-id", given).send();
        asked.await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(ids("order-7").await, "order-7");
    assert_eq!(ids("a b{}").await.len(), 16, "an invalid request id must be replaced");

    let rival = frame(origin("rival", "r-1"), 1, 150.0, None);
    assert_eq!(post(&cloud, signed(&ours, &rival)).await.0, 403, "another organisation");
    for (what, body) in [("no COSE", b"hello".to_vec()), ("cut off", good[..40].to_vec())] {
        let (status, answer) = post(&cloud, body).await;
        assert_eq!(status, 400, "{what}");
        assert!(answer["error"].as_str().is_some_and(|e| e.starts_with("frame 1: ")), "{answer}");
    }
    cloud.operate(&["device", "revoke", "device:gw-2@leipzig"])?;
    assert_eq!(cloud.database.query_number("SELECT count(*) FROM points")?, 1);
    assert_eq!(cloud.database.query("simcorp", "SELECT bt_c FROM points")?, "150");
    Ok(())
}

/// A row that the database cannot store blocks neither its batch nor its chain.
#[tokio::test]
async fn a_frame_that_cannot_be_stored_is_refused_alone() -> anyhow::Result<()> {
    let cloud = Cloud::start().await?;
    let ours = key("gw-1");
    register(&cloud, &ours, "r-1")?;
    cloud.database.query("simcorp", "ALTER TABLE frames ADD CHECK (bt_c[1] <> 666)")?;
    let mut previous = None;
    let mut posts = tokio::task::JoinSet::new();
    for number in 1..=40 {
        let bt = if number == 20 { 666.0 } else { 150.0 };
        let frame = frame(origin("org", "r-1"), number, bt, previous);
        previous = Some(trust::sha256_digest(&frame.encode()));
        let (url, body) = (cloud.url("/v1/frames"), signed(&ours, &frame));
        posts.spawn(async move {
            let answer = client().post(url).body(body).send().await?;
            anyhow::Ok((number, answer.json::<serde_json::Value>().await?))
        });
    }
    while let Some(posted) = posts.join_next().await {
        let (number, acks) = posted??;
        if number == 20 {
            assert_eq!(acks[0]["refused"][0]["reason"], "malformed", "{acks}");
        } else {
            assert_eq!(acks[0]["acked"], serde_json::json!([[number, number]]), "{acks}");
        }
    }
    assert_eq!(cloud.database.query_number("SELECT count(*) FROM points")?, 39);
    assert!(cloud.simcorp.log().contains("the database cannot hold this frame"));
    Ok(())
}

#[tokio::test]
async fn upstream_publishers_are_accepted_nested_and_flat() -> anyhow::Result<()> {
    let cloud = Cloud::with(&["ingestion.accept_unsigned=true"]).await?;
    let mut options = rumqttc::MqttOptions::new("reference", ("127.0.0.1", cloud.broker.port));
    options.set_keep_alive(5);
    let (publisher, mut events) = rumqttc::AsyncClient::builder(options).capacity(200).build();
    tokio::spawn(async move { while events.poll().await.is_ok() {} });
    wait_for("subscribed", PATIENCE, || async {
        cloud.get("/ready").await.is_ok_and(|ready| ready["status"] == "healthy")
    })
    .await?;
    let point = |s: u32| {
        format!(
            r#"{{"ts":"2025-10-05T21:08:{s:02}Z","machineId":"r-1","elapsedSeconds":{s},"btC":{}.5,"extras":{{}}}}"#,
            150 + s
        )
    };
    let send = async |kind: &str, body: String| {
        let options = rumqttc::PublishOptions::new(rumqttc::QoS::AtLeastOnce);
        publisher.publish(format!("roaster/org/leipzig/r-1/{kind}"), body, options).await
    };
    for s in 0..20 {
        let flat = point(s);
        let nested = format!(
            r#"{{"ts":"2025-10-05T21:08:00Z","origin":{{"orgId":"org","siteId":"leipzig","machineId":"r-1"}},"topic":"telemetry","payload":{flat}}}"#
        );
        let body = if s % 2 == 0 { flat } else { nested };
        send("telemetry", body.clone()).await?;
        send("telemetry", body).await?; // a duplicate changes nothing
    }
    send("telemetry", "{not json".to_owned()).await?;
    send("telemetry", point(3).replace("r-1", "r-2")).await?;
    let drop = r#"{"ts":"2025-10-05T21:08:19Z","machineId":"r-1","type":"DROP","payload":{"elapsedSeconds":19}}"#;
    send("events", drop.to_owned()).await?;
    wait_for("the roast is closed", PATIENCE, || async {
        cloud
            .get("/sessions?status=CLOSED")
            .await
            .is_ok_and(|s| s.as_array().is_some_and(|s| s.len() == 1))
    })
    .await?;
    let sessions = cloud.get("/sessions").await?;
    let session = &sessions[0];
    assert_eq!(sessions.as_array().map(Vec::len), Some(1), "{sessions}");
    // Its times are far from their arrival: they are replaced, and the points are marked.
    assert!(!session["startedAt"].as_str().unwrap().starts_with("2025"), "{session}");
    assert_eq!(session["dropSeconds"], 19.0);
    assert_eq!((&session["telemetryPoints"], &session["unsignedPoints"]), (&20.into(), &20.into()));
    let path = format!(
        "/sessions/{}/telemetry?fromElapsedSeconds=5&toElapsedSeconds=7",
        session["sessionId"].as_str().unwrap()
    );
    let points = cloud.get(&path).await?;
    let bts: Vec<f64> =
        points.as_array().unwrap().iter().map(|p| p["btC"].as_f64().unwrap()).collect();
    assert_eq!(bts, [155.5, 156.5, 157.5]);
    assert!(points.as_array().unwrap().iter().all(|p| p["extras"]["timeSource"] == "arrival"));
    assert_eq!(points[0]["elapsedSeconds"], 5.0);
    // The machine is named with what is wrong with its messages, and once for all of them.
    let log = cloud.simcorp.log();
    let warned = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(warned("without what is wrong with it: ts: 2025-10-05"), 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn a_stream_resumes_after_the_last_event_id() -> anyhow::Result<()> {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let cloud = Cloud::start().await?;
    let ours = key("gw-1");
    register(&cloud, &ours, "r-1")?;
    let mut previous = None;
    let mut frames = Vec::new();
    for number in 1..=6 {
        let frame = frame(origin("org", "r-1"), number, 150.0 + number as f64, previous);
        previous = Some(trust::sha256_digest(&frame.encode()));
        frames.push(signed(&ours, &frame));
    }
    let open = async |last: Option<i64>| -> anyhow::Result<_> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", cloud.port)).await?;
        let resume = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /stream/telemetry?machineId=r-1 HTTP/1.1\r\nHost: localhost\r\n{resume}\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        Ok(BufReader::new(stream).lines())
    };
    let read = async |lines: &mut tokio::io::Lines<BufReader<tokio::net::TcpStream>>,
                      count: usize|
           -> anyhow::Result<(Vec<f64>, i64)> {
        let (mut bts, mut id) = (Vec::new(), 0);
        let reading = async {
            while bts.len() < count || id == 0 {
                let Some(line) = lines.next_line().await? else {
                    anyhow::bail!("the stream ended")
                };
                if let Some(data) = line.strip_prefix("data: ") {
                    let point: serde_json::Value = serde_json::from_str(data)?;
                    assert_eq!(point["orgId"], "org");
                    bts.push(point["btC"].as_f64().unwrap_or_default());
                    id = 0;
                }
                if let Some(text) = line.strip_prefix("id: ") {
                    id = text.parse()?;
                }
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, reading).await??;
        Ok((bts, id))
    };
    let mut lines = open(None).await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    for frame in &frames[..3] {
        post(&cloud, frame.clone()).await;
    }
    let (bts, id) = read(&mut lines, 3).await?;
    assert_eq!(bts, [151.0, 152.0, 153.0]);
    drop(lines);
    for frame in &frames[3..] {
        post(&cloud, frame.clone()).await;
    }
    let (bts, _) = read(&mut open(Some(id)).await?, 3).await?;
    assert_eq!(bts, [154.0, 155.0, 156.0], "the missed points must come first, each once");
    Ok(())
}
