//! `simcorp-bench edge`: the agent as it is shipped, beside a simulated machine at 10 Hz.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testbed::{Mosquitto, Postgres, Process, answers, binary, free_port, wait_for};

use crate::stats;

#[derive(clap::Args)]
pub struct Options {
    /// The agent to measure; default: the one beside this program
    #[arg(long)]
    agent: Option<PathBuf>,
    /// How long to measure memory, jitter and flash
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Seconds of backlog, at 50 Hz, to drain
    #[arg(long, default_value_t = 20)]
    backlog_seconds: u64,
}

#[allow(clippy::disallowed_methods)] // measuring is reading the clock
pub async fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!((5..=3600).contains(&options.seconds), "--seconds: not between 5 and 3600");
    let agent = options.agent.clone().map_or_else(|| binary("simcorp-edge"), Ok)?;
    let folder = tempfile::tempdir()?;
    let broker = Mosquitto::start().await?;
    let database = Postgres::start().await?;
    let cloud_port = free_port()?;
    let settings = [
        format!("--set=database.url={}", database.url()),
        "--set=database.migrate=true".to_owned(),
        "--set=mqtt.host=127.0.0.1".to_owned(),
        format!("--set=mqtt.port={}", broker.port),
        format!("--set=ingestion.listen=127.0.0.1:{cloud_port}"),
    ];
    let mut arguments = vec!["serve".to_owned(), "ingestion".to_owned()];
    arguments.extend(settings.iter().cloned());
    let simcorp = binary("simcorp")?;
    let mut cloud = Process::new(simcorp.clone(), arguments, folder.path().join("simcorp.log"));
    cloud.start()?;
    answers(cloud_port).await.with_context(|| cloud.log())?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let steady = Gateway::new(folder.path(), &agent, "steady", 100, broker.port)?;
    steady.register(&simcorp, &settings)?;
    let mut process = steady.process();
    let start = Instant::now();
    process.start()?;
    steady.first_sample().await?;
    let first_ms = start.elapsed().as_secs_f64() * 1000.0;
    let pid = process.pid().context("the agent has ended")?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (written, samples) = (stats::written_bytes(pid), steady.status().await?);
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let now = steady.status().await?;
    let count = |status: &Value| status["samples"].as_f64().unwrap_or(0.0);
    let sampled = (count(&now) - count(&samples)).max(1.0);
    let flash = (stats::written_bytes(pid) - written) as f64 / sampled;
    let journal = now["journal"]["bytes"].as_f64().unwrap_or(0.0) / count(&now).max(1.0);
    let (rss, pss) = (stats::memory_mb(pid, "VmRSS"), stats::memory_mb(pid, "Pss"));
    let jitter = steady.jitter_ms().await?;
    process.stop(Duration::from_secs(10)).await?;

    let drain = drain(options, folder.path(), &agent, &simcorp, &settings, broker).await?;
    let size = std::fs::metadata(&agent)?.len() as f64 / 1e6;
    Ok(json!({
        "binary_mb": (size * 100.0).round() / 100.0,
        "rss_mb": rss,
        "pss_mb": pss,
        "start_to_first_sample_ms": first_ms.round(),
        "jitter_ms": jitter,
        "drain_samples_per_s": drain.round(),
        "flash_bytes_per_sample": flash.round(),
        "journal_bytes_per_sample": journal.round(),
    }))
}

/// Fills a backlog while the broker is gone, and measures how fast it is delivered.
#[allow(clippy::disallowed_methods)] // measuring is reading the clock
async fn drain(
    options: &Options,
    folder: &Path,
    agent: &Path,
    simcorp: &Path,
    settings: &[String],
    mut broker: Mosquitto,
) -> anyhow::Result<f64> {
    let gateway = Gateway::new(folder, agent, "drain", 20, broker.port)?;
    gateway.register(simcorp, settings)?;
    broker.kill();
    let mut process = gateway.process();
    process.start()?;
    tokio::time::sleep(Duration::from_secs(options.backlog_seconds)).await;
    process.stop(Duration::from_secs(10)).await?;
    let db = rusqlite::Connection::open(gateway.folder.join("journal/journal.db"))?;
    let samples: f64 =
        db.query_row("SELECT SUM(samples) FROM frames WHERE state = 0", [], |row| row.get(0))?;
    drop(db);
    broker.start_again().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    process.start()?;
    wait_for("a connection", Duration::from_secs(30), || async {
        gateway.status().await.is_ok_and(|s| s["uplinkConnected"] == true)
    })
    .await?;
    let start = Instant::now();
    wait_for("the drain", Duration::from_mins(2), || async {
        gateway.unsent().await.is_ok_and(|unsent| unsent < 20.0)
    })
    .await?;
    let took = start.elapsed().as_secs_f64();
    process.stop(Duration::from_secs(10)).await?;
    Ok(samples / took.max(0.02))
}

struct Gateway {
    folder: PathBuf,
    agent: PathBuf,
    port: u16,
}

impl Gateway {
    fn new(
        folder: &Path,
        agent: &Path,
        name: &str,
        period_ms: u32,
        broker: u16,
    ) -> anyhow::Result<Self> {
        let (folder, port) = (folder.join(name), free_port()?);
        std::fs::create_dir_all(&folder)?;
        let at = folder.display();
        std::fs::write(
            folder.join("edge.toml"),
            format!(
                "[identity]\norg = \"org\"\nsite = \"bench\"\ndevice = \"{name}\"\n\
                 key_file = \"{at}/key.pem\"\n[machine]\nid = \"{name}\"\n\
                 [sampling]\nperiod_ms = {period_ms}\n[journal]\nfolder = \"{at}/journal\"\n\
                 [uplink]\nhost = \"127.0.0.1\"\nport = {broker}\n\
                 [local]\nlisten = \"127.0.0.1:{port}\"\n[log]\nlevel = \"warn\"\n"
            ),
        )?;
        Ok(Self { folder, agent: agent.to_owned(), port })
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
        Ok(answer.split_once("\r\n\r\n").context("an answer that is cut off")?.1.to_owned())
    }

    async fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.get("/status").await?)?)
    }

    /// From the agent's own gauge, which follows each frame.
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

    /// How far samples lie from their period, from the samples' own times.
    async fn jitter_ms(&self) -> anyhow::Result<Value> {
        let points: Vec<Value> = serde_json::from_str(&self.get("/points").await?)?;
        let times: Vec<f64> = points.iter().filter_map(|p| p["t"].as_f64()).collect();
        let deviations = times.windows(2).map(|pair| (pair[1] - pair[0] - 100.0).abs());
        let mut all = stats::percentiles(deviations.collect());
        if let Some(fields) = all.as_object_mut() {
            fields.remove("p95");
        }
        Ok(all)
    }
}
