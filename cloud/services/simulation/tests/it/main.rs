//! The routes of the twin and of the publisher.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod publisher;
mod twin;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, header};
use cache::Cache;
use contract::{Actor, ActorKind, EpochMs, OrgId};
use http_stack::auth::{Auth, Caller, Role};
use http_stack::start::Context;
use http_stack::{AccessControl, Limits, LimitsConfig};
use serde_json::Value;
use service::mqtt::BrokerSettings;
use service::origin::AllowedOrigins;
use service::secret::Secret;
use service::tasks::Tasks;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const NOW: EpochMs = EpochMs(1_760_000_000_000);

/// What the services are started with. The clock stands at [`NOW`].
fn context(mqtt: BrokerSettings) -> Context {
    let auth = Auth::dev(OrgId::new("acme").unwrap(), "ada");
    Context {
        access: AccessControl {
            auth,
            limits: Limits::new(&LimitsConfig::default(), None, Arc::new(|| NOW)),
        },
        cache: Cache::new(None),
        clock: Arc::new(|| NOW),
        database: None,
        mqtt,
        service_token: Secret::default(),
        data: PathBuf::new(),
        development: true,
        origins: AllowedOrigins::default(),
        tasks: Tasks::new(CancellationToken::new()),
        stop: CancellationToken::new(),
    }
}

fn caller(org: &str, role: Role) -> Caller {
    let org = Some(OrgId::new(org).unwrap());
    let actor =
        Actor { kind: ActorKind::User, id: "ada".to_owned(), display: None, org: org.clone() };
    Caller { actor, org, role }
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
