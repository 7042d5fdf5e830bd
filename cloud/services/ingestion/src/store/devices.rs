//! Reads trusted keys from the fleet's device registry.

use ::database::sqlx::{query, query_as};
use ::database::{StoreError, on};
use contract::{EpochMs, KeyId, OrgId};
use trust::PublicKey;

use super::IngestStore;
use crate::verified_frame::TrustedKey;

impl IngestStore {
    /// Stores when two agents were last seen to send under one device name and key.
    pub(crate) async fn record_name_conflict(
        &self,
        org: &OrgId,
        kid: &str,
        seen: EpochMs,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "INSERT INTO name_conflicts (org_id, kid, seen_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (org_id, kid) DO UPDATE SET seen_ms = EXCLUDED.seen_ms")
            .bind(org.as_str()).bind(kid).bind(seen.0).execute(pool).await.map(drop))
        .map_err(StoreError::query("storing a name conflict"))
    }

    pub(crate) async fn trusted_key(
        &self,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<TrustedKey>, StoreError> {
        const DOING: &str = "looking up a device's key";
        let rows: Vec<(String, String, String, Option<i64>)> = on!(self.database, pool => query_as(
            "SELECT d.site_id, d.machines, k.public_key, k.believed_until_ms \
             FROM devices d JOIN device_keys k ON k.org_id = d.org_id AND k.kid = d.kid \
             WHERE d.org_id = $1 AND d.kid = $2 AND d.revoked_ms IS NULL \
             ORDER BY k.retired_ms IS NULL DESC, k.key_no DESC LIMIT 8")
            .bind(org.as_str()).bind(kid.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let Some((site, machines, ..)) = rows.first() else { return Ok(None) };
        let (site, machines) = (site.clone(), serde_json::from_str(machines));
        let machines = machines.map_err(|e| StoreError::row(DOING, e))?;
        let mut keys = Vec::with_capacity(rows.len());
        for (_, _, pem, until) in rows {
            let public = PublicKey::from_pem(&pem).map_err(|e| StoreError::row(DOING, e))?;
            keys.push((public, until.map(EpochMs)));
        }
        let (public, _) = keys.remove(0);
        let older = keys.into_iter().filter_map(|(key, until)| Some((key, until?))).collect();
        Ok(Some(TrustedKey { public, previous: older, site, machines }))
    }
}
