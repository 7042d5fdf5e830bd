//! One store over two databases: PostgreSQL in production, SQLite when nothing is configured.
//!
//! Every statement is written once, in SQL that both understand, and run through [`on!`]; the few
//! that must differ (bulk insert, row locks, partitions) are next to each other in their service.
//! Each service has its own SQL; this crate has only what all share: opening, migrating, errors.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod audit;
mod config;
pub mod idempotency;
mod lease;
pub mod machine_alias;
mod migrate;
mod migration_lock;
mod partition_index;
mod partitions;
mod replica;
mod retention;
mod tx;

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::SqliteSynchronous;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use tokio::sync::Semaphore;

pub use config::DatabaseConfig;
pub use migrate::{MigrationStatus, SchemaError};
pub use migration_lock::LockWait;
pub use retention::Dropped;
pub use sqlx;
pub use tx::{Tx, WriteTurn};

/// Runs the same body on either database: `on!(store, pool => query(SQL).execute(pool))`.
#[macro_export]
macro_rules! on {
    ($store:expr, $pool:ident => $body:expr) => {
        match $store.pool() {
            $crate::Pool::Sqlite($pool) => $body,
            $crate::Pool::Postgres($pool) => $body,
        }
    };
}

/// A database error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {url}: {source}")]
    Open { url: String, source: sqlx::Error },
    #[error("the database address is wrong: {0}")]
    Address(String),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("while {doing}: {source}")]
    Query { doing: &'static str, source: sqlx::Error },
    #[error("while {doing}: the row is damaged: {problem}")]
    Row { doing: &'static str, problem: String },
}

impl StoreError {
    /// Returns a function for `map_err` that adds what was being done.
    pub fn query(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Query { doing, source }
    }

    /// Returns whether the database refuses the data itself (SQLSTATE classes 22 and 23; on SQLite
    /// a constraint or a wrong type): a retry will not help.
    #[must_use]
    pub fn is_about_data(&self) -> bool {
        let Self::Query { source: sqlx::Error::Database(error), .. } = self else { return false };
        match error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
            Some(error) => error.code().starts_with("22") || error.code().starts_with("23"),
            // Extended codes of SQLITE_TOOBIG, SQLITE_CONSTRAINT and SQLITE_MISMATCH.
            None => error
                .code()
                .and_then(|code| code.parse::<i32>().ok())
                .is_some_and(|code| matches!(code & 0xff, 18..=20)),
        }
    }

    /// Returns whether the database refuses a value as invalid (SQLSTATE class 22).
    #[must_use]
    pub fn is_about_values(&self) -> bool {
        let Self::Query { source: sqlx::Error::Database(error), .. } = self else { return false };
        let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
        error.is_some_and(|error| error.code().starts_with("22"))
    }

    /// Returns whether the database did not answer at all, or answered that it cannot work now: it
    /// starts, stops or is full (SQLSTATE classes 08, 53 and 57P; on SQLite another writer).
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        use sqlx::Error;
        let Self::Query { source, .. } = self else { return false };
        let error = match source {
            Error::Io(_) | Error::PoolTimedOut | Error::PoolClosed | Error::Tls(_) => return true,
            Error::Database(error) => error,
            _ => return false,
        };
        match error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
            Some(error) => ["08", "53", "57P"].iter().any(|class| error.code().starts_with(class)),
            // Extended codes of SQLITE_BUSY and SQLITE_LOCKED.
            None => error
                .code()
                .and_then(|code| code.parse::<i32>().ok())
                .is_some_and(|code| matches!(code & 0xff, 5 | 6)),
        }
    }

    #[allow(clippy::needless_pass_by_value)] // callers pass errors by value
    pub fn row(doing: &'static str, problem: impl ToString) -> Self {
        Self::Row { doing, problem: problem.to_string() }
    }
}

/// The pool behind a [`Database`].
#[derive(Clone, Debug)]
pub enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A handle on the database; clones share one pool.
#[derive(Clone, Debug)]
pub struct Database {
    pool: Pool,
    replica: Option<replica::Replica>,
    /// The turn to write SQLite, which has one writer at a time.
    writer: Arc<Semaphore>,
}

/// How long a statement may wait for a connection; after that the caller gets 503.
const ACQUIRE_TIME_MAX: Duration = Duration::from_secs(5);

impl Database {
    /// Opens the database of a configuration. Creates an SQLite file, never a PostgreSQL database.
    ///
    /// # Errors
    /// When the address is wrong, or nothing answers there in time.
    pub async fn open(config: &DatabaseConfig) -> Result<Self, StoreError> {
        let url = config.resolve_url().map_err(|error| StoreError::Address(error.to_string()))?;
        let url = url.expose_secret();
        let open = |source| StoreError::Open { url: without_password(url), source };
        let pool = if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.trim_start_matches("//");
            create_private(path);
            // WAL and FULL: a commit that was acknowledged survives a power cut.
            let options = SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(ACQUIRE_TIME_MAX)
                .foreign_keys(true);
            let pool = SqlitePoolOptions::new().max_connections(config.pool_max.clamp(2, 4));
            Pool::Sqlite(
                pool.acquire_timeout(ACQUIRE_TIME_MAX).connect_with(options).await.map_err(open)?,
            )
        } else {
            let options: PgConnectOptions =
                url.parse().map_err(|error: sqlx::Error| StoreError::Address(error.to_string()))?;
            let options = options.application_name("simcorp");
            let pool = PgPoolOptions::new()
                .max_connections(config.pool_max)
                .acquire_timeout(ACQUIRE_TIME_MAX);
            Pool::Postgres(pool.connect_with(options).await.map_err(open)?)
        };
        let url = config.replica_url.resolve();
        let url = url.map_err(|error| StoreError::Address(error.to_string()))?;
        let open = |url: SecretString| replica::Replica::open(url.expose_secret(), config.pool_max);
        let writer = Arc::new(Semaphore::new(1));
        Ok(Self { pool, replica: url.map(open).transpose()?, writer })
    }

    /// Returns the same database with a further pool of `connections` connections, for work that
    /// must never wait until requests give back theirs.
    #[must_use]
    pub fn with_own_pool(&self, connections: u32) -> Self {
        let pool = match &self.pool {
            Pool::Sqlite(pool) => Pool::Sqlite(
                SqlitePoolOptions::new()
                    .max_connections(connections)
                    .acquire_timeout(ACQUIRE_TIME_MAX)
                    .connect_lazy_with((*pool.connect_options()).clone()),
            ),
            Pool::Postgres(pool) => Pool::Postgres(
                PgPoolOptions::new()
                    .max_connections(connections)
                    .acquire_timeout(ACQUIRE_TIME_MAX)
                    .connect_lazy_with((*pool.connect_options()).clone()),
            ),
        };
        Self { pool, replica: self.replica.clone(), writer: self.writer.clone() }
    }

    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    #[must_use]
    pub const fn is_postgres(&self) -> bool {
        matches!(self.pool, Pool::Postgres(_))
    }

    /// Checks for `/ready` that the database answers.
    ///
    /// # Errors
    /// When the database does not answer a trivial query.
    pub async fn ping(&self) -> Result<(), StoreError> {
        on!(self, pool => sqlx::query("SELECT 1").execute(pool).await.map(drop))
            .map_err(StoreError::query("pinging the database"))
    }

    pub async fn close(&self) {
        on!(self, pool => pool.close().await);
    }
}

/// Creates the file of an SQLite database that only its owner may read, if it does not exist. SQLite
/// gives the same permissions to the files beside it. An error is left to SQLite, which reports it.
fn create_private(path: &str) {
    use std::os::unix::fs::OpenOptionsExt as _;
    if !path.starts_with(':') {
        let _ = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    }
}

/// Returns the address without its password, which must not be in a log.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.split_once('@') {
        Some((user, host)) => {
            let name = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{name}:***@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_never_reaches_a_message() {
        assert_eq!(without_password("postgres://u:p@h:5432/d"), "postgres://u:***@h:5432/d");
        assert_eq!(without_password("sqlite:x.db"), "sqlite:x.db");
    }

    #[tokio::test]
    async fn only_its_owner_may_read_an_sqlite_database() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private.db");
        let url = format!("sqlite:{}", path.display());
        let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
        let database = Database::open(&config).await.unwrap();
        database.migrate_up().await.unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{mode:o}");
        }
        assert!(path.exists());
    }
}
