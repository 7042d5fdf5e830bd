//! Routes for roast profiles: profiles, their versions, import and export.

use axum::Json;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::profile::{ProfileBody, RoastProfile, RoastProfileVersion};
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::{self, JsonBody};
use http_stack::query::{self, Params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::RequestState;
use super::annotations::{check_size, etag};
use crate::profile_io;
use crate::store::ProfileFilter;

const PROFILE_MAX: usize = 256 * 1024;
const NOTE_MAX: usize = 2_000;
const IMPORTED_MAX: usize = 500;
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
pub async fn list(state: RequestState, params: Params) -> Result<Response, ApiError> {
    let owned = |name: &str| params.get(name).map(str::to_owned);
    let filter = ProfileFilter {
        site: owned("siteId"),
        machine_model: owned("machineModel"),
        words: owned("q"),
        tag: owned("tag"),
        archived_too: params.get("includeArchived") == Some("true"),
        limit: params.limit(50, 200)?,
        offset: params.number("offset", 0, 0, 10_000)?,
        after: params.cursor()?,
    };
    let profiles = state.store.profiles(&state.org, &filter).await?;
    Ok(query::page(profiles, filter.limit, |last: &RoastProfile| {
        query::encode_cursor(last.updated_at.0, &last.profile_id)
    }))
}

/// Returns one profile. The `ETag` is its version.
#[utoipa::path(get, path = "/profiles/{profileId}", tag = "profiles", params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 404)))]
pub async fn one(state: RequestState, Path(id): Path<String>) -> Result<Response, ApiError> {
    let found = state.store.profile(&state.org, &id).await?;
    let profile = found.ok_or(ApiError::NotFound("profile"))?;
    Ok(([(header::ETAG, etag(profile.version))], Json(profile)).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The whole profile, or for a new version only the fields that change.
    #[schema(value_type = Object)]
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
fn body_of(mut said: Map<String, Value>) -> Result<ProfileBody, ApiError> {
    said.retain(|name, value| !SERVER_FIELDS.contains(&name.as_str()) && !value.is_null());
    let bytes = serde_json::to_vec(&said).map_err(ApiError::internal)?;
    let body: ProfileBody = extract::parse_body(&bytes)?;
    match problems(&body) {
        issues if issues.is_empty() => Ok(body),
        issues => Err(ApiError::Issues(issues)),
    }
}

fn problems(body: &ProfileBody) -> Vec<Issue> {
    body.problems().iter().map(|(field, problem)| Issue::new(field, problem)).collect()
}

fn first_version(state: &RequestState, id: String, body: ProfileBody) -> RoastProfile {
    RoastProfile {
        profile_id: id,
        version: 1,
        org_id: state.org.to_string(),
        created_at: state.now,
        updated_at: state.now,
        is_archived: false,
        actor: Some(state.caller.actor.clone()),
        body,
    }
}

fn new_id(state: &RequestState) -> Result<String, ApiError> {
    let random: [u8; 4] = trust::random().map_err(ApiError::internal)?;
    let minute = state.now.compact().replace('T', "");
    Ok(format!("P-{}-{:08x}", &minute[..12], u32::from_be_bytes(random)))
}

/// Checks that the profile names the request's organisation or none.
fn check_org(state: &RequestState, change: &Change) -> Result<(), ApiError> {
    match change.profile.get("orgId").and_then(Value::as_str) {
        Some(named) if named != state.org.as_str() => {
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
    state: RequestState,
    JsonBody(change): JsonBody<Change>,
) -> Result<Response, ApiError> {
    state.caller.require_role(Role::Operator)?;
    change.check()?;
    check_org(&state, &change)?;
    if !change.profile.contains_key("targets") {
        return Err(ApiError::Issues(vec![Issue::new("targets", "is missing")]));
    }
    let given = change.profile.get("profileId").and_then(Value::as_str);
    let id = match given {
        Some(id) if (1..=200).contains(&id.len()) => id.to_owned(),
        Some(_) => {
            return Err(ApiError::Issues(vec![Issue::new("profileId", "not 1 to 200 bytes")]));
        }
        None => new_id(&state)?,
    };
    let profile = first_version(&state, id, body_of(change.profile)?);
    let note = change.change_note.as_deref();
    if !state.store.put_profile(&state.org, &profile, note, state.changed_by()).await? {
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
    state: RequestState,
    Path(id): Path<String>,
    headers: HeaderMap,
    JsonBody(change): JsonBody<Change>,
) -> Result<Response, ApiError> {
    state.caller.require_role(Role::Operator)?;
    change.check()?;
    check_org(&state, &change)?;
    let before = state.store.profile(&state.org, &id).await?;
    let before = before.ok_or(ApiError::NotFound("profile"))?;
    let faster = || ApiError::Precondition("changed meanwhile; read it again and retry".to_owned());
    let wanted = headers.get(header::IF_MATCH);
    if wanted.is_some_and(|tag| tag.as_bytes() != etag(before.version).as_bytes()) {
        return Err(faster());
    }
    let Value::Object(mut merged) = json!(before.body) else {
        return Err(ApiError::internal("a profile that is not a JSON object"));
    };
    merged.extend(change.profile);
    check_size(&merged, PROFILE_MAX)?;
    let profile = RoastProfile {
        version: before.version + 1,
        updated_at: state.now,
        actor: Some(state.caller.actor.clone()),
        body: body_of(merged)?,
        ..before
    };
    let note = change.change_note.as_deref();
    if !state.store.put_profile(&state.org, &profile, note, state.changed_by()).await? {
        return Err(faster());
    }
    Ok((StatusCode::CREATED, Json(profile)).into_response())
}

/// Archives a profile.
#[utoipa::path(post, path = "/profiles/{profileId}/archive", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 403), (status = 404)))]
pub async fn archive(
    state: RequestState,
    Path(id): Path<String>,
) -> Result<Json<RoastProfile>, ApiError> {
    set_archived(&state, &id, true).await
}

/// Restores an archived profile.
#[utoipa::path(post, path = "/profiles/{profileId}/unarchive", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 403), (status = 404)))]
pub async fn unarchive(
    state: RequestState,
    Path(id): Path<String>,
) -> Result<Json<RoastProfile>, ApiError> {
    set_archived(&state, &id, false).await
}

async fn set_archived(
    state: &RequestState,
    id: &str,
    archived: bool,
) -> Result<Json<RoastProfile>, ApiError> {
    state.caller.require_role(Role::Operator)?;
    let found = state.store.archive_profile(&state.org, id, archived, state.changed_by()).await?;
    found.map(Json).ok_or(ApiError::NotFound("profile"))
}

/// Lists the versions of a profile, newest first.
#[utoipa::path(get, path = "/profiles/{profileId}/versions", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = Vec<RoastProfileVersion>)))]
pub async fn versions(
    state: RequestState,
    Path(id): Path<String>,
) -> Result<Json<Vec<RoastProfileVersion>>, ApiError> {
    Ok(Json(state.store.profile_versions(&state.org, &id).await?))
}

/// Exports a profile: as `json` with all fields, or as `csv` with the fields that a table can hold.
/// The export is empty if the profile does not exist.
#[utoipa::path(get, path = "/profiles/{profileId}/export", tag = "profiles",
    params(("profileId" = String, Path), ("format" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400)))]
pub async fn export(
    state: RequestState,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let found: Vec<_> = state.store.profile(&state.org, &id).await?.into_iter().collect();
    match params.get("format").unwrap_or("json") {
        "json" => Ok(Json(json!({"profiles": found})).into_response()),
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
    request_body(content = String, content_type = "text/csv"),
    responses((status = 200, body = Imported), (status = 400), (status = 403)))]
pub async fn import(
    state: RequestState,
    params: Params,
    body: Bytes,
) -> Result<Json<Imported>, ApiError> {
    state.caller.require_role(Role::Operator)?;
    let text = || {
        let text = String::from_utf8_lossy(&body).replace('\0', "\u{fffd}");
        if text.trim().is_empty() {
            Err(ApiError::Invalid("the body is empty".to_owned()))
        } else {
            Ok(text)
        }
    };
    let mut told = Imported::default();
    match params.get("format").unwrap_or("json") {
        "json" => {
            let bundle: Bundle = extract::parse_body(&body)?;
            check_count(bundle.profiles.len())?;
            for (i, said) in bundle.profiles.into_iter().enumerate() {
                if let Err(error) = import_one(&state, said, &mut told).await {
                    record_error(&mut told, &format!("profile {}", i + 1), error)?;
                }
            }
        }
        "csv" => {
            let rows = profile_io::from_csv(&text()?, IMPORTED_MAX + 1);
            check_count(rows.len())?;
            for row in rows {
                match row {
                    Ok(body) => create_imported(&state, body, &mut told).await?,
                    Err(error) => told.errors.push(error),
                }
            }
        }
        "alog" => match profile_io::from_recording(&text()?) {
            Ok(body) => create_imported(&state, body, &mut told).await?,
            Err(error) => return Err(ApiError::Invalid(error)),
        },
        _ => return Err(ApiError::Invalid("format: not json, csv or alog".to_owned())),
    }
    Ok(Json(told))
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count > IMPORTED_MAX {
        return Err(ApiError::TooLarge(format!("more than {IMPORTED_MAX} profiles")));
    }
    Ok(())
}

/// Adds a client error about one profile to the result; returns a server error, which ends the
/// import.
fn record_error(told: &mut Imported, which: &str, error: ApiError) -> Result<(), ApiError> {
    if error.status().is_server_error() {
        return Err(error);
    }
    told.errors.push(format!("{which}: {error}"));
    Ok(())
}

/// Creates a new profile from an imported body.
async fn create_imported(
    state: &RequestState,
    body: ProfileBody,
    told: &mut Imported,
) -> Result<(), ApiError> {
    let issues = problems(&body);
    if !issues.is_empty() {
        return record_error(told, &format!("{:?}", body.name), ApiError::Issues(issues));
    }
    let name = body.name.clone();
    let profile = first_version(state, new_id(state)?, body);
    if !state.store.put_profile(&state.org, &profile, Some("Imported"), state.changed_by()).await? {
        return record_error(told, &format!("{name:?}"), id_in_use());
    }
    told.created += 1;
    Ok(())
}

/// Imports one profile of a bundle into the caller's organisation, whichever organisation it names;
/// its id decides whether it is new.
async fn import_one(
    state: &RequestState,
    said: Map<String, Value>,
    told: &mut Imported,
) -> Result<(), ApiError> {
    check_size(&said, PROFILE_MAX)?;
    let mut said = said;
    said.entry("source").or_insert_with(|| json!({"kind": "IMPORT"}));
    let id = said.get("profileId").and_then(Value::as_str).map(str::to_owned);
    let body = body_of(said)?;
    let id = match id {
        Some(id) if (1..=200).contains(&id.len()) => id,
        _ => new_id(state)?,
    };
    let Some(before) = state.store.profile(&state.org, &id).await? else {
        let profile = first_version(state, id, body);
        if !state
            .store
            .put_profile(&state.org, &profile, Some("Imported"), state.changed_by())
            .await?
        {
            return Err(id_in_use());
        }
        told.created += 1;
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
        told.skipped += 1;
        return Ok(());
    }
    let profile = RoastProfile {
        version: before.version + 1,
        updated_at: state.now,
        actor: Some(state.caller.actor.clone()),
        body,
        ..before
    };
    if !state.store.put_profile(&state.org, &profile, Some("Imported"), state.changed_by()).await? {
        return Err(ApiError::Precondition(
            "changed meanwhile; read it again and retry".to_owned(),
        ));
    }
    told.updated += 1;
    Ok(())
}
