//! A program that can be started, killed and started again. It ends with its parent process.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// A program of a test, with its arguments, its environment and its log file.
pub struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// The unprivileged user to run as, if this process is root.
    user: Option<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Describes a program that appends its output to the file `log`. It does not start it.
    pub fn new(
        program: PathBuf,
        arguments: impl IntoIterator<Item = impl Into<String>>,
        log: PathBuf,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { program, arguments, environment: Vec::new(), user: None, log, child: None }
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the program as this user if the test runs as root.
    #[must_use]
    pub fn as_user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Starts the program and appends its output to the log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        // setpriv ends the child when this process ends, even by SIGKILL.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = &self.user
            && rustix::process::geteuid().is_root()
        {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command.arg("--").arg(&self.program).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child =
            command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Returns the process id; `None` while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Returns true while the program runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGSTOP: the program stays but does nothing.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn pause(&self) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("not running")?;
        Ok(kill_process(Pid::from_child(child), Signal::STOP)?)
    }

    /// Sends SIGCONT: the program continues.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn resume(&self) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("not running")?;
        Ok(kill_process(Pid::from_child(child), Signal::CONT)?)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When the program does not end within `limit`; it is then killed.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().context("not running")?;
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM)?;
        let mut waited = Duration::ZERO;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if waited > limit {
                let _ = child.kill();
                let _ = child.wait();
                anyhow::bail!("{} did not stop within {limit:?}", self.program.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            waited += Duration::from_millis(10);
        }
    }

    /// Returns the program's output so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
