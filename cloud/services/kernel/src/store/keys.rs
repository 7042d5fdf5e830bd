//! Storage of API keys, with only the digests of their secrets.

use ::database::sqlx::{FromRow, query, query_as};
use ::database::{StoreError, on, on_tx};
use contract::{Actor, ActorKind, EpochMs, OrgId};
use http_stack::auth::Role;
use serde_json::json;

use super::KernelStore;
use super::mission_row::to_json;
use crate::authentication::keys::ApiKey;

#[derive(FromRow)]
struct Row {
    key_id: String,
    org_id: String,
    name: String,
    kind: String,
    role: String,
    digest: Vec<u8>,
    created_ms: i64,
    expires_ms: i64,
    revoked_ms: Option<i64>,
}

const COLUMNS: &str =
    "key_id, org_id, name, kind, role, digest, created_ms, expires_ms, revoked_ms";
const DOING: &str = "reading an API key";

impl Row {
    fn key(self) -> Result<ApiKey, StoreError> {
        let org_id = match self.org_id.as_str() {
            "" => None,
            org => Some(OrgId::new(org).map_err(|e| StoreError::row(DOING, e))?),
        };
        let kind = serde_json::from_value::<ActorKind>(json!(self.kind));
        Ok(ApiKey {
            id: self.key_id,
            org_id,
            name: self.name,
            kind: kind.map_err(|e| StoreError::row(DOING, e))?,
            role: Role::parse(&self.role).ok_or_else(|| StoreError::row(DOING, "role"))?,
            digest: self.digest,
            created_at: EpochMs(self.created_ms),
            expires_at: EpochMs(self.expires_ms),
            revoked_at: self.revoked_ms.map(EpochMs),
        })
    }
}

/// Returns the organisation whose audit log records a key's changes; `all` for keys of all of them.
fn audit_org(org: Option<&OrgId>) -> Result<OrgId, StoreError> {
    match org {
        Some(org) => Ok(org.clone()),
        None => OrgId::new("all").map_err(|e| StoreError::row("naming an audit log", e)),
    }
}

impl KernelStore {
    /// Returns an API key by its id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn key(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM api_keys WHERE key_id = $1");
        let row: Option<Row> = on!(self.database, pool =>
            query_as(::database::sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(Row::key).transpose()
    }

    /// Returns an organisation's keys, newest first; without `org`, the keys that are valid for all
    /// organisations.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn keys(&self, org: Option<&OrgId>) -> Result<Vec<ApiKey>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM api_keys WHERE org_id = $1 ORDER BY created_ms DESC LIMIT 1000"
        );
        let org = org.map_or("", OrgId::as_str);
        let rows: Vec<Row> = on!(self.database, pool =>
            query_as(::database::sqlx::AssertSqlSafe(sql)).bind(org).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.into_iter().map(Row::key).collect()
    }

    /// Stores a new API key.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_key(&self, key: &ApiKey, actor: &Actor) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        let kind = json!(key.kind);
        on_tx!(&mut tx, c => query(
            "INSERT INTO api_keys (key_id, org_id, name, kind, role, digest, created_ms, created_by, \
             expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
            .bind(&key.id).bind(key.org_id.as_ref().map_or("", OrgId::as_str)).bind(&key.name)
            .bind(kind.as_str()).bind(key.role.as_str()).bind(&key.digest).bind(key.created_at.0)
            .bind(to_json(actor)?).bind(key.expires_at.0).execute(c).await.map(drop))
        .map_err(StoreError::query("storing an API key"))?;
        let log = audit_org(key.org_id.as_ref())?;
        let details = json!({"name": key.name, "role": key.role, "expiresAt": key.expires_at});
        self.audit(&mut tx, &log, actor, ("key.create", &key.id, details), key.created_at).await?;
        tx.commit().await
    }

    /// Revokes an API key. Returns whether such a key existed that was not yet revoked.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revoke_key(
        &self,
        org: Option<&OrgId>,
        id: &str,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<bool, StoreError> {
        let mut tx = self.database.begin().await?;
        let revoked = on_tx!(&mut tx, c => query(
            "UPDATE api_keys SET revoked_ms = $3 \
             WHERE key_id = $1 AND org_id = $2 AND revoked_ms IS NULL")
            .bind(id).bind(org.map_or("", OrgId::as_str)).bind(now.0)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("revoking an API key"))?;
        if revoked {
            self.audit(&mut tx, &audit_org(org)?, actor, ("key.revoke", id, json!({})), now)
                .await?;
            tx.commit().await?;
        }
        Ok(revoked)
    }
}
