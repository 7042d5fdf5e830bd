//! The registry of gateways.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::StatusCode;
use axum::response::Response;
use contract::{EpochMs, KeyId, MachineId, OrgId, SiteId};
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::{Params, encode_cursor, page};
use serde::{Deserialize, Serialize};
use trust::PublicKey;
use utoipa::ToSchema;

use super::State;
use crate::device::{Device, DeviceKey, Issued, NewDevice, RegisterOutcome};
use crate::store::ChangedBy;

const MACHINES_MAX: usize = 64;
const PEM_BYTES_MAX: usize = 1024;

/// A gateway, its keys and its certificates.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceDetails {
    #[serde(flatten)]
    pub device: Device,
    pub keys: Vec<DeviceKey>,
    /// The last twenty certificates, newest first.
    pub certificates: Vec<Issued>,
}

/// A gateway to register, with the fields that `simcorp-edge key show` prints.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewDeviceBody {
    /// Optional. If given, it must be an organisation that the caller may act for.
    #[serde(default)]
    pub org_id: Option<String>,
    #[schema(value_type = String)]
    pub site_id: SiteId,
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineId>,
    #[schema(value_type = String)]
    pub kid: KeyId,
    /// The public key, PEM.
    pub public_key: String,
}

/// The machines that a gateway may publish for.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machines {
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineId>,
}

impl State {
    /// Returns a gateway of an organisation.
    ///
    /// # Errors
    /// 404 when the organisation has no gateway of this name.
    async fn device(&self, org: &OrgId, key_id: &str) -> Result<Device, ApiError> {
        self.store.device(org, key_id).await?.ok_or(ApiError::NotFound("device"))
    }
}

/// Returns what is wrong with a gateway's key id, site and list of machines.
pub(super) fn check_names(key_id: &KeyId, site: &SiteId, machines: &[MachineId]) -> Vec<Issue> {
    let mut issues = Vec::new();
    if !key_id.as_str().ends_with(&format!("@{site}")) {
        issues.push(Issue::new("siteId", format!("{key_id} does not belong to the site {site}")));
    }
    if key_id.as_str().starts_with("device:sim-") {
        issues.push(Issue::new("kid", "sim-… is reserved for simulated gateways"));
    }
    issues.extend(check_machines(machines));
    issues
}

fn check_machines(machines: &[MachineId]) -> Option<Issue> {
    let fits = (1..=MACHINES_MAX).contains(&machines.len());
    (!fits).then(|| Issue::new("machines", format!("must have 1 to {MACHINES_MAX} entries")))
}

/// Lists the gateways of the caller's organisation, sorted by name.
#[utoipa::path(get, path = "/devices", tag = "devices",
    params(("limit" = Option<i64>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Vec<Device>), (status = 400)))]
pub async fn list(
    Extract(state): Extract<State>,
    OrgRequest { org, params, .. }: OrgRequest,
) -> Result<Response, ApiError> {
    let limit = params.limit(100, 500)?;
    let after = params.cursor()?.map_or(String::new(), |(_, after)| after);
    let devices = state.store.devices(&org, &after, limit).await?;
    Ok(page(devices, limit, |device| encode_cursor(0, device.key_id.as_str())))
}

/// Returns one gateway, with every key it ever had and its last twenty certificates.
#[utoipa::path(get, path = "/devices/{id}", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceDetails), (status = 404)))]
pub async fn one(
    Extract(state): Extract<State>,
    OrgRequest { org, .. }: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<DeviceDetails>, ApiError> {
    let device = state.device(&org, &id).await?;
    let keys = state.store.keys(&org, &device.key_id).await?;
    let certificates = state.store.certificates(&org, &device.key_id).await?;
    Ok(Json(DeviceDetails { device, keys, certificates }))
}

/// Registers a gateway manually: the cloud accepts frames signed with this key; the gateway gets no
/// certificate. Registering the same key again replaces the list of machines.
#[utoipa::path(post, path = "/devices", tag = "devices", request_body = NewDeviceBody,
    responses((status = 201, body = Device), (status = 400), (status = 403), (status = 409)))]
pub async fn register(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
    JsonBody(new): JsonBody<NewDeviceBody>,
) -> Result<(StatusCode, Json<Device>), ApiError> {
    caller.require_role(Role::Admin)?;
    let org = caller.resolve_org(new.org_id.as_deref().or(params.get("orgId")))?;
    let mut issues = check_names(&new.kid, &new.site_id, &new.machines);
    let public = if new.public_key.len() > PEM_BYTES_MAX {
        Err(trust::KeyError::NotPem)
    } else {
        PublicKey::from_pem(&new.public_key)
    };
    let public = public.map_err(|error| issues.push(Issue::new("publicKey", error))).ok();
    let Some(public) = public.filter(|_| issues.is_empty()) else {
        return Err(ApiError::Issues(issues));
    };
    let by = ChangedBy { actor: &caller.actor, now: (state.clock)() };
    let device = NewDevice {
        org: &org,
        key_id: &new.kid,
        site: &new.site_id,
        machines: &new.machines,
        public: &public,
        enrols: false,
        replaces: false,
        compromised: false,
    };
    key_number_or_conflict(state.store.register(&device, by).await?, &new.kid)?;
    state.changed.notify_one();
    Ok((StatusCode::CREATED, Json(state.device(&org, new.kid.as_str()).await?)))
}

/// Returns the key's number, or an error that says why the registration was refused.
///
/// # Errors
/// 409 if the name has another key or was revoked.
pub fn key_number_or_conflict(
    registered: RegisterOutcome,
    key_id: &KeyId,
) -> Result<i64, ApiError> {
    match registered {
        RegisterOutcome::Accepted(number) => Ok(number),
        RegisterOutcome::OtherKey => Err(ApiError::Conflict(format!(
            "{key_id} is registered with another key; enrol it with a token that has replaces set, \
             or give the gateway another name"
        ))),
        RegisterOutcome::Revoked => Err(ApiError::Conflict(format!(
            "{key_id} was revoked, for good; give the gateway another name"
        ))),
    }
}

/// Sets the machines that a gateway may publish for.
#[utoipa::path(put, path = "/devices/{id}/machines", tag = "devices", request_body = Machines,
    params(("id" = String, Path)),
    responses((status = 200, body = Device), (status = 400), (status = 403), (status = 404)))]
pub async fn set_machines(
    Extract(state): Extract<State>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(wanted): JsonBody<Machines>,
) -> Result<Json<Device>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    if let Some(issue) = check_machines(&wanted.machines) {
        return Err(ApiError::Issues(vec![issue]));
    }
    let by = ChangedBy::from(&request);
    if !state.store.set_machines(&request.org, &id, &wanted.machines, by).await? {
        return Err(ApiError::NotFound("device"));
    }
    state.changed.notify_one();
    Ok(Json(state.device(&request.org, &id).await?))
}

/// The time at which a gateway was revoked.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    pub revoked_at: EpochMs,
}

/// Revokes a gateway permanently: within a minute every service refuses it. Data that it already
/// sent is kept.
#[utoipa::path(post, path = "/devices/{id}/revoke", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = Revoked), (status = 403), (status = 404)))]
pub async fn revoke(
    Extract(state): Extract<State>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<Revoked>, ApiError> {
    request.caller.require_role(Role::Approver)?;
    state.store.revoke(&request.org, &id, ChangedBy::from(&request)).await?;
    state.changed.notify_one();
    // Revoking again is not an error: the response has the time of the first revocation.
    let revoked_at = state.device(&request.org, &id).await?.revoked_at;
    Ok(Json(Revoked { revoked_at: revoked_at.ok_or(ApiError::NotFound("device"))? }))
}
