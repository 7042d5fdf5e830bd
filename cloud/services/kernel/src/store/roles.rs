//! Role overrides: roles of people that are set in Sim-Corp instead of by their OIDC issuer.

use ::database::sqlx::{query, query_as, query_scalar};
use ::database::{StoreError, on, on_tx};
use contract::{Actor, EpochMs, OrgId};
use http_stack::auth::Role;
use serde::Serialize;
use serde_json::json;

use super::KernelStore;

/// A person's role override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleOverride {
    pub user_id: String,
    /// `None` if the person is blocked.
    pub role: Option<Role>,
    pub since: EpochMs,
}

const BLOCKED: &str = "blocked";

fn read(name: &str) -> Result<Option<Role>, StoreError> {
    if name == BLOCKED {
        return Ok(None);
    }
    Role::parse(name).map(Some).ok_or_else(|| StoreError::row("reading a role", name))
}

impl KernelStore {
    /// Returns a person's role override: `Some(None)` if blocked, `None` if there is no override.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn role(&self, org: &OrgId, user: &str) -> Result<Option<Option<Role>>, StoreError> {
        let name: Option<String> = on!(self.database, pool => query_scalar(
            "SELECT role FROM user_roles WHERE org_id = $1 AND user_id = $2")
            .bind(org.as_str()).bind(user).fetch_optional(pool).await)
        .map_err(StoreError::query("reading a role"))?;
        name.map(|name| read(&name)).transpose()
    }

    /// Returns an organisation's role overrides, at most 10 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn roles(&self, org: &OrgId) -> Result<Vec<RoleOverride>, StoreError> {
        let rows: Vec<(String, String, i64)> = on!(self.database, pool => query_as(
            "SELECT user_id, role, updated_ms FROM user_roles WHERE org_id = $1 \
             ORDER BY user_id LIMIT 10000")
            .bind(org.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query("listing roles"))?;
        let granted = |(user_id, name, since): (String, String, i64)| {
            Ok(RoleOverride { user_id, role: read(&name)?, since: EpochMs(since) })
        };
        rows.into_iter().map(granted).collect()
    }

    /// Sets a person's role override. `None` blocks the person.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_role(
        &self,
        org: &OrgId,
        user: &str,
        role: Option<Role>,
        (actor, now): (&Actor, EpochMs),
    ) -> Result<(), StoreError> {
        let name = role.map_or(BLOCKED, Role::as_str);
        let mut tx = self.database.begin().await?;
        on_tx!(&mut tx, c => query(
            "INSERT INTO user_roles (org_id, user_id, role, updated_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (org_id, user_id) DO UPDATE SET role = EXCLUDED.role, \
             updated_ms = EXCLUDED.updated_ms")
            .bind(org.as_str()).bind(user).bind(name).bind(now.0).execute(c).await.map(drop))
        .map_err(StoreError::query("setting a role"))?;
        self.audit(&mut tx, org, actor, ("user.role", user, json!({"role": name})), now).await?;
        tx.commit().await
    }

    /// Removes a person's role override. Returns whether there was one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn reset_role(
        &self,
        org: &OrgId,
        user: &str,
        (actor, now): (&Actor, EpochMs),
    ) -> Result<bool, StoreError> {
        let mut tx = self.database.begin().await?;
        let reset = on_tx!(&mut tx, c => query(
            "DELETE FROM user_roles WHERE org_id = $1 AND user_id = $2")
            .bind(org.as_str()).bind(user).execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("resetting a role"))?;
        if reset {
            self.audit(&mut tx, org, actor, ("user.reset", user, json!({})), now).await?;
            tx.commit().await?;
        }
        Ok(reset)
    }
}
