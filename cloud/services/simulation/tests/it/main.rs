//! The routes of the twin and of the publisher.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod publisher;
mod twin;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, header};
use http_stack::auth::Caller;
use http_stack::start::Context;
use serde_json::Value;
use service::mqtt::BrokerSettings;
use tower::ServiceExt as _;

/// What the services are started with.
fn context(mqtt: BrokerSettings) -> Context {
    Context { mqtt, ..service_testbed::context() }
}

/// Sends a request and returns the status and the body. A null body is no body.
async fn send(
    routes: &Router,
    caller: Option<Caller>,
    (method, uri): (Method, &str),
    body: &Value,
) -> (u16, Bytes) {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(uri);
    let request = request.header(header::CONTENT_TYPE, "application/json");
    let mut request = request.body(body).unwrap();
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    let response = routes.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    (status, to_bytes(response.into_body(), usize::MAX).await.unwrap())
}
