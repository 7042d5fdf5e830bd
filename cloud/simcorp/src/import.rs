//! `simcorp import-sqlite`: a deployment on SQLite moves to PostgreSQL.
//!
//! Each table is copied in its order of making, so that what is referred to is there first, in batches
//! that are committed together with how far they went: a copy that was broken off goes on. Both sides
//! of each table are read whole and must have the same rows, by count and digest; and nobody may have
//! written meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use store::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow};
use store::sqlx::{self, AssertSqlSafe, PgPool, Row as _, SqlitePool};
use store::{Pool, Store};

use crate::config::CloudConfig;
use crate::output::Output;
use crate::serve;

/// Rows at a time: fewer of those that may be a megabyte each.
const BATCH: i64 = 1_000;
const BATCH_OF_LARGE: i64 = 20;
const LARGE: [&str; 6] = ["frames", "curves", "reports", "traces", "eval_runs", "profile_versions"];

fn batch_of(table: &str) -> i64 {
    if LARGE.contains(&table) { BATCH_OF_LARGE } else { BATCH }
}

/// The database makes these by itself, or they say nothing anywhere else.
const LEFT: [&str; 4] = ["_sqlx_migrations", "mission_counts", "leases", "idempotency"];

/// How a column's values go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    Real,
    Text,
    Bytes,
    /// `real[]` and `integer[]`: JSON on SQLite.
    Reals,
    Integers,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    /// PostgreSQL's.
    kind: Kind,
    type_name: &'static str,
}

/// One row's values, alike from both sides.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Integer(Option<i64>),
    Real(Option<f64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Reals(Option<Vec<Option<f32>>>),
    Integers(Option<Vec<Option<i32>>>),
}

/// What a table was found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sum {
    rows: u64,
    /// The rows' digests, added: the order of rows does not count.
    digest: [u64; 4],
}

impl Sum {
    fn add(&mut self, row: &[Value]) {
        let mut bytes = Vec::with_capacity(256);
        for value in row {
            value.write(&mut bytes);
        }
        let digest = trust::digest(&bytes).0;
        for (sum, part) in self.digest.iter_mut().zip(digest.chunks_exact(8)) {
            let part: [u8; 8] = part.try_into().unwrap_or_default();
            *sum = sum.wrapping_add(u64::from_be_bytes(part));
        }
        self.rows += 1;
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
struct Moved {
    table: String,
    rows: u64,
    digest: String,
}

/// Moves everything from the file to the configured PostgreSQL, and proves it.
pub async fn import(config: &CloudConfig, file: &Path, output: Output) -> anyhow::Result<()> {
    ensure!(file.is_file(), "there is no {}", file.display());
    let target = Store::open(&config.database).await?;
    let Pool::Postgres(postgres) = target.pool() else {
        bail!("database.url is not a PostgreSQL database: where should everything go?");
    };
    target.migrate_up().await?;
    target.ensure_partitions(serve::now()).await?;
    let mut from = config.database.clone();
    from.url = format!("sqlite:{}", file.display()).into();
    from.replica_url = service::secret::Secret::default();
    let source = Store::open(&from).await?;
    source.check_schema().await.context("bring the SQLite database up to date first")?;
    source.close().await;
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let sqlite = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    begin(postgres).await?;
    let version: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&sqlite).await?;
    make_partitions(&target, &sqlite).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
         ORDER BY rowid",
    )
    .fetch_all(&sqlite)
    .await?;
    let mut moved = Vec::new();
    for table in tables.iter().filter(|table| !LEFT.contains(&table.as_str())) {
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
            "{table}: {} rows there, {} here, or they differ; stop what writes to {} and run this \
             again on an empty database",
            there.rows,
            here.rows,
            file.display()
        );
        let [a, b, c, d] = here.digest;
        let digest = format!("{a:016x}{b:016x}{c:016x}{d:016x}");
        moved.push(Moved { table: table.clone(), rows: here.rows, digest });
    }
    let after: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&sqlite).await?;
    ensure!(
        version == after,
        "something has written to {} meanwhile; stop it, and run this again on an empty database",
        file.display()
    );
    number_on(postgres).await?;
    sqlx::query("DROP TABLE import_progress").execute(postgres).await?;
    output.rows(&["table", "rows", "digest"], &moved, |m| {
        vec![m.table.clone(), m.rows.to_string(), m.digest[..16].to_owned()]
    })
}

/// Frames go to the partitions of their weeks.
async fn make_partitions(target: &Store, sqlite: &SqlitePool) -> anyhow::Result<()> {
    const WEEK_MS: i64 = 7 * 86_400_000;
    const WEEKS_MAX: i64 = 520;
    let first: Option<i64> =
        sqlx::query_scalar("SELECT min(t0_ms) FROM frames").fetch_one(sqlite).await?;
    let now = serve::now();
    let weeks = first.map_or(0, |first| (now.0 - first).div_euclid(WEEK_MS).clamp(0, WEEKS_MAX));
    for week in 0..=weeks {
        target.ensure_partitions(now.plus(-week * WEEK_MS)).await?;
    }
    Ok(())
}

/// Goes on where an import was broken off; else begins in an empty database.
async fn begin(postgres: &PgPool) -> anyhow::Result<()> {
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
    ensure!(!used, "the PostgreSQL database is in use: an import begins in an empty one");
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
            "int8" => (Kind::Integer, "bigint"),
            "int4" => (Kind::Integer, "integer"),
            "int2" => (Kind::Integer, "smallint"),
            "float8" => (Kind::Real, "double precision"),
            "text" => (Kind::Text, "text"),
            "bytea" => (Kind::Bytes, "bytea"),
            "_float4" => (Kind::Reals, "real[]"),
            "_int4" => (Kind::Integers, "integer[]"),
            other => bail!("{table}.{name} is of type {other}, which this cannot move"),
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
            Kind::Integer => Value::Integer(row.try_get(name)?),
            Kind::Real => Value::Real(row.try_get(name)?),
            Kind::Text => Value::Text(row.try_get(name)?),
            Kind::Bytes => Value::Bytes(row.try_get(name)?),
            Kind::Reals => Value::Reals(list(row.try_get(name)?)?),
            Kind::Integers => Value::Integers(list(row.try_get(name)?)?),
        })
    };
    columns.iter().map(read).collect()
}

/// The next rows of a table, and the number of the last.
async fn batch(
    sqlite: &SqlitePool,
    table: &str,
    columns: &[Column],
    after: i64,
) -> anyhow::Result<(Vec<Vec<Value>>, i64)> {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    let sql = format!(
        "SELECT rowid AS import_rowid, {} FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT {}",
        names.join(", "),
        batch_of(table)
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
    let known: Option<i64> =
        sqlx::query_scalar("SELECT last_rowid FROM import_progress WHERE name = $1")
            .bind(table)
            .fetch_optional(postgres)
            .await?;
    let mut after = known.unwrap_or(i64::MIN);
    loop {
        let (rows, last) = batch(sqlite, table, columns, after).await?;
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

/// Puts rows in: a column an array; lists as JSON, since arrays of arrays cannot differ in length.
async fn insert(
    tx: &mut sqlx::Transaction<'static, sqlx::Postgres>,
    table: &str,
    columns: &[Column],
    rows: &[Vec<Value>],
) -> anyhow::Result<()> {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    let (mut arrays, mut values) = (Vec::new(), Vec::new());
    for (i, Column { kind, type_name, .. }) in columns.iter().enumerate() {
        let place = i + 1;
        let (array, value) = match kind {
            Kind::Integer => ("bigint[]", format!("v.c{i}::{type_name}")),
            Kind::Real => ("double precision[]", format!("v.c{i}")),
            Kind::Text => ("text[]", format!("v.c{i}")),
            Kind::Bytes => ("bytea[]", format!("v.c{i}")),
            Kind::Reals | Kind::Integers => {
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
            Kind::Integer => query.bind(
                of.map(|v| if let Value::Integer(v) = v { *v } else { None }).collect::<Vec<_>>(),
            ),
            Kind::Real => query.bind(
                of.map(|v| if let Value::Real(v) = v { *v } else { None }).collect::<Vec<_>>(),
            ),
            Kind::Text => query.bind(
                of.map(|v| if let Value::Text(v) = v { v.clone() } else { None })
                    .collect::<Vec<_>>(),
            ),
            Kind::Bytes => query.bind(
                of.map(|v| if let Value::Bytes(v) = v { v.clone() } else { None })
                    .collect::<Vec<_>>(),
            ),
            Kind::Reals | Kind::Integers => {
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
) -> anyhow::Result<Sum> {
    let (mut sum, mut after) = (Sum::default(), i64::MIN);
    loop {
        let (rows, last) = batch(sqlite, table, columns, after).await?;
        if rows.is_empty() {
            return Ok(sum);
        }
        for row in &rows {
            sum.add(row);
        }
        after = last;
    }
}

async fn sum_of_target(postgres: &PgPool, table: &str, columns: &[Column]) -> anyhow::Result<Sum> {
    let cast = |column: &Column| match column.kind {
        Kind::Integer => format!("{}::bigint AS {}", column.name, column.name),
        _ => column.name.clone(),
    };
    let names: Vec<_> = columns.iter().map(cast).collect();
    // A cursor, of its own name since statements are remembered: the table need not fit into memory.
    let mut tx = postgres.begin().await?;
    let sql = format!("DECLARE all_{table} CURSOR FOR SELECT {} FROM {table}", names.join(", "));
    sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    let mut sum = Sum::default();
    loop {
        let sql = format!("FETCH {} FROM all_{table}", batch_of(table));
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *tx).await?;
        if rows.is_empty() {
            return Ok(sum);
        }
        for row in &rows {
            let read = |column: &Column| {
                let name = column.name.as_str();
                Ok(match column.kind {
                    Kind::Integer => Value::Integer(row.try_get(name)?),
                    Kind::Real => Value::Real(row.try_get(name)?),
                    Kind::Text => Value::Text(row.try_get(name)?),
                    Kind::Bytes => Value::Bytes(row.try_get(name)?),
                    Kind::Reals => Value::Reals(row.try_get(name)?),
                    Kind::Integers => Value::Integers(row.try_get(name)?),
                })
            };
            sum.add(&columns.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?);
        }
    }
}

/// Numbers that PostgreSQL gives go on after those that were given.
async fn number_on(postgres: &PgPool) -> anyhow::Result<()> {
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
