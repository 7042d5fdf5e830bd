//! `simcorp-edge enroll`: exchanges an enrolment token for a certificate.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use contract::enroll::EnrollRequest;
use contract::{DeviceId, SiteId};
use trust::EnrollmentToken;

use super::fleet_client::FleetClient;
use super::{Enrolled, folder, save, tls};
use crate::clock::GatewayClock;
use crate::config::EdgeConfig;
use crate::run;
use crate::trusted_clock::TrustedClock;

/// Enrols this gateway with the enrolment token `text`, stores the certificate, and prints the
/// result.
///
/// # Errors
/// In one sentence: what failed and what to do.
pub async fn enroll(config: &EdgeConfig, text: &str) -> anyhow::Result<()> {
    let token = EnrollmentToken::parse(text)
        .context("this is not an enrolment token; a token begins with sce1. and has no spaces")?;
    let (key_id, origin) = (run::key_id(config)?, run::origin(config)?);
    let signer = run::signer(config, &key_id)?;
    let request =
        trust::x509::create_request(&*signer).context("cannot create a certificate request")?;
    let folder = folder(config);
    std::fs::create_dir_all(&folder).with_context(|| {
        format!("cannot write to {}; run this as the agent's user", folder.display())
    })?;
    let time = TrustedClock::open(&folder, GatewayClock::start());
    let fleet =
        FleetClient::new(&token.url, tls::pinned_client_config(token.ca_fingerprint, &time)?)?;
    let enroll_request = EnrollRequest {
        token: text.trim().to_owned(),
        org_id: origin.org,
        site_id: SiteId::new(config.identity.site.clone())?,
        device: DeviceId::new(config.identity.device.clone())?,
        machines: vec![origin.machine],
        request: BASE64.encode(request),
    };
    let granted = fleet.enroll(&enroll_request).await?;
    let enrolled = Enrolled::from_grant(granted, &*signer)?;
    save(&folder, &enrolled.granted)?;
    time.raise_floor(enrolled.granted.now);
    let machines: Vec<&str> =
        enrolled.granted.machines.iter().map(contract::MachineId::as_str).collect();
    println!("{key_id} is enrolled for {}", machines.join(", "));
    println!("its certificate expires {}", enrolled.certificate.not_after);
    match (&enrolled.granted.broker, config.uplink.is_configured()) {
        (_, true) => println!("frames go to {}, the configured broker", config.uplink.host),
        (Some(broker), _) => println!("frames will go to {}:{}", broker.host, broker.port),
        (None, _) => println!("the fleet names no broker: set uplink.host"),
    }
    println!("restart the agent to use the certificate: systemctl restart simcorp-edge");
    Ok(())
}
