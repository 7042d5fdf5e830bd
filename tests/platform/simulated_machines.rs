//! Tests simulated machines on the real path, machines that send no events, and a deployment that
//! moves to PostgreSQL.

use std::time::Duration;

use crate::support::{Stack, client};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, QoS};
use serde_json::{Value, json};
use testbed::{Mosquitto, Postgres, wait_for};

const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until all machines of a job are complete, and returns the sessions.
async fn played(stack: &Stack, request: &Value) -> anyhow::Result<Vec<String>> {
    let (status, started) = stack.post(("publisher", "/publish/start"), request).await?;
    anyhow::ensure!(status == 200, "{started}");
    let id = started["sessionId"].as_str().unwrap().to_owned();
    let job = || async {
        let jobs = stack.get("publisher", "/publish/status").await.ok()?;
        jobs.as_array()?.iter().find(|job| job["id"] == id.as_str()).cloned()
    };
    let ended = || async { job().await.is_some_and(|job| job["running"] == false) };
    wait_for("all simulated roasts", PATIENCE, ended).await?;
    let stats = job().await.unwrap()["stats"].clone();
    anyhow::ensure!(stats["incomplete"] == 0, "{stats}\n{}", stack.process.log());
    Ok(serde_json::from_value(stats["sessions"].clone())?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulated_machines_roast_on_the_real_path_and_everything_moves_to_postgres()
-> anyhow::Result<()> {
    let mut stack = Stack::start(&[], &[]).await?;
    let request = json!({"orgId": "org", "siteId": "lab", "machineId": "sim", "machines": 12,
                         "speed": 400, "engine": "twin", "seed": 7, "batchSizeKg": 5});
    let sessions = played(&stack, &request).await?;
    assert_eq!(sessions.len(), 12);
    for session in &sessions {
        let told = stack.get("ingestion", &format!("/sessions/{session}")).await?;
        assert_eq!(told["completeness"], "complete", "{told}");
        assert_eq!(told["verifiedPoints"], told["telemetryPoints"]);
    }
    // All later services process the roasts: analysis, reports, evaluation.
    let counts = || async {
        let counts = stack.get("kernel", "/missions/metrics").await.unwrap_or_default();
        counts["DONE"] == 24
    };
    wait_for("reports and evaluations", PATIENCE, counts).await?;
    let fleet = stack.get("analytics", "/fleet?days=2").await?;
    assert_eq!(fleet["roasts"], 12, "{fleet}");
    assert_eq!(fleet["machines"].as_array().unwrap().len(), 12);
    // The analysis of a roast is returned from the cache until the roast's data changes.
    let path = format!("/analysis/session/{}", sessions[0]);
    let (one, two) = (stack.get("analytics", &path).await?, stack.get("analytics", &path).await?);
    assert_eq!(one["computedAt"], two["computedAt"], "computed twice");
    let meta = json!({"beanName": "Guji", "roastProfileName": "filter"});
    let at = format!("/sessions/{}/meta", sessions[0]);
    stack.send(reqwest::Method::PUT, ("ingestion", &at), &meta).await?;
    let three = stack.get("analytics", &path).await?;
    assert_eq!(three["meta"]["beanName"], "Guji", "{three}");
    let alike = stack.get("analytics", "/consistency?profileName=filter").await?;
    assert_eq!(alike["roasts"][0]["sessionId"], sessions[0].as_str(), "{alike}");
    assert_eq!(alike["sessions"].as_array().unwrap().len(), 1);

    stack.process.stop(Duration::from_secs(30)).await?;
    let file = stack.folder.path().join("simcorp.db");
    let database = Postgres::start().await?;
    let set = format!("database.url={}", database.url());
    let import = || {
        let mut command = std::process::Command::new(testbed::binary_path("simcorp")?);
        command.arg("import-sqlite").arg(&file).args(["--output", "json", "--set", &set]);
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let told = import()?;
    let rows = |table: &str| -> u64 {
        let of = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        of.filter(|row| row["table"] == table).map(|row| row["rows"].as_u64().unwrap()).sum()
    };
    assert_eq!((rows("sessions"), rows("reports"), rows("missions")), (12, 12, 24), "{told}");
    let again = import().unwrap_err().to_string();
    assert!(again.contains("in use"), "{again}");
    // The service continues on PostgreSQL: it has the old data, and accepts new roasts.
    let moved = Stack::start(&[], std::slice::from_ref(&set)).await?;
    let report = format!("/sessions/{}/reports/latest", sessions[3]);
    assert!(moved.get("ingestion", &report).await?["markdown"].as_str().is_some());
    assert_eq!(moved.get("kernel", "/missions/metrics").await?["DONE"], 24);
    let more = json!({"orgId": "org", "siteId": "lab", "machineId": "sim-1", "speed": 400,
                      "engine": "twin", "seed": 8});
    assert_eq!(played(&moved, &more).await?.len(), 1);
    let log = moved.get("kernel", "/audit?limit=500").await?;
    assert!(log.as_array().unwrap().len() > 12, "the audit log was not continued");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_instances_infers_the_events_of_a_publisher_without_events() -> anyhow::Result<()>
{
    let (database, broker) = (Postgres::start().await?, Mosquitto::start().await?);
    let settings = |name: &str| {
        vec![
            format!("database.url={}", database.url()),
            "database.migrate=true".to_owned(),
            "mqtt.host=127.0.0.1".to_owned(),
            format!("mqtt.port={}", broker.port),
            format!("inference.instance={name}"),
            format!("ingestion.instance={name}"),
            "ingestion.accept_unsigned=true".to_owned(),
        ]
    };
    let first = Stack::start(&["inference", "ingestion"], &settings("a")).await?;
    let second = Stack::start(&["inference"], &settings("b")).await?;
    let speaks = |stack: &Stack| {
        let url = stack.url("inference", "/status");
        async move {
            let answer = client().get(url).send().await.ok()?;
            answer.json::<Value>().await.ok()?["speaks"].as_bool()
        }
    };
    wait_for("one instance holds the lease", PATIENCE, || async {
        speaks(&first).await == Some(true) || speaks(&second).await == Some(true)
    })
    .await?;
    assert_ne!(speaks(&first).await, speaks(&second).await);

    let twin = Stack::start(&["simulation"], &["broker.embedded=false".to_owned()]).await?;
    let roast =
        json!({"engine": "twin", "seed": 11, "machineId": "old-1", "sampleIntervalSeconds": 1});
    let (_, told) = twin.post(("twin", "/simulate/roast"), &roast).await?;
    let mut options = MqttOptions::new("publisher", ("127.0.0.1", broker.port));
    options.set_keep_alive(30);
    let (bus, mut events) = AsyncClient::builder(options).capacity(4_000).build();
    tokio::spawn(async move { while events.poll().await.is_ok() {} });
    let origin = json!({"orgId": "org", "siteId": "s", "machineId": "old-1"});
    let points = told["telemetry"].as_array().unwrap();
    // After DROP the machine continues to measure an empty drum.
    for point in points {
        let mut envelope = json!({"ts": point["ts"], "origin": origin, "topic": "telemetry"});
        envelope["payload"] = point.clone();
        let body = serde_json::to_vec(&envelope)?;
        let options = PublishOptions::new(QoS::AtLeastOnce);
        bus.publish("roaster/org/s/old-1/telemetry", body, options).await?;
    }
    let session = || async {
        let sessions = first.get("ingestion", "/sessions?machineId=old-1").await.ok()?;
        sessions[0]["sessionId"].as_str().map(str::to_owned)
    };
    wait_for("a session exists", PATIENCE, || async { session().await.is_some() }).await?;
    let id = session().await.unwrap();
    let path = format!("/sessions/{id}/events");
    let kinds = || async {
        let events = first.get("ingestion", &path).await.unwrap_or_default();
        let kinds = events.as_array().cloned().unwrap_or_default();
        kinds.iter().map(|e| e["type"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    wait_for("CHARGE and TP are stored", PATIENCE, || async {
        let kinds = kinds().await;
        kinds.contains(&"CHARGE".to_owned()) && kinds.contains(&"TP".to_owned())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Events that are inferred late have their true times: the roast has all its points.
    let path = format!("/sessions/{id}/telemetry?limit=100000");
    let told = first.get("ingestion", &path).await?;
    assert_eq!(told.as_array().unwrap().len(), points.len());
    let mut found = kinds().await;
    let all = found.len();
    found.sort();
    found.dedup();
    assert_eq!(found.len(), all, "an event was published twice: {found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_read_from_a_replica_while_it_is_fresh() -> anyhow::Result<()> {
    let primary = Postgres::start().await?;
    let replica = primary.replica().await?;
    let settings = [
        format!("database.url={}", primary.url()),
        format!("database.replica_url={}", replica.url()),
        "database.replica_lag_max_ms=1500".to_owned(),
        "database.migrate=true".to_owned(),
        "broker.embedded=false".to_owned(),
    ];
    let stack = Stack::start(&["kernel", "ingestion"], &settings).await?;
    let reads = || async {
        let _ = stack.get("ingestion", "/sessions").await;
        let text = client().get(stack.url("ingestion", "/metrics")).send().await;
        let text = match text {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        let line = text.lines().find(|line| line.starts_with("simcorp_replica_reads_total "));
        line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    wait_for("the replica is read", PATIENCE, || async { reads().await > 0.0 }).await?;
    // A replica that no longer replays is not used, although it does not know what it misses.
    replica.query("simcorp", "SELECT pg_wal_replay_pause()")?;
    let mut n = 0;
    wait_for("the replica is not read", PATIENCE, || {
        n += 1;
        let mission = json!({"goal": "x", "missionId": format!("m-{n}")});
        let (stack, reads) = (&stack, &reads);
        async move {
            let _ = stack.post(("kernel", "/missions"), &mission).await;
            let before = reads().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            (reads().await - before).abs() < 0.5
        }
    })
    .await?;
    assert_eq!(stack.get("ingestion", "/sessions").await?, json!([]));
    replica.query("simcorp", "SELECT pg_wal_replay_resume()")?;
    let before = reads().await;
    wait_for("the replica is read again", PATIENCE, || async { reads().await > before + 1.0 })
        .await?;
    // Without the replica, the primary answers.
    drop(replica);
    for _ in 0..3 {
        assert_eq!(stack.get("ingestion", "/sessions").await?, json!([]));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
