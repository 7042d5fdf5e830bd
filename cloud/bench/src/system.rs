//! The system under test: a database, a broker and one process of `simcorp`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testbed::{
    LISTENERS, Mosquitto, PEERS, Postgres, Process, binary_path, free_port, wait_for_port,
};

use crate::load::ORG;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Database {
    Postgres,
    Sqlite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Broker {
    Mosquitto,
    Embedded,
}

/// A database, a broker and settings for `simcorp`, which does not run yet.
pub struct PreparedSystem {
    pub folder: tempfile::TempDir,
    database: Option<Postgres>,
    broker: Option<Mosquitto>,
    broker_port: u16,
    /// The port of the fleet's TLS listener for gateways.
    pub gateway_port: u16,
    /// The port of each listener; only those of the started services answer.
    pub ports: BTreeMap<&'static str, u16>,
    settings: Vec<String>,
}

/// A database, a broker and `simcorp`, which stop when this is dropped.
pub struct SystemUnderTest {
    pub prepared: PreparedSystem,
    pub simcorp: Process,
}

/// Rows counted in the database, independently of the acknowledgements.
#[derive(Debug, Clone, Copy)]
pub struct RowCounts {
    pub points: i64,
    pub distinct: i64,
    pub bytes: i64,
}

impl PreparedSystem {
    /// Starts the database and the broker, and chooses the ports.
    pub async fn start(database: Database, broker: Broker) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let database = match database {
            Database::Postgres => Some(Postgres::start().await?),
            Database::Sqlite => None,
        };
        let broker = match broker {
            Broker::Mosquitto => Some(Mosquitto::start().await?),
            Broker::Embedded => None,
        };
        let (embedded, embedded_v4, gateway_port) = (free_port()?, free_port()?, free_port()?);
        let mut ports = BTreeMap::new();
        for (name, _) in LISTENERS {
            ports.insert(name, free_port()?);
        }
        let url = database.as_ref().map_or_else(
            || format!("sqlite:{}", folder.path().join("bench.db").display()),
            Postgres::url,
        );
        let settings = [
            format!("database.url={url}"),
            format!("database.data={}", folder.path().display()),
            "database.migrate=true".to_owned(),
            format!("broker.listen=127.0.0.1:{embedded}"),
            format!("broker.listen_v4=127.0.0.1:{embedded_v4}"),
            format!("fleet.gateway_listen=127.0.0.1:{gateway_port}"),
            format!("fleet.gateway_url=https://localhost:{gateway_port}"),
            "log.level=warn,rumqttd=error".to_owned(),
        ];
        let broker_port = broker.as_ref().map_or(embedded, |broker| broker.port);
        let mut system = Self {
            folder,
            database,
            broker,
            broker_port,
            gateway_port,
            ports,
            settings: Vec::new(),
        };
        for setting in &settings {
            system.set(setting);
        }
        for (name, field) in LISTENERS {
            system.set(&format!("{field}=127.0.0.1:{}", system.ports[name]));
        }
        for (field, name) in PEERS {
            system.set(&format!("{field}=http://127.0.0.1:{}", system.ports[name]));
        }
        if system.broker.is_some() {
            system.set("broker.embedded=false");
            system.set("mqtt.host=127.0.0.1");
            system.set(&format!("mqtt.port={broker_port}"));
        }
        Ok(system)
    }

    /// Adds a setting, as `--set` has it.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(format!("--set={setting}"));
    }

    /// Runs an operator's command of `simcorp` with the settings of this system.
    pub fn operate(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let program = binary_path("simcorp")?;
        let done = Command::new(program).args(arguments).args(&self.settings).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?.trim().to_owned())
    }

    /// Registers a gateway by its description, as `simcorp device add` reads it.
    pub fn register(&self, org: &str, description: &str) -> anyhow::Result<()> {
        let file = self.folder.path().join("device.json");
        std::fs::write(&file, description)?;
        self.operate(&["device", "add", &file.display().to_string(), "--org", org]).map(drop)
    }

    /// Creates the authority for gateways, without which the fleet has no TLS listener.
    pub fn create_authority(&self) -> anyhow::Result<()> {
        self.operate(&["authority", "create"]).map(drop)
    }

    /// Returns the path of the authority's certificate (PEM).
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Starts `services`; none: all of them.
    pub async fn launch(self, services: &[&str]) -> anyhow::Result<SystemUnderTest> {
        let mut arguments = vec!["serve".to_owned()];
        arguments.extend(services.iter().map(ToString::to_string));
        arguments.extend(self.settings.iter().cloned());
        let log = self.folder.path().join("simcorp.log");
        let mut simcorp = Process::new(binary_path("simcorp")?, arguments, log);
        simcorp.start()?;
        let port = self.ports["ingestion"];
        wait_for_port(port).await.with_context(|| simcorp.log())?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(SystemUnderTest { prepared: self, simcorp })
    }
}

impl SystemUnderTest {
    /// Returns the port of the broker.
    pub const fn broker_port(&self) -> u16 {
        self.prepared.broker_port
    }

    /// Returns the PostgreSQL server, unless SQLite is measured.
    pub const fn database(&self) -> Option<&Postgres> {
        self.prepared.database.as_ref()
    }

    /// Counts the rows of the organisation of the load.
    pub fn count_rows(&self) -> anyhow::Result<RowCounts> {
        let points = format!("SELECT COALESCE(SUM(samples), 0) FROM frames WHERE org_id = '{ORG}'");
        let distinct = format!(
            "SELECT COALESCE(SUM(samples), 0) FROM \
             (SELECT DISTINCT chain_no, number, samples FROM frames WHERE org_id = '{ORG}') AS d"
        );
        if let Some(database) = self.database() {
            let bytes = database.query_number(
                "SELECT COALESCE(SUM(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits \
                 WHERE inhparent = 'frames'::regclass",
            )?;
            return Ok(RowCounts {
                points: database.query_number(&points)?,
                distinct: database.query_number(&distinct)?,
                bytes,
            });
        }
        let path = self.prepared.folder.path().join("bench.db");
        let db = rusqlite::Connection::open(&path)?;
        let ask = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let bytes = i64::try_from(std::fs::metadata(&path)?.len())?;
        Ok(RowCounts { points: ask(&points)?, distinct: ask(&distinct)?, bytes })
    }
}
