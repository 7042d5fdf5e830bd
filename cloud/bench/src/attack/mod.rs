//! `simcorp-bench attack`: measures what an honest tenant notices while another tenant, and clients
//! without any credentials, send what is meant to stop or starve the control plane.
//!
//! The honest tenant publishes signed frames as in `ingest`. The hostile one has a registered gateway
//! and keys of the roles viewer and operator, as any customer can have. Hostile clients
//! connect from other loopback addresses than the program that watches `/health` and `/ready`, so that
//! a listener counts them as other peers.

mod frames;
mod requests;
mod watch;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use service::shutdown::CancellationToken;

use crate::ingest::measure;
use crate::load::{self, LoadGenerator};
use crate::stats;
use crate::system::{Broker, Database, PreparedSystem};

/// The organisation of the hostile tenant.
const HOSTILE_ORG: &str = "hostile";
/// The bounds that must hold.
const ACK_P95_MS: f64 = 10.0;
const RESIDENT_MB: f64 = 200.0;
const HEALTH_MS: f64 = 100.0;

#[derive(clap::Args)]
pub struct Options {
    /// Simulated machines of the honest tenant
    #[arg(long, default_value_t = 1000)]
    machines: usize,
    /// Points per second of the honest tenant
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Duration of the attack, s
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The database to attack
    #[arg(long, value_enum, default_value = "postgres")]
    database: Database,
    /// The MQTT broker to attack
    #[arg(long, value_enum, default_value = "mosquitto")]
    broker: Broker,
    /// Only the hostile messages and requests whose kind contains this text, to find a cause
    #[arg(long, default_value = "")]
    only: String,
}

/// The secrets of the hostile tenant.
struct HostileKeys {
    viewer: String,
    operator: String,
}

pub async fn run(options: &Options, quiet: bool) -> anyhow::Result<Value> {
    ensure!((1..=100_000).contains(&options.machines), "--machines: not between 1 and 100000");
    ensure!((1..=3_600).contains(&options.seconds), "--seconds: not between 1 and 3600");
    ensure!((1..=1_000_000).contains(&options.rate), "--rate: not between 1 and 1000000");
    service::tls::install_crypto_provider(); // for the HTTP clients
    let mut load = LoadGenerator::new(options.machines)?;
    let gateway = frames::HostileGateway::new()?;
    let mut prepared = PreparedSystem::start(options.database, options.broker).await?;
    let keys = admit(&mut prepared, &load, &gateway)?;
    let system = prepared.launch(&[]).await?;
    let pid = system.simcorp.pid().context("simcorp has exited")?;
    let (client, acks) = load.connect(system.broker_port()).await?;
    let warm = options.machines as u64;
    measure(&system, &mut load, &client, &acks, warm, 1_000, 3).await?;
    let before = system.count_rows()?;

    let stop = CancellationToken::new();
    let watch = tokio::spawn(watch::watch(system.prepared.ports.clone(), pid, stop.clone()));
    let only = || options.only.clone();
    let hostile = [
        tokio::spawn(frames::attack(gateway, system.broker_port(), only(), stop.clone())),
        tokio::spawn(requests::flood(system.prepared.ports.clone(), keys, only(), stop.clone())),
        tokio::spawn(requests::hold_connections(system.prepared.ports.clone(), stop.clone())),
    ];
    let run = measure(&system, &mut load, &client, &acks, options.rate, 1_000, options.seconds);
    let run = run.await?;
    stop.cancel();
    let seen = watch.await??;
    let mut sent = json!({});
    for task in hostile {
        for (what, n) in task.await?? {
            sent[what] = n.into();
        }
    }
    // Long enough for tasks that work off what arrived.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let panics = watch::task_panics(&system.prepared.ports).await?;
    let counted = system.count_rows()?;

    let lost = run.sent.saturating_sub(run.acked);
    let stored = counted.points - before.points;
    let p95 = stats::p95(&run.ack_ms);
    let held = json!({
        "nothing_lost": lost == 0 && run.refused == 0 && stored == i64::try_from(run.sent)?
            && counted.points == counted.distinct,
        "ack_p95_below_10_ms": p95 < ACK_P95_MS,
        "resident_below_200_mb": seen.resident_mb < RESIDENT_MB,
        "health_within_100_ms": seen.health_ms.iter().all(|ms| *ms < HEALTH_MS),
        "always_ready": seen.not_ready == 0,
        "no_task_died": panics == 0.0 && system.simcorp.pid() == Some(pid),
    });
    let report = json!({
        "machines": options.machines,
        "seconds": options.seconds,
        "points_per_s": run.points_per_s.round(),
        "sent": run.sent,
        "stored": stored,
        "lost": lost,
        "refused": run.refused,
        "ack_ms": stats::percentiles(run.ack_ms.clone()),
        "resident_mb": seen.resident_mb,
        "health_ms": stats::percentiles(seen.health_ms.clone()),
        "health_worst_ms": seen.health_ms.iter().copied().fold(0.0, f64::max),
        "ready_checks": seen.ready_checks,
        "not_ready": seen.not_ready,
        "first_problem": seen.first_problem,
        "task_panics": panics,
        "hostile": sent,
        "held": held,
    });
    let broken: Vec<&String> = held
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, holds)| **holds == Value::Bool(false))
        .map(|(name, _)| name)
        .collect();
    if !broken.is_empty() {
        println!("{}", if quiet { report.to_string() } else { format!("{report:#}") });
        anyhow::bail!(
            "these bounds did not hold: {broken:?}\n{}",
            last_lines(&system.simcorp.log())
        );
    }
    Ok(report)
}

/// Registers both tenants, and sets what makes the control plane ask for credentials.
fn admit(
    system: &mut PreparedSystem,
    load: &LoadGenerator,
    gateway: &frames::HostileGateway,
) -> anyhow::Result<HostileKeys> {
    system.register(load::ORG, &load.device_description())?;
    system.register(HOSTILE_ORG, &gateway.description())?;
    let key = |role: &str| {
        let arguments =
            ["api-key", "create", "--name", "hostile", "--role", role, "--org", HOSTILE_ORG];
        system.operate(&arguments)
    };
    let keys = HostileKeys { viewer: key("viewer")?, operator: key("operator")? };
    let services = system.operate(&["api-key", "create", "--name", "services", "--all-orgs"])?;
    let file = system.folder.path().join("service-token");
    std::fs::write(&file, services)?;
    system.set(&format!("auth.service_token=file:{}", file.display()));
    system.set("auth.mode=oidc");
    system.set("auth.oidc.issuer=http://127.0.0.1:9"); // no person signs in
    system.set("auth.oidc.audience=bench");
    Ok(keys)
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
