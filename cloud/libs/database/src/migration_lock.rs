//! How a migration of PostgreSQL waits for the locks of other sessions.
//!
//! `ALTER TABLE` waits until all transactions that use the table have ended, and while it waits, all
//! later queries of the table wait behind it: one forgotten transaction would stop every service. A
//! migration therefore gives up a lock that it does not get soon, lets the other queries go on, and
//! tries again a bounded number of times.

use std::fmt::Write as _;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::{FromRow, PgConnection, query, query_as, query_scalar};

use crate::{SchemaError, StoreError};

/// How often the sessions that a migration waits for are listed.
const LIST_EVERY: Duration = Duration::from_millis(200);
/// How many times longer than `LockWait::each` an index that is made concurrently may wait: until
/// older transactions have ended, such as a backup. No other query waits behind it, and each try
/// builds the index anew.
const CONCURRENTLY: u32 = 60;
/// The SQLSTATE of a statement that has waited for a lock longer than `lock_timeout`.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// How long a migration waits for the locks of other sessions. SQLite has its own time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockWait {
    /// The longest wait for one lock; 60 times as long for an index that is made concurrently.
    pub each: Duration,
    /// How often the migration is tried.
    pub attempts: u32,
    /// The time between two attempts, in which the queries that waited behind it go on.
    pub pause: Duration,
}

impl Default for LockWait {
    fn default() -> Self {
        Self { each: Duration::from_secs(5), attempts: 12, pause: Duration::from_secs(5) }
    }
}

impl LockWait {
    /// Returns the longest wait for one lock of a migration: of one outside a transaction, which makes
    /// an index concurrently, or of another.
    pub(crate) const fn of_one(&self, concurrently: bool) -> Duration {
        if concurrently { self.each.saturating_mul(CONCURRENTLY) } else { self.each }
    }

    /// Returns the longest wait for a lock over all attempts, s.
    pub(crate) fn total_s(&self, concurrently: bool) -> f64 {
        self.of_one(concurrently).as_secs_f64() * f64::from(self.attempts)
    }
}

/// A session that holds a lock for which a migration waits.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct LockHolder {
    pid: i32,
    application: String,
    user_name: String,
    state: String,
    /// How long its transaction has lasted, s.
    transaction_s: i64,
    statement: String,
}

/// Returns the holders of locks as a text for operators.
pub(crate) fn describe(holders: &[LockHolder]) -> String {
    let mut text = String::new();
    for holder in holders {
        let LockHolder { pid, application, user_name, state, transaction_s, statement } = holder;
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(
            text,
            "{separator}pid {pid} ({application} of {user_name}, {state}, in a transaction for \
             {transaction_s} s: {statement})"
        );
    }
    if text.is_empty() { "an unknown session".to_owned() } else { text }
}

/// Limits how long each statement of a connection waits for a lock.
pub(crate) async fn limit(
    connection: &mut PgConnection,
    longest: Duration,
) -> Result<(), sqlx::Error> {
    query("SELECT set_config('lock_timeout', $1, false)")
        .bind(format!("{}ms", longest.as_millis()))
        .execute(connection)
        .await
        .map(drop)
}

/// Returns the process id of a connection.
pub(crate) async fn process_id(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await
}

/// Returns whether a migration failed because it waited too long for a lock.
pub(crate) fn has_timed_out(error: &StoreError) -> bool {
    let (StoreError::Query { source, .. }
    | StoreError::Schema(SchemaError::Failed(
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _),
    ))) = error
    else {
        return false;
    };
    let code = source.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

/// Waits for `work`, which is done by the connection with the process id `pid`. Meanwhile it lists
/// over another connection which sessions `work` waits for; `holders` has the last ones.
pub(crate) async fn watch<T>(
    work: impl Future<Output = T>,
    (other, pid): (&mut PgConnection, i32),
    holders: &mut Vec<LockHolder>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(LIST_EVERY) => {}
        }
        match list_holders(&mut *other, pid).await {
            Ok(found) if !found.is_empty() => *holders = found,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot list what a migration waits for"),
        }
    }
}

async fn list_holders(
    connection: &mut PgConnection,
    pid: i32,
) -> Result<Vec<LockHolder>, sqlx::Error> {
    // A prepared transaction has the process id 0.
    query_as(
        "SELECT b.pid, COALESCE(a.application_name, '') AS application, \
         COALESCE(CAST(a.usename AS text), '') AS user_name, COALESCE(a.state, '') AS state, \
         CAST(COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - a.xact_start), 0) AS bigint) \
             AS transaction_s, \
         LEFT(COALESCE(a.query, ''), 200) AS statement \
         FROM unnest(pg_blocking_pids($1)) AS b (pid) \
         LEFT JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.xact_start LIMIT 5",
    )
    .bind(pid)
    .fetch_all(connection)
    .await
}
