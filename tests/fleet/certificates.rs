//! Tests that the broker authenticates devices by their certificates, and that each publishes only
//! as itself.

use std::time::Duration;

use crate::support::{Agent, Stack, simulated};
use testbed::{Mosquitto, TestCa, wait_for};

const PATIENCE: Duration = Duration::from_secs(40);
/// The cloud may use all topics; a gateway may use only those of its machines.
const ACL: &str = "user simcorp\ntopic readwrite #\n\
                   user gw-r-1\ntopic write roaster/org/leipzig/r-1/#\n\
                   topic read roaster/org/leipzig/r-1/acks\n\
                   user gw-r-2\ntopic write roaster/org/leipzig/r-2/#\n\
                   topic read roaster/org/leipzig/r-2/acks\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_publishes_only_with_its_own_certificate() -> anyhow::Result<()> {
    let authority = TestCa::new()?;
    let broker = Mosquitto::start_tls(&authority, ACL).await?;
    let ca = authority.certificate().display().to_string();
    let cloud = authority.issue("simcorp")?;
    let stack = Stack::start(
        &["ingestion"],
        &[
            "broker.embedded=false".to_owned(),
            "mqtt.host=127.0.0.1".to_owned(),
            format!("mqtt.port={}", broker.port),
            format!("mqtt.ca_file={ca}"),
            format!("mqtt.cert_file={}", cloud.certificate.display()),
            format!("mqtt.key_file={}", cloud.key.display()),
        ],
    )
    .await?;
    let uplink = |name: Option<&str>| -> anyhow::Result<String> {
        let plain = format!("host = \"127.0.0.1\"\nport = {}\nca_file = \"{ca}\"", broker.port);
        let Some(name) = name else { return Ok(plain) };
        let own = authority.issue(name)?;
        Ok(format!(
            "{plain}\ncert_file = \"{}\"\nkey_file = \"{}\"",
            own.certificate.display(),
            own.key.display()
        ))
    };
    let mut honest = Agent::new("r-1", &simulated(20), &uplink(Some("gw-r-1"))?)?;
    // This agent signs correctly, but presents another gateway's certificate: the broker must
    // reject all that it publishes.
    let mut other = Agent::new("r-3", &simulated(20), &uplink(Some("gw-r-2"))?)?;
    let mut nobody = Agent::new("r-2", &simulated(20), &uplink(None)?)?;
    for agent in [&honest, &other, &nobody] {
        let file = agent.folder.path().join("device.json");
        std::fs::write(&file, agent.command(&["key", "create"])?)?;
        stack.operate(&["device", "add", &file.display().to_string()])?;
    }
    for agent in [&mut honest, &mut other, &mut nobody] {
        agent.start().await?;
    }
    let machines = || async {
        let list = stack.get("ingestion", "/machines").await.unwrap_or_default();
        list.to_string()
    };
    wait_for("the gateway's samples are stored", PATIENCE, || async {
        machines().await.contains("r-1")
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let found = machines().await;
    assert!(!found.contains("r-2") && !found.contains("r-3"), "{found}");
    // The rejected agents still have their samples.
    for agent in [&mut other, &mut nobody] {
        agent.process.stop(Duration::from_secs(10)).await?;
        assert!(!agent.journalled()?.is_empty());
    }
    Ok(())
}
