//! Tests that the broker authenticates devices by their certificates, and that each publishes only
//! as itself.

use std::time::Duration;

use crate::support::{Agent, Stack, simulated};
use anyhow::Context as _;
use service::mqtt::{BrokerSettings, ConnectionBounds};
use testbed::{Mosquitto, TestCa, wait_for};

const PATIENCE: Duration = Duration::from_secs(40);

/// Returns the access list of the configuration page, for the gateways gw-r-1 and gw-r-2.
fn documented_acl() -> anyhow::Result<String> {
    let page = testbed::workspace_root().join("docs/reference/configuration.md");
    let page = std::fs::read_to_string(page)?;
    let (_, list) = page.split_once("```\nuser simcorp\n").context("the page's access list")?;
    let (list, _) = list.split_once("```").context("the end of the list")?;
    let (cloud, gateway) = list.split_once("user gw-1\n").context("the gateway's lines")?;
    let of = |machine: &str| format!("user gw-{machine}\n{}", gateway.replace("drum-1", machine));
    Ok(format!("user simcorp\n{cloud}{}{}", of("r-1"), of("r-2")))
}

/// Publishes a message with a gateway's certificate, and returns whether the broker takes it.
async fn may_publish(broker: &BrokerSettings, client: &str, topic: &str) -> anyhow::Result<bool> {
    let bounds = ConnectionBounds { in_flight: 10, receive: 10, packet: 10_000 };
    let options = broker.options(client, bounds)?;
    let (client, mut events) = rumqttc::AsyncClient::builder(options).capacity(10).build();
    let once = rumqttc::PublishOptions::new(rumqttc::QoS::AtLeastOnce);
    client.publish(topic.to_owned(), b"{}".to_vec(), once).await?;
    loop {
        let event = tokio::time::timeout(PATIENCE, events.poll()).await??;
        if let rumqttc::Event::Incoming(rumqttc::Incoming::PubAck(answer)) = event {
            return Ok(answer.reason != rumqttc::PubAckReason::NotAuthorized);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_writes_frames_and_receipts_of_its_machine_and_nothing_else() -> anyhow::Result<()>
{
    let authority = TestCa::new()?;
    let broker = Mosquitto::start_tls(&authority, &documented_acl()?).await?;
    let gateway = authority.issue("gw-r-1")?;
    let settings = BrokerSettings {
        host: "127.0.0.1".to_owned(),
        port: broker.port,
        ca_file: Some(authority.certificate()),
        cert_file: Some(gateway.certificate),
        key_file: Some(gateway.key),
        ..BrokerSettings::default()
    };
    for (topic, allowed) in [
        ("roaster/org/leipzig/r-1/frames/live", true),
        ("roaster/org/leipzig/r-1/frames/backlog", true),
        ("roaster/org/leipzig/r-1/receipts", true),
        ("roaster/org/leipzig/r-1/acks", false),
        ("roaster/org/leipzig/r-1/telemetry", false),
        ("roaster/org/leipzig/r-2/frames/live", false),
        ("ops/org/leipzig/r-1/session/closed", false),
    ] {
        assert_eq!(may_publish(&settings, topic, topic).await?, allowed, "{topic}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_publishes_only_with_its_own_certificate() -> anyhow::Result<()> {
    let authority = TestCa::new()?;
    let broker = Mosquitto::start_tls(&authority, &documented_acl()?).await?;
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
