//! Recoveries: gateways whose certificates have expired, and what people decide about them.

use ::database::sqlx::{AssertSqlSafe, FromRow, query, query_as};
use ::database::{StoreError, Tx, on, on_tx};
use contract::{Actor, EpochMs, KeyId, OrgId};
use serde::Serialize;
use serde_json::json;
use trust::PublicKey;
use utoipa::ToSchema;

use super::{ChangedBy, FleetStore, json, read, read_json};

const DOING: &str = "reading a recovery";
const COLUMNS: &str = "org_id, kid, asked_ms, seen_ms, state, decided_ms, decided_by";
/// How long, ms, a person's decision is valid. Afterwards the gateway has to request again.
const DECIDED_FOR_MS: i64 = 7 * 86_400_000;
/// How long, ms, an approval can be used again: a gateway that did not receive the response
/// retries.
const AGAIN_MS: i64 = 24 * 60 * 60 * 1000;

/// A gateway's request for a certificate after its last one has expired.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    #[serde(skip)]
    #[schema(ignore)]
    pub org_id: OrgId,
    #[schema(value_type = String)]
    pub key_id: KeyId,
    pub asked_at: EpochMs,
    /// The time of its latest request.
    pub seen_at: EpochMs,
    /// The state: `waiting`, `approved`, `refused` or `used`.
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<EpochMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<Actor>,
}

/// The decision about a gateway's request for recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryDecision {
    Waiting { since: EpochMs },
    Approved,
    Refused,
}

#[derive(FromRow)]
struct RecoveryRow {
    org_id: String,
    kid: String,
    asked_ms: i64,
    seen_ms: i64,
    state: String,
    decided_ms: Option<i64>,
    decided_by: Option<String>,
}

impl RecoveryRow {
    fn recovery(self) -> Result<Recovery, StoreError> {
        let decided_by = self.decided_by.map(|text| read_json(DOING, &text)).transpose()?;
        Ok(Recovery {
            org_id: OrgId::new(self.org_id).map_err(|e| StoreError::row(DOING, e))?,
            key_id: read(DOING, &self.kid)?,
            asked_at: EpochMs(self.asked_ms),
            seen_at: EpochMs(self.seen_ms),
            state: self.state,
            decided_at: self.decided_ms.map(EpochMs),
            decided_by,
        })
    }
}

impl FleetStore {
    /// Stores a gateway's request and returns the decision about it, inside the transaction that
    /// acts on the decision. A first request waits for a person's decision from now on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn request_recovery(
        tx: &mut Tx,
        (org, key_id, public): (&OrgId, &KeyId, &PublicKey),
        by: ChangedBy<'_>,
    ) -> Result<RecoveryDecision, StoreError> {
        let now = by.now.0;
        // A decision about another key, or one that is too old, does not count.
        let (state, asked, decided): (String, i64, Option<i64>) = on_tx!(&mut *tx, c => query_as(
            "INSERT INTO recoveries AS r (org_id, kid, public_key, asked_ms, seen_ms, state) \
             VALUES ($1, $2, $3, $4, $4, 'new') ON CONFLICT (org_id, kid) DO UPDATE SET \
             seen_ms = EXCLUDED.seen_ms, public_key = EXCLUDED.public_key, \
             state = CASE WHEN r.public_key <> EXCLUDED.public_key \
               OR r.state = 'used' AND r.decided_ms < $5 OR r.decided_ms < $6 \
               THEN 'new' ELSE r.state END \
             RETURNING state, asked_ms, decided_ms")
            .bind(org.as_str()).bind(key_id.as_str()).bind(public.to_pem()).bind(now)
            .bind(by.now.minus_ms(AGAIN_MS).0).bind(by.now.minus_ms(DECIDED_FOR_MS).0)
            .fetch_one(c).await)
        .map_err(StoreError::query(DOING))?;
        match state.as_str() {
            "new" => {
                on_tx!(&mut *tx, c => query(
                    "UPDATE recoveries SET state = 'waiting', asked_ms = $3, decided_ms = NULL, \
                     decided_by = NULL WHERE org_id = $1 AND kid = $2")
                    .bind(org.as_str()).bind(key_id.as_str()).bind(now).execute(c).await.map(drop))
                .map_err(StoreError::query(DOING))?;
                by.audit(tx, org, ("recovery.ask", key_id.as_str(), json!({}))).await?;
                Ok(RecoveryDecision::Waiting { since: by.now })
            }
            "waiting" => Ok(RecoveryDecision::Waiting { since: EpochMs(asked) }),
            "approved" | "used" => {
                debug_assert!(decided.is_some(), "an approved recovery has a decision time");
                on_tx!(&mut *tx, c => query(
                    "UPDATE recoveries SET state = 'used', \
                     decided_ms = CASE WHEN state = 'used' THEN decided_ms ELSE $3 END \
                     WHERE org_id = $1 AND kid = $2")
                    .bind(org.as_str()).bind(key_id.as_str()).bind(now).execute(c).await.map(drop))
                .map_err(StoreError::query(DOING))?;
                Ok(RecoveryDecision::Approved)
            }
            _ => Ok(RecoveryDecision::Refused),
        }
    }

    /// Returns the requests that wait for a decision, longest waiting first; at most 1000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn recoveries(&self, org: &OrgId) -> Result<Vec<Recovery>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM recoveries WHERE org_id = $1 AND state = 'waiting' \
             ORDER BY asked_ms, kid LIMIT 1000"
        );
        let rows: Vec<RecoveryRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.into_iter().map(RecoveryRow::recovery).collect()
    }

    /// Stores a person's decision, or a changed decision. Returns `Ok(None)` if the gateway has not
    /// requested a recovery, or has used the approval already.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn decide_recovery(
        &self,
        org: &OrgId,
        key_id: &str,
        approve: bool,
        by: ChangedBy<'_>,
    ) -> Result<Option<Recovery>, StoreError> {
        let (state, action) =
            if approve { ("approved", "recovery.approve") } else { ("refused", "recovery.refuse") };
        let mut tx = self.begin().await?;
        let sql = format!(
            "UPDATE recoveries SET state = $3, decided_ms = $4, decided_by = $5 \
             WHERE org_id = $1 AND kid = $2 AND state IN ('waiting', 'approved', 'refused') \
             RETURNING {COLUMNS}"
        );
        let row: Option<RecoveryRow> = on_tx!(&mut tx, c => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(key_id).bind(state).bind(by.now.0).bind(json(by.actor)?)
            .fetch_optional(c).await)
        .map_err(StoreError::query("storing the decision about a recovery"))?;
        let Some(decided) = row.map(RecoveryRow::recovery).transpose()? else { return Ok(None) };
        by.audit(&mut tx, org, (action, key_id, json!({}))).await?;
        tx.commit().await?;
        Ok(Some(decided))
    }
}
