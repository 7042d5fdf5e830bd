//! `simcorp-bench lists`: measures how long every list of the API takes over HTTP on large tables,
//! and reports the large tables that were scanned sequentially (there should be none).

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testbed::{Postgres, Process, binary_path, free_port, wait_for};

use crate::stats;

#[derive(clap::Args)]
pub struct Options {
    /// Rows in the table of each list
    #[arg(long, default_value_t = 1_000_000)]
    rows: u32,
    /// Requests per list
    #[arg(long, default_value_t = 40)]
    times: u32,
}

/// The longest time that a list may take, ms.
const LIST_MS_MAX: f64 = 50.0;
const SERVICES: [&str; 3] = ["kernel", "ingestion", "eval"];
/// The tables whose sequential scans the benchmark reports.
const LARGE_TABLES: &str = "'missions','sessions','events','session_notes','reports','profiles',\
                     'profile_versions','traces','golden_cases','eval_runs','api_keys',\
                     'governance_records','user_roles'";

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
pub async fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!(
        (1_000..=5_000_000).contains(&options.rows) && (2..=1_000).contains(&options.times),
        "--rows: not between 1000 and 5000000, or --times: not between 2 and 1000"
    );
    let (cluster, folder) = (Postgres::start().await?, tempfile::tempdir()?);
    let ports = [free_port()?, free_port()?, free_port()?];
    let open = "{ per_second = 100000.0, burst = 1000000 }";
    let mut settings = vec![
        format!("database.url={}", cluster.url()),
        "database.migrate=true".to_owned(),
        "broker.embedded=false".to_owned(),
    ];
    settings.extend(["org", "user", "route"].map(|kind| format!("limits.{kind}={open}")));
    for (service, port) in SERVICES.iter().zip(ports) {
        settings.push(format!("{service}.listen=127.0.0.1:{port}"));
    }
    let mut arguments = vec!["serve".to_owned()];
    arguments.extend(SERVICES.map(str::to_owned));
    arguments.extend(settings.iter().map(|setting| format!("--set={setting}")));
    let mut simcorp =
        Process::new(binary_path("simcorp")?, arguments, folder.path().join("simcorp.log"));
    simcorp.start()?;
    // Fails if a provider is installed already; only this one is used.
    service::tls::install_crypto_provider();
    let http = reqwest::Client::new();
    for port in ports {
        let url = format!("http://127.0.0.1:{port}/ready");
        let ready = || async { http.get(&url).send().await.is_ok_and(|a| a.status().is_success()) };
        wait_for("simcorp", Duration::from_secs(30), ready).await.with_context(|| simcorp.log())?;
    }
    fill(&cluster, options.rows)?;
    let before = scans(&cluster)?;
    let mut results = serde_json::Map::new();
    let mut slow = Vec::new();
    for (service, path) in list_paths(options.rows) {
        let at = SERVICES.iter().position(|name| *name == service).unwrap_or(0);
        let url = format!("http://127.0.0.1:{}{path}", ports[at]);
        let mut times = Vec::new();
        for _ in 0..options.times {
            let start = Instant::now();
            let answer = http.get(&url).send().await?;
            let (status, bytes) = (answer.status(), answer.bytes().await?);
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&bytes));
        }
        // The first request of each list fills the page cache.
        times.remove(0);
        let percentiles = stats::percentiles(times);
        if percentiles["p95"].as_f64().is_some_and(|p95| p95 > LIST_MS_MAX) {
            slow.push(path.clone());
        }
        results.insert(path, percentiles);
    }
    // PostgreSQL updates its count of sequential scans when a backend becomes idle.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let scanned = scans(&cluster)?;
    let tables: Vec<_> =
        before.lines().zip(scanned.lines()).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
    Ok(json!({
        "rows_behind": options.rows,
        "lists_ms": results,
        "over_50_ms": slow,
        "tables_scanned": tables,
    }))
}

/// Returns every list with each of its filters: the first page, a late page, and rare values.
fn list_paths(rows: u32) -> Vec<(&'static str, String)> {
    let half = rows / 2;
    let late = |prefix: &str| {
        http_stack::query::encode_cursor(1_790_000_000_000 + i64::from(half), prefix)
    };
    let plain = [
        ("kernel", "/missions?limit=200"),
        ("kernel", "/missions?limit=200&status=FAILED"),
        ("kernel", "/missions?limit=200&machineId=m7"),
        ("kernel", "/missions?limit=200&siteId=site-1"),
        ("kernel", "/missions?limit=200&agent=nobody"),
        ("kernel", "/missions/metrics"),
        ("kernel", "/traces?limit=50"),
        ("kernel", "/traces?limit=50&agentId=a3"),
        ("kernel", "/traces?limit=50&status=ERROR"),
        ("kernel", "/traces?limit=50&q=nothing+like+it"),
        ("kernel", "/keys"),
        ("kernel", "/api/incidents?limit=200"),
        ("kernel", "/api/circuit-breaker/events/unresolved"),
        ("ingestion", "/sessions?limit=200"),
        ("ingestion", "/sessions?limit=200&status=ACTIVE"),
        ("ingestion", "/sessions?limit=200&machineId=m7"),
        ("ingestion", "/sessions?limit=200&siteId=site-rare"),
        ("ingestion", "/sessions?limit=50&offset=10000"),
        ("ingestion", "/machines"),
        ("ingestion", "/events?limit=200"),
        ("ingestion", "/sessions/S-1/notes?limit=200"),
        ("ingestion", "/sessions/S-1/reports"),
        ("ingestion", "/profiles?limit=200"),
        ("ingestion", "/profiles?limit=200&siteId=site-1"),
        ("ingestion", "/profiles?limit=200&q=nothing+like+it"),
        ("ingestion", "/profiles?limit=200&tag=rare"),
        ("ingestion", "/profiles/P-1/versions"),
        ("eval", "/golden-cases?limit=200"),
        ("eval", "/golden-cases?limit=200&machineId=m7"),
        ("eval", "/evaluations?limit=200"),
        ("eval", "/evaluations?limit=200&sessionId=S-1"),
        ("eval", "/evaluations?limit=200&goldenCaseId=C-1"),
        ("eval", "/evaluations/promotion/S-1"),
    ];
    let mut all: Vec<_> = plain.map(|(service, path)| (service, path.to_owned())).into();
    all.push(("kernel", format!("/missions?limit=200&cursor={}", late("M-"))));
    all.push(("kernel", format!("/traces?limit=50&cursor={}", late("T-"))));
    all.push(("ingestion", format!("/sessions?limit=200&cursor={}", late("S-"))));
    all.push(("eval", format!("/evaluations?limit=200&cursor={}", late("E-"))));
    all
}

fn fill(cluster: &Postgres, rows: u32) -> anyhow::Result<()> {
    let series = format!("FROM generate_series(1, {rows}) i");
    let at = "1790000000000 + i";
    let sql = [
        "ALTER TABLE missions DISABLE TRIGGER mission_made".to_owned(),
        format!("INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, \
            subject_id, session_id, site_id, machine_id, body, max_attempts, created_ms, updated_ms) \
            SELECT 'org', 'M-' || i, 'M-' || i, 'generate-roast-report', 'DONE', 1, 'S-' || i, 'S-' || i, \
            'site-' || (i % 4), 'm' || (i % 100), '{{\"goal\":{{\"title\":\"g\"}},\"params\":{{}}}}', 5, {at}, {at} {series}"),
        "ALTER TABLE missions ENABLE TRIGGER mission_made".to_owned(),
        format!("INSERT INTO mission_counts VALUES ('org', 'DONE', 0, {rows})"),
        "INSERT INTO machines (org_id, site_id, machine_id, created_ms) \
            SELECT 'org', 'site-' || (i % 4), 'm' || i, 0 FROM generate_series(0, 99) i".to_owned(),
        "INSERT INTO machines (org_id, site_id, machine_id, created_ms) VALUES ('org', 'site-rare', 'r', 0)".to_owned(),
        "INSERT INTO chains (org_id, machine_no, chain, kid, seen_ms) \
            SELECT 'org', machine_no, decode(lpad(to_hex(machine_no), 32, '0'), 'hex'), 'k', 0 FROM machines".to_owned(),
        format!("INSERT INTO sessions (org_id, session_id, machine_no, chain_no, started_ms, ended_ms, status, \
            first_seq, last_seq, drop_s, completeness, points, verified_points, unsigned_points, failed_points, announced_ms, curve_ms) \
            SELECT 'org', 'S-' || i, 1 + i % 100, 1 + i % 100, {at}, {at} + 600000, 'CLOSED', 0, 600, 600, 'complete', \
            600, 600, 0, 0, 0, 0 {series}"),
        format!("INSERT INTO events (org_id, session_id, machine_no, kind, source, seq, at_ms, elapsed_s, trust) \
            SELECT 'org', 'S-' || i, 1 + i % 100, 'DROP', 'machine', 600, {at} + 600000, 600, 0 {series}"),
        format!("INSERT INTO session_notes (org_id, note_id, session_id, created_ms, body) \
            SELECT 'org', 'N-' || i, 'S-' || (i % 1000 + 1), {at}, \
            '{{\"noteId\":\"N\",\"createdAt\":\"2026-01-01T00:00:00.000Z\",\"text\":\"t\"}}' {series}"),
        format!("INSERT INTO profiles (org_id, profile_id, version, name, words, tags, site_id, machine_model, archived, updated_ms, body) \
            SELECT 'org', 'P-' || i, 1, 'p', 'p', E'\\n', 'site-' || (i % 4), 'x', 0, {at}, \
            '{{\"profileId\":\"P\",\"orgId\":\"org\",\"name\":\"p\",\"version\":1,\"targets\":{{}},\"createdAt\":\"2026-01-01T00:00:00.000Z\",\"updatedAt\":\"2026-01-01T00:00:00.000Z\"}}' {series}"),
        format!("INSERT INTO traces (org_id, trace_id, mission_id, agent_id, status, started_ms, stored_ms, body) \
            SELECT 'org', 'T-' || i, 'M-' || i, 'a' || (i % 10), 'SUCCESS', {at}, {at}, \
            '{{\"traceId\":\"T-' || i || '\",\"agentId\":\"a\",\"missionId\":\"M\",\"mission\":{{}},\
              \"startedAt\":\"2026-01-01T00:00:00.000Z\",\"entries\":[]}}' {series}"),
        format!("INSERT INTO golden_cases (org_id, case_id, machine_id, created_ms, body) \
            SELECT 'org', 'C-' || i, 'm' || (i % 100), {at}, \
            '{{\"id\":\"C\",\"name\":\"c\",\"machineId\":\"m\",\"createdAt\":\"2026-01-01T00:00:00.000Z\"}}' {series}"),
        format!("INSERT INTO eval_runs (org_id, run_id, session_id, case_id, outcome, run_ms, body) \
            SELECT 'org', 'E-' || i, 'S-' || i, 'C-' || (i % 1000), 'PASS', {at}, \
            '{{\"id\":\"E\",\"goldenCaseId\":\"C\",\"runAt\":\"2026-01-01T00:00:00.000Z\",\"outcome\":\"PASS\",\
              \"passedGates\":[],\"failedGates\":[],\"agentRejected\":false,\"detailedMetrics\":{{}},\"metrics\":[],\
              \"humanReviewed\":false,\"commands\":[],\"artifacts\":[]}}' {series}"),
        format!("INSERT INTO governance_records (org_id, kind, record_id, at_ms, status, body) \
            SELECT 'org', 'incident', 'I-' || i, {at}, 'kept', \
            '{{\"id\":\"I\",\"title\":\"t\",\"details\":\"\",\"severity\":\"low\",\"fromAutonomousAction\":false,\
              \"timestamp\":\"2026-01-01T00:00:00.000Z\",\"reportedBy\":{{\"kind\":\"USER\",\"id\":\"u\"}}}}' {series}"),
    ];
    for statement in sql {
        cluster.query("simcorp", &statement).with_context(|| statement.clone())?;
    }
    cluster.query("simcorp", "VACUUM ANALYZE")?;
    Ok(())
}

fn scans(cluster: &Postgres) -> anyhow::Result<String> {
    cluster.query(
        "simcorp",
        &format!(
            "SELECT relname || ' ' || seq_scan FROM pg_stat_user_tables \
             WHERE relname IN ({LARGE_TABLES}) ORDER BY relname"
        ),
    )
}
