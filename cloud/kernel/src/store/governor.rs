//! Each version of an organisation's policy.

use ::store::sqlx::{query, query_as};
use ::store::{StoreError, on, on_tx};
use contract::{Actor, EpochMs, OrgId};
use serde_json::json;

use super::KernelStore;
use super::missions::{json as read, text};
use crate::governor::GovernorConfig;

/// A policy and its version; 0: nobody has set one.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    pub version: i64,
    pub config: GovernorConfig,
}

impl KernelStore {
    /// # Errors
    /// When the database does not answer.
    pub async fn governor_config(&self, org: &OrgId) -> Result<Versioned, StoreError> {
        const DOING: &str = "reading the governor's configuration";
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT version, config FROM governor_configs WHERE org_id = $1 \
             ORDER BY version DESC LIMIT 1")
            .bind(org.as_str()).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok(match row {
            Some((version, config)) => Versioned { version, config: read(DOING, &config)? },
            None => Versioned { version: 0, config: GovernorConfig::default() },
        })
    }

    /// Sets the version after `before`; `None` when somebody else has set it meanwhile.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_governor_config(
        &self,
        org: &OrgId,
        before: &Versioned,
        config: GovernorConfig,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<Option<Versioned>, StoreError> {
        let version = before.version + 1;
        let mut tx = self.database.begin().await?;
        let made = on_tx!(&mut tx, c => query(
            "INSERT INTO governor_configs (org_id, version, config, actor, created_ms) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (org_id, version) DO NOTHING")
            .bind(org.as_str()).bind(version).bind(text(&config)?).bind(text(actor)?).bind(now.0)
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query("writing the governor's configuration"))?;
        if made == 0 {
            return Ok(None);
        }
        let details = json!({"version": version, "before": before.config, "after": config});
        self.audit(&mut tx, org, actor, ("governor.configure", "governor", details), now).await?;
        tx.commit().await?;
        Ok(Some(Versioned { version, config }))
    }
}
