//! The kernel's HTTP routes, with upstream's paths and names.

mod audit;
mod breaker;
mod cards;
mod expansion;
mod governance;
mod governor;
mod keys;
mod missions;
mod responses;
mod traces;

use std::sync::Arc;

use axum::extract::FromRef;
use service::openapi::with_examples;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use service_client::ServiceClient;

use crate::audit_checkpoint::CheckpointSigner;
use crate::store::KernelStore;
use service::clock::Clock;

/// The limits of what clients send. `docs/reference/compatibility.md` lists them.
pub mod limits {
    pub use super::cards::CARD_BYTES_MAX;
    pub use super::missions::{ATTEMPTS_MAX, GOALS_MAX, MISSION_BYTES_MAX, TEXT_BYTES_MAX};
}

/// The state that all handlers share.
#[derive(Clone)]
pub struct ApiState {
    pub store: KernelStore,
    pub clock: Clock,
    pub lease_ms: u32,
    /// Client of eval, which reports the roasts that may be promoted and how many were evaluated.
    pub eval: ServiceClient,
    /// Signs checkpoints of the audit log; `None` if its key cannot be used.
    pub audit_signer: Option<Arc<CheckpointSigner>>,
    /// Whether callers need no credentials.
    pub development: bool,
}

impl FromRef<ApiState> for Clock {
    fn from_ref(state: &ApiState) -> Self {
        state.clock.clone()
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp kernel",
    description = "Missions, governance, traces, agents and tools."
))]
struct Doc;

pub fn routes(state: ApiState) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(missions::create, missions::list))
        .routes(routes!(missions::counts))
        .routes(routes!(missions::claim))
        .routes(routes!(missions::one))
        .routes(routes!(missions::heartbeat))
        .routes(routes!(missions::complete))
        .routes(routes!(missions::fail))
        .routes(routes!(missions::approve))
        .routes(routes!(missions::cancel))
        .routes(routes!(missions::retry_now))
        .routes(routes!(governor::get, governor::put))
        .routes(routes!(audit::log))
        .routes(routes!(audit::checkpoint))
        .routes(routes!(governor::check_command))
        .routes(routes!(keys::whoami))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(cards::register_agent, cards::agents))
        .routes(routes!(cards::agent))
        .routes(routes!(cards::register_tool, cards::tools))
        .routes(routes!(cards::tool))
        .routes(routes!(cards::check_policy))
        .routes(routes!(traces::keep, traces::list))
        .routes(routes!(traces::of_mission))
        .merge(governance_routes())
        .with_state(state)
        .split_for_parts();
    (router, with_examples(openapi, include_str!("examples.json")))
}

fn governance_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(governance::tell))
        .routes(routes!(governance::report_incident, governance::incidents))
        .routes(routes!(governance::metrics_current))
        .routes(routes!(governance::metrics_weekly))
        .routes(routes!(governance::metrics_latest))
        .routes(routes!(governance::readiness_current))
        .routes(routes!(governance::readiness_latest))
        .routes(routes!(governance::readiness_score))
        .routes(routes!(governance::declare))
        .routes(routes!(breaker::events))
        .routes(routes!(breaker::unresolved))
        .routes(routes!(breaker::resolve))
        .routes(routes!(breaker::rules))
        .routes(routes!(breaker::rules_enabled))
        .routes(routes!(breaker::change_rule))
        .routes(routes!(expansion::run_cycle))
        .routes(routes!(expansion::reports))
        .routes(routes!(expansion::report_latest))
        .routes(routes!(expansion::report))
        .routes(routes!(expansion::state))
        .routes(routes!(expansion::proposals))
        .routes(routes!(expansion::approve))
        .routes(routes!(expansion::reject))
}
