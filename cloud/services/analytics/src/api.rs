//! The HTTP API of analytics.

use axum::Json;
use axum::extract::{FromRef, Path, State as Extract};
use axum::response::Response;
use cache::Cache;
use contract::profile::RoastProfile;
use contract::session::{RoastSession, RoastSessionSummary};
use contract::{EventKind, OrgId};
use http_stack::OrgRequest;
use http_stack::error::ApiError;
use http_stack::query::Params;
use roast::analysis::compare;
use service_client::ServiceClient;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::fleet::{self, FleetStatistics};
use crate::loaded_roast::LoadedRoast;
use crate::responses::{
    RoastAnalysis, RoastComparison, RoastConsistency, RoastFigures, RoastPrediction, WithoutNulls,
    json_response,
};
use service::clock::Clock;

/// The maximum number of sessions in one consistency request.
const ROASTS_MAX: i64 = 50;

#[derive(Clone)]
pub struct State {
    pub ingestion: ServiceClient,
    pub cache: Cache,
    pub clock: Clock,
}

impl FromRef<State> for Clock {
    fn from_ref(state: &State) -> Self {
        state.clock.clone()
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "Sim-Corp analytics", description = "Analyses of roasts."))]
struct Doc;

pub fn routes(state: State) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(analysis))
        .routes(routes!(prediction))
        .routes(routes!(comparison))
        .routes(routes!(consistency))
        .routes(routes!(fleet_statistics))
        .with_state(state)
        .split_for_parts();
    (router, openapi)
}

impl State {
    async fn roast(&self, org: &OrgId, id: &str) -> Result<LoadedRoast, ApiError> {
        let found = LoadedRoast::read(&self.ingestion, org, id).await?;
        found.ok_or(ApiError::NotFound("session"))
    }
}

/// Returns a session's analysis: times, phases, shape, controls, and recommendations.
#[utoipa::path(get, path = "/analysis/session/{sessionId}", tag = "analysis",
    params(("sessionId" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = RoastAnalysis), (status = 404), (status = 503)))]
async fn analysis(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
) -> Result<Response, ApiError> {
    let now = request.now();
    let OrgRequest { org, .. } = request;
    let found = state.ingestion.get_tagged::<RoastSession>(&org, &["sessions", &id], &[]).await?;
    let found = found.ok_or(ApiError::NotFound("session"))?;
    // The key has the session's version: every change of the session leads to another cache entry.
    let cache_key = found.etag.map(|tag| format!("{org}/{id}/{VERSION}/{tag}"));
    if let Some(cache_key) = &cache_key
        && let Some(body) = state.cache.get("analysis", cache_key).await
    {
        return Ok(json_response(body));
    }
    let roast = LoadedRoast::read_rest(&state.ingestion, &org, found.body).await?;
    let body = WithoutNulls(roast.full_analysis(now)).to_bytes().map_err(ApiError::internal)?;
    if let Some(cache_key) = cache_key.as_ref().filter(|_| roast.all_points_loaded) {
        state.cache.put("analysis", cache_key, body.clone(), CACHE_LIFETIME).await;
    }
    Ok(json_response(body))
}

/// Part of the cache key: another program version may compute another analysis.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const CACHE_LIFETIME: std::time::Duration = std::time::Duration::from_hours(24);

/// Predicts when a running session reaches first crack and drop; with `profileId`, for the targets
/// of that profile.
#[utoipa::path(get, path = "/prediction/session/{sessionId}", tag = "analysis",
    params(("sessionId" = String, Path), ("profileId" = Option<String>, Query),
           ("orgId" = Option<String>, Query)),
    responses((status = 200, body = RoastPrediction), (status = 404), (status = 503)))]
async fn prediction(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
) -> Result<WithoutNulls<RoastPrediction>, ApiError> {
    let now = request.now();
    let OrgRequest { org, params, .. } = request;
    let roast = state.roast(&org, &id).await?;
    let mut profile: Option<RoastProfile> = None;
    if let Some(id) = params.get("profileId") {
        let found = state.ingestion.get(&org, &["profiles", id], &[]).await?;
        profile = Some(found.ok_or(ApiError::NotFound("profile"))?);
    }
    Ok(WithoutNulls(roast.prediction(profile.as_ref(), now)))
}

/// Compares a session with another, aligned at one event.
#[utoipa::path(get, path = "/comparison/session/{sessionId}", tag = "analysis",
    params(("sessionId" = String, Path), ("referenceId" = String, Query),
           ("align" = Option<String>, Query, description = "CHARGE, TP, DRY_END or FC"),
           ("orgId" = Option<String>, Query)),
    responses((status = 200, body = RoastComparison), (status = 400), (status = 404),
              (status = 409), (status = 503)))]
async fn comparison(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    OrgRequest { org, params, .. }: OrgRequest,
) -> Result<WithoutNulls<RoastComparison>, ApiError> {
    let reference = params
        .get("referenceId")
        .ok_or_else(|| ApiError::Invalid("referenceId: the session to compare with".to_owned()))?;
    let align = parse_align(&params)?;
    let this = state.roast(&org, &id).await?;
    let other = state.roast(&org, reference).await?;
    let (curve, marks) = (this.curve(), this.marks());
    let (other_curve, other_marks) = (other.curve(), other.marks());
    let result = compare::compare((&curve, &marks), (&other_curve, &other_marks), align);
    let comparison = result.ok_or_else(|| {
        ApiError::Conflict(format!(
            "the roasts cannot be compared: one has no CHARGE, DROP or {align}, or they share no time"
        ))
    })?;
    let reference_id = reference.to_owned();
    Ok(WithoutNulls(RoastComparison { session_id: id, reference_id, align, comparison }))
}

fn parse_align(params: &Params) -> Result<EventKind, ApiError> {
    let Some(name) = params.get("align") else { return Ok(EventKind::Charge) };
    [EventKind::Charge, EventKind::Tp, EventKind::DryEnd, EventKind::Fc]
        .into_iter()
        .find(|kind| kind.as_str().eq_ignore_ascii_case(name))
        .ok_or_else(|| ApiError::Invalid("align: not CHARGE, TP, DRY_END or FC".to_owned()))
}

/// Measures the consistency of the last sessions of a machine, of a profile or of the whole
/// organisation, and lists each of these sessions, newest first.
#[utoipa::path(get, path = "/consistency", tag = "analysis",
    params(("machineId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("profileName" = Option<String>, Query), ("orgId" = Option<String>, Query), ("limit" = Option<i64>, Query, description = "2 to 50; 20")),
    responses((status = 200, body = RoastConsistency), (status = 400), (status = 503)))]
async fn consistency(
    Extract(state): Extract<State>,
    OrgRequest { org, params, .. }: OrgRequest,
) -> Result<WithoutNulls<RoastConsistency>, ApiError> {
    let limit = params.limit(20, ROASTS_MAX)?.to_string();
    let mut query = vec![("status", "CLOSED"), ("limit", limit.as_str())];
    for name in ["machineId", "siteId", "profileName"] {
        if let Some(value) = params.get(name) {
            query.push((name, value));
        }
    }
    let summaries: Vec<RoastSessionSummary> =
        state.ingestion.get(&org, &["sessions"], &query).await?.unwrap_or_default();
    let (mut analyses, mut sessions, mut roasts) = (Vec::new(), Vec::new(), Vec::new());
    for summary in summaries {
        let roast = LoadedRoast::read(&state.ingestion, &org, summary.session_id.as_str()).await?;
        if let Some(analysis) = roast.and_then(|roast| roast.analysis()) {
            sessions.push(summary.session_id.clone());
            roasts.push(RoastFigures {
                session_id: summary.session_id,
                started_at: summary.started_at,
                fc_seconds: analysis.fc_seconds,
                drop_seconds: analysis.drop_seconds,
                development_ratio: analysis.development_ratio,
                end_bt_c: analysis.end_bt_c,
            });
            analyses.push(analysis);
        }
    }
    let consistency = compare::consistency(&analyses);
    Ok(WithoutNulls(RoastConsistency { sessions, roasts, consistency }))
}

/// Counts the fleet's sessions of the last days, in total and by machine.
#[utoipa::path(get, path = "/fleet", tag = "analysis",
    params(("days" = Option<i64>, Query, description = "1 to 366; 7"), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = FleetStatistics), (status = 400), (status = 403),
              (status = 503)))]
async fn fleet_statistics(
    Extract(state): Extract<State>,
    request: OrgRequest,
) -> Result<Json<FleetStatistics>, ApiError> {
    let days = request.params.number("days", 7, 1, 366)?;
    let since = request.now().plus_ms(-days * 86_400_000);
    let (roasts, truncated) = fleet::read(&state.ingestion, &request.org, since).await?;
    Ok(Json(fleet::count(&roasts, truncated, since, days as f64)))
}
