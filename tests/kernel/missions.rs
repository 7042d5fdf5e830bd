//! Tests that the end of a roast becomes one report and one evaluation while processes are killed:
//! two instances of every service on one PostgreSQL and one Mosquitto.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{Agent, Stack, client, operate, serve, wait_until_healthy};
use anyhow::{Context as _, ensure};
use contract::mission::MissionRecord;
use contract::topic::TopicKind;
use contract::{
    Ack, ChainId, Channel, ClockQuality, Column, DeviceId, EpochMs, EventKind, EventSource, Frame,
    KeyId, MachineEvent, Origin, Receipt, SessionId, SiteId,
};
use roast::noise::Noise;
use roast::twin::{PRESETS, Twin};
use serde_json::{Value, json};
use testbed::{Mosquitto, Postgres, Process, free_ports, port_settings, wait_for};
use trust::{Algorithm, CONTENT_FRAME, CONTENT_RECEIPT, FileKey, Signer as _};

const PATIENCE: Duration = Duration::from_mins(3);
const SERVICES: [&str; 7] =
    ["kernel", "ingestion", "inference", "analytics", "eval", "reports", "dispatcher"];
const SAMPLES_A_FRAME: usize = 60;
const MACHINES: usize = 4;

/// One process with all services except the console.
struct Instance {
    process: Process,
    ports: BTreeMap<&'static str, u16>,
}

impl Instance {
    fn new(name: &str, database: &Postgres, broker: &Mosquitto) -> anyhow::Result<Self> {
        let ports = free_ports(SERVICES)?;
        let mut settings = vec![
            format!("database.url={}", database.url()),
            "mqtt.host=127.0.0.1".to_owned(),
            format!("mqtt.port={}", broker.port),
            format!("ingestion.instance={name}"),
            format!("dispatcher.instance={name}"),
            format!("inference.instance={name}"),
            "eval.poll_ms=200".to_owned(),
            "reports.poll_ms=200".to_owned(),
            "reports.heartbeat_ms=500".to_owned(),
            "kernel.lease_ms=2000".to_owned(),
        ];
        settings.extend(port_settings(&ports));
        let log = std::env::temp_dir().join(format!("simcorp-{name}-{}.log", ports["kernel"]));
        Ok(Self { process: serve(&SERVICES, &settings, log)?, ports })
    }

    fn url(&self, service: &str, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[service])
    }

    async fn ready(&self) -> anyhow::Result<()> {
        for service in SERVICES {
            wait_until_healthy(service, self.ports[service], &self.process, PATIENCE).await?;
        }
        Ok(())
    }

    async fn get(&self, service: &str, path: &str) -> anyhow::Result<Value> {
        let answer = client().get(self.url(service, path)).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }
}

/// A gateway that roasts in event time: a whole roast is one body of signed frames.
struct Gateway {
    key: FileKey,
    machines: Vec<(Origin, ChainId, Chain)>,
}

/// One roast as the gateway sends it: its frames in one body, its receipt with its topic.
struct Roast {
    session: SessionId,
    frames: Vec<u8>,
    receipt: (String, Vec<u8>),
}

#[derive(Default)]
struct Chain {
    number: u64,
    seq: u64,
    previous: Option<contract::Digest>,
}

impl Gateway {
    fn new(count: usize) -> anyhow::Result<Self> {
        let site = SiteId::new("leipzig")?;
        let key = FileKey::generate(KeyId::new(&DeviceId::new("gw")?, &site), Algorithm::EdDsa)?;
        let machine = |i| -> anyhow::Result<_> {
            let origin: Origin = format!("org/leipzig/r-{i}").parse()?;
            Ok((origin, ChainId(trust::random()?), Chain { number: 1, ..Chain::default() }))
        };
        Ok(Self { key, machines: (0..count).map(machine).collect::<anyhow::Result<_>>()? })
    }

    fn device(&self) -> Value {
        let machines: Vec<_> = self.machines.iter().map(|(o, ..)| o.machine.clone()).collect();
        json!({"orgId": "org", "siteId": "leipzig", "machines": machines,
               "kid": self.key.key_id(), "publicKey": self.key.public_key().to_pem()})
    }

    /// Creates a roast of machine `m` that began at `started`.
    fn roast(&mut self, m: usize, started: EpochMs, seed: u64) -> anyhow::Result<Roast> {
        let (origin, chain, state) = &mut self.machines[m];
        let mut twin = Twin::new(PRESETS[m % PRESETS.len()], seed, 0);
        let session = SessionId::compose(origin, started, u32::try_from(seed)?);
        let (mut body, mut readings, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let mut dropped = false;
        let mut at = started;
        let mut frame_at = at;
        let (first_frame, first_seq, mut digests) = (state.number, state.seq, Vec::new());
        while !dropped || !readings.is_empty() {
            let told = twin.advance(1_000);
            let reading = twin.reading();
            for kind in told {
                dropped |= kind == EventKind::Drop;
                events.push(MachineEvent {
                    kind,
                    seq: state.seq + readings.len() as u64,
                    at,
                    elapsed_s: at.ms_since(started) as f64 / 1000.0,
                    session: session.clone(),
                    source: EventSource::Machine,
                    bt_c: Some(reading.bt_c),
                    note: None,
                });
            }
            readings.push(reading);
            at = at.plus_ms(1_000);
            if readings.len() < SAMPLES_A_FRAME && !dropped {
                continue;
            }
            let column = |channel, value: fn(&roast::twin::Reading) -> f64| Column {
                channel,
                values: readings.iter().map(|r| Some(value(r))).collect(),
                quality: Vec::new(),
            };
            let frame = Frame {
                origin: origin.clone(),
                chain: *chain,
                number: state.number,
                previous: state.previous,
                boot_id: 1,
                first_seq: state.seq,
                mono_ms: state.seq * 1_000,
                wall: frame_at,
                clock: ClockQuality::Synchronised,
                profile_digest: None,
                offsets_ms: (0..u32::try_from(readings.len())?).map(|i| i * 1_000).collect(),
                columns: vec![
                    column(Channel::Bt, |r| r.bt_c),
                    column(Channel::Et, |r| r.et_c),
                    column(Channel::Gas, |r| r.gas_pct),
                    column(Channel::Fan, |r| r.fan_pct),
                ],
                events: std::mem::take(&mut events),
            };
            let payload = frame.encode();
            let digest = trust::sha256_digest(&payload);
            digests.extend(digest.0);
            state.previous = Some(digest);
            state.number += 1;
            state.seq += readings.len() as u64;
            body.extend(trust::sign_message(&self.key, CONTENT_FRAME, payload)?);
            readings.clear();
            frame_at = at;
        }
        let receipt = Receipt {
            origin: origin.clone(),
            chain: *chain,
            session: session.clone(),
            first_frame,
            last_frame: state.number - 1,
            first_seq,
            last_seq: state.seq - 1,
            started,
            ended: at.plus_ms(-1_000),
            digest: trust::sha256_digest(&digests),
        };
        let signed = trust::sign_message(&self.key, CONTENT_RECEIPT, receipt.encode())?;
        let receipt = (TopicKind::Receipt.topic(origin), signed);
        Ok(Roast { session, frames: body, receipt })
    }
}

/// Creates for each machine a golden case that any roast passes.
async fn give_cases(instance: &Instance) -> anyhow::Result<()> {
    for machine in 0..MACHINES {
        let case = json!({"name": "a roast", "machineId": format!("r-{machine}"),
                          "targetDropSeconds": 600, "dropSecondsErrorTolerance": 1_000,
                          "maxRorSpikes": 1_000});
        let made = client().post(instance.url("eval", "/golden-cases")).json(&case);
        made.send().await?.error_for_status()?;
    }
    Ok(())
}

/// Sends a roast until an instance acknowledges all of it, as an agent would.
async fn deliver(instances: &[Instance], body: &[u8], random: u64) -> anyhow::Result<()> {
    for attempt in 0..600_u64 {
        let i = usize::try_from((random + attempt) % instances.len() as u64)?;
        let sent = client()
            .post(instances[i].url("ingestion", "/v1/frames"))
            .header("content-type", "application/cose")
            .body(body.to_vec())
            .send()
            .await;
        if let Ok(answer) = sent
            && answer.status().is_success()
        {
            // A killed instance may have sent half of its answer.
            let Ok(acks) = answer.json::<Vec<Ack>>().await else { continue };
            ensure!(acks.iter().all(|ack| ack.refused.is_empty()), "refused: {acks:?}");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("no instance accepted the roast")
}

/// A gateway's connection to the broker.
struct Bus(rumqttc::AsyncClient);

impl Bus {
    fn connect(port: u16) -> Self {
        let options = rumqttc::MqttOptions::new("gw", ("127.0.0.1", port));
        let (client, mut events) = rumqttc::AsyncClient::builder(options).capacity(100).build();
        tokio::spawn(async move { while events.poll().await.is_ok() {} });
        Self(client)
    }

    async fn publish(&self, (topic, body): &(String, Vec<u8>)) -> anyhow::Result<()> {
        let options = rumqttc::PublishOptions::new(rumqttc::QoS::AtLeastOnce);
        Ok(self.0.publish(topic.clone(), body.clone(), options).await?)
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Checks that a finished roast has no predicted events, and that its report can be printed.
async fn check_prediction_and_report(
    instance: &Instance,
    session: &SessionId,
) -> anyhow::Result<()> {
    let predicted = instance.get("analytics", &format!("/prediction/session/{session}")).await?;
    assert_eq!((&predicted["phase"], &predicted["etaSeconds"]), (&json!("POST_DROP"), &json!({})));
    assert_eq!(predicted["explain"]["method"], "HEURISTIC_V1");
    let page = client()
        .get(instance.url("reports", &format!("/reports/session/{session}")))
        .send()
        .await?
        .error_for_status()?;
    let page = page.text().await?;
    assert!(page.contains("<svg") && page.contains("First crack"), "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_roast_of_a_day_is_reported_and_evaluated_once_while_instances_are_killed()
-> anyhow::Result<()> {
    let roasts = setting("ROASTS", 24);
    let (broker, database) = (Mosquitto::start().await?, Postgres::start().await?);
    let mut instances =
        vec![Instance::new("1", &database, &broker)?, Instance::new("2", &database, &broker)?];
    let settings = [format!("database.url={}", database.url())];
    operate(&["migrate", "up"], &settings)?;
    let mut gateway = Gateway::new(MACHINES)?;
    let folder = tempfile::tempdir()?;
    let device = folder.path().join("device.json");
    std::fs::write(&device, gateway.device().to_string())?;
    operate(&["device", "add", device.to_str().context("a path")?], &settings)?;
    for instance in &mut instances {
        instance.process.start()?;
    }
    for instance in &instances {
        instance.ready().await?;
    }
    // A day has more roasts than the policy allows reports in an hour.
    let policy = json!({"rateLimits": {}});
    let put = client().put(instances[0].url("kernel", "/governor/config")).json(&policy);
    put.send().await?.error_for_status()?;

    give_cases(&instances[0]).await?;

    let mut noise = Noise::new(setting("SEED", 20_261_122), 0);
    let (mut sessions, mut receipts) = (Vec::new(), Vec::new());
    let bus = Bus::connect(broker.port);
    let day = EpochMs(1_790_000_000_000);
    for n in 0..roasts {
        let machine = usize::try_from(n)? % MACHINES;
        let started = day.plus_ms(i64::try_from(n)? * 1_000_000);
        let roast = gateway.roast(machine, started, n + 1)?;
        deliver(&instances, &roast.frames, n).await?;
        bus.publish(&roast.receipt).await?;
        receipts.push(roast.receipt);
        sessions.push(roast.session);
        // Every third roast an instance is killed, whatever it is doing.
        if n % 3 == 2 {
            let victim = usize::from(noise.normal() > 0.0);
            instances[victim].process.kill();
            instances[victim].process.start()?;
        }
    }
    for instance in &instances {
        instance.ready().await?;
    }

    // Receipts are published again until the cloud marks the roast complete, as a gateway does.
    let first = &instances[0];
    let open = "SELECT count(*) FROM sessions WHERE completeness = 'complete'";
    for _ in 0..60 {
        if database.query_number(open)? == i64::try_from(roasts)? {
            break;
        }
        for receipt in &receipts {
            bus.publish(receipt).await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let reported = || async {
        let counts = first.get("kernel", "/missions/metrics").await;
        counts.is_ok_and(|counts| counts["DONE"] == 2 * roasts)
    };
    if let Err(error) = wait_for("all reports", PATIENCE, reported).await {
        let counts = first.get("kernel", "/missions/metrics").await?;
        let outbox = database.query_number("SELECT count(*) FROM outbox")?;
        let logs: Vec<_> = instances.iter().map(|instance| instance.process.log()).collect();
        anyhow::bail!("{error}: {counts}, outbox {outbox}\n{}", logs.join("\n---\n"));
    }
    let path = "/missions?limit=200&goal=generate-roast-report";
    let missions = first.get("kernel", path).await?;
    let missions: Vec<MissionRecord> = serde_json::from_value(missions["items"].clone())?;
    assert_eq!(missions.len() as u64, roasts, "each roast must have one mission");
    for session in &sessions {
        let path = format!("/sessions/{session}/reports");
        let reports = first.get("ingestion", &path).await?;
        let reports = reports.as_array().context("a list")?;
        assert_eq!(reports.len(), 1, "{session}");
        let path = format!("/evaluations?sessionId={session}");
        let runs = first.get("eval", &path).await?;
        let outcomes: Vec<_> = runs.as_array().context("a list")?.iter().collect();
        assert_eq!(outcomes.len(), 1, "{session}: {runs}");
        assert_eq!(outcomes[0]["outcome"], "PASS", "{runs}");
        let report = &reports[0];
        assert!(report["analysis"]["dropSeconds"].as_f64().is_some_and(|s| s > 300.0), "{report}");
        assert!(report["analysis"]["phases"].as_array().is_some_and(|p| p.len() == 3));
        assert_eq!(report["trustMetrics"]["verificationRate"], 1.0);
        let done = missions.iter().find(|m| m.subject_id.as_deref() == Some(session.as_str()));
        let result = done.and_then(|m| m.result_meta.clone()).context("a mission's result")?;
        assert_eq!(result["reportId"], report["reportId"]);
    }
    wait_for("the outbox is empty", PATIENCE, || async {
        database.query_number("SELECT count(*) FROM outbox").is_ok_and(|n| n == 0)
    })
    .await?;
    // Each report is in the audit log once, and the log's chain of digests is intact.
    let log = first.get("kernel", "/audit?limit=1000").await?;
    let written = log.as_array().context("a log")?.iter();
    assert_eq!(written.filter(|e| e["action"] == "session.report").count() as u64, roasts);
    check_prediction_and_report(first, &sessions[0]).await?;
    Ok(())
}

/// Configures only ports, a folder and the intervals of workers: SQLite and the embedded broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_default_configuration_a_roast_is_complete_and_reported() -> anyhow::Result<()> {
    let Some(recordings) = testbed::recordings()? else { return Ok(()) };
    let simcorp = Stack::start(&SERVICES, &[]).await?;
    // Played at forty times the speed, the roast is shorter than the policy accepts.
    let gates = json!({"generate-roast-report": {"minTelemetryPoints": 10, "minDurationSec": 1}});
    let put = client().put(simcorp.url("kernel", "/governor/config"));
    put.json(&json!({"gates": gates})).send().await?.error_for_status()?;

    let uplink = format!("host = \"127.0.0.1\"\nport = {}", simcorp.broker);
    let driver = "driver = \"simulated\"\n[sampling]\nperiod_ms = 50\nframe_ms = 250";
    let agent = Agent::new("r-1", driver, &uplink)?;
    let device = agent.folder.path().join("device.json");
    std::fs::write(&device, agent.command(&["key", "create"])?)?;
    simcorp.operate(&["device", "add", &device.display().to_string()])?;
    let recording = recordings.join("skywalker/roast_25-11-29_1458.alog");
    let played = tokio::task::spawn_blocking(move || {
        agent.command(&["replay", &recording.display().to_string(), "--speed", "40"])
    });
    played.await??;

    let sessions = simcorp.get("ingestion", "/sessions").await?;
    let session = sessions[0]["sessionId"].as_str().context("a session")?.to_owned();
    let path = format!("/sessions/{session}");
    let complete = || async {
        let found = simcorp.get("ingestion", &path).await;
        found.is_ok_and(|session| session["completeness"] == "complete")
    };
    wait_for("the session is complete", PATIENCE, complete)
        .await
        .with_context(|| simcorp.process.log())?;
    let latest = format!("/sessions/{session}/reports/latest");
    let reported = || async { simcorp.get("ingestion", &latest).await.is_ok() };
    wait_for("the report exists", PATIENCE, reported)
        .await
        .with_context(|| simcorp.process.log())?;
    Ok(())
}
