//! Recovery of gateways whose certificates have expired: a person approves or refuses each.

use axum::Json;
use axum::extract::{Path, State as Extract};
use http_stack::auth::{Caller, Role};
use http_stack::error::ApiError;
use http_stack::query::Params;

use super::State;
use crate::store::{ChangedBy, Recovery};

/// Lists the gateways that request a certificate after their last one has expired and wait for a
/// decision.
#[utoipa::path(get, path = "/recoveries", tag = "recoveries",
    responses((status = 200, body = Vec<Recovery>)))]
pub async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Recovery>>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    Ok(Json(state.store.recoveries(&org).await?))
}

/// Approves a new certificate for the gateway. The gateway has proved that it still has its key;
/// the caller must know where the gateway is. Requires a human caller.
#[utoipa::path(post, path = "/recoveries/{id}/approve", tag = "recoveries",
    params(("id" = String, Path)),
    responses((status = 200, body = Recovery), (status = 403), (status = 404)))]
pub async fn approve(
    state: Extract<State>,
    caller: Caller,
    id: Path<String>,
    params: Params,
) -> Result<Json<Recovery>, ApiError> {
    decide(state, &caller, id, &params, true).await
}

/// Refuses a new certificate for the gateway. Requires a human caller.
#[utoipa::path(post, path = "/recoveries/{id}/refuse", tag = "recoveries",
    params(("id" = String, Path)),
    responses((status = 200, body = Recovery), (status = 403), (status = 404)))]
pub async fn refuse(
    state: Extract<State>,
    caller: Caller,
    id: Path<String>,
    params: Params,
) -> Result<Json<Recovery>, ApiError> {
    decide(state, &caller, id, &params, false).await
}

async fn decide(
    Extract(state): Extract<State>,
    caller: &Caller,
    Path(id): Path<String>,
    params: &Params,
    approve: bool,
) -> Result<Json<Recovery>, ApiError> {
    caller.require_role(Role::Approver)?;
    caller.require_person()?;
    let org = caller.resolve_org(params.get("orgId"))?;
    let by = ChangedBy { actor: &caller.actor, now: (state.clock)() };
    let decided = state.store.decide_recovery(&org, &id, approve, by).await?;
    Ok(Json(decided.ok_or(ApiError::NotFound("pending recovery"))?))
}
