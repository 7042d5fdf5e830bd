//! The kernel's HTTP surface, by the reference's names.

mod cards;
mod governor;
mod keys;
mod missions;
mod traces;

use axum::middleware;
use service::auth::{Auth, admit};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Clock;
use crate::store::KernelStore;

/// What handlers share.
#[derive(Clone)]
pub struct State {
    pub store: KernelStore,
    pub clock: Clock,
    pub lease_ms: u32,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp kernel",
    description = "Missions, governance, traces, agents and tools."
))]
struct Doc;

pub fn routes(state: State, auth: Auth) -> (axum::Router, utoipa::openapi::OpenApi) {
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
        .with_state(state)
        .split_for_parts();
    (router.layer(middleware::from_fn_with_state(auth, admit)), openapi)
}
