//! What every HTTP server of this product has: the open routes, the layers that need no knowledge
//! of callers, and a graceful shutdown. `http_stack::stack` and the agent's local API put the layers
//! in their order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_http::timeout::TimeoutLayer;
use tracing::Instrument as _;

use crate::connections::{Admission, BoundedListener};
use crate::health::Health;
use crate::metrics::{Metrics, in_scope};

/// The largest request body, in bytes; the same bound as upstream Sim-Corp's.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a handler may take until it begins to answer. A stream may continue after that.
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(30);
/// The largest number of requests of a service that are handled at once.
pub const CONCURRENT_REQUESTS_MAX: usize = 1_024;
/// How long a shutdown waits for running requests; it then stops without the remaining ones.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// What a full listener still answers.
const PROBE_PATHS: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Why a service cannot listen on a port.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program listens on the address.
    #[error("{address} is in use by another program; stop it, or set {field} to a free port")]
    AddressInUse {
        /// The address to listen on.
        address: SocketAddr,
        /// The configuration field that holds it.
        field: &'static str,
    },
    /// The operating system refuses the address for another reason.
    #[error("cannot listen on {address} ({field}): {source}")]
    Other {
        /// The address to listen on.
        address: SocketAddr,
        /// The configuration field that holds it.
        field: &'static str,
        /// The reason of the operating system.
        source: std::io::Error,
    },
}

/// Binds a port. Call this before anything else is started, so that a busy port is reported
/// clearly.
///
/// # Errors
/// Names the address and the configuration field that holds it.
pub async fn listen(address: SocketAddr, field: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => ListenError::AddressInUse { address, field },
        _ => ListenError::Other { address, field, source },
    })
}

/// Returns the four routes that need no credentials: `/openapi.json`, `/health`, `/ready` and
/// `/metrics`.
pub fn open_routes(openapi: &utoipa::openapi::OpenApi, health: Health, metrics: Metrics) -> Router {
    let (alive, ready) = (health.clone(), health);
    let document = crate::openapi::complete(openapi).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot serialise the OpenAPI document");
        serde_json::Value::Null
    });
    Router::new()
        .route("/openapi.json", get(async move || Json(document)))
        .route("/health", get(async move || alive.health()))
        .route("/ready", get(async move || ready.ready().await))
        .route("/metrics", get(async move || prometheus(&metrics)))
}

/// The places of the requests that are handled at once.
#[derive(Clone)]
pub struct ConcurrencyLimit(Arc<Semaphore>);

impl ConcurrencyLimit {
    /// Creates a limit of `at_once` requests.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once)))
    }
}

/// Refuses a request with 503 and `Retry-After` while all places of the
/// [`ConcurrencyLimit`] are taken. A stream holds its place only until it begins.
pub async fn limit_concurrency(
    State(ConcurrencyLimit(permits)): State<ConcurrencyLimit>,
    request: Request,
    next: Next,
) -> Response {
    let Ok(_permit) = permits.try_acquire() else {
        metrics::counter!("simcorp_http_requests_refused_total").increment(1);
        let body = serde_json::json!({"error": "too many requests at once; try again"});
        let again = [(header::RETRY_AFTER, "1")];
        return (StatusCode::SERVICE_UNAVAILABLE, again, Json(body)).into_response();
    };
    next.run(request).await
}

/// Returns the layer that answers 504 to a request whose handler has not begun to answer within
/// 30 s.
#[must_use]
pub fn response_timeout() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, RESPONSE_TIME_MAX)
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Gives each request an id, which is on every log line of its handling and in the response. The id
/// is the caller's `x-request-id` if that consists of letters, digits and `-_.` only.
pub async fn assign_request_id(request: Request, next: Next) -> Response {
    let plain = |id: &&HeaderValue| {
        let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(is_allowed)
    };
    let given = request.headers().get(REQUEST_ID).filter(plain).cloned();
    let id = given.unwrap_or_else(new_request_id);
    let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default());
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn new_request_id() -> HeaderValue {
    let mut bytes = [0; 8];
    // Without randomness no connection could be encrypted either: nothing to retry here.
    let random = aws_lc_rs::rand::fill(&mut bytes).map(|()| u64::from_be_bytes(bytes));
    let id = random.ok().and_then(|id| HeaderValue::try_from(format!("{id:016x}")).ok());
    id.unwrap_or(HeaderValue::from_static("unknown"))
}

fn prometheus(metrics: &Metrics) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, kind)], metrics.render()).into_response()
}

/// Adds the headers that limit what a browser does with a response, where the handler has not set
/// its own: the content type is not guessed, no other page frames it, and a document loads and runs
/// nothing. A handler that serves a page sets the policy that its page needs.
pub async fn restrict_browser(request: Request, next: Next) -> Response {
    with_browser_limits(next.run(request).await)
}

fn with_browser_limits(mut response: Response) -> Response {
    const DEFAULTS: [(HeaderName, HeaderValue); 4] = [
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
        ),
    ];
    for (name, value) in DEFAULTS {
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}

/// Answers 404, in the format of upstream Sim-Corp.
#[allow(clippy::unused_async)] // handlers are async
pub async fn not_found(request: Request) -> Response {
    let message = format!("Route {}:{} not found", request.method(), request.uri().path());
    let body = serde_json::json!({"message": message, "error": "Not Found", "statusCode": 404});
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// Returns the method's name; `OTHER` for methods that no route has.
#[must_use]
pub const fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// The service whose requests [`record_metrics`] counts.
#[derive(Debug, Clone)]
pub struct MeasuredService {
    /// The label `service`.
    pub name: &'static str,
    /// The registry of everything that is recorded during a request; `None` for that of the process.
    pub metrics: Option<Metrics>,
}

/// A request in the gauge of those that are being handled, until it is dropped.
struct InProgress(metrics::Gauge);

impl InProgress {
    fn begin(service: &'static str, method: &'static str, route: &str) -> Self {
        let gauge = metrics::gauge!("simcorp_http_requests_in_progress",
            "service" => service, "method" => method, "route" => route.to_owned());
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Counts the requests of a service and records how long each one takes. What is recorded during a
/// request goes to the registry of the service.
pub async fn record_metrics(
    State(service): State<MeasuredService>,
    request: Request,
    next: Next,
) -> Response {
    in_scope(service.metrics, record_request(service.name, request, next)).await
}

async fn record_request(service: &'static str, request: Request, next: Next) -> Response {
    let start = Instant::now();
    // From a fixed set: a method of the client's own invention would be a new label for ever.
    let method = known_method(request.method());
    // The pattern, not the path: one label for each session would be too many for Prometheus.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", |p| p.as_str());
    let route = route.to_owned();
    let in_progress = InProgress::begin(service, method, &route);
    let response = next.run(request).await;
    drop(in_progress);
    let labels = [
        ("service", service.to_owned()),
        ("method", method.to_owned()),
        ("route", route),
        ("status_code", response.status().as_u16().to_string()),
    ];
    metrics::counter!("simcorp_http_requests_total", &labels).increment(1);
    metrics::histogram!("simcorp_http_request_duration_seconds", &labels)
        .record(start.elapsed().as_secs_f64());
    response
}

/// Refuses every request but a probe on a connection that a full listener accepted for probes, and
/// closes that connection after its response.
async fn answer_probes_only(
    State(metrics): State<Option<Metrics>>,
    ConnectInfo(admission): ConnectInfo<Admission>,
    request: Request,
    next: Next,
) -> Response {
    if admission == Admission::AnyRequest {
        return next.run(request).await;
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if is_read && PROBE_PATHS.contains(&request.uri().path()) {
        next.run(request).await
    } else {
        let count = || metrics::counter!("simcorp_connections_refused_total").increment(1);
        match &metrics {
            Some(own) => own.sync_scope(count),
            None => count(),
        }
        let body = serde_json::json!({"error": "too many connections; try again"});
        let again = [(header::RETRY_AFTER, "1")];
        with_browser_limits((StatusCode::SERVICE_UNAVAILABLE, again, Json(body)).into_response())
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Serves until `stop`, then lets running requests finish for a bounded time. A connection for which
/// the listener has no place is answered for probes only.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: BoundedListener,
    app: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let stopping = stop.clone();
    let app = app.layer(from_fn_with_state(Metrics::current(), answer_probes_only));
    // Made into a service once: a router itself is copied with all its routes and layers for each
    // connection, over half a megabyte for the largest.
    let serving = axum::serve(listener, app.into_make_service_with_connect_info::<Admission>())
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    serve_and_drain(async { serving.await }, stop).await
}

/// Waits for `serving` to end by itself, at most a bounded time after `stop`.
pub(crate) async fn serve_and_drain(
    serving: impl Future<Output = std::io::Result<()>>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    tokio::select! {
        done = serving => done,
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN_TIME_MAX).await } => {
            tracing::warn!(drain_s = DRAIN_TIME_MAX.as_secs(), "stopping with requests running");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use tokio::sync::Notify;
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn a_request_above_the_limit_gets_503() {
        let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (inside, go) = (entered.clone(), leave.clone());
        let slow = get(async move || {
            inside.notify_one();
            go.notified().await;
            "done"
        });
        let places = ConcurrencyLimit::new(1);
        let app = Router::new()
            .route("/slow", slow)
            .layer(axum::middleware::from_fn_with_state(places, limit_concurrency));
        let ask = || app.clone().oneshot(Request::get("/slow").body(Body::empty()).unwrap());
        let first = tokio::spawn(ask());
        entered.notified().await;
        let second = ask().await.unwrap();
        assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(second.headers()["retry-after"], "1");
        leave.notify_one();
        assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
        leave.notify_one();
        assert_eq!(ask().await.unwrap().status(), StatusCode::OK);
    }
}
