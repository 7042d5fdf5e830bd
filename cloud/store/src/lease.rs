//! Leases: of several instances one does a thing, until it falls silent. Each holding has a number
//! that only grows, so that one who was replaced can be told from one who was not.

use contract::EpochMs;
use sqlx::query_scalar;

use crate::{Store, StoreError, on};

impl Store {
    /// Takes, or keeps, the lease `name` for `holder` until `ms` from now; its fencing number, or
    /// `None`: somebody else holds it.
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
            .bind(name).bind(holder).bind(now.0 + ms).bind(now.0).fetch_optional(pool).await)
        .map_err(StoreError::query("taking a lease"))
    }
}
