//! Retention: frames, with their signatures, are dropped after a time; sessions, their events and
//! curves stay.

use std::collections::BTreeSet;

use contract::EpochMs;
use sqlx::AssertSqlSafe;

use crate::{Database, Pool, StoreError, on};

/// Rows deleted in one transaction where there is no partition to drop.
const ROWS_AT_ONCE: i64 = 1_000;
/// Dropping a partition blocks all who read frames, so it waits for its lock only this long and
/// leaves the partition to a later pass.
const LOCK_TIME_MAX: &str = "SET LOCAL lock_timeout = '2s'";

/// A session that began this long before the frames that may be dropped keeps them no longer. Its
/// curve has been due for months: it never ends, or its start is a wrong clock's. Without this
/// bound, one such row of one organisation would keep the frames of all.
const HOLD_MS: i64 = 120 * 86_400_000;
/// Selects sessions that have frames and no curve, and that are too old to keep their frames.
const SELECT_OVERDUE: &str = "\
SELECT s.org_id, s.session_id FROM sessions s WHERE s.curve_ms IS NULL AND s.started_ms < $1 \
AND NOT EXISTS (SELECT 1 FROM curves c WHERE c.org_id = s.org_id AND c.session_id = s.session_id) \
AND EXISTS (SELECT 1 FROM frames f WHERE f.chain_no = s.chain_no AND f.samples > 0 \
    AND f.first_seq BETWEEN COALESCE(s.first_seq, 0) - 4095 \
        AND COALESCE(s.last_seq, 9007199254740991) \
    AND f.first_seq + f.samples > COALESCE(s.first_seq, 0)) \
ORDER BY s.started_ms LIMIT 1000";

/// What a pass dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    pub partitions: u64,
    pub rows: u64,
    /// Roasts whose last samples were among them and that have no curve: their samples are lost.
    pub roasts: u64,
}

impl Database {
    /// Drops the frames made before `before`, but not those of a session that has no curve yet, for
    /// up to four months more. What a session without a curve loses after that is logged and
    /// counted.
    ///
    /// # Errors
    /// When the database does not answer, or readers hold a partition: the next pass retries.
    pub async fn drop_frames(&self, before: EpochMs) -> Result<Dropped, StoreError> {
        const DOING: &str = "dropping old frames";
        let newest: Option<i64> = on!(self, pool => sqlx::query_scalar(
            "SELECT MAX(seen_ms) FROM chains").fetch_one(pool).await)
        .map_err(StoreError::query(DOING))?;
        if newest.is_some_and(|newest| before.0 > newest) {
            // Nothing at all has arrived since: a wrong clock here is more likely than a dead
            // fleet.
            tracing::warn!(%before, "nothing arrived since; check the clock; frames are kept");
            return Ok(Dropped::default());
        }
        let held_since = before.plus_ms(-HOLD_MS);
        let oldest_open: Option<i64> = on!(self, pool => sqlx::query_scalar(
            "SELECT MIN(started_ms) FROM sessions WHERE curve_ms IS NULL AND started_ms >= $1")
            .bind(held_since.0).fetch_one(pool).await)
        .map_err(StoreError::query(DOING))?;
        // A minute earlier, for the samples before CHARGE that belong to the session's first frame.
        let before = oldest_open
            .map_or(before.0, |oldest_open| before.0.min(oldest_open.saturating_sub(60_000)));
        let overdue = self.overdue(held_since).await?;
        let dropped = match &self.pool {
            Pool::Postgres(pool) => drop_partitions(pool, before).await,
            Pool::Sqlite(pool) => delete_sqlite(pool, before).await,
        };
        let mut roasts = 0_u64;
        if !overdue.is_empty() {
            let left = self.overdue(held_since).await?;
            for (org, session) in overdue.difference(&left) {
                tracing::warn!(org, session, "dropped the samples of a roast that has no curve");
                roasts = roasts.saturating_add(1);
            }
            metrics::counter!("simcorp_roasts_lost_to_retention_total").increment(roasts);
        }
        // Last: a pass that failed half-way has dropped some.
        let dropped = dropped.map_err(StoreError::query(DOING))?;
        Ok(Dropped { roasts, ..dropped })
    }

    /// Returns the sessions that have frames and no curve and began before `held_since`, at most
    /// 1 000.
    async fn overdue(&self, held_since: EpochMs) -> Result<BTreeSet<(String, String)>, StoreError> {
        let rows: Vec<(String, String)> = on!(self, pool => sqlx::query_as(SELECT_OVERDUE)
            .bind(held_since.0).fetch_all(pool).await)
        .map_err(StoreError::query("looking for roasts without a curve"))?;
        Ok(rows.into_iter().collect())
    }
}

async fn drop_partitions(pool: &sqlx::PgPool, before: i64) -> Result<Dropped, sqlx::Error> {
    let mut dropped = Dropped::default();
    let partitions: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid) \
         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = 'frames'::regclass ORDER BY 1",
    )
    .fetch_all(pool)
    .await?;
    for (name, bound) in partitions {
        if upper(&bound).is_none_or(|upper| upper > before) {
            continue;
        }
        let mut tx = pool.begin().await?;
        sqlx::query(LOCK_TIME_MAX).execute(&mut *tx).await?;
        // Safe in SQL: the name comes from the catalogue, and we made it of digits.
        sqlx::query(AssertSqlSafe(format!("DROP TABLE IF EXISTS {name}")))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        tracing::info!(partition = name, "dropped a week of frames; sessions keep their curves");
        dropped.partitions = dropped.partitions.saturating_add(1);
    }
    // Frames whose clocks were far off are dropped by when they arrived, not by their own time.
    let sql = "DELETE FROM frames_default WHERE ctid = ANY (ARRAY( \
               SELECT ctid FROM frames_default WHERE received_ms < $1 LIMIT $2))";
    loop {
        let deleted = sqlx::query(sql).bind(before).bind(ROWS_AT_ONCE).execute(pool).await?;
        dropped.rows = dropped.rows.saturating_add(deleted.rows_affected());
        if deleted.rows_affected() == 0 {
            return Ok(dropped);
        }
    }
}

/// Returns the upper bound in `FOR VALUES FROM ('…') TO ('…')`.
fn upper(bound: &str) -> Option<i64> {
    bound.rsplit_once("TO (")?.1.trim_matches(['\'', ')', '(']).parse().ok()
}

async fn delete_sqlite(pool: &sqlx::SqlitePool, before: i64) -> Result<Dropped, sqlx::Error> {
    let mut rows = 0_u64;
    loop {
        // Arrivals are in the order of receipt: the oldest show whether there is more to do.
        let sql = "DELETE FROM frames WHERE received_ms < $1 AND arrival IN \
                   (SELECT arrival FROM frames ORDER BY arrival LIMIT $2)";
        let deleted = sqlx::query(sql).bind(before).bind(ROWS_AT_ONCE).execute(pool).await?;
        rows = rows.saturating_add(deleted.rows_affected());
        if deleted.rows_affected() == 0 {
            return Ok(Dropped { rows, ..Dropped::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_name_gives_its_end() {
        let bound = "FOR VALUES FROM ('1759968000000') TO ('1760572800000')";
        assert_eq!(upper(bound), Some(1_760_572_800_000));
        assert_eq!(upper("DEFAULT"), None);
    }
}
