//! Routes of missions, and of the queue from which workers claim them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use contract::mission::{LastError, MissionRecord, MissionStatus, NewMission};
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::Params;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::ApiState;
use crate::metric;
use crate::missions::{self, CreateMission, CreateOutcome};
use crate::store::{AttemptFailure, MissionFilter, Transition};

const LIST: i64 = 50;
const LIST_MAX: i64 = 200;
/// The most goals of a claim.
pub const GOALS_MAX: usize = 32;
/// The longest id, key or other short text, in bytes.
pub const TEXT_BYTES_MAX: usize = 200;
/// The most attempts at a mission.
pub const ATTEMPTS_MAX: u32 = 100;
const NOTE_MAX: usize = 2_000;
/// The largest mission, in bytes of JSON.
pub const MISSION_BYTES_MAX: usize = 64 * 1024;

/// Creates a mission.
///
/// Returns 200 instead of 201 if a mission with this idempotency key or mission id exists; that
/// mission is returned unchanged.
#[utoipa::path(post, path = "/missions", tag = "missions", request_body = NewMission,
    params(("Idempotency-Key" = Option<String>, Header, description = "Used if the body has no idempotencyKey")),
    responses((status = 201, body = MissionRecord), (status = 200, body = MissionRecord),
              (status = 400), (status = 403)))]
pub async fn create(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(mut mission): JsonBody<NewMission>,
) -> Result<Response, ApiError> {
    caller.require_role(Role::Operator)?;
    let org = caller.resolve_org(mission.context.get("orgId").and_then(Value::as_str))?;
    mission.context.insert("orgId".to_owned(), org.as_str().into());
    check(&mission)?;
    let goal = mission.goal.title.as_str();
    if goal == contract::mission::REPORT_GOAL && mission.subject_id.is_none() {
        let session = mission.params.get("sessionId").and_then(Value::as_str);
        mission.subject_id = session.map(str::to_owned);
    }
    let now = (state.clock)();
    let id = match mission.mission_id.clone() {
        Some(id) => id,
        None => format!("M-{}-{}", now.compact().replace('T', ""), random_hex()?),
    };
    let header = headers.get("idempotency-key").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let key = mission.idempotency_key.clone().or(header).unwrap_or_else(|| id.clone());
    check_text(&key, "idempotencyKey")?;
    let (id, key, actor) = (id.as_str(), key.as_str(), &caller.actor);
    let new = CreateMission { org: &org, mission: &mission, id, key, actor, now };
    let CreateOutcome { mission, new } = missions::create(&state.store, &state.eval, new).await?;
    if new {
        metric::queued(&mission);
    }
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(mission)).into_response())
}

fn check(mission: &NewMission) -> Result<(), ApiError> {
    let mut issues = Vec::new();
    let mut require = |holds: bool, field: &str, problem: String| {
        if !holds {
            issues.push(Issue::new(field, problem));
        }
    };
    let fits = |text: &str| (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.contains('\0');
    let sized = || format!("not 1 to {TEXT_BYTES_MAX} bytes");
    require(fits(&mission.goal.title), "goal.title", sized());
    let optional = [
        ("missionId", &mission.mission_id),
        ("idempotencyKey", &mission.idempotency_key),
        ("subjectId", &mission.subject_id),
        ("requestedBy", &mission.requested_by),
    ];
    for (field, text) in optional {
        require(text.as_deref().is_none_or(fits), field, sized());
    }
    require(
        mission.max_attempts.is_none_or(|n| (1..=ATTEMPTS_MAX).contains(&n)),
        "maxAttempts",
        format!("not between 1 and {ATTEMPTS_MAX}"),
    );
    require(
        mission.created_at.is_none_or(contract::EpochMs::is_plausible),
        "createdAt",
        "not a plausible time".to_owned(),
    );
    let text = serde_json::to_string(mission).map_err(ApiError::internal)?;
    require(
        text.len() <= MISSION_BYTES_MAX,
        "params",
        format!("more than {MISSION_BYTES_MAX} bytes in all"),
    );
    // PostgreSQL's text type cannot store a NUL.
    require(!text.contains("\\u0000"), "params", "contains a NUL".to_owned());
    if issues.is_empty() { Ok(()) } else { Err(ApiError::Issues(issues)) }
}

fn check_text(text: &str, field: &str) -> Result<(), ApiError> {
    if (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.contains('\0') {
        return Ok(());
    }
    Err(ApiError::Issues(vec![Issue::new(field, format!("not 1 to {TEXT_BYTES_MAX} bytes"))]))
}

/// Returns eight random hex digits.
fn random_hex() -> Result<String, ApiError> {
    let bytes: [u8; 4] = trust::random().map_err(ApiError::internal)?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissionList {
    pub items: Vec<MissionRecord>,
    /// Pass it as `cursor` to get the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Lists missions, newest first.
#[utoipa::path(get, path = "/missions", tag = "missions",
    params(("status" = Option<String>, Query, description = "One or several; use commas or repeat the parameter"),
           ("goal" = Option<String>, Query), ("agent" = Option<String>, Query, description = "The worker that claimed it"),
           ("sessionId" = Option<String>, Query), ("subjectId" = Option<String>, Query),
           ("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineId" = Option<String>, Query), ("limit" = Option<i64>, Query, description = "1 to 200; default 50"),
           ("cursor" = Option<String>, Query)),
    responses((status = 200, body = MissionList), (status = 400), (status = 403)))]
pub async fn list(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<MissionList>, ApiError> {
    // A caller of one organisation lists its own missions, whatever `orgId` it names.
    let requested_org = params.get("orgId").filter(|_| caller.org.is_none());
    let org = caller.resolve_org(requested_org)?;
    let values = params.all("status").flat_map(|text| text.split(','));
    let statuses: Vec<_> = values.filter_map(|value| MissionStatus::parse(value.trim())).collect();
    let owned = |name: &str| params.get(name).map(str::to_owned);
    let filter = MissionFilter {
        statuses,
        goal: owned("goal"),
        claimed_by: owned("agent"),
        session: owned("sessionId"),
        subject: owned("subjectId"),
        site: owned("siteId"),
        machine: owned("machineId"),
        after: params.cursor()?,
        limit: params.limit(LIST, LIST_MAX)?.max(1),
    };
    let items = state.store.missions(&org, &filter).await?;
    let full = i64::try_from(items.len()).is_ok_and(|n| n == filter.limit);
    let next_cursor = items
        .last()
        .filter(|_| full)
        .map(|last| http_stack::query::encode_cursor(last.created_at.0, &last.mission_id));
    Ok(Json(MissionList { items, next_cursor }))
}

/// The number of missions in each state.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub struct MissionsByStatus {
    pub pending: i64,
    pub running: i64,
    pub retry: i64,
    pub done: i64,
    pub failed: i64,
    pub quarantined: i64,
    pub blocked: i64,
    pub canceled: i64,
}

/// Counts of missions.
#[derive(Debug, Serialize, ToSchema)]
pub struct MissionCounts {
    #[serde(flatten)]
    pub by_status: MissionsByStatus,
    /// All missions, whatever their state.
    pub total: i64,
    /// The same as `QUARANTINED`.
    pub quarantined_total: i64,
    /// The same as `BLOCKED`.
    pub blocked_total: i64,
    /// How many missions a rate limit has delayed.
    pub rate_limited_total: i64,
    /// How many missions a person has approved.
    pub approved_total: i64,
}

impl MissionCounts {
    /// Returns the counts of the store, which are by name. A count that is missing is 0.
    fn new(counts: &BTreeMap<String, i64>) -> Self {
        let count = |name: &str| counts.get(name).copied().unwrap_or(0);
        let of = |status: MissionStatus| count(status.as_str());
        let by_status = MissionsByStatus {
            pending: of(MissionStatus::Pending),
            running: of(MissionStatus::Running),
            retry: of(MissionStatus::Retry),
            done: of(MissionStatus::Done),
            failed: of(MissionStatus::Failed),
            quarantined: of(MissionStatus::Quarantined),
            blocked: of(MissionStatus::Blocked),
            canceled: of(MissionStatus::Canceled),
        };
        Self {
            total: MissionStatus::ALL.iter().map(|status| of(*status)).sum(),
            quarantined_total: by_status.quarantined,
            blocked_total: by_status.blocked,
            rate_limited_total: count("rate_limited"),
            approved_total: count("approved"),
            by_status,
        }
    }
}

/// Returns the number of missions in each state.
#[utoipa::path(get, path = "/missions/metrics", tag = "missions",
    params(("orgId" = Option<String>, Query)), responses((status = 200, body = MissionCounts)))]
pub async fn counts(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<MissionCounts>, ApiError> {
    let org = match (&caller.org, params.get("orgId")) {
        (None, None) => None,
        (_, requested_org) => Some(caller.resolve_org(requested_org)?),
    };
    Ok(Json(MissionCounts::new(&state.store.counts(org.as_ref()).await?)))
}

/// Returns one mission.
#[utoipa::path(get, path = "/missions/{id}", tag = "missions", params(("id" = String, Path)),
    responses((status = 200, body = MissionRecord), (status = 404)))]
pub async fn one(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<MissionRecord>, ApiError> {
    let found = state.store.mission(&request.org, &id).await?;
    found.map(Json).ok_or(ApiError::NotFound("mission"))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The worker's name.
    pub agent_name: String,
    /// Goals that the worker can do. If empty: all goals.
    #[serde(default)]
    pub goals: Vec<String>,
}

/// Claims the most urgent waiting mission. Returns 204 if no mission is waiting.
#[utoipa::path(post, path = "/missions/claim", tag = "queue", request_body = Claim,
    responses((status = 200, body = MissionRecord), (status = 204), (status = 400), (status = 403)))]
pub async fn claim(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    JsonBody(claim): JsonBody<Claim>,
) -> Result<Response, ApiError> {
    caller.require_role(Role::Operator)?;
    check_text(&claim.agent_name, "agentName")?;
    if claim.goals.len() > GOALS_MAX {
        return Err(ApiError::Invalid(format!("goals: more than {GOALS_MAX}")));
    }
    let lease = random_hex()?;
    let now = (state.clock)();
    let lease = (lease.as_str(), state.lease_ms);
    let org = caller.org.as_ref();
    let found = state.store.claim(org, &claim.agent_name, &claim.goals, lease, now).await?;
    Ok(match found {
        Some(mission) => Json(mission).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    pub lease_id: String,
    #[serde(default)]
    pub agent_name: Option<String>,
}

/// Renews the worker's lease. Returns 409 if the lease has expired or belongs to another worker.
#[utoipa::path(post, path = "/missions/{id}/heartbeat", tag = "queue", request_body = Heartbeat,
    params(("id" = String, Path)),
    responses((status = 200, body = MissionRecord), (status = 400), (status = 404), (status = 409)))]
pub async fn heartbeat(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(heartbeat): JsonBody<Heartbeat>,
) -> Result<Json<MissionRecord>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let lease = (heartbeat.lease_id.as_str(), heartbeat.agent_name.as_deref());
    let now = request.now();
    let OrgRequest { org, .. } = request;
    transition_response(state.store.heartbeat(&org, &id, lease, state.lease_ms, now).await?)
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Complete {
    #[serde(default)]
    pub lease_id: Option<String>,
    /// Free-form JSON of the worker.
    #[serde(default)]
    pub summary: Option<Map<String, Value>>,
}

/// Marks the mission as done and stores its summary.
#[utoipa::path(post, path = "/missions/{id}/complete", tag = "queue", request_body = Complete,
    params(("id" = String, Path)),
    responses((status = 200, body = MissionRecord), (status = 400), (status = 404), (status = 409)))]
pub async fn complete(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(done): JsonBody<Complete>,
) -> Result<Json<MissionRecord>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let (lease, summary) = (done.lease_id.as_deref(), done.summary.as_ref());
    let now = request.now();
    let OrgRequest { org, .. } = request;
    let answer = transition_response(state.store.complete(&org, &id, lease, summary, now).await?)?;
    metric::ended(&answer);
    Ok(answer)
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fail {
    #[serde(default)]
    pub lease_id: Option<String>,
    pub error: String,
    /// Free-form JSON of the worker.
    #[serde(default)]
    pub details: Option<Map<String, Value>>,
    /// If true, the mission is retried later, as long as it has attempts left.
    #[serde(default)]
    pub retryable: bool,
}

/// Reports that the attempt failed.
#[utoipa::path(post, path = "/missions/{id}/fail", tag = "queue", request_body = Fail,
    params(("id" = String, Path)),
    responses((status = 200, body = MissionRecord), (status = 400), (status = 404), (status = 409)))]
pub async fn fail(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(failed): JsonBody<Fail>,
) -> Result<Json<MissionRecord>, ApiError> {
    const ERROR_MAX: usize = 4_096;
    request.caller.require_role(Role::Operator)?;
    let plain = |text: &str| text.replace('\0', "\u{fffd}").chars().take(ERROR_MAX).collect();
    let failure = AttemptFailure {
        error: LastError { error: plain(&failed.error), details: failed.details },
        retryable: failed.retryable,
    };
    let lease = failed.lease_id.as_deref();
    let now = request.now();
    let OrgRequest { org, .. } = request;
    let answer = transition_response(state.store.fail(&org, &id, lease, &failure, now).await?)?;
    metric::ended(&answer);
    Ok(answer)
}

#[derive(Deserialize, ToSchema)]
pub struct Approve {
    #[serde(default)]
    pub note: Option<String>,
}

/// Approves a quarantined, blocked or failed mission, so that it runs. Requires a human caller.
#[utoipa::path(post, path = "/missions/{id}/approve", tag = "missions", request_body = Approve,
    params(("id" = String, Path)),
    responses((status = 200, body = MissionRecord), (status = 403), (status = 404), (status = 409)))]
pub async fn approve(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(approval): JsonBody<Approve>,
) -> Result<Json<MissionRecord>, ApiError> {
    request.caller.require_person_as(Role::Approver)?;
    let note = approval.note.as_deref().filter(|note| !note.is_empty());
    if note.is_some_and(|note| note.len() > NOTE_MAX || note.contains('\0')) {
        return Err(ApiError::Issues(vec![Issue::new("note", "more than 2000 bytes, or a NUL")]));
    }
    let actor = &request.caller.actor;
    transition_response(state.store.approve(&request.org, &id, note, actor, request.now()).await?)
}

/// Cancels a mission that has not ended. Requires a human caller.
#[utoipa::path(post, path = "/missions/{id}/cancel", tag = "missions", params(("id" = String, Path)),
    responses((status = 200, body = MissionRecord), (status = 403), (status = 404), (status = 409)))]
pub async fn cancel(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<MissionRecord>, ApiError> {
    request.caller.require_person_as(Role::Approver)?;
    let actor = &request.caller.actor;
    transition_response(state.store.cancel(&request.org, &id, actor, request.now()).await?)
}

/// Makes the mission's next attempt due at once. Requires a human caller.
#[utoipa::path(post, path = "/missions/{id}/retryNow", tag = "missions", params(("id" = String, Path)),
    responses((status = 200, body = MissionRecord), (status = 403), (status = 404), (status = 409)))]
pub async fn retry_now(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<MissionRecord>, ApiError> {
    request.caller.require_person_as(Role::Operator)?;
    let actor = &request.caller.actor;
    transition_response(state.store.retry_now(&request.org, &id, actor, request.now()).await?)
}

fn transition_response(transition: Transition) -> Result<Json<MissionRecord>, ApiError> {
    match transition {
        Transition::Done(mission) => Ok(Json(*mission)),
        Transition::NotFound => Err(ApiError::NotFound("mission")),
        Transition::Conflict(why) => Err(ApiError::Conflict(why)),
    }
}
