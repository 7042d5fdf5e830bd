//! What roasts should be: profiles, their versions, and how they come and go.

use axum::Json;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use contract::profile::{ProfileBody, RoastProfile, RoastProfileVersion};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use service::auth::Role;
use service::error::{ApiError, Issue};
use service::extract::{self, Body};
use service::query::{self, Params};
use utoipa::ToSchema;

use super::State;
use super::written::{etag, fits};
use crate::exchange;
use crate::store::ProfileFilter;

const PROFILE_MAX: usize = 256 * 1024;
const NOTE_MAX: usize = 2_000;
const IMPORTED_MAX: usize = 500;
/// What stands in a profile and is ours to say.
const OURS: [&str; 7] =
    ["profileId", "version", "orgId", "createdAt", "updatedAt", "isArchived", "actor"];

/// Profiles, the newest change first.
#[utoipa::path(get, path = "/profiles", tag = "profiles",
    params(("orgId" = Option<String>, Query), ("siteId" = Option<String>, Query),
           ("machineModel" = Option<String>, Query), ("q" = Option<String>, Query, description = "In name or notes"),
           ("tag" = Option<String>, Query), ("includeArchived" = Option<String>, Query),
           ("limit" = Option<i64>, Query, description = "0 to 200; 50"),
           ("offset" = Option<i64>, Query, description = "At most 10000: further with `cursor`"),
           ("cursor" = Option<String>, Query, description = "From the header x-next-cursor")),
    responses((status = 200, body = Vec<RoastProfile>), (status = 400), (status = 403)))]
pub async fn list(state: State, params: Params) -> Result<Response, ApiError> {
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
        query::cursor(last.updated_at.0, &last.profile_id)
    }))
}

/// One profile; its version is the `ETag`.
#[utoipa::path(get, path = "/profiles/{profileId}", tag = "profiles", params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 404)))]
pub async fn one(state: State, Path(id): Path<String>) -> Result<Response, ApiError> {
    let found = state.store.profile(&state.org, &id).await?;
    let profile = found.ok_or(ApiError::NotFound("profile"))?;
    Ok(([(header::ETAG, etag(profile.version))], Json(profile)).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// A profile, or of a new version what differs.
    #[schema(value_type = Object)]
    pub profile: Map<String, Value>,
    #[serde(default)]
    pub change_note: Option<String>,
}

impl Change {
    fn check(&self) -> Result<(), ApiError> {
        fits(&self.profile, PROFILE_MAX)?;
        let note = self.change_note.as_deref().unwrap_or_default();
        if note.len() > NOTE_MAX || note.contains('\0') {
            return Err(ApiError::Issues(vec![Issue::new("changeNote", "more than 2000 bytes")]));
        }
        Ok(())
    }
}

/// Reads what a person may say; what is ours is left out.
fn body_of(mut said: Map<String, Value>) -> Result<ProfileBody, ApiError> {
    said.retain(|name, value| !OURS.contains(&name.as_str()) && !value.is_null());
    let bytes = serde_json::to_vec(&said).map_err(ApiError::internal)?;
    let body: ProfileBody = extract::parse(&bytes)?;
    match problems(&body) {
        issues if issues.is_empty() => Ok(body),
        issues => Err(ApiError::Issues(issues)),
    }
}

fn problems(body: &ProfileBody) -> Vec<Issue> {
    body.problems().iter().map(|(field, problem)| Issue::new(field, problem)).collect()
}

fn first(state: &State, id: String, body: ProfileBody) -> RoastProfile {
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

fn new_id(state: &State) -> Result<String, ApiError> {
    let random: [u8; 4] = trust::random().map_err(ApiError::internal)?;
    let minute = state.now.compact().replace('T', "");
    Ok(format!("P-{}-{:08x}", &minute[..12], u32::from_be_bytes(random)))
}

/// A profile names the organisation that the request is about, or none.
fn of_us(state: &State, change: &Change) -> Result<(), ApiError> {
    match change.profile.get("orgId").and_then(Value::as_str) {
        Some(named) if named != state.org.as_str() => {
            Err(ApiError::Forbidden("of another organisation".to_owned()))
        }
        _ => Ok(()),
    }
}

fn taken() -> ApiError {
    ApiError::Conflict("there is a profile of that id; make a new version of it".to_owned())
}

/// Make a profile. Its version, times and author are ours to say.
#[utoipa::path(post, path = "/profiles", tag = "profiles", request_body = Change,
    responses((status = 201, body = RoastProfile), (status = 400), (status = 403), (status = 409)))]
pub async fn create(state: State, Body(change): Body<Change>) -> Result<Response, ApiError> {
    state.caller.need(Role::Operator)?;
    change.check()?;
    of_us(&state, &change)?;
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
    let profile = first(&state, id, body_of(change.profile)?);
    let note = change.change_note.as_deref();
    if !state.store.put_profile(&state.org, &profile, note, state.by()).await? {
        return Err(taken());
    }
    Ok((StatusCode::CREATED, Json(profile)).into_response())
}

/// Change a profile: what is said is laid over the newest version, which stays. With `If-Match` only
/// over the version it names.
#[utoipa::path(post, path = "/profiles/{profileId}/new-version", tag = "profiles",
    request_body = Change,
    params(("profileId" = String, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 201, body = RoastProfile), (status = 400), (status = 403), (status = 404),
              (status = 412)))]
pub async fn new_version(
    state: State,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(change): Body<Change>,
) -> Result<Response, ApiError> {
    state.caller.need(Role::Operator)?;
    change.check()?;
    of_us(&state, &change)?;
    let before = state.store.profile(&state.org, &id).await?;
    let before = before.ok_or(ApiError::NotFound("profile"))?;
    let faster = || ApiError::Precondition("somebody else has changed it meanwhile".to_owned());
    let wanted = headers.get(header::IF_MATCH);
    if wanted.is_some_and(|tag| tag.as_bytes() != etag(before.version).as_bytes()) {
        return Err(faster());
    }
    let Value::Object(mut merged) = json!(before.body) else {
        return Err(ApiError::internal("a profile that is no object"));
    };
    merged.extend(change.profile);
    fits(&merged, PROFILE_MAX)?;
    let profile = RoastProfile {
        version: before.version + 1,
        updated_at: state.now,
        actor: Some(state.caller.actor.clone()),
        body: body_of(merged)?,
        ..before
    };
    let note = change.change_note.as_deref();
    if !state.store.put_profile(&state.org, &profile, note, state.by()).await? {
        return Err(faster());
    }
    Ok((StatusCode::CREATED, Json(profile)).into_response())
}

/// Put a profile away.
#[utoipa::path(post, path = "/profiles/{profileId}/archive", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 403), (status = 404)))]
pub async fn archive(state: State, Path(id): Path<String>) -> Result<Json<RoastProfile>, ApiError> {
    set_archived(&state, &id, true).await
}

/// Take a profile out again.
#[utoipa::path(post, path = "/profiles/{profileId}/unarchive", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = RoastProfile), (status = 403), (status = 404)))]
pub async fn unarchive(
    state: State,
    Path(id): Path<String>,
) -> Result<Json<RoastProfile>, ApiError> {
    set_archived(&state, &id, false).await
}

async fn set_archived(
    state: &State,
    id: &str,
    archived: bool,
) -> Result<Json<RoastProfile>, ApiError> {
    state.caller.need(Role::Operator)?;
    let found = state.store.archive_profile(&state.org, id, archived, state.by()).await?;
    found.map(Json).ok_or(ApiError::NotFound("profile"))
}

/// The versions of a profile, the newest first.
#[utoipa::path(get, path = "/profiles/{profileId}/versions", tag = "profiles",
    params(("profileId" = String, Path)),
    responses((status = 200, body = Vec<RoastProfileVersion>)))]
pub async fn versions(
    state: State,
    Path(id): Path<String>,
) -> Result<Json<Vec<RoastProfileVersion>>, ApiError> {
    Ok(Json(state.store.profile_versions(&state.org, &id).await?))
}

/// A profile to take elsewhere (none, if there is none): `json` with everything, or `csv` with what a table can hold.
#[utoipa::path(get, path = "/profiles/{profileId}/export", tag = "profiles",
    params(("profileId" = String, Path), ("format" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400)))]
pub async fn export(
    state: State,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let found: Vec<_> = state.store.profile(&state.org, &id).await?.into_iter().collect();
    match params.get("format").unwrap_or("json") {
        "json" => Ok(Json(json!({"profiles": found})).into_response()),
        "csv" => {
            let table = exchange::to_csv(&found).map_err(ApiError::internal)?;
            Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], table).into_response())
        }
        _ => Err(ApiError::Invalid("format: not json or csv".to_owned())),
    }
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Imported {
    pub created: u32,
    pub updated: u32,
    /// They were here already, the same.
    pub skipped: u32,
    pub errors: Vec<String>,
}

#[derive(Deserialize)]
struct Bundle {
    profiles: Vec<Map<String, Value>>,
}

/// Take profiles in: `json` (what export gives: known ones get a new version, unless they are the
/// same), `csv` (each row a new one), or `alog` (an Artisan recording as the curve to follow).
#[utoipa::path(post, path = "/profiles/import", tag = "profiles",
    params(("format" = Option<String>, Query, description = "json, csv or alog")),
    request_body(content = String, content_type = "text/csv"),
    responses((status = 200, body = Imported), (status = 400), (status = 403)))]
pub async fn import(state: State, params: Params, body: Bytes) -> Result<Json<Imported>, ApiError> {
    state.caller.need(Role::Operator)?;
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
            let bundle: Bundle = extract::parse(&body)?;
            bounded(bundle.profiles.len())?;
            for (i, said) in bundle.profiles.into_iter().enumerate() {
                if let Err(error) = take(&state, said, &mut told).await {
                    tell(&mut told, &format!("profile {}", i + 1), error)?;
                }
            }
        }
        "csv" => {
            let rows = exchange::from_csv(&text()?, IMPORTED_MAX + 1);
            bounded(rows.len())?;
            for row in rows {
                match row {
                    Ok(body) => add(&state, body, &mut told).await?,
                    Err(error) => told.errors.push(error),
                }
            }
        }
        "alog" => match exchange::from_recording(&text()?) {
            Ok(body) => add(&state, body, &mut told).await?,
            Err(error) => return Err(ApiError::Invalid(error)),
        },
        _ => return Err(ApiError::Invalid("format: not json, csv or alog".to_owned())),
    }
    Ok(Json(told))
}

fn bounded(count: usize) -> Result<(), ApiError> {
    if count > IMPORTED_MAX {
        return Err(ApiError::TooLarge(format!("more than {IMPORTED_MAX} profiles")));
    }
    Ok(())
}

/// What is wrong with one profile is told; what is wrong with us ends the import.
fn tell(told: &mut Imported, which: &str, error: ApiError) -> Result<(), ApiError> {
    if error.status().is_server_error() {
        return Err(error);
    }
    told.errors.push(format!("{which}: {error}"));
    Ok(())
}

/// A new profile of an imported body.
async fn add(state: &State, body: ProfileBody, told: &mut Imported) -> Result<(), ApiError> {
    let issues = problems(&body);
    if !issues.is_empty() {
        return tell(told, &format!("{:?}", body.name), ApiError::Issues(issues));
    }
    let name = body.name.clone();
    let profile = first(state, new_id(state)?, body);
    if !state.store.put_profile(&state.org, &profile, Some("Imported"), state.by()).await? {
        return tell(told, &format!("{name:?}"), taken());
    }
    told.created += 1;
    Ok(())
}

/// One of a bundle: ours whatever organisation it names, known by its id.
async fn take(
    state: &State,
    said: Map<String, Value>,
    told: &mut Imported,
) -> Result<(), ApiError> {
    fits(&said, PROFILE_MAX)?;
    let mut said = said;
    said.entry("source").or_insert_with(|| json!({"kind": "IMPORT"}));
    let id = said.get("profileId").and_then(Value::as_str).map(str::to_owned);
    let body = body_of(said)?;
    let id = match id {
        Some(id) if (1..=200).contains(&id.len()) => id,
        _ => new_id(state)?,
    };
    let Some(before) = state.store.profile(&state.org, &id).await? else {
        let profile = first(state, id, body);
        if !state.store.put_profile(&state.org, &profile, Some("Imported"), state.by()).await? {
            return Err(taken());
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
    if !state.store.put_profile(&state.org, &profile, Some("Imported"), state.by()).await? {
        return Err(ApiError::Precondition("somebody else has changed it meanwhile".to_owned()));
    }
    told.updated += 1;
    Ok(())
}
