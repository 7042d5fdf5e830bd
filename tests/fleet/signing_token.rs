//! Tests a gateway whose key is in a PKCS#11 token: its frames arrive, a hung token costs no
//! sample, and the private key is only in the token.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Command;

use crate::support::{Agent, Cloud, PATIENCE};
use testbed::token::{PIN, Pkcs11Token};
use testbed::{Process, wait_for};

const DRIVER: &str = "driver = \"simulated\"\n[machine.simulated]\ncharge_after_s = 2\n\
                      [sampling]\nperiod_ms = 50\nframe_ms = 200\n";

/// Creates a P-256 key with a known private half and imports it into a new token; returns its 32
/// secret bytes.
fn known_key(folder: &Path, token: &Pkcs11Token) -> anyhow::Result<Vec<u8>> {
    let pem = folder.join("known.pem");
    let pem_text = pem.display().to_string();
    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).output();
    let made = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"];
    anyhow::ensure!(openssl(&[&made[..], &[&pem_text]].concat())?.status.success());
    let text = openssl(&["ec", "-in", &pem_text, "-noout", "-text"])?;
    let text = String::from_utf8(text.stdout)?;
    let secret = text.split("priv:").nth(1).and_then(|t| t.split("pub:").next()).unwrap_or("");
    let secret: Vec<u8> = secret
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| !word.is_empty())
        .map(|word| u8::from_str_radix(word, 16))
        .collect::<Result<_, _>>()?;
    let secret = secret[secret.len() - 32..].to_vec();
    let imported = Command::new("softhsm2-util")
        .args(["--import", &pem_text, "--token", "simcorp", "--label", "simcorp-edge"])
        .args(["--id", "01", "--pin", PIN])
        .envs(token.environment.iter().map(|(name, value)| (name, value)))
        .output()?;
    anyhow::ensure!(imported.status.success(), "{imported:?}");
    std::fs::remove_file(pem)?;
    Ok(secret)
}

fn signer(agent: &Agent, token: &Pkcs11Token) -> anyhow::Result<Process> {
    crate::support::signer(agent.folder.path(), token, ("leipzig", "gw-drum-1"), "")
}

/// Returns whether `needle` is in the memory of a process, as a core dump would show.
fn in_memory(pid: u32, needle: &[u8]) -> anyhow::Result<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in maps.lines().filter(|line| line.contains(" r") && !line.contains("[v")) {
        let range = line.split(' ').next().unwrap_or("");
        let Some((from, to)) = range.split_once('-') else { continue };
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        memory.seek(SeekFrom::Start(from))?;
        let mut bytes = vec![0; usize::try_from(to - from)?];
        if memory.read_exact(&mut bytes).is_ok()
            && bytes.windows(needle.len()).any(|window| window == needle)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns whether `needle` is in any file below a folder.
fn on_disk(folder: &Path, needle: &[u8]) -> anyhow::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = if entry.file_type()?.is_dir() {
            on_disk(&entry.path(), needle)?
        } else {
            std::fs::read(entry.path())
                .is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test]
async fn a_hung_token_costs_no_sample_and_its_key_is_only_in_the_token() -> anyhow::Result<()> {
    let cloud = Cloud::start().await?;
    let uplink = format!("host = \"127.0.0.1\"\nport = {}", cloud.broker.port);
    let mut agent = Agent::new("drum-1", DRIVER, &uplink)?;
    let text = std::fs::read_to_string(&agent.config)?;
    let at = agent.folder.path().display();
    let by_token = text.replace(
        &format!("key_file = \"{at}/key.pem\""),
        &format!("signer_socket = \"{at}/signer.sock\""),
    );
    std::fs::write(&agent.config, by_token)?;
    let keys = tempfile::tempdir()?;
    let token = Pkcs11Token::softhsm(keys.path())?;
    let secret = known_key(keys.path(), &token)?;

    let mut signer = signer(&agent, &token)?;
    signer.start()?;
    wait_for("the public key is shown", PATIENCE, || async {
        agent.command(&["key", "show"]).is_ok()
    })
    .await?;
    let device = agent.folder.path().join("device.json");
    std::fs::write(&device, agent.command(&["key", "show"])?)?;
    cloud.operate(&["device", "add", &device.display().to_string()])?;
    signer.kill();

    // The agent starts without its signer: it samples, and stores the frames that it cannot sign.
    agent.start().await?;
    let waits = async || agent.status().await.map(|s| s["journal"]["unsignedFrames"].as_i64());
    wait_for("frames wait for a signature", PATIENCE, || async {
        waits().await.is_ok_and(|n| n > Some(5))
    })
    .await?;
    assert!(agent.status().await?["keyError"].is_string());
    signer.start()?;
    let all_sent = async || {
        let status = agent.status().await?;
        let waits = |name: &str| status["journal"][name].as_i64() == Some(0);
        anyhow::Ok(waits("unsignedFrames") && waits("unsentFrames") && status["keyError"].is_null())
    };
    wait_for("all frames are signed and sent", PATIENCE * 2, || async {
        all_sent().await.unwrap_or(false)
    })
    .await?;

    // The token hangs for a while: the signer runs and does not answer.
    let before = agent.status().await?["samples"].as_u64();
    signer.pause()?;
    wait_for("frames wait for a signature", PATIENCE, || async {
        waits().await.is_ok_and(|n| n > Some(10))
    })
    .await?;
    let wedged = agent.status().await?;
    assert!(wedged["samples"].as_u64() > before, "sampling must continue");
    assert_eq!(wedged["samplesDropped"].as_u64(), Some(0), "{wedged}");
    signer.resume()?;
    wait_for("all frames are signed and sent", PATIENCE * 2, || async {
        all_sent().await.unwrap_or(false)
    })
    .await?;

    let pid = agent.process.pid().expect("it runs");
    assert!(in_memory(pid, b"signer.sock")?, "the search must find a text that is in memory");
    assert!(!in_memory(pid, &secret)?, "the agent's memory holds the private key");
    assert!(!in_memory(pid, PIN.as_bytes())?, "the agent's memory holds the PIN");
    assert!(!on_disk(agent.folder.path(), &secret)?, "the gateway's disk holds the private key");
    assert!(!on_disk(keys.path(), &secret)?, "the token's store holds the private key unencrypted");
    assert!(agent.process.stop(PATIENCE).await?.success());

    // Every acknowledged sample is in the database, without a gap, whenever it was signed.
    let acknowledged = acknowledged(&agent)?;
    let points = cloud.database.query_number("SELECT count(*) FROM points")?;
    assert!(points >= acknowledged, "{points} of {acknowledged}");
    let holes =
        cloud.database.query_number("SELECT max(seq) + 1 - count(DISTINCT seq) FROM points")?;
    assert_eq!((holes, cloud.database.query_number("SELECT min(seq) FROM points")?), (0, 0));
    Ok(())
}

fn acknowledged(agent: &Agent) -> anyhow::Result<i64> {
    let journal = agent.folder.path().join("journal/journal.db");
    let db = rusqlite::Connection::open(journal)?;
    let sql = "SELECT sum(samples) FROM frames WHERE state = 1";
    Ok(db.query_row(sql, [], |row| row.get(0))?)
}
