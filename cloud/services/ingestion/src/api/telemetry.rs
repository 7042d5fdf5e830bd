//! The route for a session's telemetry points.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use contract::point::TelemetryPoint;
use contract::session::Completeness;
use contract::{MachineId, OrgId};
use http_stack::OrgRequest;
use http_stack::error::ApiError;

use super::{ReadPace, SharedState};
use crate::row_json;
use crate::store::{Extras, FrameRow, IngestStore, SessionRow, end_of};

/// The maximum number of points in a response.
const POINTS_MAX: i64 = 100_000;
/// The maximum size of a response: 100 000 points with the usual channels. Points with many extra
/// channels are cut off here, and the header `x-truncated` says so.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long the points of a complete session stay in the cache.
const POINTS_TTL: Duration = Duration::from_hours(1);
/// Frames read at a time, so that a window late in a long roast does not load all of it at once.
const FRAMES_A_PAGE: i64 = 2_000;
const TRUNCATED: HeaderName = HeaderName::from_static("x-truncated");

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

/// Returns a session's telemetry points, ordered by elapsed time. A response of 32 MiB is cut off
/// and has the header `x-truncated`: read the rest with `fromElapsedSeconds`.
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
    let turn = shared.pace.request_turn(org).await?;
    let points = match points(store, &shared.pace, org, &row, window).await {
        Err(_) if on_replica => points(&shared.store, &shared.pace, org, &row, window).await?,
        read => read?,
    };
    drop(turn);
    let (empty, truncated) = (points.count == 0, points.truncated);
    let body = Bytes::from(points.finish());
    if truncated {
        return Ok(
            ([(TRUNCATED, HeaderValue::from_static("true"))], json_response(body)).into_response()
        );
    }
    if cacheable && !empty {
        shared.cache.put("points", &key, body.clone(), POINTS_TTL).await;
    }
    Ok(json_response(body))
}

/// Returns a response whose body is already serialised JSON.
fn json_response(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The points of a response, as the text of a JSON array.
struct PointsJson {
    text: Vec<u8>,
    count: usize,
    points_max: usize,
    bytes_max: usize,
    /// Whether points were left out because of their size.
    truncated: bool,
}

impl PointsJson {
    const fn new(points_max: usize, bytes_max: usize) -> Self {
        Self { text: Vec::new(), count: 0, points_max, bytes_max, truncated: false }
    }

    /// Appends a point. Returns `false` if there is no place for it or for further ones.
    fn push(&mut self, point: &TelemetryPoint) -> Result<bool, ApiError> {
        if self.count >= self.points_max {
            return Ok(false);
        }
        let before = self.text.len();
        self.text.push(if self.count == 0 { b'[' } else { b',' });
        serde_json::to_writer(&mut self.text, point).map_err(ApiError::internal)?;
        if self.text.len() > self.bytes_max {
            self.text.truncate(before);
            self.truncated = true;
            return Ok(false);
        }
        self.count = self.count.saturating_add(1);
        Ok(true)
    }

    fn finish(mut self) -> Vec<u8> {
        if self.count == 0 {
            self.text.push(b'[');
        }
        self.text.push(b']');
        self.text
    }
}

async fn points(
    store: &IngestStore,
    pace: &ReadPace,
    org: &OrgId,
    row: &SessionRow,
    window: Window,
) -> Result<PointsJson, ApiError> {
    let machine = MachineId::new(row.machine_id.clone()).map_err(ApiError::internal)?;
    let limit = usize::try_from(window.limit).unwrap_or(usize::MAX);
    let complete = row.completeness == Completeness::Complete.as_str();
    let mut points = PointsJson::new(limit, BODY_BYTES_MAX);
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
    while let Some(end) = end_of(&page) {
        for published in page.iter_mut().filter_map(|frame| frame.published.as_mut()) {
            published.shift_elapsed(shift_s);
        }
        for frame in &page {
            let extras = Extras::parse(frame.extras.as_deref());
            pace.wait_in_request(org, frame.cells(extras.len())).await?;
            let frame = (frame, &extras);
            for (_, point) in row_json::telemetry_points(frame, &machine, Some(row), first, last) {
                if window.contains(&point) && !points.push(&point)? {
                    return Ok(points);
                }
            }
        }
        let is_curve = page.len() == 1 && page[0].number == 0;
        if is_curve || end <= first || end > last {
            break;
        }
        first = end;
        page = roast_page(store, org, row, false, first, last).await?;
    }
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
    Ok(store.frames_of_range(org, row.chain_no, first, last, FRAMES_A_PAGE).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::EpochMs;
    use contract::point::ExtraValue;

    fn point(extras: usize) -> TelemetryPoint {
        let extra = |n| (format!("channel{n}"), ExtraValue::Number(1.5));
        TelemetryPoint {
            ts: EpochMs(1_760_000_000_000),
            machine_id: MachineId::new("r-1").unwrap(),
            batch_id: None,
            elapsed_seconds: 1.5,
            bt_c: Some(150.0),
            et_c: None,
            ror_c_per_min: None,
            gas_pct: None,
            fan_pct: None,
            drum_rpm: None,
            ambient_c: None,
            extras: (0..extras).map(extra).collect(),
        }
    }

    #[test]
    fn points_are_written_as_a_json_array_up_to_the_limit() {
        assert_eq!(PointsJson::new(5, 1_000).finish(), b"[]");
        let mut points = PointsJson::new(2, 10_000);
        assert!(points.push(&point(0)).unwrap());
        assert!(points.push(&point(1)).unwrap());
        assert!(!points.push(&point(0)).unwrap());
        assert!(!points.truncated);
        let read: Vec<TelemetryPoint> = serde_json::from_slice(&points.finish()).unwrap();
        assert_eq!(read, [point(0), point(1)]);
    }

    #[test]
    fn wide_points_are_cut_off_by_their_size() {
        let mut points = PointsJson::new(100_000, 10_000);
        while points.push(&point(32)).unwrap() {}
        assert!(points.truncated && points.count > 5, "{}", points.count);
        let count = points.count;
        let text = points.finish();
        assert!(text.len() <= 10_001);
        assert_eq!(serde_json::from_slice::<Vec<TelemetryPoint>>(&text).unwrap().len(), count);
    }
}
