//! Routes for what people and workers write about sessions: metadata, notes, event overrides and
//! reports.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::OrgId;
use contract::annotations::{
    EventOverride, NewNote, NewReport, RoastReport, SessionMeta, SessionNote, TrustMetrics,
};
use contract::mission::POST_ROAST;
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::Params;
use serde::Deserialize;

use super::SharedState;
use super::sessions::{find_session, summary};
use crate::store::{ChangedBy, IngestStore, SessionRow};

/// The most event overrides of a request.
pub const OVERRIDES_MAX: usize = 32;
/// Maximum sizes in bytes of JSON: of one annotation by a person, and of a report, which holds
/// several of them.
pub const WRITTEN_MAX: usize = 32 * 1024;
pub const REPORT_MAX: usize = 960 * 1024;
const OFFSET_MAX: i64 = 1_000_000;

/// Returns the author and the time of the change that a request makes.
pub(super) fn changed_by(request: &OrgRequest) -> ChangedBy<'_> {
    ChangedBy { actor: &request.caller.actor, now: request.now() }
}

/// Checks that a value is at most `most` bytes of JSON and has no NUL, which PostgreSQL's text type
/// cannot hold.
pub(super) fn check_size(value: &impl serde::Serialize, most: usize) -> Result<(), ApiError> {
    let text = serde_json::to_string(value).map_err(ApiError::internal)?;
    if text.len() > most {
        return Err(ApiError::TooLarge(format!("more than {most} bytes")));
    }
    if text.contains("\\u0000") {
        return Err(ApiError::Invalid("the body contains a NUL character; remove it".to_owned()));
    }
    Ok(())
}

fn page(params: &Params, default: i64) -> Result<(i64, i64), ApiError> {
    Ok((params.limit(default, 100)?, params.number("offset", 0, 0, OFFSET_MAX)?))
}

/// Returns a session's metadata (what was roasted). The `ETag` is its version.
#[utoipa::path(get, path = "/sessions/{id}/meta", tag = "written", params(("id" = String, Path)),
    responses((status = 200, body = SessionMeta), (status = 404)))]
pub async fn meta(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    find_session(&shared.store, &request.org, &id).await?;
    let found = shared.store.meta(&request.org, &id).await?;
    Ok(([(header::ETAG, etag(found.version))], Json(found.value)).into_response())
}

pub(super) fn etag(version: i64) -> String {
    format!("\"{version}\"")
}

/// Replaces a session's metadata. With `If-Match`, only if the stored version is the one it names;
/// else 412.
#[utoipa::path(put, path = "/sessions/{id}/meta", tag = "written", request_body = SessionMeta,
    params(("id" = String, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = SessionMeta), (status = 400), (status = 403), (status = 404),
              (status = 412)))]
pub async fn set_meta(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
    headers: HeaderMap,
    JsonBody(meta): JsonBody<SessionMeta>,
) -> Result<Response, ApiError> {
    const TRIES: u32 = 5;
    request.caller.require_role(Role::Operator)?;
    check_size(&meta, WRITTEN_MAX)?;
    find_session(&shared.store, &request.org, &id).await?;
    let faster = || ApiError::Precondition("changed meanwhile; read it again and retry".to_owned());
    let if_match = headers.get(header::IF_MATCH);
    for _ in 0..TRIES {
        let before = shared.store.meta(&request.org, &id).await?.version;
        if if_match.is_some_and(|if_match| if_match.as_bytes() != etag(before).as_bytes()) {
            return Err(faster());
        }
        let set =
            shared.store.set_meta(&request.org, &id, before, &meta, changed_by(&request)).await?;
        if let Some(version) = set {
            return Ok(([(header::ETAG, etag(version))], Json(meta)).into_response());
        }
    }
    Err(faster())
}

/// Lists a session's notes, newest first.
#[utoipa::path(get, path = "/sessions/{id}/notes", tag = "written",
    params(("id" = String, Path), ("limit" = Option<i64>, Query), ("offset" = Option<i64>, Query)),
    responses((status = 200, body = Vec<SessionNote>), (status = 400), (status = 404)))]
pub async fn notes(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<Vec<SessionNote>>, ApiError> {
    find_session(&shared.store, &request.org, &id).await?;
    Ok(Json(shared.store.notes(&request.org, &id, page(&request.params, 50)?).await?))
}

/// Adds a note to a session: a remark, or how the roast tasted.
#[utoipa::path(post, path = "/sessions/{id}/notes", tag = "written", request_body = NewNote,
    params(("id" = String, Path)),
    responses((status = 201, body = SessionNote), (status = 400), (status = 403), (status = 404)))]
pub async fn add_note(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(note): JsonBody<NewNote>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let problems = note.problems();
    if !problems.is_empty() {
        let issues = problems.iter().map(|(field, problem)| Issue::new(field, problem));
        return Err(ApiError::Issues(issues.collect()));
    }
    check_size(&note, WRITTEN_MAX)?;
    find_session(&shared.store, &request.org, &id).await?;
    let note = SessionNote {
        note_id: format!("N-{id}-{}-{}", random()?, request.now().0),
        created_at: request.now(),
        actor: Some(request.caller.actor.clone()),
        note,
    };
    shared.store.add_note(&request.org, &id, &note, changed_by(&request)).await?;
    Ok((StatusCode::CREATED, Json(note)).into_response())
}

fn random() -> Result<String, ApiError> {
    let bytes: [u8; 4] = trust::random().map_err(ApiError::internal)?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

/// Lists a session's event overrides: manually set times of events.
#[utoipa::path(get, path = "/sessions/{id}/events/overrides", tag = "written",
    params(("id" = String, Path)),
    responses((status = 200, body = Vec<EventOverride>), (status = 404)))]
pub async fn overrides(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<Vec<EventOverride>>, ApiError> {
    find_session(&shared.store, &request.org, &id).await?;
    Ok(Json(shared.store.overrides(&request.org, &id).await?))
}

/// A list of overrides. Clients send either form.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Overrides {
    Wrapped { overrides: Vec<EventOverride> },
    Bare(Vec<EventOverride>),
}

/// Sets event overrides, one for each event type. Overrides of other event types are kept.
#[utoipa::path(put, path = "/sessions/{id}/events/overrides", tag = "written",
    request_body = Overrides, params(("id" = String, Path)),
    responses((status = 200, body = Vec<EventOverride>), (status = 400), (status = 403),
              (status = 404)))]
pub async fn set_overrides(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(given): JsonBody<Overrides>,
) -> Result<Json<Vec<EventOverride>>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let (Overrides::Wrapped { overrides: mut given } | Overrides::Bare(mut given)) = given;
    if given.len() > OVERRIDES_MAX {
        return Err(ApiError::Invalid(format!("overrides: more than {OVERRIDES_MAX}")));
    }
    // All writers use the same order, so that two requests never deadlock.
    given.sort_by_key(|one| one.event_type);
    let row = find_session(&shared.store, &request.org, &id).await?;
    let longest = roast_length_s(&shared.store, &request.org, &row).await?;
    let mut issues = Vec::new();
    for (i, one) in given.iter_mut().enumerate() {
        let s = one.elapsed_seconds;
        if !s.is_finite() || s < 0.0 || longest.is_some_and(|longest| s > longest) {
            let problem = match longest {
                Some(longest) => format!("not between 0 and {longest:.1} s, the end of the roast"),
                None => "not a number of at least 0".to_owned(),
            };
            issues.push(Issue::new(&format!("overrides.{i}.elapsedSeconds"), problem));
        }
        if !one.event_type.in_legacy() {
            let problem = "not CHARGE, TP, FC, DEVELOPMENT_START, DROP or NOTE";
            issues.push(Issue::new(&format!("overrides.{i}.eventType"), problem));
        }
        one.updated_at.get_or_insert(request.now());
        one.actor = Some(request.caller.actor.clone());
    }
    if !issues.is_empty() {
        return Err(ApiError::Issues(issues));
    }
    check_size(&given, WRITTEN_MAX)?;
    shared.store.set_overrides(&request.org, &id, &given, changed_by(&request)).await?;
    Ok(Json(shared.store.overrides(&request.org, &id).await?))
}

/// Returns the length of a roast in seconds: to its DROP, else to its newest sample.
async fn roast_length_s(
    store: &IngestStore,
    org: &OrgId,
    row: &SessionRow,
) -> Result<Option<f64>, ApiError> {
    if let Some(dropped) = row.drop_s {
        return Ok(Some(dropped));
    }
    let newest = store.newest_frame(org, row.chain_no).await?;
    Ok(newest.and_then(|frame| {
        let seconds = row.elapsed_ms(&frame, frame.len().checked_sub(1)?) as f64 / 1000.0;
        (seconds >= 0.0).then_some(seconds)
    }))
}

/// Lists a session's reports, newest first.
#[utoipa::path(get, path = "/sessions/{id}/reports", tag = "written",
    params(("id" = String, Path), ("limit" = Option<i64>, Query), ("offset" = Option<i64>, Query)),
    responses((status = 200, body = Vec<RoastReport>), (status = 400), (status = 404)))]
pub async fn reports(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<Vec<RoastReport>>, ApiError> {
    find_session(&shared.store, &request.org, &id).await?;
    Ok(Json(shared.store.reports(&request.org, &id, page(&request.params, 20)?).await?))
}

/// Returns the post-roast report. Returns 404 if it does not exist yet.
#[utoipa::path(get, path = "/sessions/{id}/reports/latest", tag = "written",
    params(("id" = String, Path)),
    responses((status = 200, body = RoastReport), (status = 404)))]
pub async fn latest_report(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<RoastReport>, ApiError> {
    find_session(&shared.store, &request.org, &id).await?;
    let found = shared.store.report_of_kind(&request.org, &id, POST_ROAST).await?;
    found.map(Json).ok_or(ApiError::NotFound("report"))
}

/// Adds a report. Returns 200 instead of 201 if a report of this kind exists: the existing one is
/// kept and returned.
#[utoipa::path(post, path = "/sessions/{id}/reports", tag = "written", request_body = NewReport,
    params(("id" = String, Path)),
    responses((status = 201, body = RoastReport), (status = 200, body = RoastReport), (status = 400),
              (status = 403), (status = 404), (status = 409)))]
pub async fn add_report(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(mut report): JsonBody<NewReport>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    check_size(&report, REPORT_MAX)?;
    let valid_length = |text: &str| (1..=200).contains(&text.len());
    if !valid_length(&report.report_kind)
        || report.report_id.as_deref().is_some_and(|id| !valid_length(id))
    {
        return Err(ApiError::Invalid("reportId, reportKind: not 1 to 200 bytes".to_owned()));
    }
    if report.markdown.is_empty() {
        return Err(ApiError::Issues(vec![Issue::new("markdown", "is empty")]));
    }
    let row = find_session(&shared.store, &request.org, &id).await?;
    let session = summary(&shared.store, &request.org, row).await?;
    let new_id = format!("R-{id}-{}-{}", request.now().compact(), random()?);
    report.report_id.get_or_insert(new_id);
    let checked = session
        .verified_points
        .saturating_add(session.unsigned_points)
        .saturating_add(session.failed_points);
    report.trust_metrics = Some(TrustMetrics {
        total_points: session.telemetry_points,
        verified_points: session.verified_points,
        unsigned_points: session.unsigned_points,
        failed_points: session.failed_points,
        verification_rate: session.verified_points as f64 / checked.max(1) as f64,
        device_ids: session.device_ids.clone(),
    });
    let report = RoastReport {
        session_id: id,
        origin: session.origin,
        created_at: request.now(),
        actor: Some(request.caller.actor.clone()),
        report,
    };
    let stored = shared.store.add_report(&request.org, &report, changed_by(&request)).await?;
    let (stored, new) =
        stored.ok_or_else(|| ApiError::Conflict("another report has this reportId".to_owned()))?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(stored)).into_response())
}

/// Returns one report.
#[utoipa::path(get, path = "/reports/{reportId}", tag = "written", params(("reportId" = String, Path)),
    responses((status = 200, body = RoastReport), (status = 404)))]
pub async fn report(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<RoastReport>, ApiError> {
    let found = shared.store.report(&request.org, &id).await?;
    found.map(Json).ok_or(ApiError::NotFound("report"))
}
