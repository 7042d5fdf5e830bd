//! The migrations of the schema, embedded in the binary. How to write one: `migrations/README.md`.

use std::time::Duration;

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, query, query_scalar};

use crate::migration_lock::{self, LockWait};
use crate::{Database, Pool, StoreError, on, partition_index};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// The advisory lock that an instance holds while it migrates PostgreSQL.
const MIGRATION_LOCK: i64 = 7_308_895_159_216_304_128;
const LOCK_EVERY: Duration = Duration::from_millis(200);

/// Why this program cannot use this database's schema.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error(
        "the database is too old: its schema is {found}, this program needs {needed}; \
         run: simcorp migrate up"
    )]
    TooOld { found: i64, needed: i64 },
    #[error(
        "the database is too new: its schema is {found}, this program knows {known}; \
         use the program that migrated it, or a newer one"
    )]
    TooNew { found: i64, known: i64 },
    #[error("migration {version} was changed after it ran; restore its text or the database")]
    Changed { version: i64 },
    #[error(
        "cannot migrate: a migration waited {waited_s} s for a lock that another session holds: \
         {holders}. End that session or its transaction, then run: simcorp migrate up"
    )]
    Locked { waited_s: f64, holders: String },
    #[error("cannot migrate: {0}")]
    Failed(#[source] MigrateError),
}

/// One line of `simcorp migrate status`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct MigrationStatus {
    pub version: i64,
    pub name: String,
    pub applied: bool,
}

impl Database {
    fn migrator(&self) -> &'static Migrator {
        if self.is_postgres() { &POSTGRES } else { &SQLITE }
    }

    /// Brings the schema up to date. Safe to run from several instances at once. On PostgreSQL it
    /// waits for the locks of other sessions as [`LockWait::default`] says.
    ///
    /// # Errors
    /// When the database is newer than this program, its history was changed, a step fails, or
    /// another session holds a lock.
    pub async fn migrate_up(&self) -> Result<(), StoreError> {
        self.migrate_within(LockWait::default()).await
    }

    /// Brings the schema up to date, with other bounds on the wait for locks.
    ///
    /// # Errors
    /// As [`Database::migrate_up`].
    pub async fn migrate_within(&self, wait: LockWait) -> Result<(), StoreError> {
        const DOING: &str = "waiting for another instance that migrates";
        match &self.pool {
            Pool::Sqlite(pool) => self.migrator().run(pool).await.map_err(|e| self.schema_error(e)),
            Pool::Postgres(pool) => {
                let mut lock = lock_migrations(pool).await.map_err(StoreError::query(DOING))?;
                let migrated = self.migrate_postgres(pool, &mut lock, wait).await;
                // If this fails, the server has ended the connection, and its lock.
                let _ = lock.close().await;
                migrated
            }
        }
    }

    /// Migrates over a connection that does not wait long for locks, and tries again. `lock` is the
    /// connection that holds the lock of migrations.
    async fn migrate_postgres(
        &self,
        pool: &PgPool,
        lock: &mut PgConnection,
        wait: LockWait,
    ) -> Result<(), StoreError> {
        const DOING: &str = "connecting to migrate";
        let connection = pool.acquire().await.map_err(StoreError::query(DOING))?;
        let mut connection = connection.detach();
        let pid = migration_lock::process_id(&mut connection).await;
        let pid = pid.map_err(StoreError::query(DOING))?;
        let mut attempt = 1_u32;
        let migrated = loop {
            let mut holders = Vec::new();
            let work = self.migrate_over(&mut connection, &wait);
            let result = migration_lock::watch(work, (&mut *lock, pid), &mut holders).await;
            match result {
                Err(error) if migration_lock::has_timed_out(&error) => {
                    let holders = migration_lock::describe(&holders);
                    if attempt >= wait.attempts {
                        let next = self.pending().await?;
                        let waited_s = wait.total_s(next.first().is_some_and(|next| next.1));
                        break Err(SchemaError::Locked { waited_s, holders }.into());
                    }
                    tracing::warn!(
                        attempt,
                        attempts = wait.attempts,
                        holders,
                        "a migration has waited for a lock; it is tried again"
                    );
                    attempt = attempt.saturating_add(1);
                    tokio::time::sleep(wait.pause).await;
                }
                result => break result,
            }
        };
        // If this fails, the server has ended the connection.
        let _ = connection.close().await;
        migrated
    }

    /// Applies the pending migrations of PostgreSQL over one connection, each with its own bound on
    /// the wait for locks.
    async fn migrate_over(
        &self,
        connection: &mut PgConnection,
        wait: &LockWait,
    ) -> Result<(), StoreError> {
        const DOING: &str = "limiting the wait for locks";
        let limited = migration_lock::limit(connection, wait.of_one(false)).await;
        limited.map_err(StoreError::query(DOING))?;
        self.drop_failed_indexes(connection).await?;
        for (version, concurrently) in self.pending().await? {
            if version == partition_index::VERSION {
                let longest = wait.of_one(true);
                let limited = migration_lock::limit(connection, longest).await;
                limited.map_err(StoreError::query(DOING))?;
                partition_index::make(connection).await?;
            }
            let limited = migration_lock::limit(connection, wait.of_one(concurrently)).await;
            limited.map_err(StoreError::query(DOING))?;
            // `Migrator::run` takes a connection only with a lifetime that a future that is sent to
            // another thread cannot have; this is what it calls.
            let migrated = self.migrator().run_direct(Some(version), connection, false).await;
            migrated.map_err(|error| self.schema_error(error))?;
        }
        // It also checks those that have been applied.
        let migrated = self.migrator().run_direct(None, connection, false).await;
        migrated.map_err(|error| self.schema_error(error))
    }

    /// Returns the versions that have not been applied, and whether each makes an index concurrently,
    /// outside a transaction.
    async fn pending(&self) -> Result<Vec<(i64, bool)>, StoreError> {
        let applied = self.applied().await?;
        let pending = self.migrator().iter().filter(|m| !applied.contains(&m.version));
        Ok(pending.map(|m| (m.version, m.no_tx)).collect())
    }

    fn schema_error(&self, error: MigrateError) -> StoreError {
        let known = self.migrator().iter().map(|m| m.version).max().unwrap_or(0);
        StoreError::Schema(match error {
            MigrateError::VersionMissing(found) => SchemaError::TooNew { found, known },
            MigrateError::VersionMismatch(version) => SchemaError::Changed { version },
            other => SchemaError::Failed(other),
        })
    }

    /// Drops the indexes that pending migrations make and that an earlier attempt left unfinished:
    /// `IF NOT EXISTS` would keep them, and no query uses them.
    async fn drop_failed_indexes(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        const DOING: &str = "dropping unfinished indexes";
        let applied = self.applied().await?;
        let pending = self.migrator().iter().filter(|m| m.no_tx && !applied.contains(&m.version));
        let pending: Vec<&str> = pending.map(|m| m.sql.as_str()).collect();
        let invalid: Vec<String> = query_scalar(
            "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE NOT i.indisvalid AND n.nspname = current_schema()",
        )
        .fetch_all(&mut *connection)
        .await
        .map_err(StoreError::query(DOING))?;
        for name in invalid {
            if pending.iter().any(|sql| sql.split_whitespace().any(|word| word == name)) {
                // Safe in SQL: a migration has this very name.
                query(AssertSqlSafe(format!("DROP INDEX {name}")))
                    .execute(&mut *connection)
                    .await
                    .map_err(StoreError::query(DOING))?;
            }
        }
        Ok(())
    }

    /// Returns all migrations, and whether each has been applied.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub async fn migration_status(&self) -> Result<Vec<MigrationStatus>, StoreError> {
        let applied = self.applied().await?;
        let migrator = self.migrator();
        let status = migrator.iter().map(|m| MigrationStatus {
            version: m.version,
            name: m.description.to_string(),
            applied: applied.contains(&m.version),
        });
        Ok(status.collect())
    }

    /// Returns the migrations that have not been applied, with their statements.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub async fn migration_plan(
        &self,
    ) -> Result<Vec<(i64, &'static str, &'static str)>, StoreError> {
        let applied = self.applied().await?;
        let pending = self.migrator().iter().filter(|m| !applied.contains(&m.version));
        Ok(pending.map(|m| (m.version, m.description.as_ref(), m.sql.as_str())).collect())
    }

    /// Checks that the database's schema has the version that this program needs.
    ///
    /// # Errors
    /// [`SchemaError::TooOld`] or [`SchemaError::TooNew`].
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let found = self.applied().await?.into_iter().max().unwrap_or(0);
        let needed = self.migrator().iter().map(|m| m.version).max().unwrap_or(0);
        match found.cmp(&needed) {
            std::cmp::Ordering::Less => Err(SchemaError::TooOld { found, needed }.into()),
            std::cmp::Ordering::Greater => Err(SchemaError::TooNew { found, known: needed }.into()),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// Returns how many sessions the migration 0013 has set aside, because their numbers cannot be
    /// computed with.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sessions_set_aside(&self) -> Result<i64, StoreError> {
        on!(self, pool => sqlx::query_scalar("SELECT count(*) FROM set_aside_sessions")
            .fetch_one(pool).await)
        .map_err(StoreError::query("counting the sessions that are set aside"))
    }

    async fn applied(&self) -> Result<Vec<i64>, StoreError> {
        const TABLE: &str = "_sqlx_migrations";
        let failed = |error| StoreError::Schema(SchemaError::Failed(error));
        let acquire = StoreError::query("connecting to read the schema's history");
        let rows = match &self.pool {
            Pool::Sqlite(pool) => {
                let mut connection = pool.acquire().await.map_err(acquire)?;
                connection.ensure_migrations_table(TABLE).await.map_err(failed)?;
                connection.list_applied_migrations(TABLE).await
            }
            Pool::Postgres(pool) => {
                let mut connection = pool.acquire().await.map_err(acquire)?;
                connection.ensure_migrations_table(TABLE).await.map_err(failed)?;
                connection.list_applied_migrations(TABLE).await
            }
        };
        Ok(rows.map_err(failed)?.into_iter().map(|m| m.version).collect())
    }
}

/// Waits until no other instance migrates. The returned connection holds the lock until it is
/// closed.
///
/// sqlx waits for a lock of its own within one statement. `CREATE INDEX CONCURRENTLY` waits for the
/// end of all running statements: two instances would wait for each other.
async fn lock_migrations(pool: &PgPool) -> Result<PgConnection, sqlx::Error> {
    let mut connection = pool.acquire().await?.detach();
    let mut is_logged = false;
    loop {
        let locked: bool = query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(MIGRATION_LOCK)
            .fetch_one(&mut connection)
            .await?;
        if locked {
            return Ok(connection);
        }
        if !is_logged {
            tracing::info!("another instance migrates the database; waiting for it");
            is_logged = true;
        }
        tokio::time::sleep(LOCK_EVERY).await;
    }
}
