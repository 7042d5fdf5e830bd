//! `simcorp-bench ingest`: measures ingestion, from published frames to acknowledged rows.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rumqttc::AsyncClient;
use serde_json::{Value, json};
use testbed::{Mosquitto, Postgres, Process, binary_path, free_port, wait_for, wait_for_port};

use crate::load::{Acknowledgements, LoadGenerator};
use crate::{copy_baseline, stats};

#[derive(clap::Args)]
pub struct Options {
    /// Simulated machines that send points
    #[arg(long, default_value_t = 1000)]
    machines: usize,
    /// Points per second, or `max` to find the highest rate without a growing backlog
    #[arg(long, default_value = "10000")]
    rate: String,
    /// Duration of the measurement, s
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The time span of one frame, ms
    #[arg(long, default_value_t = 1000)]
    frame_ms: u64,
    /// The database to measure
    #[arg(long, value_enum, default_value = "postgres")]
    database: Database,
    /// The MQTT broker to measure
    #[arg(long, value_enum, default_value = "mosquitto")]
    broker: Broker,
    /// Also measure PostgreSQL's own COPY of the same points, as an upper bound
    #[arg(long)]
    limit: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Database {
    Postgres,
    Sqlite,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Broker {
    Mosquitto,
    Embedded,
}

/// The system under test: database, broker and `simcorp`.
struct SystemUnderTest {
    folder: tempfile::TempDir,
    database: Option<Postgres>,
    simcorp: Process,
    _broker: Option<Mosquitto>,
    broker_port: u16,
}

/// The result of one run at one rate.
struct RunResult {
    points_per_s: f64,
    sent: u64,
    acked: u64,
    ack_ms: Vec<f64>,
    refused: u64,
    /// Frames without an acknowledgement when the load ended.
    frames_behind: usize,
    cpu_s: f64,
}

impl RunResult {
    /// Returns true if the backlog does not grow: fewer than half a second's frames wait at the
    /// end.
    fn keeps_up(&self, machines: usize, frame_ms: u64) -> bool {
        let frames_a_second = machines as f64 * 1000.0 / frame_ms as f64;
        self.refused == 0
            && (self.frames_behind as f64) < frames_a_second * 0.5
            && stats::p95(&self.ack_ms) < 1000.0
    }
}

pub async fn run(options: &Options, quiet: bool) -> anyhow::Result<Value> {
    ensure!((1..=100_000).contains(&options.machines), "--machines: not between 1 and 100000");
    ensure!((1..=600).contains(&options.seconds), "--seconds: not between 1 and 600");
    ensure!((20..=60_000).contains(&options.frame_ms), "--frame-ms: not between 20 and 60000");
    let mut load = LoadGenerator::new(options.machines)?;
    let system = SystemUnderTest::start(options, &load).await?;
    let (client, acks) = load.connect(system.broker_port).await?;
    // Warm-up: machines and chains are inserted once, at their first frame.
    let warm = options.machines as u64 * 1000 / options.frame_ms;
    measure(&system, &mut load, &client, &acks, warm.max(1), options.frame_ms, 3).await?;
    let before = system.count_rows()?;
    let run = if options.rate == "max" {
        find_highest_rate(options, &system, &mut load, &client, &acks, quiet).await?
    } else {
        let rate = options.rate.parse().context("--rate: not a number and not max")?;
        ensure!(rate >= 1, "--rate: not at least 1");
        measure(&system, &mut load, &client, &acks, rate, options.frame_ms, options.seconds).await?
    };
    let counted = system.count_rows()?;
    let mut report = json!({
        "machines": options.machines,
        "frame_ms": options.frame_ms,
        "database": if options.database == Database::Postgres { "postgres" } else { "sqlite" },
        "broker": if options.broker == Broker::Mosquitto { "mosquitto" } else { "embedded" },
        "points_per_s": run.points_per_s.round(),
        "sent": run.sent,
        "committed": counted.points - before.points_before_max(options),
        "lost": run.sent - run.acked.min(run.sent),
        "duplicated": counted.points - counted.distinct,
        "refused": run.refused,
        "behind_frames": run.frames_behind,
        "ack_ms": stats::percentiles(run.ack_ms.clone()),
        "rss_mb": system.simcorp.pid().map(|pid| stats::memory_mb(pid, "VmRSS")),
        "cpu_s": (run.cpu_s * 100.0).round() / 100.0,
        "bytes_per_point": ((counted.bytes as f64 / counted.points.max(1) as f64) * 10.0).round() / 10.0,
    });
    if options.limit {
        let Some(database) = &system.database else { bail!("--limit needs --database postgres") };
        let copy = copy_baseline::copy_points_per_s(database, options.machines).await?;
        report["copy_points_per_s"] = copy.round().into();
        report["ratio_to_copy"] = ((run.points_per_s / copy * 1000.0).round() / 1000.0).into();
    }
    Ok(report)
}

/// Searches for the highest rate: doubles it until the backlog grows, then bisects a few times.
async fn find_highest_rate(
    options: &Options,
    system: &SystemUnderTest,
    load: &mut LoadGenerator,
    client: &AsyncClient,
    acks: &Arc<Mutex<Acknowledgements>>,
    quiet: bool,
) -> anyhow::Result<RunResult> {
    let (mut good, mut bad) = (None::<(u64, RunResult)>, None::<u64>);
    let mut rate = 20_000_u64.max(options.machines as u64 * 1000 / options.frame_ms);
    for _ in 0..12 {
        let run =
            measure(system, load, client, acks, rate, options.frame_ms, options.seconds.min(15))
                .await?;
        // The generator may be the bottleneck: then the rate that it reached is the result.
        let reached = run.points_per_s > rate as f64 * 0.95;
        let holds = run.keeps_up(options.machines, options.frame_ms) && reached;
        if !quiet {
            eprintln!(
                "{rate} points/s requested, {:.0} sent: p95 {:.1} ms, {} frames behind: {}",
                run.points_per_s,
                stats::p95(&run.ack_ms),
                run.frames_behind,
                if holds { "holds" } else { "does not hold" }
            );
        }
        if holds {
            good = Some((rate, run));
        } else {
            bad = Some(rate);
        }
        let low = good.as_ref().map_or(0, |(rate, _)| *rate);
        rate = match bad {
            None => rate * 2,
            Some(high) if low == 0 => high / 2,
            Some(high) if high - low <= low / 10 => break,
            Some(high) => u64::midpoint(low, high),
        };
    }
    good.map(|(_, run)| run).context("the backlog grows at every rate")
}

async fn measure(
    system: &SystemUnderTest,
    load: &mut LoadGenerator,
    client: &AsyncClient,
    acks: &Arc<Mutex<Acknowledgements>>,
    rate: u64,
    frame_ms: u64,
    seconds: u64,
) -> anyhow::Result<RunResult> {
    *acks.lock().unwrap_or_else(PoisonError::into_inner) = Acknowledgements::default();
    let pid = system.simcorp.pid().context("simcorp has exited")?;
    let cpu = stats::cpu_s(pid);
    let (sent, took) = load.send(client, rate, frame_ms, Duration::from_secs(seconds)).await?;
    let behind = load.unacknowledged();
    let all = wait_for("all frames are acknowledged", Duration::from_mins(1), || async {
        load.unacknowledged() == 0
    });
    // A frame without an acknowledgement is reported as lost.
    let _ = all.await;
    let received = std::mem::take(&mut *acks.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(RunResult {
        points_per_s: sent as f64 / took.as_secs_f64(),
        sent,
        acked: received.acked_samples,
        ack_ms: received.ack_ms,
        refused: received.refused,
        frames_behind: behind,
        cpu_s: stats::cpu_s(pid) - cpu,
    })
}

/// Rows counted in the database, independently of the acknowledgements.
#[derive(Debug, Clone, Copy)]
struct RowCounts {
    points: i64,
    distinct: i64,
    bytes: i64,
}

impl RowCounts {
    /// Returns the points to subtract from the final count: none for `--rate max`, whose runs all
    /// count.
    fn points_before_max(self, options: &Options) -> i64 {
        if options.rate == "max" { 0 } else { self.points }
    }
}

impl SystemUnderTest {
    async fn start(options: &Options, load: &LoadGenerator) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let database = match options.database {
            Database::Postgres => Some(Postgres::start().await?),
            Database::Sqlite => None,
        };
        let broker = match options.broker {
            Broker::Mosquitto => Some(Mosquitto::start().await?),
            Broker::Embedded => None,
        };
        let (port, embedded, embedded_v4) = (free_port()?, free_port()?, free_port()?);
        let url = database.as_ref().map_or_else(
            || format!("sqlite:{}", folder.path().join("bench.db").display()),
            Postgres::url,
        );
        let mut settings = vec![
            format!("database.url={url}"),
            "database.migrate=true".to_owned(),
            format!("ingestion.listen=127.0.0.1:{port}"),
            format!("broker.listen=127.0.0.1:{embedded}"),
            format!("broker.listen_v4=127.0.0.1:{embedded_v4}"),
            "log.level=warn,rumqttd=error".to_owned(),
        ];
        let mut broker_port = embedded;
        if let Some(broker) = &broker {
            settings.push("mqtt.host=127.0.0.1".to_owned());
            settings.push(format!("mqtt.port={}", broker.port));
            broker_port = broker.port;
        }
        let settings: Vec<String> = settings.into_iter().map(|s| format!("--set={s}")).collect();
        let program = binary_path("simcorp")?;
        let device = folder.path().join("device.json");
        std::fs::write(&device, load.device_description())?;
        let add =
            Command::new(&program).args(["device", "add"]).arg(&device).args(&settings).output()?;
        ensure!(add.status.success(), "{}", String::from_utf8_lossy(&add.stderr));
        let mut arguments = vec!["serve".to_owned(), "ingestion".to_owned()];
        arguments.extend(settings);
        let mut simcorp = Process::new(program, arguments, folder.path().join("simcorp.log"));
        simcorp.start()?;
        wait_for_port(port).await.with_context(|| simcorp.log())?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(Self { folder, database, simcorp, _broker: broker, broker_port })
    }

    fn count_rows(&self) -> anyhow::Result<RowCounts> {
        const POINTS: &str = "SELECT COALESCE(SUM(samples), 0) FROM frames";
        const DISTINCT: &str = "SELECT COALESCE(SUM(samples), 0) FROM \
             (SELECT DISTINCT chain_no, number, samples FROM frames) AS d";
        if let Some(database) = &self.database {
            let bytes = database.query_number(
                "SELECT COALESCE(SUM(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits \
                 WHERE inhparent = 'frames'::regclass",
            )?;
            return Ok(RowCounts {
                points: database.query_number(POINTS)?,
                distinct: database.query_number(DISTINCT)?,
                bytes,
            });
        }
        let path = self.folder.path().join("bench.db");
        let db = rusqlite::Connection::open(&path)?;
        let ask = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let bytes = i64::try_from(std::fs::metadata(&path)?.len())?;
        Ok(RowCounts { points: ask(POINTS)?, distinct: ask(DISTINCT)?, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(frames_behind: usize, refused: u64, ack_ms: f64) -> RunResult {
        RunResult {
            points_per_s: 1_000.0,
            sent: 1_000,
            acked: 1_000,
            ack_ms: vec![ack_ms],
            refused,
            frames_behind,
            cpu_s: 1.0,
        }
    }

    #[test]
    fn a_run_keeps_up_while_less_than_half_a_second_of_frames_waits() {
        // A hundred machines with a frame every 500 ms: 200 frames a second.
        let keeps_up = |result: RunResult| result.keeps_up(100, 500);
        assert!(keeps_up(result(99, 0, 999.9)));
        assert!(!keeps_up(result(100, 0, 10.0)));
        assert!(!keeps_up(result(0, 1, 10.0)));
        assert!(!keeps_up(result(0, 0, 1_000.0)));
    }

    #[test]
    fn the_warm_up_counts_only_where_all_runs_count() {
        let options = |rate: &str| Options {
            machines: 1,
            rate: rate.to_owned(),
            seconds: 1,
            frame_ms: 1_000,
            database: Database::Sqlite,
            broker: Broker::Embedded,
            limit: false,
        };
        let warm_up = RowCounts { points: 70, distinct: 70, bytes: 700 };
        assert_eq!(warm_up.points_before_max(&options("10000")), 70);
        assert_eq!(warm_up.points_before_max(&options("max")), 0);
    }
}
