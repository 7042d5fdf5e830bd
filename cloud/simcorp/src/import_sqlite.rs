//! `simcorp import-sqlite`: copies a deployment from SQLite to PostgreSQL.
//!
//! Tables are copied in the order of their creation, so that referenced rows exist first. Each
//! batch is committed together with its progress, so that an interrupted copy resumes. Afterwards
//! each table is read completely on both sides and must have the same rows, by count and digest;
//! and no program may have written to the source meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use database::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow};
use database::sqlx::{self, AssertSqlSafe, PgPool, Row as _, SqlitePool};
use database::{Database, Pool};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::serve;

/// Rows per batch; fewer for tables whose rows may be a megabyte each.
const BATCH_ROWS: i64 = 1_000;
const LARGE_BATCH_ROWS: i64 = 20;
const LARGE_TABLES: [&str; 6] =
    ["frames", "curves", "reports", "traces", "eval_runs", "profile_versions"];

fn batch_rows(table: &str) -> i64 {
    if LARGE_TABLES.contains(&table) { LARGE_BATCH_ROWS } else { BATCH_ROWS }
}

/// Tables that are not copied: the database fills them itself, or they mean nothing elsewhere.
const SKIPPED_TABLES: [&str; 4] = ["_sqlx_migrations", "mission_counts", "leases", "idempotency"];

/// How a column's values are transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ColumnKind {
    Integer,
    Real,
    Text,
    Bytes,
    /// `real[]`, stored as JSON on SQLite; [`ColumnKind::Integers`] likewise for `integer[]`.
    Reals,
    Integers,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    /// By the column's type on PostgreSQL.
    kind: ColumnKind,
    type_name: &'static str,
}

/// One value of a row, in the same form from both databases.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Integer(Option<i64>),
    Real(Option<f64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Reals(Option<Vec<Option<f32>>>),
    Integers(Option<Vec<Option<i32>>>),
}

/// Row count and digest of a table's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct TableDigest {
    rows: u64,
    /// The sum of the rows' digests, which does not depend on the order of rows.
    digest: [u64; 4],
}

impl TableDigest {
    fn add(&mut self, row: &[Value]) {
        let mut bytes = Vec::with_capacity(256);
        for value in row {
            value.write(&mut bytes);
        }
        let digest = trust::sha256_digest(&bytes).0;
        for (sum, part) in self.digest.iter_mut().zip(digest.chunks_exact(8)) {
            let part: [u8; 8] = part.try_into().unwrap_or_default();
            *sum = sum.wrapping_add(u64::from_be_bytes(part));
        }
        self.rows = self.rows.saturating_add(1);
    }
}

impl Value {
    fn write(&self, bytes: &mut Vec<u8>) {
        let mut put = |known: bool, part: &[u8]| {
            bytes.push(u8::from(known));
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        match self {
            Self::Integer(v) => put(v.is_some(), &v.unwrap_or(0).to_be_bytes()),
            Self::Real(v) => put(v.is_some(), &v.unwrap_or(0.0).to_bits().to_be_bytes()),
            Self::Text(v) => put(v.is_some(), v.as_deref().unwrap_or_default().as_bytes()),
            Self::Bytes(v) => put(v.is_some(), v.as_deref().unwrap_or_default()),
            Self::Reals(v) => {
                let list = v.as_deref().unwrap_or_default().iter();
                let all: Vec<u8> =
                    list.flat_map(|v| v.map_or([0xff; 4], |v| v.to_bits().to_be_bytes())).collect();
                put(v.is_some(), &all);
            }
            Self::Integers(v) => {
                let list = v.as_deref().unwrap_or_default().iter();
                let all: Vec<u8> =
                    list.flat_map(|v| v.map_or([0xff; 4], i32::to_be_bytes)).collect();
                put(v.is_some(), &all);
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CopiedTable {
    table: String,
    rows: u64,
    digest: String,
}

/// Copies all tables from the file to the configured PostgreSQL database and verifies the copy.
pub async fn run(config: &CloudConfig, file: &Path, output: Output) -> anyhow::Result<()> {
    ensure!(file.is_file(), "{} does not exist or is not a file", file.display());
    let target = Database::open(&config.database).await?;
    let Pool::Postgres(postgres) = target.pool() else {
        bail!("database.url is not a PostgreSQL database; set it to the target of the import");
    };
    target.migrate_up().await?;
    target.ensure_partitions(serve::now()).await?;
    let mut from = config.database.clone();
    from.url = format!("sqlite:{}", file.display()).into();
    from.replica_url = service::secret::Secret::default();
    let source = Database::open(&from).await?;
    source.check_schema().await.context("migrate the SQLite database first")?;
    source.close().await;
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let sqlite = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    prepare_target(postgres).await?;
    let version: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&sqlite).await?;
    make_partitions(&target, &sqlite).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
         ORDER BY rowid",
    )
    .fetch_all(&sqlite)
    .await?;
    let mut copied = Vec::new();
    for table in tables.iter().filter(|table| !SKIPPED_TABLES.contains(&table.as_str())) {
        let columns = columns(postgres, table).await?;
        let total = count(&sqlite, table).await?;
        let bar = bar(output, table, total);
        copy(&sqlite, postgres, table, &columns, &bar).await.with_context(|| table.clone())?;
        bar.set_message(format!("{table}: comparing"));
        let (there, here) = (
            sum_of_source(&sqlite, table, &columns).await?,
            sum_of_target(postgres, table, &columns).await?,
        );
        bar.finish_and_clear();
        ensure!(
            there == here,
            "{table}: {} rows in SQLite, {} in PostgreSQL, or they differ; stop every program that \
             writes to {} and run this again on an empty database",
            there.rows,
            here.rows,
            file.display()
        );
        let [a, b, c, d] = here.digest;
        let digest = format!("{a:016x}{b:016x}{c:016x}{d:016x}");
        copied.push(CopiedTable { table: table.clone(), rows: here.rows, digest });
    }
    let after: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&sqlite).await?;
    ensure!(
        version == after,
        "a program wrote to {} meanwhile; stop it, and run this again on an empty database",
        file.display()
    );
    set_sequences(postgres).await?;
    sqlx::query("DROP TABLE import_progress").execute(postgres).await?;
    output.rows(&["table", "rows", "digest"], &copied, |m| {
        vec![m.table.clone(), m.rows.to_string(), m.digest[..16].to_owned()]
    })
}

/// Creates the weekly partitions for the frames to copy, at most ten years back.
async fn make_partitions(target: &Database, sqlite: &SqlitePool) -> anyhow::Result<()> {
    const WEEK_MS: i64 = 7 * 86_400_000;
    const WEEKS_MAX: i64 = 520;
    let first: Option<i64> =
        sqlx::query_scalar("SELECT min(t0_ms) FROM frames").fetch_one(sqlite).await?;
    let now = serve::now();
    let age_ms = first.map_or(0, |first| now.0.saturating_sub(first));
    let weeks = age_ms.div_euclid(WEEK_MS).clamp(0, WEEKS_MAX);
    for week in 0..=weeks {
        target.ensure_partitions(now.minus_ms(week.saturating_mul(WEEK_MS))).await?;
    }
    Ok(())
}

/// Prepares the target: resumes an interrupted import, otherwise requires an empty database.
async fn prepare_target(postgres: &PgPool) -> anyhow::Result<()> {
    let begun: Option<String> = sqlx::query_scalar("SELECT to_regclass('import_progress')::text")
        .fetch_one(postgres)
        .await?;
    if begun.is_some() {
        return Ok(());
    }
    let used: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM machines) OR EXISTS (SELECT 1 FROM missions) \
         OR EXISTS (SELECT 1 FROM devices) OR EXISTS (SELECT 1 FROM audit)",
    )
    .fetch_one(postgres)
    .await?;
    ensure!(!used, "the PostgreSQL database is in use: an import needs an empty one");
    sqlx::query("CREATE TABLE import_progress (name text PRIMARY KEY, last_rowid bigint NOT NULL)")
        .execute(postgres)
        .await?;
    Ok(())
}

fn bar(output: Output, table: &str, total: u64) -> ProgressBar {
    if output.is_json() || total < 10_000 {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let style = "{msg:<32} {wide_bar} {human_pos}/{human_len} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(table.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

async fn count(sqlite: &SqlitePool, table: &str) -> anyhow::Result<u64> {
    let sql = format!("SELECT count(*) FROM {table}");
    let n: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(sqlite).await?;
    Ok(u64::try_from(n)?)
}

async fn columns(postgres: &PgPool, table: &str) -> anyhow::Result<Vec<Column>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT column_name::text, udt_name::text FROM information_schema.columns \
         WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position",
    )
    .bind(table)
    .fetch_all(postgres)
    .await?;
    ensure!(!rows.is_empty(), "PostgreSQL has no table {table}");
    let column = |(name, udt): (String, String)| {
        let (kind, type_name) = match udt.as_str() {
            "int8" => (ColumnKind::Integer, "bigint"),
            "int4" => (ColumnKind::Integer, "integer"),
            "int2" => (ColumnKind::Integer, "smallint"),
            "float8" => (ColumnKind::Real, "double precision"),
            "text" => (ColumnKind::Text, "text"),
            "bytea" => (ColumnKind::Bytes, "bytea"),
            "_float4" => (ColumnKind::Reals, "real[]"),
            "_int4" => (ColumnKind::Integers, "integer[]"),
            other => bail!("{table}.{name} is of type {other}, which cannot be imported"),
        };
        Ok(Column { name, kind, type_name })
    };
    rows.into_iter().map(column).collect()
}

fn read_source(row: &SqliteRow, columns: &[Column]) -> anyhow::Result<Vec<Value>> {
    fn list<T: serde::de::DeserializeOwned>(
        text: Option<String>,
    ) -> Result<Option<Vec<Option<T>>>, serde_json::Error> {
        text.map(|text| serde_json::from_str(&text)).transpose()
    }
    let read = |column: &Column| {
        let name = column.name.as_str();
        Ok(match column.kind {
            ColumnKind::Integer => Value::Integer(row.try_get(name)?),
            ColumnKind::Real => Value::Real(row.try_get(name)?),
            ColumnKind::Text => Value::Text(row.try_get(name)?),
            ColumnKind::Bytes => Value::Bytes(row.try_get(name)?),
            ColumnKind::Reals => Value::Reals(list(row.try_get(name)?)?),
            ColumnKind::Integers => Value::Integers(list(row.try_get(name)?)?),
        })
    };
    columns.iter().map(read).collect()
}

/// Reads the next rows of a table; returns them and the row id of the last.
async fn read_batch(
    sqlite: &SqlitePool,
    table: &str,
    columns: &[Column],
    after: i64,
) -> anyhow::Result<(Vec<Vec<Value>>, i64)> {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    let sql = format!(
        "SELECT rowid AS import_rowid, {} FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT {}",
        names.join(", "),
        batch_rows(table)
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(after).fetch_all(sqlite).await?;
    let last = rows.last().map(|row| row.try_get("import_rowid")).transpose()?.unwrap_or(after);
    let rows = rows.iter().map(|row| read_source(row, columns)).collect::<anyhow::Result<_>>()?;
    Ok((rows, last))
}

async fn copy(
    sqlite: &SqlitePool,
    postgres: &PgPool,
    table: &str,
    columns: &[Column],
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let progress: Option<i64> =
        sqlx::query_scalar("SELECT last_rowid FROM import_progress WHERE name = $1")
            .bind(table)
            .fetch_optional(postgres)
            .await?;
    let mut after = progress.unwrap_or(i64::MIN);
    loop {
        let (rows, last) = read_batch(sqlite, table, columns, after).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut tx = postgres.begin().await?;
        insert(&mut tx, table, columns, &rows).await?;
        sqlx::query(
            "INSERT INTO import_progress (name, last_rowid) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET last_rowid = EXCLUDED.last_rowid",
        )
        .bind(table)
        .bind(last)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        bar.inc(rows.len() as u64);
        after = last;
    }
}

/// Inserts rows, each column bound as one array. Lists are bound as JSON, since the inner arrays of
/// an array of arrays cannot differ in length.
async fn insert(
    tx: &mut sqlx::Transaction<'static, sqlx::Postgres>,
    table: &str,
    columns: &[Column],
    rows: &[Vec<Value>],
) -> anyhow::Result<()> {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    let (mut arrays, mut values) = (Vec::new(), Vec::new());
    for (i, Column { kind, type_name, .. }) in columns.iter().enumerate() {
        let place = i.saturating_add(1);
        let (array, value) = match kind {
            ColumnKind::Integer => ("bigint[]", format!("v.c{i}::{type_name}")),
            ColumnKind::Real => ("double precision[]", format!("v.c{i}")),
            ColumnKind::Text => ("text[]", format!("v.c{i}")),
            ColumnKind::Bytes => ("bytea[]", format!("v.c{i}")),
            ColumnKind::Reals | ColumnKind::Integers => {
                let one = type_name.trim_end_matches("[]");
                let list = format!("SELECT e::{one} FROM json_array_elements_text(v.c{i}::json) e");
                ("text[]", format!("CASE WHEN v.c{i} IS NULL THEN NULL ELSE ARRAY({list}) END"))
            }
        };
        arrays.push(format!("${place}::{array}"));
        values.push(value);
    }
    let aliases: Vec<_> = (0..columns.len()).map(|i| format!("c{i}")).collect();
    let sql = format!(
        "INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM unnest({}) AS v({})",
        names.join(", "),
        values.join(", "),
        arrays.join(", "),
        aliases.join(", ")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (i, column) in columns.iter().enumerate() {
        let of = rows.iter().map(|row| &row[i]);
        query = match column.kind {
            ColumnKind::Integer => query.bind(
                of.map(|v| if let Value::Integer(v) = v { *v } else { None }).collect::<Vec<_>>(),
            ),
            ColumnKind::Real => query.bind(
                of.map(|v| if let Value::Real(v) = v { *v } else { None }).collect::<Vec<_>>(),
            ),
            ColumnKind::Text => query.bind(
                of.map(|v| if let Value::Text(v) = v { v.clone() } else { None })
                    .collect::<Vec<_>>(),
            ),
            ColumnKind::Bytes => query.bind(
                of.map(|v| if let Value::Bytes(v) = v { v.clone() } else { None })
                    .collect::<Vec<_>>(),
            ),
            ColumnKind::Reals | ColumnKind::Integers => {
                let text = |v: &Value| match v {
                    Value::Reals(Some(list)) => serde_json::to_string(list).map(Some),
                    Value::Integers(Some(list)) => serde_json::to_string(list).map(Some),
                    _ => Ok(None),
                };
                query.bind(of.map(text).collect::<Result<Vec<_>, _>>()?)
            }
        };
    }
    query.execute(&mut **tx).await?;
    Ok(())
}

async fn sum_of_source(
    sqlite: &SqlitePool,
    table: &str,
    columns: &[Column],
) -> anyhow::Result<TableDigest> {
    let (mut sum, mut after) = (TableDigest::default(), i64::MIN);
    loop {
        let (rows, last) = read_batch(sqlite, table, columns, after).await?;
        if rows.is_empty() {
            return Ok(sum);
        }
        for row in &rows {
            sum.add(row);
        }
        after = last;
    }
}

async fn sum_of_target(
    postgres: &PgPool,
    table: &str,
    columns: &[Column],
) -> anyhow::Result<TableDigest> {
    let cast = |column: &Column| match column.kind {
        ColumnKind::Integer => format!("{}::bigint AS {}", column.name, column.name),
        _ => column.name.clone(),
    };
    let names: Vec<_> = columns.iter().map(cast).collect();
    // A cursor, so that the table need not fit into memory; its name is unique since prepared
    // statements are cached.
    let mut tx = postgres.begin().await?;
    let sql = format!("DECLARE all_{table} CURSOR FOR SELECT {} FROM {table}", names.join(", "));
    sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    let mut sum = TableDigest::default();
    loop {
        let sql = format!("FETCH {} FROM all_{table}", batch_rows(table));
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *tx).await?;
        if rows.is_empty() {
            return Ok(sum);
        }
        for row in &rows {
            let read = |column: &Column| {
                let name = column.name.as_str();
                Ok(match column.kind {
                    ColumnKind::Integer => Value::Integer(row.try_get(name)?),
                    ColumnKind::Real => Value::Real(row.try_get(name)?),
                    ColumnKind::Text => Value::Text(row.try_get(name)?),
                    ColumnKind::Bytes => Value::Bytes(row.try_get(name)?),
                    ColumnKind::Reals => Value::Reals(row.try_get(name)?),
                    ColumnKind::Integers => Value::Integers(row.try_get(name)?),
                })
            };
            sum.add(&columns.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?);
        }
    }
}

/// Sets PostgreSQL's sequences to continue after the highest numbers that were copied.
async fn set_sequences(postgres: &PgPool) -> anyhow::Result<()> {
    for (sequence, table, column) in [
        ("pg_get_serial_sequence('machines', 'machine_no')", "machines", "machine_no"),
        ("pg_get_serial_sequence('chains', 'chain_no')", "chains", "chain_no"),
        ("pg_get_serial_sequence('events', 'arrival')", "events", "arrival"),
        ("'frames_arrival_seq'", "frames", "arrival"),
    ] {
        let sql = format!(
            "SELECT setval({sequence}, GREATEST((SELECT COALESCE(max({column}), 0) FROM {table}), 1))"
        );
        sqlx::query(AssertSqlSafe(sql)).execute(postgres).await?;
    }
    Ok(())
}
