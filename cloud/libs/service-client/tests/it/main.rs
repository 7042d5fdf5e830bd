//! The client against a real HTTP server on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use contract::OrgId;
use serde_json::{Value, json};
use service::secret::Secret;
use service_client::{ServiceClient, ServiceClientError};
use testbed::{FakeService, free_port};

fn org() -> OrgId {
    OrgId::new("acme").unwrap()
}

fn client_with(url: &str, token: &str) -> ServiceClient {
    ServiceClient::new("kernel", url, &Secret::from(token.to_owned())).unwrap()
}

fn client(url: &str) -> ServiceClient {
    client_with(url, "own-token")
}

/// Reads one mission from a service that answers with `answer`.
async fn read<R: IntoResponse + 'static>(
    answer: impl Fn() -> R + Send + Sync + 'static,
) -> Result<Option<Value>, ServiceClientError> {
    let service = FakeService::start(move |_| answer()).await.unwrap();
    client(&service.url()).get(&org(), &["missions", "m-1"], &[]).await
}

#[tokio::test]
async fn a_request_has_the_credential_the_organisation_and_escaped_segments() {
    let service = FakeService::start(|_| Json(json!({"ok": true}))).await.unwrap();
    let path = ["sessions", "a/../b?c"];
    let body: Option<Value> =
        client(&service.url()).get(&org(), &path, &[("limit", "5")]).await.unwrap();
    assert_eq!(body, Some(json!({"ok": true})));
    let requests = service.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].method, "GET");
    assert_eq!(requests[0].path, "/sessions/a%2F..%2Fb%3Fc");
    assert_eq!(requests[0].query, "orgId=acme&limit=5");
    assert_eq!(requests[0].authorization.as_deref(), Some("Bearer own-token"));
}

#[tokio::test]
async fn a_secret_file_is_read_for_each_request() {
    let service = FakeService::start(|_| Json(json!({}))).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let client = client_with(&service.url(), &format!("file:{}", file.display()));
    for token in ["first", "second\n"] {
        std::fs::write(&file, token).unwrap();
        client.whoami::<Value>().await.unwrap();
    }
    let sent: Vec<_> = service.requests().into_iter().map(|r| r.authorization).collect();
    assert_eq!(sent, [Some("Bearer first".to_owned()), Some("Bearer second".to_owned())]);
    std::fs::remove_file(&file).unwrap();
    let error = client.whoami::<Value>().await.unwrap_err();
    assert!(matches!(error, ServiceClientError::Credential(_)), "{error}");
    assert_eq!(service.requests().len(), 2, "without its credential it asks nothing");
}

#[tokio::test]
async fn without_a_token_there_is_no_credential() {
    let service = FakeService::start(|_| Json(json!({}))).await.unwrap();
    client_with(&service.url(), "").whoami::<Value>().await.unwrap();
    assert_eq!(service.requests()[0].authorization, None);
}

#[tokio::test]
async fn a_forwarded_token_is_never_read_as_a_reference() {
    let service = FakeService::start(|_| Json(json!({"id": "ada"}))).await.unwrap();
    let client = client(&service.url());
    let caller: Option<Value> =
        client.get_with_token("file:/etc/hostname", &["whoami"]).await.unwrap();
    assert_eq!(caller, Some(json!({"id": "ada"})));
    let request = &service.requests()[0];
    assert_eq!(request.authorization.as_deref(), Some("Bearer file:/etc/hostname"));
}

#[tokio::test]
async fn a_post_returns_the_status_the_version_and_the_body() {
    let answer = || (StatusCode::CREATED, [(header::ETAG, "\"7\"")], Json(json!({"id": "m-1"})));
    let service = FakeService::start(move |_| answer()).await.unwrap();
    let mission = json!({"goal": "tidy"});
    let made = client(&service.url())
        .post::<_, Value>(Some(&org()), &["missions"], &mission)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((made.status, made.etag.as_deref()), (201, Some("\"7\"")));
    assert_eq!(made.body, json!({"id": "m-1"}));
    let request = &service.requests()[0];
    assert!(request.is("POST", "/missions"));
    assert_eq!(request.content_type.as_deref(), Some("application/json"));
    assert_eq!(request.json(), mission);
}

#[tokio::test]
async fn bytes_are_sent_with_their_own_type() {
    let service = FakeService::start(|_| Json(json!({}))).await.unwrap();
    let body = ("application/cbor", vec![0x81, 0x01]);
    client(&service.url()).post_bytes::<Value>(&org(), &["v1", "frames"], body).await.unwrap();
    let request = &service.requests()[0];
    assert_eq!(request.content_type.as_deref(), Some("application/cbor"));
    assert_eq!(&request.body[..], b"\x81\x01");
}

#[tokio::test]
async fn no_content_is_none() {
    let service = FakeService::start(|_| StatusCode::NO_CONTENT).await.unwrap();
    let client = client(&service.url());
    let claimed = client.post::<_, Value>(None, &["missions", "claim"], &json!({})).await.unwrap();
    assert!(claimed.is_none());
    let error = client.get::<Value>(&org(), &["missions", "m-1"], &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "kernel sent an unreadable response: an empty body");
}

#[tokio::test]
async fn not_found_is_none() {
    let answer = || (StatusCode::NOT_FOUND, Json(json!({"error": "mission not found"})));
    assert_eq!(read(answer).await.unwrap(), None);
}

#[tokio::test]
async fn a_refusal_keeps_its_status_and_its_reason_and_is_final() {
    for status in [400, 401, 403, 409, 422] {
        let code = StatusCode::from_u16(status).unwrap();
        let error = read(move || (code, Json(json!({"error": "too low"})))).await.unwrap_err();
        let rejected = matches!(
            &error,
            ServiceClientError::Rejected { peer: "kernel", problem, .. } if problem == "too low"
        );
        assert!(rejected, "{error}");
        assert_eq!((error.status(), error.is_transient()), (Some(status), false));
    }
    let error = read(|| (StatusCode::BAD_REQUEST, "<html>")).await.unwrap_err();
    assert_eq!(error.to_string(), "kernel rejects the request: 400: no reason given");
}

#[tokio::test]
async fn a_busy_or_broken_service_is_asked_again_later() {
    for status in [429, 500, 502, 503, 504] {
        let code = StatusCode::from_u16(status).unwrap();
        let error = read(move || (code, Json(json!({"error": "slow down"})))).await.unwrap_err();
        assert!(matches!(error, ServiceClientError::Busy { .. }), "{error}");
        assert_eq!(error.to_string(), format!("kernel is busy: {status}: slow down"));
        assert_eq!((error.status(), error.is_transient()), (Some(status), true));
    }
}

#[tokio::test]
async fn a_service_that_does_not_listen_is_unreachable() {
    let client = client(&format!("http://127.0.0.1:{}", free_port().unwrap()));
    let error = client.get::<Value>(&org(), &["missions"], &[]).await.unwrap_err();
    assert!(matches!(error, ServiceClientError::Unreachable { peer: "kernel", .. }), "{error}");
    assert_eq!((error.status(), error.is_transient()), (None, true));
    let error = client.ping().await.unwrap_err();
    assert!(matches!(error, ServiceClientError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_body_of_another_form_is_an_invalid_response() {
    let error = read(|| "not JSON").await.unwrap_err();
    assert!(matches!(error, ServiceClientError::InvalidResponse { .. }), "{error}");
    assert_eq!((error.status(), error.is_transient()), (None, false));
    let service = FakeService::start(|_| Json(json!({"count": "many"}))).await.unwrap();
    let count = client(&service.url()).get::<u32>(&org(), &["missions", "count"], &[]).await;
    let error = count.unwrap_err();
    assert!(matches!(error, ServiceClientError::InvalidResponse { .. }), "{error}");
}

#[tokio::test]
async fn a_body_above_the_bound_is_refused_before_it_is_read() {
    let endless = || -> Response {
        let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
        let length = 64 * 1024 * 1024 + 1;
        ([(header::CONTENT_LENGTH, length.to_string())], body).into_response()
    };
    let error = read(endless).await.unwrap_err();
    assert_eq!(error.to_string(), "kernel sent an unreadable response: it is too large");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let service = FakeService::start(|request| match request.path.as_str() {
        "/whoami" => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/elsewhere")]).into_response()
        }
        _ => Json(json!({"id": "another caller"})).into_response(),
    })
    .await
    .unwrap();
    let error = client(&service.url()).whoami::<Value>().await.unwrap_err();
    assert!(matches!(error, ServiceClientError::Rejected { status: 307, .. }), "{error}");
    assert_eq!(service.requests().len(), 1);
}
