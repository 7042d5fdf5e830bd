//! The HTTP API of inference, compatible with upstream Sim-Corp.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State as Extract;
use contract::{MachineId, Origin, SiteId};
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::Params;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service::openapi::with_examples;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::bus::InferenceState;
use crate::config::Settings;
use crate::detection::Shown;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Sim-Corp inference",
    description = "Detects roast events for machines that send no events themselves."
))]
struct Doc;

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
    machines: Vec<Shown>,
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
    caller: Caller,
    params: Params,
) -> Result<Json<Status>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let configs = following.store.org_settings(&org).await?;
    let with = |(name, own)| (name, Settings::DEFAULTS.overridden_by(own));
    let now = (following.clock)();
    Ok(Json(Status {
        machines: following.with(|all| all.statuses(&org, now)),
        configs: configs.into_iter().map(with).collect(),
        speaks: following.is_publisher.load(Ordering::Relaxed),
    }))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Set {
    org_id: String,
    site_id: String,
    machine_id: String,
    config: Settings,
}

fn origin_of(caller: &Caller, names: [&str; 3]) -> Result<Origin, ApiError> {
    let [org, site, machine] = names;
    let wrong =
        |field: &str, error: contract::IdError| ApiError::Issues(vec![Issue::new(field, error)]);
    Ok(Origin {
        org: caller.resolve_org(Some(org))?,
        site: SiteId::new(site).map_err(|e| wrong("siteId", e))?,
        machine: MachineId::new(machine).map_err(|e| wrong("machineId", e))?,
    })
}

fn named(caller: &Caller, params: &Params) -> Result<Origin, ApiError> {
    let names = ["orgId", "siteId", "machineId"].map(|name| params.get(name).unwrap_or_default());
    origin_of(caller, names)
}

/// Changes settings of a machine. Settings that are not named keep their values.
#[utoipa::path(post, path = "/config", tag = "inference", request_body = Set,
    responses((status = 200, body = Settings), (status = 400), (status = 403)))]
async fn set(
    Extract(following): Extract<InferenceState>,
    caller: Caller,
    JsonBody(body): JsonBody<Set>,
) -> Result<Json<Settings>, ApiError> {
    caller.require_role(Role::Operator)?;
    let origin = origin_of(&caller, [&body.org_id, &body.site_id, &body.machine_id])?;
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
    responses((status = 200, body = Object), (status = 400), (status = 403)))]
async fn get(
    Extract(following): Extract<InferenceState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let origin = named(&caller, &params)?;
    let own = following.store.settings(&origin).await?;
    let mut body = json!(origin);
    body["config"] = json!(Settings::DEFAULTS.overridden_by(own.unwrap_or_default()));
    body["isDefault"] = own.is_none().into();
    Ok(Json(body))
}

/// Deletes the settings of a machine, so that the defaults apply.
#[utoipa::path(delete, path = "/config", tag = "inference",
    params(("orgId" = String, Query), ("siteId" = String, Query), ("machineId" = String, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403), (status = 404)))]
async fn unset(
    Extract(following): Extract<InferenceState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    caller.require_role(Role::Operator)?;
    let origin = named(&caller, &params)?;
    let now = (following.clock)();
    if !following.store.save_settings(&origin, None, &caller.actor, now).await? {
        return Err(ApiError::NotFound("config"));
    }
    following.with(|all| all.apply_settings(&origin, Settings::default()));
    Ok(Json(json!({"deleted": true, "message": "the defaults apply again"})))
}

/// Returns the default settings, which are upstream Sim-Corp's.
#[utoipa::path(get, path = "/config/defaults", tag = "inference",
    responses((status = 200, body = Settings)))]
async fn defaults() -> Json<Settings> {
    Json(Settings::DEFAULTS)
}
