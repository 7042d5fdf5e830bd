//! Which keys are believed.

use ::store::sqlx::{FromRow, query, query_as, query_scalar};
use ::store::{StoreError, on};
use contract::{EpochMs, KeyId, OrgId};
use trust::PublicKey;

use super::IngestStore;
use crate::verify::TrustedKey;

/// A device as it is registered.
#[derive(Debug, Clone, FromRow, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub kid: String,
    pub site_id: String,
    /// JSON array.
    pub machines: String,
    /// PEM.
    pub public_key: String,
    pub created_ms: i64,
    pub revoked_ms: Option<i64>,
}

impl IngestStore {
    pub(crate) async fn trusted_key(
        &self,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<TrustedKey>, StoreError> {
        const DOING: &str = "looking up a device's key";
        let row: Option<Device> = on!(self.database, pool => query_as(
            "SELECT kid, site_id, machines, public_key, created_ms, revoked_ms FROM devices \
             WHERE org_id = $1 AND kid = $2 AND revoked_ms IS NULL")
            .bind(org.as_str()).bind(kid.as_str()).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|row| {
            Ok(TrustedKey {
                public: PublicKey::from_pem(&row.public_key)
                    .map_err(|e| StoreError::row(DOING, e))?,
                machines: serde_json::from_str(&row.machines)
                    .map_err(|e| StoreError::row(DOING, e))?,
                site: row.site_id,
            })
        })
        .transpose()
    }

    /// Trusts a key for the named machines of a site. The same key again changes its machines; a
    /// revoked name stays revoked.
    ///
    /// # Errors
    /// When the database does not answer. `Ok(false)` when the name has another key, or is revoked.
    pub async fn add_device(
        &self,
        org: &OrgId,
        kid: &KeyId,
        site: &str,
        machines: &[String],
        public: &PublicKey,
        now: EpochMs,
    ) -> Result<bool, StoreError> {
        let machines = serde_json::Value::from(machines).to_string();
        let changed = on!(self.database, pool => query(
            "INSERT INTO devices (org_id, kid, site_id, machines, public_key, created_ms) \
             VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (org_id, kid) DO UPDATE SET machines = EXCLUDED.machines \
             WHERE devices.public_key = EXCLUDED.public_key AND devices.revoked_ms IS NULL")
            .bind(org.as_str()).bind(kid.as_str()).bind(site).bind(machines)
            .bind(public.to_pem()).bind(now.0).execute(pool).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query("registering a device"))?;
        Ok(changed > 0)
    }

    /// Whether a machine is known by anything but a simulation's keys.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn is_real(
        &self,
        org: &OrgId,
        site: &str,
        machine: &str,
    ) -> Result<bool, StoreError> {
        const DOING: &str = "looking whether a machine is real";
        let chains: i64 = on!(self.database, pool => query_scalar(
            "SELECT count(*) FROM chains c JOIN machines m ON m.machine_no = c.machine_no \
             WHERE m.org_id = $1 AND m.site_id = $2 AND m.machine_id = $3 AND c.kid NOT LIKE 'device:sim-%'")
            .bind(org.as_str()).bind(site).bind(machine).fetch_one(pool).await)
        .map_err(StoreError::query(DOING))?;
        let lists: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT machines FROM devices WHERE org_id = $1 AND site_id = $2 \
             AND kid NOT LIKE 'device:sim-%' AND revoked_ms IS NULL")
            .bind(org.as_str()).bind(site).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let named = |list: &String| {
            let names: Vec<String> = serde_json::from_str(list).unwrap_or_default();
            names.iter().any(|name| name == machine)
        };
        Ok(chains > 0 || lists.iter().any(named))
    }

    /// Believes a key no longer. `Ok(false)` when there is none of that name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revoke_device(
        &self,
        org: &OrgId,
        kid: &KeyId,
        now: EpochMs,
    ) -> Result<bool, StoreError> {
        let changed = on!(self.database, pool => query(
            "UPDATE devices SET revoked_ms = $3 WHERE org_id = $1 AND kid = $2 AND revoked_ms IS NULL")
            .bind(org.as_str()).bind(kid.as_str()).bind(now.0)
            .execute(pool).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query("revoking a device"))?;
        Ok(changed > 0)
    }

    /// All devices of an organisation, at most 10 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn devices(&self, org: &OrgId) -> Result<Vec<Device>, StoreError> {
        on!(self.database, pool => query_as(
            "SELECT kid, site_id, machines, public_key, created_ms, revoked_ms FROM devices \
             WHERE org_id = $1 ORDER BY kid LIMIT 10000")
            .bind(org.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query("listing devices"))
    }
}
