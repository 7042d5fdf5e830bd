//! The HTTP API of inference, compatible with upstream Sim-Corp.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{FromRef, State as Extract};
use contract::{OrgId, Origin, upstream_id};
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use serde::{Deserialize, Serialize};
use service::clock::Clock;
use service::openapi::with_examples;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::bus::InferenceState;
use crate::config::Settings;
use crate::detection::FollowedMachine;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp inference",
    description = "Detects roast events for machines that send no events themselves."
))]
struct Doc;

impl FromRef<InferenceState> for Clock {
    fn from_ref(state: &InferenceState) -> Self {
        state.clock.clone()
    }
}

pub fn routes(following: InferenceState) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(status))
        .routes(routes!(set, get, unset))
        .routes(routes!(defaults))
        .with_state(following)
        .split_for_parts();
    (router, with_examples(openapi, include_str!("examples.json")))
}

#[derive(Serialize, ToSchema)]
struct Status {
    machines: Vec<FollowedMachine>,
    /// The effective settings of each machine with settings of its own, by `org|site|machine`.
    configs: BTreeMap<String, Settings>,
    /// True if this instance publishes the events that it detects. Of several instances, one does.
    speaks: bool,
}

/// Returns the machines that are followed, and their settings.
#[utoipa::path(get, path = "/status", tag = "inference", params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Status), (status = 403)))]
async fn status(
    Extract(following): Extract<InferenceState>,
    request: OrgRequest,
) -> Result<Json<Status>, ApiError> {
    let configs = following.store.org_settings(&request.org).await?;
    let with = |(name, own)| (name, Settings::DEFAULTS.overridden_by(own));
    Ok(Json(Status {
        machines: following.with(|all| all.statuses(&request.org, request.now())),
        configs: configs.into_iter().map(with).collect(),
        speaks: following.is_publisher.load(Ordering::Relaxed),
    }))
}

/// The settings of a machine that the caller changes.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SettingsChange {
    org_id: String,
    site_id: String,
    machine_id: String,
    config: Settings,
}

/// The effective settings of a machine.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct EffectiveSettings {
    #[serde(flatten)]
    origin: Origin,
    config: Settings,
    /// True if the machine has no settings of its own.
    is_default: bool,
}

/// The response to a deletion of settings.
#[derive(Serialize, ToSchema)]
struct SettingsDeleted {
    deleted: bool,
    message: &'static str,
}

fn parse_origin(org: OrgId, site: &str, machine: &str) -> Result<Origin, ApiError> {
    let wrong =
        |field: &str, error: contract::IdError| ApiError::Issues(vec![Issue::new(field, error)]);
    Ok(Origin {
        org,
        site: upstream_id::identity(site).map_err(|e| wrong("siteId", e))?,
        machine: upstream_id::identity(machine).map_err(|e| wrong("machineId", e))?,
    })
}

/// Returns the machine that the query parameters name.
fn origin_in_query(request: &OrgRequest) -> Result<Origin, ApiError> {
    let site = request.params.get("siteId").unwrap_or_default();
    let machine = request.params.get("machineId").unwrap_or_default();
    parse_origin(request.org.clone(), site, machine)
}

/// Changes settings of a machine. Settings that are not named keep their values.
#[utoipa::path(post, path = "/config", tag = "inference", request_body = SettingsChange,
    responses((status = 200, body = Settings), (status = 400), (status = 403)))]
async fn set(
    Extract(following): Extract<InferenceState>,
    caller: Caller,
    JsonBody(body): JsonBody<SettingsChange>,
) -> Result<Json<Settings>, ApiError> {
    caller.require_role(Role::Operator)?;
    let org = caller.resolve_org(Some(&body.org_id))?;
    let origin = parse_origin(org, &body.site_id, &body.machine_id)?;
    let issues: Vec<Issue> = body
        .config
        .problems()
        .iter()
        .map(|(field, problem)| Issue::new(&format!("config.{field}"), problem))
        .collect();
    if !issues.is_empty() {
        return Err(ApiError::Issues(issues));
    }
    let before = following.store.settings(&origin).await?.unwrap_or_default();
    let settings = before.overridden_by(body.config);
    let now = (following.clock)();
    following.store.save_settings(&origin, Some(&settings), &caller.actor, now).await?;
    following.with(|all| all.apply_settings(&origin, settings));
    Ok(Json(Settings::DEFAULTS.overridden_by(settings)))
}

/// Returns the effective settings of a machine.
#[utoipa::path(get, path = "/config", tag = "inference",
    params(("orgId" = String, Query), ("siteId" = String, Query), ("machineId" = String, Query)),
    responses((status = 200, body = EffectiveSettings), (status = 400), (status = 403)))]
async fn get(
    Extract(following): Extract<InferenceState>,
    request: OrgRequest,
) -> Result<Json<EffectiveSettings>, ApiError> {
    let origin = origin_in_query(&request)?;
    let own = following.store.settings(&origin).await?;
    Ok(Json(EffectiveSettings {
        origin,
        config: Settings::DEFAULTS.overridden_by(own.unwrap_or_default()),
        is_default: own.is_none(),
    }))
}

/// Deletes the settings of a machine, so that the defaults apply.
#[utoipa::path(delete, path = "/config", tag = "inference",
    params(("orgId" = String, Query), ("siteId" = String, Query), ("machineId" = String, Query)),
    responses((status = 200, body = SettingsDeleted), (status = 400), (status = 403),
              (status = 404)))]
async fn unset(
    Extract(following): Extract<InferenceState>,
    request: OrgRequest,
) -> Result<Json<SettingsDeleted>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let origin = origin_in_query(&request)?;
    let actor = &request.caller.actor;
    if !following.store.save_settings(&origin, None, actor, request.now()).await? {
        return Err(ApiError::NotFound("config"));
    }
    following.with(|all| all.apply_settings(&origin, Settings::default()));
    Ok(Json(SettingsDeleted { deleted: true, message: "the defaults apply again" }))
}

/// Returns the default settings, which are upstream Sim-Corp's.
#[utoipa::path(get, path = "/config/defaults", tag = "inference",
    responses((status = 200, body = Settings)))]
async fn defaults() -> Json<Settings> {
    Json(Settings::DEFAULTS)
}
