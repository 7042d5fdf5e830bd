//! The migrations of the schema, embedded in the binary. How to write one: `migrations/README.md`.

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};

use crate::{Database, Pool, StoreError, on};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

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

    /// Brings the schema up to date. Safe to run from several instances at once.
    ///
    /// # Errors
    /// When the database is newer than this program, its history was changed, or a step fails.
    pub async fn migrate_up(&self) -> Result<(), StoreError> {
        let migrator = self.migrator();
        let known = migrator.iter().map(|m| m.version).max().unwrap_or(0);
        on!(self, pool => migrator.run(pool).await).map_err(|error| {
            StoreError::Schema(match error {
                MigrateError::VersionMissing(found) => SchemaError::TooNew { found, known },
                MigrateError::VersionMismatch(version) => SchemaError::Changed { version },
                other => SchemaError::Failed(other),
            })
        })
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
