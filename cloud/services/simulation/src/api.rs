//! The HTTP APIs of the twin and of the publisher, compatible with upstream Sim-Corp.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::point::{RoastEvent, TelemetryPoint};
use contract::{EpochMs, MachineId};
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::{JsonBody, JsonBytes, parse_body};
use serde::{Deserialize, Serialize};
use service::openapi::with_examples;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::jobs::{JobStatus, Jobs, PublishRequest, Stats};
use crate::places::{SimulationPlace, SimulationPlaces};
use crate::request::SimRoastRequest;
use service::clock::Clock;

type RoutesAndDocument = (axum::Router, utoipa::openapi::OpenApi);

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "Sim-Corp twin", description = "Simulated roasts."))]
struct TwinDoc;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp publisher",
    description = "Simulated machines that publish signed frames like real gateways."
))]
struct PublisherDoc;

#[derive(Clone)]
struct TwinState {
    clock: Clock,
    places: SimulationPlaces,
}

pub fn twin_routes(clock: Clock) -> RoutesAndDocument {
    use utoipa::OpenApi as _;
    let places = SimulationPlaces::new();
    let (router, openapi) = OpenApiRouter::with_openapi(TwinDoc::openapi())
        .routes(routes!(simulate))
        .with_state(TwinState { clock, places })
        .split_for_parts();
    (router, with_examples(openapi, include_str!("twin_examples.json")))
}

pub fn publisher_routes(jobs: Jobs) -> RoutesAndDocument {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(PublisherDoc::openapi())
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(status))
        .with_state(jobs)
        .split_for_parts();
    (router, with_examples(openapi, include_str!("publisher_examples.json")))
}

/// The measurements and events of a simulated roast.
#[derive(Serialize, ToSchema)]
struct SimulatedRoast {
    telemetry: Vec<TelemetryPoint>,
    events: Vec<RoastEvent>,
}

/// Simulates a roast. An empty body uses the default of every field.
#[utoipa::path(post, path = "/simulate/roast", tag = "twin", request_body = SimRoastRequest,
    responses((status = 200, body = SimulatedRoast), (status = 400, description = "In the format of upstream Sim-Corp's twin", body = InvalidRequest)))]
async fn simulate(
    Extract(twin): Extract<TwinState>,
    caller: Caller,
    JsonBytes(body): JsonBytes,
) -> Response {
    if let Err(error) = caller.require_role(Role::Viewer) {
        return error.into_response();
    }
    let Some(place) = twin.places.take(caller.org).await else {
        let busy = "other simulations are running; try again".to_owned();
        return ApiError::Unavailable(busy).into_response();
    };
    let now = (twin.clock)();
    // The simulation is slow and must not block other requests, and its answer may be large. A place
    // stays taken while a simulation runs whose client has gone.
    let simulating = tokio::task::spawn_blocking(move || {
        let roast = simulated(&body, now);
        (place, roast.and_then(|roast| serde_json::to_vec(&roast).map_err(ApiError::internal)))
    });
    match simulating.await {
        Ok((place, Ok(answer))) => roast_response(place, answer),
        Ok((_, Err(error))) => refusal(error),
        Err(error) => ApiError::internal(error).into_response(),
    }
}

fn roast_response(place: SimulationPlace, answer: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CONTENT_LENGTH, answer.len().to_string()),
    ];
    (headers, place.body(answer)).into_response()
}

fn refusal(error: ApiError) -> Response {
    match error {
        ApiError::Issues(issues) => bad_request(&issues),
        error @ ApiError::Internal(_) => error.into_response(),
        error => bad_request(&[Issue::new("", error)]),
    }
}

fn simulated(body: &Bytes, now: EpochMs) -> Result<SimulatedRoast, ApiError> {
    let request: SimRoastRequest = parse_body(body)?;
    let issue = |(field, problem): (&'static str, String)| Issue::new(field, problem);
    let issues: Vec<Issue> = request.problems().into_iter().map(issue).collect();
    if !issues.is_empty() {
        return Err(ApiError::Issues(issues));
    }
    let roast = request
        .simulate(request.seed_or(now))
        .map_err(|problem| ApiError::Issues(vec![issue(problem)]))?;
    let machine = MachineId::new(request.machine_id.clone()).map_err(ApiError::internal)?;
    // Upstream starts a seeded roast at its seed, in seconds since 1970.
    let started = match request.seed {
        Some(seed) => EpochMs(seed.saturating_mul(1_000)),
        None => EpochMs(now.0.div_euclid(1_000).saturating_mul(1_000)),
    };
    let started = if started.is_plausible() { started } else { EpochMs(0) };
    let (telemetry, events) = roast.to_wire(&machine, started, request.ambient_temp_c);
    Ok(SimulatedRoast { telemetry, events })
}

/// The response to an invalid request.
#[derive(Serialize, ToSchema)]
struct InvalidRequest<'i> {
    message: &'static str,
    #[schema(value_type = Vec<Issue>)]
    issues: &'i [Issue],
}

fn bad_request(issues: &[Issue]) -> Response {
    let body = InvalidRequest { message: "Invalid simulation request", issues };
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Started {
    /// The id of the job, not of a roast.
    session_id: String,
    stats: Stats,
}

/// Starts simulated machines beside the real ones. Each roasts once, signs its measurements, and is
/// done when the cloud has acknowledged the complete roast.
#[utoipa::path(post, path = "/publish/start", tag = "publisher", request_body = PublishRequest,
    responses((status = 200, body = Started), (status = 400), (status = 403), (status = 503)))]
async fn start(
    Extract(jobs): Extract<Jobs>,
    caller: Caller,
    JsonBody(request): JsonBody<PublishRequest>,
) -> Result<Json<Started>, ApiError> {
    caller.require_role(Role::Operator)?;
    let org = caller.resolve_org(Some(&request.org_id))?;
    let JobStatus { id, stats, .. } = jobs.start(&org, request).await?;
    Ok(Json(Started { session_id: id, stats }))
}

/// A request to stop a job.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StopRequest {
    session_id: String,
}

/// The response to a stopped job.
#[derive(Serialize, ToSchema)]
struct Stopped {
    stopped: bool,
}

/// Stops a job.
#[utoipa::path(post, path = "/publish/stop", tag = "publisher", request_body = StopRequest,
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Stopped), (status = 400), (status = 403), (status = 404)))]
async fn stop(
    Extract(jobs): Extract<Jobs>,
    request: OrgRequest,
    JsonBody(stop): JsonBody<StopRequest>,
) -> Result<Json<Stopped>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    if jobs.stop(&request.org, &stop.session_id) {
        return Ok(Json(Stopped { stopped: true }));
    }
    Err(ApiError::NotFound("job"))
}

/// Lists the running jobs and the most recently ended ones.
#[utoipa::path(get, path = "/publish/status", tag = "publisher",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<JobStatus>), (status = 403)))]
async fn status(Extract(jobs): Extract<Jobs>, request: OrgRequest) -> Json<Vec<JobStatus>> {
    Json(jobs.list(&request.org))
}
