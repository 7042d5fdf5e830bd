//! The outbox of `SessionClosed` events: an event is written once, in the transaction that marks
//! the session as published, and kept until a service acknowledges it.

use ::database::sqlx::{FromRow, query, query_as, query_scalar};
use ::database::{StoreError, on, on_tx};
use contract::mission::{POST_ROAST, REPORT_GOAL};
use contract::ops::SessionClosed;
use contract::{EpochMs, OrgId};

use super::IngestStore;
use crate::sweep;

/// The time between two passes over the events that are due.
const PASS_MS: i64 = 1_000;

/// A session that a sweep examines.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PendingSession {
    pub org_id: String,
    pub session_id: String,
    pub started_ms: i64,
    pub chain_no: i64,
    /// Whether the sweep has to close or publish it, or to make its curve.
    pub is_due: bool,
}

/// When an incomplete closed session is published anyway.
#[derive(Debug, Clone, Copy)]
pub struct PublishAfter {
    /// First seen closed before this, and no message from its gateway since `silent_since`.
    pub closed_before: EpochMs,
    pub silent_since: EpochMs,
    /// First seen closed before this, whether or not its gateway still sends.
    pub closed_long_before: EpochMs,
}

impl IngestStore {
    /// Records when closed sessions were first seen here.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mark_closed_seen(&self, now: EpochMs) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "UPDATE sessions SET closed_seen_ms = $1 \
             WHERE status = 'CLOSED' AND announced_ms IS NULL AND closed_seen_ms IS NULL")
            .bind(now.0).execute(pool).await.map(drop))
        .map_err(StoreError::query("noting closed roasts"))
    }

    /// Closes a running session that has no DROP. Data that arrives later is still stored and
    /// corrects it.
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

    /// Puts a `SessionClosed` event into the outbox, once. Returns whether this call did it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn enqueue_session_closed(
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

    /// Returns the events that are due, at most `limit`, the organisations in turn, and postpones
    /// their next publication: by `first_ms`, doubled each time, at most `max_ms`. Of two instances
    /// only one gets an event.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take_due(
        &self,
        now: EpochMs,
        (first_ms, max_ms): (i64, i64),
        limit: usize,
    ) -> Result<Vec<SessionClosed>, StoreError> {
        const DOING: &str = "reading the outbox";
        let mut events = Vec::new();
        for (org, session) in self.due_events(now, limit).await? {
            let body: Option<String> = on!(self.database, pool => query_scalar(
                "UPDATE outbox SET tries = tries + 1, due_ms = $1 + CASE \
                   WHEN tries >= 20 THEN $3 WHEN $2 * (1 << CAST(tries AS INTEGER)) > $3 THEN $3 \
                   ELSE $2 * (1 << CAST(tries AS INTEGER)) END \
                 WHERE org_id = $4 AND session_id = $5 AND due_ms <= $1 RETURNING body")
                .bind(now.0).bind(first_ms).bind(max_ms).bind(&org).bind(&session)
                .fetch_optional(pool).await)
            .map_err(StoreError::query(DOING))?;
            let Some(body) = body else { continue }; // another instance has it
            match serde_json::from_str(&body) {
                Ok(event) => events.push(event),
                // An event of another version does not block the others.
                Err(error) => tracing::warn!(%error, org, session, "skipped an event"),
            }
        }
        Ok(events)
    }

    /// Returns the organisation and session of the events that are due, the organisations in turn.
    async fn due_events(
        &self,
        now: EpochMs,
        limit: usize,
    ) -> Result<Vec<(String, String)>, StoreError> {
        const DOING: &str = "reading the outbox";
        let mut orgs: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT DISTINCT org_id FROM outbox WHERE due_ms <= $1 ORDER BY org_id")
            .bind(now.0).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        // If more organisations wait than events are taken, each pass begins with others.
        let pass = usize::try_from(now.0.div_euclid(PASS_MS)).unwrap_or(0);
        let first = pass.wrapping_mul(limit).checked_rem(orgs.len()).unwrap_or(0);
        orgs.rotate_left(first);
        orgs.truncate(limit);
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut due = Vec::with_capacity(orgs.len());
        for org in orgs {
            let of_org: Vec<(String, String)> = on!(self.database, pool => query_as(
                "SELECT org_id, session_id FROM outbox WHERE org_id = $1 AND due_ms <= $2 \
                 ORDER BY due_ms LIMIT $3")
                .bind(&org).bind(now.0).bind(most).fetch_all(pool).await)
            .map_err(StoreError::query(DOING))?;
            due.push(of_org);
        }
        let mut ordered = sweep::in_turn(due);
        ordered.truncate(limit);
        Ok(ordered)
    }

    /// Removes an acknowledged event from the outbox.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn acknowledge_session_closed(
        &self,
        org: &OrgId,
        session: &str,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query("DELETE FROM outbox WHERE org_id = $1 AND session_id = $2")
            .bind(org.as_str()).bind(session).execute(pool).await.map(drop))
        .map_err(StoreError::query("emptying the outbox"))
    }

    /// Removes the events that were published at least `tries` times and whose session has its
    /// mission or its report: a dispatcher that sends no acknowledgement has handled them. Returns
    /// how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn remove_handled_sessions(&self, tries: i64) -> Result<u64, StoreError> {
        on!(self.database, pool => query(
            "DELETE FROM outbox WHERE tries >= $1 AND (EXISTS (SELECT 1 FROM missions m \
               WHERE m.org_id = outbox.org_id AND m.idempotency_key = $2 || outbox.session_id) \
             OR EXISTS (SELECT 1 FROM reports r WHERE r.org_id = outbox.org_id \
               AND r.session_id = outbox.session_id AND r.kind = $3))")
            .bind(tries).bind(format!("{REPORT_GOAL}:{POST_ROAST}:")).bind(POST_ROAST)
            .execute(pool).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query("looking for handled roasts"))
    }

    /// Returns the number of running sessions of all organisations.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn running_sessions_len(&self) -> Result<i64, StoreError> {
        on!(self.database, pool => query_scalar(
            "SELECT count(*) FROM sessions WHERE status = 'ACTIVE'").fetch_one(pool).await)
        .map_err(StoreError::query("counting running roasts"))
    }

    /// Returns the number of events that are not acknowledged yet.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn outbox_len(&self) -> Result<i64, StoreError> {
        on!(self.database, pool => query_scalar("SELECT count(*) FROM outbox").fetch_one(pool).await)
            .map_err(StoreError::query("counting the outbox"))
    }
}
