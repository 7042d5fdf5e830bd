//! Starts whole systems of real processes for tests: simcorp, agents, Mosquitto, PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testbed::token::{PIN, Pkcs11Token};
use testbed::{
    LISTENERS, Mosquitto, Postgres, Process, binary_path, free_port, free_ports, port_settings,
    wait_for, wait_for_port,
};

pub const PATIENCE: Duration = Duration::from_mins(1);

/// A control plane on PostgreSQL and Mosquitto.
pub struct Cloud {
    pub folder: tempfile::TempDir,
    pub broker: Mosquitto,
    pub database: Postgres,
    pub simcorp: Process,
    pub port: u16,
    settings: Vec<String>,
}

impl Cloud {
    pub async fn start() -> anyhow::Result<Self> {
        Self::with(&[]).await
    }

    pub async fn with(extra: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (broker, database) = (Mosquitto::start().await?, Postgres::start().await?);
        let port = free_port()?;
        let mut settings = vec![
            format!("database.url={}", database.url()),
            "database.migrate=true".to_owned(),
            "mqtt.host=127.0.0.1".to_owned(),
            format!("mqtt.port={}", broker.port),
            format!("ingestion.listen=127.0.0.1:{port}"),
        ];
        settings.extend(extra.iter().map(ToString::to_string));
        let mut simcorp = serve(&["ingestion"], &settings, folder.path().join("simcorp.log"))?;
        simcorp.start()?;
        let cloud = Self { folder, broker, database, simcorp, port, settings };
        cloud.ready().await?;
        Ok(cloud)
    }

    /// Waits until ingestion answers: it opens its port before the database is ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        wait_until_healthy("ingestion", self.port, &self.simcorp, PATIENCE).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let answer = client().get(self.url(path)).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    pub async fn metric(&self, line: &str) -> f64 {
        let Ok(answer) = client().get(self.url("/metrics")).send().await else { return 0.0 };
        let text = answer.text().await.unwrap_or_default();
        let found = text.lines().find(|l| l.starts_with(line) && !l.starts_with('#'));
        found.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// Runs an operator's command.
    pub fn operate(&self, arguments: &[&str]) -> anyhow::Result<String> {
        operate(arguments, &self.settings)
    }

    /// Creates an agent that is registered at this cloud.
    pub fn agent(&self, machine: &str, driver: &str) -> anyhow::Result<Agent> {
        let uplink = format!("host = \"127.0.0.1\"\nport = {}", self.broker.port);
        let agent = Agent::new(machine, driver, &uplink)?;
        let file = agent.folder.path().join("device.json");
        std::fs::write(&file, agent.command(&["key", "create"])?)?;
        self.operate(&["device", "add", &file.display().to_string()])?;
        Ok(agent)
    }
}

/// A gateway: its folder, its configuration, its process.
pub struct Agent {
    pub folder: tempfile::TempDir,
    pub config: PathBuf,
    pub process: Process,
    pub port: u16,
}

impl Agent {
    pub fn new(machine: &str, driver: &str, uplink: &str) -> anyhow::Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let at = folder.path().display();
        let text = format!(
            "[identity]\norg = \"org\"\nsite = \"leipzig\"\ndevice = \"gw-{machine}\"\n\
             key_file = \"{at}/key.pem\"\n[journal]\nfolder = \"{at}/journal\"\n\
             [uplink]\n{uplink}\n[local]\nlisten = \"127.0.0.1:{port}\"\n\
             [machine]\nid = \"{machine}\"\n{driver}\n"
        );
        let config = folder.path().join("edge.toml");
        std::fs::write(&config, text)?;
        let arguments = ["--config".to_owned(), config.display().to_string(), "run".to_owned()];
        let log = folder.path().join("agent.log");
        let process = Process::new(binary_path("simcorp-edge")?, arguments, log);
        Ok(Self { folder, config, process, port })
    }

    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary_path("simcorp-edge")?);
        let output = command.arg("--config").arg(&self.config).args(arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.process.start()?;
        wait_for_port(self.port).await.with_context(|| self.process.log())
    }

    pub async fn status(&self) -> anyhow::Result<serde_json::Value> {
        let url = format!("http://127.0.0.1:{}/status", self.port);
        Ok(client().get(url).send().await?.json().await?)
    }

    /// Returns (number, samples) of every frame in the journal. Call it only while the agent is
    /// stopped.
    pub fn journalled(&self) -> anyhow::Result<Vec<(i64, i64)>> {
        let db = rusqlite::Connection::open(self.journal().join("journal.db"))?;
        let mut rows = db.prepare("SELECT number, samples FROM frames ORDER BY number")?;
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }
}

#[allow(clippy::disallowed_methods)] // each test has its own time limit
pub fn client() -> reqwest::Client {
    service::tls::install_crypto_provider();
    reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap()
}

/// Runs an operator's command of `simcorp` with these settings; returns its output.
pub fn operate(arguments: &[&str], settings: &[String]) -> anyhow::Result<String> {
    let mut command = Command::new(binary_path("simcorp")?);
    command.args(arguments).args(settings.iter().map(|setting| format!("--set={setting}")));
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Creates the process `simcorp serve` of `services` (an empty list: all); does not start it.
pub fn serve(services: &[&str], settings: &[String], log: PathBuf) -> anyhow::Result<Process> {
    let mut arguments = vec!["serve".to_owned()];
    arguments.extend(services.iter().map(ToString::to_string));
    arguments.extend(settings.iter().map(|setting| format!("--set={setting}")));
    Ok(Process::new(binary_path("simcorp")?, arguments, log))
}

/// Waits until a service is healthy: it opens its port before the database is ready. An error has
/// the log of `process`.
pub async fn wait_until_healthy(
    service: &str,
    port: u16,
    process: &Process,
    limit: Duration,
) -> anyhow::Result<()> {
    let health = format!("http://127.0.0.1:{port}/health");
    let alive =
        || async { client().get(&health).send().await.is_ok_and(|a| a.status().is_success()) };
    wait_for(service, limit, alive).await.with_context(|| process.log())
}

/// Creates a signer in `folder` for the device of a site, with `more` settings in `[key]`; does not
/// start it.
pub fn signer(
    folder: &Path,
    token: &Pkcs11Token,
    (site, device): (&str, &str),
    more: &str,
) -> anyhow::Result<Process> {
    std::fs::write(folder.join("pin"), PIN)?;
    let at = folder.display();
    let config = format!(
        "[token]\nmodule = \"{}\"\nlabel = \"{}\"\npin = \"file:{at}/pin\"\n\
         [key]\nsite = \"{site}\"\ndevice = \"{device}\"\n{more}\n\
         [socket]\npath = \"{at}/signer.sock\"\n",
        token.module.display(),
        token.label,
    );
    std::fs::write(folder.join("signer.toml"), config)?;
    let arguments = ["-c".to_owned(), folder.join("signer.toml").display().to_string()];
    let signer = Process::new(binary_path("simcorp-signer")?, arguments, folder.join("signer.log"));
    Ok(token.environment.iter().fold(signer, |signer, (name, value)| signer.env(name, value)))
}

/// Creates the key that a signer's configuration in `folder` names.
pub fn create_key(folder: &Path, token: &Pkcs11Token) -> anyhow::Result<()> {
    let environment = token.environment.iter().map(|(name, value)| (name, value));
    let output = Command::new(binary_path("simcorp-signer")?)
        .arg("-c")
        .arg(folder.join("signer.toml"))
        .arg("create")
        .envs(environment)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Returns the driver settings of a simulated machine that samples fast and roasts at `speed`.
pub fn simulated(speed: u32) -> String {
    format!(
        "driver = \"simulated\"\n[machine.simulated]\ncharge_after_s = 2\nspeed = {speed}\n\
         [sampling]\nperiod_ms = 20\nframe_ms = 100\n"
    )
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// One process with some services, in development auth.
pub struct Stack {
    pub process: Process,
    /// The port of the embedded broker, unless it is off.
    pub broker: u16,
    ports: std::collections::BTreeMap<&'static str, u16>,
    served: Vec<&'static str>,
    settings: Vec<String>,
    pub folder: tempfile::TempDir,
}

impl Stack {
    /// Starts `services` (an empty list: all) with `settings`; without a database it uses SQLite in
    /// a folder.
    pub async fn start(services: &[&'static str], settings: &[String]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = free_ports(LISTENERS.map(|(name, _)| name))?;
        let (broker, gateways) = (free_port()?, free_port()?);
        let mut all = vec![
            format!("fleet.gateway_listen=127.0.0.1:{gateways}"),
            format!("fleet.gateway_url=https://localhost:{gateways}"),
            format!("database.data={}", folder.path().display()),
            format!("broker.listen=127.0.0.1:{broker}"),
            format!("broker.listen_v4=127.0.0.1:{}", free_port()?),
            "reports.poll_ms=200".to_owned(),
            "eval.poll_ms=200".to_owned(),
        ];
        all.extend(port_settings(&ports));
        all.extend_from_slice(settings);
        let process = serve(services, &all, folder.path().join("simcorp.log"))?;
        let served: Vec<&str> = LISTENERS
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| {
                let service =
                    if matches!(*name, "twin" | "publisher") { "simulation" } else { name };
                services.is_empty() || services.contains(&service)
            })
            .collect();
        let mut stack = Self { process, broker, ports, served, settings: all, folder };
        stack.start_again().await?;
        Ok(stack)
    }

    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.process.start()?;
        for service in &self.served {
            wait_until_healthy(service, self.ports[service], &self.process, PATIENCE).await?;
        }
        Ok(())
    }

    pub fn url(&self, service: &str, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[service])
    }

    pub async fn get(&self, service: &str, path: &str) -> anyhow::Result<serde_json::Value> {
        let answer = client().get(self.url(service, path)).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{service} {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Sends a request with a body; returns status and body.
    pub async fn send(
        &self,
        method: reqwest::Method,
        (service, path): (&str, &str),
        body: &serde_json::Value,
    ) -> anyhow::Result<(u16, serde_json::Value)> {
        let request = client().request(method, self.url(service, path));
        let answer = request.json(body).send().await?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    pub async fn post(
        &self,
        at: (&str, &str),
        body: &serde_json::Value,
    ) -> anyhow::Result<(u16, serde_json::Value)> {
        self.send(reqwest::Method::POST, at, body).await
    }

    /// Runs an operator's command.
    pub fn operate(&self, arguments: &[&str]) -> anyhow::Result<String> {
        operate(arguments, &self.settings)
    }
}
