//! The governor's rate limits: token buckets, each of one goal and organisation, site or machine.
//!
//! Each bucket is a row of its organisation, so organisations never wait for each other. The missions
//! of one goal and organisation take their tokens one after the other: a transaction holds the
//! bucket's row from [`KernelStore::take_token`] to the commit of its mission. It must therefore ask
//! no other service in between; `missions::create` asks eval before it begins the transaction. All
//! transactions take the bucket of the machine before that of the organisation, so that none waits
//! for another in a circle.

use ::database::sqlx::{query, query_scalar};
use ::database::{StoreError, on_tx};
use contract::{EpochMs, OrgId};

use super::KernelStore;
use crate::governor::RateLimit;

/// The longest wait for a token, ms: a bucket that never refills is checked once a day.
const TOKEN_WAIT_MAX_MS: f64 = 86_400_000.0;

impl KernelStore {
    /// Takes a token from `bucket` in `tx`, or returns when the next one will be there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take_token(
        &self,
        tx: &mut ::database::Tx,
        org: &OrgId,
        (bucket, limit): (&str, &RateLimit),
        now: EpochMs,
    ) -> Result<Option<EpochMs>, StoreError> {
        const DOING: &str = "taking a token";
        on_tx!(tx, c => query(
            "INSERT INTO governor_buckets (org_id, bucket, tokens, updated_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (org_id, bucket) DO NOTHING")
            .bind(org.as_str()).bind(bucket).bind(limit.capacity).bind(now.0)
            .execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let per_ms = limit.refill_per_sec / 1000.0;
        // The lock on the bucket's row serialises its users. A clock that was set back refills
        // nothing.
        let filled: f64 = on_tx!(tx, c => query_scalar(
            "UPDATE governor_buckets SET tokens = CASE \
               WHEN $3 <= updated_ms THEN tokens \
               WHEN tokens + ($3 - updated_ms) * $4 > $5 THEN $5 \
               ELSE tokens + ($3 - updated_ms) * $4 END, \
             updated_ms = CASE WHEN $3 > updated_ms THEN $3 ELSE updated_ms END \
             WHERE org_id = $1 AND bucket = $2 RETURNING tokens")
            .bind(org.as_str()).bind(bucket).bind(now.0).bind(per_ms).bind(limit.capacity)
            .fetch_one(c).await)
        .map_err(StoreError::query(DOING))?;
        if filled >= 1.0 {
            on_tx!(tx, c => query("UPDATE governor_buckets SET tokens = tokens - 1 \
                                   WHERE org_id = $1 AND bucket = $2")
                .bind(org.as_str()).bind(bucket).execute(c).await.map(drop))
            .map_err(StoreError::query(DOING))?;
            return Ok(None);
        }
        let wait = ((1.0 - filled) / per_ms).clamp(1.0, TOKEN_WAIT_MAX_MS);
        #[allow(clippy::cast_possible_truncation)] // at most a day
        let next = now.plus_ms(wait.ceil() as i64);
        Ok(Some(next))
    }
}
