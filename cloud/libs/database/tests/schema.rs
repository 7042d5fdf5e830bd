//! Migrations: both dialects give the same tables and columns, and running them twice changes
//! nothing.
#![allow(clippy::unwrap_used)] // a test may break

use std::collections::BTreeSet;

use database::{Database, DatabaseConfig, Pool, sqlx};
use testbed::Postgres;

/// Every `table.column`, without sqlx's own table and without partitions.
async fn columns(database: &Database) -> BTreeSet<String> {
    let names: Vec<String> = match database.pool() {
        Pool::Sqlite(pool) => {
            let sql = "SELECT t.name || '.' || c.name FROM sqlite_schema t, pragma_table_info(t.name) c \
                       WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'";
            sqlx::query_scalar(sql).fetch_all(pool).await.unwrap()
        }
        Pool::Postgres(pool) => {
            let sql = "SELECT c.relname || '.' || a.attname FROM pg_class c \
                       JOIN pg_attribute a ON a.attrelid = c.oid \
                       WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') \
                       AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped";
            sqlx::query_scalar(sql).fetch_all(pool).await.unwrap()
        }
    };
    names.into_iter().filter(|name| !name.starts_with("_sqlx_migrations.")).collect()
}

async fn migrated(url: String) -> Database {
    let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
    let database = Database::open(&config).await.unwrap();
    database.migrate_up().await.unwrap();
    database.migrate_up().await.unwrap();
    database.check_schema().await.unwrap();
    assert!(database.migration_plan().await.unwrap().is_empty());
    database
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_dialects_give_the_same_tables_and_columns() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Postgres::start().await.unwrap();
    let sqlite = migrated(format!("sqlite:{}", folder.path().join("schema.db").display())).await;
    let postgres = migrated(cluster.url()).await;
    let (sqlite_columns, postgres_columns) = (columns(&sqlite).await, columns(&postgres).await);
    assert!(sqlite_columns.len() > 100, "only {} columns", sqlite_columns.len());
    let names = |of: &Database| of.is_postgres();
    assert_ne!(names(&sqlite), names(&postgres));
    let only_sqlite: Vec<_> = sqlite_columns.difference(&postgres_columns).collect();
    let only_postgres: Vec<_> = postgres_columns.difference(&sqlite_columns).collect();
    assert!(
        only_sqlite.is_empty() && only_postgres.is_empty(),
        "only on SQLite: {only_sqlite:#?}; only on PostgreSQL: {only_postgres:#?}"
    );
    let steps = sqlite.migration_status().await.unwrap();
    let same = postgres.migration_status().await.unwrap();
    let listed = |steps: &[database::MigrationStatus]| -> Vec<_> {
        steps.iter().map(|step| (step.version, step.name.clone())).collect()
    };
    assert_eq!(listed(&steps), listed(&same), "the dialects have different migrations");
}
