//! Tests of what the routes return of messages that went through the pipeline, on SQLite.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::Router;
use axum::http::{Method, StatusCode};
use cache::Cache;
use contract::envelope::PayloadKind;
use contract::{Ack, Digest, EpochMs};
use http_stack::auth::Role;
use http_stack::{Limits, LimitsConfig};
use serde_json::{Value, json};
use service::clock::Clock;
use service::shutdown::CancellationToken;
use service::tasks::Tasks;
use service_testbed::NOW;
use tokio::sync::oneshot;

use super::{ReadPace, SharedState};
use crate::IngestionConfig;
use crate::clock_correction::ClockCorrection;
use crate::live_tail::Tail;
use crate::pipeline::{Lane, Message, Pipeline, Reply};
use crate::receipts::CurveSweep;
use crate::store::IngestStore;
use crate::test_gateway::{Gateway, frame, origin, read, send};

/// Returns the state of the routes, with a pipeline that stores what it is sent.
pub(super) fn state_of(store: &IngestStore, clock: &Clock) -> SharedState {
    let (config, stop) = (IngestionConfig::default(), CancellationToken::new());
    let tasks = Tasks::new(stop.clone());
    let tail = Tail::start(store.clone(), &tasks, stop.clone());
    let (wake, dates) = (tail.wake(), ClockCorrection::default());
    let (pipeline, _) = Pipeline::start(&config, store, clock, (&wake, &dates), &tasks);
    SharedState {
        pace: ReadPace::new(config.read_cells_per_second),
        store: store.clone(),
        pipeline,
        tail,
        clock: clock.clone(),
        stop,
        limits: Limits::new(&LimitsConfig::default(), None, clock.clone()),
        cache: Cache::new(None),
    }
}

/// Ingestion with one registered gateway, and a clock that the test moves.
struct Ingestion {
    store: IngestStore,
    pipeline: Pipeline,
    routes: Router,
    gateway: Gateway,
    now: Arc<AtomicI64>,
    _folder: tempfile::TempDir,
}

impl Ingestion {
    async fn start() -> Self {
        let (folder, database) = service_testbed::open_sqlite().await;
        let gateway = Gateway::register(&database).await;
        let now = Arc::new(AtomicI64::new(NOW.0));
        let read = now.clone();
        let clock: Clock = Arc::new(move || EpochMs(read.load(Ordering::Relaxed)));
        let store = IngestStore::new(database);
        let state = state_of(&store, &clock);
        let pipeline = state.pipeline.clone();
        let routes = super::routes(state).0;
        Self { store, pipeline, routes, gateway, now, _folder: folder }
    }

    /// Delivers a message of the gateway's machine; returns its acknowledgement.
    async fn deliver(&self, message: Message) -> Ack {
        let (reply, answer) = oneshot::channel();
        let reply = Reply::Request(reply);
        assert!(self.pipeline.send(Lane::Live, origin(), message, reply).await);
        answer.await.expect("an acknowledgement")
    }
}

#[tokio::test]
async fn the_machine_and_the_gateway_tell_when_two_agents_had_one_name() {
    let ingestion = Ingestion::start().await;
    let conflicts = async || {
        let machines = read(&ingestion.routes, "/machines").await;
        let devices = read(&ingestion.gateway.fleet, "/devices").await;
        [machines, devices].map(|list| {
            assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
            list[0].get("nameConflictAt").cloned()
        })
    };
    // The two agents have one key, and each its own chain.
    let mut last: [Option<Digest>; 2] = [None, None];
    for n in 0..8_u8 {
        let (agent, at) = (usize::from(n % 2), NOW.plus_ms(i64::from(n) * 10_000));
        ingestion.now.store(at.0, Ordering::Relaxed);
        let sent = frame(n % 2 + 1, u64::from(n / 2) + 1, last[agent], at);
        last[agent] = Some(trust::sha256_digest(&sent.encode()));
        let ack = ingestion.deliver(Message::Frame(ingestion.gateway.signed(&sent))).await;
        assert_eq!((ack.acked.len(), ack.refused.len()), (1, 0), "frame {n}");
        if n == 4 {
            assert_eq!(conflicts().await, [None, None], "a replaced journal does the same");
        }
    }
    let seen = Some(json!(NOW.plus_ms(50_000)));
    assert_eq!(conflicts().await, [seen.clone(), seen]);
}

#[tokio::test]
async fn a_report_names_the_device_whose_key_signed_the_points() {
    let ingestion = Ingestion::start().await;
    let deliver = async |topic: &str, payload: Value| {
        let kind = if topic == "event" { PayloadKind::Event } else { PayloadKind::Telemetry };
        let signed = ingestion.gateway.signed_json(topic, &payload);
        let ack = ingestion.deliver(Message::Legacy(kind, signed)).await;
        assert_eq!((ack.acked.len(), ack.refused.len()), (1, 0), "{payload}");
    };
    for s in [0, 10, 20] {
        let at = NOW.plus_ms(s * 1_000);
        ingestion.now.store(at.0, Ordering::Relaxed);
        let point = json!({"ts": at, "machineId": "r-1", "elapsedSeconds": s, "btC": 200.5});
        deliver("telemetry", point).await;
    }
    let drop = json!({"ts": NOW.plus_ms(20_000), "machineId": "r-1", "type": "DROP",
                      "payload": {"elapsedSeconds": 20}});
    deliver("event", drop).await;

    let sessions = read(&ingestion.routes, "/sessions").await;
    let id = sessions[0]["sessionId"].as_str().unwrap();
    let report = json!({"analysis": {}, "markdown": "# Roast"});
    let (path, signers) = (format!("/sessions/{id}/reports"), json!(["device:gw@leipzig"]));
    let route = (Method::POST, path.as_str());
    let (status, added) = send(&ingestion.routes, Role::Operator, route, &report).await;
    assert_eq!(status, StatusCode::CREATED, "{added}");
    let of_report = &added["trustMetrics"];
    assert_eq!((&of_report["verifiedPoints"], &of_report["totalPoints"]), (&json!(3), &json!(3)));
    assert_eq!(of_report["deviceIds"], signers);
    let report_id = added["reportId"].as_str().unwrap();
    let stored = read(&ingestion.routes, &format!("/reports/{report_id}")).await;
    assert_eq!(stored["trustMetrics"]["deviceIds"], signers);

    // Also once the roast has its curve, and in the session itself.
    let later = NOW.plus_ms(3_600_000);
    CurveSweep::default().pass(&ingestion.store, later).await.unwrap();
    let session = read(&ingestion.routes, &format!("/sessions/{id}")).await;
    assert_eq!(session["deviceIds"], signers, "{session}");
}
