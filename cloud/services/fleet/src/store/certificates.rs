//! The certificates that were issued.

use ::database::sqlx::{query, query_as, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};
use contract::{EpochMs, KeyId, OrgId};
use serde_json::json;
use trust::x509::Certificate;

use super::{ChangedBy, FleetStore};
use crate::device::Issued;

/// A certificate to store, with the key that it was issued for.
#[derive(Debug, Clone, Copy)]
pub struct NewCertificate<'n> {
    pub org: &'n OrgId,
    pub key_id: &'n KeyId,
    pub key_number: i64,
    /// The reason: `enrolled`, `renewed` or `recovered`.
    pub why: &'n str,
    pub certificate: &'n Certificate,
}

impl FleetStore {
    /// Stores a certificate. Must happen before the gateway receives it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_certificate(
        tx: &mut Tx,
        new: NewCertificate<'_>,
        by: ChangedBy<'_>,
    ) -> Result<(), StoreError> {
        let c = new.certificate;
        on_tx!(&mut *tx, connection => query(
            "INSERT INTO certificates (serial, org_id, kid, key_no, why, not_before_ms, \
             not_after_ms, issued_ms, pem) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
            .bind(&c.serial).bind(new.org.as_str()).bind(new.key_id.as_str()).bind(new.key_number)
            .bind(new.why).bind(c.not_before.0).bind(c.not_after.0).bind(by.now.0).bind(c.to_pem())
            .execute(connection).await.map(drop))
        .map_err(StoreError::query("storing a certificate"))?;
        let details = json!({"serial": c.serial, "key": new.key_number, "why": new.why,
            "notAfter": c.not_after});
        by.audit(tx, new.org, ("certificate.issue", new.key_id.as_str(), details)).await
    }

    /// Returns the last twenty certificates of a gateway, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn certificates(
        &self,
        org: &OrgId,
        key_id: &KeyId,
    ) -> Result<Vec<Issued>, StoreError> {
        let rows: Vec<(String, i64, String, i64, i64, i64)> = on!(self.database, pool => query_as(
            "SELECT serial, key_no, why, not_before_ms, not_after_ms, issued_ms FROM certificates \
             WHERE org_id = $1 AND kid = $2 ORDER BY issued_ms DESC LIMIT 20")
            .bind(org.as_str()).bind(key_id.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query("reading certificates"))?;
        let issued = |(serial, key_number, why, before, after, issued)| Issued {
            serial,
            key_number,
            why,
            not_before: EpochMs(before),
            not_after: EpochMs(after),
            issued_at: EpochMs(issued),
        };
        Ok(rows.into_iter().map(issued).collect())
    }

    /// Returns how many certificates a gateway received after `since`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn issued_since(
        &self,
        org: &OrgId,
        key_id: &KeyId,
        since: EpochMs,
    ) -> Result<i64, StoreError> {
        on!(self.database, pool => query_scalar(
            "SELECT count(*) FROM certificates WHERE org_id = $1 AND kid = $2 AND issued_ms > $3")
            .bind(org.as_str()).bind(key_id.as_str()).bind(since.0).fetch_one(pool).await)
        .map_err(StoreError::query("counting certificates"))
    }
}
