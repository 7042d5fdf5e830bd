//! Stores profiles and their versions.

use std::fmt::Write as _;

use ::database::sqlx::{AssertSqlSafe, query, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};
use contract::OrgId;
use contract::profile::{RoastProfile, RoastProfileVersion};
use serde_json::json;

use super::IngestStore;
use super::annotations::{ChangedBy, read, text};

/// How many of the newest profiles a search for words or a tag covers.
const SEARCHED: i64 = 5_000;

/// Which profiles to list.
#[derive(Debug, Clone, Default)]
pub struct ProfileFilter {
    pub site: Option<String>,
    pub machine_model: Option<String>,
    /// Text contained in the name or the notes, whatever the case.
    pub search: Option<String>,
    pub tag: Option<String>,
    pub archived_too: bool,
    pub limit: i64,
    pub offset: i64,
    /// The page begins after this profile: (updated, id).
    pub after: Option<(i64, String)>,
}

/// Returns tags in the form in which they are stored and searched.
fn lines(tags: &[String]) -> String {
    format!("\n{}\n", tags.join("\n"))
}

impl IngestStore {
    /// Returns a profile.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn profile(&self, org: &OrgId, id: &str) -> Result<Option<RoastProfile>, StoreError> {
        const DOING: &str = "reading a profile";
        let body: Option<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM profiles WHERE org_id = $1 AND profile_id = $2")
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        body.map(|body| read(DOING, &body)).transpose()
    }

    /// Returns profiles, the newest change first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn profiles(
        &self,
        org: &OrgId,
        filter: &ProfileFilter,
    ) -> Result<Vec<RoastProfile>, StoreError> {
        const DOING: &str = "listing profiles";
        let mut values = vec![org.as_str().to_owned()];
        let mut bind = |value: &str| {
            values.push(value.to_owned());
            values.len()
        };
        let mut indexed = String::new();
        let mut searched = String::from("0 = 0");
        if let Some(site) = &filter.site {
            let _ = write!(indexed, " AND site_id = ${}", bind(site));
        }
        if let Some(model) = &filter.machine_model {
            let _ = write!(indexed, " AND machine_model = ${}", bind(model));
        }
        if !filter.archived_too {
            indexed.push_str(" AND archived = 0");
        }
        if let Some((updated, id)) = &filter.after {
            let parameter = bind(id);
            let _ = write!(indexed, " AND (updated_ms, profile_id) < ({updated}, ${parameter})");
        }
        if let Some(search) = &filter.search {
            let search = search.to_lowercase();
            let plain = search.replace('!', "!!").replace('%', "!%").replace('_', "!_");
            let parameter = bind(&format!("%{plain}%"));
            let _ = write!(searched, " AND words LIKE ${parameter} ESCAPE '!'");
        }
        if let Some(tag) = &filter.tag {
            // An exact match; LIKE ignores case on SQLite.
            let find = if self.database.is_postgres() { "strpos" } else { "instr" };
            let parameter = bind(&lines(std::slice::from_ref(tag)));
            let _ = write!(searched, " AND 0 < {find}(tags, ${parameter})");
        }
        let searching = filter.search.is_some() || filter.tag.is_some();
        let shown = filter.limit.saturating_add(filter.offset);
        let looked_at = if searching { SEARCHED } else { shown };
        let order = "ORDER BY updated_ms DESC, profile_id DESC LIMIT";
        let sql = format!(
            "SELECT body FROM (SELECT body, words, tags, updated_ms, profile_id FROM profiles \
             WHERE org_id = $1{indexed} {order} {looked_at}) AS newest WHERE {searched} \
             {order} {} OFFSET {}",
            filter.limit, filter.offset
        );
        let rows: Vec<String> = on!(self.database, pool => {
            let mut q = query_scalar(AssertSqlSafe(sql));
            for value in &values {
                q = q.bind(value);
            }
            q.fetch_all(pool).await
        })
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|body| read(DOING, body)).collect()
    }

    /// Returns the newest fifty versions of a profile, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn profile_versions(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Vec<RoastProfileVersion>, StoreError> {
        const DOING: &str = "listing a profile's versions";
        const VERSIONS_MAX: i64 = 50;
        let rows: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM profile_versions WHERE org_id = $1 AND profile_id = $2 \
             ORDER BY version DESC LIMIT $3")
            .bind(org.as_str()).bind(id).bind(VERSIONS_MAX).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|body| read(DOING, body)).collect()
    }

    /// Stores a profile: its first version, or the one after the version that the caller read.
    /// Returns `false` if its id is taken, or if another caller changed the profile first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn put_profile(
        &self,
        org: &OrgId,
        profile: &RoastProfile,
        change_note: Option<&str>,
        by: ChangedBy<'_>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.database.begin().await?;
        if !write_profile(&mut tx, org, profile).await? {
            return Ok(false);
        }
        let version = RoastProfileVersion {
            profile_id: profile.profile_id.clone(),
            version: profile.version,
            created_at: profile.updated_at,
            actor: profile.actor.clone(),
            snapshot: profile.clone(),
            change_note: change_note.map(str::to_owned),
        };
        on_tx!(&mut tx, c => query(
            "INSERT INTO profile_versions (org_id, profile_id, version, body) VALUES ($1, $2, $3, $4)")
            .bind(org.as_str()).bind(&profile.profile_id).bind(profile.version)
            .bind(text(&version)?).execute(c).await.map(drop))
        .map_err(StoreError::query("storing a profile's version"))?;
        let details = json!({"version": profile.version, "name": profile.body.name});
        Self::audit(&mut tx, org, by, ("profile.write", &profile.profile_id, details)).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Archives a profile, or restores it from the archive; its version does not change. Returns
    /// `None` if there is no such profile.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn archive_profile(
        &self,
        org: &OrgId,
        id: &str,
        archived: bool,
        by: ChangedBy<'_>,
    ) -> Result<Option<RoastProfile>, StoreError> {
        const DOING: &str = "archiving a profile";
        const ATTEMPTS: usize = 8;
        for _ in 0..ATTEMPTS {
            let Some(mut profile) = self.profile(org, id).await? else { return Ok(None) };
            profile.is_archived = archived;
            profile.updated_at = by.now;
            profile.actor = Some(by.actor.clone());
            let mut tx = self.database.begin().await?;
            // Only over the version that was read: this must not overwrite a newer one.
            let done = on_tx!(&mut tx, c => query(
                "UPDATE profiles SET archived = $4, updated_ms = $5, body = $6 \
                 WHERE org_id = $1 AND profile_id = $2 AND version = $3")
                .bind(org.as_str()).bind(id).bind(profile.version).bind(i64::from(archived))
                .bind(by.now.0).bind(text(&profile)?)
                .execute(c).await.map(|done| done.rows_affected()))
            .map_err(StoreError::query(DOING))?;
            if done == 0 {
                continue; // another caller was faster; dropping the transaction ends it
            }
            let action = if archived { "profile.archive" } else { "profile.unarchive" };
            Self::audit(&mut tx, org, by, (action, id, json!({}))).await?;
            tx.commit().await?;
            return Ok(Some(profile));
        }
        Err(StoreError::row(DOING, format!("{id} was another version {ATTEMPTS} times")))
    }
}

async fn write_profile(
    tx: &mut Tx,
    org: &OrgId,
    profile: &RoastProfile,
) -> Result<bool, StoreError> {
    let body = &profile.body;
    let search = format!("{}\n{}", body.name, body.notes.as_deref().unwrap_or_default());
    on_tx!(tx, c => query(
        "INSERT INTO profiles (org_id, profile_id, version, name, words, tags, site_id, \
         machine_model, archived, updated_ms, body) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
         ON CONFLICT (org_id, profile_id) DO UPDATE SET version = EXCLUDED.version, \
         name = EXCLUDED.name, words = EXCLUDED.words, tags = EXCLUDED.tags, \
         site_id = EXCLUDED.site_id, machine_model = EXCLUDED.machine_model, \
         archived = EXCLUDED.archived, updated_ms = EXCLUDED.updated_ms, body = EXCLUDED.body \
         WHERE profiles.version = EXCLUDED.version - 1 AND profiles.archived = EXCLUDED.archived")
        .bind(org.as_str()).bind(&profile.profile_id).bind(profile.version).bind(&body.name)
        .bind(search.to_lowercase()).bind(lines(body.tags.as_deref().unwrap_or_default()))
        .bind(body.site_id.as_deref()).bind(body.machine_model.as_deref())
        .bind(i64::from(profile.is_archived)).bind(profile.updated_at.0).bind(text(profile)?)
        .execute(c).await.map(|done| done.rows_affected() > 0))
    .map_err(StoreError::query("storing a profile"))
}
