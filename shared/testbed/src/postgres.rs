//! PostgreSQL: a cluster in a temporary folder, reachable only through a Unix socket.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{Process, wait_for};

/// A PostgreSQL cluster with the database `simcorp`, which is removed when it is dropped.
pub struct Postgres {
    bin: PathBuf,
    process: Process,
    folder: tempfile::TempDir,
}

impl Postgres {
    /// Creates and starts a cluster with `fsync` on, as in production.
    ///
    /// # Errors
    /// When Debian's `postgresql` is not installed or does not answer.
    pub async fn start() -> anyhow::Result<Self> {
        let bin =
            newest_bin().context("PostgreSQL is not installed (Debian package: postgresql)")?;
        let folder = new_folder()?;
        let data = folder.path().join("data");
        let initdb = bin.join("initdb");
        let mut command = as_postgres(&initdb);
        command
            .args(["-U", "simcorp", "--auth", "trust", "-E", "UTF8", "--no-sync", "-D"])
            .arg(&data);
        run(&mut command)?;
        let process = server(&bin, folder.path(), &["shared_buffers=256MB", "max_wal_size=2GB"]);
        let mut cluster = Self { bin, process, folder };
        cluster.restart().await?;
        cluster.query("postgres", "CREATE DATABASE simcorp")?;
        Ok(cluster)
    }

    /// Starts a streaming replica of this cluster, in a folder of its own.
    ///
    /// # Errors
    /// When it cannot be copied, or does not answer.
    pub async fn replica(&self) -> anyhow::Result<Self> {
        let folder = new_folder()?;
        let data = folder.path().join("data");
        let mut command = as_postgres(&self.bin.join("pg_basebackup"));
        command.args(["-U", "simcorp", "-X", "stream", "-c", "fast", "-R", "-h"]);
        run(command.arg(self.folder.path()).arg("-D").arg(&data))?;
        let process = server(&self.bin, folder.path(), &[]);
        let mut cluster = Self { bin: self.bin.clone(), process, folder };
        cluster.restart().await?;
        Ok(cluster)
    }

    /// Returns the URL of the database `simcorp`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://simcorp@localhost/simcorp?host={}", self.folder.path().display())
    }

    /// Kills the server and all its backends with SIGKILL.
    pub fn kill(&mut self) {
        let pid = self.process.pid();
        if let Some(pid) = pid {
            // Children first: an orphaned backend would hold the shared memory.
            let _ = Command::new("pkill").args(["-KILL", "-P", &pid.to_string()]).status();
        }
        self.process.kill();
    }

    /// Starts the server again after [`Postgres::kill`], with the same data.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(self.folder.path().join("data/postmaster.pid"));
        self.process.start()?;
        let ask = || async { self.query("postgres", "SELECT 1").is_ok() };
        wait_for("PostgreSQL", Duration::from_secs(30), ask).await
    }

    /// Returns the process id of the server; `None` while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Runs a statement with psql, independent of our own driver. Returns one value a line.
    ///
    /// # Errors
    /// When the statement fails.
    pub fn query(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-U", "simcorp", "-d", database, "-AtXq", "-v", "ON_ERROR_STOP=1", "-h"]);
        let output = command.arg(self.folder.path()).args(["-c", sql]).output()?;
        ensure!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Runs a `pgbench` script on so many connections for so many seconds; returns its output.
    ///
    /// # Errors
    /// When it is not installed or fails.
    pub fn pgbench(
        &self,
        database: &str,
        connections: u32,
        seconds: u32,
        script: &Path,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(self.bin.join("pgbench"));
        command.args(["-U", "simcorp", "-n", "-M", "prepared", "-h"]).arg(self.folder.path());
        command.args(["-c", &connections.to_string(), "-j", "2", "-T", &seconds.to_string(), "-f"]);
        let output = command.arg(script).arg(database).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a statement that returns one number.
    ///
    /// # Errors
    /// When the statement fails or its result is not a number.
    pub fn query_number(&self, sql: &str) -> anyhow::Result<i64> {
        let text = self.query("simcorp", sql)?;
        text.parse().with_context(|| format!("{sql}: {text:?} is not a number"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Creates a folder that the postgres user may write to. It is not in a home folder, which that
/// user may be unable to enter.
fn new_folder() -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("simcorp-pg").tempdir_in("/tmp")?;
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown").arg("postgres:postgres").arg(folder.path()))?;
    }
    Ok(folder)
}

/// Describes the server of the cluster in `folder`, with `settings` of PostgreSQL.
fn server(bin: &Path, folder: &Path, settings: &[&str]) -> Process {
    let at = |path: &Path| path.display().to_string();
    let mut arguments = vec!["-D".to_owned(), at(&folder.join("data"))];
    arguments.extend(["-k".to_owned(), at(folder)]);
    for setting in ["listen_addresses="].iter().chain(settings) {
        arguments.extend(["-c".to_owned(), (*setting).to_owned()]);
    }
    let log = folder.join("postgres.log");
    Process::new(bin.join("postgres"), arguments, log).as_user("postgres")
}

fn newest_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    found.sort();
    found.pop()
}

/// initdb and postgres refuse to run as root.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"])
        .arg(program);
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
