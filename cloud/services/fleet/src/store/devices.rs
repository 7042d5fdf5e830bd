//! The device registry: gateways and their keys.

use ::database::sqlx::{AssertSqlSafe, FromRow, query, query_as, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};
use contract::{EpochMs, KeyId, MachineId, OrgId};
use serde_json::json;
use trust::PublicKey;

use super::{ChangedBy, FleetStore, json, read, read_json};
use crate::device::{
    Device, DeviceKey, NewDevice, OLD_KEY_ACCEPTED_MS, RegisterOutcome, certificate_name,
};

const DOING: &str = "reading a device";
const COLUMNS: &str = "org_id, kid, site_id, machines, key_no, certificate_name, created_ms, revoked_ms, changed_ms, \
     (SELECT n.seen_ms FROM name_conflicts n WHERE n.org_id = devices.org_id \
      AND n.kid = devices.kid) AS conflict_ms";
/// The stored time of a change. It is later than that of every earlier change, even if the clock of
/// an instance is behind.
const CHANGED: &str = "(SELECT CASE WHEN COALESCE(MAX(changed_ms), 0) >= $2 \
     THEN MAX(changed_ms) + 1 ELSE $2 END FROM devices)";

#[derive(FromRow)]
struct DeviceRow {
    org_id: String,
    kid: String,
    site_id: String,
    machines: String,
    key_no: i64,
    certificate_name: Option<String>,
    created_ms: i64,
    revoked_ms: Option<i64>,
    changed_ms: i64,
    conflict_ms: Option<i64>,
}

impl DeviceRow {
    fn device(self) -> Result<Device, StoreError> {
        Ok(Device {
            org_id: OrgId::new(self.org_id).map_err(|e| StoreError::row(DOING, e))?,
            key_id: read(DOING, &self.kid)?,
            site_id: contract::SiteId::new(self.site_id).map_err(|e| StoreError::row(DOING, e))?,
            machines: read_json(DOING, &self.machines)?,
            key_number: self.key_no,
            certificate_name: self.certificate_name,
            created_at: EpochMs(self.created_ms),
            revoked_at: self.revoked_ms.map(EpochMs),
            name_conflict_at: self.conflict_ms.map(EpochMs),
        })
    }
}

#[derive(FromRow)]
struct KeyRow {
    key_no: i64,
    public_key: String,
    added_ms: i64,
    retired_ms: Option<i64>,
    believed_until_ms: Option<i64>,
}

impl FleetStore {
    /// Returns the gateways of an organisation, sorted by key id: those after `after`, at most
    /// `limit`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn devices(
        &self,
        org: &OrgId,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Device>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM devices WHERE org_id = $1 AND kid > $2 ORDER BY kid LIMIT $3"
        );
        let rows: Vec<DeviceRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(after).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.into_iter().map(DeviceRow::device).collect()
    }

    /// Returns a gateway of an organisation.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn device(&self, org: &OrgId, key_id: &str) -> Result<Option<Device>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM devices WHERE org_id = $1 AND kid = $2");
        let row: Option<DeviceRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(key_id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(DeviceRow::device).transpose()
    }

    /// Returns the gateway whose certificate has this common name, from any organisation.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn device_by_certificate_name(
        &self,
        name: &str,
    ) -> Result<Option<Device>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM devices WHERE certificate_name = $1");
        let row: Option<DeviceRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(name).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(DeviceRow::device).transpose()
    }

    /// Returns the gateways of all organisations that have certificates and changed at or after
    /// `ms`, each with the time of its last change. Revoked gateways come first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn changed_since(&self, ms: i64) -> Result<Vec<(Device, i64)>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM devices WHERE changed_ms >= $1 AND certificate_name IS NOT NULL \
             ORDER BY revoked_ms IS NULL, changed_ms"
        );
        let rows: Vec<DeviceRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(ms).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let with_time = |row: DeviceRow| {
            let changed = row.changed_ms;
            Ok((row.device()?, changed))
        };
        rows.into_iter().map(with_time).collect()
    }

    /// Returns every key that a gateway has or had, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn keys(&self, org: &OrgId, key_id: &KeyId) -> Result<Vec<DeviceKey>, StoreError> {
        let rows: Vec<KeyRow> = on!(self.database, pool => query_as(
            "SELECT key_no, public_key, added_ms, retired_ms, believed_until_ms FROM device_keys \
             WHERE org_id = $1 AND kid = $2 ORDER BY key_no")
            .bind(org.as_str()).bind(key_id.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query("reading a device's keys"))?;
        let read = |row: KeyRow| {
            let public = PublicKey::from_pem(&row.public_key)
                .map_err(|e| StoreError::row("reading a device's keys", e))?;
            Ok(DeviceKey {
                number: row.key_no,
                algorithm: public.algorithm().as_str(),
                public_key: row.public_key,
                added_at: EpochMs(row.added_ms),
                retired_at: row.retired_ms.map(EpochMs),
                believed_until: row.believed_until_ms.map(EpochMs),
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// Returns a gateway's current key and its number.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn current_key(
        &self,
        org: &OrgId,
        key_id: &KeyId,
    ) -> Result<Option<(i64, PublicKey)>, StoreError> {
        const DOING: &str = "reading a device's key";
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT key_no, public_key FROM device_keys \
             WHERE org_id = $1 AND kid = $2 AND retired_ms IS NULL ORDER BY key_no DESC LIMIT 1")
            .bind(org.as_str()).bind(key_id.as_str()).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|(no, pem)| {
            Ok((no, PublicKey::from_pem(&pem).map_err(|e| StoreError::row(DOING, e))?))
        })
        .transpose()
    }

    /// Registers a gateway's key for its machines. Registering the same key again replaces the list
    /// of machines. A revoked name stays revoked.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn register(
        &self,
        new: &NewDevice<'_>,
        by: ChangedBy<'_>,
    ) -> Result<RegisterOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let done = Self::register_in(&mut tx, new, by).await?;
        if let RegisterOutcome::Accepted(_) = done {
            tx.commit().await?;
        }
        Ok(done)
    }

    /// Does the same as [`FleetStore::register`], inside a transaction.
    ///
    /// # Errors
    /// As [`FleetStore::register`].
    pub async fn register_in(
        tx: &mut Tx,
        new: &NewDevice<'_>,
        by: ChangedBy<'_>,
    ) -> Result<RegisterOutcome, StoreError> {
        const DOING: &str = "registering a device";
        let (org, kid, now) = (new.org.as_str(), new.key_id.as_str(), by.now.0);
        let machines = json(&new.machines)?;
        // The row's lock serialises concurrent registrations of the same name.
        let revoked: Option<i64> = on_tx!(&mut *tx, c => query_scalar(
            "INSERT INTO devices (org_id, kid, site_id, machines, created_ms) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (org_id, kid) DO UPDATE SET \
             machines = devices.machines RETURNING revoked_ms")
            .bind(org).bind(kid).bind(new.site.as_str()).bind(&machines).bind(now)
            .fetch_one(c).await)
        .map_err(StoreError::query(DOING))?;
        if revoked.is_some() {
            return Ok(RegisterOutcome::Revoked);
        }
        let pem = new.public.to_pem();
        let keys: Vec<(i64, String, Option<i64>)> = on_tx!(&mut *tx, c => query_as(
            "SELECT key_no, public_key, retired_ms FROM device_keys \
             WHERE org_id = $1 AND kid = $2 ORDER BY key_no DESC")
            .bind(org).bind(kid).fetch_all(c).await)
        .map_err(StoreError::query(DOING))?;
        let present = keys.iter().find(|(_, _, retired)| retired.is_none());
        let number = match present {
            Some((number, known, _)) if *known == pem => *number,
            Some(_) if !new.replaces => return Ok(RegisterOutcome::OtherKey),
            _ if keys.iter().any(|(_, known, _)| *known == pem) => {
                return Ok(RegisterOutcome::OtherKey);
            }
            _ => {
                let number = keys.first().map_or(1, |(last, _, _)| last.saturating_add(1));
                let believed = if new.compromised { 0 } else { OLD_KEY_ACCEPTED_MS };
                let until = now.saturating_add(believed);
                Self::add_key(tx, (org, kid), (number, &pem), (now, until)).await?;
                let algorithm = new.public.algorithm().as_str();
                let details = json!({"number": number, "algorithm": algorithm, "publicKey": pem,
                    "replaces": present.map(|(old, _, _)| old)});
                by.audit(tx, new.org, ("key.add", kid, details)).await?;
                number
            }
        };
        let name = new.enrols.then(|| certificate_name(new.org, new.key_id, number));
        let sql = format!(
            "UPDATE devices SET machines = $4, key_no = $5, changed_ms = {CHANGED}, \
             certificate_name = COALESCE($6, certificate_name) WHERE org_id = $1 AND kid = $3"
        );
        on_tx!(&mut *tx, c => query(AssertSqlSafe(sql))
            .bind(org).bind(now).bind(kid).bind(&machines).bind(number).bind(name)
            .execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let details = json!({"site": new.site, "machines": new.machines, "key": number});
        by.audit(tx, new.org, ("device.register", kid, details)).await?;
        Ok(RegisterOutcome::Accepted(number))
    }

    async fn add_key(
        tx: &mut Tx,
        (org, kid): (&str, &str),
        (number, pem): (i64, &str),
        (now, believed_until): (i64, i64),
    ) -> Result<(), StoreError> {
        const DOING: &str = "adding a device's key";
        on_tx!(&mut *tx, c => query(
            "UPDATE device_keys SET retired_ms = $3, believed_until_ms = $4 \
             WHERE org_id = $1 AND kid = $2 AND retired_ms IS NULL")
            .bind(org).bind(kid).bind(now).bind(believed_until)
            .execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        on_tx!(&mut *tx, c => query(
            "INSERT INTO device_keys (org_id, kid, key_no, public_key, added_ms) \
             VALUES ($1, $2, $3, $4, $5)")
            .bind(org).bind(kid).bind(number).bind(pem).bind(now).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))
    }

    /// Sets the machines that a gateway may publish for. Returns `Ok(false)` if there is no gateway
    /// of that name, or it is revoked.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_machines(
        &self,
        org: &OrgId,
        key_id: &str,
        machines: &[MachineId],
        by: ChangedBy<'_>,
    ) -> Result<bool, StoreError> {
        let text = json(&machines)?;
        let mut tx = self.begin().await?;
        let sql = format!(
            "UPDATE devices SET machines = $4, changed_ms = {CHANGED} \
             WHERE org_id = $1 AND kid = $3 AND revoked_ms IS NULL"
        );
        let changed = on_tx!(&mut tx, c => query(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(by.now.0).bind(key_id).bind(text)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("changing a device's machines"))?;
        if changed {
            let details = json!({ "machines": machines });
            by.audit(&mut tx, org, ("device.machines", key_id, details)).await?;
            tx.commit().await?;
        }
        Ok(changed)
    }

    /// Revokes a gateway permanently, with all its keys and certificates. Returns `Ok(false)` if
    /// there is no gateway of that name, or it was revoked before.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revoke(
        &self,
        org: &OrgId,
        key_id: &str,
        by: ChangedBy<'_>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let sql = format!(
            "UPDATE devices SET revoked_ms = $2, changed_ms = {CHANGED} \
             WHERE org_id = $1 AND kid = $3 AND revoked_ms IS NULL"
        );
        let revoked = on_tx!(&mut tx, c => query(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(by.now.0).bind(key_id)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("revoking a device"))?;
        if revoked {
            by.audit(&mut tx, org, ("device.revoke", key_id, json!({}))).await?;
            tx.commit().await?;
        }
        Ok(revoked)
    }

    /// Returns whether a machine is real: whether a key that is not a simulation's (`device:sim-…`)
    /// has a chain of it, or is registered for it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn is_real(
        &self,
        org: &OrgId,
        site: &str,
        machine: &str,
    ) -> Result<bool, StoreError> {
        const DOING: &str = "checking whether a machine is real";
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
}
