//! The report worker and its pages. One real HTTP server on loopback is kernel, ingestion and
//! analytics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use http_stack::auth::Role;
use http_stack::stack::service_router;
use http_stack::start::{Context, Service};
use reports::ReportsConfig;
use serde_json::{Value, json};
use service::metrics::Metrics;
use service_testbed::{NOW, caller, context};
use testbed::{FakeService, ReceivedRequest};
use tower::ServiceExt as _;

const COMPLETE: &str = "/missions/m-1/complete";
const FAIL: &str = "/missions/m-1/fail";
const LATEST: &str = "/sessions/S-1/reports/latest";

fn mission() -> Value {
    json!({
        "missionId": "m-1", "id": "m-1", "idempotencyKey": "k", "attempts": 1, "maxAttempts": 5,
        "goal": {"title": "generate-roast-report"}, "status": "RUNNING", "priority": "MEDIUM",
        "params": {"sessionId": "S-1"}, "context": {"orgId": "acme"}, "constraints": [],
        "createdAt": NOW, "updatedAt": NOW, "leaseId": "l-1",
    })
}

/// What ingestion and analytics know about the roast `S-1`, by path.
fn roast() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        (
            "/sessions/S-1",
            json!({
                "orgId": "acme", "siteId": "leipzig", "machineId": "r-1", "sessionId": "S-1",
                "startedAt": "2025-10-05T21:08:15.000Z", "endedAt": "2025-10-05T21:18:15.000Z",
                "status": "CLOSED", "telemetryPoints": 600, "verifiedPoints": 450,
                "unsignedPoints": 150, "failedPoints": 0, "deviceIds": [],
                "completeness": "complete",
            }),
        ),
        ("/sessions/S-1/meta", json!({"beanName": "Huila | washed"})),
        (
            "/sessions/S-1/notes",
            json!([{"noteId": "n-1", "createdAt": "2025-10-05T22:00:00.000Z",
                    "title": "Table <1>", "cuppingScore": 84.5, "defects": ["TIPPED"]}]),
        ),
        (
            "/sessions/S-1/events/overrides",
            json!([{"eventType": "FC", "elapsedSeconds": 480.0, "reason": "heard it"}]),
        ),
        (
            "/analysis/session/S-1",
            json!({
                "sessionId": "S-1", "totalDurationSeconds": 600.0, "tpSeconds": 60.0,
                "tpBtC": 90.0, "fcSeconds": 480.0, "fcBtC": 196.04, "dropSeconds": 600.0,
                "dropBtC": 210.0, "developmentRatio": 0.18,
                "meta": {"beanName": "Huila | washed"},
                "overrideDeltasSeconds": {"FC": 12.0},
                "phaseStats": [{"phase": "DRYING", "durationSeconds": 240.0, "share": 0.4,
                                "btDeltaC": 60.0, "avgRorCPerMin": 15.0,
                                "rorSmoothnessScore": 0.9}],
                "warnings": [{"severity": "INFO", "message": "Gas was not recorded"}],
                "recommendations": [],
                "controls": vec![json!({"gasPct": 50}); 1_001],
            }),
        ),
    ])
}

/// The report of `roast()`.
const MARKDOWN: &str = r"
## Summary

| | |
|---|---|
| Machine | leipzig / r-1 |
| Beans | Huila \| washed |
| Start | 2025-10-05T21:08:15.000Z |
| End | 2025-10-05T21:18:15.000Z |
| Duration | 10:00 |
| Turning point | 1:00, 90.0 °C |
| First crack | 8:00, 196.0 °C |
| Drop | 10:00, 210.0 °C |
| Development | 18.0 % |
| Data | complete |

## Phases

| Phase | Duration | Share | ΔBT °C | Mean RoR °C/min | Smoothness |
|---|---:|---:|---:|---:|---:|
| DRYING | 4:00 | 40 % | 60.0 | 15.0 | 0.90 |

## Warnings

- **INFO** Gas was not recorded

## Recommendations

None.

## QC Notes

**Table \<1\>**

Cupping score 84.5

Defects: TIPPED

## Overrides

| Event | At | Moved by | Reason |
|---|---:|---:|---|
| FC | 8:00 | +12 s | heard it |

## Next Roast Plan (v1)

- Development was 18.0 %: drop later, or reach first crack sooner.

";

/// The other services: they have one mission, and answer reads with `answers`.
async fn peers(answers: BTreeMap<&'static str, Value>) -> FakeService {
    let claimed = AtomicBool::new(false);
    let answer = move |request: &ReceivedRequest| -> Response {
        let path = request.path.as_str();
        match (request.method.as_str(), path) {
            ("POST", "/missions/claim") if claimed.swap(true, Ordering::SeqCst) => {
                StatusCode::NO_CONTENT.into_response()
            }
            ("POST", "/missions/claim") => Json(mission()).into_response(),
            ("POST", "/policy/check") => Json(json!({"decision": "ALLOW"})).into_response(),
            ("POST", "/sessions/S-1/reports") => {
                (StatusCode::CREATED, Json(json!({"reportId": "R-1"}))).into_response()
            }
            ("POST", _) => Json(json!({})).into_response(),
            (_, path) => match answers.get(path) {
                Some(body) => Json(body.clone()).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            },
        }
    };
    FakeService::start(answer).await.unwrap()
}

fn start(peers: &FakeService, context: &Context) -> Service {
    let url = peers.url();
    let config = ReportsConfig {
        kernel_url: url.clone(),
        ingestion_url: url.clone(),
        analytics_url: url,
        workers: 1,
        poll_ms: 3_600_000,
        ..ReportsConfig::default()
    };
    reports::start(&config, context).unwrap()
}

/// Lets the worker do its mission until it reports to `outcome`. Returns that body and all
/// requests.
async fn work(
    answers: BTreeMap<&'static str, Value>,
    outcome: &str,
) -> (Value, Vec<ReceivedRequest>) {
    let (peers, context) = (peers(answers).await, context());
    let _service = start(&peers, &context);
    let reported = peers.wait_for_request("POST", outcome).await.unwrap().json();
    context.stop.cancel();
    context.tasks.wait().await;
    (reported, peers.requests())
}

fn sent<'r>(requests: &'r [ReceivedRequest], method: &str, path: &str) -> Vec<&'r ReceivedRequest> {
    requests.iter().filter(|request| request.is(method, path)).collect()
}

#[tokio::test]
async fn a_roast_gets_a_report_of_everything_that_is_stored_about_it() {
    let (complete, requests) = work(roast(), COMPLETE).await;
    let summary = json!({"reportId": "R-1", "sessionId": "S-1"});
    assert_eq!(complete, json!({"leaseId": "l-1", "summary": summary}));
    let written = sent(&requests, "POST", "/sessions/S-1/reports");
    assert_eq!((written.len(), written[0].query.as_str()), (1, "orgId=acme"));
    let report = written[0].json();
    let version = env!("CARGO_PKG_VERSION");
    let head = format!(
        "# Roast S-1\n\nWritten by the report worker {version} from 600 points, 450 of them \
         signed by the gateway.\n"
    );
    assert_eq!(report["markdown"].as_str().unwrap(), format!("{head}{MARKDOWN}"));
    assert_eq!(report["traceId"], "T-m-1-1-l-1");
    assert_eq!(
        (&report["reportKind"], &report["createdBy"]),
        (&json!("POST_ROAST_V1"), &json!("AGENT"))
    );
    assert_eq!(report["meta"]["beanName"], "Huila | washed");
    let next = report["nextActions"].as_array().unwrap();
    assert_eq!((next.len(), &next[0]["code"]), (1, &json!("EXTEND_DEVELOPMENT")));
    // The metadata has its own field, and the control changes have a bound.
    assert_eq!(report["analysis"]["meta"], Value::Null);
    assert_eq!(report["analysis"]["controls"].as_array().unwrap().len(), 1_000);
}

#[tokio::test]
async fn a_roast_that_has_a_report_gets_no_second_one() {
    let report = json!({
        "sessionId": "S-1", "orgId": "acme", "siteId": "leipzig", "machineId": "r-1",
        "createdAt": NOW, "reportId": "R-0", "analysis": {}, "markdown": "# Roast S-1\n",
    });
    let mut answers = roast();
    answers.insert(LATEST, report);
    let (complete, requests) = work(answers, COMPLETE).await;
    assert_eq!(complete["summary"], json!({"reportId": "R-0", "sessionId": "S-1"}));
    assert_eq!(sent(&requests, "POST", "/sessions/S-1/reports"), Vec::<&ReceivedRequest>::new());
}

#[tokio::test]
async fn a_roast_that_does_not_exist_fails_for_good() {
    for (missing, error) in [
        ("/sessions/S-1", "ingestion has no such roast"),
        ("/analysis/session/S-1", "analytics has no such roast"),
    ] {
        let mut answers = roast();
        answers.remove(missing);
        let (fail, _) = work(answers, FAIL).await;
        assert_eq!(fail, json!({"leaseId": "l-1", "error": error, "retryable": false}));
    }
}

/// Reads as a viewer of acme.
async fn read(routes: &Router, uri: &str) -> Response {
    let mut request = Request::get(uri).body(Body::empty()).unwrap();
    request.extensions_mut().insert(caller("acme", Role::Viewer));
    routes.clone().oneshot(request).await.unwrap()
}

/// Returns a report of the roast `S-1` as ingestion stores it.
fn stored_report(markdown: &str) -> Value {
    json!({
        "sessionId": "S-1", "orgId": "acme", "siteId": "leipzig", "machineId": "r-1",
        "createdAt": NOW, "reportId": "R-1", "analysis": {"dropSeconds": 2.0},
        "markdown": markdown,
    })
}

#[tokio::test]
async fn a_report_is_a_page_with_its_curve_and_no_foreign_markup() {
    let markdown = [
        "# Roast S-1",
        "",
        r"**WARN** \<script\>",
        "",
        "- one",
        "- two",
        "",
        "| a | b |",
        "|---|---|",
        r"| x\|y | z |",
    ];
    let report = stored_report(&markdown.join("\n"));
    let points: Vec<Value> = (0..3)
        .map(|s| json!({"ts": NOW, "machineId": "r-1", "elapsedSeconds": s, "btC": 100 + s}))
        .collect();
    let answers =
        BTreeMap::from([(LATEST, report), ("/sessions/S-1/telemetry", Value::from(points))]);
    let (peers, context) = (peers(answers).await, context());
    let routes = start(&peers, &context).routes;

    let page = read(&routes, "/reports/session/S-1").await;
    assert_eq!(page.status(), StatusCode::OK);
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    assert_eq!(page.headers()[header::CONTENT_SECURITY_POLICY], policy);
    let body = to_bytes(page.into_body(), usize::MAX).await.unwrap();
    let html = String::from_utf8(body.to_vec()).unwrap().replace('\n', "");
    for part in [
        "<h1>Roast S-1</h1><figure><svg ",
        "<p><strong>WARN</strong> &lt;script&gt;</p>",
        "<ul><li>one</li><li>two</li></ul>",
        "<thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>x|y</td><td>z</td></tr></tbody>",
        "<p class=\"quiet\">2025-10-09T08:53:20.000Z</p></body></html>",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    let missing = read(&routes, "/reports/session/S-2").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    context.stop.cancel();
}

#[tokio::test]
async fn the_page_of_a_report_limits_what_a_browser_does_with_it() {
    let peers = peers(BTreeMap::from([(LATEST, stored_report("# Roast S-1"))])).await;
    let context = context();
    let router = service_router(&start(&peers, &context), Metrics::separate().unwrap());
    let request = Request::get("/reports/session/S-1").header(header::HOST, "localhost");
    let page = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let shown = |name: &str| page.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(shown("x-content-type-options"), "nosniff");
    assert_eq!(shown("x-frame-options"), "DENY");
    assert_eq!(shown("referrer-policy"), "same-origin");
    // The style is in the page; nothing is loaded, and no script runs.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    assert_eq!(shown("content-security-policy"), policy);
    let body = to_bytes(page.into_body(), usize::MAX).await.unwrap();
    assert!(String::from_utf8_lossy(&body).contains("<h1>Roast S-1</h1>"));
    context.stop.cancel();
}
