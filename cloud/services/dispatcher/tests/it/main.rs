//! The dispatcher with a kernel that is a real HTTP server on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use dispatcher::DispatcherConfig;
use http_stack::auth::{Caller, Role};
use serde_json::{Value, json};
use service_testbed::{NOW, caller, context};
use testbed::{FakeService, ReceivedRequest};
use tower::ServiceExt as _;

/// Returns the mission as the kernel stores it.
fn stored(new: &Value) -> Value {
    json!({
        "missionId": "m-1", "id": "m-1", "idempotencyKey": new["idempotencyKey"],
        "goal": new["goal"], "status": "PENDING", "priority": "MEDIUM", "attempts": 0,
        "maxAttempts": 7, "params": {}, "context": {}, "constraints": [],
        "createdAt": NOW, "updatedAt": NOW,
    })
}

/// A kernel and the dispatcher's routes. The kernel stores one mission for each idempotency key;
/// while `refuses_evaluations`, it is too busy for missions of that goal.
struct Fixture {
    kernel: FakeService,
    routes: Router,
    refuses_evaluations: Arc<AtomicBool>,
}

impl Fixture {
    async fn start(replay: bool) -> Self {
        let refuses_evaluations = Arc::new(AtomicBool::new(false));
        let refuses = refuses_evaluations.clone();
        let known = Mutex::new(BTreeSet::new());
        let answer = move |request: &ReceivedRequest| -> Response {
            let new = request.json();
            if refuses.load(Ordering::SeqCst) && new["goal"]["title"] == "evaluate-roast" {
                let full = json!({"error": "the queue is full"});
                return (StatusCode::SERVICE_UNAVAILABLE, Json(full)).into_response();
            }
            let key = new["idempotencyKey"].as_str().unwrap().to_owned();
            let is_new = known.lock().unwrap().insert(key);
            let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            (status, Json(stored(&new))).into_response()
        };
        let kernel = FakeService::start(answer).await.unwrap();
        let kernel_url = kernel.url();
        let config =
            DispatcherConfig { kernel_url, max_attempts: 7, replay, ..DispatcherConfig::default() };
        let routes = dispatcher::start(&config, &context()).unwrap().routes;
        Self { kernel, routes, refuses_evaluations }
    }

    async fn send(&self, caller: Caller, mut request: Request) -> (StatusCode, Value) {
        request.extensions_mut().insert(caller);
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Dispatches an event as an operator of acme.
    async fn replay(&self, event: &Value) -> (StatusCode, Value) {
        self.replay_as(caller("acme", Role::Operator), event).await
    }

    async fn replay_as(&self, caller: Caller, event: &Value) -> (StatusCode, Value) {
        let request = Request::post("/replay").header(header::CONTENT_TYPE, "application/json");
        self.send(caller, request.body(Body::from(event.to_string())).unwrap()).await
    }

    async fn status(&self, org: &str) -> Value {
        let request = Request::get("/status").body(Body::empty()).unwrap();
        let (status, body) = self.send(caller(org, Role::Viewer), request).await;
        assert_eq!(status, StatusCode::OK);
        body
    }

    /// Returns the missions that were sent to the kernel.
    fn missions(&self) -> Vec<Value> {
        let requests = self.kernel.requests();
        assert!(requests.iter().all(|request| request.is("POST", "/missions")));
        assert!(requests.iter().all(|request| request.query == "orgId=acme"));
        requests.iter().map(ReceivedRequest::json).collect()
    }
}

/// The end of the roast `S-1`.
fn event() -> Value {
    json!({
        "type": "session.closed", "version": 1, "emittedAt": NOW, "orgId": "acme",
        "siteId": "leipzig", "machineId": "r-1", "sessionId": "S-1", "dropSeconds": 612.5,
        "telemetryPoints": 600, "hasBT": true, "hasET": false, "lastTelemetryDeltaSec": 1.5,
    })
}

fn counters(received: u64, [created, known, errors]: [u64; 3]) -> Value {
    json!({
        "eventsReceived": received, "missionsCreated": created, "missionsDeduped": known,
        "parseErrors": 0, "validationErrors": 0, "kernelErrors": errors,
    })
}

#[tokio::test]
async fn the_end_of_a_roast_becomes_one_mission_for_each_goal() {
    let dispatcher = Fixture::start(true).await;
    let queued = (StatusCode::ACCEPTED, json!({"status": "queued"}));
    assert_eq!(dispatcher.replay(&event()).await, queued);
    let missions = dispatcher.missions();
    let keys: Vec<_> = missions.iter().map(|mission| &mission["idempotencyKey"]).collect();
    let wanted = ["generate-roast-report:POST_ROAST_V1:S-1", "evaluate-roast:POST_ROAST_V1:S-1"];
    assert_eq!(keys, wanted);
    assert_eq!(
        missions[0],
        json!({
            "idempotencyKey": wanted[0],
            "goal": {"title": "generate-roast-report"},
            "subjectId": "S-1",
            "params": {"sessionId": "S-1", "reportKind": "POST_ROAST_V1"},
            "context": {"orgId": "acme", "siteId": "leipzig", "machineId": "r-1"},
            "constraints": [],
            "requestedBy": "dispatcher",
            "signals": {"session": {
                "sessionId": "S-1", "closeReason": "DROP", "durationSec": 612.5,
                "telemetryPoints": 600, "hasBT": true, "hasET": false,
                "lastTelemetryDeltaSec": 1.5,
            }},
            "priority": "MEDIUM",
            "maxAttempts": 7,
        })
    );
    let status = dispatcher.status("acme").await;
    assert_eq!(status["counters"], counters(1, [2, 0, 0]));
    assert_eq!(status["lastErrors"], json!([]));
    assert_eq!(status["goals"], json!(["generate-roast-report", "evaluate-roast"]));
}

#[tokio::test]
async fn a_roast_without_a_drop_has_ended_by_silence_unless_the_event_says_why() {
    let dispatcher = Fixture::start(true).await;
    let mut silent = event();
    silent.as_object_mut().unwrap().remove("dropSeconds");
    silent["durationSec"] = json!(700.0);
    silent["reportKind"] = json!("SECOND_V1");
    dispatcher.replay(&silent).await;
    let mut told = event();
    told["reason"] = json!("SILENCE_CLOSE");
    dispatcher.replay(&told).await;
    let missions = dispatcher.missions();
    let of = |i: usize| &missions[i]["signals"]["session"];
    assert_eq!(of(0)["closeReason"], "SILENCE_CLOSE");
    assert_eq!(of(0)["durationSec"], 700.0);
    assert_eq!(missions[0]["idempotencyKey"], "generate-roast-report:SECOND_V1:S-1");
    assert_eq!(
        (&of(2)["closeReason"], &of(2)["durationSec"]),
        (&json!("SILENCE_CLOSE"), &json!(612.5))
    );
}

#[tokio::test]
async fn the_same_event_again_creates_nothing_new() {
    let dispatcher = Fixture::start(true).await;
    for _ in 0..2 {
        assert_eq!(dispatcher.replay(&event()).await.0, StatusCode::ACCEPTED);
    }
    let missions = dispatcher.missions();
    assert_eq!(missions.len(), 4);
    assert_eq!(missions[..2], missions[2..], "the keys are the same, and all else");
    assert_eq!(dispatcher.status("acme").await["counters"], counters(2, [2, 2, 0]));
}

#[tokio::test]
async fn an_event_of_which_one_mission_is_refused_fails_and_is_completed_later() {
    let dispatcher = Fixture::start(true).await;
    dispatcher.refuses_evaluations.store(true, Ordering::SeqCst);
    let message = "kernel is busy: 503: the queue is full";
    let refused = (StatusCode::SERVICE_UNAVAILABLE, json!({"error": message}));
    assert_eq!(dispatcher.replay(&event()).await, refused);
    let status = dispatcher.status("acme").await;
    assert_eq!(status["counters"], counters(1, [1, 0, 1]));
    assert_eq!(status["lastErrors"], json!([{"at": NOW, "message": message}]));
    let rival = dispatcher.status("rival").await;
    assert_eq!(rival["lastErrors"], json!([]), "another organisation's error");

    dispatcher.refuses_evaluations.store(false, Ordering::SeqCst);
    assert_eq!(dispatcher.replay(&event()).await.0, StatusCode::ACCEPTED);
    assert_eq!(dispatcher.status("acme").await["counters"], counters(2, [2, 1, 1]));
}

#[tokio::test]
async fn an_event_that_is_wrong_or_of_another_organisation_reaches_no_kernel() {
    let dispatcher = Fixture::start(true).await;
    let mut other_version = event();
    other_version["version"] = json!(2);
    let (status, body) = dispatcher.replay(&other_version).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["issues"][0]["path"], json!(["type"]));
    let rival = caller("rival", Role::Admin);
    let (status, _) = dispatcher.replay_as(rival, &event()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, body) = dispatcher.replay_as(caller("acme", Role::Viewer), &event()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(body, json!({"error": "needs the role operator; you are viewer"}));
    assert_eq!(dispatcher.missions(), Vec::<Value>::new());
    assert_eq!(dispatcher.status("acme").await["counters"], counters(0, [0, 0, 0]));
}

#[tokio::test]
async fn without_replay_there_is_no_such_route() {
    let dispatcher = Fixture::start(false).await;
    for body in [event(), json!({}), json!([])] {
        let (status, _) = dispatcher.replay(&body).await;
        assert_eq!((status, dispatcher.missions().len()), (StatusCode::NOT_FOUND, 0), "{body}");
    }
}
