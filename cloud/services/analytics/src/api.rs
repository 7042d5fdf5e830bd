//! The HTTP API of analytics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
/// The maximum number of requests that analyse roasts at once: each holds one or two whole roasts.
const AT_ONCE_MAX: usize = 4;
/// The maximum number of these requests of one organisation: its others wait behind each other, not
/// in front of those of other organisations.
const AT_ONCE_OF_ORG_MAX: usize = AT_ONCE_MAX - 1;
/// How long a request waits for its turn; then the caller gets 503.
const WAIT_MAX: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct State {
    pub ingestion: ServiceClient,
    pub cache: Cache,
    pub clock: Clock,
    places: Arc<Semaphore>,
    /// The places of each organisation that has requests.
    places_of_orgs: Arc<Mutex<HashMap<OrgId, Arc<Semaphore>>>>,
}

/// The right of a request to analyse roasts, until it is dropped.
struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_org: OwnedSemaphorePermit,
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
    pub fn new(ingestion: ServiceClient, cache: Cache, clock: Clock) -> Self {
        let places = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Self { ingestion, cache, clock, places, places_of_orgs: Arc::default() }
    }

    /// Waits until fewer than [`AT_ONCE_MAX`] requests analyse roasts, and fewer than
    /// [`AT_ONCE_OF_ORG_MAX`] of the organisation.
    async fn place(&self, org: &OrgId) -> Result<Arc<Place>, ApiError> {
        let places_of_org = self.places_of_org(org);
        let place = async {
            let of_org = places_of_org.acquire_owned().await.ok()?;
            let of_all = self.places.clone().acquire_owned().await.ok()?;
            Some(Arc::new(Place { _of_all: of_all, _of_org: of_org }))
        };
        let place = tokio::time::timeout(WAIT_MAX, place).await;
        place.ok().flatten().ok_or_else(|| {
            ApiError::Unavailable("other roasts are being analysed; try again".to_owned())
        })
    }

    fn places_of_org(&self, org: &OrgId) -> Arc<Semaphore> {
        let mut all = self.places_of_orgs.lock().unwrap_or_else(PoisonError::into_inner);
        // Permits and waiting requests hold a reference.
        all.retain(|_, places| Arc::strong_count(places) > 1);
        all.entry(org.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE_OF_ORG_MAX)))
            .clone()
    }

    async fn roast(&self, org: &OrgId, id: &str) -> Result<LoadedRoast, ApiError> {
        let found = LoadedRoast::read(&self.ingestion, org, id).await?;
        found.ok_or(ApiError::NotFound("session"))
    }
}

/// Computes on a thread of its own: a long roast must not block other requests. The place is taken
/// until the work ends, even if the client disconnects before.
async fn compute<T: Send + 'static>(
    place: &Arc<Place>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let place = place.clone();
    let work = move || {
        let result = work();
        drop(place);
        result
    };
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)
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
    let place = state.place(&org).await?;
    let roast = LoadedRoast::read_rest(&state.ingestion, &org, found.body).await?;
    let whole = roast.all_points_loaded;
    let body = compute(&place, move || WithoutNulls(roast.full_analysis(now)).to_bytes()).await?;
    let body = body.map_err(ApiError::internal)?;
    if let Some(cache_key) = cache_key.as_ref().filter(|_| whole) {
        state.cache.put("analysis", cache_key, body.clone(), CACHE_LIFETIME).await;
    }
    Ok(json_response(body))
}

/// Part of the cache key: another program version may compute another analysis.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const CACHE_LIFETIME: Duration = Duration::from_hours(24);

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
    let place = state.place(&org).await?;
    let roast = state.roast(&org, &id).await?;
    let mut profile: Option<RoastProfile> = None;
    if let Some(id) = params.get("profileId") {
        let found = state.ingestion.get(&org, &["profiles", id], &[]).await?;
        profile = Some(found.ok_or(ApiError::NotFound("profile"))?);
    }
    Ok(WithoutNulls(compute(&place, move || roast.prediction(profile.as_ref(), now)).await?))
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
    let place = state.place(&org).await?;
    let this = state.roast(&org, &id).await?;
    let other = state.roast(&org, reference).await?;
    let result = compute(&place, move || {
        let (curve, marks) = (this.curve(), this.marks());
        let (other_curve, other_marks) = (other.curve(), other.marks());
        compare::compare((&curve, &marks), (&other_curve, &other_marks), align)
    });
    let comparison = result.await?.ok_or_else(|| {
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
    let place = state.place(&org).await?;
    let (mut analyses, mut sessions, mut roasts) = (Vec::new(), Vec::new(), Vec::new());
    for summary in summaries {
        let id = summary.session_id.as_str();
        let Some(roast) = LoadedRoast::read(&state.ingestion, &org, id).await? else { continue };
        if let Some(analysis) = compute(&place, move || roast.analysis()).await? {
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
    let since = request.now().minus_ms(days.saturating_mul(86_400_000));
    let (roasts, truncated) = fleet::read(&state.ingestion, &request.org, since).await?;
    Ok(Json(fleet::count(&roasts, truncated, since, days as f64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_few_requests_analyse_roasts_at_once() {
        let secret = service::secret::Secret::default();
        let ingestion = ServiceClient::new("ingestion", "http://127.0.0.1:1", &secret).unwrap();
        let clock: Clock = Arc::new(|| contract::EpochMs(0));
        let state = State::new(ingestion, Cache::new(None), clock);
        let [acme, calm, third] = ["acme", "calm", "third"].map(|name| OrgId::new(name).unwrap());
        let mut places = Vec::new();
        for _ in 0..AT_ONCE_OF_ORG_MAX {
            places.push(state.place(&acme).await.unwrap());
        }
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, state.place(&acme)).await.is_err(), "it waits");
        places.push(tokio::time::timeout(soon, state.place(&calm)).await.unwrap().unwrap());
        assert!(tokio::time::timeout(soon, state.place(&third)).await.is_err(), "it waits");
        places.pop();
        assert!(tokio::time::timeout(soon, state.place(&third)).await.unwrap().is_ok());
        drop(places);
        assert!(state.place(&calm).await.is_ok());
        assert_eq!(state.places_of_orgs.lock().unwrap().len(), 1, "the others are forgotten");

        let place = state.place(&acme).await.unwrap();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = compute(&place, move || ended.recv().is_ok());
        assert!(tokio::time::timeout(soon, work).await.is_err(), "the client disconnects");
        drop(place);
        assert_eq!(state.places.available_permits(), AT_ONCE_MAX - 1, "the work goes on");
        end.send(()).unwrap();
    }
}
