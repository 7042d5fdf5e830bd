//! `simcorp-bench attack`: measures what an honest tenant and a gateway notice while another
//! tenant, and clients without any credentials, send what is meant to stop or starve them.
//!
//! The honest tenant publishes signed frames as in `ingest`. The hostile one has a registered
//! gateway and keys of the roles viewer and operator, as any customer can have. A gateway beside
//! them, with an emulated machine, is attacked on its LAN ports, and the fleet on its TLS listener
//! for gateways. Hostile clients connect from other loopback addresses than the clients that watch,
//! so that a listener counts them as other peers.

mod connections;
mod frames;
mod gateway;
mod lan_ports;
mod requests;
mod tls;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use service::connections::raise_file_limit;
use service::shutdown::CancellationToken;
use testbed::{LISTENERS, binary_path};
use tokio::task::JoinSet;

use self::frames::HostileGateway;
use self::gateway::{AttackedGateway, GatewayPorts, GatewaySeen};
use self::watch::{AnswerTimes, Seen};
use crate::ingest::{RunResult, measure};
use crate::load::{self, LoadGenerator};
use crate::stats;
use crate::system::{Broker, Database, PreparedSystem, SystemUnderTest};

/// The organisation of the hostile tenant.
const HOSTILE_ORG: &str = "hostile";
/// The bounds that must hold.
const ACK_P95_MS: f64 = 10.0;
const RESIDENT_MB: f64 = 200.0;
const HEALTH_MS: f64 = 100.0;
const TLS_MS: f64 = 1_000.0;
/// The files that this program needs: the connections that it holds, and 500 for all else.
const FILES_NEEDED: usize = LISTENERS.len() * requests::HELD_A_PORT + tls::HELD_MAX + 500;

/// How many hostile messages, requests or connections there were, by their kind.
type SentCounts = BTreeMap<&'static str, u64>;

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
    /// The agent program to attack; default: the one beside this program
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Only what is hostile and whose kind contains this text, to find a cause: for example "TLS"
    #[arg(long, default_value = "")]
    only: String,
}

/// The secrets of the hostile tenant.
struct HostileKeys {
    viewer: String,
    operator: String,
}

/// What was measured.
struct Outcome {
    run: RunResult,
    /// The points of the honest tenant that were stored during the attack.
    stored: i64,
    /// Whether no point was stored twice.
    distinct: bool,
    seen: Seen,
    tls: AnswerTimes,
    gateway: GatewaySeen,
    /// The panics of tasks in `simcorp` and in the agent; `None` if one of them does not answer.
    panics: Option<f64>,
    simcorp_runs: bool,
    agent_runs: bool,
    sent: SentCounts,
}

impl Outcome {
    /// Returns for each bound whether it held.
    fn held(&self) -> BTreeMap<&'static str, bool> {
        let lost = self.run.sent.saturating_sub(self.run.acked);
        let stored = u64::try_from(self.stored) == Ok(self.run.sent) && self.distinct;
        BTreeMap::from([
            ("nothing_lost", lost == 0 && self.run.refused == 0 && stored),
            ("ack_p95_below_10_ms", stats::p95(&self.run.ack_ms) < ACK_P95_MS),
            ("resident_below_200_mb", self.seen.resident_mb < RESIDENT_MB),
            ("health_within_100_ms", self.seen.health_ms.iter().all(|ms| *ms < HEALTH_MS)),
            ("always_ready", self.seen.not_ready == 0),
            ("no_task_died", self.panics.is_some_and(|n| n == 0.0) && self.simcorp_runs),
            ("tls_answers", self.tls.all_within(TLS_MS)),
            ("gateway_samples_on", self.agent_runs && self.gateway.samples_on()),
        ])
    }

    /// Returns the bounds that did not hold.
    fn broken(&self) -> Vec<&'static str> {
        self.held().into_iter().filter(|(_, holds)| !holds).map(|(name, _)| name).collect()
    }

    fn report(&self, options: &Options, conditions: &Value) -> Value {
        let (run, seen) = (&self.run, &self.seen);
        json!({
            "conditions": conditions,
            "machines": options.machines,
            "seconds": options.seconds,
            "points_per_s": run.points_per_s.round(),
            "sent": run.sent,
            "stored": self.stored,
            "lost": run.sent.saturating_sub(run.acked),
            "refused": run.refused,
            "ack_ms": stats::percentiles(run.ack_ms.clone()),
            "resident_mb": seen.resident_mb,
            "health_ms": stats::percentiles(seen.health_ms.clone()),
            "health_worst_ms": seen.health_ms.iter().copied().fold(0.0, f64::max),
            "health_worst_ms_by_service": seen.health_worst_ms,
            "ready_checks": seen.ready_checks,
            "not_ready": seen.not_ready,
            "first_problem": seen.first_problem,
            "tls": self.tls.report(),
            "gateway": self.gateway.report(),
            "task_panics": self.panics,
            "hostile": self.sent,
            "held": self.held(),
        })
    }
}

pub async fn run(options: &Options, quiet: bool) -> anyhow::Result<Value> {
    ensure!((1..=100_000).contains(&options.machines), "--machines: not between 1 and 100000");
    ensure!((1..=3_600).contains(&options.seconds), "--seconds: not between 1 and 3600");
    ensure!((1..=1_000_000).contains(&options.rate), "--rate: not between 1 and 1000000");
    let agent = options.agent.clone().map_or_else(|| binary_path("simcorp-edge"), Ok)?;
    let files = raise_file_limit(FILES_NEEDED);
    ensure!(files >= FILES_NEEDED, "{files} files may be open; the attack needs {FILES_NEEDED}");
    let conditions = conditions(options, &agent)?;
    service::tls::install_crypto_provider(); // for the HTTP clients
    let mut load = LoadGenerator::new(options.machines)?;
    let hostile = HostileGateway::new()?;
    let mut prepared = PreparedSystem::start(options.database, options.broker).await?;
    let keys = admit(&mut prepared, &load, &hostile)?;
    let mut system = prepared.launch(&[]).await?;
    let mut gateway = AttackedGateway::start(&agent).await?;
    let outcome =
        measure_attacked(options, &mut load, (hostile, keys), &mut system, &mut gateway).await?;

    let report = outcome.report(options, &conditions);
    let broken = outcome.broken();
    if !broken.is_empty() {
        println!("{}", if quiet { report.to_string() } else { format!("{report:#}") });
        anyhow::bail!(
            "these bounds did not hold: {broken:?}\nsimcorp:\n{}\nthe agent:\n{}",
            last_lines(&system.simcorp.log()),
            last_lines(&gateway.log())
        );
    }
    Ok(report)
}

/// Measures the honest tenant, the services and the gateway during the attack.
async fn measure_attacked(
    options: &Options,
    load: &mut LoadGenerator,
    hostile: (HostileGateway, HostileKeys),
    system: &mut SystemUnderTest,
    gateway: &mut AttackedGateway,
) -> anyhow::Result<Outcome> {
    let pid = system.simcorp.pid().context("simcorp has exited")?;
    let (client, acks) = load.connect(system.broker_port()).await?;
    let warm = options.machines as u64;
    measure(system, load, &client, &acks, warm, 1_000, 3).await?;
    let before = system.count_rows()?;

    let stop = CancellationToken::new();
    let prepared = &system.prepared;
    let services = tokio::spawn(watch::watch(prepared.ports.clone(), pid, stop.clone()));
    let tls = tls::ask(prepared.gateway_port, prepared.authority(), stop.clone());
    let tls = tokio::spawn(tls);
    let page = tokio::spawn(gateway::watch(gateway.ports.page, stop.clone()));
    let mut attackers = start_attackers(options, system, gateway.ports, hostile, &stop);
    let run = measure(system, load, &client, &acks, options.rate, 1_000, options.seconds).await?;
    stop.cancel();
    let (seen, tls, page) = (services.await??, tls.await??, page.await??);
    let mut sent = SentCounts::new();
    while let Some(counts) = attackers.join_next().await {
        for (kind, n) in counts?? {
            *sent.entry(kind).or_default() += n;
        }
    }
    // Long enough for tasks that work off what arrived.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut servers = system.prepared.ports.clone();
    servers.insert("gateway", gateway.ports.page);
    let panics = watch::task_panics(&servers).await.ok();
    let counted = system.count_rows()?;
    Ok(Outcome {
        run,
        stored: counted.points - before.points,
        distinct: counted.points == counted.distinct,
        seen,
        tls,
        gateway: page,
        panics,
        simcorp_runs: system.simcorp.is_running(),
        agent_runs: gateway.is_running(),
        sent,
    })
}

/// Starts everything hostile, until `stop`.
fn start_attackers(
    options: &Options,
    system: &SystemUnderTest,
    gateway: GatewayPorts,
    (hostile, keys): (HostileGateway, HostileKeys),
    stop: &CancellationToken,
) -> JoinSet<anyhow::Result<SentCounts>> {
    let (only, stop) = (|| options.only.clone(), || stop.clone());
    let (ports, gateway_port) = (&system.prepared.ports, system.prepared.gateway_port);
    let mut attackers = JoinSet::new();
    attackers.spawn(frames::attack(hostile, system.broker_port(), only(), stop()));
    attackers.spawn(requests::flood(ports.clone(), keys, only(), stop()));
    let holds = requests::holds(ports);
    attackers.spawn(connections::hold(requests::HOLDS_FROM, holds, only(), stop()));
    attackers.spawn(tls::attack(gateway_port, only(), stop()));
    attackers.spawn(lan_ports::attack(gateway, only(), stop()));
    let holds = lan_ports::holds(gateway);
    attackers.spawn(connections::hold(lan_ports::HOLDS_FROM, holds, only(), stop()));
    attackers
}

/// Describes what the figures depend on: the computer's cores, and how the programs were built, by
/// the folder that Cargo named after the profile.
fn conditions(options: &Options, agent: &Path) -> anyhow::Result<Value> {
    let profile = |program: &Path| {
        let folder = program.parent().and_then(Path::file_name)?;
        Some(folder.to_string_lossy().into_owned())
    };
    Ok(json!({
        "cores": std::thread::available_parallelism()?.get(),
        "simcorp_profile": profile(&binary_path("simcorp")?),
        "agent_profile": profile(agent),
        "database": format!("{:?}", options.database).to_lowercase(),
        "broker": format!("{:?}", options.broker).to_lowercase(),
    }))
}

/// Creates the fleet's authority, registers both tenants, and sets what makes the control plane ask for credentials.
fn admit(
    system: &mut PreparedSystem,
    load: &LoadGenerator,
    gateway: &HostileGateway,
) -> anyhow::Result<HostileKeys> {
    system.create_authority()?;
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

/// Returns the last lines of a log, each cut off where it is very long.
fn last_lines(log: &str) -> String {
    let lines: Vec<String> = log.lines().map(|line| line.chars().take(500).collect()).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(stored: i64, tls_ms: f64) -> Outcome {
        Outcome {
            run: RunResult {
                points_per_s: 10.0,
                sent: 100,
                acked: 100,
                ack_ms: vec![3.0],
                refused: 0,
                frames_behind: 0,
                cpu_s: 1.0,
            },
            stored,
            distinct: true,
            seen: Seen::default(),
            tls: AnswerTimes { ms: vec![tls_ms], ..AnswerTimes::default() },
            gateway: GatewaySeen::default(),
            panics: Some(0.0),
            simcorp_runs: true,
            agent_runs: true,
            sent: SentCounts::from([("noise", 3)]),
        }
    }

    #[test]
    fn each_bound_is_broken_by_what_it_bounds() {
        // This gateway was never seen.
        let gateway = "gateway_samples_on";
        assert_eq!(outcome(100, 20.0).broken(), [gateway]);
        assert_eq!(outcome(99, 20.0).broken(), [gateway, "nothing_lost"]);
        assert_eq!(outcome(100, 1_000.0).broken(), [gateway, "tls_answers"]);
        let silent = Outcome { panics: None, ..outcome(100, 20.0) };
        assert_eq!(silent.broken(), [gateway, "no_task_died"]);
        let ended = Outcome { simcorp_runs: false, ..outcome(100, 20.0) };
        assert_eq!(ended.broken(), [gateway, "no_task_died"]);
        let mut slow = outcome(100, 20.0);
        slow.seen.health_ms.push(100.0);
        assert_eq!(slow.broken(), [gateway, "health_within_100_ms"]);
    }
}
