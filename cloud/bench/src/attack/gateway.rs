//! A gateway beside the attack: the real agent with an emulated Modbus machine and all its LAN
//! ports, and a person who looks at its page.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use emulator::{Emulator, Endpoint};
use reqwest::Client;
use serde_json::{Value, json};
use service::shutdown::CancellationToken;
use testbed::{Process, free_port, wait_for};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::watch::AnswerTimes;

/// The profile of the machine: the agent reads it over Modbus TCP and serves its values to Artisan.
const PROFILE: &str = "toper.tkm-sx.plc";
const PERIOD_MS: u32 = 500;
/// The share of the expected samples that the agent must take.
const SAMPLED_SHARE: f64 = 0.95;
/// The longest time that may pass between two samples: four periods.
const GAP_MS: f64 = 2_000.0;
/// How fast the page must answer.
const PAGE_MS: f64 = 1_000.0;
/// The address of the person at the gateway.
const WATCHES_FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 3, 200));

/// The ports of a gateway.
#[derive(Clone, Copy)]
pub struct GatewayPorts {
    pub page: u16,
    pub modbus: u16,
    pub websocket: u16,
}

/// An agent and its machine, which stop when this is dropped.
pub struct AttackedGateway {
    pub ports: GatewayPorts,
    process: Process,
    _machine: Emulator,
    _folder: tempfile::TempDir,
}

impl AttackedGateway {
    /// Starts the machine and the program `agent`, and waits for the first sample.
    pub async fn start(agent: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let shipped = firmware_profiles::shipped(PROFILE).context("the profile is not shipped")?;
        let profile = firmware_profiles::check(shipped.text)?.profile;
        let (any, step) = (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), u64::from(PERIOD_MS));
        let machine = Emulator::start(&profile, any, step, Duration::from_millis(step)).await?;
        let Endpoint::Tcp(address) = machine.endpoint() else { bail!("{PROFILE} has no TCP port") };
        let ports =
            GatewayPorts { page: free_port()?, modbus: free_port()?, websocket: free_port()? };
        let config = folder.path().join("edge.toml");
        std::fs::write(&config, configuration(folder.path(), address.port(), ports))?;
        let config = config.display().to_string();
        let key = Command::new(agent).args(["--config", &config, "key", "create"]).output()?;
        ensure!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
        let log = folder.path().join("agent.log");
        let arguments = ["--config".to_owned(), config, "run".to_owned()];
        let mut process = Process::new(agent.to_owned(), arguments, log);
        process.start()?;
        let gateway = Self { ports, process, _machine: machine, _folder: folder };
        gateway.first_sample().await.with_context(|| gateway.log())?;
        Ok(gateway)
    }

    async fn first_sample(&self) -> anyhow::Result<()> {
        let client = client()?;
        let url = format!("http://127.0.0.1:{}/status", self.ports.page);
        let samples = || async {
            let answer = client.get(&url).send().await.ok()?.text().await.ok()?;
            count_samples(&answer)
        };
        let limit = Duration::from_secs(10);
        wait_for("the first sample", limit, || async { samples().await > Some(0) }).await
    }

    /// Returns whether the agent has run without a restart since its start: nothing restarts it.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Returns the agent's configuration: a Modbus machine at the port `machine`, Artisan's two ports,
/// and no cloud.
fn configuration(folder: &Path, machine: u16, ports: GatewayPorts) -> String {
    let at = folder.display();
    let GatewayPorts { page, modbus, websocket } = ports;
    format!(
        "[identity]\norg = \"org\"\nsite = \"bench\"\ndevice = \"attacked\"\n\
         key_file = \"{at}/key.pem\"\n\
         [machine]\nid = \"attacked\"\ndriver = \"profile\"\n\
         [machine.profile]\nid = \"{PROFILE}\"\nhost = \"127.0.0.1\"\nport = {machine}\n\
         [sampling]\nperiod_ms = {PERIOD_MS}\nframe_ms = 1000\n\
         [journal]\nfolder = \"{at}/journal\"\n\
         [artisan]\nmodbus = \"127.0.0.1:{modbus}\"\nwebsocket = \"127.0.0.1:{websocket}\"\n\
         [local]\nlisten = \"127.0.0.1:{page}\"\n\
         [log]\nlevel = \"warn\"\n"
    )
}

/// Returns the number of samples in an answer of `/status`.
fn count_samples(answer: &str) -> Option<u64> {
    serde_json::from_str::<Value>(answer).ok()?["samples"].as_u64()
}

#[allow(clippy::disallowed_methods)] // one client of this program; its limits are set here
fn client() -> anyhow::Result<Client> {
    // A new connection each time, as a browser that is opened makes one.
    let client = Client::builder()
        .local_address(WATCHES_FROM)
        .timeout(Duration::from_secs(10))
        .pool_max_idle_per_host(0)
        .build()?;
    Ok(client)
}

/// A number of samples, and when it was read.
#[derive(Clone, Copy)]
struct SampleCount {
    /// The time since the start of the watch.
    after: Duration,
    samples: u64,
}

/// What the person at the gateway saw.
#[derive(Default)]
pub struct GatewaySeen {
    /// The answers of the page and its API.
    pub pages: AnswerTimes,
    /// The first and the newest number of samples.
    counts: Option<(SampleCount, SampleCount)>,
    gap_ms: f64,
}

impl GatewaySeen {
    fn add(&mut self, count: SampleCount) {
        let first = self.counts.map_or(count, |(first, _)| first);
        self.counts = Some((first, count));
    }

    /// Returns the samples that were taken, and those that were expected.
    fn samples(&self) -> (u64, f64) {
        self.counts.map_or((0, 0.0), |(first, newest)| {
            let passed = newest.after.saturating_sub(first.after);
            let expected = passed.as_secs_f64() * 1000.0 / f64::from(PERIOD_MS);
            (newest.samples.saturating_sub(first.samples), expected)
        })
    }

    /// Returns whether the agent sampled without a gap, and its page answered in time throughout.
    pub fn samples_on(&self) -> bool {
        let (taken, expected) = self.samples();
        // The first or the last sample of the time may lie just outside of it.
        expected >= 1.0
            && (taken + 1) as f64 >= expected * SAMPLED_SHARE
            && self.gap_ms <= GAP_MS
            && self.pages.all_within(PAGE_MS)
    }

    pub fn report(&self) -> Value {
        let (taken, expected) = self.samples();
        json!({
            "samples": taken,
            "samples_expected": expected.round(),
            "longest_gap_ms": self.gap_ms,
            "page": self.pages.report(),
        })
    }
}

/// Asks for the page and for the number of samples once a second until `stop`, and at last for the
/// times of all samples.
pub async fn watch(port: u16, stop: CancellationToken) -> anyhow::Result<GatewaySeen> {
    let client = client()?;
    let get = |path: &str| client.get(format!("http://127.0.0.1:{port}{path}"));
    let mut seen = GatewaySeen::default();
    let began = Instant::now();
    let mut every = interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = every.tick() => {}
        }
        seen.pages.ask(get("/")).await;
        let answer = seen.pages.ask(get("/status")).await;
        if let Some(samples) = answer.as_deref().and_then(count_samples) {
            seen.add(SampleCount { after: began.elapsed(), samples });
        }
    }
    if let Some(points) = seen.pages.ask(get("/points")).await {
        let points: Vec<Value> = serde_json::from_str(&points)?;
        seen.gap_ms = longest_gap_ms(points.iter().filter_map(|point| point["t"].as_f64()));
    }
    Ok(seen)
}

/// Returns the longest time between two of these times, in ms.
fn longest_gap_ms(times_ms: impl Iterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times_ms.collect();
    times.sort_by(f64::total_cmp);
    times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is seen of an agent that took `samples` in 100 s: 200 are expected.
    fn seen(samples: u64, gap_ms: f64, page_ms: f64) -> GatewaySeen {
        let pages = AnswerTimes { ms: vec![2.0, page_ms], ..AnswerTimes::default() };
        let mut seen = GatewaySeen { pages, gap_ms, ..GatewaySeen::default() };
        for (after_s, samples) in [(10, 7), (60, 100), (110, 7 + samples)] {
            seen.add(SampleCount { after: Duration::from_secs(after_s), samples });
        }
        seen
    }

    #[test]
    fn an_agent_samples_on_with_most_samples_no_gap_and_a_page_that_answers() {
        assert_eq!(seen(200, 500.0, 3.0).samples(), (200, 200.0));
        assert!(seen(200, 500.0, 3.0).samples_on());
        assert!(seen(189, 2_000.0, 999.0).samples_on());
        assert!(!seen(188, 500.0, 3.0).samples_on(), "too few samples");
        assert!(!seen(200, 2_001.0, 3.0).samples_on(), "a gap");
        assert!(!seen(200, 500.0, 1_000.0).samples_on(), "a slow page");
        assert!(!GatewaySeen::default().samples_on(), "an agent that never answered");
        let mut once = seen(200, 500.0, 3.0);
        once.pages.unanswered = 1;
        assert!(!once.samples_on(), "one request without an answer");
    }

    #[test]
    fn the_longest_gap_is_found_whatever_the_order_of_the_points() {
        // An event may have the time of an earlier sample.
        assert_eq!(json!(longest_gap_ms([0.0, 500.0, 1_700.0, 600.0].into_iter())), 1_100.0);
        assert_eq!(json!(longest_gap_ms([3.0].into_iter())), 0.0);
    }

    #[test]
    fn the_number_of_samples_is_read_from_the_status() {
        assert_eq!(count_samples(r#"{"machine":"org/bench/attacked","samples":42}"#), Some(42));
        assert_eq!(count_samples("{}"), None);
        assert_eq!(count_samples("<html>"), None);
    }
}
