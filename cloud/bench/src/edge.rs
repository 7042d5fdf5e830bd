//! `simcorp-bench edge`: measures the agent as released, sampling a simulated machine at 10 Hz.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testbed::{
    Mosquitto, Postgres, Process, TestCa, binary_path, free_port, wait_for, wait_for_port,
};

use crate::stats;

#[derive(clap::Args)]
pub struct Options {
    /// The agent program to measure; default: the one beside this program
    #[arg(long)]
    agent: Option<PathBuf>,
    /// How long to measure memory, jitter and flash
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Samples in the backlog to drain; each takes two milliseconds to create
    #[arg(long, default_value_t = 10_000)]
    backlog: u64,
}

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
pub async fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!((5..=3600).contains(&options.seconds), "--seconds: not between 5 and 3600");
    ensure!((1..=1_000_000).contains(&options.backlog), "--backlog: not between 1 and 1000000");
    let agent = options.agent.clone().map_or_else(|| binary_path("simcorp-edge"), Ok)?;
    let folder = tempfile::tempdir()?;
    let authority = TestCa::new()?;
    let broker = Mosquitto::start_tls(&authority, "pattern readwrite #\n").await?;
    let database = Postgres::start().await?;
    let cloud_port = free_port()?;
    let own = authority.issue("bench")?;
    let ca = authority.certificate().display().to_string();
    let (certificate, key) = (own.certificate.display(), own.key.display());
    let settings = [
        format!("--set=database.url={}", database.url()),
        "--set=database.migrate=true".to_owned(),
        "--set=mqtt.host=localhost".to_owned(),
        format!("--set=mqtt.port={}", broker.port),
        format!("--set=mqtt.ca_file={ca}"),
        format!("--set=mqtt.cert_file={certificate}"),
        format!("--set=mqtt.key_file={key}"),
        format!("--set=ingestion.listen=127.0.0.1:{cloud_port}"),
    ];
    let uplink = format!(
        "host = \"localhost\"\nport = {}\nca_file = \"{ca}\"\ncert_file = \"{certificate}\"\n\
         key_file = \"{key}\"\n",
        broker.port
    );
    let mut arguments = vec!["serve".to_owned(), "ingestion".to_owned()];
    arguments.extend(settings.iter().cloned());
    let simcorp = binary_path("simcorp")?;
    let mut cloud = Process::new(simcorp.clone(), arguments, folder.path().join("simcorp.log"));
    cloud.start()?;
    wait_for_port(cloud_port).await.with_context(|| cloud.log())?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let steady = Gateway::new(folder.path(), &agent, "steady", &uplink)?;
    steady.sample_every(100)?;
    steady.register(&simcorp, &settings)?;
    let mut process = steady.process();
    let start = Instant::now();
    process.start()?;
    steady.first_sample().await?;
    let first_ms = start.elapsed().as_secs_f64() * 1000.0;
    let pid = process.pid().context("the agent has exited")?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (written, samples) = (stats::written_bytes(pid), steady.status().await?);
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let now = steady.status().await?;
    let count = |status: &Value| status["samples"].as_f64().unwrap_or(0.0);
    let sampled = (count(&now) - count(&samples)).max(1.0);
    let flash = (stats::written_bytes(pid) - written) as f64 / sampled;
    let journal = now["journal"]["bytes"].as_f64().unwrap_or(0.0) / count(&now).max(1.0);
    let (rss, pss) = (stats::memory_mb(pid, "VmRSS"), stats::memory_mb(pid, "Pss"));
    let jitter = steady.jitter_ms(0.0).await?;
    process.stop(Duration::from_secs(10)).await?;

    let backlogged = Gateway::new(folder.path(), &agent, "backlogged", &uplink)?;
    backlogged.register(&simcorp, &settings)?;
    let drain = drain(&backlogged, options.backlog, broker).await?;
    let size = std::fs::metadata(&agent)?.len() as f64 / 1e6;
    Ok(json!({
        "binary_mb": (size * 100.0).round() / 100.0,
        "rss_mb": rss,
        "pss_mb": pss,
        "start_to_first_sample_ms": first_ms.round(),
        "jitter_ms": jitter,
        "drain": drain,
        "flash_bytes_per_sample": flash.round(),
        "journal_bytes_per_sample": journal.round(),
    }))
}

/// Fills a backlog while the broker is stopped, then measures sampling at 10 Hz, first without the
/// broker and then while the backlog is delivered.
#[allow(clippy::disallowed_methods)] // a measurement reads the clock
async fn drain(gateway: &Gateway, backlog: u64, mut broker: Mosquitto) -> anyhow::Result<Value> {
    broker.kill();
    gateway.sample_every(2)?;
    let mut process = gateway.process();
    process.start()?;
    let limit = Duration::from_millis(backlog * 4) + Duration::from_secs(30);
    wait_for("the backlog", limit, || async {
        gateway.unsent().await.is_ok_and(|unsent| unsent >= backlog as f64)
    })
    .await?;
    process.stop(Duration::from_secs(10)).await?;

    gateway.sample_every(100)?;
    process.start()?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (samples, without) = (gateway.unsent().await?, gateway.jitter_ms(0.0).await?);
    let since = gateway.newest_ms().await?;
    broker.restart().await?;
    wait_for("the uplink is connected", Duration::from_secs(30), || async {
        gateway.status().await.is_ok_and(|s| s["uplinkConnected"] == true)
    })
    .await?;
    let start = Instant::now();
    wait_for("the backlog is sent", Duration::from_mins(5), || async {
        gateway.unsent().await.is_ok_and(|unsent| unsent < 20.0)
    })
    .await?;
    let took = start.elapsed().as_secs_f64();
    let pid = process.pid().context("the agent has exited")?;
    let result = json!({
        "backlog_samples": samples,
        "samples_per_s": (samples / took.max(0.02)).round(),
        "jitter_ms_without_broker": without,
        "jitter_ms": gateway.jitter_ms(since).await?,
        "rss_peak_mb": stats::memory_mb(pid, "VmHWM"),
    });
    process.stop(Duration::from_secs(10)).await?;
    Ok(result)
}

struct Gateway {
    folder: PathBuf,
    agent: PathBuf,
    port: u16,
    /// Its configuration without `[sampling]`.
    text: String,
}

impl Gateway {
    fn new(folder: &Path, agent: &Path, name: &str, uplink: &str) -> anyhow::Result<Self> {
        let (folder, port) = (folder.join(name), free_port()?);
        std::fs::create_dir_all(&folder)?;
        let at = folder.display();
        let text = format!(
            "[identity]\norg = \"org\"\nsite = \"bench\"\ndevice = \"{name}\"\n\
             key_file = \"{at}/key.pem\"\n[machine]\nid = \"{name}\"\n\
             [journal]\nfolder = \"{at}/journal\"\n[uplink]\n{uplink}\
             [local]\nlisten = \"127.0.0.1:{port}\"\n[log]\nlevel = \"warn\"\n"
        );
        let gateway = Self { folder, agent: agent.to_owned(), port, text };
        gateway.sample_every(1000)?;
        Ok(gateway)
    }

    /// Sets the sampling period. A frame holds ten samples, as at 10 Hz with the default of one
    /// frame per second.
    fn sample_every(&self, period_ms: u32) -> anyhow::Result<()> {
        let frame_ms = 10 * period_ms;
        let sampling = format!("[sampling]\nperiod_ms = {period_ms}\nframe_ms = {frame_ms}\n");
        Ok(std::fs::write(self.config(), format!("{}{sampling}", self.text))?)
    }

    fn config(&self) -> String {
        self.folder.join("edge.toml").display().to_string()
    }

    fn process(&self) -> Process {
        let arguments = ["--config".to_owned(), self.config(), "run".to_owned()];
        Process::new(self.agent.clone(), arguments, self.folder.join("agent.log"))
    }

    fn register(&self, simcorp: &Path, settings: &[String]) -> anyhow::Result<()> {
        let key = Command::new(&self.agent)
            .args(["--config", &self.config(), "key", "create"])
            .output()?;
        ensure!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
        let file = self.folder.join("device.json");
        std::fs::write(&file, key.stdout)?;
        let add =
            Command::new(simcorp).args(["device", "add"]).arg(&file).args(settings).output()?;
        ensure!(add.status.success(), "{}", String::from_utf8_lossy(&add.stderr));
        Ok(())
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.split_once("\r\n\r\n").context("the response is incomplete")?.1.to_owned())
    }

    async fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.get("/status").await?)?)
    }

    /// Reads the number of unsent samples from the agent's own gauge, which is updated with each
    /// frame.
    async fn unsent(&self) -> anyhow::Result<f64> {
        self.status().await?["journal"]["unsentSamples"].as_f64().context("no number")
    }

    async fn first_sample(&self) -> anyhow::Result<()> {
        let limit = Duration::from_secs(10);
        wait_for("the first sample", limit, || async {
            self.status().await.is_ok_and(|status| status["samples"].as_u64() > Some(0))
        })
        .await
    }

    async fn times_ms(&self) -> anyhow::Result<Vec<f64>> {
        let points: Vec<Value> = serde_json::from_str(&self.get("/points").await?)?;
        Ok(points.iter().filter_map(|point| point["t"].as_f64()).collect())
    }

    async fn newest_ms(&self) -> anyhow::Result<f64> {
        self.times_ms().await?.last().copied().context("the agent has no samples")
    }

    /// Returns how far the intervals between samples since then deviate from the period, computed
    /// from the samples' own times.
    async fn jitter_ms(&self, since: f64) -> anyhow::Result<Value> {
        let mut times = self.times_ms().await?;
        times.retain(|t| *t >= since);
        let deviations = times.windows(2).map(|pair| (pair[1] - pair[0] - 100.0).abs());
        let mut all = stats::percentiles(deviations.collect());
        if let Some(fields) = all.as_object_mut() {
            fields.remove("p95");
            fields.insert("samples".to_owned(), json!(times.len()));
        }
        Ok(all)
    }
}
