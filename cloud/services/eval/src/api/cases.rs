//! Golden cases: written manually, or made from a session.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::{EpochMs, OrgId};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{State, changed_by, check_text};
use crate::gates::RoastFacts;
use crate::golden::{DangerLevel, Expectation, GoldenCase, NewCase, ReferenceSolution, SourceType};
use crate::store::CaseFilter;

fn case_response(status: StatusCode, version: i64, case: GoldenCase) -> Response {
    (status, [(header::ETAG, format!("\"{version}\""))], Json(case)).into_response()
}

fn check(case: &NewCase) -> Result<(), ApiError> {
    let issues: Vec<Issue> =
        case.problems().iter().map(|(field, problem)| Issue::new(field, problem)).collect();
    if issues.is_empty() { Ok(()) } else { Err(ApiError::Issues(issues)) }
}

impl State {
    async fn add(&self, request: &OrgRequest, case: NewCase) -> Result<Response, ApiError> {
        check(&case)?;
        let id = format!("golden-{}", trust::random_id().map_err(ApiError::internal)?);
        let case = GoldenCase { id, created_at: request.now(), case };
        self.store.add_case(&request.org, &case, changed_by(request)).await?;
        Ok(case_response(StatusCode::CREATED, 1, case))
    }
}

/// Creates a golden case.
#[utoipa::path(post, path = "/golden-cases", tag = "cases", request_body = NewCase,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = GoldenCase), (status = 400), (status = 403)))]
pub async fn create(
    Extract(state): Extract<State>,
    request: OrgRequest,
    JsonBody(case): JsonBody<NewCase>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    state.add(&request, case).await
}

/// Lists golden cases, newest first. With `archived=true`, lists the archived ones.
#[utoipa::path(get, path = "/golden-cases", tag = "cases",
    params(("machineId" = Option<String>, Query), ("archived" = Option<String>, Query),
           ("limit" = Option<i64>, Query, description = "1 to 200; 50"), ("cursor" = Option<String>, Query),
           ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<GoldenCase>), (status = 400), (status = 403)))]
pub async fn list(
    Extract(state): Extract<State>,
    OrgRequest { org, params, .. }: OrgRequest,
) -> Result<Response, ApiError> {
    let filter = CaseFilter {
        machine: params.get("machineId").map(str::to_owned),
        archived: params.get("archived") == Some("true"),
        after: params.cursor()?,
        limit: params.limit(50, 200)?.max(1),
    };
    let cases = state.store.cases(&org, &filter).await?;
    let last = |case: &GoldenCase| query::encode_cursor(case.created_at.0, &case.id);
    Ok(query::page(cases, filter.limit, last))
}

/// Returns one golden case; its version is the `ETag`.
#[utoipa::path(get, path = "/golden-cases/{id}", tag = "cases",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = GoldenCase), (status = 403), (status = 404)))]
pub async fn one(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
) -> Result<Response, ApiError> {
    let (version, case) = state.case(&request.org, &id).await?;
    Ok(case_response(StatusCode::OK, version, case))
}

/// Replaces a case. With `If-Match`, replaces only the version that it names (412 otherwise).
#[utoipa::path(put, path = "/golden-cases/{id}", tag = "cases", request_body = NewCase,
    params(("id" = String, Path), ("orgId" = Option<String>, Query),
           ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = GoldenCase), (status = 400), (status = 403), (status = 404),
              (status = 412)))]
pub async fn change(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
    headers: HeaderMap,
    JsonBody(case): JsonBody<NewCase>,
) -> Result<Response, ApiError> {
    check(&case)?;
    edit(&state, &request, &id, &headers, |old| old.case = case).await
}

/// Changes a case, whatever version it has, unless `If-Match` names one.
async fn edit(
    state: &State,
    request: &OrgRequest,
    id: &str,
    headers: &HeaderMap,
    change: impl FnOnce(&mut GoldenCase),
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let (version, mut case) = state.case(&request.org, id).await?;
    let faster = || ApiError::Precondition("the case has changed; read it again".to_owned());
    if let Some(if_match) = headers.get(header::IF_MATCH)
        && if_match.as_bytes() != format!("\"{version}\"").as_bytes()
    {
        return Err(faster());
    }
    change(&mut case);
    if !state.store.change_case(&request.org, version, &case, changed_by(request)).await? {
        return Err(faster());
    }
    Ok(case_response(StatusCode::OK, version.saturating_add(1), case))
}

/// Archives a case: no session is evaluated against it automatically any more.
#[utoipa::path(post, path = "/golden-cases/{id}/archive", tag = "cases",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = GoldenCase), (status = 403), (status = 404), (status = 412)))]
pub async fn archive(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    edit(&state, &request, &id, &headers, |case| case.case.archived = true).await
}

/// Restores a case from the archive.
#[utoipa::path(post, path = "/golden-cases/{id}/unarchive", tag = "cases",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = GoldenCase), (status = 403), (status = 404), (status = 412)))]
pub async fn unarchive(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    edit(&state, &request, &id, &headers, |case| case.case.archived = false).await
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Solution {
    pub session_id: String,
    #[serde(default)]
    pub roaster_name: Option<String>,
    pub achieved_at: EpochMs,
    #[serde(default)]
    pub notes: Option<String>,
    #[serde(default)]
    pub expert_reviewed: bool,
}

/// Sets the session that is the case's reference solution.
#[utoipa::path(post, path = "/golden-cases/{id}/reference-solution", tag = "cases",
    request_body = Solution, params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = GoldenCase), (status = 400), (status = 403), (status = 404),
              (status = 412)))]
pub async fn solve(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
    headers: HeaderMap,
    JsonBody(solution): JsonBody<Solution>,
) -> Result<Response, ApiError> {
    check_text("sessionId", &solution.session_id, 200)?;
    for (field, text) in [("roasterName", &solution.roaster_name), ("notes", &solution.notes)] {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            check_text(field, text, 4_000)?;
        }
    }
    edit(&state, &request, &id, &headers, |case| {
        let case = &mut case.case;
        if case.source_type == SourceType::Synthetic {
            case.source_type = SourceType::RealSuccess;
        }
        case.source_session_id.get_or_insert_with(|| solution.session_id.clone());
        case.reference_solution = Some(ReferenceSolution {
            session_id: solution.session_id,
            roaster_name: solution.roaster_name,
            achieved_at: solution.achieved_at,
            notes: solution.notes,
            expert_reviewed: solution.expert_reviewed,
        });
    })
    .await
}

/// A case made from a session.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FromSession {
    pub session_id: String,
    /// The session's analysis. If absent, eval requests it from analytics. Free-form: eval reads
    /// the fields that it knows, of upstream's canonical or legacy format.
    #[serde(default)]
    pub analysis: Option<Map<String, Value>>,
    pub machine_id: String,
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub roaster_name: Option<String>,
    #[serde(default)]
    pub notes: Option<String>,
    #[serde(default)]
    pub expert_reviewed: bool,
    #[serde(default)]
    pub batch_size_kg: Option<f64>,
    #[serde(default)]
    pub charge_temp_c: Option<f64>,
    #[serde(default)]
    pub origin: Option<String>,
    #[serde(default)]
    pub processing_method: Option<String>,
    #[serde(default)]
    pub variety: Option<String>,
    #[serde(default)]
    pub crop_year: Option<String>,
    #[serde(default)]
    pub tolerances: Tolerances,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub created_by: Option<String>,
    // Of a failure: what went wrong, and what would have been right.
    #[serde(default)]
    pub failure_mode: Option<String>,
    #[serde(default)]
    pub target_first_crack_seconds: Option<f64>,
    #[serde(default)]
    pub target_drop_seconds: Option<f64>,
    #[serde(default)]
    pub target_development_percentage: Option<f64>,
    #[serde(default)]
    pub expectation: Option<Expectation>,
    #[serde(default)]
    pub reject_reason_expected: Option<String>,
    #[serde(default)]
    pub danger_level: Option<DangerLevel>,
    #[serde(default)]
    pub trials_required: Option<u32>,
    #[serde(default)]
    pub pass_at_k_threshold: Option<f64>,
}

#[derive(Deserialize, ToSchema, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Tolerances {
    pub fc_seconds_error_tolerance: Option<f64>,
    pub drop_seconds_error_tolerance: Option<f64>,
    pub dev_percentage_error_tolerance: Option<f64>,
    pub max_ror_spikes: Option<u32>,
    pub max_ror_crashes: Option<u32>,
}

/// s, s, points of a hundred, spikes, crashes.
type Defaults = (f64, f64, f64, u32, u32);
const OF_SUCCESS: Defaults = (30.0, 30.0, 2.0, 3, 1);
const OF_FAILURE: Defaults = (15.0, 15.0, 1.0, 2, 0);

impl State {
    /// Returns a case made from a roast: the roast's own times are the targets.
    async fn case_from_session(
        &self,
        org: &OrgId,
        from: &mut FromSession,
        defaults: Defaults,
    ) -> Result<NewCase, ApiError> {
        check_text("sessionId", &from.session_id, 200)?;
        let analysis = if let Some(analysis) = from.analysis.take() {
            analysis
        } else {
            let found = self.runner.analysis(org, &from.session_id).await?;
            found.ok_or(ApiError::NotFound("session"))?
        };
        let roast = RoastFacts::of(&analysis);
        if roast.first_crack_s.is_none() && roast.drop_s.is_none() {
            return Err(ApiError::Issues(vec![Issue::new(
                "analysis",
                "has neither first crack nor drop: no roast can be evaluated against it",
            )]));
        }
        let (fc, drop, dev, spikes, crashes) = defaults;
        let given = &from.tolerances;
        Ok(NewCase {
            description: from.description.take(),
            origin: from.origin.take(),
            processing_method: from.processing_method.take(),
            variety: from.variety.take(),
            crop_year: from.crop_year.take(),
            batch_size_kg: from.batch_size_kg,
            charge_temp_c: from.charge_temp_c,
            target_fc_temp_c: roast.first_crack_c,
            target_drop_temp_c: roast.drop_c,
            target_first_crack_seconds: roast.first_crack_s,
            target_drop_seconds: roast.drop_s,
            target_development_percentage: roast.development_ratio.map(|ratio| ratio * 100.0),
            fc_seconds_error_tolerance: given.fc_seconds_error_tolerance.or(Some(fc)),
            drop_seconds_error_tolerance: given.drop_seconds_error_tolerance.or(Some(drop)),
            dev_percentage_error_tolerance: given.dev_percentage_error_tolerance.or(Some(dev)),
            max_ror_spikes: given.max_ror_spikes.or(Some(spikes)),
            max_ror_crashes: given.max_ror_crashes.or(Some(crashes)),
            source_session_id: Some(from.session_id.clone()),
            created_by: from.created_by.take(),
            tags: std::mem::take(&mut from.tags),
            ..NewCase::named(&from.name, &from.machine_id)
        })
    }
}

/// Creates a case from a session that went well.
#[utoipa::path(post, path = "/golden-cases/from-success", tag = "cases", request_body = FromSession,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = GoldenCase), (status = 400), (status = 403), (status = 404),
              (status = 503)))]
pub async fn from_success(
    Extract(state): Extract<State>,
    request: OrgRequest,
    JsonBody(mut from): JsonBody<FromSession>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let case = state.case_from_session(&request.org, &mut from, OF_SUCCESS).await?;
    let case = NewCase {
        source_type: SourceType::RealSuccess,
        reference_solution: Some(ReferenceSolution {
            session_id: from.session_id,
            roaster_name: from.roaster_name,
            achieved_at: request.now(),
            notes: from.notes,
            expert_reviewed: from.expert_reviewed,
        }),
        ..case
    };
    state.add(&request, case).await
}

/// Creates a regression case from a session that went wrong. The session's own times are not
/// targets: the caller gives them, or only the shape of the curve is judged.
#[utoipa::path(post, path = "/golden-cases/from-failure", tag = "cases", request_body = FromSession,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = GoldenCase), (status = 400), (status = 403), (status = 404),
              (status = 503)))]
pub async fn from_failure(
    Extract(state): Extract<State>,
    request: OrgRequest,
    JsonBody(mut from): JsonBody<FromSession>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let mode = from.failure_mode.take().filter(|mode| !mode.is_empty());
    let targets = (
        from.target_first_crack_seconds,
        from.target_drop_seconds,
        from.target_development_percentage,
    );
    let mode = mode.ok_or_else(|| {
        ApiError::Issues(vec![Issue::new("failureMode", "is required: describe what went wrong")])
    })?;
    let mut case = state.case_from_session(&request.org, &mut from, OF_FAILURE).await?;
    if !case.tags.iter().any(|tag| tag == "regression") {
        case.tags.push("regression".to_owned());
    }
    let case = NewCase {
        source_type: SourceType::RealFailure,
        failure_mode: Some(mode),
        target_fc_temp_c: None,
        target_drop_temp_c: None,
        target_first_crack_seconds: targets.0,
        target_drop_seconds: targets.1,
        target_development_percentage: targets.2,
        fc_seconds_error_tolerance: targets.0.and(case.fc_seconds_error_tolerance),
        drop_seconds_error_tolerance: targets.1.and(case.drop_seconds_error_tolerance),
        dev_percentage_error_tolerance: targets.2.and(case.dev_percentage_error_tolerance),
        expectation: from.expectation.unwrap_or_default(),
        reject_reason_expected: from.reject_reason_expected,
        danger_level: from.danger_level.unwrap_or(DangerLevel::Caution),
        trials_required: from.trials_required.unwrap_or(3),
        pass_at_k_threshold: from.pass_at_k_threshold.or(Some(0.9)),
        ..case
    };
    state.add(&request, case).await
}
