//! The console's pages and forwarded reads, with an ingestion that is a real HTTP server on
//! loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod forwarded;
mod pages;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::{Json, Router};
use console::ConsoleConfig;
use http_stack::start::Context;
use serde_json::json;
use service::secret::Secret;
use testbed::{FakeService, ReceivedRequest, free_port};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// The console with an ingestion at `ingestion_url`. Its clock stands at `NOW`.
struct Console {
    routes: Router,
    stop: CancellationToken,
}

impl Console {
    fn start(ingestion_url: String) -> Self {
        service::tls::install_crypto_provider();
        let context = Context {
            service_token: Secret::from("a-service-token".to_owned()),
            ..service_testbed::context()
        };
        let config = ConsoleConfig { ingestion_url, ..ConsoleConfig::default() };
        let routes = console::start(&config, &context).unwrap().routes;
        Self { routes, stop: context.stop }
    }

    /// Starts it without an ingestion.
    fn alone() -> Self {
        Self::start(format!("http://127.0.0.1:{}", free_port().unwrap()))
    }

    async fn send(&self, request: Request) -> Response {
        self.routes.clone().oneshot(request).await.unwrap()
    }

    async fn get(&self, uri: &str) -> Answer {
        read(self.send(Request::get(uri).body(Body::empty()).unwrap()).await).await
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

async fn read(response: Response) -> Answer {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, text }
}

/// An ingestion that is overloaded.
async fn busy_ingestion() -> FakeService {
    let answer = |_: &ReceivedRequest| {
        let headers = [("set-cookie", "session=secret"), ("x-internal", "1")];
        (StatusCode::SERVICE_UNAVAILABLE, headers, Json(json!({"error": "busy"})))
    };
    FakeService::start(answer).await.unwrap()
}
