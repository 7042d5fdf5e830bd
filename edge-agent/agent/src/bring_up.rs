//! `simcorp-edge bring-up`: two people at the machine find out whether the controls of its profile are
//! right, before anything else may move them.
//!
//! The agent is stopped meanwhile. The profile's `writes` counts as enabled as long as this runs and
//! here alone, and each move goes through the same guard as any other's. What was asked, what the
//! machine showed and how soon is written down as it happens.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use contract::Digest;
use driver::{Driver, Hand, Reading, Refused, Share};
use firmware_profiles::{BringUp, Control, Profile, Remote, Writes};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::config::{DriverKind, EdgeConfig};
use crate::journal::{Journal, JournalError};
use crate::machine;

/// The machine is read this often: what was read before is too old to judge by.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const HELP: &str = "a control and a value move it, such as `burner 30`; an empty line shows the \
                    machine once more; `end` ends";

#[derive(clap::Args)]
pub struct Arguments {
    /// Who stands at the machine: given twice, for two people
    #[arg(long, required = true)]
    by: Vec<String>,
    /// Where each move is written down, a JSON object a line; what is there stays
    #[arg(long)]
    record: PathBuf,
}

/// One line of the record.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tried<'t> {
    at: contract::EpochMs,
    by: &'t [String],
    profile: &'t str,
    digest: &'t Digest,
    control: &'t str,
    asked: f64,
    /// What was done, or why not.
    said: String,
    /// Whether it was written to the machine, or may have been.
    written: bool,
    /// By which channel it is shown, where it is.
    readback: Option<&'t str>,
    /// What that showed last.
    shown: Option<f64>,
    /// How soon it showed what was asked, s; none: not in time.
    followed_s: Option<f64>,
}

struct Session {
    profile: Profile,
    digest: Digest,
    by: Vec<String>,
    path: PathBuf,
    record: File,
    driver: Box<dyn Driver>,
    hand: Hand,
    clock: Clock,
    lines: mpsc::Receiver<String>,
    /// What was typed while a move was watched.
    typed: Option<String>,
    /// Of each control that was moved: whether it followed the last time.
    followed: BTreeMap<String, bool>,
}

/// Asks, moves and writes down until there is nothing more to try.
pub fn act(config: &EdgeConfig, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { by, record: path } = arguments;
    let named = by.len() == 2 && by.iter().all(|name| !name.trim().is_empty()) && by[0] != by[1];
    ensure!(named, "--by names each of two people at the machine: --by ANNA --by BEN");
    ensure!(
        config.machine.driver == DriverKind::Profile,
        "machine.driver is not \"profile\": there is nothing to bring up"
    );
    let clock = Clock::start();
    // Held until the end: the agent cannot start meanwhile.
    let _journal =
        match Journal::open(&config.journal.folder, config.journal.quota_mb, clock.wall()) {
            Err(JournalError::Locked { .. }) => {
                anyhow::bail!(
                    "the agent has the machine; stop it first: systemctl stop simcorp-edge"
                )
            }
            opened => opened?,
        };
    let checked = config.machine.profile.load().map_err(anyhow::Error::msg)?;
    let profile = as_if_brought_up(checked.profile)?;
    let limit_ms = config.machine.profile.timeout_ms.unwrap_or(profile.timing.timeout_ms);
    let hand = Hand::new(&profile, Duration::from_millis(limit_ms));
    let share = Share { hand: Some(hand.clone()), ..Share::default() };
    let record = File::options().create(true).append(true).open(&path);
    let record = record.with_context(|| path.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let driver = machine::open(config, share)?;
        let (digest, followed, lines) = (checked.digest, BTreeMap::new(), lines());
        let typed = None;
        let session = Session {
            profile,
            digest,
            by,
            path,
            record,
            driver,
            hand,
            clock,
            lines,
            typed,
            followed,
        };
        session.run().await
    })
}

/// The profile with what it will say after a bring-up that finds nothing wrong.
fn as_if_brought_up(mut profile: Profile) -> anyhow::Result<Profile> {
    let m = &mut profile.machine;
    (m.verified, m.writes) = (true, Writes::Enabled);
    m.bring_up.get_or_insert_with(|| BringUp {
        by: vec!["a".to_owned(), "b".to_owned()],
        on: "2000-01-01".to_owned(),
        record: "now".to_owned(),
    });
    let findings: Vec<String> =
        firmware_profiles::lint(&profile).iter().map(ToString::to_string).collect();
    ensure!(findings.is_empty(), "the profile cannot be judged by yet:\n{}", findings.join("\n"));
    let guarded = profile.controls.iter().any(|control| control.remote == Remote::Guarded);
    ensure!(guarded, "the profile has no control that anybody but the machine's panel may move");
    Ok(profile)
}

/// What is typed. Reading it blocks, so a thread does.
fn lines() -> mpsc::Receiver<String> {
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

impl Session {
    async fn run(mut self) -> anyhow::Result<()> {
        let id = self.profile.machine.id.clone();
        println!("{} ({id}), by {}", self.profile.machine.name, self.by.join(" and "));
        for control in &self.profile.controls {
            println!("  {}", described(control));
        }
        println!("Both of you can see the machine and reach its emergency stop? Type {id}:");
        let confirmed = self.lines.recv().await.is_some_and(|line| line.trim() == id);
        ensure!(confirmed, "nothing was moved");
        println!("{HELP}");
        self.show().await;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let line = tokio::select! {
                biased;
                line = async { self.typed.take() }, if self.typed.is_some() => line,
                line = self.lines.recv() => line,
                _ = look.tick() => {
                    // What is wrong is said when somebody asks.
                    let _ = self.look().await;
                    continue;
                }
            };
            match line.as_deref().map(str::trim) {
                None | Some("end") => break,
                Some("") => self.show().await,
                Some(words) => self.hear(words).await?,
            }
        }
        self.show().await;
        println!("Everything stays where it stands now; it is the panel's again.");
        self.conclude();
        Ok(())
    }

    async fn show(&mut self) {
        match self.look().await {
            Ok(reading) => println!("{}", machine::shown(&reading)),
            Err(problem) => println!("{problem}"),
        }
    }

    async fn look(&mut self) -> Result<Reading, String> {
        self.driver.read(self.clock.mono_ms()).await.map_err(|error| error.to_string())
    }

    async fn hear(&mut self, words: &str) -> anyhow::Result<()> {
        let asked = words.split_once(' ').and_then(|(name, value)| {
            let control = self.profile.controls.iter().find(|control| control.name == name)?;
            Some((control.clone(), value.trim().parse::<f64>().ok().filter(|v| v.is_finite())?))
        });
        let Some((control, value)) = asked else {
            println!("{HELP}");
            return Ok(());
        };
        self.try_one(&control, value).await
    }

    /// Moves one control, sees what becomes of it, and writes both down.
    async fn try_one(&mut self, control: &Control, value: f64) -> anyhow::Result<()> {
        let at = self.clock.wall();
        let outcome = self.make(&control.name, value).await;
        let written = matches!(outcome, Ok(_) | Err(Refused::Unconfirmed(_)));
        let said = outcome.unwrap_or_else(|refused| refused.to_string());
        println!("{said}");
        let readback = control.readback.as_deref().filter(|channel| *channel != "none");
        let (mut last, mut followed_s) = (None, None);
        if let (true, Some(channel)) = (written, readback) {
            (last, followed_s) = self.follow(control, channel, value).await;
            match (followed_s, last) {
                (Some(s), _) => println!("{channel} follows within {s:.1} s"),
                (None, Some(last)) => println!("{channel} does not follow: it shows {last:.1}"),
                (None, None) => println!("{channel} shows nothing"),
            }
        }
        if written {
            self.followed.insert(control.name.clone(), followed_s.is_some());
        }
        let tried = Tried {
            at,
            by: &self.by,
            profile: &self.profile.machine.id,
            digest: &self.digest,
            control: &control.name,
            asked: value,
            said,
            written,
            readback,
            shown: last,
            followed_s,
        };
        let mut line = serde_json::to_vec(&tried)?;
        line.push(b'\n');
        let kept = self.record.write_all(&line).and_then(|()| self.record.sync_data());
        kept.with_context(|| self.path.display().to_string())
    }

    async fn make(&mut self, control: &str, value: f64) -> Result<String, Refused> {
        let Self { hand, driver, clock, by, .. } = self;
        let who = by.join(" and ");
        let moving = hand.move_to(&who, control, value, clock.mono_ms());
        tokio::pin!(moving);
        loop {
            tokio::select! {
                biased;
                outcome = &mut moving => return outcome,
                () = driver.asked() => driver.obey(clock.mono_ms()).await,
            }
        }
    }

    /// Watches until the machine shows what was asked, for as long as the profile gives it, or until
    /// somebody types something: the fire must never wait to be turned off. The last value, and how
    /// soon it was there, s.
    async fn follow(
        &mut self,
        control: &Control,
        channel: &str,
        value: f64,
    ) -> (Option<f64>, Option<f64>) {
        let began_ms = self.clock.mono_ms();
        let tolerance = control.readback_tol.unwrap_or(0.0) + 1e-9;
        let most_s = control.readback_s.unwrap_or(0.0);
        let mut last = None;
        loop {
            let passed_s = self.clock.mono_ms().saturating_sub(began_ms) as f64 / 1000.0;
            if let Ok(reading) = self.look().await {
                let found = reading.values.iter().find(|(c, _)| c.as_str() == channel);
                last = found.and_then(|(_, value)| *value);
                if last.is_some_and(|shown| (shown - value).abs() <= tolerance) {
                    return (last, Some(passed_s));
                }
            }
            if passed_s > most_s {
                return (last, None);
            }
            match tokio::time::timeout(LOOK_EVERY / 2, self.lines.recv()).await {
                Ok(Some(line)) => {
                    self.typed = Some(line);
                    return (last, None);
                }
                // Nobody types any more.
                Ok(None) => tokio::time::sleep(LOOK_EVERY / 2).await,
                Err(_) => {}
            }
        }
    }

    /// What was found, and what the profile may say now.
    fn conclude(&self) {
        let guarded = self.profile.controls.iter().filter(|c| c.remote == Remote::Guarded);
        let mut open = 0;
        for control in guarded {
            let found = match self.followed.get(&control.name) {
                Some(true) => "followed",
                Some(false) => "did not follow the last time",
                None => "not tried",
            };
            open += usize::from(found != "followed");
            println!("{}: {found}", control.name);
        }
        if open > 0 {
            println!("{open} to go. Leave what does not follow to the panel: remote = \"never\".");
            return;
        }
        println!(
            "If each value was compared with the panel too, the profile may say, in [machine]:\n\
             verified = true\nwrites = \"enabled\"\nbring_up = {{ by = {:?}, on = {:?}, record = {:?} }}",
            self.by,
            self.clock.wall().to_string().get(..10).unwrap_or_default(),
            name_of(&self.path),
        );
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn described(control: &Control) -> String {
    let [low, high] = control.range.unwrap_or([0.0, 1.0]);
    let name = &control.name;
    if control.remote == Remote::Never {
        return format!("{name}: at the panel alone");
    }
    let step = control.max_step.map_or_else(String::new, |step| format!(", {step} at once"));
    let readback = control.readback.as_deref().unwrap_or("none");
    format!("{name}: {low} to {high}{step}; shown by {readback}")
}
