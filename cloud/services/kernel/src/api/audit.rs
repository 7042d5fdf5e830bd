//! Routes of the audit log.

use axum::Json;
use axum::extract::State as Extract;
use database::audit::AuditEntry;
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::ApiError;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use crate::audit_checkpoint::AuditCheckpoint;

/// Lists the audit log, oldest entry first. Each entry has a hash that binds it to the previous
/// one.
#[utoipa::path(get, path = "/audit", tag = "governance",
    params(("orgId" = Option<String>, Query), ("after" = Option<i64>, Query),
           ("limit" = Option<i64>, Query, description = "0 to 500; default 100")),
    responses((status = 200, body = Vec<AuditEntry>), (status = 400), (status = 403)))]
pub async fn log(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<AuditEntry>>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    let after = request.params.number("after", 0, 0, i64::MAX)?;
    let limit = request.params.limit(100, 500)?;
    Ok(Json(state.store.database().audit_log(&request.org, after, limit).await?))
}

/// A checkpoint of the audit log, and the key that verifies it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignedCheckpoint {
    #[serde(flatten)]
    pub checkpoint: AuditCheckpoint,
    /// The public key, in PEM. Compare it with the one that you stored at the first checkpoint.
    pub public_key: String,
}

/// Returns a signed checkpoint of the newest entry of the audit log. Store it outside this
/// deployment: it later proves whether the log was rewritten or truncated.
#[utoipa::path(get, path = "/audit/checkpoint", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = SignedCheckpoint), (status = 403),
              (status = 503, description = "There is no audit key"),
              (status = 404, description = "The log has no entry yet")))]
pub async fn checkpoint(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<SignedCheckpoint>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    let heads = state.store.database().audit_heads().await?;
    let head = heads.into_iter().find(|head| head.org == request.org && head.n > 0);
    let head = head.ok_or(ApiError::NotFound("entry of the audit log"))?;
    let signer = state.audit_signer.as_ref().ok_or_else(|| {
        ApiError::Unavailable("there is no audit key; the kernel's log says why".to_owned())
    })?;
    let checkpoint = signer.sign(&head, request.now()).map_err(ApiError::internal)?;
    Ok(Json(SignedCheckpoint { checkpoint, public_key: signer.public_key().to_pem() }))
}
