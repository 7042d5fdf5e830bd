//! Enrolment tokens for gateways.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::{DeviceId, KeyId, MachineId, SiteId};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::{encode_cursor, page};
use serde::{Deserialize, Serialize};
use trust::EnrollmentToken;
use utoipa::ToSchema;

use super::State;
use super::devices::check_names;
use crate::store::{ChangedBy, Enrollment, NewEnrollment};

const HOURS: u32 = 72;
const HOURS_MAX: u32 = 24 * 30;

/// A request for an enrolment token.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewEnrollmentBody {
    #[schema(value_type = String)]
    pub site_id: SiteId,
    /// The gateway's name at its site.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// The machines that the gateway may publish for.
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineId>,
    /// The gateway is registered already and gets a new key, for example because new hardware or a
    /// new PKCS#11 token takes the place of the old.
    #[serde(default)]
    pub replaces: bool,
    /// The old key may be compromised: the cloud rejects its signatures at once. Frames that it
    /// signed and that wait to be sent are lost.
    #[serde(default)]
    pub compromised: bool,
    /// Hours until the enrolment token expires, 1 to 720. Default 72.
    #[serde(default)]
    pub expires_in_hours: Option<u32>,
}

/// A new enrolment with its enrolment token. No later response contains the token.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedEnrollment {
    #[serde(flatten)]
    pub enrollment: Enrollment,
    /// The enrolment token, for `simcorp-edge enroll --token`.
    pub token: String,
}

/// Creates an enrolment token, with which one gateway can enrol once. The token is for the
/// technician; only this response contains it.
#[utoipa::path(post, path = "/enrollments", tag = "enrolments", request_body = NewEnrollmentBody,
    responses((status = 201, body = CreatedEnrollment), (status = 400), (status = 403),
              (status = 409), (status = 503)))]
pub async fn create(
    Extract(state): Extract<State>,
    request: OrgRequest,
    JsonBody(new): JsonBody<NewEnrollmentBody>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Admin)?;
    let key_id = KeyId::new(&new.device, &new.site_id);
    let mut issues = check_names(&key_id, &new.site_id, &new.machines);
    let hours = new.expires_in_hours.unwrap_or(HOURS);
    if !(1..=HOURS_MAX).contains(&hours) {
        issues.push(Issue::new("expiresInHours", format!("must be between 1 and {HOURS_MAX}")));
    }
    if new.compromised && !new.replaces {
        issues.push(Issue::new("compromised", "is allowed only together with replaces"));
    }
    if !issues.is_empty() {
        return Err(ApiError::Issues(issues));
    }
    let authority = state.authority()?;
    let known = state.store.device(&request.org, key_id.as_str()).await?;
    match known.map(|device| device.revoked_at.is_some()) {
        Some(true) => {
            return Err(ApiError::Conflict(format!(
                "{key_id} was revoked, for good; give the gateway another name"
            )));
        }
        Some(false) if !new.replaces => {
            return Err(ApiError::Conflict(format!(
                "{key_id} is registered already; set replaces to give it a new key"
            )));
        }
        _ => {}
    }
    let token =
        EnrollmentToken::generate(&state.gateway_url, authority.certificate().fingerprint())
            .map_err(ApiError::internal)?;
    let by = ChangedBy::from(&request);
    let new = NewEnrollment {
        key_id,
        site_id: new.site_id,
        machines: new.machines,
        replaces: new.replaces,
        compromised: new.compromised,
        expires_at: request.now().plus_ms(i64::from(hours).saturating_mul(3_600_000)),
    };
    let enrollment = state.store.add_enrollment(&request.org, &token, new, by).await?;
    let created = CreatedEnrollment { enrollment, token: token.reveal() };
    let once = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, once, Json(created)).into_response())
}

/// Lists the enrolments, newest first.
#[utoipa::path(get, path = "/enrollments", tag = "enrolments",
    params(("limit" = Option<i64>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Vec<Enrollment>), (status = 400), (status = 403)))]
pub async fn list(
    Extract(state): Extract<State>,
    OrgRequest { caller, org, params, .. }: OrgRequest,
) -> Result<Response, ApiError> {
    caller.require_role(Role::Admin)?;
    let limit = params.limit(50, 200)?;
    let found = state.store.enrollments(&org, params.cursor()?, limit).await?;
    Ok(page(found, limit, |e: &Enrollment| encode_cursor(e.created_at.0, &e.id)))
}

/// Withdraws an enrolment token that was not used.
#[utoipa::path(delete, path = "/enrollments/{id}", tag = "enrolments",
    params(("id" = String, Path)),
    responses((status = 204), (status = 403), (status = 404)))]
pub async fn withdraw(
    Extract(state): Extract<State>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    request.caller.require_role(Role::Admin)?;
    let by = ChangedBy::from(&request);
    if state.store.withdraw_enrollment(&request.org, &id, by).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::NotFound("unused enrolment"))
}
