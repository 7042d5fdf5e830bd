//! The HTTP routes, without their layers and without a broker.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use http_stack::auth::Role;
use http_stack::start::Context;
use inference::InferenceConfig;
use serde_json::{Value, json};
use service_testbed::{caller, open_sqlite};
use tower::ServiceExt as _;

const OF_R1: &str = "/config?orgId=acme&siteId=leipzig&machineId=r-1";

/// Starts the service on an SQLite file of its own, which is removed with the folder.
async fn start() -> (tempfile::TempDir, Router) {
    let (folder, database) = open_sqlite().await;
    let context = Context { database: Some(database), ..service_testbed::context() };
    (folder, inference::start(&InferenceConfig::default(), &context).unwrap().routes)
}

/// Sends a request of a person of acme with a role.
async fn send(
    routes: &Router,
    role: Role,
    (method, uri): (Method, &str),
    body: &Value,
) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, "application/json")
        .extension(caller("acme", role))
        .body(Body::from(body.to_string()));
    let response = routes.clone().oneshot(request.unwrap()).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn set(config: &Value) -> Value {
    json!({"orgId": "acme", "siteId": "leipzig", "machineId": "r-1", "config": config})
}

#[tokio::test]
async fn settings_are_set_one_by_one_and_deleted_together() {
    let (_folder, routes) = start().await;
    let none = json!({});
    let (_, before) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &none).await;
    assert_eq!((&before["isDefault"], &before["machineId"]), (&json!(true), &json!("r-1")));
    assert_eq!(before["config"]["fcBtThresholdC"], 196.0);
    for config in [json!({"fcBtThresholdC": 190.0}), json!({"sessionGapSeconds": 60.0})] {
        let (status, _) =
            send(&routes, Role::Operator, (Method::POST, "/config"), &set(&config)).await;
        assert_eq!(status, StatusCode::OK);
    }
    let (_, own) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &none).await;
    assert_eq!(own["isDefault"], false);
    assert_eq!(own["config"]["fcBtThresholdC"], 190.0);
    assert_eq!(own["config"]["sessionGapSeconds"], 60.0);
    assert_eq!(own["config"]["minFirstCrackSeconds"], 300.0, "a default");

    let (status, deleted) = send(&routes, Role::Operator, (Method::DELETE, OF_R1), &none).await;
    assert_eq!((status, &deleted["deleted"]), (StatusCode::OK, &json!(true)));
    let (status, _) = send(&routes, Role::Operator, (Method::DELETE, OF_R1), &none).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (_, after) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &none).await;
    assert_eq!(after, before);
}

#[tokio::test]
async fn wrong_settings_and_foreign_machines_are_refused() {
    let (_folder, routes) = start().await;
    let post = (Method::POST, "/config");
    let hot = set(&json!({"fcBtThresholdC": 301.0}));
    let (status, body) = send(&routes, Role::Operator, post.clone(), &hot).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["issues"][0]["path"], json!(["config", "fcBtThresholdC"]));
    assert_eq!(body["issues"][0]["message"], "not 100 to 300");
    let good = set(&json!({"fcBtThresholdC": 190.0}));
    let (status, _) = send(&routes, Role::Viewer, post.clone(), &good).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let mut foreign = good;
    foreign["orgId"] = json!("rival");
    let (status, _) = send(&routes, Role::Admin, post, &foreign).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (_, own) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &json!({})).await;
    assert_eq!(own["isDefault"], true);
}
