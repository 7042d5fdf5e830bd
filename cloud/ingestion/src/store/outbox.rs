//! Ends of roasts that are to be told: written once, in the transaction that marks the roast as told,
//! and kept until somebody says that they have taken notice.

use ::store::sqlx::{AssertSqlSafe, FromRow, query, query_as, query_scalar};
use ::store::{StoreError, on, on_tx};
use contract::ops::SessionClosed;
use contract::{EpochMs, OrgId};

use super::IngestStore;

/// A roast that is to be ended or told.
#[derive(Debug, FromRow)]
pub struct Untold {
    pub org_id: String,
    pub session_id: String,
    pub started_ms: i64,
}

/// How long a closed roast is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// Seen closed before, and nothing heard of its gateway since `silent_since`.
    pub closed_before: EpochMs,
    pub silent_since: EpochMs,
    /// Seen closed before, whatever is heard.
    pub closed_long_before: EpochMs,
}

impl IngestStore {
    /// Notes when closed roasts were first seen here.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn see_closed(&self, now: EpochMs) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "UPDATE sessions SET closed_seen_ms = $1 \
             WHERE status = 'CLOSED' AND announced_ms IS NULL AND closed_seen_ms IS NULL")
            .bind(now.0).execute(pool).await.map(drop))
        .map_err(StoreError::query("noting closed roasts"))
    }

    /// Roasts whose end can be told, in order after `after`: complete by their receipt; or of a
    /// publisher that signs none; or seen closed so long ago that what is missing may never come —
    /// sooner where the gateway is silent.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn untold(
        &self,
        wait: &Wait,
        after: (i64, &str),
        limit: i64,
    ) -> Result<Vec<Untold>, StoreError> {
        on!(self.database, pool => query_as(
            "SELECT s.org_id, s.session_id, s.started_ms FROM sessions s \
             JOIN chains c ON c.chain_no = s.chain_no \
             WHERE s.status = 'CLOSED' AND s.announced_ms IS NULL AND (s.completeness = 'complete' \
             OR c.kid = '' OR (s.closed_seen_ms < $1 AND c.seen_ms < $2) OR s.closed_seen_ms < $3) \
             AND (s.started_ms > $4 OR (s.started_ms = $4 AND s.session_id > $5)) \
             ORDER BY s.started_ms, s.session_id LIMIT $6")
            .bind(wait.closed_before.0).bind(wait.silent_since.0).bind(wait.closed_long_before.0)
            .bind(after.0).bind(after.1).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query("looking for ended roasts"))
    }

    /// Running roasts that nobody will end: another has begun on their chain, or it has been silent
    /// since `unsigned_since` (publishers that sign nothing) or `signed_since` (gateways, which come
    /// back with what they kept).
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn abandoned(
        &self,
        (unsigned_since, signed_since): (EpochMs, EpochMs),
        after: (i64, &str),
        limit: i64,
    ) -> Result<Vec<Untold>, StoreError> {
        on!(self.database, pool => query_as(
            "SELECT s.org_id, s.session_id, s.started_ms FROM sessions s \
             JOIN chains c ON c.chain_no = s.chain_no \
             WHERE s.status = 'ACTIVE' AND ((c.kid = '' AND c.seen_ms < $1) OR c.seen_ms < $2 \
             OR EXISTS (SELECT 1 FROM sessions n WHERE n.machine_no = s.machine_no \
               AND n.chain_no = s.chain_no AND n.started_ms > s.started_ms)) \
             AND (s.started_ms > $3 OR (s.started_ms = $3 AND s.session_id > $4)) \
             ORDER BY s.started_ms, s.session_id LIMIT $5")
            .bind(unsigned_since.0).bind(signed_since.0).bind(after.0).bind(after.1).bind(limit)
            .fetch_all(pool).await)
        .map_err(StoreError::query("looking for abandoned roasts"))
    }

    /// Ends a running roast without a DROP. What comes later still tells the truth about it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn close_abandoned(
        &self,
        org: &OrgId,
        session: &str,
        ended: EpochMs,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "UPDATE sessions SET status = 'CLOSED', ended_ms = $3 \
             WHERE org_id = $1 AND session_id = $2 AND status = 'ACTIVE'")
            .bind(org.as_str()).bind(session).bind(ended.0).execute(pool).await.map(drop))
        .map_err(StoreError::query("ending an abandoned roast"))
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
        // One that another version wrote and we cannot read does not hold back the others.
        let read = |body: &String| {
            let event = serde_json::from_str(body);
            event.inspect_err(|error| tracing::warn!(%error, "an end that cannot be read")).ok()
        };
        Ok(bodies.iter().filter_map(read).collect())
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
