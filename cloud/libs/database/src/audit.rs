//! The audit log: who changed what. Each entry is hashed together with the one before it, so that
//! an altered, removed or inserted entry is detected. In addition the database refuses changes.

use contract::{Actor, EpochMs, OrgId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{FromRow, query, query_as, query_scalar};

use crate::{Database, StoreError, Tx, on, on_tx};

/// One change and its actor.
#[derive(Debug, Clone)]
pub struct AuditChange<'c> {
    pub org: &'c OrgId,
    pub actor: &'c Actor,
    pub at: EpochMs,
    /// What was done, for example `mission.approve`.
    pub action: &'c str,
    /// The object that was changed.
    pub subject: &'c str,
    pub details: Value,
}

/// An entry of the audit log as it is exported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// The number of the entry, from 1 without gaps.
    pub n: i64,
    pub at: EpochMs,
    #[schema(value_type = Actor)]
    pub actor: Value,
    pub action: String,
    pub subject: String,
    /// Free-form JSON, which depends on the action.
    pub details: Value,
    /// SHA-256 of the previous entry's hash and of this entry, in hex.
    pub hash: String,
}

#[derive(FromRow)]
struct AuditRow {
    n: i64,
    at_ms: i64,
    actor: String,
    action: String,
    subject: String,
    details: String,
    hash: Vec<u8>,
}

/// What an entry's hash covers, in this order, each part preceded by its length (8 bytes,
/// big-endian): the previous hash, number, time in ms, actor, action, subject, details as they are
/// stored.
struct HashInput<'l> {
    before: &'l [u8],
    n: i64,
    at_ms: i64,
    texts: [&'l str; 4],
}

impl HashInput<'_> {
    fn hash(&self) -> [u8; 32] {
        let mut bytes = Vec::with_capacity(256);
        let mut put = |part: &[u8]| {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        put(self.before);
        put(&self.n.to_be_bytes());
        put(&self.at_ms.to_be_bytes());
        self.texts.iter().for_each(|text| put(text.as_bytes()));
        trust::sha256_digest(&bytes).0
    }
}

/// How an audit log differs from what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    #[error("entry {0} is missing")]
    Missing(i64),
    #[error("entry {0} was altered, or one before it was removed")]
    Altered(i64),
    #[error("the log ends at entry {last}, but entry {n} was written")]
    CutOff { last: i64, n: i64 },
}

/// The newest entry of an organisation's audit log. Its hash covers all entries before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditHead {
    pub org: OrgId,
    pub n: i64,
    pub hash: contract::Digest,
}

impl Tx {
    /// Appends an entry to the audit log of an organisation, in the transaction of the change
    /// itself.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn audit(&mut self, change: &AuditChange<'_>) -> Result<(), StoreError> {
        const DOING: &str = "writing the audit log";
        let org = change.org.as_str();
        let actor = json(change.actor)?;
        let details = change.details.to_string();
        // The lock on the head's row puts concurrent appends in order.
        on_tx!(self, c => query(
            "INSERT INTO audit_heads (org_id, n, hash) VALUES ($1, 0, $2) ON CONFLICT (org_id) DO NOTHING")
            .bind(org).bind([0_u8; 32].as_slice()).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let (n, before): (i64, Vec<u8>) = on_tx!(self, c => query_as(
            "UPDATE audit_heads SET n = n + 1 WHERE org_id = $1 RETURNING n, hash")
            .bind(org).fetch_one(c).await)
        .map_err(StoreError::query(DOING))?;
        let texts = [actor.as_str(), change.action, change.subject, details.as_str()];
        let hash = HashInput { before: &before, n, at_ms: change.at.0, texts }.hash();
        on_tx!(self, c => query(
            "INSERT INTO audit (org_id, n, at_ms, actor, action, subject, details, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(org).bind(n).bind(change.at.0).bind(&actor).bind(change.action)
            .bind(change.subject).bind(&details).bind(hash.as_slice()).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        on_tx!(self, c => query("UPDATE audit_heads SET hash = $2 WHERE org_id = $1")
            .bind(org).bind(hash.as_slice()).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))
    }
}

impl Database {
    /// Returns the entries after `after`, oldest first, at most `limit`, each checked against the
    /// one before.
    ///
    /// # Errors
    /// When the database does not answer; [`AuditError`] inside [`StoreError::Row`] when the log
    /// differs from what was written.
    pub async fn audit_log(
        &self,
        org: &OrgId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        const DOING: &str = "reading the audit log";
        // Before the rows: an entry that is appended in between is no difference.
        let head: Option<i64> = on!(self, pool => query_scalar(
            "SELECT n FROM audit_heads WHERE org_id = $1")
            .bind(org.as_str()).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        let head = head.unwrap_or(0);
        let rows: Vec<AuditRow> = on!(self, pool => query_as(
            "SELECT n, at_ms, actor, action, subject, details, hash FROM audit \
             WHERE org_id = $1 AND n >= $2 ORDER BY n LIMIT $3")
            .bind(org.as_str()).bind(after).bind(limit.saturating_add(1)).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let damaged = |error: AuditError| StoreError::row(DOING, error);
        let is_last_page = i64::try_from(rows.len()).is_ok_and(|count| count <= limit);
        let mut before = vec![0; 32];
        // Entry `after` is read too: the next one's hash covers it.
        let mut expected = after.max(1);
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            if row.n == after {
                (before, expected) = (row.hash, row.n.saturating_add(1));
                continue;
            }
            if row.n != expected {
                return Err(damaged(AuditError::Missing(expected)));
            }
            let texts = [&row.actor, &row.action, &row.subject, &row.details].map(String::as_str);
            let link = HashInput { before: &before, n: row.n, at_ms: row.at_ms, texts };
            let hash = link.hash();
            if hash.as_slice() != row.hash {
                return Err(damaged(AuditError::Altered(row.n)));
            }
            expected = row.n.saturating_add(1);
            // JSON that is nested too deeply to parse is returned as a string.
            let text = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| text.into());
            entries.push(AuditEntry {
                n: row.n,
                at: EpochMs(row.at_ms),
                actor: text(&row.actor),
                details: text(&row.details),
                action: row.action,
                subject: row.subject,
                hash: contract::Digest(hash).to_string(),
            });
            before = row.hash;
        }
        // Fewer rows than asked for: the log must end where its head says.
        let last = expected.saturating_sub(1);
        if is_last_page && head > last {
            return Err(damaged(AuditError::CutOff { last, n: head }));
        }
        entries.truncate(usize::try_from(limit).unwrap_or(0));
        Ok(entries)
    }

    /// Returns the newest entry of each organisation's audit log.
    ///
    /// # Errors
    /// When the database does not answer, or a row is damaged.
    pub async fn audit_heads(&self) -> Result<Vec<AuditHead>, StoreError> {
        const DOING: &str = "reading the heads of the audit log";
        let rows: Vec<(String, i64, Vec<u8>)> = on!(self, pool => query_as(
            "SELECT org_id, n, hash FROM audit_heads ORDER BY org_id").fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let head = |(org, n, hash): (String, i64, Vec<u8>)| {
            let org = OrgId::new(org).map_err(|e| StoreError::row(DOING, e))?;
            Ok(AuditHead { org, n, hash: digest(DOING, &hash)? })
        };
        rows.into_iter().map(head).collect()
    }

    /// Returns the hash of entry `n` of an organisation's audit log; `None` if there is none.
    ///
    /// # Errors
    /// When the database does not answer, or the row is damaged.
    pub async fn audit_hash(
        &self,
        org: &OrgId,
        n: i64,
    ) -> Result<Option<contract::Digest>, StoreError> {
        const DOING: &str = "reading an entry of the audit log";
        let hash: Option<Vec<u8>> = on!(self, pool => query_scalar(
            "SELECT hash FROM audit WHERE org_id = $1 AND n = $2")
            .bind(org.as_str()).bind(n).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        hash.map(|hash| digest(DOING, &hash)).transpose()
    }
}

fn digest(doing: &'static str, hash: &[u8]) -> Result<contract::Digest, StoreError> {
    let hash = hash.try_into().map_err(|_| StoreError::row(doing, "a hash is not 32 bytes"))?;
    Ok(contract::Digest(hash))
}

fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::row("writing JSON", error))
}
