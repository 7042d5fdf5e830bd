//! `simcorp-bench queue`: measures how fast missions are claimed and completed, and how long lists
//! take on a large table.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use contract::mission::MissionStatus;
use contract::{EpochMs, OrgId};
use database::{Database, DatabaseConfig};
use kernel::KernelStore;
use kernel::store::{MissionFilter, Transition};
use serde_json::{Value, json};
use testbed::Postgres;

use crate::stats;

#[derive(clap::Args)]
pub struct Options {
    /// Missions to claim and complete
    #[arg(long, default_value_t = 20_000)]
    missions: u32,
    /// Workers that claim missions at the same time
    #[arg(long, default_value_t = 16)]
    workers: u32,
    /// Completed missions in the same table
    #[arg(long, default_value_t = 1_000_000)]
    behind: u32,
}

const NOW: EpochMs = EpochMs(1_790_000_000_000);
const LEASE_MS: u32 = 600_000;

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
pub async fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!((1..=64).contains(&options.workers), "--workers: not between 1 and 64");
    ensure!(
        (100..=1_000_000).contains(&options.missions) && options.behind <= 5_000_000,
        "--missions: not between 100 and 1000000, or --behind: more than 5000000"
    );
    let cluster = Postgres::start().await?;
    let config = DatabaseConfig {
        url: cluster.url().into(),
        pool_max: options.workers,
        ..DatabaseConfig::default()
    };
    let database = Database::open(&config).await?;
    database.migrate_up().await?;
    fill(&cluster, options)?;
    let store = Arc::new(KernelStore::new(database));

    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for w in 0..options.workers {
        workers.spawn(work(store.clone(), w));
    }
    let mut steps = Vec::new();
    for done in workers.join_all().await {
        steps.extend(done?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let counts = store.counts(None).await?;
    let done = i64::from(options.missions + options.behind);
    ensure!(counts.get("DONE") == Some(&done), "not all missions are done: {counts:?}");

    let limit = baseline_updates_per_s(&cluster, options.workers)?;
    let pairs = f64::from(options.missions) / seconds;
    Ok(json!({
        "workers": options.workers,
        "behind": options.behind,
        "claims_and_completions_per_s": (pairs * 2.0).round(),
        "missions_per_s": pairs.round(),
        "step_ms": stats::percentiles(steps),
        "reference_updates_per_s": limit.round(),
        "ratio_to_reference": (pairs * 200.0 / limit).round() / 100.0,
        "lists_ms": lists(&store, &cluster).await?,
    }))
}

fn fill(cluster: &Postgres, options: &Options) -> anyhow::Result<()> {
    let rows = |count: u32, status: &str, lane: &str, prefix: &str| {
        format!(
            "INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, lane, \
             due_ms, subject_id, session_id, site_id, machine_id, body, max_attempts, created_ms, \
             updated_ms) SELECT 'org', '{prefix}' || i, '{prefix}' || i, 'generate-roast-report', \
             '{status}', 1, {lane}, i, 'S-{prefix}' || i, 'S-{prefix}' || i, 'site', 'm' || (i % 100), \
             '{{\"goal\":{{\"title\":\"generate-roast-report\"}},\"params\":{{\"sessionId\":\"S-' || i || '\"}}}}', \
             5, 1790000000000 + i, 1790000000000 + i FROM generate_series(1, {count}) i;"
        )
    };
    // The counters are set directly: a trigger per row would take most of the time.
    let sql = format!(
        "ALTER TABLE missions DISABLE TRIGGER mission_made; {} \
         ALTER TABLE missions ENABLE TRIGGER mission_made; \
         INSERT INTO mission_counts VALUES ('org', 'DONE', 0, {}); {} ANALYZE missions;",
        rows(options.behind, "DONE", "NULL", "D"),
        options.behind,
        rows(options.missions, "PENDING", "0", "P"),
    );
    cluster.query("simcorp", &sql)?;
    Ok(())
}

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
async fn work(store: Arc<KernelStore>, w: u32) -> anyhow::Result<Vec<f64>> {
    let org = OrgId::new("org")?;
    let goals = ["generate-roast-report".to_owned()];
    let worker = format!("w-{w}");
    let mut steps = Vec::new();
    let mut n = 0_u32;
    loop {
        n += 1;
        let lease = format!("{w}-{n}");
        let start = Instant::now();
        let claimed = store.claim(None, &worker, &goals, (&lease, LEASE_MS), NOW).await?;
        let Some(mission) = claimed else { return Ok(steps) };
        steps.push(start.elapsed().as_secs_f64() * 1000.0);
        let start = Instant::now();
        let ended = store.complete(&org, &mission.mission_id, Some(&lease), None, NOW).await?;
        steps.push(start.elapsed().as_secs_f64() * 1000.0);
        ensure!(matches!(ended, Transition::Done(_)), "{ended:?}");
    }
}

/// Measures the baseline: the updates per second that the same database performs with as many
/// connections, each updating one row by its key per transaction (`pgbench`'s simplest script).
fn baseline_updates_per_s(cluster: &Postgres, connections: u32) -> anyhow::Result<f64> {
    cluster.query(
        "simcorp",
        "CREATE TABLE plain (id int PRIMARY KEY, n int NOT NULL); \
         INSERT INTO plain SELECT i, 0 FROM generate_series(1, 100000) i;",
    )?;
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(
        script.path(),
        "\\set id random(1, 100000)\nUPDATE plain SET n = n + 1 WHERE id = :id;\n",
    )?;
    let output = cluster.pgbench("simcorp", connections, 5, script.path())?;
    let line =
        output.lines().find(|line| line.starts_with("tps")).context("pgbench printed no tps")?;
    let number = line.split_whitespace().nth(2).context("pgbench printed no number")?;
    Ok(number.parse()?)
}

/// Measures the lists that people use: the slowest of ten, ms. Fails on a sequential scan.
#[allow(clippy::disallowed_methods)] // a measurement reads the clock
async fn lists(store: &KernelStore, cluster: &Postgres) -> anyhow::Result<Value> {
    let org = OrgId::new("org")?;
    let all = MissionFilter { limit: 200, ..MissionFilter::default() };
    let text = |text: &str| Some(text.to_owned());
    let filters = [
        ("newest", all.clone()),
        (
            "quarantined",
            MissionFilter { statuses: vec![MissionStatus::Quarantined], ..all.clone() },
        ),
        ("of_a_session", MissionFilter { session: text("S-D500000"), ..all.clone() }),
        ("of_a_subject", MissionFilter { subject: text("S-D500000"), ..all.clone() }),
        ("of_a_machine", MissionFilter { machine: text("m42"), ..all.clone() }),
        ("of_a_goal", MissionFilter { goal: text("generate-roast-report"), ..all.clone() }),
        ("of_no_goal", MissionFilter { goal: text("nothing"), ..all.clone() }),
        (
            "a_late_page",
            MissionFilter { after: Some((1_790_000_500_000, "D500000".to_owned())), ..all },
        ),
    ];
    let before = scans(cluster)?;
    let mut slowest = serde_json::Map::new();
    for (name, filter) in filters {
        let mut worst = 0.0_f64;
        for _ in 0..10 {
            let start = Instant::now();
            store.missions(&org, &filter).await?;
            worst = worst.max(start.elapsed().as_secs_f64() * 1000.0);
        }
        ensure!(worst < 50.0, "{name} took {worst:.1} ms");
        slowest.insert(name.to_owned(), json!((worst * 10.0).round() / 10.0));
    }
    let start = Instant::now();
    store.counts(Some(&org)).await?;
    slowest
        .insert("counts".to_owned(), json!((start.elapsed().as_secs_f64() * 1e4).round() / 10.0));
    // PostgreSQL updates its count of sequential scans when a backend becomes idle.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    ensure!(scans(cluster)? == before, "a list scanned the whole table");
    Ok(slowest.into())
}

fn scans(cluster: &Postgres) -> anyhow::Result<i64> {
    cluster.query_number("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'missions'")
}
