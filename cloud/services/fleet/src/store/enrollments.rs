//! Enrolments: tokens with which a gateway enrols once.

use ::database::sqlx::{AssertSqlSafe, FromRow, query, query_as, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};
use contract::{Actor, EpochMs, KeyId, MachineId, OrgId, SiteId};
use serde::Serialize;
use serde_json::json;
use trust::{EnrollmentToken, PublicKey};
use utoipa::ToSchema;

use super::{ChangedBy, FleetStore, json, read, read_json};

const DOING: &str = "reading an enrolment";
const COLUMNS: &str = "token_id, org_id, kid, site_id, machines, replaces, compromised, digest, created_ms, \
     created_by, expires_ms, withdrawn_ms, spent_ms, spent_by";
/// How long, ms, the same key may spend a token again: a gateway that did not receive the response
/// retries.
const AGAIN_MS: i64 = 60 * 60 * 1000;

/// An enrolment as stored.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Enrollment {
    pub id: String,
    #[serde(skip)]
    #[schema(ignore)]
    pub org_id: OrgId,
    #[schema(value_type = String)]
    pub key_id: KeyId,
    #[schema(value_type = String)]
    pub site_id: SiteId,
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineId>,
    /// Whether the gateway's new key replaces its current one.
    pub replaces: bool,
    /// Whether the old key may be compromised, so that its signatures are rejected at once.
    pub compromised: bool,
    pub created_at: EpochMs,
    pub created_by: Actor,
    pub expires_at: EpochMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withdrawn_at: Option<EpochMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent_at: Option<EpochMs>,
    #[serde(skip)]
    #[schema(ignore)]
    pub digest: Vec<u8>,
    #[serde(skip)]
    #[schema(ignore)]
    pub spent_by: Option<String>,
}

#[derive(FromRow)]
struct EnrollmentRow {
    token_id: String,
    org_id: String,
    kid: String,
    site_id: String,
    machines: String,
    replaces: i64,
    compromised: i64,
    digest: Vec<u8>,
    created_ms: i64,
    created_by: String,
    expires_ms: i64,
    withdrawn_ms: Option<i64>,
    spent_ms: Option<i64>,
    spent_by: Option<String>,
}

impl EnrollmentRow {
    fn enrollment(self) -> Result<Enrollment, StoreError> {
        Ok(Enrollment {
            id: self.token_id,
            org_id: OrgId::new(self.org_id).map_err(|e| StoreError::row(DOING, e))?,
            key_id: read(DOING, &self.kid)?,
            site_id: SiteId::new(self.site_id).map_err(|e| StoreError::row(DOING, e))?,
            machines: read_json(DOING, &self.machines)?,
            replaces: self.replaces != 0,
            compromised: self.compromised != 0,
            created_at: EpochMs(self.created_ms),
            created_by: read_json(DOING, &self.created_by)?,
            expires_at: EpochMs(self.expires_ms),
            withdrawn_at: self.withdrawn_ms.map(EpochMs),
            spent_at: self.spent_ms.map(EpochMs),
            digest: self.digest,
            spent_by: self.spent_by,
        })
    }
}

/// An enrolment to store.
#[derive(Debug, Clone)]
pub struct NewEnrollment {
    pub key_id: KeyId,
    pub site_id: SiteId,
    pub machines: Vec<MachineId>,
    pub replaces: bool,
    pub compromised: bool,
    pub expires_at: EpochMs,
}

/// The reason why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrollmentError {
    /// The token was never created, was withdrawn, or has expired.
    Unknown,
    /// Another key has enrolled with the token.
    UsedByOtherKey,
}

/// The result of spending a token. The token is spent when the transaction is committed.
pub type SpendResult = Result<Enrollment, EnrollmentError>;

impl FleetStore {
    /// Stores a new enrolment and the digest of its token.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_enrollment(
        &self,
        org: &OrgId,
        token: &EnrollmentToken,
        new: NewEnrollment,
        by: ChangedBy<'_>,
    ) -> Result<Enrollment, StoreError> {
        let (machines, actor) = (json(&new.machines)?, json(by.actor)?);
        let mut tx = self.begin().await?;
        on_tx!(&mut tx, c => query(
            "INSERT INTO enrollments (token_id, org_id, kid, site_id, machines, replaces, \
             compromised, digest, created_ms, created_by, expires_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
            .bind(&token.id).bind(org.as_str()).bind(new.key_id.as_str())
            .bind(new.site_id.as_str()).bind(machines).bind(i64::from(new.replaces))
            .bind(i64::from(new.compromised))
            .bind(token.digest().as_slice()).bind(by.now.0).bind(actor).bind(new.expires_at.0)
            .execute(c).await.map(drop))
        .map_err(StoreError::query("storing an enrolment"))?;
        let details = json!({"keyId": new.key_id, "machines": new.machines,
            "replaces": new.replaces, "compromised": new.compromised, "expiresAt": new.expires_at});
        by.audit(&mut tx, org, ("enrollment.create", &token.id, details)).await?;
        tx.commit().await?;
        Ok(Enrollment {
            id: token.id.clone(),
            org_id: org.clone(),
            key_id: new.key_id,
            site_id: new.site_id,
            machines: new.machines,
            replaces: new.replaces,
            compromised: new.compromised,
            created_at: by.now,
            created_by: by.actor.clone(),
            expires_at: new.expires_at,
            withdrawn_at: None,
            spent_at: None,
            digest: Vec::new(),
            spent_by: None,
        })
    }

    /// Returns enrolments, newest first: those before `before` (time, id), at most `limit`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn enrollments(
        &self,
        org: &OrgId,
        before: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Vec<Enrollment>, StoreError> {
        let (ms, id) = before.unwrap_or((i64::MAX, String::new()));
        let sql = format!(
            "SELECT {COLUMNS} FROM enrollments WHERE org_id = $1 AND \
             (created_ms < $2 OR created_ms = $2 AND token_id < $3) \
             ORDER BY created_ms DESC, token_id DESC LIMIT $4"
        );
        let rows: Vec<EnrollmentRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(ms).bind(id).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.into_iter().map(EnrollmentRow::enrollment).collect()
    }

    /// Withdraws an enrolment. Returns `Ok(false)` if it does not exist, or was spent or withdrawn
    /// before.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn withdraw_enrollment(
        &self,
        org: &OrgId,
        id: &str,
        by: ChangedBy<'_>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let withdrawn = on_tx!(&mut tx, c => query(
            "UPDATE enrollments SET withdrawn_ms = $3 WHERE org_id = $1 AND token_id = $2 \
             AND spent_ms IS NULL AND withdrawn_ms IS NULL")
            .bind(org.as_str()).bind(id).bind(by.now.0)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("withdrawing an enrolment"))?;
        if withdrawn {
            by.audit(&mut tx, org, ("enrollment.withdraw", id, json!({}))).await?;
            tx.commit().await?;
        }
        Ok(withdrawn)
    }

    /// Returns whether a token exists. Checked before any other work is done for a request.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn token_exists(&self, token: &EnrollmentToken) -> Result<bool, StoreError> {
        let found: Option<i64> = on!(self.database, pool => query_scalar(
            "SELECT created_ms FROM enrollments WHERE token_id = $1 AND digest = $2")
            .bind(&token.id).bind(token.digest().as_slice()).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok(found.is_some())
    }

    /// Spends a token for a key, inside the transaction of the enrolment. The same key may spend it
    /// again for an hour.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn spend(
        tx: &mut Tx,
        token: &EnrollmentToken,
        public: &PublicKey,
        now: EpochMs,
    ) -> Result<SpendResult, StoreError> {
        // The update locks the row: of two concurrent requests the second sees the first's change.
        let sql = format!(
            "UPDATE enrollments SET spent_ms = COALESCE(spent_ms, $2), \
             spent_by = COALESCE(spent_by, $3) WHERE token_id = $1 AND digest = $4 \
             RETURNING {COLUMNS}"
        );
        let row: Option<EnrollmentRow> = on_tx!(&mut *tx, c => query_as(AssertSqlSafe(sql))
            .bind(&token.id).bind(now.0).bind(public.to_pem()).bind(token.digest().as_slice())
            .fetch_optional(c).await)
        .map_err(StoreError::query("spending an enrolment"))?;
        let Some(found) = row.map(EnrollmentRow::enrollment).transpose()? else {
            return Ok(Err(EnrollmentError::Unknown));
        };
        if !trust::constant_time_eq(&found.digest, &token.digest()) || found.withdrawn_at.is_some()
        {
            return Ok(Err(EnrollmentError::Unknown));
        }
        let first = found.spent_at.unwrap_or(now);
        if found.spent_by.as_deref() != Some(public.to_pem().as_str()) {
            return Ok(Err(EnrollmentError::UsedByOtherKey));
        }
        // A key that spent the token in time may retry.
        if first.0 > found.expires_at.0 || now.ms_since(first) > AGAIN_MS {
            return Ok(Err(EnrollmentError::Unknown));
        }
        Ok(Ok(found))
    }
}
