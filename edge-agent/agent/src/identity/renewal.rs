//! Renews the gateway's certificate before it expires, and recovers an expired one.
//!
//! A renewal is due after two thirds of the certificate's life plus a random delay, so that the
//! gateways of a fleet do not all renew at once. The new certificate replaces the old one only
//! after a real connection was made with it, to the fleet and to the broker. Without internet the
//! old certificate stays in use. Once it has expired, the gateway requests another for the same
//! key, and a person must approve it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use contract::EpochMs;
use contract::enroll::{CertificateGrant, RecoverRequest, RenewRequest};
use service::backoff::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trust::tls::{ClientCertificate, HandshakeKey};

use super::fleet_client::{FleetClient, FleetError, RecoveryResult};
use super::{Enrolled, Identity, IdentityError, tls};
use crate::agent_state::AgentState;
use crate::broker_endpoint::{BrokerEndpoint, connect_once};
use crate::config::EdgeConfig;

/// How often the agent checks whether a renewal is due. A gateway may sleep, and its clock may
/// jump.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const TRY_MIN: Duration = Duration::from_secs(10);
const TRY_MAX: Duration = Duration::from_mins(30);
/// The pause after a success: a clock that jumps must not cause one renewal after another without a
/// pause.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How often the agent asks whether a person has decided: often at first, while that person may
/// stand beside the gateway.
const DECIDED_MIN: Duration = Duration::from_secs(5);
const DECIDED_MAX: Duration = Duration::from_mins(5);
/// How often the agent sends `hello` to the fleet, which answers with its time and verifies that
/// the gateway is still registered.
const HELLO_EVERY: Duration = Duration::from_hours(6);

/// How often the known time is stored: a power cut loses at most this much.
const SAVE_EVERY: Duration = Duration::from_hours(1);

/// Why there is no new certificate yet.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Fleet(#[from] FleetError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the new certificate does not work, so the old one stays in use: {0}")]
    Unproven(String),
    #[error("the certificate expired {0}; {1}")]
    AwaitingApproval(EpochMs, String),
}

/// Returns when a renewal is due: after two thirds of the certificate's life and up to a twelfth
/// more, which `share` (0 to 1) decides.
fn renewal_due(not_before: EpochMs, not_after: EpochMs, share: f64) -> EpochMs {
    let life = not_after.ms_since(not_before).max(0) as f64;
    #[allow(clippy::cast_possible_truncation)] // below the life's own milliseconds
    let after = (life * (2.0 / 3.0 + share.clamp(0.0, 1.0) / 12.0)) as i64;
    not_before.plus_ms(after)
}

/// Renews or recovers the identity whenever that is due, until `stop`.
pub async fn run(
    identity: Identity,
    config: EdgeConfig,
    state: AgentState,
    share: f64,
    stop: CancellationToken,
) {
    let mut wait = Backoff::new(TRY_MIN, TRY_MAX);
    let mut decision = Backoff::new(DECIDED_MIN, DECIDED_MAX);
    let mut greeted: Option<Instant> = None;
    let mut saved_at = Instant::now();
    loop {
        if saved_at.elapsed() >= SAVE_EVERY {
            saved_at = Instant::now();
            identity.time.save();
        }
        publish_expiry(&state, &identity);
        let certificate = identity.enrolled().certificate;
        let now = identity.time.fleet_time();
        let expired = now >= certificate.not_after;
        let hello_due = greeted.is_none_or(|at| at.elapsed() >= HELLO_EVERY);
        let done = if expired {
            recover(&identity, certificate.not_after).await.map(|()| true)
        } else if now >= renewal_due(certificate.not_before, certificate.not_after, share) {
            renew(&identity, &config).await.map(|()| true)
        } else if hello_due {
            send_hello(&identity).await.map(|()| true)
        } else {
            Ok(false)
        };
        let pause = match done {
            Ok(false) => {
                let at = renewal_due(certificate.not_before, certificate.not_after, share);
                let ahead = u64::try_from(at.ms_since(now)).unwrap_or(0);
                LOOK_EVERY.min(Duration::from_millis(ahead))
            }
            Ok(true) => {
                wait.reset();
                decision.reset();
                greeted = Some(Instant::now());
                state.update(|state| state.identity_error = None);
                publish_expiry(&state, &identity);
                AGAIN_AFTER
            }
            Err(error) => {
                tracing::warn!(%error, until = %certificate.not_after, "certificate check failed");
                metrics::counter!("simcorp_edge_identity_failures_total").increment(1);
                let pause = match &error {
                    RenewalError::AwaitingApproval(..) => decision.next(trust::jitter()),
                    _ => wait.next(trust::jitter()),
                };
                // The certificate may have expired without our clock showing it.
                if let RenewalError::Fleet(FleetError::Unavailable { .. }) = error
                    && let Ok(now) = fetch_time(&identity).await
                {
                    identity.time.set_fleet_time(now);
                }
                // An unreachable fleet is not reported as long as the certificate is valid.
                let away = matches!(error, RenewalError::Fleet(FleetError::Unavailable { .. }));
                let problem = match (expired, away) {
                    (true, true) => Some(format!("it has expired, and {error}")),
                    (false, true) => None,
                    _ => Some(error.to_string()),
                };
                if problem.is_some() {
                    state.update(|state| state.identity_error = problem);
                }
                pause
            }
        };
        tokio::select! {
            () = stop.cancelled() => {
                identity.time.save();
                return;
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Publishes when the certificate expires, as a metric and in the agent's state.
fn publish_expiry(state: &AgentState, identity: &Identity) {
    let until = identity.expires();
    let left_s = until.ms_since(identity.time.now()) as f64 / 1000.0;
    metrics::gauge!("simcorp_edge_certificate_left_seconds").set(left_s);
    state.update(|state| state.certificate_until_ms = Some(until.0));
}

impl Identity {
    /// Presents the certificate to the fleet, and returns a sentence with its expiry date.
    ///
    /// # Errors
    /// In one sentence, what is wrong with the certificate.
    pub async fn verify_with_fleet(&self) -> Result<String, String> {
        let certificate = self.enrolled().certificate;
        if self.signer.public_key().map_err(|e| e.to_string())? != certificate.public_key {
            return Err(IdentityError::KeyMismatch.to_string());
        }
        let (now, until) = (self.time.now(), certificate.not_after);
        if now >= until {
            return Err(format!("expired {until}; a person must approve a new one in the fleet"));
        }
        send_hello(self).await.map_err(|error| error.to_string())?;
        Ok(format!("good until {until}, and the fleet accepts it"))
    }
}

/// Sends `hello` to the fleet, and records the fleet's time.
async fn send_hello(identity: &Identity) -> Result<(), RenewalError> {
    let hello = fleet_client(identity)?.hello().await?;
    identity.time.set_fleet_time(hello.now);
    Ok(())
}

fn fleet_client(identity: &Identity) -> Result<FleetClient, RenewalError> {
    let granted = identity.enrolled().granted;
    Ok(FleetClient::new(&granted.fleet_url, identity.client_config(&granted.authority)?)?)
}

/// Creates a certificate request with the gateway's key, base64. Runs on a blocking thread, because
/// a PKCS#11 token may be slow.
async fn certificate_request(identity: &Identity) -> Result<String, RenewalError> {
    let signer = identity.signer.clone();
    let request = tokio::task::spawn_blocking(move || trust::x509::create_request(&*signer)).await;
    let request = request.map_err(|error| IdentityError::Tls(error.to_string()))?;
    Ok(BASE64.encode(request.map_err(IdentityError::from)?))
}

/// Requests the fleet's time, without presenting a certificate.
async fn fetch_time(identity: &Identity) -> Result<EpochMs, RenewalError> {
    let granted = identity.enrolled().granted;
    let tls = tls::client_config(&granted.authority, None, &identity.time)?;
    Ok(FleetClient::new(&granted.fleet_url, tls)?.time().await?)
}

/// Requests the next certificate and adopts it.
async fn renew(identity: &Identity, config: &EdgeConfig) -> Result<(), RenewalError> {
    let request = RenewRequest { request: certificate_request(identity).await? };
    let granted = fleet_client(identity)?.renew(&request).await?;
    verify_and_replace(identity, Some(config), granted).await
}

/// Requests a certificate in place of the expired one, and adopts it once a person has approved it.
async fn recover(identity: &Identity, expired: EpochMs) -> Result<(), RenewalError> {
    let stored = identity.enrolled().granted;
    let request = RecoverRequest {
        org_id: stored.org_id,
        key_id: stored.key_id,
        request: certificate_request(identity).await?,
    };
    // The old certificate is no longer accepted, so none is presented.
    let tls = tls::client_config(&stored.authority, None, &identity.time)?;
    match FleetClient::new(&stored.fleet_url, tls)?.recover(&request).await? {
        RecoveryResult::Pending(waiting) => {
            Err(RenewalError::AwaitingApproval(expired, waiting.waiting))
        }
        // The old certificate no longer works, so nothing is lost: the new one is tested only with
        // the fleet and not with the broker.
        RecoveryResult::Granted(granted) => verify_and_replace(identity, None, *granted).await,
    }
}

/// Tests a new certificate by connecting with it to the fleet and, if `config` is given, to the
/// broker that it names. Replaces the old certificate only if both succeed.
async fn verify_and_replace(
    identity: &Identity,
    config: Option<&EdgeConfig>,
    granted: CertificateGrant,
) -> Result<(), RenewalError> {
    let old = identity.enrolled().granted;
    let next = Enrolled::from_grant(granted, &*identity.signer)?;
    if (&next.granted.org_id, &next.granted.key_id) != (&old.org_id, &old.key_id) {
        return Err(RenewalError::Unproven("it is for another organisation or device".to_owned()));
    }
    identity.time.raise_floor(next.certificate.not_before);
    let shown = ClientCertificate::default();
    let key = HandshakeKey::new(identity.signer.clone(), &next.certificate.public_key);
    shown.replace(&next.certificate.der, key);
    let tls = tls::client_config(&next.granted.authority, Some(shown.clone()), &identity.time)?;
    let hello = FleetClient::new(&next.granted.fleet_url, tls)?.hello().await;
    let hello = hello.map_err(|error| RenewalError::Unproven(error.to_string()))?;
    let unproven = |error: std::io::Error| RenewalError::Unproven(error.to_string());
    let route = config
        .map(|config| BrokerEndpoint::resolve(config, &next))
        .transpose()
        .map_err(unproven)?;
    if let Some(route) = route.flatten() {
        let tls = tls::client_config(&route.authority, Some(shown), &identity.time)?;
        let options = route.options(tls, "-proof");
        let options = options.map_err(|error| RenewalError::Unproven(error.to_string()))?;
        connect_once(options).await.map_err(RenewalError::Unproven)?;
    }
    identity.replace(next)?;
    identity.time.set_fleet_time(hello.now);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_between_two_thirds_and_three_quarters_of_the_validity() {
        let (from, to) = (EpochMs(1_000_000), EpochMs(1_000_000 + 90 * 86_400_000));
        let days = |share| (renewal_due(from, to, share).0 - from.0) as f64 / 86_400_000.0;
        assert!((days(0.0) - 60.0).abs() < 0.01 && (days(1.0) - 67.5).abs() < 0.01);
        assert!((days(7.0) - 67.5).abs() < 0.01);
        // A certificate that expires before it becomes valid is due at once.
        assert_eq!(renewal_due(to, from, 0.5), to);
    }
}
