//! The worker: one real HTTP server on loopback is kernel, ingestion and analytics.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use contract::mission::EVAL_GOAL;
use eval::EvalConfig;
use eval::golden::{Expectation, GoldenCase, NewCase};
use eval::store::RunFilter;
use serde_json::{Value, json};
use service_testbed::NOW;
use testbed::{FakeService, ReceivedRequest};

use crate::{by, context, golden_case, open_sqlite, org};

/// A mission to evaluate the roast `S-1` of the machine `r-1`.
fn mission(id: &str, params: &Value) -> Value {
    json!({
        "missionId": id, "id": id, "idempotencyKey": id, "goal": {"title": EVAL_GOAL},
        "status": "RUNNING", "priority": "MEDIUM", "attempts": 1, "maxAttempts": 5,
        "params": params, "context": {"orgId": "acme", "machineId": "r-1"}, "constraints": [],
        "createdAt": NOW, "updatedAt": NOW, "leaseId": "l-1",
    })
}

/// The other services. The kernel hands out the missions in their order.
async fn peers(missions: Vec<Value>) -> FakeService {
    let claims = AtomicUsize::new(0);
    let answer = move |request: &ReceivedRequest| -> Response {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/missions/claim") => {
                match missions.get(claims.fetch_add(1, Ordering::SeqCst)) {
                    Some(mission) => Json(mission.clone()).into_response(),
                    None => StatusCode::NO_CONTENT.into_response(),
                }
            }
            ("POST", "/policy/check") => Json(json!({"decision": "ALLOW"})).into_response(),
            ("POST", _) => Json(json!({})).into_response(),
            (_, "/analysis/session/S-1") => {
                Json(json!({"fcSeconds": 540.0, "dropSeconds": 605.0})).into_response()
            }
            (_, "/sessions/S-1/telemetry") => Json(json!([])).into_response(),
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    };
    FakeService::start(answer).await.unwrap()
}

/// Returns a case of `machine` that requires first crack at 480 s ± 30 s.
fn case_of(id: &str, machine: &str) -> GoldenCase {
    let case = NewCase {
        target_first_crack_seconds: Some(480.0),
        fc_seconds_error_tolerance: Some(30.0),
        ..NewCase::named("Huila", machine)
    };
    GoldenCase { case, ..golden_case(id, machine, NOW) }
}

fn config(peers: &FakeService) -> EvalConfig {
    EvalConfig {
        kernel_url: peers.url(),
        ingestion_url: peers.url(),
        analytics_url: peers.url(),
        workers: 1,
        poll_ms: 3_600_000,
        ..EvalConfig::default()
    }
}

#[tokio::test]
async fn a_roast_is_evaluated_once_against_each_case_of_its_machine() {
    let (_folder, store) = open_sqlite().await;
    let acme = org("acme");
    let mut refusal = case_of("golden-2", "r-1");
    refusal.case.expectation = Expectation::ShouldReject;
    let mut archived = case_of("golden-3", "r-1");
    archived.case.archived = true;
    let others = [refusal, archived, case_of("golden-4", "r-2")];
    for case in [case_of("golden-1", "r-1")].iter().chain(&others) {
        store.add_case(&acme, case, by(NOW)).await.unwrap();
    }
    // The kernel hands out the same work twice, as when the first result was lost.
    let params = json!({"sessionId": "S-1"});
    let peers = peers(vec![mission("m-1", &params), mission("m-2", &params)]).await;
    let context = context(&store);
    eval::start(&config(&peers), &context).unwrap();
    let first = peers.wait_for_request("POST", "/missions/m-1/complete").await.unwrap().json();
    let second = peers.wait_for_request("POST", "/missions/m-2/complete").await.unwrap().json();
    context.stop.cancel();
    context.tasks.wait().await;

    let filter = RunFilter { limit: 10, ..RunFilter::default() };
    let runs = store.runs(&acme, &filter).await.unwrap();
    assert_eq!(runs.len(), 1, "{runs:?}");
    let run = &runs[0];
    assert_eq!((run.golden_case_id.as_str(), run.session_id.as_deref()), ("golden-1", Some("S-1")));
    assert_eq!((run.mission_id.as_deref(), run.run_at), (Some("m-1"), NOW));
    assert_eq!(run.evaluator_id.as_deref(), Some("auto-evaluator"));
    assert_eq!(run.failed_gates, ["fc_timing"]);
    let made = json!({"caseId": "golden-1", "runId": run.id, "outcome": "FAIL"});
    let summary = json!({"sessionId": "S-1", "cases": 1, "runs": [made]});
    assert_eq!(first, json!({"leaseId": "l-1", "summary": summary}));
    let summary = json!({"sessionId": "S-1", "cases": 1, "runs": []});
    assert_eq!(second, json!({"leaseId": "l-1", "summary": summary}));
}

#[tokio::test]
async fn a_mission_without_a_roast_fails_for_good() {
    let (_folder, store) = open_sqlite().await;
    store.add_case(&org("acme"), &case_of("golden-1", "r-1"), by(NOW)).await.unwrap();
    let unknown = json!({"sessionId": "S-9"});
    let peers = peers(vec![mission("m-1", &json!({})), mission("m-2", &unknown)]).await;
    let context = context(&store);
    eval::start(&config(&peers), &context).unwrap();
    for (path, error) in [
        ("/missions/m-1/fail", "the mission names no roast (params.sessionId)"),
        ("/missions/m-2/fail", "analytics has no such roast"),
    ] {
        let failed = peers.wait_for_request("POST", path).await.unwrap().json();
        assert_eq!(failed, json!({"leaseId": "l-1", "error": error, "retryable": false}));
    }
    context.stop.cancel();
}
