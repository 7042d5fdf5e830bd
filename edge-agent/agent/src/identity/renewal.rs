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
use contract::enroll::{Granted, Recover, Renew};
use service::backoff::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trust::tls::{HandshakeKey, Shown};

use super::cloud::{AskError, Fleet, Recovered};
use super::{Enrolled, Identity, IdentityError, tls};
use crate::board::Board;
use crate::config::EdgeConfig;
use crate::route::{Route, connect_once};

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
const KEEP_EVERY: Duration = Duration::from_hours(1);

/// Why there is no new certificate yet.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the new certificate does not work, so the old one stays in use: {0}")]
    Unproven(String),
    #[error("the certificate expired {0}; {1}")]
    Waiting(EpochMs, String),
}

/// Returns when a renewal is due: after two thirds of the certificate's life and up to a twelfth
/// more, which `share` (0 to 1) decides.
fn due(not_before: EpochMs, not_after: EpochMs, share: f64) -> EpochMs {
    let life = (not_after.0 - not_before.0).max(0) as f64;
    #[allow(clippy::cast_possible_truncation)] // below the life's own milliseconds
    let after = (life * (2.0 / 3.0 + share.clamp(0.0, 1.0) / 12.0)) as i64;
    not_before.plus(after)
}

/// Renews or recovers the identity whenever that is due, until `stop`.
pub async fn keep(
    identity: Identity,
    config: EdgeConfig,
    board: Board,
    share: f64,
    stop: CancellationToken,
) {
    let mut wait = Backoff::new(TRY_MIN, TRY_MAX);
    let mut decision = Backoff::new(DECIDED_MIN, DECIDED_MAX);
    let mut greeted: Option<Instant> = None;
    let mut kept = Instant::now();
    loop {
        if kept.elapsed() >= KEEP_EVERY {
            kept = Instant::now();
            identity.time.keep();
        }
        show_end(&board, &identity);
        let certificate = identity.enrolled().certificate;
        let now = identity.time.by_the_fleet();
        let expired = now >= certificate.not_after;
        let greet_due = greeted.is_none_or(|at| at.elapsed() >= HELLO_EVERY);
        let done = if expired {
            recover(&identity, certificate.not_after).await.map(|()| true)
        } else if now >= due(certificate.not_before, certificate.not_after, share) {
            renew(&identity, &config).await.map(|()| true)
        } else if greet_due {
            greet(&identity).await.map(|()| true)
        } else {
            Ok(false)
        };
        let pause = match done {
            Ok(false) => {
                let at = due(certificate.not_before, certificate.not_after, share);
                let ahead = u64::try_from(at.0 - now.0).unwrap_or(0);
                LOOK_EVERY.min(Duration::from_millis(ahead))
            }
            Ok(true) => {
                wait.reset();
                decision.reset();
                greeted = Some(Instant::now());
                board.update(|state| state.identity_error = None);
                show_end(&board, &identity);
                AGAIN_AFTER
            }
            Err(error) => {
                tracing::warn!(%error, until = %certificate.not_after, "certificate check failed");
                metrics::counter!("simcorp_edge_identity_failures_total").increment(1);
                let pause = match &error {
                    RenewalError::Waiting(..) => decision.next(trust::spread()),
                    _ => wait.next(trust::spread()),
                };
                // The certificate may have expired without our clock showing it.
                if let RenewalError::Ask(AskError::Away { .. }) = error
                    && let Ok(now) = ask_time(&identity).await
                {
                    identity.time.tell(now);
                }
                // An unreachable fleet is not reported as long as the certificate is valid.
                let away = matches!(error, RenewalError::Ask(AskError::Away { .. }));
                let told = match (expired, away) {
                    (true, true) => Some(format!("it has expired, and {error}")),
                    (false, true) => None,
                    _ => Some(error.to_string()),
                };
                if told.is_some() {
                    board.update(|state| state.identity_error = told);
                }
                pause
            }
        };
        tokio::select! {
            () = stop.cancelled() => {
                identity.time.keep();
                return;
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Publishes when the certificate expires, as a metric and in the agent's state.
fn show_end(board: &Board, identity: &Identity) {
    let until = identity.expires();
    let left_s = (until.0 - identity.time.now().0) as f64 / 1000.0;
    metrics::gauge!("simcorp_edge_certificate_left_seconds").set(left_s);
    board.update(|state| state.certificate_until_ms = Some(until.0));
}

impl Identity {
    /// Presents the certificate to the fleet, and returns a sentence with its expiry date.
    ///
    /// # Errors
    /// In one sentence, what is wrong with the certificate.
    pub async fn examine(&self) -> Result<String, String> {
        let certificate = self.enrolled().certificate;
        if self.signer.public_key().map_err(|e| e.to_string())? != certificate.public {
            return Err(IdentityError::OtherKey.to_string());
        }
        let (now, until) = (self.time.now(), certificate.not_after);
        if now >= until {
            return Err(format!("expired {until}; a person must approve a new one in the fleet"));
        }
        greet(self).await.map_err(|error| error.to_string())?;
        Ok(format!("good until {until}, and the fleet accepts it"))
    }
}

/// Sends `hello` to the fleet, and records the fleet's time.
async fn greet(identity: &Identity) -> Result<(), RenewalError> {
    let hello = fleet(identity)?.hello().await?;
    identity.time.tell(hello.now);
    Ok(())
}

fn fleet(identity: &Identity) -> Result<Fleet, RenewalError> {
    let granted = identity.enrolled().granted;
    Ok(Fleet::at(&granted.fleet_url, identity.tls(&granted.authority)?)?)
}

/// Creates a certificate request with the gateway's key, base64. Runs on a blocking thread, because
/// a PKCS#11 token may be slow.
async fn request(identity: &Identity) -> Result<String, RenewalError> {
    let signer = identity.signer.clone();
    let made = tokio::task::spawn_blocking(move || trust::x509::request(&*signer)).await;
    let made = made.map_err(|error| IdentityError::Tls(error.to_string()))?;
    Ok(BASE64.encode(made.map_err(IdentityError::from)?))
}

/// Requests the fleet's time, without presenting a certificate.
async fn ask_time(identity: &Identity) -> Result<EpochMs, RenewalError> {
    let granted = identity.enrolled().granted;
    let tls = tls::towards(&granted.authority, None, &identity.time)?;
    Ok(Fleet::at(&granted.fleet_url, tls)?.time().await?)
}

/// Requests the next certificate and adopts it.
async fn renew(identity: &Identity, config: &EdgeConfig) -> Result<(), RenewalError> {
    let asked = Renew { request: request(identity).await? };
    let granted = fleet(identity)?.renew(&asked).await?;
    adopt(identity, Some(config), granted).await
}

/// Requests a certificate in place of the expired one, and adopts it once a person has approved it.
async fn recover(identity: &Identity, expired: EpochMs) -> Result<(), RenewalError> {
    let known = identity.enrolled().granted;
    let asked =
        Recover { org_id: known.org_id, key_id: known.key_id, request: request(identity).await? };
    // The old certificate is no longer accepted, so none is presented.
    let tls = tls::towards(&known.authority, None, &identity.time)?;
    match Fleet::at(&known.fleet_url, tls)?.recover(&asked).await? {
        Recovered::Waiting(waiting) => Err(RenewalError::Waiting(expired, waiting.waiting)),
        // The old certificate no longer works, so nothing is lost: the new one is tested only with
        // the fleet and not with the broker.
        Recovered::Granted(granted) => adopt(identity, None, *granted).await,
    }
}

/// Tests a new certificate by connecting with it to the fleet and, if `config` is given, to the
/// broker that it names. Replaces the old certificate only if both succeed.
async fn adopt(
    identity: &Identity,
    config: Option<&EdgeConfig>,
    granted: Granted,
) -> Result<(), RenewalError> {
    let old = identity.enrolled().granted;
    let next = Enrolled::given(granted, &*identity.signer)?;
    if (&next.granted.org_id, &next.granted.key_id) != (&old.org_id, &old.key_id) {
        return Err(RenewalError::Unproven("it is for another organisation or device".to_owned()));
    }
    identity.time.at_least(next.certificate.not_before);
    let shown = Shown::default();
    let key = HandshakeKey::new(identity.signer.clone(), &next.certificate.public);
    shown.change(&next.certificate.der, key);
    let tls = tls::towards(&next.granted.authority, Some(shown.clone()), &identity.time)?;
    let hello = Fleet::at(&next.granted.fleet_url, tls)?.hello().await;
    let hello = hello.map_err(|error| RenewalError::Unproven(error.to_string()))?;
    let unproven = |error: std::io::Error| RenewalError::Unproven(error.to_string());
    let route = config.map(|config| Route::of(config, &next)).transpose().map_err(unproven)?;
    if let Some(route) = route.flatten() {
        let tls = tls::towards(&route.authority, Some(shown), &identity.time)?;
        let options = route.options(tls, "-proof");
        let options = options.map_err(|error| RenewalError::Unproven(error.to_string()))?;
        connect_once(options).await.map_err(RenewalError::Unproven)?;
    }
    identity.replace(next)?;
    identity.time.tell(hello.now);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_between_two_and_three_thirds() {
        let (from, to) = (EpochMs(1_000_000), EpochMs(1_000_000 + 90 * 86_400_000));
        let days = |share| (due(from, to, share).0 - from.0) as f64 / 86_400_000.0;
        assert!((days(0.0) - 60.0).abs() < 0.01 && (days(1.0) - 67.5).abs() < 0.01);
        assert!((days(7.0) - 67.5).abs() < 0.01);
        // A certificate that expires before it becomes valid is due at once.
        assert_eq!(due(to, from, 0.5), to);
    }
}
