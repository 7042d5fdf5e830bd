//! Eval's HTTP API, with upstream Sim-Corp's names.

mod cases;
mod runs;
mod saturation;

use axum::extract::FromRef;
use contract::OrgId;
use http_stack::OrgRequest;
use http_stack::error::{ApiError, Issue};
use service::openapi::with_examples;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::golden::GoldenCase;
use crate::runner::Runner;
use crate::store::{ChangedBy, EvalStore};
use service::clock::Clock;

/// The limits of what clients send. `docs/reference/compatibility.md` lists them.
pub mod limits {
    pub use super::runs::{COMMANDS_MAX, RUN_BYTES_MAX, TRANSCRIPT_MAX, TRIALS_MAX};
    pub use crate::golden::CASE_BYTES_MAX;
}

#[derive(Clone)]
pub struct State {
    pub store: EvalStore,
    pub runner: Runner,
    pub clock: Clock,
}

impl FromRef<State> for Clock {
    fn from_ref(state: &State) -> Self {
        state.clock.clone()
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp eval",
    description = "Golden cases, how roasts and agents did at them, and what may be promoted."
))]
struct Doc;

pub fn routes(state: State) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(cases::create, cases::list))
        .routes(routes!(cases::from_success))
        .routes(routes!(cases::from_failure))
        .routes(routes!(cases::one, cases::change))
        .routes(routes!(cases::archive))
        .routes(routes!(cases::unarchive))
        .routes(routes!(cases::solve))
        .routes(routes!(runs::list))
        .routes(routes!(runs::run))
        .routes(routes!(runs::run_trials))
        .routes(routes!(runs::promotion))
        .routes(routes!(runs::coverage))
        .routes(routes!(runs::one))
        .routes(routes!(runs::review))
        .routes(routes!(saturation::list))
        .routes(routes!(saturation::summary))
        .routes(routes!(saturation::one))
        .with_state(state)
        .split_for_parts();
    (router, with_examples(openapi, include_str!("examples.json")))
}

impl State {
    async fn case(&self, org: &OrgId, id: &str) -> Result<(i64, GoldenCase), ApiError> {
        let found = self.store.case(org, id).await?;
        found.ok_or(ApiError::NotFound("golden case"))
    }
}

/// Returns the author of a change, for the audit log.
fn changed_by(request: &OrgRequest) -> ChangedBy<'_> {
    ChangedBy { actor: &request.caller.actor, now: request.now() }
}

/// Refuses a text that cannot be stored.
fn check_text(field: &str, text: &str, most: usize) -> Result<(), ApiError> {
    if (1..=most).contains(&text.len()) && !text.contains('\0') {
        return Ok(());
    }
    Err(ApiError::Issues(vec![Issue::new(field, format!("not 1 to {most} bytes"))]))
}
