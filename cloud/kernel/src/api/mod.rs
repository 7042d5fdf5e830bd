//! The kernel's HTTP surface, by the reference's names.

mod cards;
mod governance;
mod governor;
mod keys;
mod missions;
mod traces;

use ::store::idempotency::{Idempotency, once};
use axum::middleware;
use guard::Door;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use peer::Peer;

use crate::Clock;
use crate::store::KernelStore;

/// What handlers share.
#[derive(Clone)]
pub struct State {
    pub store: KernelStore,
    pub clock: Clock,
    pub lease_ms: u32,
    /// Which says what may be promoted, and how much was evaluated.
    pub eval: Peer,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp kernel",
    description = "Missions, governance, traces, agents and tools."
))]
struct Doc;

pub fn routes(
    state: State,
    kept: Idempotency,
    door: &Door,
) -> (axum::Router, utoipa::openapi::OpenApi) {
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
        .routes(routes!(governor::audit))
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
    let router = router.layer(middleware::from_fn_with_state(kept, once));
    (door.guard(router), openapi)
}

fn governance_routes() -> OpenApiRouter<State> {
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
        .routes(routes!(governance::events))
        .routes(routes!(governance::unresolved))
        .routes(routes!(governance::resolve))
        .routes(routes!(governance::rules))
        .routes(routes!(governance::rules_enabled))
        .routes(routes!(governance::change_rule))
        .routes(routes!(governance::run_cycle))
        .routes(routes!(governance::reports))
        .routes(routes!(governance::report_latest))
        .routes(routes!(governance::report))
        .routes(routes!(governance::state))
        .routes(routes!(governance::proposals))
        .routes(routes!(governance::approve))
        .routes(routes!(governance::reject))
}
