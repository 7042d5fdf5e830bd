//! Ingestion's HTTP API: `docs/reference/services.md`, and upstream Sim-Corp's routes under their
//! upstream names.

mod annotations;
mod profiles;
mod stream;

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::FromRef;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};

use axum::response::{IntoResponse as _, Response};
use cache::Cache;
use contract::point::{RoastEvent, TelemetryPoint};
use contract::session::{
    Completeness, MachineStatus, RoastSession, RoastSessionSummary, SessionStatus,
};
use contract::{Ack, Channel, EpochMs, MachineId, OrgId, Origin, SessionId, SiteId};
use http_stack::Limits;
use http_stack::auth::Caller;
use http_stack::error::ApiError;
use http_stack::query::page;
use service::openapi::with_examples;
use service::shutdown::CancellationToken;
use tokio::sync::oneshot;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use ::database::StoreError;

use crate::live_tail::{self, Tail};
use crate::pipeline::{Lane, Message, Pipeline, Reply};
use crate::store::{FrameRow, IngestStore, SessionFilter, SessionRow};
use service::clock::Clock;

/// The state that all handlers share.
#[derive(Clone)]
pub struct SharedState {
    pub store: IngestStore,
    pub pipeline: Pipeline,
    pub tail: Tail,
    pub clock: Clock,
    pub stop: CancellationToken,
    pub limits: Limits,
    pub cache: Cache,
}

/// The state of one request: the shared state, the caller and the organisation that the request
/// concerns.
#[derive(Clone)]
pub struct RequestState {
    pub store: IngestStore,
    pub pipeline: Pipeline,
    pub tail: Tail,
    pub stop: CancellationToken,
    pub now: EpochMs,
    pub caller: Caller,
    pub org: OrgId,
    pub limits: Limits,
    pub cache: Cache,
}

impl FromRequestParts<SharedState> for RequestState {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &SharedState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, shared).await?;
        let params = http_stack::query::Params::from_request_parts(parts, shared).await?;
        let org = caller.resolve_org(params.get("orgId"))?;
        let SharedState { store, pipeline, tail, clock, stop, limits, cache } = shared.clone();
        Ok(Self { store, pipeline, tail, stop, now: clock(), caller, org, limits, cache })
    }
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
        .routes(routes!(post_frames))
        .routes(routes!(sessions))
        .routes(routes!(session))
        .routes(routes!(session_telemetry))
        .routes(routes!(session_events))
        .routes(routes!(machines))
        .routes(routes!(recent_telemetry))
        .routes(routes!(recent_events))
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

/// Parses a number from a query parameter. An empty parameter counts as absent.
fn number(text: Option<&String>, name: &str, default: i64, max: i64) -> Result<i64, ApiError> {
    match text.map(String::as_str) {
        None | Some("") => Ok(default),
        Some(text) => match text.parse::<i64>() {
            Ok(value) if value >= 0 => Ok(value.min(max)),
            _ => Err(ApiError::Invalid(format!("{name}: not a number of at least 0"))),
        },
    }
}

fn seconds(text: Option<&String>, name: &str) -> Result<Option<f64>, ApiError> {
    text.filter(|text| !text.is_empty())
        .map(|text| text.parse::<f64>().ok().filter(|value| value.is_finite()))
        .map(|value| value.ok_or_else(|| ApiError::Invalid(format!("{name}: not a number"))))
        .transpose()
}

/// Receives signed frames over HTTP: one `COSE_Sign1` message, or several concatenated.
#[utoipa::path(post, path = "/v1/frames", tag = "frames",
    request_body(content = Vec<u8>, content_type = "application/cose"),
    responses((status = 200, description = "The result for each frame (Ack)", body = Vec<Object>),
              (status = 400, description = "Not a sequence of signed frames"),
              (status = 429, description = "Too many frames from this machine")))]
async fn post_frames(state: RequestState, body: Bytes) -> Result<Response, ApiError> {
    const FRAMES_MAX: usize = 64;
    let mut messages = Vec::new();
    let mut rest = &body[..];
    while !rest.is_empty() {
        let length = contract::frame::item_length(rest)
            .map_err(|error| ApiError::Invalid(format!("frame {}: {error}", messages.len() + 1)))?;
        let (message, after) = rest.split_at(length);
        let claim = trust::SignedMessage::parse(message)
            .map_err(|error| ApiError::Invalid(format!("frame {}: {error}", messages.len() + 1)))?;
        let frame = contract::Frame::decode(claim.payload())
            .map_err(|error| ApiError::Invalid(format!("frame {}: {error}", messages.len() + 1)))?;
        if frame.origin.org != state.org {
            return Err(ApiError::Forbidden(
                "the frame belongs to another organisation".to_owned(),
            ));
        }
        let taken = state.limits.take(&[state.limits.of_device(&frame.origin.to_string())]).await;
        if !taken.allowed {
            state.limits.count_refusal(&taken);
            return Ok(http_stack::too_many_requests(&taken)); // no frame of this body has been stored
        }
        messages.push((frame.origin, message.to_vec()));
        if messages.len() > FRAMES_MAX {
            return Err(ApiError::TooLarge(format!("more than {FRAMES_MAX} frames")));
        }
        rest = after;
    }
    let mut waiting = Vec::with_capacity(messages.len());
    for (origin, message) in messages {
        let (reply, answer) = oneshot::channel();
        let message = Message::Frame(message);
        if !state.pipeline.send(Lane::Live, origin, message, Reply::Request(reply)).await {
            return Err(ApiError::Unavailable("stopping".to_owned()));
        }
        waiting.push(answer);
    }
    let mut acks: Vec<Ack> = Vec::new();
    for answer in waiting {
        // No answer: the frame waits for other frames of its chain, and the edge resends it.
        let Ok(ack) = answer.await else { continue };
        acks.push(ack);
    }
    Ok(Json(acks).into_response())
}

type Params = Query<BTreeMap<String, String>>;

/// Lists sessions, newest first.
#[utoipa::path(get, path = "/sessions", tag = "sessions",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("status" = Option<String>, Query),
           ("profileName" = Option<String>, Query, description = "Matches meta.roastProfileName"),
           ("limit" = Option<i64>, Query, description = "0 to 500; default 50"),
           ("offset" = Option<i64>, Query, description = "At most 10000; beyond that use `cursor`"),
           ("cursor" = Option<String>, Query, description = "From the header x-next-cursor")),
    responses((status = 200, body = Vec<RoastSessionSummary>), (status = 400)))]
async fn sessions(state: RequestState, Query(params): Params) -> Result<Response, ApiError> {
    let get = |name: &str| params.get(name).filter(|text| !text.is_empty());
    let status = match get("status").map(String::as_str) {
        None => None,
        Some(text) => match SessionStatus::parse(text) {
            Some(status) => Some(status.as_str()),
            None => return Err(ApiError::Invalid("status: not ACTIVE or CLOSED".to_owned())),
        },
    };
    let filter = SessionFilter {
        site: get("siteId").cloned(),
        machine: get("machineId").cloned(),
        profile: get("profileName").cloned(),
        status,
        limit: number(get("limit"), "limit", 50, 500)?,
        offset: http_stack::query::parse_within(
            get("offset").map(String::as_str),
            "offset",
            0,
            0,
            10_000,
        )?,
        after: http_stack::query::decode_cursor(get("cursor").map(String::as_str))?,
    };
    let rows = match state.store.for_reading().sessions(&state.org, &filter).await {
        Ok(rows) => rows,
        // A replica that has just gone away still counts as fresh: read from the primary.
        Err(_) => state.store.sessions(&state.org, &filter).await?,
    };
    let mut summaries = Vec::with_capacity(rows.len());
    for row in rows {
        summaries.push(summary(&state, row).await?);
    }
    Ok(page(summaries, filter.limit, |last: &RoastSessionSummary| {
        http_stack::query::encode_cursor(last.started_at.0, last.session_id.as_str())
    }))
}

async fn summary(state: &RequestState, row: SessionRow) -> Result<RoastSessionSummary, ApiError> {
    let damaged = |problem: &str| ApiError::internal(StoreError::row("reading a session", problem));
    let (points, verified, unsigned, max_bt_c) = if let Some(points) = row.points {
        (points, row.verified_points.unwrap_or(0), row.unsigned_points.unwrap_or(0), row.max_bt_c)
    } else {
        let totals = state.store.totals(&state.org, &row).await?;
        (totals.points, totals.verified, totals.unsigned, totals.max_bt_c)
    };
    let duration_seconds = row.ended_ms.map(|ended| (ended - row.started_ms) as f64 / 1000.0);
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(RoastSessionSummary {
        origin: Origin {
            org: state.org.clone(),
            site: SiteId::new(row.site_id).map_err(|_| damaged("site"))?,
            machine: MachineId::new(row.machine_id).map_err(|_| damaged("machine"))?,
        },
        session_id: SessionId::new(row.session_id).map_err(|_| damaged("session"))?,
        started_at: EpochMs(row.started_ms),
        ended_at: row.ended_ms.map(EpochMs),
        status: SessionStatus::parse(&row.status).ok_or_else(|| damaged("status"))?,
        duration_seconds,
        fc_seconds: row.fc_s,
        drop_seconds: row.drop_s,
        max_bt_c,
        telemetry_points: count(points),
        verified_points: count(verified),
        unsigned_points: count(unsigned),
        failed_points: count(row.failed_points.unwrap_or(0)),
        device_ids: if row.kid.is_empty() { Vec::new() } else { vec![row.kid] },
        completeness: Completeness::parse(&row.completeness).unwrap_or(Completeness::Open),
    })
}

async fn find_session(state: &RequestState, id: &str) -> Result<SessionRow, ApiError> {
    let found = state.store.session(&state.org, id).await?;
    found.ok_or(ApiError::NotFound("session"))
}

/// Returns one session. The response for a closed session carries an `ETag`, which changes whenever
/// stored data about the session changes.
#[utoipa::path(get, path = "/sessions/{id}", tag = "sessions",
    params(("id" = String, Path), ("If-None-Match" = Option<String>, Header)),
    responses((status = 200, body = RoastSession), (status = 304), (status = 404)))]
async fn session(
    state: RequestState,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let row = find_session(&state, &id).await?;
    let summary = summary(&state, row).await?;
    let closed = summary.status == SessionStatus::Closed;
    let session = RoastSession { summary, meta: serde_json::Map::new() };
    if !closed {
        return Ok(Json(session).into_response());
    }
    let revision = state.store.revision(&state.org, &id).await?;
    let text = serde_json::to_string(&session).map_err(ApiError::internal)?;
    let digest = trust::sha256_digest(format!("{revision} {text}").as_bytes());
    let tag = format!("\"{}\"", &digest.to_string()[..32]);
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    if known {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], Json(session)).into_response())
}

/// Returns a session's telemetry points, ordered by elapsed time.
#[utoipa::path(get, path = "/sessions/{id}/telemetry", tag = "sessions",
    params(("id" = String, Path), ("limit" = Option<i64>, Query),
           ("fromElapsedSeconds" = Option<f64>, Query), ("toElapsedSeconds" = Option<f64>, Query)),
    responses((status = 200, body = Vec<TelemetryPoint>), (status = 400)))]
async fn session_telemetry(
    state: RequestState,
    Path(id): Path<String>,
    Query(params): Params,
) -> Result<Response, ApiError> {
    let limit = number(params.get("limit"), "limit", 2_000, POINTS_MAX)?;
    let from = seconds(params.get("fromElapsedSeconds"), "fromElapsedSeconds")?;
    let to = seconds(params.get("toElapsedSeconds"), "toElapsedSeconds")?;
    let Some(row) = state.store.session(&state.org, &id).await? else {
        return Ok(Json(Vec::<TelemetryPoint>::new()).into_response());
    };
    // If the replica holds the session as complete, none of its frames is missing there.
    let replica = state.store.for_reading();
    let whole = replica.session(&state.org, &id).await.ok().flatten().is_some_and(|there| {
        there.completeness == Completeness::Complete.as_str() && there.last_seq == row.last_seq
    });
    let mut reading = state.clone();
    if whole {
        reading.store = replica;
    }
    // The points of a complete session no longer change, unless the session is a different roast.
    let complete = row.completeness == Completeness::Complete.as_str();
    let kept =
        format!("{}/{id}/{}/{:?}/{:?}", state.org, row.started_ms, row.first_seq, row.last_seq);
    // Only the whole roast, as our services request it: there are too many windows to cache.
    let complete = complete && from.is_none() && to.is_none() && limit == POINTS_MAX;
    if complete && let Some(body) = state.cache.get("points", &kept).await {
        return Ok(json_response(body));
    }
    let points = match points(&reading, &row, limit, (from, to)).await {
        Err(_) if whole => points(&state, &row, limit, (from, to)).await?,
        read => read?,
    };
    let body = Bytes::from(serde_json::to_vec(&points).map_err(ApiError::internal)?);
    if complete && !points.is_empty() {
        state.cache.put("points", &kept, body.clone(), POINTS_KEPT).await;
    }
    Ok(json_response(body))
}

const POINTS_MAX: i64 = 100_000;
/// How long the points of a complete session stay in the cache.
const POINTS_KEPT: std::time::Duration = std::time::Duration::from_hours(1);

/// Returns a response whose body is already serialised JSON.
fn json_response(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn points(
    state: &RequestState,
    row: &SessionRow,
    limit: i64,
    (from, to): (Option<f64>, Option<f64>),
) -> Result<Vec<TelemetryPoint>, ApiError> {
    let machine = MachineId::new(row.machine_id.clone()).map_err(ApiError::internal)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let complete = row.completeness == Completeness::Complete.as_str();
    let mut points = Vec::new();
    let (mut first, last) = row.range();
    let mut page = roast_page(state, row, complete, first, last).await?;
    if page.is_empty() && !complete {
        // Retention has dropped its frames: read the curve.
        page = roast_page(state, row, true, first, last).await?;
    }
    while let Some(end) = page.last().map(|f| f.seq_at(f.len())) {
        let read =
            page.iter().flat_map(|f| live_tail::points_of(f, &machine, Some(row), first, last));
        points.extend(read.map(|(_, point)| point).filter(|point| {
            let t = point.elapsed_seconds;
            from.is_none_or(|from| t >= from) && to.is_none_or(|to| t <= to)
        }));
        if page.len() == 1 && page[0].number == 0
            || points.len() >= limit
            || end <= first
            || page.len() < FRAMES_A_PAGE
        {
            break;
        }
        first = end;
        page = roast_page(state, row, false, first, last).await?;
    }
    points.truncate(limit);
    Ok(points)
}

/// Frames read at a time, so that a window late in a long roast does not load all of it at once.
const FRAMES_A_PAGE: usize = 2_000;

/// Reads the next frames of a session, or its curve as one long frame if `as_curve` is set and the
/// session has a curve.
async fn roast_page(
    state: &RequestState,
    row: &SessionRow,
    as_curve: bool,
    first: i64,
    last: i64,
) -> Result<Vec<FrameRow>, ApiError> {
    let (store, org) = (&state.store, &state.org);
    if as_curve && let Some(curve) = store.curve(org, &row.session_id).await? {
        return Ok(vec![curve]);
    }
    let limit = i64::try_from(FRAMES_A_PAGE).unwrap_or(i64::MAX);
    Ok(store.frames_of_range(org, row.chain_no, first, last, limit).await?)
}

/// Returns a session's events, ordered by time.
#[utoipa::path(get, path = "/sessions/{id}/events", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = Vec<RoastEvent>)))]
async fn session_events(
    state: RequestState,
    Path(id): Path<String>,
) -> Result<Json<Vec<RoastEvent>>, ApiError> {
    let rows = state.store.events_of(&state.org, &id).await?;
    let events = rows
        .iter()
        .filter_map(|row| live_tail::event_of(row, &MachineId::new(row.machine_id.clone()).ok()?));
    Ok(Json(events.collect()))
}

/// Lists the organisation's machines, each with its newest sample and event.
#[utoipa::path(get, path = "/machines", tag = "machines",
    responses((status = 200, body = Vec<MachineStatus>)))]
async fn machines(state: RequestState) -> Result<Json<Vec<MachineStatus>>, ApiError> {
    let rows = state.store.machines(&state.org).await?;
    let running = live_tail::running_sessions(&state.store).await?;
    let mut statuses = Vec::with_capacity(rows.len());
    for row in rows {
        let frame = state.store.newest_frame(&state.org, row.chain_no).await?;
        let event = state.store.newest_event(&state.org, row.machine_no).await?;
        let last = frame.as_ref().and_then(|f| f.offsets_ms.len().checked_sub(1));
        let value = |channel| frame.as_ref().zip(last).and_then(|(f, i)| f.value(&channel, i));
        let session = running.get(&row.machine_no);
        let gaps: Vec<(u64, u64)> = serde_json::from_str(&row.gaps).unwrap_or_default();
        let (Ok(site), Ok(machine)) = (SiteId::new(row.site_id), MachineId::new(row.machine_id))
        else {
            continue;
        };
        statuses.push(MachineStatus {
            origin: Origin { org: state.org.clone(), site, machine },
            last_sample_at: frame.as_ref().zip(last).map(|(f, i)| f.sample_at(i)),
            last_seen_at: EpochMs(row.seen_ms),
            bt_c: value(Channel::Bt),
            et_c: value(Channel::Et),
            ror_c_per_min: value(Channel::Ror),
            session_id: session.and_then(|s| SessionId::new(s.session_id.clone()).ok()),
            session_started_at: session.map(|s| EpochMs(s.started_ms)),
            last_event: event.as_ref().and_then(|e| contract::EventKind::parse(&e.kind)),
            last_event_at: event.as_ref().map(|e| EpochMs(e.at_ms)),
            missing_frames: gaps.iter().map(|(first, last)| last - first + 1).sum(),
        });
    }
    Ok(Json(statuses))
}

/// Lists the organisation's newest telemetry points, newest first.
#[utoipa::path(get, path = "/telemetry", tag = "machines",
    params(("siteId" = Option<String>, Query), ("machineId" = Option<String>, Query),
           ("limit" = Option<i64>, Query)),
    responses((status = 200, body = Vec<TelemetryPoint>), (status = 400)))]
async fn recent_telemetry(
    state: RequestState,
    Query(params): Params,
) -> Result<Json<Vec<serde_json::Value>>, ApiError> {
    let limit = usize::try_from(number(params.get("limit"), "limit", 100, 1_000)?).unwrap_or(0);
    let wanted =
        |name: &str, found: &str| params.get(name).is_none_or(|w| w.is_empty() || w == found);
    let running = live_tail::running_sessions(&state.store).await?;
    let mut points: Vec<(EpochMs, serde_json::Value)> = Vec::new();
    for row in state.store.machines(&state.org).await? {
        if !wanted("siteId", &row.site_id) || !wanted("machineId", &row.machine_id) {
            continue;
        }
        let Ok(machine) = MachineId::new(row.machine_id.clone()) else { continue };
        let frames = state.store.newest_frames(&state.org, row.chain_no, limit).await?;
        let session = running.get(&row.machine_no);
        for frame in &frames {
            for (_, point) in live_tail::points_of(frame, &machine, session, i64::MIN, i64::MAX) {
                let ts = point.ts;
                let mut body = serde_json::to_value(point).map_err(ApiError::internal)?;
                body["orgId"] = state.org.as_str().into();
                body["siteId"] = row.site_id.clone().into();
                points.push((ts, body));
            }
        }
    }
    points.sort_by_key(|(ts, _)| std::cmp::Reverse(*ts));
    points.truncate(limit);
    Ok(Json(points.into_iter().map(|(_, body)| body).collect()))
}

/// Lists the organisation's newest events, newest first.
#[utoipa::path(get, path = "/events", tag = "machines",
    params(("siteId" = Option<String>, Query), ("machineId" = Option<String>, Query),
           ("limit" = Option<i64>, Query)),
    responses((status = 200, body = Vec<RoastEvent>), (status = 400)))]
async fn recent_events(
    state: RequestState,
    Query(params): Params,
) -> Result<Json<Vec<serde_json::Value>>, ApiError> {
    let limit = number(params.get("limit"), "limit", 100, 1_000)?;
    let wanted =
        |name: &str, found: &str| params.get(name).is_none_or(|w| w.is_empty() || w == found);
    let rows = state.store.newest_events(&state.org, limit).await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in
        rows.iter().filter(|r| wanted("siteId", &r.site_id) && wanted("machineId", &r.machine_id))
    {
        let Ok(machine) = MachineId::new(row.machine_id.clone()) else { continue };
        let Some(event) = live_tail::event_of(row, &machine) else { continue };
        let mut body = serde_json::to_value(event).map_err(ApiError::internal)?;
        body["orgId"] = state.org.as_str().into();
        body["siteId"] = row.site_id.clone().into();
        events.push(body);
    }
    Ok(Json(events))
}
