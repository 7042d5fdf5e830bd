//! Tests kill -9 of any process at any time: every sample that reached the journal is in the
//! database exactly once.

use std::time::Duration;

use crate::support::{Cloud, PATIENCE, serve, simulated};
use testbed::wait_for;

/// A small random generator for the order of the kills; its seed is printed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// The number of kills; `BLOWS=200` runs for about an evening.
const BLOWS: usize = 14;

#[tokio::test]
async fn killed_processes_neither_lose_nor_duplicate_samples() -> anyhow::Result<()> {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_c0ff_ee01);
    println!("SEED={seed}");
    let mut dice = Dice(seed);
    let mut cloud = Cloud::start().await?;
    let mut agent = cloud.agent("r-1", &simulated(20))?;
    agent.start().await?;
    let blows = std::env::var("BLOWS").ok().and_then(|b| b.parse().ok()).unwrap_or(BLOWS);
    for blow in 0..blows {
        tokio::time::sleep(Duration::from_millis(500 + dice.roll(1500))).await;
        let down = Duration::from_millis(dice.roll(800));
        // Each process is killed at least once, then at random.
        match if blow < 4 { blow as u64 } else { dice.roll(4) } {
            0 => {
                agent.process.kill();
                tokio::time::sleep(down).await;
                agent.start().await?;
            }
            1 => {
                cloud.simcorp.kill();
                tokio::time::sleep(down).await;
                start_ingestion(&mut cloud).await?;
            }
            2 => {
                cloud.broker.kill();
                tokio::time::sleep(down).await;
                cloud.broker.restart().await?;
            }
            _ => {
                cloud.database.kill();
                tokio::time::sleep(down).await;
                cloud.database.restart().await?;
                if !cloud.simcorp.is_running() {
                    start_ingestion(&mut cloud).await?;
                }
            }
        }
    }
    // The agent is stopped last, so that its journal has every sample.
    wait_for("no frame is unsent", PATIENCE, || async {
        let state = agent.status().await.unwrap_or_default();
        state["uplinkConnected"] == true && state["journal"]["unsentFrames"] == 0
    })
    .await
    .map_err(|e| e.context(cloud.simcorp.log()))?;
    let status = agent.process.stop(Duration::from_secs(10)).await?;
    assert!(status.success(), "{}", agent.process.log());
    let kept = agent.journalled()?;
    let last = kept.last().map_or(0, |(number, _)| *number);
    let samples: i64 = kept.iter().map(|(_, samples)| samples).sum();
    assert_eq!(kept.len() as i64, last, "the journal has a gap");
    assert!(samples > 300, "only {samples} samples: too few for this test");
    // The frames that were stored during the stop are sent at the next start.
    agent.start().await?;
    let rows = "SELECT count(*) FROM points WHERE seq < ";
    wait_for("all samples are stored", PATIENCE, || async {
        cloud.database.query_number(&format!("{rows}{samples}")).is_ok_and(|n| n >= samples)
    })
    .await
    .map_err(|error| {
        let missing = "SELECT chain_no, next_number, gaps FROM chains";
        error.context(format!(
            "{samples} kept; {:?}\n{}",
            cloud.database.query("simcorp", missing),
            agent.process.log()
        ))
    })?;
    agent.process.stop(Duration::from_secs(10)).await?;
    assert_eq!(
        cloud.database.query_number(&format!("{rows}{samples}"))?,
        samples,
        "a sample is missing or duplicated"
    );
    let distinct = "SELECT count(DISTINCT (chain_no, seq)) FROM points";
    assert_eq!(
        cloud.database.query_number(distinct)?,
        cloud.database.query_number("SELECT count(*) FROM points")?
    );
    assert_eq!(
        cloud.database.query_number("SELECT count(*) FROM chains")?,
        1,
        "a new chain was started"
    );
    Ok(())
}

async fn start_ingestion(cloud: &mut Cloud) -> anyhow::Result<()> {
    cloud.simcorp.start()?;
    cloud.ready().await
}

/// The number of frames in an hour, one per second; the test creates them in little more than a
/// minute.
const HOUR_FRAMES: i64 = 3600;

#[tokio::test]
async fn after_an_hour_without_a_broker_live_frames_arrive_before_the_backlog() -> anyhow::Result<()>
{
    let mut cloud = Cloud::start().await?;
    let driver = simulated(1).replace("frame_ms = 100", "frame_ms = 20");
    let mut agent = cloud.agent("r-1", &driver)?;
    agent.start().await?;
    let unsent = async |agent: &crate::support::Agent| {
        agent.status().await.ok().and_then(|s| s["journal"]["unsentFrames"].as_i64())
    };
    wait_for("the uplink is connected", PATIENCE, || async {
        agent.status().await.is_ok_and(|s| s["uplinkConnected"] == true)
    })
    .await?;
    cloud.broker.kill();
    wait_for("a backlog of six minutes exists", PATIENCE, || async {
        unsent(&agent).await > Some(HOUR_FRAMES / 10)
    })
    .await?;
    let early = memory_kb(agent.process.pid());
    wait_for("a backlog of an hour exists", PATIENCE * 3, || async {
        unsent(&agent).await > Some(HOUR_FRAMES)
    })
    .await?;
    let late = memory_kb(agent.process.pid());
    cloud.broker.restart().await?;
    wait_for("the backlog is sent", PATIENCE, || async {
        unsent(&agent).await.is_some_and(|n| n < 32)
    })
    .await?;
    let drained = memory_kb(agent.process.pid());
    let status = agent.process.stop(Duration::from_secs(10)).await?;
    assert!(status.success(), "{}", agent.process.log());
    // The rows are in order of arrival: the first frame after the outage is newer than the backlog
    // that follows it.
    let order = cloud.database.query("simcorp", "SELECT number FROM frames ORDER BY arrival")?;
    let order: Vec<i64> = order.lines().filter_map(|line| line.parse().ok()).collect();
    let jump = order.windows(2).position(|pair| pair[1] > pair[0] + HOUR_FRAMES / 2);
    let jump =
        jump.ok_or_else(|| anyhow::anyhow!("no live frame overtook the backlog: {order:?}"))?;
    assert!(order[jump + 2..].iter().any(|n| *n < order[jump + 1]), "the backlog did not follow");
    println!("resident kB: early {early}, after the hour {late}, drained {drained}");
    assert!(early > 1_000 && drained > 1_000, "memory was not measured");
    let mut numbers = order.clone();
    numbers.sort_unstable();
    let first = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert_eq!(first, None, "a gap, or a duplicate frame");
    assert!(late < early + 2_048, "memory grew from {early} to {late} kB during the outage");
    assert!(drained < late + 4_096, "memory grew from {late} to {drained} kB while it drained");
    Ok(())
}

fn memory_kb(pid: Option<u32>) -> u64 {
    let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let line = status.as_deref().unwrap_or_default().lines().find(|l| l.starts_with("VmRSS"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn two_instances_share_the_load_and_store_each_sample_once() -> anyhow::Result<()> {
    let cloud = Cloud::start().await?;
    let (port, log) = (testbed::free_port()?, cloud.folder.path().join("second.log"));
    let settings = [
        format!("database.url={}", cloud.database.url()),
        "mqtt.host=127.0.0.1".to_owned(),
        format!("mqtt.port={}", cloud.broker.port),
        format!("ingestion.listen=127.0.0.1:{port}"),
        "ingestion.instance=2".to_owned(),
    ];
    let mut second = serve(&["ingestion"], &settings, log)?;
    second.start()?;
    testbed::wait_for_port(port).await.map_err(|error| error.context(second.log()))?;
    let mut agents = Vec::new();
    for machine in ["r-1", "r-2", "r-3"] {
        let mut agent = cloud.agent(machine, &simulated(1))?;
        agent.start().await?;
        agents.push(agent);
    }
    wait_for("200 frames are stored", PATIENCE, || async {
        cloud.database.query_number("SELECT count(*) FROM frames").is_ok_and(|n| n > 200)
    })
    .await?;
    let line = "simcorp_ingest_frames_total";
    let first = cloud.metric(line).await;
    let text = crate::support::client()
        .get(format!("http://127.0.0.1:{port}/metrics"))
        .send()
        .await?
        .text()
        .await?;
    let other = text
        .lines()
        .find(|l| l.starts_with(line))
        .and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(first > 20.0 && other > Some(20.0), "shared: {first} and {other:?}");
    let distinct = "SELECT count(*) - count(DISTINCT (chain_no, number)) FROM frames";
    assert_eq!(cloud.database.query_number(distinct)?, 0);
    Ok(())
}
