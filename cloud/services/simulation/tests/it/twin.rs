//! The twin: whole roasts, the same for the same seed, and what it refuses.

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use http_stack::auth::Role;
use serde_json::{Value, json};
use service::mqtt::BrokerSettings;
use service_testbed::{NOW, caller};
use simulation::SimulationConfig;
use tower::ServiceExt as _;

use crate::{context, send};

fn routes() -> Router {
    let context = context(BrokerSettings::default());
    simulation::start_twin(&SimulationConfig::default(), &context).unwrap().routes
}

async fn simulate(request: &Value) -> (u16, Bytes) {
    let viewer = Some(caller("acme", Role::Viewer));
    send(&routes(), viewer, (Method::POST, "/simulate/roast"), request).await
}

async fn roast(request: &Value) -> Value {
    let (status, body) = simulate(request).await;
    assert_eq!(status, 200, "{request}");
    serde_json::from_slice(&body).unwrap()
}

fn temperatures(roast: &Value) -> Vec<f64> {
    let points = roast["telemetry"].as_array().unwrap();
    points.iter().map(|point| point["btC"].as_f64().unwrap()).collect()
}

#[tokio::test]
async fn the_same_seed_gives_the_same_roast_to_the_byte() {
    for engine in ["reference", "twin"] {
        let request = |seed: i64| json!({"engine": engine, "machineId": "r-1", "seed": seed});
        let (status, first) = simulate(&request(42)).await;
        assert_eq!(status, 200, "{engine}");
        assert_eq!(simulate(&request(42)).await, (200, first.clone()), "{engine}");
        let (first, other): (Value, _) =
            (serde_json::from_slice(&first).unwrap(), roast(&request(45)).await);
        assert_ne!(temperatures(&first), temperatures(&other), "{engine}");

        // A seeded roast begins at its seed, in seconds since 1970.
        let point = &first["telemetry"][0];
        assert_eq!(point["ts"], "1970-01-01T00:00:42.000Z", "{engine}");
        assert_eq!((&point["machineId"], &point["elapsedSeconds"]), (&json!("r-1"), &json!(0.0)));
        let events = first["events"].as_array().unwrap();
        let kinds = (&events[0]["type"], &events[events.len() - 1]["type"]);
        assert_eq!(kinds, (&json!("CHARGE"), &json!("DROP")), "{engine}");
    }
}

#[tokio::test]
async fn a_request_without_a_seed_takes_the_time_as_seed() {
    let unseeded = roast(&Value::Null).await;
    assert_eq!(unseeded["telemetry"][0]["ts"], json!(NOW));
    assert_eq!(unseeded["telemetry"][0]["machineId"], "SIM-MACHINE");
    let seeded = roast(&json!({"seed": NOW.0})).await;
    assert_eq!(temperatures(&unseeded), temperatures(&seeded));
    // Ten minutes, with a point every two seconds.
    assert_eq!(temperatures(&unseeded).len(), 301);
}

#[tokio::test]
async fn the_twin_simulates_the_machine_that_the_request_names() {
    let of = async |preset: &str, seed: i64| {
        let request = json!({"engine": "twin", "preset": preset, "seed": seed});
        temperatures(&roast(&request).await)
    };
    // The seed selects a machine only if the request names none: 42 selects the first of three.
    let by_seed = temperatures(&roast(&json!({"engine": "twin", "seed": 42})).await);
    assert_eq!(by_seed, of("drum-15kg", 42).await);
    assert_ne!(by_seed, of("air-5kg", 42).await);
}

#[tokio::test]
async fn a_request_out_of_bounds_is_refused_with_the_name_of_its_field() {
    let presets = "not one of drum-15kg, sample-250g, air-5kg";
    for (request, field, message) in [
        (json!({"batchSizeKg": 0}), "batchSizeKg", "not above 0"),
        (json!({"maxTempC": -1}), "maxTempC", "not above 0"),
        (json!({"targetFirstCrackSeconds": 0}), "targetFirstCrackSeconds", "not above 0"),
        (json!({"targetFirstCrackSeconds": 86_401}), "targetFirstCrackSeconds", "more than 86400"),
        (json!({"targetDropSeconds": 86_401}), "targetDropSeconds", "more than 86400"),
        (json!({"sampleIntervalSeconds": 60.5}), "sampleIntervalSeconds", "more than 60"),
        (
            json!({"sampleIntervalSeconds": 0.001}),
            "sampleIntervalSeconds",
            "more than 100000 points",
        ),
        // The twin's roasts have no target time, and may last an hour.
        (
            json!({"engine": "twin", "sampleIntervalSeconds": 0.03}),
            "sampleIntervalSeconds",
            "more than 100000 points",
        ),
        (json!({"noiseStdDev": -0.1}), "noiseStdDev", "below 0"),
        (json!({"chargeTempC": -50.1}), "chargeTempC", "not between -50 and 500"),
        (json!({"ambientTempC": 500.1}), "ambientTempC", "not between -50 and 500"),
        (json!({"machineId": "a/b"}), "machineId", "not a name of letters, digits and . _ -"),
        (json!({"engine": "twin", "preset": "rocket"}), "preset", presets),
    ] {
        let (status, body) = simulate(&request).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let issue = json!({"code": "invalid", "path": [field], "message": message});
        let expected = json!({"message": "Invalid simulation request", "issues": [issue]});
        assert_eq!((status, body), (400, expected), "{request}");
    }
}

#[tokio::test]
async fn all_problems_and_a_wrong_type_are_reported() {
    let (status, body) = simulate(&json!({"batchSizeKg": 0, "noiseStdDev": -1})).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    let paths: Vec<_> = body["issues"].as_array().unwrap().iter().map(|i| &i["path"][0]).collect();
    assert_eq!((status, paths), (400, vec![&json!("batchSizeKg"), &json!("noiseStdDev")]));
    let (status, body) = simulate(&json!({"seed": "forty-two"})).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["issues"][0]["path"]), (400, &json!(["seed"])));
}

#[tokio::test]
async fn a_request_without_a_caller_is_401() {
    let (status, _) = send(&routes(), None, (Method::POST, "/simulate/roast"), &Value::Null).await;
    assert_eq!(status, 401);
}

/// Asks for a roast of an answer of several parts, and returns the response with its body unread.
async fn unread(routes: &Router, org: &str) -> Response {
    let body = Body::from(json!({"sampleIntervalSeconds": 0.1}).to_string());
    let request = Request::post("/simulate/roast").header("content-type", "application/json");
    let mut request = request.body(body).unwrap();
    request.extensions_mut().insert(caller(org, Role::Viewer));
    routes.clone().oneshot(request).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_answer_keeps_its_place_until_it_is_sent_and_an_organisation_has_half_of_the_places() {
    let routes = routes();
    let first = unread(&routes, "acme").await;
    assert_eq!(first.status(), 200);
    assert_eq!(unread(&routes, "acme").await.status(), 503, "acme has its place");
    let rival = unread(&routes, "rival").await;
    assert_eq!(rival.status(), 200);
    assert_eq!(unread(&routes, "third").await.status(), 503, "both places are taken");
    // A dropped answer gives its place back, and so does one that was sent.
    drop(first);
    let length: usize = rival.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let sent = to_bytes(rival.into_body(), usize::MAX).await.unwrap();
    assert!(sent.len() == length && length > 200_000, "{length}");
    let again = [unread(&routes, "acme").await, unread(&routes, "rival").await];
    assert_eq!(again.each_ref().map(|response| response.status().as_u16()), [200, 200]);
    // Clients that read too slowly keep only their own organisations waiting.
    tokio::time::sleep(std::time::Duration::from_secs(31)).await;
    assert_eq!(unread(&routes, "third").await.status(), 200);
    assert_eq!(unread(&routes, "acme").await.status(), 503);
}
