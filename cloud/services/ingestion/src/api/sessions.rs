//! Routes for sessions: the list, one session, and its events.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::point::RoastEvent;
use contract::session::{Completeness, RoastSession, RoastSessionSummary, SessionStatus};
use contract::{EpochMs, MachineId, OrgId, Origin, SessionId, SiteId, upstream_id};
use database::StoreError;
use http_stack::OrgRequest;
use http_stack::error::ApiError;
use http_stack::query;

use super::SharedState;
use crate::row_json;
use crate::store::{IngestStore, SessionFilter, SessionRow, Totals};

/// Lists sessions, newest first. `machineId` finds the sessions of all ids of an alias; each
/// session shows the present id of its machine.
#[utoipa::path(get, path = "/sessions", tag = "sessions",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("status" = Option<String>, Query),
           ("profileName" = Option<String>, Query, description = "Matches meta.roastProfileName"),
           ("limit" = Option<i64>, Query, description = "0 to 500; default 50"),
           ("offset" = Option<i64>, Query, description = "At most 10000; beyond that use `cursor`"),
           ("cursor" = Option<String>, Query, description = "From the header x-next-cursor")),
    responses((status = 200, body = Vec<RoastSessionSummary>), (status = 400)))]
pub async fn sessions(
    State(shared): State<SharedState>,
    request: OrgRequest,
) -> Result<Response, ApiError> {
    let (params, org) = (&request.params, &request.org);
    let owned = |name: &str| params.get(name).map(str::to_owned);
    let status = match params.get("status") {
        None => None,
        Some(text) => match SessionStatus::parse(text) {
            Some(status) => Some(status.as_str()),
            None => return Err(ApiError::Invalid("status: not ACTIVE or CLOSED".to_owned())),
        },
    };
    let filter = SessionFilter {
        site: params.get("siteId").map(upstream_id::searched),
        machine: params.get("machineId").map(upstream_id::searched),
        profile: owned("profileName"),
        status,
        limit: params.limit(50, 500)?,
        offset: params.number("offset", 0, 0, 10_000)?,
        after: params.cursor()?,
    };
    let rows = match shared.store.for_reading().sessions(org, &filter).await {
        Ok(rows) => rows,
        // A replica that has just gone away still counts as fresh: read from the primary.
        Err(_) => shared.store.sessions(org, &filter).await?,
    };
    let names = shared.store.machine_names(org).await?;
    let mut summaries = Vec::with_capacity(rows.len());
    for row in rows {
        let mut summary = summary(&shared.store, org, row).await?;
        summary.machine_name = names.present(&mut summary.origin);
        summaries.push(summary);
    }
    Ok(query::page(summaries, filter.limit, |last: &RoastSessionSummary| {
        query::encode_cursor(last.started_at.0, last.session_id.as_str())
    }))
}

/// Returns a stored session as clients read it.
pub(super) async fn summary(
    store: &IngestStore,
    org: &OrgId,
    row: SessionRow,
) -> Result<RoastSessionSummary, ApiError> {
    let damaged = |problem: &str| ApiError::internal(StoreError::row("reading a session", problem));
    let (totals, mut kids) = if let Some(points) = row.points {
        let totals = Totals {
            points,
            verified: row.verified_points.unwrap_or(0),
            unsigned: row.unsigned_points.unwrap_or(0),
            max_bt_c: row.max_bt_c,
        };
        (totals, BTreeSet::new())
    } else {
        store.running_totals(org, &row).await?
    };
    let (duration_seconds, ended_at) = (row.duration_s(), row.ended());
    if !row.kid.is_empty() {
        kids.insert(row.kid);
    }
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(RoastSessionSummary {
        origin: Origin {
            org: org.clone(),
            site: SiteId::new(row.site_id).map_err(|_| damaged("site"))?,
            machine: MachineId::new(row.machine_id).map_err(|_| damaged("machine"))?,
        },
        machine_name: None,
        session_id: SessionId::new(row.session_id).map_err(|_| damaged("session"))?,
        started_at: EpochMs(row.started_ms),
        started_at_estimated: row.start_estimated == 1 || row.begun_before > 0,
        begun_before: row.begun_before > 0,
        ended_at,
        status: SessionStatus::parse(&row.status).ok_or_else(|| damaged("status"))?,
        duration_seconds,
        fc_seconds: row.fc_s,
        drop_seconds: row.drop_s,
        max_bt_c: totals.max_bt_c,
        telemetry_points: count(totals.points),
        verified_points: count(totals.verified),
        unsigned_points: count(totals.unsigned),
        failed_points: count(row.failed_points.unwrap_or(0)),
        device_ids: kids.into_iter().collect(),
        completeness: Completeness::parse(&row.completeness).unwrap_or(Completeness::Open),
    })
}

/// Returns the session with that id.
///
/// # Errors
/// 404 when the organisation has none.
pub(super) async fn find_session(
    store: &IngestStore,
    org: &OrgId,
    id: &str,
) -> Result<SessionRow, ApiError> {
    store.session(org, id).await?.ok_or(ApiError::NotFound("session"))
}

/// Returns one session. The response for a closed session carries an `ETag`, which changes whenever
/// stored data about the session changes.
#[utoipa::path(get, path = "/sessions/{id}", tag = "sessions",
    params(("id" = String, Path), ("If-None-Match" = Option<String>, Header)),
    responses((status = 200, body = RoastSession), (status = 304), (status = 404)))]
pub async fn session(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let row = find_session(&shared.store, &request.org, &id).await?;
    let mut summary = summary(&shared.store, &request.org, row).await?;
    let names = shared.store.machine_names(&request.org).await?;
    summary.machine_name = names.present(&mut summary.origin);
    let closed = summary.status == SessionStatus::Closed;
    let session = RoastSession { summary, meta: serde_json::Map::new() };
    if !closed {
        return Ok(Json(session).into_response());
    }
    let revision = shared.store.revision(&request.org, &id).await?;
    let text = serde_json::to_string(&session).map_err(ApiError::internal)?;
    let digest = trust::sha256_digest(format!("{revision} {text}").as_bytes());
    let tag = format!("\"{}\"", &digest.to_string()[..32]);
    let not_modified =
        headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    if not_modified {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], Json(session)).into_response())
}

/// Returns a session's events, ordered by time.
#[utoipa::path(get, path = "/sessions/{id}/events", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = Vec<RoastEvent>)))]
pub async fn session_events(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<Vec<RoastEvent>>, ApiError> {
    let rows = shared.store.events_of(&request.org, &id).await?;
    let events = rows.iter().filter_map(|row| {
        row_json::roast_event(row, &MachineId::new(row.machine_id.as_str()).ok()?)
    });
    Ok(Json(events.collect()))
}
