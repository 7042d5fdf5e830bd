//! What the console forwards to ingestion, and what it must not.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use testbed::{FakeService, ReceivedRequest};

use crate::{Console, busy_ingestion, read};

/// An ingestion that answers every request with an empty list.
async fn empty_ingestion() -> FakeService {
    FakeService::start(|_: &ReceivedRequest| {
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "public"),
            (header::SET_COOKIE, "session=secret"),
        ];
        (headers, "[]")
    })
    .await
    .unwrap()
}

/// A request as a browser sends it that is logged in elsewhere on the same host.
fn from_browser(uri: &str) -> Request {
    Request::get(uri)
        .header(header::AUTHORIZATION, "Bearer of-a-person")
        .header(header::COOKIE, "session=secret")
        .header("x-forwarded-for", "203.0.113.7")
        .header("last-event-id", "42")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn a_read_is_forwarded_without_credentials_and_its_answer_is_not_kept() {
    let ingestion = empty_ingestion().await;
    let console = Console::start(ingestion.url());
    for uri in ["/api/sessions/S-1/telemetry?limit=5&from=1.5", "/api/sessions/S-1/events?limit=5"]
    {
        let answer = read(console.send(from_browser(uri)).await).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "[]"));
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(answer.headers.get(header::SET_COOKIE), None);
    }
    let requests = ingestion.requests();
    let sent: Vec<_> = requests.iter().map(|r| (r.path.as_str(), r.query.as_str())).collect();
    // Events have no parameters.
    let expected = [("/sessions/S-1/telemetry", "limit=5&from=1.5"), ("/sessions/S-1/events", "")];
    assert_eq!(sent, expected);
    for request in &requests {
        assert_eq!((request.method.as_str(), &request.authorization), ("GET", &None));
        for name in ["cookie", "x-forwarded-for", "last-event-id"] {
            assert_eq!(request.headers.get(name), None, "{name}");
        }
    }
}

#[tokio::test]
async fn a_stream_continues_after_the_last_event_and_has_no_credentials() {
    let ingestion = empty_ingestion().await;
    let console = Console::start(ingestion.url());
    let uri = "/stream/envelopes/telemetry?machineId=r-1";
    let answer = read(console.send(from_browser(uri)).await).await;
    assert_eq!(answer.status, 200);
    let sent = &ingestion.requests()[0];
    assert_eq!(
        (sent.path.as_str(), sent.query.as_str()),
        ("/stream/envelopes/telemetry", "machineId=r-1")
    );
    assert_eq!(sent.headers["last-event-id"], "42");
    assert_eq!((&sent.authorization, sent.headers.get("cookie")), (&None, None));
}

#[tokio::test]
async fn an_open_stream_ends_when_the_console_stops() {
    let ingestion = FakeService::start(|_: &ReceivedRequest| -> Response {
        let first = stream::once(async { Ok::<_, Infallible>("data: 1\n\n") });
        let kind = [(header::CONTENT_TYPE, "text/event-stream")];
        (kind, Body::from_stream(first.chain(stream::pending()))).into_response()
    })
    .await
    .unwrap();
    let console = Console::start(ingestion.url());
    let response = console.send(from_browser("/stream/envelopes/events")).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut body = response.into_body().into_data_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "data: 1\n\n");
    console.stop.cancel();
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn nothing_else_reaches_ingestion() {
    let ingestion = empty_ingestion().await;
    let console = Console::start(ingestion.url());
    let dots = json!({"error": "sessionId is not a name (only dots)"});
    let slash = json!({"error":
        "sessionId contains '/'; letters, digits and . _ - : @ are allowed"});
    let mark = json!({"error":
        "sessionId contains '?'; letters, digits and . _ - : @ are allowed"});
    for (uri, error) in [
        ("/api/sessions/../telemetry", &dots),
        ("/api/sessions/%2E%2E/events", &dots),
        ("/api/sessions/S-1%2F..%2F..%2Fmachines%2F/telemetry", &slash),
        ("/api/sessions/S-1%3Fx/telemetry", &mark),
    ] {
        let answer = console.get(uri).await;
        let body: Value = serde_json::from_str(&answer.text).unwrap();
        assert_eq!((answer.status, &body), (400, error), "{uri}");
    }
    for uri in [
        "/stream/envelopes/commands",
        "/stream/envelopes/telemetry%2F..%2F..%2Fmachines",
        "/stream/envelopes/telemetry/x",
        "/api/sessions/S-1/notes",
        "/api/machines",
    ] {
        assert_eq!(console.get(uri).await.status, 404, "{uri}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let request = Request::builder().method(&method).uri("/api/sessions/S-1/telemetry");
        let answer = console.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    assert_eq!(ingestion.requests(), []);
}

#[tokio::test]
async fn a_refusal_is_passed_on_and_an_absent_ingestion_is_503() {
    let busy = busy_ingestion().await;
    let away = json!({"error":
        "ingestion does not answer; gateways store what they measure meanwhile"});
    for (console, error) in
        [(Console::start(busy.url()), json!({"error": "busy"})), (Console::alone(), away)]
    {
        for uri in ["/api/sessions/S-1/telemetry", "/stream/envelopes/events"] {
            let answer = console.get(uri).await;
            let body: Value = serde_json::from_str(&answer.text).unwrap();
            assert_eq!((answer.status, &body), (503, &error), "{uri}");
            for name in ["set-cookie", "x-internal"] {
                assert_eq!(answer.headers.get(name), None, "{uri}: {name}");
            }
        }
    }
}
