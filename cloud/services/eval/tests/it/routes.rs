//! The routes: versions of cases, evaluation, promotion, coverage and saturation.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use contract::{Actor, ActorKind};
use eval::run::Outcome;
use eval::{EvalConfig, EvalStore};
use http_stack::auth::{Caller, Role};
use serde_json::{Value, json};
use service_testbed::NOW;
use tempfile::TempDir;
use testbed::{FakeService, ReceivedRequest, free_port};
use tower::ServiceExt as _;

use crate::{by, context, golden_case, open_sqlite, org, run};

const DAY_MS: i64 = 86_400_000;

/// The service on an SQLite file of its own, without workers.
struct Eval {
    routes: Router,
    store: EvalStore,
    _folder: TempDir,
}

impl Eval {
    /// Starts it with other services at this URL.
    async fn start(others: String) -> Self {
        let (folder, store) = open_sqlite().await;
        let config = EvalConfig {
            ingestion_url: others.clone(),
            analytics_url: others,
            workers: 0,
            ..EvalConfig::default()
        };
        let routes = eval::start(&config, &context(&store)).unwrap().routes;
        Self { routes, store, _folder: folder }
    }

    /// Starts it without other services.
    async fn alone() -> Self {
        Self::start(format!("http://127.0.0.1:{}", free_port().unwrap())).await
    }

    /// Sends a request as `caller`. A null body is no body.
    async fn send(&self, caller: &Caller, request: NewRequest<'_>) -> Answer {
        let NewRequest { method, uri, if_match, body } = request;
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let json = (header::CONTENT_TYPE, "application/json");
        let mut request = Request::builder().method(method).uri(uri).header(json.0, json.1);
        if let Some(tag) = if_match {
            request = request.header(header::IF_MATCH, tag);
        }
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(caller.clone());
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let tag = response.headers().get(header::ETAG).map(|tag| tag.to_str().unwrap().to_owned());
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answer { status: status.as_u16(), tag, body: serde_json::from_slice(&body).unwrap() }
    }

    async fn get(&self, caller: &Caller, uri: &str) -> Answer {
        self.send(caller, NewRequest::new(Method::GET, uri, Value::Null)).await
    }

    async fn post(&self, caller: &Caller, uri: &str, body: Value) -> Answer {
        self.send(caller, NewRequest::new(Method::POST, uri, body)).await
    }
}

struct NewRequest<'r> {
    method: Method,
    uri: &'r str,
    if_match: Option<&'r str>,
    body: Value,
}

impl<'r> NewRequest<'r> {
    fn new(method: Method, uri: &'r str, body: Value) -> Self {
        Self { method, uri, if_match: None, body }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    tag: Option<String>,
    body: Value,
}

fn caller(kind: ActorKind, org_id: &str, role: Role) -> Caller {
    let org = Some(org(org_id));
    let actor = Actor { kind, id: "ada".to_owned(), display: None, org: org.clone() };
    Caller { actor, org, role }
}

/// An approver of acme.
fn ada() -> Caller {
    caller(ActorKind::User, "acme", Role::Approver)
}

fn new_case() -> Value {
    json!({
        "name": "Huila", "machineId": "r-1", "targetFirstCrackSeconds": 480.0,
        "targetDropSeconds": 600.0, "targetDevelopmentPercentage": 20.0,
        "fcSecondsErrorTolerance": 30.0, "dropSecondsErrorTolerance": 30.0,
        "devPercentageErrorTolerance": 2.0,
    })
}

#[tokio::test]
async fn a_case_is_changed_only_at_the_version_that_if_match_names() {
    let (eval, ada) = (Eval::alone().await, ada());
    let created = eval.post(&ada, "/golden-cases", new_case()).await;
    assert_eq!((created.status, created.tag.as_deref()), (201, Some("\"1\"")));
    let id = created.body["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("golden-"), "{id}");
    let uri = format!("/golden-cases/{id}");
    let put = |tag: &'static str, drop_s: f64| {
        let mut body = new_case();
        body["targetDropSeconds"] = json!(drop_s);
        let request = NewRequest::new(Method::PUT, &uri, body);
        eval.send(&ada, NewRequest { if_match: Some(tag), ..request })
    };
    let changed = put("\"1\"", 610.0).await;
    assert_eq!((changed.status, changed.tag.as_deref()), (200, Some("\"2\"")));
    let late = put("\"1\"", 620.0).await;
    let error = json!({"error": "the case has changed; read it again"});
    assert_eq!((late.status, late.tag, late.body), (412, None, error));
    let archived = eval.post(&ada, &format!("{uri}/archive"), Value::Null).await;
    assert_eq!((archived.status, archived.tag.as_deref()), (200, Some("\"3\"")));
    let read = eval.get(&ada, &uri).await;
    assert_eq!(read.body, archived.body);
    assert_eq!(read.tag.as_deref(), Some("\"3\""));
    let fields = (&read.body["targetDropSeconds"], &read.body["archived"]);
    assert_eq!(fields, (&json!(610.0), &json!(true)));
}

#[tokio::test]
async fn an_invalid_case_a_viewer_and_another_organisation_are_refused() {
    let (eval, ada) = (Eval::alone().await, ada());
    let mut wrong = new_case();
    wrong["trialsRequired"] = json!(0);
    let refused = eval.post(&ada, "/golden-cases", wrong).await;
    let issue = json!({"code": "invalid", "path": ["trialsRequired"],
                       "message": "not between 1 and 1000"});
    let error = json!({"error": "trialsRequired: not between 1 and 1000", "issues": [issue]});
    assert_eq!((refused.status, refused.body), (400, error));
    let viewer = caller(ActorKind::User, "acme", Role::Viewer);
    let refused = eval.post(&viewer, "/golden-cases", new_case()).await;
    let error = json!({"error": "needs the role operator; you are viewer"});
    assert_eq!((refused.status, refused.body), (403, error));

    let created = eval.post(&ada, "/golden-cases", new_case()).await;
    let uri = format!("/golden-cases/{}", created.body["id"].as_str().unwrap());
    let rival = caller(ActorKind::User, "rival", Role::Admin);
    let hidden = eval.get(&rival, &uri).await;
    let error = json!({"error": "golden case not found"});
    assert_eq!((hidden.status, hidden.body), (404, error));
    let refused = eval.get(&rival, &format!("{uri}?orgId=acme")).await;
    assert_eq!(refused.status, 403, "{refused:?}");
}

/// Analytics and ingestion that know one roast, `S-1`.
async fn one_roast() -> FakeService {
    let answer = |request: &ReceivedRequest| -> Response {
        let found = match request.path.as_str() {
            "/analysis/session/S-1" => {
                json!({"fcSeconds": 490.0, "dropSeconds": 605.0, "developmentRatio": 0.19})
            }
            "/sessions/S-1/telemetry" => json!([]),
            _ => return StatusCode::NOT_FOUND.into_response(),
        };
        Json(found).into_response()
    };
    FakeService::start(answer).await.unwrap()
}

#[tokio::test]
async fn a_roast_is_evaluated_with_the_analysis_that_analytics_has() {
    let others = one_roast().await;
    let (eval, ada) = (Eval::start(others.url()).await, ada());
    let case = eval.post(&ada, "/golden-cases", new_case()).await.body["id"].clone();
    let evaluate = async |session: &str| {
        let body = json!({"sessionId": session, "goldenCaseId": case});
        eval.post(&ada, "/evaluations/run", body).await
    };
    let made = evaluate("S-1").await;
    assert_eq!((made.status, &made.body["outcome"]), (201, &json!("PASS")));
    let gates = json!(["fc_timing", "drop_timing", "development_ratio"]);
    assert_eq!(made.body["passedGates"], gates);
    let observed = json!({"fcSeconds": 490.0, "dropSeconds": 605.0, "developmentRatio": 0.19});
    assert_eq!(made.body["observed"], observed);
    let asked: Vec<String> = others.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked, ["/analysis/session/S-1", "/sessions/S-1/telemetry"]);
    assert_eq!(others.requests()[0].query, "orgId=acme");
    let uri = format!("/evaluations/{}", made.body["id"].as_str().unwrap());
    assert_eq!(eval.get(&ada, &uri).await.body, made.body);

    let missing = evaluate("S-9").await;
    assert_eq!((missing.status, missing.body), (404, json!({"error": "session not found"})));
}

#[tokio::test]
async fn an_absent_analytics_is_503_and_nothing_is_stored() {
    let (eval, ada) = (Eval::alone().await, ada());
    let case = eval.post(&ada, "/golden-cases", new_case()).await.body["id"].clone();
    let body = json!({"sessionId": "S-1", "goldenCaseId": case});
    let refused = eval.post(&ada, "/evaluations/run", body).await;
    let error = refused.body["error"].as_str().unwrap();
    assert_eq!(refused.status, 503);
    assert!(error.starts_with("analytics does not answer: "), "{error}");
    assert_eq!(eval.get(&ada, "/evaluations").await.body, json!([]));
}

#[tokio::test]
async fn a_roast_is_promoted_after_a_pass_without_a_failure_or_an_open_review() {
    let (eval, ada, acme) = (Eval::alone().await, ada(), org("acme"));
    let promotion = async |session: &str| {
        eval.get(&ada, &format!("/evaluations/promotion/{session}")).await.body
    };
    let refused = |reason: &str| json!({"allowed": false, "evaluated": true, "reason": reason});
    for (session, outcomes, reason) in [
        ("S-1", vec![Outcome::Pass, Outcome::Fail], "1 of its evaluations failed"),
        ("S-2", vec![Outcome::Warn], "none of its evaluations passed"),
        (
            "S-3",
            vec![Outcome::Pass, Outcome::NeedsReview],
            "1 of its evaluations wait for a person's review",
        ),
    ] {
        for (n, outcome) in outcomes.into_iter().enumerate() {
            let new = run(&format!("{session}-{n}"), session, outcome, NOW);
            assert!(eval.store.add_run(&acme, &new, None, false).await.unwrap());
        }
        assert_eq!(promotion(session).await, refused(reason), "{session}");
    }
    let unknown = json!({"allowed": false, "evaluated": false,
                         "reason": "the session was not evaluated"});
    assert_eq!(promotion("S-9").await, unknown);

    let uri = "/evaluations/S-3-1/review";
    let service = caller(ActorKind::System, "acme", Role::Admin);
    let denied = eval.post(&service, uri, json!({"outcome": "PASS"})).await;
    let error = json!({"error": "only a person may do this, not a service"});
    assert_eq!((denied.status, denied.body), (403, error));
    let reviewed = eval.post(&ada, uri, json!({"outcome": "PASS", "notes": "good cup"})).await;
    assert_eq!(reviewed.status, 200);
    let review = (&reviewed.body["humanOutcome"], &reviewed.body["outcome"]);
    assert_eq!(review, (&json!("PASS"), &json!("NEEDS_REVIEW")));
    assert_eq!(promotion("S-3").await, json!({"allowed": true, "evaluated": true}));
}

#[tokio::test]
async fn coverage_counts_the_roasts_of_the_last_days() {
    let (eval, ada, acme) = (Eval::alone().await, ada(), org("acme"));
    for (session, days) in [("S-1", 1), ("S-2", 7), ("S-3", 8)] {
        let new = run(session, session, Outcome::Pass, NOW.plus_ms(-days * DAY_MS));
        assert!(eval.store.add_run(&acme, &new, Some(session), false).await.unwrap());
    }
    let coverage = eval.get(&ada, "/evaluations/coverage?days=7").await;
    assert_eq!(coverage.body, json!({"days": 7, "sessionsEvaluated": 2}));
    let wrong = eval.get(&ada, "/evaluations/coverage?days=366").await;
    let error = json!({"error": "days: not a whole number between 1 and 365"});
    assert_eq!((wrong.status, wrong.body), (400, error));
}

#[tokio::test]
async fn a_case_that_always_passes_is_saturated() {
    let (eval, ada, acme) = (Eval::alone().await, ada(), org("acme"));
    for id in ["golden-1", "golden-2", "golden-3"] {
        let mut case = golden_case(id, "r-1", NOW);
        case.case.archived = id == "golden-3";
        eval.store.add_case(&acme, &case, by(NOW)).await.unwrap();
    }
    // One old failure, and nine passes in the last month.
    let failed = run("eval-0", "S-0", Outcome::Fail, NOW.plus_ms(-31 * DAY_MS));
    assert!(eval.store.add_run(&acme, &failed, None, false).await.unwrap());
    for n in 1..=9 {
        let new = run(&format!("eval-{n}"), "S-1", Outcome::Pass, NOW.plus_ms(-2 * DAY_MS));
        assert!(eval.store.add_run(&acme, &new, None, false).await.unwrap());
    }
    let one = eval.get(&ada, "/saturation/golden-cases/golden-1").await.body;
    let expected = json!({
        "goldenCaseId": "golden-1", "goldenCaseName": "Huila", "machineId": "r-1",
        "totalEvaluations": 10, "recentEvaluations": 9, "overallPassRate": 0.9,
        "recentPassRate": 1.0, "passRateTrend": "STABLE", "isSaturated": true,
        "saturationLevel": "SATURATED", "consistencyScore": 1.0,
        "firstEvaluatedAt": NOW.plus_ms(-31 * DAY_MS),
        "lastEvaluatedAt": NOW.plus_ms(-2 * DAY_MS), "daysSinceLastEval": 2,
        "recommendation": "RETIRE", "sourceType": "SYNTHETIC", "tags": [],
    });
    assert_eq!(one, expected);
    let all = eval.get(&ada, "/saturation/golden-cases").await.body;
    let levels: Vec<_> =
        all.as_array().unwrap().iter().map(|case| &case["saturationLevel"]).collect();
    assert_eq!(levels, ["LOW", "SATURATED"], "newest first, without the archived case");
    let summary = eval.get(&ada, "/saturation/summary").await.body;
    let expected = json!({
        "totalCases": 2, "saturatedCases": 1, "saturationRate": 0.5, "lowDifficulty": 1,
        "mediumDifficulty": 0, "highDifficulty": 0, "saturated": 1, "casesToRetire": 1,
        "casesToHarden": 0, "casesNeedingAttention": 1, "needsAction": true,
        "severity": "ALERT", "calculatedAt": NOW,
    });
    assert_eq!(summary, expected);
    let missing = eval.get(&ada, "/saturation/golden-cases/golden-9").await;
    assert_eq!(missing.status, 404);
}
