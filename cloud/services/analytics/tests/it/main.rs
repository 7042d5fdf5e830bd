//! Analytics with an ingestion that is a real HTTP server on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use analytics::AnalyticsConfig;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use contract::EpochMs;
use http_stack::auth::Role;
use http_stack::start::Context;
use serde_json::{Value, json};
use service_testbed::{NOW, caller};
use testbed::{FakeService, ReceivedRequest, free_port};
use tower::ServiceExt as _;

const HOUR_MS: i64 = 3_600_000;

/// What the services share. The clock starts at [`NOW`] and goes on by `step_ms` when it is read.
fn context(step_ms: i64) -> Context {
    let time_ms = AtomicI64::new(NOW.0);
    Context {
        clock: Arc::new(move || EpochMs(time_ms.fetch_add(step_ms, Ordering::SeqCst))),
        ..service_testbed::context()
    }
}

fn routes(ingestion_url: String, step_ms: i64) -> Router {
    let config = AnalyticsConfig { ingestion_url, ..AnalyticsConfig::default() };
    analytics::start(&config, &context(step_ms)).unwrap().routes
}

/// Reads as a viewer of acme.
async fn read(routes: &Router, uri: &str) -> (StatusCode, Bytes) {
    let mut request = Request::get(uri).body(Body::empty()).unwrap();
    request.extensions_mut().insert(caller("acme", Role::Viewer));
    let response = routes.clone().oneshot(request).await.unwrap();
    let status = response.status();
    (status, to_bytes(response.into_body(), usize::MAX).await.unwrap())
}

async fn read_json(routes: &Router, uri: &str) -> (StatusCode, Value) {
    let (status, body) = read(routes, uri).await;
    (status, serde_json::from_slice(&body).unwrap())
}

/// An ingestion with these answers by path; every other path is 404. A session has a version.
async fn ingestion(answers: BTreeMap<String, Value>) -> FakeService {
    let answer = move |request: &ReceivedRequest| -> Response {
        match answers.get(&request.path) {
            Some(body) => ([(header::ETAG, "\"7\"")], Json(body.clone())).into_response(),
            None => (StatusCode::NOT_FOUND, Json(json!({"error": "not found"}))).into_response(),
        }
    };
    FakeService::start(answer).await.unwrap()
}

/// The summary of a roast that began `hours` ago.
fn summary(id: &str, machine: &str, hours: i64) -> Value {
    json!({
        "orgId": "acme", "siteId": "leipzig", "machineId": machine, "sessionId": id,
        "startedAt": NOW.plus_ms(-hours * HOUR_MS), "endedAt": NOW, "status": "CLOSED",
        "telemetryPoints": 600, "verifiedPoints": 600, "unsignedPoints": 0, "failedPoints": 0,
        "deviceIds": [], "completeness": "complete",
    })
}

/// A roast of ten minutes with one point a second: the bean temperature falls for a minute, then
/// rises to 210 °C. `warmer` is added to every temperature.
fn roast(answers: &mut BTreeMap<String, Value>, id: &str, warmer: f64) {
    let mut session = summary(id, "r-1", 1);
    session["dropSeconds"] = json!(600.0);
    session["telemetryPoints"] = json!(601);
    let points: Vec<Value> = (0..=600_i32)
        .map(|t| {
            let s = f64::from(t);
            let bt = if t < 60 { 200.0 - 1.5 * s } else { 110.0 + (s - 60.0) / 5.4 };
            json!({"ts": NOW.plus_ms(i64::from(t) * 1000), "machineId": "r-1",
                   "elapsedSeconds": s, "btC": bt + warmer})
        })
        .collect();
    answers.insert(format!("/sessions/{id}"), session);
    answers.insert(format!("/sessions/{id}/telemetry"), points.into());
}

async fn two_roasts() -> FakeService {
    let mut answers = BTreeMap::new();
    roast(&mut answers, "S-1", 0.0);
    roast(&mut answers, "S-2", 2.0);
    ingestion(answers).await
}

#[tokio::test]
async fn the_fleet_s_roasts_are_counted_in_total_and_by_machine() {
    let mut ended = summary("S-4", "r-1", 1);
    ended["durationSeconds"] = json!(600.0);
    ended["fcSeconds"] = json!(480.0);
    let mut running = summary("S-3", "r-1", 0);
    running["endedAt"] = Value::Null;
    running["status"] = json!("ACTIVE");
    running["completeness"] = json!("open");
    running["verifiedPoints"] = json!(0);
    let mut other = summary("S-2", "r-2", 24);
    other["durationSeconds"] = json!(700.0);
    other["telemetryPoints"] = json!(1200);
    other["verifiedPoints"] = json!(1200);
    let old = summary("S-1", "r-2", 8 * 24);
    let roasts = json!([running, ended, other, old]);
    let ingestion = ingestion(BTreeMap::from([("/sessions".to_owned(), roasts)])).await;

    let (status, fleet) = read_json(&routes(ingestion.url(), 0), "/fleet?days=7").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        fleet,
        json!({
            "since": NOW.plus_ms(-7 * 24 * HOUR_MS), "cut": false,
            "roasts": 3, "complete": 2, "running": 1, "roastsPerDay": 0.43,
            "durationSeconds": 650.0, "firstCrackSeconds": 480.0, "verifiedShare": 0.75,
            "lastRoastAt": NOW,
            "machines": [
                {"siteId": "leipzig", "machineId": "r-1", "roasts": 2, "complete": 1,
                 "running": 1, "roastsPerDay": 0.29, "durationSeconds": 600.0,
                 "firstCrackSeconds": 480.0, "verifiedShare": 0.5, "lastRoastAt": NOW},
                {"siteId": "leipzig", "machineId": "r-2", "roasts": 1, "complete": 1,
                 "running": 0, "roastsPerDay": 0.14, "durationSeconds": 700.0,
                 "verifiedShare": 1.0, "lastRoastAt": NOW.plus_ms(-24 * HOUR_MS)},
            ],
        })
    );
    let requests = ingestion.requests();
    assert_eq!((requests.len(), requests[0].query.as_str()), (1, "orgId=acme&limit=500"));
}

#[tokio::test]
async fn a_fleet_without_roasts_has_counts_and_no_means() {
    let ingestion = ingestion(BTreeMap::new()).await;
    let routes = routes(ingestion.url(), 0);
    let (_, fleet) = read_json(&routes, "/fleet").await;
    let since = NOW.plus_ms(-7 * 24 * HOUR_MS);
    let none = json!({"since": since, "cut": false, "roasts": 0, "complete": 0, "running": 0,
                      "roastsPerDay": 0.0, "machines": []});
    assert_eq!(fleet, none);
    let (status, _) = read_json(&routes, "/fleet?days=0").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_roast_that_is_two_degrees_warmer_is_exactly_that() {
    let ingestion = two_roasts().await;
    let uri = "/comparison/session/S-2?referenceId=S-1";
    let (status, told) = read_json(&routes(ingestion.url(), 0), uri).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&told["sessionId"], &told["referenceId"]), (&json!("S-2"), &json!("S-1")));
    let found = &told["comparison"];
    assert_eq!((&found["btMeanC"], &found["btRmseC"]), (&json!(2.0), &json!(2.0)));
    assert_eq!((&found["secondsCompared"], &found["alignedOn"]), (&json!(600), &json!("CHARGE")));
    assert_eq!(found["similarity"], json!(60.7), "100·exp(−2/4)");
}

#[tokio::test]
async fn a_comparison_says_why_it_cannot_be_made() {
    let ingestion = two_roasts().await;
    let routes = routes(ingestion.url(), 0);
    for (uri, status, error) in [
        ("S-2", 400, "referenceId: the session to compare with"),
        ("S-2?referenceId=S-1&align=DROP", 400, "align: not CHARGE, TP, DRY_END or FC"),
        (
            "S-2?referenceId=S-1&align=FC",
            409,
            "the roasts cannot be compared: one has no CHARGE, DROP or FC, or they share no time",
        ),
        ("S-2?referenceId=S-9", 404, "session not found"),
    ] {
        let (found, body) = read_json(&routes, &format!("/comparison/session/{uri}")).await;
        assert_eq!((found.as_u16(), body), (status, json!({ "error": error })), "{uri}");
    }
}

#[tokio::test]
async fn an_analysis_is_computed_once_for_each_version_of_its_session() {
    let ingestion = two_roasts().await;
    let routes = routes(ingestion.url(), 1_000);
    let uri = "/analysis/session/S-1";
    let (status, first) = read(&routes, uri).await;
    assert_eq!(status, StatusCode::OK);
    let analysis: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!((&analysis["sessionId"], &analysis["dropSeconds"]), (&json!("S-1"), &json!(600.0)));
    assert_eq!(analysis["eventTimeSource"]["DROP"], "INFERRED");
    let paths = || -> Vec<String> {
        ingestion.requests().into_iter().map(|request| request.path).collect()
    };
    let read_parts = paths();
    assert_eq!(read_parts.len(), 5);
    let (_, second) = read(&routes, uri).await;
    assert_eq!(second, first, "the clock has gone on; the cached analysis has not changed");
    assert_eq!(paths()[5..], ["/sessions/S-1"]);
    // Another roast has its own entry.
    let (_, other) = read_json(&routes, "/analysis/session/S-2").await;
    assert_eq!(other["sessionId"], "S-2");
}

#[tokio::test]
async fn a_roast_that_does_not_exist_is_404_and_an_absent_ingestion_503() {
    let ingestion = two_roasts().await;
    let known = routes(ingestion.url(), 0);
    let absent = routes(format!("http://127.0.0.1:{}", free_port().unwrap()), 0);
    for path in ["/analysis/session/S-9", "/prediction/session/S-9"] {
        let (status, body) = read_json(&known, path).await;
        let not_found = json!({"error": "session not found"});
        assert_eq!((status, body), (StatusCode::NOT_FOUND, not_found), "{path}");
        let (status, _) = read_json(&absent, path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
}
