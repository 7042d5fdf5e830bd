//! The layers that a request passes, in their order. The whole order is in this file.
//!
//! From the outside to the handler:
//!
//! 1. request id: in the response and on every log line
//! 2. metrics: count and duration by route and status, so that they include every refusal below; all
//!    that is recorded below goes to the service's own registry
//! 3. browser: headers that limit what a browser does with the response
//! 4. CORS, if origins are allowed: answers preflight requests, and lets their pages read every
//!    response of the layers below
//! 5. panic: answers 500 and keeps the connection
//! 6. origin, in development mode: 421 and 403 for what a page of another site makes a browser send
//! 7. response time: 504
//! 8. body size: 413
//! 9. concurrency: 503, so that an overloaded service answers at once; `/health`, `/ready`,
//!    `/metrics` and `/openapi.json` branch off before it and need no credentials
//! 10. authentication: 401; `/_rate-limit/metrics` branches off after it
//! 11. rate limit: 429, by organisation, caller and route
//! 12. idempotency: a repeated `Idempotency-Key` gets the first response
//!
//! `simcorp serve` adds one more around the handlers, which runs them on threads of their own.

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use database::idempotency::Idempotency;
use service::http::{
    self, ConcurrencyLimit, MeasuredService, assign_request_id, limit_concurrency, record_metrics,
    response_timeout,
};
use service::metrics::Metrics;
use service::origin::{AllowedOrigins, refuse_other_pages};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;

use crate::access::AccessControl;
use crate::auth::{Caller, authenticate};
use crate::cors::cors_layer;
use crate::idempotency::idempotency_layer;
use crate::rate_limit::{metrics_for, rate_limit};
use crate::start::Service;

/// Returns the router that serves a service: its routes and the open routes, inside all layers.
/// Everything that its requests record goes to `metrics`, which `/metrics` shows.
pub fn service_router(service: &Service, metrics: Metrics) -> Router {
    let Service { routes, openapi, health, access, idempotency, .. } = service;
    let measured = MeasuredService { name: health.service(), metrics: Some(metrics.clone()) };
    let open = http::open_routes(openapi, health.clone(), metrics);
    let mut routes = routes.clone();
    if let Some(access) = access {
        routes = control_access(routes, access, idempotency.clone());
    }
    let routes = limit(routes, http::CONCURRENT_REQUESTS_MAX).merge(open);
    outer_layers(routes, (service.development, &service.origins), measured)
}

/// Returns the router of an endpoint whose clients authenticate in TLS: layers 1 to 8, without 4 and
/// 6, and no open routes. The routes bound by themselves how many requests are handled at once.
pub fn endpoint_router(routes: Router, name: &'static str) -> Router {
    // Called while the service starts, in the scope of its registry.
    let measured = MeasuredService { name, metrics: Metrics::current() };
    outer_layers(routes, (false, &AllowedOrigins::default()), measured)
}

/// Adds layers 10 to 12. The last `layer` is the first that a request passes.
fn control_access(routes: Router, access: &AccessControl, keys: Option<Idempotency>) -> Router {
    let AccessControl { auth, limits } = access.clone();
    let routes = match keys {
        Some(keys) => routes.layer(from_fn_with_state(keys, idempotency_layer)),
        None => routes,
    };
    let shown = limits.clone();
    routes
        .layer(from_fn_with_state(limits, rate_limit))
        // Not rate limited, so that a limited caller can still read it.
        .route(
            "/_rate-limit/metrics",
            get(async move |caller: Caller| metrics_for(&shown, &caller)),
        )
        .layer(from_fn_with_state(auth, authenticate))
}

/// Adds layer 9.
fn limit(routes: Router, at_once: usize) -> Router {
    routes.layer(from_fn_with_state(ConcurrencyLimit::new(at_once), limit_concurrency))
}

/// Adds layers 1 to 8. The last `layer` is the first that a request passes.
fn outer_layers(
    routes: Router,
    (development, origins): (bool, &AllowedOrigins),
    measured: MeasuredService,
) -> Router {
    let routes = routes
        .fallback(http::not_found)
        .layer(RequestBodyLimitLayer::new(http::BODY_BYTES_MAX))
        .layer(response_timeout());
    let routes = if development {
        routes.layer(from_fn_with_state(origins.clone(), refuse_other_pages))
    } else {
        routes
    };
    let routes = routes.layer(CatchPanicLayer::new());
    let routes = if origins.is_empty() { routes } else { routes.layer(cors_layer(origins)) };
    routes
        .layer(from_fn(http::restrict_browser))
        .layer(from_fn_with_state(measured, record_metrics))
        .layer(from_fn(assign_request_id))
}
