//! The route for a session's telemetry points.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use contract::point::TelemetryPoint;
use contract::session::Completeness;
use contract::{MachineId, OrgId};
use http_stack::OrgRequest;
use http_stack::error::ApiError;

use super::SharedState;
use crate::row_json;
use crate::store::{FrameRow, IngestStore, SessionRow};

/// The maximum number of points in a response.
const POINTS_MAX: i64 = 100_000;
/// How long the points of a complete session stay in the cache.
const POINTS_TTL: Duration = Duration::from_hours(1);
/// Frames read at a time, so that a window late in a long roast does not load all of it at once.
const FRAMES_A_PAGE: usize = 2_000;

/// The part of a session's points that a request asks for.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// Elapsed seconds, both included.
    from: Option<f64>,
    to: Option<f64>,
    limit: i64,
}

impl Window {
    fn is_whole_session(&self) -> bool {
        self.from.is_none() && self.to.is_none() && self.limit == POINTS_MAX
    }

    fn contains(&self, point: &TelemetryPoint) -> bool {
        let t = point.elapsed_seconds;
        self.from.is_none_or(|from| t >= from) && self.to.is_none_or(|to| t <= to)
    }
}

/// Returns a session's telemetry points, ordered by elapsed time.
#[utoipa::path(get, path = "/sessions/{id}/telemetry", tag = "sessions",
    params(("id" = String, Path), ("limit" = Option<i64>, Query),
           ("fromElapsedSeconds" = Option<f64>, Query), ("toElapsedSeconds" = Option<f64>, Query)),
    responses((status = 200, body = Vec<TelemetryPoint>), (status = 400)))]
pub async fn session_telemetry(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (params, org) = (&request.params, &request.org);
    let window = Window {
        limit: params.limit(2_000, POINTS_MAX)?,
        from: params.decimal("fromElapsedSeconds")?,
        to: params.decimal("toElapsedSeconds")?,
    };
    let Some(row) = shared.store.session(org, &id).await? else {
        return Ok(json_response(Bytes::from_static(b"[]")));
    };
    // If the replica holds the session as complete, none of its frames is missing there.
    let replica = shared.store.for_reading();
    let on_replica = replica.session(org, &id).await.ok().flatten().is_some_and(|there| {
        there.completeness == Completeness::Complete.as_str() && there.last_seq == row.last_seq
    });
    let store = if on_replica { &replica } else { &shared.store };
    // The points of a complete session no longer change, unless the session is a different roast.
    let complete = row.completeness == Completeness::Complete.as_str();
    let key = format!("{org}/{id}/{}/{:?}/{:?}", row.started_ms, row.first_seq, row.last_seq);
    // Only the whole roast, as our services request it: there are too many windows to cache.
    let cacheable = complete && window.is_whole_session();
    if cacheable && let Some(body) = shared.cache.get("points", &key).await {
        return Ok(json_response(body));
    }
    let points = match points(store, org, &row, window).await {
        Err(_) if on_replica => points(&shared.store, org, &row, window).await?,
        read => read?,
    };
    let body = Bytes::from(serde_json::to_vec(&points).map_err(ApiError::internal)?);
    if cacheable && !points.is_empty() {
        shared.cache.put("points", &key, body.clone(), POINTS_TTL).await;
    }
    Ok(json_response(body))
}

/// Returns a response whose body is already serialised JSON.
fn json_response(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn points(
    store: &IngestStore,
    org: &OrgId,
    row: &SessionRow,
    window: Window,
) -> Result<Vec<TelemetryPoint>, ApiError> {
    let machine = MachineId::new(row.machine_id.clone()).map_err(ApiError::internal)?;
    let limit = usize::try_from(window.limit).unwrap_or(usize::MAX);
    let complete = row.completeness == Completeness::Complete.as_str();
    let mut points = Vec::new();
    // A session without an end ends where the next one of its chain begins.
    let (mut first, last) = store.sample_range(row).await?;
    let mut page = roast_page(store, org, row, complete, first, last).await?;
    if page.is_empty() && !complete {
        // Retention has dropped its frames: read the curve.
        page = roast_page(store, org, row, true, first, last).await?;
    }
    // A publisher's events are frames without samples.
    let sampled = page.iter().find(|frame| !frame.is_empty());
    let shift_s = sampled.map_or(0.0, |frame| row_json::elapsed_shift_s(frame, row, first));
    while let Some(end) = page.last().map(|f| f.seq_at(f.len())) {
        for published in page.iter_mut().filter_map(|frame| frame.published.as_mut()) {
            published.shift_elapsed(shift_s);
        }
        let read = page
            .iter()
            .flat_map(|f| row_json::telemetry_points(f, &machine, Some(row), first, last));
        points.extend(read.map(|(_, point)| point).filter(|point| window.contains(point)));
        if page.len() == 1 && page[0].number == 0
            || points.len() >= limit
            || end <= first
            || page.len() < FRAMES_A_PAGE
        {
            break;
        }
        first = end;
        page = roast_page(store, org, row, false, first, last).await?;
    }
    points.truncate(limit);
    Ok(points)
}

/// Reads the next frames of a session, or its curve as one long frame if `as_curve` is set and the
/// session has a curve.
async fn roast_page(
    store: &IngestStore,
    org: &OrgId,
    row: &SessionRow,
    as_curve: bool,
    first: i64,
    last: i64,
) -> Result<Vec<FrameRow>, ApiError> {
    if as_curve && let Some(curve) = store.curve(org, &row.session_id).await? {
        return Ok(vec![curve]);
    }
    let limit = i64::try_from(FRAMES_A_PAGE).unwrap_or(i64::MAX);
    Ok(store.frames_of_range(org, row.chain_no, first, last, limit).await?)
}
