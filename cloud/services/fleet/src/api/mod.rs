//! The fleet as people and services ask it.

mod authority;
mod devices;
mod enrollments;
mod recoveries;

use std::sync::Arc;

use ::database::idempotency::{Idempotency, idempotency_layer};
use axum::middleware;
use http_stack::AccessLayer;
use service::openapi::with_examples;
use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::authority::Authority;
use crate::store::FleetStore;
use service::clock::Clock;

pub use devices::refused;

/// What handlers share.
#[derive(Clone)]
pub struct State {
    pub store: FleetStore,
    pub clock: Clock,
    /// None has been made.
    pub authority: Option<Arc<Authority>>,
    /// As gateways reach us.
    pub gateway_url: String,
    /// Something changed that the broker has to know.
    pub changed: Arc<Notify>,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp fleet",
    description = "Gateways: their keys, their certificates, and who lets them in."
))]
struct Doc;

pub fn routes(
    state: State,
    kept: Idempotency,
    door: &AccessLayer,
) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(devices::register, devices::list))
        .routes(routes!(devices::one))
        .routes(routes!(devices::set_machines))
        .routes(routes!(devices::revoke))
        .routes(routes!(enrollments::create, enrollments::list))
        .routes(routes!(enrollments::withdraw))
        .routes(routes!(recoveries::list))
        .routes(routes!(recoveries::approve))
        .routes(routes!(recoveries::refuse))
        .routes(routes!(authority::show))
        .with_state(state)
        .split_for_parts();
    let router = router.layer(middleware::from_fn_with_state(kept, idempotency_layer));
    (door.wrap(router), with_examples(openapi, include_str!("examples.json")))
}
