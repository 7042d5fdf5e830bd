//! Recovery of gateways whose certificates have expired: a person approves or refuses each.

use axum::Json;
use axum::extract::{Path, State as Extract};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::ApiError;

use super::State;
use crate::store::{ChangedBy, Recovery};

/// Lists the gateways that request a certificate after their last one has expired and wait for a
/// decision.
#[utoipa::path(get, path = "/recoveries", tag = "recoveries",
    responses((status = 200, body = Vec<Recovery>)))]
pub async fn list(
    Extract(state): Extract<State>,
    request: OrgRequest,
) -> Result<Json<Vec<Recovery>>, ApiError> {
    Ok(Json(state.store.recoveries(&request.org).await?))
}

/// Approves a new certificate for the gateway. The gateway has proved that it still has its key;
/// the caller must know where the gateway is. Requires a human caller.
#[utoipa::path(post, path = "/recoveries/{id}/approve", tag = "recoveries",
    params(("id" = String, Path)),
    responses((status = 200, body = Recovery), (status = 403), (status = 404)))]
pub async fn approve(
    state: Extract<State>,
    request: OrgRequest,
    id: Path<String>,
) -> Result<Json<Recovery>, ApiError> {
    decide(state, &request, id, true).await
}

/// Refuses a new certificate for the gateway. Requires a human caller.
#[utoipa::path(post, path = "/recoveries/{id}/refuse", tag = "recoveries",
    params(("id" = String, Path)),
    responses((status = 200, body = Recovery), (status = 403), (status = 404)))]
pub async fn refuse(
    state: Extract<State>,
    request: OrgRequest,
    id: Path<String>,
) -> Result<Json<Recovery>, ApiError> {
    decide(state, &request, id, false).await
}

async fn decide(
    Extract(state): Extract<State>,
    request: &OrgRequest,
    Path(id): Path<String>,
    approve: bool,
) -> Result<Json<Recovery>, ApiError> {
    request.caller.require_role(Role::Approver)?;
    request.caller.require_person()?;
    let by = ChangedBy::from(request);
    let decided = state.store.decide_recovery(&request.org, &id, approve, by).await?;
    Ok(Json(decided.ok_or(ApiError::NotFound("pending recovery"))?))
}
