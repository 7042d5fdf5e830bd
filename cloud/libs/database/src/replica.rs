//! A read replica: used for reads that may be slightly stale, while its lag is below the limit.
//!
//! Lag is measured by log position, not by the replica's own clock: each second the primary's
//! position in its log is recorded with the time; the replica is as old as the newest recorded
//! position that it has replayed. So the lag of a replica that has lost its primary grows, although
//! the replica itself does not know that it misses anything.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Database, Pool, StoreError};

const MEASURE_INTERVAL: Duration = Duration::from_secs(1);
/// The timeout of one check: a replica that hangs is treated like one that lags.
const MEASURE_TIME_MAX: Duration = Duration::from_secs(2);
/// The number of recorded positions that are kept: older ones no longer matter.
const POSITIONS_KEPT: usize = 600;
const ACQUIRE_TIME_MAX: Duration = Duration::from_secs(1);

/// A replica, and whether it is fresh enough to be read.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pool: PgPool,
    fresh: Arc<AtomicBool>,
}

impl Replica {
    /// Connects at its first query: an unavailable replica must not prevent the start.
    pub(crate) fn open(url: &str, pool_max: u32) -> Result<Self, StoreError> {
        let options: PgConnectOptions =
            url.parse().map_err(|error: sqlx::Error| StoreError::Address(error.to_string()))?;
        let pool = PgPoolOptions::new()
            .max_connections(pool_max)
            .acquire_timeout(ACQUIRE_TIME_MAX)
            .connect_lazy_with(options.application_name("simcorp reading"));
        Ok(Self { pool, fresh: Arc::default() })
    }
}

impl Database {
    /// Returns the database for reads that may be slightly stale: the replica while it is fresh,
    /// else the primary.
    #[must_use]
    pub fn for_reading(&self) -> Self {
        match &self.replica {
            Some(replica) if replica.fresh.load(Ordering::Relaxed) => {
                metrics::counter!("simcorp_replica_reads_total").increment(1);
                Self {
                    pool: Pool::Postgres(replica.pool.clone()),
                    replica: None,
                    writer: self.writer.clone(),
                }
            }
            _ => self.clone(),
        }
    }

    /// Returns whether reads use the replica.
    #[must_use]
    pub fn replica_is_fresh(&self) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.fresh.load(Ordering::Relaxed))
    }

    /// Measures the replica's lag until `stop`. Returns at once if there is no replica.
    pub async fn watch_replica(self, lag_max: Duration, stop: CancellationToken) {
        let (Some(replica), Pool::Postgres(primary)) = (self.replica, self.pool) else { return };
        let mut positions: VecDeque<(i64, Instant)> = VecDeque::new();
        loop {
            let measurement = tokio::time::timeout(
                MEASURE_TIME_MAX,
                measure_lag(&primary, &replica.pool, &mut positions),
            );
            let lag = match measurement.await {
                Ok(Ok(lag)) => lag,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "could not measure the replica's lag");
                    None
                }
                Err(_) => None,
            };
            let fresh = lag.is_some_and(|lag| lag <= lag_max);
            if replica.fresh.swap(fresh, Ordering::Relaxed) != fresh {
                if fresh {
                    tracing::info!("reads use the replica");
                } else {
                    tracing::warn!(?lag, "replica lags or is unavailable; reads use the primary");
                }
            }
            let seconds = lag.map_or(f64::INFINITY, |lag| lag.as_secs_f64());
            metrics::gauge!("simcorp_replica_lag_seconds").set(seconds);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(MEASURE_INTERVAL) => {}
            }
        }
    }
}

/// Returns how old the replica is; `None` if it is older than any recorded position, or not a
/// replica of this primary.
async fn measure_lag(
    primary: &PgPool,
    replica: &PgPool,
    positions: &mut VecDeque<(i64, Instant)>,
) -> Result<Option<Duration>, sqlx::Error> {
    // The time is read before the primary's position: the primary had that position then at the
    // earliest.
    let replayed: Option<i64> = sqlx::query_scalar(
        "SELECT CASE WHEN pg_is_in_recovery() \
         THEN (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint END",
    )
    .fetch_one(replica)
    .await?;
    let measured_at = Instant::now();
    let written: i64 = sqlx::query_scalar("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")
        .fetch_one(primary)
        .await?;
    positions.push_back((written, measured_at));
    if positions.len() > POSITIONS_KEPT {
        positions.pop_front();
    }
    // It is not a replica (any more), or of another history: ahead of its own primary.
    let Some(replayed) = replayed.filter(|replayed| *replayed <= written) else { return Ok(None) };
    let newest = positions.iter().rev().find(|(position, _)| *position <= replayed);
    Ok(newest.map(|(_, at)| at.elapsed()))
}
