//! Routes for roast profiles: profiles, their versions, import and export.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::profile::{ProfileBody, RoastProfile, RoastProfileVersion};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::{self, JsonBody};
use http_stack::query;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::SharedState;
use super::annotations::{changed_by, check_size, etag};
use crate::profile_io;
use crate::store::{IngestStore, ProfileFilter};

/// The largest profile, in bytes of JSON.
pub const PROFILE_MAX: usize = 256 * 1024;
const NOTE_MAX: usize = 2_000;
/// The most profiles of one import.
pub const IMPORTED_MAX: usize = 500;
/// The fields of a profile that the server sets; values from clients are ignored.
const SERVER_FIELDS: [&str; 7] =
    ["profileId", "version", "orgId", "createdAt", "updatedAt", "isArchived", "actor"];

/// Lists profiles, most recently changed first.
#[utoipa::path(get, path = "/profiles", tag = "profiles",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineModel" = Option<String>, Query), ("q" = Option<String>, Query, description = "Text in the name or the notes"),
           ("tag" = Option<String>, Query), ("includeArchived" = Option<String>, Query),
           ("limit" = Option<i64>, Query, description = "0 to 200; default 50"),
           ("offset" = Option<i64>, Query, description = "At most 10000; beyond that use `cursor`"),
           ("cursor" = Option<String>, Query, description = "From the header x-next-cursor")),
    responses((status = 200, body = Vec<RoastProfile>), (status = 400), (status = 403)))]
pub async fn list(
    State(shared): State<SharedState>,
    request: OrgRequest,
) -> Result<Response, ApiError> {
    let params = &request.params;
    let owned = |name: &str| params.get(name).map(str::to_owned);
    let filter = ProfileFilter {
        site: owned("siteId"),
        machine_model: owned("machineModel"),
        search: owned("q"),
        tag: owned("tag"),
        archived_too: params.get("includeArchived") == Some("true"),
        limit: params.limit(50, 200)?,
        offset: params.number("offset", 0, 0, 10_000)?,
        after: params.cursor()?,
    };
    let profiles = shared.store.profiles(&request.org, &filter).await?;
    Ok(query::page(profiles, filter.limit, |last: &RoastProfile| {
        query::encode_cursor(last.updated_at.0, &last.profile_id)
    }))
}

/// Returns one profile. The `ETag` is its version.
#[utoipa::path(get, path = "/profiles/{profileId}", tag = "profiles", params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 404)))]
pub async fn one(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let found = shared.store.profile(&request.org, &id).await?;
    let profile = found.ok_or(ApiError::NotFound("profile"))?;
    Ok(([(header::ETAG, etag(profile.version))], Json(profile)).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The whole profile, or for a new version only the fields that change. Free-form, because each
    /// field may be absent and those that the server sets are ignored; `RoastProfile` names them.
    #[schema(value_type = std::collections::HashMap<String, Value>)]
    pub profile: Map<String, Value>,
    #[serde(default)]
    pub change_note: Option<String>,
}

impl Change {
    fn check(&self) -> Result<(), ApiError> {
        check_size(&self.profile, PROFILE_MAX)?;
        let note = self.change_note.as_deref().unwrap_or_default();
        if note.len() > NOTE_MAX || note.contains('\0') {
            return Err(ApiError::Issues(vec![Issue::new("changeNote", "more than 2000 bytes")]));
        }
        Ok(())
    }
}

/// Parses the fields that a client may set; drops those that the server sets.
fn body_of(mut fields: Map<String, Value>) -> Result<ProfileBody, ApiError> {
    fields.retain(|name, value| !SERVER_FIELDS.contains(&name.as_str()) && !value.is_null());
    let bytes = serde_json::to_vec(&fields).map_err(ApiError::internal)?;
    let body: ProfileBody = extract::parse_body(&bytes)?;
    match problems(&body) {
        issues if issues.is_empty() => Ok(body),
        issues => Err(ApiError::Issues(issues)),
    }
}

fn problems(body: &ProfileBody) -> Vec<Issue> {
    body.problems().iter().map(|(field, problem)| Issue::new(field, problem)).collect()
}

fn first_version(request: &OrgRequest, id: String, body: ProfileBody) -> RoastProfile {
    RoastProfile {
        profile_id: id,
        version: 1,
        org_id: request.org.to_string(),
        created_at: request.now(),
        updated_at: request.now(),
        is_archived: false,
        actor: Some(request.caller.actor.clone()),
        body,
    }
}

fn new_id(request: &OrgRequest) -> Result<String, ApiError> {
    let random: [u8; 4] = trust::random().map_err(ApiError::internal)?;
    let minute = request.now().compact().replace('T', "");
    Ok(format!("P-{}-{:08x}", &minute[..12], u32::from_be_bytes(random)))
}

/// Checks that the profile names the request's organisation or none.
fn check_org(request: &OrgRequest, change: &Change) -> Result<(), ApiError> {
    match change.profile.get("orgId").and_then(Value::as_str) {
        Some(org) if org != request.org.as_str() => {
            Err(ApiError::Forbidden("the profile belongs to another organisation".to_owned()))
        }
        _ => Ok(()),
    }
}

fn id_in_use() -> ApiError {
    ApiError::Conflict("a profile with this id exists; create a new version of it".to_owned())
}

/// Creates a profile. The server sets its version, times and author.
#[utoipa::path(post, path = "/profiles", tag = "profiles", request_body = Change,
    responses((status = 201, body = RoastProfile), (status = 400), (status = 403), (status = 409)))]
pub async fn create(
    State(shared): State<SharedState>,
    request: OrgRequest,
    JsonBody(change): JsonBody<Change>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    change.check()?;
    check_org(&request, &change)?;
    if !change.profile.contains_key("targets") {
        return Err(ApiError::Issues(vec![Issue::new("targets", "is missing")]));
    }
    let given = change.profile.get("profileId").and_then(Value::as_str);
    let id = match given {
        Some(id) if (1..=200).contains(&id.len()) => id.to_owned(),
        Some(_) => {
            return Err(ApiError::Issues(vec![Issue::new("profileId", "not 1 to 200 bytes")]));
        }
        None => new_id(&request)?,
    };
    let profile = first_version(&request, id, body_of(change.profile)?);
    let note = change.change_note.as_deref();
    if !shared.store.put_profile(&request.org, &profile, note, changed_by(&request)).await? {
        return Err(id_in_use());
    }
    Ok((StatusCode::CREATED, Json(profile)).into_response())
}

/// Creates a new version of a profile: the given fields replace those of the newest version, which
/// is kept. With `If-Match`, only if the newest version is the one it names; else 412.
#[utoipa::path(post, path = "/profiles/{profileId}/new-version", tag = "profiles",
    request_body = Change,
    params(("profileId" = String, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 201, body = RoastProfile), (status = 400), (status = 403), (status = 404),
              (status = 412)))]
pub async fn new_version(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
    headers: HeaderMap,
    JsonBody(change): JsonBody<Change>,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    change.check()?;
    check_org(&request, &change)?;
    let before = shared.store.profile(&request.org, &id).await?;
    let before = before.ok_or(ApiError::NotFound("profile"))?;
    let faster = || ApiError::Precondition("changed meanwhile; read it again and retry".to_owned());
    let if_match = headers.get(header::IF_MATCH);
    if if_match.is_some_and(|tag| tag.as_bytes() != etag(before.version).as_bytes()) {
        return Err(faster());
    }
    let Value::Object(mut merged) = json!(before.body) else {
        return Err(ApiError::internal("a profile that is not a JSON object"));
    };
    merged.extend(change.profile);
    check_size(&merged, PROFILE_MAX)?;
    let profile = RoastProfile {
        version: before.version.saturating_add(1),
        updated_at: request.now(),
        actor: Some(request.caller.actor.clone()),
        body: body_of(merged)?,
        ..before
    };
    let note = change.change_note.as_deref();
    if !shared.store.put_profile(&request.org, &profile, note, changed_by(&request)).await? {
        return Err(faster());
    }
    Ok((StatusCode::CREATED, Json(profile)).into_response())
}

/// Archives a profile.
#[utoipa::path(post, path = "/profiles/{profileId}/archive", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 403), (status = 404)))]
pub async fn archive(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<RoastProfile>, ApiError> {
    set_archived(&shared.store, &request, &id, true).await
}

/// Restores an archived profile.
#[utoipa::path(post, path = "/profiles/{profileId}/unarchive", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 403), (status = 404)))]
pub async fn unarchive(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<RoastProfile>, ApiError> {
    set_archived(&shared.store, &request, &id, false).await
}

async fn set_archived(
    store: &IngestStore,
    request: &OrgRequest,
    id: &str,
    archived: bool,
) -> Result<Json<RoastProfile>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let found = store.archive_profile(&request.org, id, archived, changed_by(request)).await?;
    found.map(Json).ok_or(ApiError::NotFound("profile"))
}

/// Lists the versions of a profile, newest first.
#[utoipa::path(get, path = "/profiles/{profileId}/versions", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = Vec<RoastProfileVersion>)))]
pub async fn versions(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<Vec<RoastProfileVersion>>, ApiError> {
    Ok(Json(shared.store.profile_versions(&request.org, &id).await?))
}

/// The export of a profile as JSON.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProfileExport {
    /// The profile; empty if it does not exist.
    pub profiles: Vec<RoastProfile>,
}

/// Exports a profile: as `json` with all fields, or as `csv` with the fields that a table can hold.
/// The export is empty if the profile does not exist.
#[utoipa::path(get, path = "/profiles/{profileId}/export", tag = "profiles",
    params(("profileId" = String, Path), ("format" = Option<String>, Query)),
    responses(
        (status = 200, content((ProfileExport = "application/json"), (String = "text/csv"))),
        (status = 400)))]
pub async fn export(
    State(shared): State<SharedState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let found: Vec<_> = shared.store.profile(&request.org, &id).await?.into_iter().collect();
    match request.params.get("format").unwrap_or("json") {
        "json" => Ok(Json(ProfileExport { profiles: found }).into_response()),
        "csv" => {
            let table = profile_io::to_csv(&found).map_err(ApiError::internal)?;
            Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], table).into_response())
        }
        _ => Err(ApiError::Invalid("format: not json or csv".to_owned())),
    }
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Imported {
    pub created: u32,
    pub updated: u32,
    /// Profiles that already existed with the same content.
    pub skipped: u32,
    pub errors: Vec<String>,
}

#[derive(Deserialize)]
struct Bundle {
    profiles: Vec<Map<String, Value>>,
}

/// Imports profiles: `json` (the format of the export: a profile whose id exists gets a new
/// version, unless the content is the same), `csv` (each row becomes a new profile), or `alog` (an
/// Artisan recording becomes the curve to follow).
#[utoipa::path(post, path = "/profiles/import", tag = "profiles",
    params(("format" = Option<String>, Query, description = "json, csv or alog")),
    request_body(content((Value = "application/json"), (String = "text/csv"))),
    responses((status = 200, body = Imported), (status = 400), (status = 403)))]
pub async fn import(
    State(shared): State<SharedState>,
    request: OrgRequest,
    body: Bytes,
) -> Result<Json<Imported>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let mut imported = Imported::default();
    match request.params.get("format").unwrap_or("json") {
        "json" => {
            for (number, fields) in (1_usize..).zip(parse_bundle(&body)?) {
                if let Err(error) = import_one(&shared.store, &request, fields, &mut imported).await
                {
                    record_error(&mut imported, &format!("profile {number}"), error)?;
                }
            }
        }
        "csv" => {
            let rows = profile_io::from_csv(&import_text(&body)?, IMPORTED_MAX + 1);
            check_count(rows.len())?;
            for row in rows {
                match row {
                    Ok(body) => {
                        create_imported(&shared.store, &request, body, &mut imported).await?;
                    }
                    Err(error) => imported.errors.push(error),
                }
            }
        }
        "alog" => match profile_io::from_recording(&import_text(&body)?) {
            Ok(body) => create_imported(&shared.store, &request, body, &mut imported).await?,
            Err(error) => return Err(ApiError::Invalid(error)),
        },
        _ => return Err(ApiError::Invalid("format: not json, csv or alog".to_owned())),
    }
    Ok(Json(imported))
}

/// Returns the body of an import as text. Invalid bytes and NUL become the replacement character.
pub(crate) fn import_text(body: &[u8]) -> Result<String, ApiError> {
    let text = String::from_utf8_lossy(body).replace('\0', "\u{fffd}");
    if text.trim().is_empty() {
        return Err(ApiError::Invalid("the body is empty".to_owned()));
    }
    Ok(text)
}

/// Returns the fields of each profile of an import in the format `json`.
pub(crate) fn parse_bundle(body: &[u8]) -> Result<Vec<Map<String, Value>>, ApiError> {
    let bundle: Bundle = extract::parse_body(body)?;
    check_count(bundle.profiles.len())?;
    Ok(bundle.profiles)
}

/// Parses one profile of a bundle. Returns it with the id that it names.
pub(crate) fn parse_bundled(
    mut fields: Map<String, Value>,
) -> Result<(Option<String>, ProfileBody), ApiError> {
    check_size(&fields, PROFILE_MAX)?;
    fields.entry("source").or_insert_with(|| json!({"kind": "IMPORT"}));
    let id = fields.get("profileId").and_then(Value::as_str).map(str::to_owned);
    Ok((id, body_of(fields)?))
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count > IMPORTED_MAX {
        return Err(ApiError::TooLarge(format!("more than {IMPORTED_MAX} profiles")));
    }
    Ok(())
}

/// Adds a client error about one profile to the result; returns a server error, which ends the
/// import.
fn record_error(imported: &mut Imported, which: &str, error: ApiError) -> Result<(), ApiError> {
    if error.status().is_server_error() {
        return Err(error);
    }
    imported.errors.push(format!("{which}: {error}"));
    Ok(())
}

/// Creates a new profile from an imported body.
async fn create_imported(
    store: &IngestStore,
    request: &OrgRequest,
    body: ProfileBody,
    imported: &mut Imported,
) -> Result<(), ApiError> {
    let issues = problems(&body);
    if !issues.is_empty() {
        return record_error(imported, &format!("{:?}", body.name), ApiError::Issues(issues));
    }
    let name = body.name.clone();
    let profile = first_version(request, new_id(request)?, body);
    if !store.put_profile(&request.org, &profile, Some("Imported"), changed_by(request)).await? {
        return record_error(imported, &format!("{name:?}"), id_in_use());
    }
    imported.created = imported.created.saturating_add(1);
    Ok(())
}

/// Imports one profile of a bundle into the caller's organisation, whichever organisation it names;
/// its id decides whether it is new.
async fn import_one(
    store: &IngestStore,
    request: &OrgRequest,
    fields: Map<String, Value>,
    imported: &mut Imported,
) -> Result<(), ApiError> {
    let (id, body) = parse_bundled(fields)?;
    let id = match id {
        Some(id) if (1..=200).contains(&id.len()) => id,
        _ => new_id(request)?,
    };
    let Some(before) = store.profile(&request.org, &id).await? else {
        let profile = first_version(request, id, body);
        let added = store
            .put_profile(&request.org, &profile, Some("Imported"), changed_by(request))
            .await?;
        if !added {
            return Err(id_in_use());
        }
        imported.created = imported.created.saturating_add(1);
        return Ok(());
    };
    let sorted = |body: &ProfileBody| {
        let mut body = body.clone();
        if let Some(tags) = &mut body.tags {
            tags.sort();
        }
        body
    };
    if sorted(&before.body) == sorted(&body) {
        imported.skipped = imported.skipped.saturating_add(1);
        return Ok(());
    }
    let profile = RoastProfile {
        version: before.version.saturating_add(1),
        updated_at: request.now(),
        actor: Some(request.caller.actor.clone()),
        body,
        ..before
    };
    if !store.put_profile(&request.org, &profile, Some("Imported"), changed_by(request)).await? {
        return Err(ApiError::Precondition(
            "changed meanwhile; read it again and retry".to_owned(),
        ));
    }
    imported.updated = imported.updated.saturating_add(1);
    Ok(())
}
