//! The fleet's HTTP API for people and services.

mod authority;
mod devices;
mod enrollments;
mod recoveries;

use std::sync::Arc;

use axum::extract::FromRef;
use http_stack::OrgRequest;
use service::openapi::with_examples;
use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::authority::CertificateAuthority;
use crate::store::{ChangedBy, FleetStore};
use service::clock::Clock;

pub use devices::key_number_or_conflict;

/// State shared by the handlers.
#[derive(Clone)]
pub struct State {
    pub store: FleetStore,
    pub clock: Clock,
    /// The certificate authority. `None`: none was created yet, or it cannot be opened.
    pub authority: Option<Arc<CertificateAuthority>>,
    /// The URL at which gateways reach this service.
    pub gateway_url: String,
    /// Notifies the broker synchronisation that a device changed.
    pub changed: Arc<Notify>,
}

impl FromRef<State> for Clock {
    fn from_ref(state: &State) -> Self {
        state.clock.clone()
    }
}

impl<'r> From<&'r OrgRequest> for ChangedBy<'r> {
    fn from(request: &'r OrgRequest) -> Self {
        Self { actor: &request.caller.actor, now: request.now() }
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp fleet",
    description = "Gateways: their keys, their certificates and their enrolment."
))]
struct Doc;

/// Builds the router and its OpenAPI document.
pub fn routes(state: State) -> (axum::Router, utoipa::openapi::OpenApi) {
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
    (router, with_examples(openapi, include_str!("examples.json")))
}
