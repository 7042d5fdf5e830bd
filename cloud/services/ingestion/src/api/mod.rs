//! Ingestion's HTTP API: `docs/reference/services.md`, and upstream Sim-Corp's routes under their
//! upstream names.

mod annotations;
mod frames;
mod machine_filter;
mod machine_names;
mod machines;
pub(crate) mod profiles;
mod read_pace;
mod resume_id;
mod sessions;
mod stream;
mod telemetry;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole_way;

use axum::extract::FromRef;
use cache::Cache;
use http_stack::Limits;
use service::clock::Clock;
use service::openapi::with_examples;
use service::shutdown::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::read_pace::ReadPace;
use crate::live_tail::Tail;
use crate::pipeline::Pipeline;
use crate::store::IngestStore;

/// The limits of what clients send. `docs/reference/compatibility.md` lists them.
pub mod limits {
    pub use super::annotations::{OVERRIDES_MAX, REPORT_MAX, WRITTEN_MAX};
    pub use super::profiles::{IMPORTED_MAX, PROFILE_MAX};
}

/// The state that all handlers share.
#[derive(Clone)]
pub struct SharedState {
    pub store: IngestStore,
    pub pace: ReadPace,
    pub pipeline: Pipeline,
    pub tail: Tail,
    pub clock: Clock,
    pub stop: CancellationToken,
    pub limits: Limits,
    pub cache: Cache,
}

impl FromRef<SharedState> for Clock {
    fn from_ref(state: &SharedState) -> Self {
        state.clock.clone()
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp ingestion",
    description = "Receives signed frames; serves sessions, telemetry, events and live streams."
))]
struct Doc;

pub fn routes(state: SharedState) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(frames::post_frames))
        .routes(routes!(sessions::sessions))
        .routes(routes!(sessions::session))
        .routes(routes!(telemetry::session_telemetry))
        .routes(routes!(sessions::session_events))
        .routes(routes!(machines::machines))
        .routes(routes!(machine_names::rename))
        .routes(routes!(machine_names::alias))
        .routes(routes!(machine_names::unalias))
        .routes(routes!(machines::recent_telemetry))
        .routes(routes!(machines::recent_events))
        .routes(routes!(stream::telemetry))
        .routes(routes!(stream::events))
        .routes(routes!(stream::envelopes_telemetry))
        .routes(routes!(stream::envelopes_events))
        .routes(routes!(annotations::meta, annotations::set_meta))
        .routes(routes!(annotations::notes, annotations::add_note))
        .routes(routes!(annotations::overrides, annotations::set_overrides))
        .routes(routes!(annotations::reports, annotations::add_report))
        .routes(routes!(annotations::latest_report))
        .routes(routes!(annotations::report))
        .routes(routes!(profiles::list, profiles::create))
        .routes(routes!(profiles::import))
        .routes(routes!(profiles::one))
        .routes(routes!(profiles::new_version))
        .routes(routes!(profiles::archive))
        .routes(routes!(profiles::unarchive))
        .routes(routes!(profiles::versions))
        .routes(routes!(profiles::export))
        .with_state(state)
        .split_for_parts();
    (router, with_examples(openapi, include_str!("examples.json")))
}
