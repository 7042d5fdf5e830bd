//! Real servers for tests and benchmarks. They are started on free loopback ports with their data
//! in a temporary folder, can be killed and restarted at any time, and end with their parent
//! process. A [`FakeService`] takes the place of a service that the tested code calls.
//!
//! A test finds the files of the workspace from any current folder:
//!
//! ```rust
//! let root = testbed::workspace_root();
//! assert!(root.join("packaging/mosquitto/simcorp.conf").is_file());
//! ```

mod authority;
mod http;
mod postgres;
mod process;
mod services;
pub mod token;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

pub use authority::TestCa;
pub use http::{FakeService, ReceivedRequest};
pub use postgres::Postgres;
pub use process::Process;
pub use services::{LISTENERS, PEERS, free_ports, port_settings};

/// Returns a port on which no program listens at this moment. It is below the range from which
/// Linux takes the ports of outgoing connections.
///
/// # Errors
/// When no free port is found on loopback.
pub fn free_port() -> anyhow::Result<u16> {
    use std::hash::{BuildHasher as _, RandomState};
    const FIRST: u64 = 10_000;
    const COUNT: u64 = 22_000;
    for _ in 0..1_000 {
        // Random for each process, so that processes that search at the same time try other ports.
        let port = FIRST + RandomState::new().hash_one(()) % COUNT;
        let port = u16::try_from(port)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// Returns the path of a binary of this workspace, which must be built before the tests run.
///
/// # Errors
/// When it does not exist: run `cargo build --workspace --bins` first.
pub fn binary_path(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built; run: cargo build --workspace --bins"))
}

/// Returns the root folder of the workspace.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(&own).to_owned()
}

/// Returns the folder of recorded roasts beside the project, if it exists. It must exist in CI.
///
/// # Errors
/// When they are absent in CI.
pub fn recordings() -> anyhow::Result<Option<PathBuf>> {
    let folder = workspace_root().join("../shared/roasts");
    if folder.is_dir() {
        return Ok(Some(folder));
    }
    if std::env::var_os("CI").is_some() {
        bail!("no recordings in {}", folder.display());
    }
    eprintln!("skipped: no recordings");
    Ok(None)
}

/// Waits until `holds` returns true, polling it, for at most `limit`.
///
/// # Errors
/// When it does not become true in time.
#[allow(clippy::disallowed_methods)] // a test's patience is real time
pub async fn wait_for<F, A>(what: &str, limit: Duration, mut holds: F) -> anyhow::Result<()>
where
    F: FnMut() -> A,
    A: Future<Output = bool>,
{
    let end = Instant::now() + limit;
    loop {
        if holds().await {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{what}: not within {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The queue and in-flight limits, as in `packaging/mosquitto/simcorp.conf`.
const QUEUE_LIMITS: &str =
    "max_queued_messages 100000\nmax_inflight_messages 2000\nset_tcp_nodelay true\n";

/// A Mosquitto broker, configured as in production; without TLS unless started otherwise.
pub struct Mosquitto {
    /// The TCP port on loopback.
    pub port: u16,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Mosquitto {
    /// Starts a broker without TLS, which any client may use.
    ///
    /// # Errors
    /// When Debian's `mosquitto` is not installed or does not answer.
    pub async fn start() -> anyhow::Result<Self> {
        let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"].map(PathBuf::from);
        let program = program.into_iter().find(|path| path.is_file());
        let program = program.context("mosquitto is not installed (Debian package: mosquitto)")?;
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let file = folder.path().join("mosquitto.conf");
        let data = folder.path().display();
        std::fs::write(
            &file,
            format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
                 persistence_location {data}/\nuser root\n{QUEUE_LIMITS}"
            ),
        )?;
        let arguments = ["-c".to_owned(), file.display().to_string()];
        let process = Process::new(program, arguments, folder.path().join("mosquitto.log"));
        let mut broker = Self { port, process, _folder: folder };
        broker.restart().await?;
        Ok(broker)
    }

    /// Starts a broker as in production: TLS, and a certificate from every client, whose name
    /// determines by `acl` what the client may do.
    ///
    /// # Errors
    /// As [`Mosquitto::start`].
    pub async fn start_tls(authority: &TestCa, acl: &str) -> anyhow::Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let server = authority.issue("localhost")?;
        let (file, list) = (folder.path().join("mosquitto.conf"), folder.path().join("acl"));
        std::fs::write(&list, acl)?;
        std::fs::write(
            &file,
            format!(
                "listener {port} 127.0.0.1\nallow_anonymous false\nuser root\n\
                 cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
                 use_identity_as_username true\nacl_file {}\n{QUEUE_LIMITS}",
                authority.certificate().display(),
                server.certificate.display(),
                server.key.display(),
                list.display()
            ),
        )?;
        let arguments = ["-c".to_owned(), file.display().to_string()];
        let program = PathBuf::from("/usr/sbin/mosquitto");
        let process = Process::new(program, arguments, folder.path().join("mosquitto.log"));
        let mut broker = Self { port, process, _folder: folder };
        broker.restart().await?;
        Ok(broker)
    }

    /// Starts a broker as production runs it for a fleet: services use one listener with
    /// certificates of `authority`, gateways another with certificates of `gateways` (PEM). The
    /// service whose certificate has the name `simcorp` sets the permissions over MQTT. Returns the
    /// gateways' port beside the broker.
    ///
    /// # Errors
    /// As [`Mosquitto::start`]; and when its dynamic security plugin is not there.
    pub async fn start_fleet(authority: &TestCa, gateways: &str) -> anyhow::Result<(Self, u16)> {
        let plugin = ["/usr/lib/aarch64-linux-gnu", "/usr/lib/x86_64-linux-gnu"]
            .map(|folder| PathBuf::from(folder).join("mosquitto_dynamic_security.so"));
        let plugin = plugin.into_iter().find(|path| path.is_file());
        let plugin = plugin.context("there is no mosquitto_dynamic_security.so")?;
        let (folder, port, outer) = (tempfile::tempdir()?, free_port()?, free_port()?);
        let server = authority.issue("localhost")?;
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("gateways.pem"), gateways)?;
        let shipped = workspace_root().join("packaging/mosquitto/dynamic-security.json");
        std::fs::copy(shipped, at("dynamic-security.json"))?;
        let (certificate, key) = (server.certificate.display(), server.key.display());
        let listener = |port: u16, ca: &std::path::Path, more: &str| {
            format!(
                "listener {port} 127.0.0.1\ncafile {}\ncertfile {certificate}\nkeyfile {key}\n\
                 require_certificate true\nuse_identity_as_username true\n{more}",
                ca.display()
            )
        };
        let text = format!(
            "allow_anonymous false\nuser root\n{QUEUE_LIMITS}plugin {}\n\
             plugin_opt_config_file {}\n{}{}",
            plugin.display(),
            at("dynamic-security.json").display(),
            listener(port, &authority.certificate(), ""),
            listener(outer, &at("gateways.pem"), "use_username_as_clientid true\n"),
        );
        std::fs::write(at("mosquitto.conf"), text)?;
        let arguments = ["-c".to_owned(), at("mosquitto.conf").display().to_string()];
        let log = folder.path().join("mosquitto.log");
        let process = Process::new(PathBuf::from("/usr/sbin/mosquitto"), arguments, log);
        let mut broker = Self { port, process, _folder: folder };
        broker.restart().await?;
        Ok((broker, outer))
    }

    /// Kills the broker with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Returns the broker's process id; `None` while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Starts the broker again after [`Mosquitto::kill`], with the same port and data.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.start()?;
        wait_for_port(self.port).await
    }
}

/// A Redis server without persistence.
pub struct Redis {
    /// The TCP port on loopback.
    pub port: u16,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Redis {
    /// Starts a server.
    ///
    /// # Errors
    /// When Debian's `redis-server` is not installed or does not answer.
    pub async fn start() -> anyhow::Result<Self> {
        let program = PathBuf::from("/usr/bin/redis-server");
        if !program.is_file() {
            bail!("Redis is not installed (Debian package: redis-server)");
        }
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let port_text = port.to_string();
        let arguments =
            ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let log = folder.path().join("redis.log");
        let mut redis =
            Self { port, process: Process::new(program, arguments, log), _folder: folder };
        redis.restart().await?;
        Ok(redis)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again after [`Redis::kill`], with the same port and no data.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.start()?;
        wait_for_port(self.port).await
    }
}

/// Waits until a program listens on a port.
///
/// # Errors
/// When no program does within ten seconds.
pub async fn wait_for_port(port: u16) -> anyhow::Result<()> {
    let connect =
        || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
    wait_for(&format!("port {port}"), Duration::from_secs(10), connect).await
}
