//! Routes of the caller's identity and of API keys.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::ActorKind;
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiState;
use crate::authentication::keys::{ApiKey, ApiKeyToken};

const DAYS: u32 = 90;
const DAYS_MAX: u32 = 400;

/// Returns the authenticated caller: actor, organisation and role.
#[utoipa::path(get, path = "/whoami", tag = "people",
    responses((status = 200, body = Caller), (status = 401)))]
pub async fn whoami(caller: Caller) -> Json<Caller> {
    Json(caller)
}

/// An API key to create.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewKey {
    /// What the key is for.
    pub name: String,
    /// At most the caller's own role.
    pub role: Role,
    /// AGENT or SYSTEM
    #[serde(default = "system")]
    pub kind: ActorKind,
    /// 1 to 400; default 90
    #[serde(default)]
    pub expires_in_days: Option<u32>,
}

const fn system() -> ActorKind {
    ActorKind::System
}

/// A new API key with its secret.
#[derive(Serialize, ToSchema)]
pub struct CreatedKey {
    #[serde(flatten)]
    pub key: ApiKey,
    /// The whole key, for the `Authorization` header. No later response contains it.
    pub token: String,
}

/// Creates an API key of the caller's organisation. Only this response contains its `token`.
#[utoipa::path(post, path = "/keys", tag = "people", request_body = NewKey,
    responses((status = 201, body = CreatedKey), (status = 400), (status = 403)))]
pub async fn create(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(new): JsonBody<NewKey>,
) -> Result<Response, ApiError> {
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    caller.require_role(Role::Admin)?;
    caller.require_role(new.role)?;
    if state.development {
        // The key would remain valid when the same database later runs with authentication.
        return Err(ApiError::Forbidden(
            "auth.mode is dev, where callers need no credentials; create the key with \
             `simcorp api-key create`, or with auth.mode = \"oidc\""
                .to_owned(),
        ));
    }
    let days = new.expires_in_days.unwrap_or(DAYS);
    let mut issues = Vec::new();
    if !(1..=200).contains(&new.name.len()) || new.name.contains('\0') {
        issues.push(Issue::new("name", "not 1 to 200 bytes"));
    }
    if !(1..=DAYS_MAX).contains(&days) {
        issues.push(Issue::new("expiresInDays", format!("not between 1 and {DAYS_MAX}")));
    }
    if !matches!(new.kind, ActorKind::Agent | ActorKind::System) {
        issues.push(Issue::new("kind", "not AGENT or SYSTEM: people sign in with OIDC tokens"));
    }
    if !issues.is_empty() {
        return Err(ApiError::Issues(issues));
    }
    let token = ApiKeyToken::generate().map_err(ApiError::internal)?;
    let key = ApiKey {
        id: token.id().to_owned(),
        org_id: Some(org),
        name: new.name,
        kind: new.kind,
        role: new.role,
        digest: token.digest().to_vec(),
        created_at: now,
        expires_at: now.plus_ms(i64::from(days).saturating_mul(86_400_000)),
        revoked_at: None,
    };
    state.store.add_key(&key, &caller.actor).await?;
    let created = CreatedKey { key, token: token.reveal() };
    // The secret must never be stored: not by a cache, and not for its Idempotency-Key.
    let once = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, once, Json(created)).into_response())
}

/// Lists the API keys of the caller's organisation, without their secrets.
#[utoipa::path(get, path = "/keys", tag = "people",
    responses((status = 200, body = Vec<ApiKey>), (status = 403)))]
pub async fn list(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<ApiKey>>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    Ok(Json(state.store.keys(Some(&request.org)).await?))
}

/// Revokes an API key. Within half a minute every service rejects it.
#[utoipa::path(delete, path = "/keys/{id}", tag = "people", params(("id" = String, Path)),
    responses((status = 204), (status = 403), (status = 404)))]
pub async fn revoke(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    request.caller.require_role(Role::Admin)?;
    if state.store.revoke_key(Some(&request.org), &id, &request.caller.actor, request.now()).await?
    {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::NotFound("key"))
}
