//! `simcorp-bench ingest`: measures ingestion, from published frames to acknowledged rows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rumqttc::AsyncClient;
use serde_json::{Value, json};
use testbed::wait_for;

use crate::load::{Acknowledgements, LoadGenerator};
use crate::system::{Broker, Database, PreparedSystem, RowCounts, SystemUnderTest};
use crate::{copy_baseline, load, stats};

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

/// The result of one run at one rate.
pub struct RunResult {
    pub points_per_s: f64,
    pub sent: u64,
    pub acked: u64,
    pub ack_ms: Vec<f64>,
    pub refused: u64,
    /// Frames without an acknowledgement when the load ended.
    pub frames_behind: usize,
    pub cpu_s: f64,
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
    let prepared = PreparedSystem::start(options.database, options.broker).await?;
    prepared.register(load::ORG, &load.device_description())?;
    let system = prepared.launch(&["ingestion"]).await?;
    let (client, acks) = load.connect(system.broker_port()).await?;
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
        "committed": counted.points - points_before(before, &options.rate),
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
        let Some(database) = system.database() else { bail!("--limit needs --database postgres") };
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

/// Publishes points for a time, and waits until all are acknowledged.
pub async fn measure(
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

/// Returns the points to subtract from the final count: none for `--rate max`, whose runs all count.
fn points_before(before: RowCounts, rate: &str) -> i64 {
    if rate == "max" { 0 } else { before.points }
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
        let warm_up = RowCounts { points: 70, distinct: 70, bytes: 700 };
        assert_eq!(points_before(warm_up, "10000"), 70);
        assert_eq!(points_before(warm_up, "max"), 0);
    }
}
