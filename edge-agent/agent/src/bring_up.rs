//! `simcorp-edge bring-up`: two people at the machine verify that the controls of its profile are
//! right, before any other program may move them.
//!
//! The agent must be stopped while this runs. The profile's `writes` counts as enabled in this
//! process only, while it runs, and every move passes the same interlock as any other write.
//! The requested value, the value shown and the delay are recorded as they happen.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use contract::{Digest, EpochMs};
use driver::{ControlQueue, Driver, DriverHandles, Reading, WriteError};
use firmware_profiles::{BringUp, Control, Profile, Remote, Writes};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::clock::GatewayClock;
use crate::config::{DriverKind, EdgeConfig};
use crate::journal::{Journal, JournalError};
use crate::machine;

/// The interval between two reads of the machine: older readings are too old to judge by.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a line is waited for between two looks at a control that moves.
const LINE_WAIT: Duration = Duration::from_millis(500);
const HELP: &str = "a control and a value move it, such as `burner 30`; an empty line shows the \
                    machine once more; `end` ends";

#[derive(clap::Args)]
pub struct Arguments {
    /// The name of a person at the machine; give it twice, for two people
    #[arg(long, required = true)]
    by: Vec<String>,
    /// The file to which each move is appended, one JSON object per line
    #[arg(long)]
    record: PathBuf,
}

/// One line of the record: one as soon as a move was made, and another with its observed result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "step")]
enum RecordLine<'l> {
    #[serde(rename_all = "camelCase")]
    Moved {
        at: EpochMs,
        by: &'l [String],
        profile: &'l str,
        digest: &'l Digest,
        control: &'l str,
        /// The requested value, rounded to what the machine can represent.
        asked: f64,
        /// What was done, or why it was refused.
        said: &'l str,
        /// Whether the value was, or may have been, written to the machine.
        written: bool,
    },
    #[serde(rename_all = "camelCase")]
    Seen {
        at: EpochMs,
        control: &'l str,
        readback: &'l str,
        /// The readback's value before the move. `shown` is its last value.
        before: Option<f64>,
        shown: Option<f64>,
        #[serde(flatten)]
        found: MoveResult,
    },
}

/// The observed result of a move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "found")]
enum MoveResult {
    /// The readback reached the requested value, and did not show it before.
    #[serde(rename_all = "camelCase")]
    Followed {
        after_s: f64,
    },
    /// The readback showed the requested value before the move, so the move proves nothing.
    StoodThere,
    NotInTime,
    /// A person entered another command before the watch ended.
    BrokenOff,
}

struct BringUpRun {
    profile: Profile,
    digest: Digest,
    by: Vec<String>,
    path: PathBuf,
    record: File,
    driver: Box<dyn Driver>,
    controls: ControlQueue,
    clock: GatewayClock,
    lines: mpsc::Receiver<String>,
    /// A line that was typed while a move was watched; it is executed next.
    pending_line: Option<String>,
    /// The last reading, and when it was taken, in ms since the start.
    last_reading: Option<(u64, Reading)>,
    /// The last requested value of each control that was moved.
    moved: BTreeMap<String, f64>,
    /// At least one line could not be written to the record.
    incomplete: bool,
    /// Whether each control followed its last move that was watched to its end.
    followed: BTreeMap<String, bool>,
}

/// Runs the bring-up: reads commands, moves controls and records the results until `end`.
pub fn run(config: &EdgeConfig, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { by, record: path } = arguments;
    let names_valid =
        by.len() == 2 && by.iter().all(|name| !name.trim().is_empty()) && by[0] != by[1];
    ensure!(names_valid, "--by must name two people at the machine: --by ANNA --by BEN");
    ensure!(
        config.machine.driver == DriverKind::Profile,
        "machine.driver is not \"profile\": there is nothing to bring up"
    );
    let clock = GatewayClock::start();
    // Holds the journal's lock until the end, so that the agent cannot start.
    let _journal = match Journal::open(&config.journal.folder, config.journal.quota_mb) {
        Err(JournalError::Locked { .. }) => {
            anyhow::bail!("the agent has the machine; stop it first: systemctl stop simcorp-edge")
        }
        opened => opened?,
    };
    let checked = config.machine.profile.load().map_err(anyhow::Error::msg)?;
    let profile = enable_writes(checked.profile)?;
    let limit_ms = config.machine.profile.timeout_ms.unwrap_or(profile.timing.timeout_ms);
    let controls = ControlQueue::new(&profile, Duration::from_millis(limit_ms));
    let share = DriverHandles { controls: Some(controls.clone()), ..DriverHandles::default() };
    let record = File::options().create(true).append(true).open(&path);
    let record = record.with_context(|| path.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let driver = machine::open(config, share)?;
        let (digest, followed, lines) = (checked.digest, BTreeMap::new(), read_stdin_lines());
        let (pending_line, last_reading, moved, incomplete) = (None, None, BTreeMap::new(), false);
        let session = BringUpRun {
            profile,
            digest,
            by,
            path,
            record,
            driver,
            controls,
            clock,
            lines,
            pending_line,
            last_reading,
            moved,
            incomplete,
            followed,
        };
        session.run().await
    })
}

/// Returns the profile as it will be after a bring-up that finds no problem.
fn enable_writes(mut profile: Profile) -> anyhow::Result<Profile> {
    let m = &mut profile.machine;
    (m.verified, m.writes) = (true, Writes::Enabled);
    m.bring_up.get_or_insert_with(|| BringUp {
        by: vec!["a".to_owned(), "b".to_owned()],
        on: "2000-01-01".to_owned(),
        record: "now".to_owned(),
    });
    let findings: Vec<String> =
        firmware_profiles::lint(&profile).iter().map(ToString::to_string).collect();
    ensure!(findings.is_empty(), "correct the profile first:\n{}", findings.join("\n"));
    let guarded = profile.controls.iter().any(|control| control.remote == Remote::Guarded);
    ensure!(guarded, "no control of the profile has remote = \"guarded\"");
    Ok(profile)
}

/// Returns the lines typed on standard input. A thread reads them, because reading blocks.
fn read_stdin_lines() -> mpsc::Receiver<String> {
    let (typed, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl BringUpRun {
    async fn run(mut self) -> anyhow::Result<()> {
        let id = self.profile.machine.id.clone();
        println!("{} ({id}), by {}", self.profile.machine.name, self.by.join(" and "));
        for control in &self.profile.controls {
            println!("  {}", describe_control(control));
        }
        println!("Both of you can see the machine and reach its emergency stop? Type {id}:");
        let confirmed = self.lines.recv().await.is_some_and(|line| line.trim() == id);
        ensure!(confirmed, "nothing was moved");
        println!("{HELP}");
        self.print_reading().await;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let line = tokio::select! {
                biased;
                line = async { self.pending_line.take() }, if self.pending_line.is_some() => line,
                line = self.lines.recv() => line,
                _ = look.tick() => {
                    // An error is shown when a person asks for the values.
                    let _ = self.read_machine().await;
                    continue;
                }
            };
            match line.as_deref().map(str::trim) {
                None | Some("end") => break,
                Some("") => self.print_reading().await,
                Some(command) => self.execute(command).await,
            }
        }
        self.print_reading().await;
        self.print_moved_controls();
        self.print_results();
        Ok(())
    }

    async fn print_reading(&mut self) {
        match self.read_machine().await {
            Ok(reading) => println!("{}", machine::format_reading(&reading)),
            Err(problem) => println!("{problem}"),
        }
    }

    async fn read_machine(&mut self) -> Result<Reading, String> {
        let now_ms = self.clock.mono_ms();
        let reading = self.driver.read(now_ms).await.map_err(|error| error.to_string())?;
        self.last_reading = Some((now_ms, reading.clone()));
        Ok(reading)
    }

    async fn execute(&mut self, command: &str) {
        let parsed = command.split_once(' ').and_then(|(name, value)| {
            let control = self.profile.controls.iter().find(|control| control.name == name)?;
            Some((control.clone(), value.trim().parse::<f64>().ok().filter(|v| v.is_finite())?))
        });
        match parsed {
            Some((control, value)) => self.move_and_watch(&control, value).await,
            None => println!("{HELP}"),
        }
    }

    /// Moves one control, observes the result, and records both.
    async fn move_and_watch(&mut self, control: &Control, value: f64) {
        let channel = control.readback.as_deref().filter(|channel| *channel != "none");
        let value = self.controls.nearest_value(&control.name, value);
        // A reading older than 1 s is too old to judge by, so the machine is read again first.
        // Turning heat off does not wait for that.
        let old = |at_ms: u64| self.clock.mono_ms().saturating_sub(at_ms) > 1_000;
        let stale = self.last_reading.as_ref().is_none_or(|(at_ms, _)| old(*at_ms));
        if stale && !(control.role.heats() && value <= 0.0) {
            let _ = self.read_machine().await;
        }
        let before = channel.and_then(|channel| self.last_value(channel));
        let at = self.clock.wall();
        let outcome = self.move_control(&control.name, value).await;
        let written = matches!(outcome, Ok(_) | Err(WriteError::Unconfirmed(_)));
        let message = outcome.unwrap_or_else(|refused| refused.to_string());
        println!("{message}");
        let (by, digest) = (self.by.clone(), self.digest);
        let profile = self.profile.machine.id.clone();
        let (control_name, requested) = (control.name.as_str(), value);
        self.append_record(&RecordLine::Moved {
            at,
            by: &by,
            profile: &profile,
            digest: &digest,
            control: control_name,
            asked: requested,
            said: &message,
            written,
        });
        if !written {
            return;
        }
        self.moved.insert(control.name.clone(), value);
        let Some(channel) = channel else { return };
        let tolerance = control.readback_tol.unwrap_or(0.0) + 1e-9;
        let there = |shown: Option<f64>| shown.is_some_and(|s| (s - value).abs() <= tolerance);
        let (shown, result) = if there(before) {
            (before, MoveResult::StoodThere)
        } else {
            self.watch(channel, there, control.readback_s.unwrap_or(0.0)).await
        };
        let last = shown.map_or_else(|| "nothing".to_owned(), |shown| format!("{shown:.1}"));
        match result {
            MoveResult::Followed { after_s } => println!("{channel} follows within {after_s:.1} s"),
            MoveResult::StoodThere => println!("{channel} showed {last} before: it proves nothing"),
            MoveResult::NotInTime => println!("{channel} does not follow: it shows {last}"),
            MoveResult::BrokenOff => {
                println!("{channel} was not watched to its end; it shows {last}");
            }
        }
        match result {
            MoveResult::Followed { .. } => drop(self.followed.insert(control.name.clone(), true)),
            MoveResult::NotInTime => drop(self.followed.insert(control.name.clone(), false)),
            MoveResult::StoodThere | MoveResult::BrokenOff => {}
        }
        let at = self.clock.wall();
        let readback = channel;
        self.append_record(&RecordLine::Seen {
            at,
            control: control_name,
            readback,
            before,
            shown,
            found: result,
        });
    }

    /// Returns a channel's value in the last reading.
    fn last_value(&self, channel: &str) -> Option<f64> {
        let (_, reading) = self.last_reading.as_ref()?;
        reading.values.iter().find(|(c, _)| c.as_str() == channel)?.1
    }

    /// Appends a line to the record. The sync to disk runs in the background, so that turning the
    /// fire off never waits for the disk.
    fn append_record(&mut self, line: &RecordLine<'_>) {
        let result = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.record.write_all(&line)?;
            self.record.try_clone()
        });
        match result {
            Ok(file) => drop(tokio::task::spawn_blocking(move || file.sync_data())),
            Err(error) => {
                self.incomplete = true;
                println!("{} cannot be written: {error}", self.path.display());
            }
        }
    }

    async fn move_control(&mut self, control: &str, value: f64) -> Result<String, WriteError> {
        let Self { controls, driver, clock, by, .. } = self;
        let who = by.join(" and ");
        let moving = controls.set(&who, control, value, clock.mono_ms());
        tokio::pin!(moving);
        loop {
            tokio::select! {
                biased;
                outcome = &mut moving => return outcome,
                () = driver.wait_for_write() => driver.execute_pending(clock.mono_ms()).await,
            }
        }
    }

    /// Watches the channel until the machine is `there`, for at most `most_s` seconds, or until a
    /// person types a command: turning the fire off must never wait. Returns the last value and the
    /// result of the move.
    async fn watch(
        &mut self,
        channel: &str,
        there: impl Fn(Option<f64>) -> bool,
        most_s: f64,
    ) -> (Option<f64>, MoveResult) {
        let began_ms = self.clock.mono_ms();
        let mut last = None;
        loop {
            let read = self.read_machine().await.is_ok();
            let after_s = self.clock.mono_ms().saturating_sub(began_ms) as f64 / 1000.0;
            last = if read { self.last_value(channel) } else { last };
            if after_s > most_s {
                return (last, MoveResult::NotInTime);
            }
            if read && there(last) {
                return (last, MoveResult::Followed { after_s });
            }
            match tokio::time::timeout(LINE_WAIT, self.lines.recv()).await {
                Ok(Some(line)) if line.trim().is_empty() => self.print_reading().await,
                Ok(Some(line)) => {
                    self.pending_line = Some(line);
                    return (last, MoveResult::BrokenOff);
                }
                // Standard input is closed.
                Ok(None) => tokio::time::sleep(LINE_WAIT).await,
                Err(_) => {}
            }
        }
    }

    /// Prints the controls that stay moved. The program restores no value: people stand at the
    /// machine, and a jump would be worse.
    fn print_moved_controls(&self) {
        if self.moved.is_empty() {
            return;
        }
        println!("No control was moved back; do that at the panel:");
        for (name, value) in &self.moved {
            let control = self.profile.controls.iter().find(|control| control.name == *name);
            let lit = control.is_some_and(|c| c.role.heats()) && *value > 0.0;
            let overridden = control.is_some_and(|c| c.auto_raw.is_some());
            let fire = if lit { "; the fire is on" } else { "" };
            let regulation = if overridden { "; no longer regulated by the machine" } else { "" };
            println!("  {name} was moved to {value} last{fire}{regulation}");
        }
    }

    /// Prints the result for each control, and the lines that may now stand in the profile.
    fn print_results(&self) {
        let guarded = self.profile.controls.iter().filter(|c| c.remote == Remote::Guarded);
        let mut open = 0_usize;
        for control in guarded {
            let result = match self.followed.get(&control.name) {
                Some(true) => "followed",
                Some(false) => "did not follow the last time",
                None => "not tried",
            };
            open = open.saturating_add(usize::from(result != "followed"));
            println!("{}: {result}", control.name);
        }
        if open > 0 {
            println!("{open} to go. Set remote = \"never\" for a control that does not follow.");
            return;
        }
        if self.incomplete {
            println!("The record is incomplete, so it proves nothing.");
            return;
        }
        println!(
            "If you also compared each value with the panel, the profile may say, in [machine]:\n\
             verified = true\nwrites = \"enabled\"\nbring_up = {{ by = {:?}, on = {:?}, record = {:?} }}",
            self.by,
            self.clock.wall().to_string().get(..10).unwrap_or_default(),
            file_name(&self.path),
        );
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn describe_control(control: &Control) -> String {
    let [low, high] = control.range.unwrap_or([0.0, 1.0]);
    let name = &control.name;
    if control.remote == Remote::Never {
        return format!("{name}: at the panel only");
    }
    let step = control.max_step.map_or_else(String::new, |step| format!(", {step} at once"));
    let readback = control.readback.as_deref().unwrap_or("none");
    format!("{name}: {low} to {high}{step}; shown by {readback}")
}
