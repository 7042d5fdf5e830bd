//! Ends of roasts that are to be told: written once, in the transaction that marks the roast as told,
//! and kept until somebody says that they have taken notice.

use ::store::sqlx::{AssertSqlSafe, FromRow, query, query_as, query_scalar};
use ::store::{StoreError, on, on_tx};
use contract::ops::SessionClosed;
use contract::{EpochMs, OrgId};

use super::IngestStore;

/// A roast that has ended and has not been told.
#[derive(Debug, FromRow)]
pub struct Untold {
    pub org_id: String,
    pub session_id: String,
}

impl IngestStore {
    /// Roasts whose end can be told: complete by their receipt; or of a publisher that signs none; or
    /// ended so long ago, or silent for so long, that what is missing may never come.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn untold(
        &self,
        ended_before: EpochMs,
        silent_since: EpochMs,
        limit: i64,
    ) -> Result<Vec<Untold>, StoreError> {
        on!(self.database, pool => query_as(
            "SELECT s.org_id, s.session_id FROM sessions s JOIN chains c ON c.chain_no = s.chain_no \
             WHERE s.status = 'CLOSED' AND s.announced_ms IS NULL AND (s.completeness = 'complete' \
             OR c.kid = '' OR s.ended_ms < $1 OR c.seen_ms < $2) \
             ORDER BY s.started_ms, s.session_id LIMIT $3")
            .bind(ended_before.0).bind(silent_since.0).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query("looking for ended roasts"))
    }

    /// Puts the end of a roast into the outbox, once. Answers whether this call did.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn announce(
        &self,
        org: &OrgId,
        event: &SessionClosed,
        now: EpochMs,
    ) -> Result<bool, StoreError> {
        const DOING: &str = "announcing the end of a roast";
        let body = serde_json::to_string(event).map_err(|e| StoreError::row(DOING, e))?;
        let session = event.session_id.as_str();
        let mut tx = self.database.begin().await?;
        let first = on_tx!(&mut tx, c => query(
            "UPDATE sessions SET announced_ms = $3 \
             WHERE org_id = $1 AND session_id = $2 AND announced_ms IS NULL")
            .bind(org.as_str()).bind(session).bind(now.0)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query(DOING))?;
        if !first {
            return Ok(false);
        }
        on_tx!(&mut tx, c => query(
            "INSERT INTO outbox (org_id, session_id, made_ms, due_ms, body) VALUES ($1, $2, $3, $3, $4) \
             ON CONFLICT (org_id, session_id) DO NOTHING")
            .bind(org.as_str()).bind(session).bind(now.0).bind(body).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        tx.commit().await?;
        Ok(true)
    }

    /// What is due to be told, and puts its next time off: by `first_ms`, twice as long each time, at
    /// most `max_ms`. Of two instances one gets it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn due(
        &self,
        now: EpochMs,
        (first_ms, max_ms): (i64, i64),
        limit: i64,
    ) -> Result<Vec<SessionClosed>, StoreError> {
        const DOING: &str = "reading the outbox";
        let lock = if self.database.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
        let sql = format!(
            "UPDATE outbox SET tries = tries + 1, due_ms = $1 + CASE \
               WHEN tries >= 20 THEN $3 WHEN $2 * (1 << CAST(tries AS INTEGER)) > $3 THEN $3 \
               ELSE $2 * (1 << CAST(tries AS INTEGER)) END \
             WHERE (org_id, session_id) IN (SELECT org_id, session_id FROM outbox \
               WHERE due_ms <= $1 ORDER BY due_ms LIMIT $4{lock}) RETURNING body"
        );
        let bodies: Vec<String> = on!(self.database, pool => query_scalar(AssertSqlSafe(sql))
            .bind(now.0).bind(first_ms).bind(max_ms).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let read =
            |body: &String| serde_json::from_str(body).map_err(|e| StoreError::row(DOING, e));
        bodies.iter().map(read).collect()
    }

    /// Somebody has taken notice.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn taken(&self, org: &OrgId, session: &str) -> Result<(), StoreError> {
        on!(self.database, pool => query("DELETE FROM outbox WHERE org_id = $1 AND session_id = $2")
            .bind(org.as_str()).bind(session).execute(pool).await.map(drop))
        .map_err(StoreError::query("emptying the outbox"))
    }

    /// How many ends of roasts nobody has taken notice of.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn waiting(&self) -> Result<i64, StoreError> {
        on!(self.database, pool => query_scalar("SELECT count(*) FROM outbox").fetch_one(pool).await)
            .map_err(StoreError::query("counting the outbox"))
    }
}
