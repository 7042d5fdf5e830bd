//! Partitions of frames by the week in which they were made, so that retention drops a table and
//! does not delete its rows. Frames with a clock far off go to the default partition.

use contract::EpochMs;
use sqlx::AssertSqlSafe;

use crate::{Database, Pool, StoreError};

const WEEK_MS: i64 = 7 * 86_400_000;
const WEEKS_AHEAD: i64 = 3;

impl Database {
    /// Creates the partitions of this week and the next ones; does nothing on SQLite. If frames of
    /// a week are already in the default partition, that week stays there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ensure_partitions(&self, now: EpochMs) -> Result<(), StoreError> {
        const DOING: &str = "creating the partitions of the coming weeks";
        let Pool::Postgres(pool) = &self.pool else { return Ok(()) };
        for week in 0..WEEKS_AHEAD {
            let from = now.0.div_euclid(WEEK_MS).saturating_add(week).saturating_mul(WEEK_MS);
            let to = from.saturating_add(WEEK_MS);
            let name = format!("frames_{}", &EpochMs(from).compact()[..8]);
            let exists: Option<i32> =
                sqlx::query_scalar("SELECT 1 FROM pg_class WHERE relname = $1")
                    .bind(&name)
                    .fetch_optional(pool)
                    .await
                    .map_err(StoreError::query(DOING))?;
            if exists.is_some() {
                continue;
            }
            // Safe in SQL: the name has the digits of a date that we computed, the bounds are
            // numbers.
            let sql = format!(
                "CREATE TABLE IF NOT EXISTS {name} PARTITION OF frames \
                 FOR VALUES FROM ({from}) TO ({to}) WITH (toast_tuple_target = 8160)"
            );
            match sqlx::query(AssertSqlSafe(sql)).execute(pool).await {
                Ok(_) => tracing::info!(partition = name, "created a partition"),
                // Another instance was faster, or the default partition already has rows of the
                // week.
                Err(sqlx::Error::Database(error)) => {
                    tracing::info!(partition = name, reason = %error, "did not create a partition");
                }
                Err(source) => return Err(StoreError::Query { doing: DOING, source }),
            }
        }
        Ok(())
    }
}
