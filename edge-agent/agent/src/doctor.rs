//! `simcorp-edge doctor`: tests everything the agent needs, one after the other, and prints for
//! each what was found and what to do.

use std::path::Path;
use std::time::Duration;

use contract::ClockQuality;
use driver::{DriverError, DriverHandles};
use rumqttc::MqttOptions;

use crate::broker_endpoint::{BrokerEndpoint, connect_once};
use crate::clock::GatewayClock;
use crate::config::{DriverKind, EdgeConfig};
use crate::identity::Identity;
use crate::journal::{Journal, JournalError};
use crate::trusted_clock::TrustedClock;
use crate::{identity, machine, renamed_machine, run, status, uplink};

/// With less free space, in MB, the journal soon cannot reach its quota.
const FREE_MB_MIN: u64 = 64;

#[derive(Default)]
struct Report {
    looked_at: usize,
    failed: usize,
}

impl Report {
    fn add(&mut self, what: &str, result: Result<String, String>) {
        self.looked_at = self.looked_at.saturating_add(1);
        match result {
            Ok(found) => println!("ok    {what}: {found}"),
            Err(problem) => {
                self.failed = self.failed.saturating_add(1);
                println!("WRONG {what}: {problem}");
            }
        }
    }
}

/// Runs all tests and prints a report. Returns an error if any test failed, for scripts.
pub fn run_checks(config: &EdgeConfig) -> anyhow::Result<()> {
    let clock = GatewayClock::start();
    let mut report = Report::default();
    report.add("key", key(config));
    report.add("journal", journal(config));
    report.add("disk", disk(config));
    report.add(
        "clock",
        match clock.quality() {
            ClockQuality::Synchronised => Ok("set from the network".to_owned()),
            _ => Ok("not known to be set from the network: dates may be wrong, durations are not"
                .to_owned()),
        },
    );
    // Before the broker is tried: a broker with one connection per gateway ends the agent's for it.
    report.add("name", check_name(status::read(config).ok().as_ref()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if config.machine.driver == DriverKind::Profile {
        report.add("profile", profile(config));
    }
    if let Some(device) = &config.machine.profile.device {
        report.add("line", check_serial_device(device));
    }
    report.add("machine", runtime.block_on(machine(config)));
    report.add("certificate", runtime.block_on(check_certificate(config, clock)));
    report.add("cloud", runtime.block_on(check_broker(config, clock)));
    anyhow::ensure!(report.failed == 0, "{} of {} are wrong", report.failed, report.looked_at);
    Ok(())
}

/// Signs a test text, verifies the signature and discards both.
fn key(config: &EdgeConfig) -> Result<String, String> {
    let id = run::key_id(config).map_err(|e| e.to_string())?;
    let signer = run::signer(config, &id).map_err(|e| e.to_string())?;
    let public = signer.public_key().map_err(|e| e.to_string())?;
    let message = trust::sign_message(&*signer, trust::CONTENT_FRAME, b"doctor".to_vec());
    let signed = trust::SignedMessage::parse(&message.map_err(|e| e.to_string())?);
    let fits = signed.is_ok_and(|signed| signed.verify(&public).is_ok());
    let at = if config.identity.uses_signer_socket() { "in a PKCS#11 token" } else { "in a file" };
    if fits {
        Ok(format!("{id}, {}, {at}", public.algorithm().as_str()))
    } else {
        Err(format!("{id}: the signature does not match the key; create a new key"))
    }
}

fn journal(config: &EdgeConfig) -> Result<String, String> {
    match Journal::open(&config.journal.folder, config.journal.quota_mb) {
        Ok(journal) => {
            let totals = journal.totals().map_err(|e| e.to_string())?;
            let found = format!("{} frames, {} unsent", totals.frames, totals.unsent_frames);
            let before = journal.machine().map_err(|e| e.to_string())?;
            let renamed = before.zip(config.origin());
            Ok(match renamed.and_then(|(before, now)| renamed_machine::hint(&before, &now)) {
                Some(hint) => format!("{found}\n      try: {hint}"),
                None => found,
            })
        }
        Err(JournalError::Locked { .. }) => Ok("in use by the running agent".to_owned()),
        Err(error @ JournalError::Damaged { .. }) => {
            Err(format!("{error}; the agent salvages its frames when it starts"))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn profile(config: &EdgeConfig) -> Result<String, String> {
    let checked = config.machine.profile.load()?;
    let m = &checked.profile.machine;
    let verified = if m.verified {
        "verified at the machine"
    } else {
        "not verified: compare each value with the panel before you rely on it"
    };
    Ok(format!("{} version {}, sha256 {}; {verified}", m.id, m.version, checked.digest))
}

/// Checks that the serial device exists and may be opened. Does not check that a machine answers on
/// it.
fn check_serial_device(device: &Path) -> Result<String, String> {
    use rustix::fs::{Access, access};
    let shown = device.display();
    if !device.exists() {
        let others = std::fs::read_dir("/dev/serial/by-id").into_iter().flatten().flatten();
        let others: Vec<String> = others.map(|e| e.path().display().to_string()).collect();
        let hint = if others.is_empty() {
            "no adapter is plugged in".to_owned()
        } else {
            format!("there is {}", others.join(", "))
        };
        return Err(format!("{shown} does not exist; {hint}"));
    }
    access(device, Access::READ_OK | Access::WRITE_OK).map_err(|_| {
        format!("{shown}: no permission; join its group, usually: usermod -aG dialout USER")
    })?;
    Ok(format!("{shown} exists"))
}

fn disk(config: &EdgeConfig) -> Result<String, String> {
    let folder = &config.journal.folder;
    let fs = rustix::fs::statvfs(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let free_mb = fs.f_bavail.saturating_mul(fs.f_frsize) / (1024 * 1024);
    if free_mb < FREE_MB_MIN {
        return Err(format!("{free_mb} MB free in {}; free some space", folder.display()));
    }
    Ok(format!("{free_mb} MB free"))
}

async fn machine(config: &EdgeConfig) -> Result<String, String> {
    let mut driver = machine::open(config, DriverHandles::default()).map_err(|e| e.to_string())?;
    let answer = match driver.read(1_000).await {
        // An Arduino restarts when its port is opened.
        Err(DriverError::Settling(_, ms)) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            driver.read(ms.saturating_add(1_000)).await
        }
        other => other,
    };
    // What to try for single units, although others answered.
    let mut advice = driver.advice();
    match answer {
        Ok(reading) => Ok(with_advice(&machine::format_reading(&reading), &advice)),
        Err(error) => {
            advice.extend(error.advice());
            Err(with_advice(&error.to_string(), &advice))
        }
    }
}

/// Returns a text followed by what to try, a line each.
fn with_advice(text: &str, advice: &[&'static str]) -> String {
    let mut lines = vec![text.to_owned()];
    for advice in advice {
        let line = format!("      try: {advice}");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// Presents the certificate from enrolment to the fleet service.
async fn check_certificate(config: &EdgeConfig, clock: GatewayClock) -> Result<String, String> {
    let folder = identity::folder(config);
    let id = run::key_id(config).map_err(|e| e.to_string())?;
    let signer = run::signer(config, &id).map_err(|e| e.to_string())?;
    let time = TrustedClock::open(&folder, clock);
    let opened = Identity::open(&folder, signer, time).map_err(|e| e.to_string())?;
    let Some(identity) = opened else {
        return Ok("not enrolled; get a certificate with: simcorp-edge enroll".to_owned());
    };
    identity.verify_with_fleet().await
}

async fn check_broker(config: &EdgeConfig, clock: GatewayClock) -> Result<String, String> {
    let folder = identity::folder(config);
    let id = run::key_id(config).map_err(|e| e.to_string())?;
    let signer = run::signer(config, &id).map_err(|e| e.to_string())?;
    let time = TrustedClock::open(&folder, clock);
    let identity = Identity::open(&folder, signer, time).unwrap_or_default();
    let endpoint = identity.as_ref().map(|i| BrokerEndpoint::resolve(config, &i.enrolled()));
    if let (Some(identity), Some(endpoint)) = (&identity, endpoint) {
        let endpoint = endpoint.map_err(|e| format!("uplink.ca_file: {e}"))?;
        if let Some(endpoint) = endpoint {
            let tls = identity.client_config(&endpoint.authority).map_err(|e| e.to_string())?;
            let options = endpoint.options(tls, "-doctor").map_err(|e| e.to_string())?;
            return connect(options, &endpoint.address()).await;
        }
    }
    if !config.uplink.is_configured() {
        return Ok("not configured".to_owned());
    }
    let options = config
        .uplink
        .options("simcorp-edge-doctor", uplink::MQTT_BOUNDS)
        .map_err(|e| e.to_string())?;
    connect(options, &format!("{}:{}", config.uplink.host, config.uplink.port)).await
}

/// Checks that no other agent uses this device's name, as far as the running agent knows.
fn check_name(status: Option<&serde_json::Value>) -> Result<String, String> {
    let Some(status) = status else {
        return Ok("the agent is not running; it notices another one with its name".to_owned());
    };
    match status["nameConflict"].as_str() {
        Some(problem) => Err(problem.to_owned()),
        None => Ok("no other agent with this name was noticed".to_owned()),
    }
}

async fn connect(options: MqttOptions, target: &str) -> Result<String, String> {
    let result = connect_once(options).await;
    result.map(|()| format!("{target} answers")).map_err(|e| format!("{target}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_agent_with_this_name_is_reported() {
        let status = serde_json::json!({"nameConflict": "another agent uses this name"});
        assert_eq!(check_name(Some(&status)), Err("another agent uses this name".to_owned()));
        assert!(check_name(Some(&serde_json::json!({"nameConflict": null}))).is_ok());
        assert!(check_name(None).is_ok(), "the agent is not running");
    }

    #[test]
    fn advice_follows_the_problem_once() {
        let text = with_advice("plc unit 1 does not answer", &["swap A and B", "swap A and B"]);
        assert_eq!(text, "plc unit 1 does not answer\n      try: swap A and B");
    }
}
