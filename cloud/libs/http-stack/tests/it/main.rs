//! The request stack around a small service: each layer, and the order of the layers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod auth;
mod idempotency;
mod order;
mod org_request;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::routing::{get, post};
use axum::{Extension, Json};
use contract::{Actor, ActorKind, EpochMs, OrgId};
use database::idempotency::Idempotency;
use http_stack::auth::{Auth, Caller, Role, TokenVerifier};
use http_stack::error::ApiError;
use http_stack::extract::JsonBody;
use http_stack::stack::service_router;
use http_stack::start::Service;
use http_stack::{AccessControl, Limits, LimitsConfig, OrgRequest, Rate};
use serde_json::{Value, json};
use service::clock::Clock;
use service::health::Health;
use service::metrics::Metrics;
use service::origin::AllowedOrigins;
use tower::ServiceExt as _;

const NOW: EpochMs = EpochMs(1_760_000_000_000);

/// The recorder of this process; there can be only one.
static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics::install().unwrap());

fn clock() -> Clock {
    Arc::new(|| NOW)
}

fn caller(id: &str, org: Option<&str>) -> Caller {
    let org = org.map(|org| OrgId::new(org).unwrap());
    let actor = Actor { kind: ActorKind::User, id: id.to_owned(), display: None, org: org.clone() };
    Caller { actor, org, role: Role::Operator }
}

/// The lookup of tokens: `ada`, `bob` and `eve` are people of acme, of whom `eve` may only read;
/// `service` and `other-service` work for all organisations.
#[derive(Clone, Default)]
struct Tokens {
    is_down: Arc<AtomicBool>,
    lookups: Arc<AtomicUsize>,
}

impl TokenVerifier for Tokens {
    fn verify<'w>(
        &'w self,
        token: &'w str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, ApiError>> + Send + 'w>> {
        Box::pin(async move {
            self.lookups.fetch_add(1, Ordering::SeqCst);
            if self.is_down.load(Ordering::SeqCst) {
                return Err(ApiError::Unavailable("the kernel does not answer".to_owned()));
            }
            match token {
                "ada" | "bob" => Ok(caller(token, Some("acme"))),
                "eve" => Ok(Caller { role: Role::Viewer, ..caller(token, Some("acme")) }),
                "service" | "other-service" => Ok(caller(token, None)),
                _ => Err(ApiError::unauthorized()),
            }
        })
    }
}

/// The number of orders that were made.
#[derive(Clone, Default)]
struct Orders(Arc<AtomicUsize>);

impl Orders {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn show(request: OrgRequest) -> Json<Value> {
    Json(json!({"org": request.org, "caller": request.caller.actor.id, "now": request.now()}))
}

async fn make(
    Extension(orders): Extension<Orders>,
    JsonBody(order): JsonBody<Value>,
) -> (StatusCode, Json<Value>) {
    let number = orders.0.fetch_add(1, Ordering::SeqCst) + 1;
    (StatusCode::CREATED, Json(json!({"number": number, "order": order})))
}

async fn fail() -> StatusCode {
    panic!("a fault in a handler")
}

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "orders"))]
struct Doc;

/// The whole stack around the service `orders`.
#[derive(Default)]
struct App {
    tokens: Tokens,
    limits: LimitsConfig,
    development: bool,
    origins: AllowedOrigins,
    idempotency: Option<Idempotency>,
    orders: Orders,
}

impl App {
    fn router(&self) -> Router {
        use utoipa::OpenApi as _;
        let routes = Router::new()
            .route("/orders", get(show))
            .route("/orders", post(make))
            .route("/fail", get(fail))
            .layer(Extension(self.orders.clone()))
            .with_state(clock());
        let access = AccessControl {
            auth: Auth::bearer(self.tokens.clone()),
            limits: Limits::new(&self.limits, None, clock()),
        };
        let service = Service {
            name: "orders",
            routes,
            openapi: Doc::openapi(),
            health: Health::new("orders", clock()),
            access: Some(access),
            development: self.development,
            origins: self.origins.clone(),
            idempotency: self.idempotency.clone(),
            tls: None,
        };
        service_router(&service, METRICS.clone())
    }
}

/// A rate limit of `burst` requests, with one more in each thousand seconds.
fn slow(burst: u32) -> Rate {
    Rate { per_second: 0.001, burst }
}

/// A response that was read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

async fn send(router: &Router, request: Request) -> Answer {
    let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    }
}

/// A request with a bearer token; an empty `token` sends none.
fn request(method: Method, uri: &str, token: &str) -> Request {
    let mut builder = Request::builder().method(method).uri(uri);
    if !token.is_empty() {
        builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    builder.body(Body::empty()).unwrap()
}

async fn read(router: &Router, uri: &str, token: &str) -> Answer {
    send(router, request(Method::GET, uri, token)).await
}
