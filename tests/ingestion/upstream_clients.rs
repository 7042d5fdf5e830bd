//! Tests each behaviour on which clients of upstream Sim-Corp rely: the checklist of its contract
//! (§7).

use std::time::Duration;

use crate::support::{Agent, Stack, client, simulated};
use reqwest::{Method, StatusCode};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, QoS};
use serde_json::{Value, json};
use service::mqtt::{BrokerSettings, ConnectionBounds, ConnectionEvent, MqttConnection};
use service::shutdown::CancellationToken;
use testbed::wait_for;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(30);
const MACHINE: &str = "roaster/org/site/m-1";

fn bus(port: u16) -> AsyncClient {
    let mut options = MqttOptions::new("a client of the reference", ("127.0.0.1", port));
    options.set_keep_alive(30);
    let (bus, mut events) = AsyncClient::builder(options).capacity(1_000).build();
    tokio::spawn(async move { while events.poll().await.is_ok() {} });
    bus
}

/// Publishes one message as an MQTT 3.1.1 client does: CONNECT, PUBLISH (`QoS` 0), DISCONNECT.
async fn publish_by_mqtt_3(port: u16, topic: &str, body: &Value) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x1e\x00\x03old").await?;
    let mut accepted = [0; 4];
    stream.read_exact(&mut accepted).await?;
    anyhow::ensure!(accepted == [0x20, 2, 0, 0], "CONNACK {accepted:?}");
    let body = body.to_string();
    let (mut publish, mut length) = (vec![0x30], 2 + topic.len() + body.len());
    while length > 0x7f {
        publish.push(0x80 | u8::try_from(length & 0x7f)?);
        length >>= 7;
    }
    publish.push(u8::try_from(length)?);
    publish.extend(u16::try_from(topic.len())?.to_be_bytes());
    publish.extend([topic.as_bytes(), body.as_bytes()].concat());
    publish.extend([0xe0, 0]);
    stream.write_all(&publish).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_serves_both_versions_of_mqtt_on_one_port() -> anyhow::Result<()> {
    let settings = ["ingestion.accept_unsigned=true".to_owned()];
    let stack = Stack::start(&["ingestion"], &settings).await?;
    let topic = format!("{MACHINE}/telemetry");
    let point = |s: u32| json!({"ts": ts(s), "machineId": "m-1", "elapsedSeconds": s, "btC": 190});
    let count = async |points: u32| {
        let list = stack.get("ingestion", "/sessions").await.unwrap_or_default();
        list[0]["telemetryPoints"] == points
    };
    publish_by_mqtt_3(stack.broker, &topic, &point(0)).await?;
    wait_for("the point of the older version", PATIENCE, || count(1)).await?;
    let newer = bus(stack.broker);
    let options = PublishOptions::new(QoS::AtLeastOnce);
    newer.publish(topic, serde_json::to_vec(&point(1))?, options).await?;
    wait_for("the point of the newer version", PATIENCE, || count(2)).await
}

fn ts(second: u32) -> String {
    format!("2026-03-01T08:{:02}:{:02}.000Z", second / 60, second % 60)
}

/// Publishes a roast: its first half as sim-publisher does (nested), its second half as a bare
/// client does (flat), one point per second, then DROP.
async fn roast(bus: &AsyncClient, seconds: u32) -> anyhow::Result<()> {
    let send = async |suffix: &str, body: Value| {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        bus.publish(format!("{MACHINE}/{suffix}"), serde_json::to_vec(&body)?, options).await?;
        anyhow::Ok(())
    };
    let origin = json!({"orgId": "org", "siteId": "site", "machineId": "m-1"});
    let nested = |topic: &str, payload: &Value| json!({"ts": payload["ts"], "origin": origin, "topic": topic, "payload": payload});
    for s in 0..seconds {
        // The temperature falls to the turning point, and then rises.
        let t = f64::from(s);
        let bt = if s < 80 { 190.0 - t } else { 110.0 + (t - 80.0) * 0.2 };
        let point = json!({"ts": ts(s), "machineId": "m-1", "elapsedSeconds": s, "btC": bt,
                           "etC": bt + 20.0, "gasPct": 50.0});
        let body = if s < seconds / 2 { nested("telemetry", &point) } else { point };
        send("telemetry", body).await?;
    }
    let event = |kind: &str, s: u32| json!({"ts": ts(s), "machineId": "m-1", "type": kind, "payload": {"elapsedSeconds": s}});
    send("events", nested("event", &event("FC", seconds - 100))).await?;
    send("events", event("DROP", seconds - 1)).await
}

/// Checks that no field is `null`, except those in `but`.
fn no_nulls(value: &Value, but: &[&str]) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                assert!(!value.is_null() || but.contains(&name.as_str()), "{name} is null");
                no_nulls(value, but);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| no_nulls(value, but)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_clients_can_read_an_upstream_roast() -> anyhow::Result<()> {
    let stack = Stack::start(&[], &["ingestion.accept_unsigned=true".to_owned()]).await?;
    let url = format!("mqtt://127.0.0.1:{}", stack.broker);
    assert_eq!(stack.get("dispatcher", "/config").await?["mqttUrl"], url);
    // A stream answers before its first event, and uses upstream's names.
    let stream = stack.url("ingestion", "/stream/telemetry?machineId=m-1");
    let mut stream = client().get(stream).timeout(PATIENCE).send().await?;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let bus = bus(stack.broker);
    roast(&bus, 600).await?;
    let mut text = String::new();
    while !text.contains("\"btC\"") {
        text.push_str(&String::from_utf8_lossy(&stream.chunk().await?.unwrap()));
    }
    assert!(text.contains("event: telemetry") && text.contains("\"orgId\":\"org\""), "{text}");

    let sessions = || async {
        let list = stack.get("ingestion", "/sessions?status=CLOSED").await.ok()?;
        list.as_array()?.first().cloned()
    };
    // Events and points have topics of their own: the end of the roast may be known before its last
    // points.
    let whole = || async { sessions().await.is_some_and(|roast| roast["telemetryPoints"] == 600) };
    wait_for("a closed roast, nested and flat", PATIENCE, whole).await?;
    let summary = sessions().await.unwrap();
    let id = summary["sessionId"].as_str().unwrap().to_owned();
    assert!(id.starts_with("S-org-site-m-1-"), "{id}");
    assert_eq!((&summary["fcSeconds"], &summary["dropSeconds"]), (&json!(500.0), &json!(599.0)));
    let at = |rest: &str| format!("/sessions/{id}{rest}");
    let points = stack.get("ingestion", &at("/telemetry?limit=10&fromElapsedSeconds=100")).await?;
    assert_eq!(points.as_array().unwrap().len(), 10);
    assert_eq!(points[0]["elapsedSeconds"], 100.0);
    // These routes return bare arrays.
    for (service, path) in [
        ("ingestion", "/sessions"),
        ("ingestion", &at("/events")),
        ("ingestion", &at("/notes")),
        ("ingestion", &at("/events/overrides")),
        ("ingestion", &at("/reports")),
        ("ingestion", "/profiles?orgId=org"),
        ("eval", "/golden-cases"),
        ("eval", &format!("/evaluations?sessionId={id}")),
        ("kernel", "/traces"),
        ("kernel", "/agents"),
        ("inference", "/status"),
    ] {
        let list = stack.get(service, path).await?;
        assert!(list.is_array() || path == "/status", "{service} {path}: {list}");
    }
    // A resource that was never written is empty; a session that does not exist returns 404.
    let meta = stack.get("ingestion", &at("/meta")).await?;
    assert_eq!(meta, json!({"tags": [], "extra": {}}));
    let status = async |path: &str| {
        anyhow::Ok(client().get(stack.url("ingestion", path)).send().await?.status())
    };
    assert_eq!(status("/sessions/none/meta").await?, 404);
    assert_eq!(status("/sessions/none/reports/latest").await?, 404);
    // Overrides are accepted wrapped and bare; so are notes.
    let one = json!({"eventType": "FC", "elapsedSeconds": 480, "source": "HUMAN"});
    for body in [json!({"overrides": [one]}), json!([one])] {
        let path = at("/events/overrides");
        let (status, list) = stack.send(Method::PUT, ("ingestion", &path), &body).await?;
        assert_eq!((status, list.as_array().map(Vec::len)), (200, Some(1)), "{list}");
    }
    let (status, note) =
        stack.post(("ingestion", &at("/notes")), &json!({"text": "bright"})).await?;
    assert_eq!(status, 201, "{note}");

    // Analysis and prediction are within their bounds and have no null fields.
    let analysis = stack.get("analytics", &format!("/analysis/session/{id}")).await?;
    no_nulls(&analysis, &[]);
    assert_eq!(analysis["eventTimeSource"]["FC"], "OVERRIDDEN");
    assert!((0.0..=1.0).contains(&analysis["developmentRatio"].as_f64().unwrap()), "{analysis}");
    assert!(analysis["phases"].is_array() && analysis["crashFlick"]["crashDetected"].is_boolean());
    let prediction = stack.get("analytics", &format!("/prediction/session/{id}")).await?;
    no_nulls(&prediction, &[]);
    assert_eq!(prediction["explain"]["method"], "HEURISTIC_V1");
    assert!((0.0..=1.0).contains(&prediction["confidence"]["overall"].as_f64().unwrap()));
    let suggestions = prediction["suggestions"].as_array().unwrap();
    assert!(suggestions.iter().all(|s| s["requiresApproval"] == false), "{prediction}");
    // A report is created once.
    let report = json!({"analysis": analysis, "markdown": "# x", "reportKind": "OTHER"});
    let (first, made) = stack.post(("ingestion", &at("/reports")), &report).await?;
    let (second, again) = stack.post(("ingestion", &at("/reports")), &report).await?;
    assert_eq!((first, second), (201, 200));
    assert_eq!(made["reportId"], again["reportId"]);
    no_nulls(&made, &[]);
    // Eval reads the analysis that ingestion's auto-evaluator sends, and its older form.
    let case = json!({"name": "c", "machineId": "m-1", "targetDropSeconds": 600,
                      "dropSecondsErrorTolerance": 30});
    let (_, case) = stack.post(("eval", "/golden-cases"), &case).await?;
    let legacy = json!({"analyzedAt": ts(0), "drop": {"elapsedSeconds": 590, "tempC": 214}});
    for analysis in [analysis.clone(), legacy] {
        let run = json!({"sessionId": id, "goldenCaseId": case["id"], "analysis": analysis,
                         "telemetry": points, "commands": [], "evaluatorId": "auto-evaluator"});
        let (status, run) = stack.post(("eval", "/evaluations/run"), &run).await?;
        assert_eq!((status, &run["outcome"]), (201, &json!("PASS")), "{run}");
        no_nulls(&run, &[]);
    }
    // Several trials as upstream documents them: one session, and no list.
    let trials = json!({"sessionId": id, "goldenCaseId": case["id"], "analysis": analysis});
    let (status, set) = stack.post(("eval", "/evaluations/run-multi-trial"), &trials).await?;
    assert_eq!(
        (status, &set["sessionId"], &set["totalTrials"]),
        (201, &json!(id), &json!(1)),
        "{set}"
    );
    assert_eq!(set["consistencyVerdict"], "CONSISTENT_PASS");
    no_nulls(&set, &[]);
    is_null_where_its_end_will_be(&stack, &bus).await
}

/// Checks that `endedAt` of a running roast is `null`.
async fn is_null_where_its_end_will_be(stack: &Stack, bus: &AsyncClient) -> anyhow::Result<()> {
    bus.publish(
        format!("{MACHINE}/telemetry"),
        serde_json::to_vec(
            &json!({"ts": ts(900), "machineId": "m-1", "elapsedSeconds": 0, "btC": 190}),
        )?,
        PublishOptions::new(QoS::AtLeastOnce),
    )
    .await?;
    let open = || async {
        let list = stack.get("ingestion", "/sessions?status=ACTIVE").await.ok()?;
        list.as_array()?.first().cloned()
    };
    wait_for("a running roast", PATIENCE, || async { open().await.is_some() }).await?;
    let open = open().await.unwrap();
    assert!(open.as_object().unwrap().contains_key("endedAt") && open["endedAt"].is_null());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_serves_upstream_workers() -> anyhow::Result<()> {
    let stack = Stack::start(&["kernel"], &["broker.embedded=false".to_owned()]).await?;
    let claim = json!({"agentName": "roast-report-agent", "goals": ["generate-roast-report"]});
    let idle = client().post(stack.url("kernel", "/missions/claim")).json(&claim).send().await?;
    assert_eq!(idle.status(), StatusCode::NO_CONTENT);
    assert!(idle.bytes().await?.is_empty());
    // Both forms of a goal, with the idempotency key of the desktop and of ingestion: the first
    // creates the mission, the second finds it.
    let key = "generate-roast-report:POST_ROAST_V1:S-1";
    let signals = json!({"session": {"telemetryPoints": 600, "durationSec": 600, "hasBT": true,
                                     "closeReason": "DROP"}});
    for (expected, goal) in [
        (201, json!("generate-roast-report")),
        (200, json!({"title": "generate-roast-report", "description": "d"})),
    ] {
        let mission = json!({"goal": goal, "idempotencyKey": key, "params": {"sessionId": "S-1"},
                             "signals": signals, "context": {"orgId": "org"}});
        let (status, made) = stack.post(("kernel", "/missions"), &mission).await?;
        assert_eq!(status, expected, "{made}");
        assert_eq!(made["goal"]["title"], "generate-roast-report");
        assert_eq!((&made["subjectId"], &made["status"]), (&json!("S-1"), &json!("PENDING")));
        assert!(made["createdAt"].is_string() && made["attempts"].is_u64());
        no_nulls(&made, &[]);
    }
    let list = stack.get("kernel", "/missions?status=pending,RETRY&status=unknown").await?;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    let (status, claimed) = stack.post(("kernel", "/missions/claim"), &claim).await?;
    assert_eq!((status, &claimed["claimedBy"]), (200, &json!("roast-report-agent")));
    no_nulls(&claimed, &[]);
    let id = claimed["missionId"].as_str().unwrap().to_owned();
    let step = |step: &str| format!("/missions/{id}/{step}");
    let wrong = json!({"leaseId": "ffffffff"});
    assert_eq!(stack.post(("kernel", &step("heartbeat")), &wrong).await?.0, 409);
    let lease = json!({"leaseId": claimed["leaseId"], "agentName": "roast-report-agent"});
    assert_eq!(stack.post(("kernel", &step("heartbeat")), &lease).await?.0, 200);
    let failed = json!({"error": "fetch failed", "retryable": true, "leaseId": claimed["leaseId"]});
    let (_, retry) = stack.post(("kernel", &step("fail")), &failed).await?;
    assert_eq!(retry["status"], "RETRY");
    // Sends a POST without a body, as the desktop does.
    let bare = async |path: &str| {
        let answer = client().post(stack.url("kernel", path)).send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.json::<Value>().await?))
    };
    let (status, due) = bare(&step("retryNow")).await?;
    assert_eq!((status, &due["status"]), (200, &json!("RETRY")));
    let (_, claimed) = stack.post(("kernel", "/missions/claim"), &claim).await?;
    assert_eq!(claimed["attempts"], 2);
    let done = json!({"summary": {"reportId": "R-1"}, "leaseId": claimed["leaseId"]});
    let (status, done) = stack.post(("kernel", &step("complete")), &done).await?;
    assert_eq!((status, &done["status"]), (200, &json!("DONE")));
    assert_eq!(done["resultMeta"]["reportId"], "R-1");
    assert_eq!(bare(&step("cancel")).await?.0, 409);
    // Without signals about the roast, a person must approve the mission before it runs.
    let (_, doubted) =
        stack.post(("kernel", "/missions"), &json!({"goal": "generate-roast-report"})).await?;
    assert_eq!(doubted["status"], "QUARANTINED");
    let path = format!("/missions/{}/approve", doubted["missionId"].as_str().unwrap());
    let (status, approved) = bare(&path).await?;
    assert_eq!((status, &approved["status"]), (200, &json!("PENDING")));
    assert_eq!(approved["governance"]["decidedBy"], "HUMAN");
    let counts = stack.get("kernel", "/missions/metrics").await?;
    assert_eq!(
        (&counts["total"], &counts["DONE"], &counts["approved_total"]),
        (&json!(2), &json!(1), &json!(1))
    );
    // A trace is stored, and the tool policy decides.
    let trace = json!({"traceId": "t", "agentId": "a", "missionId": id, "mission": {"goal": "g"},
        "startedAt": "2026-03-01T08:00:00.000Z", "entries": [{"missionId": id, "loopId": "l",
        "step": "THINK", "startedAt": "2026-03-01T08:00:00.000Z"}]});
    assert_eq!(stack.post(("kernel", "/traces"), &trace).await?, (200, json!({"ok": true})));
    assert_eq!(stack.get("kernel", &format!("/traces/{id}")).await?["traceId"], "t");
    // The desktop's trace of a simulation has every sample.
    let mut long = trace.clone();
    long["traceId"] = json!("long");
    long["entries"][0]["toolCalls"] =
        json!([{"toolName": "simulate", "output": {"samples": vec![0.5; 250_000]}}]);
    assert!((1_000_000..1_048_576).contains(&long.to_string().len()));
    assert_eq!(stack.post(("kernel", "/traces"), &long).await?, (200, json!({"ok": true})));
    let tool = json!({"id": "burner", "name": "b", "version": "1", "policyTags": ["restricted"]});
    assert_eq!(stack.post(("kernel", "/tools"), &tool).await?.0, 200);
    for (tool, decision) in [("burner", "DENY"), ("anything", "ALLOW")] {
        let ask = json!({"agentId": "a", "tool": tool, "action": "invoke", "resource": "r",
                         "context": {"override": true}});
        let (_, told) = stack.post(("kernel", "/policy/check"), &ask).await?;
        assert_eq!(told["decision"], decision, "{told}");
    }
    let unknown = client().get(stack.url("kernel", "/nowhere")).send().await?;
    let body: Value = unknown.json().await?;
    assert_eq!(body["message"], "Route GET:/nowhere not found");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_see_the_json_copies_of_an_agent_and_ingestion_ignores_them()
-> anyhow::Result<()> {
    let settings = ["ingestion.accept_unsigned=true".to_owned()];
    let stack = Stack::start(&["ingestion", "inference"], &settings).await?;
    let uplink = format!("host = \"127.0.0.1\"\nport = {}", stack.broker);
    let driver = format!("{}[compatibility]\njson_telemetry = true\n", simulated(20));
    let mut agent = Agent::new("m-1", &driver, &uplink)?;
    let file = agent.folder.path().join("device.json");
    std::fs::write(&file, agent.command(&["key", "create"])?)?;
    stack.operate(&["device", "add", &file.display().to_string()])?;

    let host = "127.0.0.1".to_owned();
    let broker = BrokerSettings { host, port: stack.broker, ..BrokerSettings::default() };
    let bounds = ConnectionBounds { in_flight: 10, receive: 10, packet: 100_000 };
    let topics = || ["telemetry", "events"].map(|kind| format!("roaster/+/+/+/{kind}")).to_vec();
    let options = broker.options("a subscriber", bounds)?;
    let mut subscriber =
        MqttConnection::new(options, 10, topics, (Duration::from_secs(1), trust::jitter));
    agent.start().await?;
    let stop = CancellationToken::new();
    let mut received = async |kind: &str| -> anyhow::Result<Value> {
        loop {
            let event = tokio::time::timeout(PATIENCE, subscriber.next(&stop)).await?;
            if let Some(ConnectionEvent::Message { topic, payload }) = event
                && topic == format!("roaster/org/leipzig/m-1/{kind}")
            {
                return Ok(serde_json::from_slice(&payload)?);
            }
        }
    };
    let sample = received("telemetry").await?;
    assert_eq!(
        (&sample["topic"], &sample["payload"]["machineId"]),
        (&json!("telemetry"), &json!("m-1"))
    );
    assert!(
        sample["payload"]["btC"].is_number() && sample["payload"]["elapsedSeconds"].is_number()
    );
    let event = received("events").await?;
    assert_eq!(event["topic"], "event");
    assert!(event["payload"]["type"].is_string(), "{event}");
    // The roast is stored once, from the signed frames.
    let stored = || async {
        let list = stack.get("ingestion", "/sessions").await.unwrap_or_default();
        list.as_array().is_some_and(|list| !list.is_empty())
    };
    wait_for("the roast of the frames", PATIENCE, stored).await?;
    let database = rusqlite::Connection::open(stack.folder.path().join("simcorp.db"))?;
    let count = "SELECT count(*) FROM chains WHERE kid = ''";
    assert_eq!(database.query_row(count, [], |row| row.get::<_, i64>(0))?, 0);
    Ok(())
}
