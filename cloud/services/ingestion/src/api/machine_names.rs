//! Routes for display names and aliases of machines.

use axum::Json;
use axum::extract::{Path, State};
use contract::session::MachineStatus;
use contract::{MachineId, OrgId, Origin, SiteId, upstream_id};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::SharedState;
use super::annotations::changed_by;
use crate::store::{MachineChange, MachineNaming, NameRefusal};

/// The maximum length of a display name, in characters.
const NAME_MAX: usize = 100;

/// The display name of a machine.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewName {
    /// 1 to 100 characters without control characters; absent or `null` removes the name.
    #[serde(default)]
    pub name: Option<String>,
}

/// The id under which a machine continues.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewAlias {
    /// An id at the same site. It need not have sent data yet.
    #[schema(value_type = String)]
    pub successor: MachineId,
}

/// A machine with its name and ids.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamedMachine {
    pub org_id: OrgId,
    #[serde(serialize_with = "upstream_id::serialize")]
    pub site_id: SiteId,
    /// The present id.
    #[serde(serialize_with = "upstream_id::serialize")]
    pub machine_id: MachineId,
    /// The display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_name: Option<String>,
    /// The earlier ids, whose data is shown as that of `machineId`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub previous_ids: Vec<String>,
}

/// Sets the display name of a machine, which `GET /machines`, sessions and the console show. Ids,
/// topics and stored data do not change. Requires the role operator; audited.
#[utoipa::path(put, path = "/machines/{siteId}/{machineId}/name", tag = "machines",
    request_body = NewName, params(("siteId" = String, Path), ("machineId" = String, Path)),
    responses((status = 200, body = NamedMachine), (status = 400), (status = 403), (status = 404),
              (status = 409)))]
pub async fn rename(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(path): Path<(String, String)>,
    JsonBody(body): JsonBody<NewName>,
) -> Result<Json<NamedMachine>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let name = body.name.as_deref().map(str::trim);
    if name.is_some_and(|name| !is_display_name(name)) {
        let problem = format!("not 1 to {NAME_MAX} characters, or with a control character");
        return Err(ApiError::Issues(vec![Issue::new("name", problem)]));
    }
    change(&shared, &request, &path, MachineChange::Rename(name)).await
}

/// Declares that a machine continues under another id at its site, for example after `machine.id`
/// of its gateway was changed. Lists and filters then show the data of both ids as that of one
/// machine, the successor. Signed data, topics and the gateway's permissions do not change; streams
/// keep the ids that gateways send. Requires the role admin; audited.
///
/// 409: the machine has another successor, or the successor is an earlier id of the machine.
#[utoipa::path(post, path = "/machines/{siteId}/{machineId}/alias", tag = "machines",
    request_body = NewAlias, params(("siteId" = String, Path), ("machineId" = String, Path)),
    responses((status = 200, body = NamedMachine), (status = 400), (status = 403), (status = 404),
              (status = 409)))]
pub async fn alias(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(path): Path<(String, String)>,
    JsonBody(body): JsonBody<NewAlias>,
) -> Result<Json<NamedMachine>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    change(&shared, &request, &path, MachineChange::Alias(&body.successor)).await
}

/// Removes the alias of a machine, by its earlier id: both ids are machines of their own again.
/// Requires the role admin; audited.
#[utoipa::path(post, path = "/machines/{siteId}/{machineId}/unalias", tag = "machines",
    params(("siteId" = String, Path), ("machineId" = String, Path)),
    responses((status = 200, body = NamedMachine), (status = 400), (status = 403), (status = 404)))]
pub async fn unalias(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(path): Path<(String, String)>,
) -> Result<Json<NamedMachine>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    change(&shared, &request, &path, MachineChange::Unalias).await
}

fn is_display_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.chars().count()) && !name.chars().any(char::is_control)
}

async fn change(
    shared: &SharedState,
    request: &OrgRequest,
    (site, machine): &(String, String),
    change: MachineChange<'_>,
) -> Result<Json<NamedMachine>, ApiError> {
    let unknown = || ApiError::NotFound("machine");
    // A text that is no id names no machine.
    let site: SiteId = upstream_id::identity(site).map_err(|_| unknown())?;
    let machine: MachineId = upstream_id::identity(machine).map_err(|_| unknown())?;
    let by = changed_by(request);
    let changed = shared.store.change_machine(&request.org, (&site, &machine), change, by).await?;
    let names = changed.map_err(|refusal| match refusal {
        NameRefusal::UnknownMachine => unknown(),
        NameRefusal::NoAlias => ApiError::NotFound("alias"),
        other
        @ (NameRefusal::OtherSuccessor(_) | NameRefusal::Circle(_) | NameRefusal::TooMany) => {
            ApiError::Conflict(other.to_string())
        }
    })?;
    let mut origin = Origin { org: request.org.clone(), site, machine };
    let machine_name = names.present(&mut origin);
    let previous_ids = names.previous_ids(origin.site.as_str(), origin.machine.as_str());
    let Origin { org: org_id, site: site_id, machine: machine_id } = origin;
    Ok(Json(NamedMachine { org_id, site_id, machine_id, machine_name, previous_ids }))
}

/// Gives machines their names, and joins those that are one machine under several ids: the status
/// is that of the id that was seen last.
pub(super) fn join(names: &MachineNaming, statuses: Vec<MachineStatus>) -> Vec<MachineStatus> {
    let mut joined: Vec<MachineStatus> = Vec::with_capacity(statuses.len());
    for mut status in statuses {
        status.machine_name = names.present(&mut status.origin);
        let origin = &status.origin;
        status.previous_ids = names.previous_ids(origin.site.as_str(), origin.machine.as_str());
        // Only a machine with earlier ids can have been seen before.
        let same = if status.previous_ids.is_empty() {
            None
        } else {
            joined.iter_mut().find(|other| other.origin == status.origin)
        };
        match same {
            None => joined.push(status),
            Some(other) if other.last_seen_at < status.last_seen_at => {
                let earlier = std::mem::replace(other, status);
                complete(other, &earlier);
            }
            Some(other) => complete(other, &status),
        }
    }
    joined
}

/// Adds to a machine's status what its other id knows. A session that runs under that id only is
/// one that the renamed gateway has left.
fn complete(status: &mut MachineStatus, other: &MachineStatus) {
    status.missing_frames = status.missing_frames.saturating_add(other.missing_frames);
    status.last_sample_at = status.last_sample_at.or(other.last_sample_at);
    status.name_conflict_at = status.name_conflict_at.max(other.name_conflict_at);
    if status.last_event_at < other.last_event_at {
        status.last_event = other.last_event;
        status.last_event_at = other.last_event_at;
    }
}
