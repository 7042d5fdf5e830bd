//! Tests that a gateway's wall clock, however wrong it is, changes no duration, no elapsed time and no
//! order: the real agent with a clock that is set while it runs, up to the API of ingestion.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use testbed::wait_for;
use tokio::time::Instant;

use crate::support::{Agent, Cloud, PATIENCE, client, script};

const DAY_S: i64 = 86_400;
/// 2106-02-07, when the seconds since 1970 no longer fit 32 bits.
const IN_2106_S: i64 = 4_294_967_300;
/// How much longer or shorter than measured here a time may be, s: an event is at the newest sample.
const SLACK_S: f64 = 1.5;
/// The time between two steps, in which samples are taken.
const PAUSE: Duration = Duration::from_millis(300);

/// The wall clock of a program.
struct WallClock {
    folder: PathBuf,
}

impl WallClock {
    /// Compiles the library that shifts the clock, in `folder`.
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let clock = Self { folder: folder.to_owned() };
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(clock.library())
            .arg(script("wall_clock.c"))
            .output()?;
        ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Ok(clock)
    }

    fn library(&self) -> PathBuf {
        self.folder.join("wall_clock.so")
    }

    fn shift(&self) -> PathBuf {
        self.folder.join("wall_clock_shift")
    }

    fn set(&self, to: SetClock) -> anyhow::Result<()> {
        let seconds = match to {
            SetClock::Ahead(seconds) => seconds,
            SetClock::To(at_s) => at_s - unix_time_s()?,
        };
        // Renamed, so that a program never reads a part.
        let written = self.folder.join("wall_clock_shift.new");
        std::fs::write(&written, seconds.to_string())?;
        Ok(std::fs::rename(written, self.shift())?)
    }
}

#[allow(clippy::disallowed_methods)] // the clock that is shifted is the real one
fn unix_time_s() -> anyhow::Result<i64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_secs())?)
}

/// What a wall clock is set to.
#[derive(Debug, Clone, Copy)]
enum SetClock {
    /// Seconds after the right time.
    Ahead(i64),
    /// Seconds since 1970.
    To(i64),
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Clock(SetClock),
    /// Stops the agent if it runs, and starts it.
    Start,
    Mark(&'static str),
}

/// An event that was marked between two moments.
struct MarkedEvent {
    kind: &'static str,
    from: Instant,
    until: Instant,
}

/// Returns the least and the largest time between two events, in s.
fn between(first: &MarkedEvent, second: &MarkedEvent) -> std::ops::RangeInclusive<f64> {
    let least = second.from.saturating_duration_since(first.until).as_secs_f64();
    let most = second.until.saturating_duration_since(first.from).as_secs_f64();
    least - SLACK_S..=most + SLACK_S
}

async fn mark(agent: &Agent, kind: &'static str) -> anyhow::Result<MarkedEvent> {
    let from = Instant::now();
    let answer = client()
        .post(format!("http://127.0.0.1:{}/marks", agent.port))
        .header("content-type", "application/json")
        .body(format!("{{\"type\":\"{kind}\"}}"))
        .send()
        .await?;
    ensure!(answer.status().is_success(), "{kind}: {}", answer.text().await?);
    Ok(MarkedEvent { kind, from, until: Instant::now() })
}

async fn start(agent: &mut Agent) -> anyhow::Result<()> {
    if agent.process.is_running() {
        agent.process.stop(PATIENCE).await?;
    }
    agent.start().await?;
    let agent = &*agent;
    wait_for("samples are taken", PATIENCE, || async {
        agent.status().await.is_ok_and(|status| status["samples"].as_u64() > Some(3))
    })
    .await
    .with_context(|| agent.process.log())
}

/// Executes the steps of one roast. Returns its session and its events.
async fn roast(
    agent: &mut Agent,
    clock: &WallClock,
    steps: &[Step],
) -> anyhow::Result<(String, Vec<MarkedEvent>)> {
    let (mut session, mut events) = (None, Vec::new());
    for step in steps.iter().copied() {
        match step {
            Step::Clock(to) => clock.set(to)?,
            Step::Start => start(agent).await?,
            Step::Mark(kind) => events.push(mark(agent, kind).await?),
        }
        if matches!(step, Step::Mark("CHARGE")) {
            let agent = &*agent;
            wait_for("the roast is shown", PATIENCE, || async {
                agent.status().await.is_ok_and(|status| status["session"].is_string())
            })
            .await?;
            session = agent.status().await?["session"].as_str().map(str::to_owned);
        } else {
            // Not after CHARGE: the agent may be restarted exactly then.
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok((session.context("no roast was begun")?, events))
}

/// Checks that the API returns the times of a roast as they were measured here.
async fn check_times(cloud: &Cloud, id: &str, events: &[MarkedEvent]) -> anyhow::Result<()> {
    let [charge, crack, drop] = events else { anyhow::bail!("{id}: {} events", events.len()) };
    let session = cloud.get(&format!("/sessions/{id}?orgId=org")).await?;
    for (field, event) in [("fcSeconds", crack), ("dropSeconds", drop), ("durationSeconds", drop)] {
        let seconds = session[field].as_f64().with_context(|| format!("{id}: no {field}"))?;
        let expected = between(charge, event);
        assert!(expected.contains(&seconds), "{id}: {field} {seconds} not in {expected:?}");
    }
    let stored = cloud.get(&format!("/sessions/{id}/events?orgId=org")).await?;
    let kinds: Vec<&str> =
        stored.as_array().unwrap().iter().filter_map(|event| event["type"].as_str()).collect();
    let marked: Vec<&str> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, marked, "{id}: {stored}");
    let points = cloud.get(&format!("/sessions/{id}/telemetry?orgId=org")).await?;
    let elapsed: Vec<f64> =
        points.as_array().unwrap().iter().filter_map(|p| p["elapsedSeconds"].as_f64()).collect();
    assert!(elapsed.len() > 5 && elapsed.is_sorted(), "{id}: {elapsed:?}");
    let (first, last) = (elapsed[0], elapsed[elapsed.len() - 1]);
    assert!((0.0..SLACK_S).contains(&first), "{id}: begins at {first} s");
    let duration = session["durationSeconds"].as_f64().unwrap();
    assert!((last - duration).abs() < SLACK_S, "{id}: {last} s of {duration} s");
    Ok(())
}

#[tokio::test]
async fn no_step_of_a_gateway_s_clock_changes_a_time_of_a_roast() -> anyhow::Result<()> {
    use SetClock::{Ahead, To};
    use Step::{Clock, Mark, Start};
    let cloud = Cloud::start().await?;
    let driver = "driver = \"simulated\"\n[machine.simulated]\ncharge_after_s = 600\n\
                  [sampling]\nperiod_ms = 50\nframe_ms = 100\n";
    let mut agent = cloud.agent("r-1", driver)?;
    let clock = WallClock::new(agent.folder.path())?;
    agent.process = agent
        .process
        .env("LD_PRELOAD", &clock.library().display().to_string())
        .env("WALL_CLOCK_SHIFT", &clock.shift().display().to_string());
    let roasts: [&[Step]; 4] = [
        // The clock is not set at the start, and is set in mid-roast.
        &[Clock(To(10)), Start, Mark("CHARGE"), Clock(Ahead(0)), Mark("FC"), Mark("DROP")],
        // Forwards and back in mid-roast.
        &[
            Mark("CHARGE"),
            Clock(Ahead(30 * DAY_S)),
            Mark("FC"),
            Clock(Ahead(-14 * DAY_S)),
            Mark("DROP"),
        ],
        // Begun in 2106, with a restart exactly at CHARGE, and one into 1970 exactly at DROP.
        &[
            Clock(To(IN_2106_S)),
            Start,
            Mark("CHARGE"),
            Start,
            Mark("FC"),
            Clock(To(10)),
            Start,
            Mark("DROP"),
            Start,
        ],
        // Half an hour ahead, as the clock chip of another time zone.
        // The last start sends the receipt at once.
        &[Clock(Ahead(1_800)), Mark("CHARGE"), Clock(Ahead(0)), Mark("FC"), Mark("DROP"), Start],
    ];
    let mut made = Vec::new();
    for steps in roasts {
        made.push(roast(&mut agent, &clock, steps).await?);
    }
    let closed = async || -> anyhow::Result<Vec<Value>> {
        let listed = cloud.get("/sessions?orgId=org&status=CLOSED").await?;
        Ok(listed.as_array().cloned().unwrap_or_default())
    };
    wait_for("all roasts are complete", PATIENCE, || async {
        closed().await.is_ok_and(|sessions| {
            sessions.len() == made.len()
                && sessions.iter().all(|session| session["completeness"] == "complete")
        })
    })
    .await
    .with_context(|| format!("{}\n{}", agent.process.log(), cloud.simcorp.log()))?;
    for (id, events) in &made {
        check_times(&cloud, id, events).await?;
    }
    // Sample numbers order the roasts of a chain, whatever their dates.
    let order = cloud
        .database
        .query("simcorp", "SELECT session_id FROM sessions ORDER BY chain_no, first_seq")?;
    let ids: Vec<&str> = made.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(order.lines().collect::<Vec<_>>(), ids);
    // No roast is dated in the future.
    let now = contract::EpochMs((unix_time_s()? + 3_600) * 1_000).to_string();
    for session in closed().await? {
        let started = session["startedAt"].as_str().unwrap_or_default();
        assert!(!started.is_empty() && started < now.as_str(), "{session}");
    }
    Ok(())
}
