//! Leases: of several instances one does a task, until it stops renewing. Each change of holder
//! increases a fencing number, so that a replaced holder can be recognised.

use contract::EpochMs;
use sqlx::query_scalar;

use crate::{Database, StoreError, on};

impl Database {
    /// Takes or renews the lease `name` for `holder` until `ms` from now. Returns its fencing
    /// number, or `None` if another holder has it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease(
        &self,
        name: &str,
        holder: &str,
        ms: i64,
        now: EpochMs,
    ) -> Result<Option<i64>, StoreError> {
        on!(self, pool => query_scalar(
            "INSERT INTO leases AS l (name, holder, fence, until_ms) VALUES ($1, $2, 1, $3) \
             ON CONFLICT (name) DO UPDATE SET holder = EXCLUDED.holder, until_ms = EXCLUDED.until_ms, \
             fence = l.fence + CASE WHEN l.holder = EXCLUDED.holder THEN 0 ELSE 1 END \
             WHERE l.holder = EXCLUDED.holder OR l.until_ms < $4 RETURNING fence")
            .bind(name).bind(holder).bind(now.plus_ms(ms).0).bind(now.0)
            .fetch_optional(pool).await)
        .map_err(StoreError::query("taking a lease"))
    }
}
