//! Migrations: both dialects give the same tables and columns, and running them twice changes
//! nothing.
#![allow(clippy::unwrap_used, clippy::panic)] // a test may break

use std::collections::BTreeSet;
use std::time::Duration;

use database::{Database, DatabaseConfig, LockWait, Pool, StoreError, sqlx};
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

#[tokio::test]
async fn a_database_that_another_writer_holds_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let database = migrated(format!("sqlite:{}", folder.path().join("test.db").display())).await;
    let Pool::Sqlite(pool) = database.pool() else { panic!("SQLite") };
    let options = (*pool.connect_options()).clone().busy_timeout(Duration::ZERO);
    let mut other = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let writer = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let write = "UPDATE machines SET created_ms = 0";
    let error = sqlx::query(write).execute(&mut other).await.unwrap_err();
    assert!(StoreError::query("testing")(error).is_unavailable());
    writer.rollback().await.unwrap();
    let error = sqlx::query("SELECT 1 FROM nothing").execute(&mut other).await.unwrap_err();
    assert!(!StoreError::query("testing")(error).is_unavailable());
}

async fn invalid_indexes(database: &Database) -> i64 {
    let Pool::Postgres(pool) = database.pool() else { return 0 };
    let sql = "SELECT COUNT(*) FROM pg_index WHERE NOT indisvalid";
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_that_migrate_at_once_do_not_wait_for_each_other() {
    let cluster = Postgres::start().await.unwrap();
    let config = DatabaseConfig { url: cluster.url().into(), ..DatabaseConfig::default() };
    let one = Database::open(&config).await.unwrap();
    let other = Database::open(&config).await.unwrap();
    let (first, second) = tokio::join!(one.migrate_up(), other.migrate_up());
    first.unwrap();
    second.unwrap();
    assert_eq!(invalid_indexes(&one).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_an_interrupted_migration_left_is_made_again() {
    let cluster = Postgres::start().await.unwrap();
    let database = migrated(cluster.url()).await;
    let Pool::Postgres(pool) = database.pool() else { panic!("PostgreSQL") };
    sqlx::raw_sql(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'sessions_sequence'::regclass; \
         DELETE FROM _sqlx_migrations WHERE version = 16",
    )
    .execute(pool)
    .await
    .unwrap();
    assert_eq!(invalid_indexes(&database).await, 1);
    database.migrate_up().await.unwrap();
    assert_eq!(invalid_indexes(&database).await, 0);
}

/// As for a database with many frames: `CREATE INDEX` on the whole table would block those that arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_of_frames_joins_indexes_that_are_made_concurrently_for_each_partition() {
    let cluster = Postgres::start().await.unwrap();
    let database = migrated(cluster.url()).await;
    database.ensure_partitions(contract::EpochMs(1_760_000_000_000)).await.unwrap();
    let Pool::Postgres(pool) = database.pool() else { panic!("PostgreSQL") };
    // One of the indexes is left from an attempt that was interrupted.
    sqlx::raw_sql(
        "DROP INDEX frames_of_org; DELETE FROM _sqlx_migrations WHERE version = 25; \
         CREATE INDEX frames_default_of_org ON frames_default (org_id, arrival); \
         UPDATE pg_index SET indisvalid = false \
         WHERE indexrelid = 'frames_default_of_org'::regclass",
    )
    .execute(pool)
    .await
    .unwrap();
    database.migrate_up().await.unwrap();
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = 'frames_of_org'::regclass",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(names.len(), 4, "three weeks and the others: {names:?}");
    assert!(names.iter().all(|name| name.ends_with("_of_org")), "{names:?}");
    assert_eq!(invalid_indexes(&database).await, 0);
}

/// A backup, or any other old transaction, keeps an index from being finished for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_made_concurrently_waits_longer_for_old_transactions() {
    let cluster = Postgres::start().await.unwrap();
    let database = migrated(cluster.url()).await;
    let Pool::Postgres(pool) = database.pool() else { panic!("PostgreSQL") };
    sqlx::raw_sql(
        "DROP INDEX eval_runs_to_judge_of_org; DELETE FROM _sqlx_migrations WHERE version = 24",
    )
    .execute(pool)
    .await
    .unwrap();
    let mut reader = pool.begin().await.unwrap();
    for sql in ["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM eval_runs"]
    {
        sqlx::query(sql).execute(&mut *reader).await.unwrap();
    }
    let wait =
        LockWait { each: Duration::from_millis(50), attempts: 1, pause: Duration::from_millis(1) };
    let end_reader = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        reader.rollback().await.unwrap();
    };
    let (done, ()) = tokio::join!(database.migrate_within(wait), end_reader);
    done.unwrap();
    assert_eq!(invalid_indexes(&database).await, 0);
}

/// Undoes migration 17, which alters `frames`.
async fn undo_published_columns(database: &Database) -> sqlx::PgPool {
    let Pool::Postgres(pool) = database.pool() else { panic!("PostgreSQL") };
    sqlx::raw_sql(
        "ALTER TABLE frames DROP COLUMN published; ALTER TABLE curves DROP COLUMN published; \
         ALTER TABLE events DROP COLUMN published; \
         DELETE FROM _sqlx_migrations WHERE version = 17",
    )
    .execute(pool)
    .await
    .unwrap();
    pool.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_waits_a_bounded_time_for_a_lock_and_names_its_holder() {
    let cluster = Postgres::start().await.unwrap();
    let database = migrated(cluster.url()).await;
    let pool = undo_published_columns(&database).await;
    let mut reader = pool.begin().await.unwrap();
    let sql = "SELECT pg_backend_pid() FROM (SELECT count(*) FROM frames) AS counted";
    let pid: i32 = sqlx::query_scalar(sql).fetch_one(&mut *reader).await.unwrap();
    let wait = LockWait {
        each: Duration::from_millis(500),
        attempts: 2,
        pause: Duration::from_millis(10),
    };
    let migrating = tokio::time::timeout(Duration::from_secs(20), database.migrate_within(wait));
    let error = migrating.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("waited 1 s for a lock"), "{error}");
    assert!(error.contains(&format!("pid {pid} (simcorp")), "{error}");
    assert!(error.contains("count(*) FROM frames"), "{error}");
    // Nothing waits behind it, and nothing is half done.
    let frames: i64 =
        sqlx::query_scalar("SELECT count(*) FROM frames").fetch_one(&pool).await.unwrap();
    assert_eq!(frames, 0);
    assert!(!columns(&database).await.contains("curves.published"));
    reader.rollback().await.unwrap();
    database.migrate_within(wait).await.unwrap();
    assert!(columns(&database).await.contains("frames.published"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_is_tried_again_until_a_lock_is_free() {
    let cluster = Postgres::start().await.unwrap();
    let database = migrated(cluster.url()).await;
    let pool = undo_published_columns(&database).await;
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM frames").execute(&mut *reader).await.unwrap();
    let wait = LockWait {
        each: Duration::from_millis(50),
        attempts: 200,
        pause: Duration::from_millis(10),
    };
    let end_reader = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        reader.rollback().await.unwrap();
    };
    let (done, ()) = tokio::join!(database.migrate_within(wait), end_reader);
    done.unwrap();
    assert!(columns(&database).await.contains("frames.published"));
}

/// Sets the schema back to version 12, adds rows that versions before 13 could store, and migrates.
async fn set_aside(database: &Database) {
    let run = async |sql: &'static str| match database.pool() {
        Pool::Sqlite(pool) => sqlx::raw_sql(sql).execute(pool).await.map(drop).unwrap(),
        Pool::Postgres(pool) => sqlx::raw_sql(sql).execute(pool).await.map(drop).unwrap(),
    };
    run("DROP TABLE set_aside_sessions; DROP TABLE set_aside_events; \
         DELETE FROM _sqlx_migrations WHERE version = 13; \
         INSERT INTO machines (org_id, site_id, machine_id, created_ms) VALUES ('a', 's', 'm', 0); \
         INSERT INTO chains (org_id, machine_no, chain, kid, seen_ms) \
         SELECT org_id, machine_no, '', 'k', 0 FROM machines")
    .await;
    // In the far past, with an end beyond 2^53, and a sound one.
    for row in [
        "'past', -9223372036854775808, NULL, 1, 2",
        "'end', 1000, 2000, 1, 9223372036854775807",
        "'sound', 1000, 2000, 1, 11",
    ] {
        let sql = format!(
            "INSERT INTO sessions (org_id, session_id, started_ms, ended_ms, first_seq, last_seq, \
             status, machine_no, chain_no) SELECT 'a', {row}, 'ACTIVE', machine_no, chain_no FROM chains"
        );
        match database.pool() {
            Pool::Sqlite(pool) => {
                sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.map(drop)
            }
            Pool::Postgres(pool) => {
                sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.map(drop)
            }
        }
        .unwrap();
    }
    run("INSERT INTO events (org_id, session_id, machine_no, kind, source, seq, at_ms, elapsed_s, trust) \
         SELECT 'a', 'past', machine_no, 'CHARGE', 'machine', 1, 0, 1e300, 0 FROM machines; \
         INSERT INTO events (org_id, session_id, machine_no, kind, source, seq, at_ms, elapsed_s, trust) \
         SELECT 'a', 'sound', machine_no, 'CHARGE', 'machine', 1, 0, 0, 0 FROM machines")
    .await;
    database.migrate_up().await.unwrap();

    assert_eq!(database.sessions_set_aside().await.unwrap(), 2);
    let sql = "SELECT session_id, started_ms, status, COALESCE(last_seq, -1) FROM sessions \
               ORDER BY session_id";
    let rows: Vec<(String, i64, String, i64)> = match database.pool() {
        Pool::Sqlite(pool) => sqlx::query_as(sql).fetch_all(pool).await.unwrap(),
        Pool::Postgres(pool) => sqlx::query_as(sql).fetch_all(pool).await.unwrap(),
    };
    let row = |id: &str, started: i64, status: &str, last: i64| {
        (id.to_owned(), started, status.to_owned(), last)
    };
    let expected = [
        row("end", 1000, "CLOSED", -1),
        row("past", 0, "CLOSED", -1),
        row("sound", 1000, "ACTIVE", 11),
    ];
    assert_eq!(rows, expected);
    let sql = "SELECT session_id FROM events UNION ALL SELECT 'aside ' || session_id FROM set_aside_events";
    let events: BTreeSet<String> = match database.pool() {
        Pool::Sqlite(pool) => sqlx::query_scalar(sql).fetch_all(pool).await.unwrap(),
        Pool::Postgres(pool) => sqlx::query_scalar(sql).fetch_all(pool).await.unwrap(),
    }
    .into_iter()
    .collect();
    assert_eq!(events, BTreeSet::from(["sound".to_owned(), "aside past".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_with_impossible_numbers_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Postgres::start().await.unwrap();
    set_aside(&migrated(format!("sqlite:{}", folder.path().join("old.db").display())).await).await;
    set_aside(&migrated(cluster.url()).await).await;
}
