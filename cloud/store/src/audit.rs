//! Who changed what. Each entry is hashed together with the one before it, so that an entry that was
//! altered, removed or put in between shows; the database refuses changes besides.

use contract::{Actor, EpochMs, OrgId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{FromRow, query, query_as};

use crate::{Store, StoreError, Tx, on, on_tx};

/// One change, by whom.
#[derive(Debug, Clone)]
pub struct Change<'c> {
    pub org: &'c OrgId,
    pub actor: &'c Actor,
    pub at: EpochMs,
    /// What was done, as `mission.approve`.
    pub action: &'c str,
    /// To what.
    pub subject: &'c str,
    pub details: Value,
}

/// An entry as it is exported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub n: i64,
    pub at: EpochMs,
    pub actor: Value,
    pub action: String,
    pub subject: String,
    pub details: Value,
    /// SHA-256 of the entry before and of this one, hex; see [`Link`].
    pub hash: String,
}

#[derive(FromRow)]
struct Row {
    n: i64,
    at_ms: i64,
    actor: String,
    action: String,
    subject: String,
    details: String,
    hash: Vec<u8>,
}

/// What an entry's hash covers, in this order, each length first (8 bytes, big-endian): the hash
/// before, number, time in ms, actor, action, subject, details as they are stored.
struct Link<'l> {
    before: &'l [u8],
    n: i64,
    at_ms: i64,
    texts: [&'l str; 4],
}

impl Link<'_> {
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
        trust::digest(&bytes).0
    }
}

/// Why an audit log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    #[error("entry {0} is missing")]
    Missing(i64),
    #[error("entry {0} was altered, or one before it was removed")]
    Altered(i64),
}

impl Tx {
    /// Appends to the log of an organisation, in the transaction of the change itself.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn audit(&mut self, change: &Change<'_>) -> Result<(), StoreError> {
        const DOING: &str = "writing the audit log";
        let org = change.org.as_str();
        let actor = json(change.actor)?;
        let details = change.details.to_string();
        // The head's row orders those who append.
        on_tx!(self, c => query(
            "INSERT INTO audit_heads (org_id, n, hash) VALUES ($1, 0, $2) ON CONFLICT (org_id) DO NOTHING")
            .bind(org).bind([0_u8; 32].as_slice()).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let (n, before): (i64, Vec<u8>) = on_tx!(self, c => query_as(
            "UPDATE audit_heads SET n = n + 1 WHERE org_id = $1 RETURNING n, hash")
            .bind(org).fetch_one(c).await)
        .map_err(StoreError::query(DOING))?;
        let texts = [actor.as_str(), change.action, change.subject, details.as_str()];
        let hash = Link { before: &before, n, at_ms: change.at.0, texts }.hash();
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

impl Store {
    /// The entries after `after`, oldest first, at most `limit`, each checked against the one before.
    ///
    /// # Errors
    /// When the database does not answer; [`AuditError`] inside [`StoreError::Row`] when the log is
    /// not what was written.
    pub async fn audit_log(
        &self,
        org: &OrgId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Entry>, StoreError> {
        const DOING: &str = "reading the audit log";
        let rows: Vec<Row> = on!(self, pool => query_as(
            "SELECT n, at_ms, actor, action, subject, details, hash FROM audit \
             WHERE org_id = $1 AND n >= $2 ORDER BY n LIMIT $3")
            .bind(org.as_str()).bind(after).bind(limit.saturating_add(1)).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let damaged = |error: AuditError| StoreError::row(DOING, error);
        let mut before = vec![0; 32];
        let mut expected = 1;
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            if row.n == after {
                (before, expected) = (row.hash, row.n + 1);
                continue;
            }
            if row.n != expected {
                return Err(damaged(AuditError::Missing(expected)));
            }
            let texts = [&row.actor, &row.action, &row.subject, &row.details].map(String::as_str);
            let link = Link { before: &before, n: row.n, at_ms: row.at_ms, texts };
            let hash = link.hash();
            if hash.as_slice() != row.hash {
                return Err(damaged(AuditError::Altered(row.n)));
            }
            expected = row.n + 1;
            // What is nested too deeply to be read is told as it stands.
            let text = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| text.into());
            entries.push(Entry {
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
        entries.truncate(usize::try_from(limit).unwrap_or(0));
        Ok(entries)
    }
}

fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::row("writing JSON", error))
}
