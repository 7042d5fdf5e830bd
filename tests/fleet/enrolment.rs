//! Tests a gateway from its enrolment to its revocation: its key is created in a PKCS#11 token, the
//! broker and the fleet authenticate it by its certificate, and every other client is rejected.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Agent, Stack, create_key, signer, simulated};
use anyhow::Context as _;
use serde_json::Value;
use testbed::token::Pkcs11Token;
use testbed::{Mosquitto, Process, TestCa, binary_path, wait_for};
use trust::x509::Certificate;

const PATIENCE: Duration = Duration::from_secs(40);

/// A cloud whose broker accepts only certificates.
struct Cloud {
    stack: Stack,
    broker: Mosquitto,
    /// Issues the certificates of the broker and the services, not those of gateways.
    _services: TestCa,
    _folder: tempfile::TempDir,
}

impl Cloud {
    async fn start(extra: &[String]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let services = TestCa::new()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let given = extra.iter().filter(|set| set.starts_with("fleet.authority"));
        let mut authority: Vec<String> = given.map(|set| format!("--set={set}")).collect();
        if authority.is_empty() {
            authority = vec![
                format!("--set=fleet.authority.cert_file={}", at("authority.pem")),
                format!("--set=fleet.authority.key_file={}", at("authority.key")),
            ];
        }
        let operate = |what: &str| -> anyhow::Result<String> {
            let mut command = Command::new(binary_path("simcorp")?);
            let output = command.args(&authority).args(["authority", what]).output()?;
            anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8(output.stdout)?)
        };
        operate("create")?;
        let again = operate("create").unwrap_err().to_string();
        assert!(again.contains("there is an authority already"), "{again}");
        let (broker, outer) = Mosquitto::start_fleet(&services, &operate("show")?).await?;
        let own = services.issue("simcorp")?;
        let ca = services.certificate().display().to_string();
        let mut settings = vec![
            "broker.embedded=false".to_owned(),
            "mqtt.host=127.0.0.1".to_owned(),
            format!("mqtt.port={}", broker.port),
            format!("mqtt.ca_file={ca}"),
            format!("mqtt.cert_file={}", own.certificate.display()),
            format!("mqtt.key_file={}", own.key.display()),
            "fleet.broker.dynamic_security=true".to_owned(),
            "fleet.broker.host=localhost".to_owned(),
            format!("fleet.broker.port={outer}"),
            format!("fleet.broker.ca_file={ca}"),
        ];
        settings.extend(authority.iter().map(|set| set.trim_start_matches("--set=").to_owned()));
        settings.extend_from_slice(extra);
        let stack = Stack::start(&["kernel", "ingestion", "fleet"], &settings).await?;
        Ok(Self { stack, broker, _services: services, _folder: folder })
    }

    fn token(&self, device: &str, machine: &str, more: &[&str]) -> anyhow::Result<String> {
        let mut arguments =
            vec!["device", "enroll", device, "--site", "leipzig", "--machine", machine];
        arguments.extend_from_slice(more);
        Ok(self.stack.operate(&arguments)?.trim().to_owned())
    }

    async fn machines(&self) -> String {
        self.stack.get("ingestion", "/machines").await.unwrap_or_default().to_string()
    }

    async fn points(&self, machine: &str) -> i64 {
        let list = self.stack.get("ingestion", "/sessions?limit=5").await.unwrap_or_default();
        let of = |session: &&Value| session["machineId"] == machine;
        let found = list.as_array().and_then(|list| list.iter().find(of).cloned());
        found.and_then(|session| session["telemetryPoints"].as_i64()).unwrap_or(0)
    }
}

fn machine_of(agent: &Agent) -> anyhow::Result<String> {
    let text: toml::Table = std::fs::read_to_string(&agent.config)?.parse()?;
    Ok(text["machine"]["id"].as_str().unwrap().to_owned())
}

/// A gateway whose key is in a PKCS#11 token, behind its signer.
struct Gateway {
    agent: Agent,
    token: Pkcs11Token,
    signer: Process,
}

impl Gateway {
    async fn new(machine: &str) -> anyhow::Result<Self> {
        let agent = Agent::new(machine, &simulated(20), "")?;
        let token = Pkcs11Token::softhsm(agent.folder.path())?;
        Self::with(agent, token).await
    }

    /// Creates a gateway with a TPM: its key is P-256, and signing is slow.
    async fn with_tpm(machine: &str) -> anyhow::Result<Self> {
        let agent = Agent::new(machine, &simulated(20), "")?;
        let token = Pkcs11Token::tpm(agent.folder.path()).await?;
        Self::with(agent, token).await
    }

    async fn with(agent: Agent, token: Pkcs11Token) -> anyhow::Result<Self> {
        let folder = agent.folder.path();
        let machine = machine_of(&agent)?;
        let text = std::fs::read_to_string(&agent.config)?;
        let key = format!("key_file = \"{}/key.pem\"", folder.display());
        let socket = format!("signer_socket = \"{}/signer.sock\"", folder.display());
        assert!(text.contains(&key));
        std::fs::write(&agent.config, text.replace(&key, &socket))?;
        let device = format!("gw-{machine}");
        let signer = signer(folder, &token, ("leipzig", &device), "")?;
        let mut gateway = Self { agent, token, signer };
        gateway.new_key("").await?;
        Ok(gateway)
    }

    /// Creates a key in the token and restarts the signer with it.
    async fn new_key(&mut self, label: &str) -> anyhow::Result<()> {
        let folder = self.agent.folder.path();
        let device = format!("gw-{}", machine_of(&self.agent)?);
        let more = if label.is_empty() { String::new() } else { format!("label = \"{label}\"") };
        self.signer.kill();
        let socket = folder.join("signer.sock");
        let _ = std::fs::remove_file(&socket);
        self.signer = signer(folder, &self.token, ("leipzig", &device), &more)?;
        create_key(folder, &self.token)?;
        self.signer.start()?;
        wait_for("the signer's socket exists", PATIENCE, || async { socket.exists() }).await
    }

    fn enroll(&self, token: &str) -> anyhow::Result<String> {
        let file = self.agent.folder.path().join("token.txt");
        std::fs::write(&file, format!("{token}\n"))?;
        self.agent.command(&["enroll", "--token-file", &file.display().to_string()])
    }

    /// Enrols with a token that is in no file and no argument.
    fn enroll_from_stdin(&self, token: &str) -> anyhow::Result<String> {
        let mut command = Command::new(binary_path("simcorp-edge")?);
        command.arg("--config").arg(&self.agent.config).args(["enroll", "--token-file", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        writeln!(child.stdin.take().context("no standard input")?, "{token}")?;
        let output = child.wait_with_output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn certificate(&self) -> Certificate {
        let file = self.agent.journal().join("identity/identity.json");
        let kept: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        Certificate::from_pem(kept["certificate"].as_str().unwrap()).unwrap()
    }

    async fn state(&self) -> Value {
        self.agent.status().await.unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_enrolled_once_and_revoked_within_a_minute() -> anyhow::Result<()> {
    let cloud = Cloud::start(&[]).await?;
    let mut honest = Gateway::new("r-1").await?;
    let token = cloud.token("gw-r-1", "r-1", &[])?;
    // A request that does not fit the token is refused before the token is used.
    let other = Gateway::new("r-2").await?;
    let refused = other.enroll(&token).unwrap_err().to_string();
    assert!(
        refused.contains("not a request of device:gw-r-2")
            || refused.contains("the token is for device:gw-r-1@leipzig"),
        "{refused}"
    );
    let told = honest.enroll(&token).map_err(|e| e.context(cloud.stack.process.log()))?;
    assert!(told.contains("device:gw-r-1@leipzig is enrolled for r-1"), "{told}");
    // The same gateway may enrol again, as if the answer had been lost; another key may not.
    honest.enroll_from_stdin(&token).map_err(|e| e.context(cloud.stack.process.log()))?;
    let mut thief = Gateway::new("r-1").await?;
    let refused = thief.enroll(&token).unwrap_err().to_string();
    assert!(refused.contains("was used by another gateway"), "{refused}");
    let forged = token.replace('.', "x");
    assert!(thief.enroll(&forged).unwrap_err().to_string().contains("not an enrolment token"));
    // An enrolment token names its authority: the gateway sends the secret to no other authority.
    let mut parts: Vec<&str> = token.split('.').collect();
    parts[2] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let refused = thief.enroll(&parts.join(".")).unwrap_err().to_string();
    assert!(refused.contains("another authority than the token names"), "{refused}");

    honest.agent.start().await?;
    wait_for("samples are stored", PATIENCE, || async { cloud.points("r-1").await > 100 })
        .await
        .map_err(|e| e.context(honest.agent.process.log()).context(cloud.stack.process.log()))?;
    let doctor = honest.agent.command(&["doctor"])?;
    assert!(doctor.contains("ok    certificate: good until"), "{doctor}");

    // Another gateway of the fleet publishes for a machine that it does not own.
    let text = std::fs::read_to_string(&other.agent.config)?;
    let second = cloud.token("gw-r-2", "r-2", &[])?;
    other.enroll(&second).map_err(|e| e.context(cloud.stack.process.log()))?;
    std::fs::write(&other.agent.config, text.replace("id = \"r-2\"", "id = \"r-9\""))?;
    let mut other = other;
    other.agent.start().await?;
    wait_for("the broker denies the subscription", PATIENCE, || async {
        other.state().await["uplinkError"].to_string().contains("denies this gateway")
    })
    .await?;
    assert!(!cloud.machines().await.contains("r-9"));
    // After the gateway is authorised for the machine, it connects without a restart.
    let body = serde_json::json!({"machines": ["r-2", "r-9"]});
    let at = ("fleet", "/devices/device:gw-r-2@leipzig/machines");
    let (status, told) = cloud.stack.send(reqwest::Method::PUT, at, &body).await?;
    assert_eq!(status, 200, "{told}");
    wait_for("samples of r-9 are stored", PATIENCE, || async { cloud.points("r-9").await > 50 })
        .await
        .map_err(|e| e.context(other.agent.process.log()).context(cloud.stack.process.log()))?;

    // A revoked gateway is disconnected by the broker and refused by the fleet.
    let started = tokio::time::Instant::now();
    cloud.stack.operate(&["device", "revoke", "device:gw-r-1@leipzig"])?;
    wait_for("the revoked gateway is disconnected", Duration::from_mins(1), || async {
        honest.state().await["uplinkConnected"] == false
    })
    .await?;
    println!("revoked within {:?}", started.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = cloud.points("r-1").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cloud.points("r-1").await, before);
    let doctor = honest.agent.command(&["doctor"]).unwrap_err().to_string();
    assert!(doctor.contains("are wrong"), "{doctor}");
    // The revocation is permanent: not even an enrolment token makes the name valid again.
    let again = cloud.token("gw-r-1", "r-1", &["--replaces"]).unwrap_err().to_string();
    assert!(again.contains("was revoked, for good"), "{again}");
    let audit = cloud.stack.get("kernel", "/audit?limit=200").await?.to_string();
    for action in ["enrollment.create", "key.add", "certificate.issue", "device.revoke"] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
    thief.signer.kill();
    Ok(())
}

/// Creates an authority whose key is in a PKCS#11 token.
async fn authority_in_a_token(
    folder: &Path,
) -> anyhow::Result<(Pkcs11Token, Process, Vec<String>)> {
    let token = Pkcs11Token::softhsm(folder)?;
    let more = "label = \"authority\"\npurposes = [\"certificate\"]";
    let mut signer = signer(folder, &token, ("fleet", "authority"), more)?;
    create_key(folder, &token)?;
    signer.start()?;
    let socket = folder.join("signer.sock");
    wait_for("the signer's socket exists", PATIENCE, || async { socket.exists() }).await?;
    let settings = vec![
        format!("fleet.authority.signer_socket={}", socket.display()),
        format!("fleet.authority.cert_file={}", folder.join("authority.pem").display()),
    ];
    Ok((token, signer, settings))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_before_it_expires_and_recovered_by_a_person() -> anyhow::Result<()>
{
    let folder = tempfile::tempdir()?;
    let (_token, _signer, mut settings) = authority_in_a_token(folder.path()).await?;
    settings.push("fleet.certificate_life_s=30".to_owned());
    let cloud = Cloud::start(&settings).await?;
    let mut gateway = Gateway::with_tpm("r-1").await?;
    gateway.enroll(&cloud.token("gw-r-1", "r-1", &[])?)?;
    let first = gateway.certificate();
    gateway.agent.start().await?;
    wait_for("the certificate is renewed", PATIENCE, || async { gateway.certificate() != first })
        .await?;
    let second = gateway.certificate();
    assert_eq!((&second.common_name, &second.public_key), (&first.common_name, &first.public_key));
    assert!(second.not_before < first.not_after, "renewed after the first certificate had expired");
    wait_for("samples are stored", PATIENCE, || async { cloud.points("r-1").await > 100 }).await?;

    // The gateway is off for longer than its certificate is valid; then it requests a recovery, and
    // a person approves it.
    gateway.agent.process.stop(Duration::from_secs(10)).await?;
    tokio::time::sleep(Duration::from_secs(31)).await;
    gateway.agent.start().await?;
    wait_for("the recovery request is listed", PATIENCE, || async {
        cloud.stack.operate(&["device", "recover"]).unwrap().contains("device:gw-r-1@leipzig")
    })
    .await?;
    wait_for("the agent reports that a person must approve", PATIENCE, || async {
        gateway.state().await["identityError"].to_string().contains("a person must approve it")
    })
    .await?;
    let kept = gateway.certificate();
    assert!(kept == second || kept.not_after < now());
    cloud.stack.operate(&["device", "recover", "device:gw-r-1@leipzig"])?;
    wait_for("a new certificate is issued", PATIENCE, || async {
        gateway.certificate().not_after > kept.not_after
    })
    .await?;
    wait_for("the uplink is connected", PATIENCE, || async {
        gateway.state().await["uplinkConnected"] == true
    })
    .await?;
    let shown = cloud.stack.operate(&["device", "show", "device:gw-r-1@leipzig"])?;
    for why in ["enrolled", "renewed", "recovered"] {
        assert!(shown.contains(&format!("\"why\": \"{why}\"")), "{shown}");
    }
    Ok(())
}

#[allow(clippy::disallowed_methods)] // the test's own clock
fn now() -> contract::EpochMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    contract::EpochMs(i64::try_from(since.as_millis()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_key_still_verifies_the_frames_it_signed() -> anyhow::Result<()> {
    let mut cloud = Cloud::start(&[]).await?;
    let mut gateway = Gateway::new("r-1").await?;
    gateway.enroll(&cloud.token("gw-r-1", "r-1", &[])?)?;
    let old = gateway.certificate();
    gateway.agent.start().await?;
    wait_for("samples are stored", PATIENCE, || async { cloud.points("r-1").await > 20 }).await?;
    // Frames signed with the old key wait, since the broker is down.
    cloud.broker.kill();
    let before = gateway.state().await["journal"]["frames"].as_i64().unwrap_or(0);
    wait_for("frames wait in the journal", PATIENCE, || async {
        gateway.state().await["journal"]["frames"].as_i64().unwrap_or(0) > before + 20
    })
    .await?;
    gateway.agent.process.stop(Duration::from_secs(10)).await?;
    gateway.new_key("second").await?;
    let plain = cloud.token("gw-r-1", "r-1", &[]).unwrap_err().to_string();
    assert!(plain.contains("set replaces"), "{plain}");
    gateway.enroll(&cloud.token("gw-r-1", "r-1", &["--replaces"])?)?;
    assert_ne!(gateway.certificate().public_key, old.public_key);
    cloud.broker.restart().await?;
    gateway.agent.start().await?;
    wait_for("all frames are sent", PATIENCE, || async {
        let state = gateway.state().await;
        let journal = &state["journal"];
        journal["frames"].as_i64().unwrap_or(0) > before + 40
            && journal["unsentFrames"].as_i64().unwrap_or(99) < 10
    })
    .await
    .map_err(|e| e.context(gateway.agent.process.log()))?;
    let shown = cloud.stack.operate(&["device", "show", "device:gw-r-1@leipzig"])?;
    let shown: Value = serde_json::from_str(&shown)?;
    let keys = shown["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    assert!(keys[0]["retiredAt"].is_string() && keys[0]["believedUntil"].is_string(), "{shown}");
    assert!(keys[1]["retiredAt"].is_null());
    assert_eq!(keys[0]["publicKey"], old.public_key.to_pem());
    Ok(())
}
