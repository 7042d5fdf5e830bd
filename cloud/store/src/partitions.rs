//! Frames are partitioned by the week they were made in, so that retention drops a table and never
//! deletes rows. Frames with a clock far off land in the default partition.

use contract::EpochMs;
use sqlx::AssertSqlSafe;

use crate::{Pool, Store, StoreError};

const WEEK_MS: i64 = 7 * 86_400_000;
const WEEKS_AHEAD: i64 = 3;

impl Store {
    /// Makes the partitions of this week and the next ones; does nothing on SQLite. A week whose
    /// frames already lie in the default partition stays there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ensure_partitions(&self, now: EpochMs) -> Result<(), StoreError> {
        const DOING: &str = "making the partitions of the coming weeks";
        let Pool::Postgres(pool) = &self.pool else { return Ok(()) };
        for week in 0..WEEKS_AHEAD {
            let from = (now.0.div_euclid(WEEK_MS) + week) * WEEK_MS;
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
            // The name is digits of a date of ours, the bounds are numbers.
            let sql = format!(
                "CREATE TABLE IF NOT EXISTS {name} PARTITION OF frames \
                 FOR VALUES FROM ({from}) TO ({}) WITH (toast_tuple_target = 8160)",
                from + WEEK_MS
            );
            match sqlx::query(AssertSqlSafe(sql)).execute(pool).await {
                Ok(_) => tracing::info!(partition = name, "made a partition"),
                // Another instance was quicker, or the week already has rows in the default one.
                Err(sqlx::Error::Database(error)) => {
                    tracing::info!(partition = name, reason = %error, "left a partition as it is");
                }
                Err(source) => return Err(StoreError::Query { doing: DOING, source }),
            }
        }
        Ok(())
    }
}
