//! `Idempotency-Key`, with its rows in a real database.

use axum::Router;
use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use database::idempotency::Idempotency;
use database::{Database, DatabaseConfig};
use serde_json::{Value, json};

use crate::{Answer, App, clock, request, send};

async fn keys(folder: &tempfile::TempDir) -> Idempotency {
    let url = format!("sqlite:{}", folder.path().join("keys.db").display());
    let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
    let database = Database::open(&config).await.unwrap();
    database.migrate_up().await.unwrap();
    Idempotency::new(database, clock())
}

async fn app(folder: &tempfile::TempDir) -> App {
    App { idempotency: Some(keys(folder).await), ..App::default() }
}

async fn order(router: &Router, token: &str, key: &str, order: &Value) -> Answer {
    let mut asked = request(Method::POST, "/orders", token);
    asked.headers_mut().insert("idempotency-key", key.parse().unwrap());
    asked.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    *asked.body_mut() = Body::from(order.to_string());
    send(router, asked).await
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_response_and_does_nothing_again() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(&folder).await;
    let router = app.router();
    let coffee = json!({"kg": 12});
    let first = order(&router, "ada", "k-1", &coffee).await;
    assert_eq!((first.status, &first.body["number"]), (StatusCode::CREATED, &json!(1)));
    assert_eq!(first.header("idempotency-replayed"), None);
    let second = order(&router, "ada", "k-1", &coffee).await;
    assert_eq!((second.status, &second.body), (StatusCode::CREATED, &first.body));
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(second.header("content-type"), Some("application/json"));
    assert_eq!(app.orders.count(), 1);
    // Another key, or the same key of another caller, is another order.
    assert_eq!(order(&router, "ada", "k-2", &coffee).await.body["number"], 2);
    assert_eq!(order(&router, "bob", "k-1", &coffee).await.body["number"], 3);
}

#[tokio::test]
async fn a_key_with_another_body_is_refused_with_422() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(&folder).await;
    let router = app.router();
    order(&router, "ada", "k-1", &json!({"kg": 12})).await;
    let other = order(&router, "ada", "k-1", &json!({"kg": 13})).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(other.body, json!({"error": "this key was used for another request"}));
    assert!(other.header("x-request-id").is_some());
    assert_eq!(app.orders.count(), 1);
}

#[tokio::test]
async fn a_key_is_looked_at_after_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(&folder).await;
    let router = app.router();
    order(&router, "ada", "k-1", &json!({})).await;
    let stranger = order(&router, "unknown", "k-1", &json!({})).await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
    let long = order(&router, "ada", &"k".repeat(201), &json!({})).await;
    assert_eq!(long.status, StatusCode::BAD_REQUEST);
    assert_eq!(app.orders.count(), 1);
}

#[tokio::test]
async fn the_stored_responses_of_an_organisation_have_a_quota() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys(&folder).await.with_org_bytes_max(10_000);
    let app = App { idempotency: Some(keys.clone()), ..App::default() };
    let router = app.router();
    let large = json!({"note": "x".repeat(4_000)});
    let mut replayed = 0;
    for n in 0..10 {
        let key = format!("k-{n}");
        assert_eq!(order(&router, "ada", &key, &large).await.status, StatusCode::CREATED);
        let again = order(&router, "ada", &key, &large).await;
        match again.status {
            StatusCode::CREATED => replayed += 1,
            status => assert_eq!(status, StatusCode::CONFLICT, "it is not carried out again"),
        }
    }
    assert_eq!((replayed, app.orders.count()), (2, 10));
    // Other organisations have their own quota.
    assert!(keys.has_room("rival", 9_000).await.unwrap());
    assert!(!keys.has_room("acme", 9_000).await.unwrap());
}

#[tokio::test]
async fn callers_of_all_organisations_do_not_share_a_quota() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys(&folder).await.with_org_bytes_max(10_000);
    let app = App { idempotency: Some(keys.clone()), ..App::default() };
    let router = app.router();
    let large = json!({"note": "x".repeat(4_000)});
    for n in 0..5 {
        order(&router, "service", &format!("k-{n}"), &large).await;
    }
    assert!(!keys.has_room("*service", 9_000).await.unwrap());
    order(&router, "other-service", "k-1", &large).await;
    let again = order(&router, "other-service", "k-1", &large).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!((again.status, &again.body["number"]), (StatusCode::CREATED, &json!(6)));
}

#[tokio::test]
async fn a_caller_that_may_only_read_stores_no_response() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(&folder).await;
    let router = app.router();
    for _ in 0..2 {
        let answer = order(&router, "eve", "k-1", &json!({})).await;
        assert_eq!(answer.header("idempotency-replayed"), None);
    }
    assert_eq!(app.orders.count(), 2, "these routes do not look at roles");
}
