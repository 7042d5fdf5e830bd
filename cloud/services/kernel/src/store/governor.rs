//! Storage of every version of an organisation's policy.

use ::database::sqlx::{query, query_as};
use ::database::{StoreError, on, on_tx};
use contract::{Actor, EpochMs, OrgId};
use serde_json::json;

use super::KernelStore;
use super::mission_row::{from_json as read, to_json};
use crate::governor::GovernorConfig;

/// A policy and its version. Version 0 is the default, before a policy has been set.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionedConfig {
    pub version: i64,
    pub config: GovernorConfig,
}

impl KernelStore {
    /// Returns the policy in force.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn governor_config(&self, org: &OrgId) -> Result<VersionedConfig, StoreError> {
        const DOING: &str = "reading the governor's configuration";
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT version, config FROM governor_configs WHERE org_id = $1 \
             ORDER BY version DESC LIMIT 1")
            .bind(org.as_str()).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok(match row {
            Some((version, config)) => VersionedConfig { version, config: read(DOING, &config)? },
            None => VersionedConfig { version: 0, config: GovernorConfig::default() },
        })
    }

    /// Stores a policy as the version after `before`. Returns `None` if another writer has stored
    /// that version first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_governor_config(
        &self,
        org: &OrgId,
        before: &VersionedConfig,
        config: GovernorConfig,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<Option<VersionedConfig>, StoreError> {
        let version = before.version.saturating_add(1);
        let mut tx = self.database.begin().await?;
        let inserted = on_tx!(&mut tx, c => query(
            "INSERT INTO governor_configs (org_id, version, config, actor, created_ms) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (org_id, version) DO NOTHING")
            .bind(org.as_str()).bind(version).bind(to_json(&config)?).bind(to_json(actor)?).bind(now.0)
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query("writing the governor's configuration"))?;
        if inserted == 0 {
            return Ok(None);
        }
        let details = json!({"version": version, "before": before.config, "after": config});
        self.audit(&mut tx, org, actor, ("governor.configure", "governor", details), now).await?;
        tx.commit().await?;
        Ok(Some(VersionedConfig { version, config }))
    }
}
