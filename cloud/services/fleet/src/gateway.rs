//! The fleet's HTTP API for gateways: enrolment with a token, renewal with a valid certificate, and
//! recovery of an expired certificate with the same key and a person's approval.

use std::sync::Arc;

use axum::extract::{ConnectInfo, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use contract::enroll::{
    BrokerAddress, CertificateGrant, EnrollRequest, FleetTime, GatewayIdentity, PendingDecision,
    RecoverRequest, RenewRequest,
};
use contract::{KeyId, OrgId};
use http_stack::error::ApiError;
use http_stack::extract::JsonBody;
use service::tls::TlsPeer;
use tokio::sync::Notify;
use trust::x509::{Certificate, verify_request};
use trust::{EnrollmentToken, PublicKey};

use crate::api::key_number_or_conflict;
use crate::authority::CertificateAuthority;
use crate::device::{Device, NewDevice, certificate_name};
use crate::store::{
    ChangedBy, Enrollment, EnrollmentError, FleetStore, NewCertificate, RecoveryDecision, gateway,
};
use service::clock::Clock;

/// Limit per gateway. A gateway that requests more in an hour has a fault.
const CERTIFICATES_AN_HOUR: i64 = 10;
const HOUR_MS: i64 = 3_600_000;

/// State shared by the handlers.
#[derive(Clone)]
pub struct State {
    pub store: FleetStore,
    pub clock: Clock,
    pub authority: Arc<CertificateAuthority>,
    pub life_s: u32,
    pub gateway_url: String,
    pub broker: Option<BrokerAddress>,
    pub changed: Arc<Notify>,
}

pub fn routes(state: State) -> Router {
    Router::new()
        .route("/v1/enroll", post(enroll))
        .route("/v1/renew", post(renew))
        .route("/v1/recover", post(recover))
        .route("/v1/hello", get(hello))
        .route("/v1/time", get(time))
        .with_state(state)
}

/// Returns the public key whose possession the certificate request (CSR) proves.
fn verify_key_possession(request: &str, key_id: &KeyId) -> Result<PublicKey, ApiError> {
    let der =
        BASE64.decode(request).map_err(|_| ApiError::Invalid("request: not base64".into()))?;
    verify_request(&der, key_id).map_err(|error| ApiError::Invalid(format!("request: {error}")))
}

impl State {
    /// Issues a certificate and stores it. No database transaction is open while it is signed: a
    /// key in an HSM can be slow.
    async fn issue(
        &self,
        (device, public): (&Device, &PublicKey),
        why: &str,
        by: ChangedBy<'_>,
    ) -> Result<CertificateGrant, ApiError> {
        let (org, key_id) = (&device.org_id, &device.key_id);
        let hour_ago = by.now.plus_ms(-HOUR_MS);
        if self.store.issued_since(org, key_id, hour_ago).await? >= CERTIFICATES_AN_HOUR {
            return Err(ApiError::Unavailable(format!(
                "{key_id} received {CERTIFICATES_AN_HOUR} certificates within an hour; try again \
                 in an hour, and check its clock and disk"
            )));
        }
        let name = certificate_name(org, key_id, device.key_number);
        let (authority, life_s) = (self.authority.clone(), self.life_s);
        let (subject, key) = ((org.clone(), key_id.clone()), public.clone());
        let now = by.now;
        let certified = tokio::task::spawn_blocking(move || {
            authority.issue_gateway_certificate((&subject.0, &subject.1, &name), &key, life_s, now)
        });
        let certificate = certified.await.map_err(ApiError::internal)?.map_err(|error| {
            tracing::error!(%error, "the certificate authority cannot issue a certificate");
            ApiError::Unavailable("the authority's key cannot be used now; try again".to_owned())
        })?;
        let number = device.key_number;
        let new =
            NewCertificate { org, key_id, key_number: number, why, certificate: &certificate };
        let mut tx = self.store.begin().await?;
        FleetStore::add_certificate(&mut tx, new, by).await?;
        tx.commit().await?;
        metrics::counter!("simcorp_fleet_certificates_total", "why" => why.to_owned()).increment(1);
        Ok(CertificateGrant {
            org_id: org.clone(),
            key_id: key_id.clone(),
            machines: device.machines.clone(),
            certificate: certificate.to_pem(),
            authority: self.authority.pem().to_owned(),
            fleet_url: self.gateway_url.clone(),
            broker: self.broker.clone(),
            now: by.now,
        })
    }

    /// Authenticates the gateway by its TLS client certificate. Returns the device and its current
    /// public key.
    async fn authenticate(&self, peer: &TlsPeer) -> Result<(Device, PublicKey), ApiError> {
        let unknown = || ApiError::Unauthorized("show a certificate of this fleet".to_owned());
        let shown = peer.certificate.as_deref().ok_or_else(unknown)?;
        let certificate = Certificate::from_der(shown).map_err(|_| unknown())?;
        if (self.clock)() >= certificate.not_after {
            return Err(unknown()); // it expired after the handshake
        }
        let device = self
            .store
            .device_by_certificate_name(&certificate.common_name)
            .await?
            .ok_or_else(unknown)?;
        if device.revoked_at.is_some() {
            return Err(ApiError::Forbidden(format!("{} was revoked", device.key_id)));
        }
        let present = self.store.current_key(&device.org_id, &device.key_id).await?;
        match present {
            Some((_, public)) if public == certificate.public_key => Ok((device, public)),
            _ => Err(ApiError::Forbidden(format!(
                "{} has another key now; this certificate belongs to an old key",
                device.key_id
            ))),
        }
    }
}

/// Enrols a new gateway. The token is spent for the key that signed the request, and for no other.
async fn enroll(
    Extract(state): Extract<State>,
    JsonBody(asked): JsonBody<EnrollRequest>,
) -> Result<Json<CertificateGrant>, ApiError> {
    let token = EnrollmentToken::parse(&asked.token)
        .ok_or_else(|| ApiError::Unauthorized("this is not an enrolment token".to_owned()))?;
    if !state.store.token_exists(&token).await? {
        return Err(enrollment_error(EnrollmentError::Unknown));
    }
    let key_id = KeyId::new(&asked.device, &asked.site_id);
    let public = verify_key_possession(&asked.request, &key_id)?;
    let now = (state.clock)();
    let mut tx = state.store.begin().await?;
    let spent = FleetStore::spend(&mut tx, &token, &public, now).await?;
    let enrollment = spent.map_err(enrollment_error)?;
    // A mismatch does not spend the token: the technician corrects the configuration and retries.
    check_matches_enrollment(&asked, &key_id, &enrollment)?;
    let actor = gateway(&enrollment.org_id, &key_id);
    let by = ChangedBy { actor: &actor, now };
    let first = enrollment.spent_at == Some(now);
    if first {
        by.audit_token_spent(&mut tx, &enrollment).await?;
        let new = NewDevice {
            org: &enrollment.org_id,
            key_id: &key_id,
            site: &enrollment.site_id,
            machines: &enrollment.machines,
            public: &public,
            enrols: true,
            replaces: enrollment.replaces,
            compromised: enrollment.compromised,
        };
        key_number_or_conflict(FleetStore::register_in(&mut tx, &new, by).await?, &key_id)?;
        tx.commit().await?;
        state.changed.notify_one();
        tracing::info!(kid = %key_id, org = %enrollment.org_id, token = enrollment.id, "enrolled");
    } else {
        drop(tx);
    }
    // A repeated request returns the device's present state: its machines may have changed since.
    let device = state.store.device(&enrollment.org_id, key_id.as_str()).await?;
    let device = device.ok_or(ApiError::NotFound("device"))?;
    let present = state.store.current_key(&device.org_id, &key_id).await?;
    if device.revoked_at.is_some() || present.is_none_or(|(_, present)| present != public) {
        return Err(enrollment_error(EnrollmentError::Unknown));
    }
    Ok(Json(state.issue((&device, &public), "enrolled", by).await?))
}

fn enrollment_error(refused: EnrollmentError) -> ApiError {
    metrics::counter!("simcorp_fleet_enrolments_refused_total").increment(1);
    ApiError::Unauthorized(match refused {
        EnrollmentError::Unknown => {
            "this token is not valid: it was never created, was withdrawn, or has \
                             expired; ask for another"
                .to_owned()
        }
        EnrollmentError::UsedByOtherKey => {
            "this token was used by another gateway; ask for another, and find out \
                           who used it"
                .to_owned()
        }
    })
}

fn check_matches_enrollment(
    asked: &EnrollRequest,
    key_id: &KeyId,
    enrollment: &Enrollment,
) -> Result<(), ApiError> {
    let fits = asked.org_id == enrollment.org_id
        && *key_id == enrollment.key_id
        && asked.machines.iter().all(|machine| enrollment.machines.contains(machine));
    if fits {
        return Ok(());
    }
    let machines: Vec<&str> = enrollment.machines.iter().map(contract::MachineId::as_str).collect();
    Err(ApiError::Conflict(format!(
        "the token is for {} of {} with {}; the gateway's configuration says {key_id} of {}",
        enrollment.key_id,
        enrollment.org_id,
        machines.join(", "),
        asked.org_id
    )))
}

/// Issues the next certificate for the same key.
async fn renew(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<TlsPeer>,
    JsonBody(asked): JsonBody<RenewRequest>,
) -> Result<Json<CertificateGrant>, ApiError> {
    let (device, present) = state.authenticate(&peer).await?;
    let public = verify_key_possession(&asked.request, &device.key_id)?;
    if public != present {
        return Err(ApiError::Conflict(format!(
            "{} is renewed with its current key; another key needs an enrolment that replaces it",
            device.key_id
        )));
    }
    let actor = gateway(&device.org_id, &device.key_id);
    let by = ChangedBy { actor: &actor, now: (state.clock)() };
    Ok(Json(state.issue((&device, &public), "renewed", by).await?))
}

/// Issues a certificate after the last one has expired. The gateway proves that it has its key, and
/// a person must approve the recovery.
async fn recover(
    Extract(state): Extract<State>,
    JsonBody(asked): JsonBody<RecoverRequest>,
) -> Result<Response, ApiError> {
    let public = verify_key_possession(&asked.request, &asked.key_id)?;
    let (org, key_id): (&OrgId, &KeyId) = (&asked.org_id, &asked.key_id);
    // The same answer for an unknown gateway and for a wrong key: a caller without the key must not
    // learn which gateways exist.
    let unknown = || ApiError::Unauthorized("not a gateway of this fleet with that key".to_owned());
    let device = state.store.device(org, key_id.as_str()).await?.ok_or_else(unknown)?;
    let present = state.store.current_key(org, key_id).await?;
    let other = present.is_none_or(|(_, present)| present != public);
    if other || device.certificate_name.is_none() {
        return Err(unknown());
    }
    if device.revoked_at.is_some() {
        return Err(ApiError::Forbidden(format!("{key_id} was revoked")));
    }
    let actor = gateway(org, key_id);
    let by = ChangedBy { actor: &actor, now: (state.clock)() };
    let mut tx = state.store.begin().await?;
    let decision = FleetStore::request_recovery(&mut tx, (org, key_id, &public), by).await?;
    tx.commit().await?;
    match decision {
        RecoveryDecision::Waiting { since } => {
            let waiting = format!("a person must approve it: simcorp device recover {key_id}");
            Ok((StatusCode::ACCEPTED, Json(PendingDecision { waiting, since })).into_response())
        }
        RecoveryDecision::Refused => {
            Err(ApiError::Forbidden("an approver has refused the recovery".to_owned()))
        }
        RecoveryDecision::Approved => {
            let granted = state.issue((&device, &public), "recovered", by).await?;
            tracing::info!(kid = %key_id, %org, "recovered");
            Ok(Json(granted).into_response())
        }
    }
}

/// Returns the time. Needs no authentication.
async fn time(Extract(state): Extract<State>) -> Json<FleetTime> {
    Json(FleetTime { now: (state.clock)() })
}

/// Proves to a gateway that its certificate works.
async fn hello(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<TlsPeer>,
) -> Result<Json<GatewayIdentity>, ApiError> {
    let (device, ..) = state.authenticate(&peer).await?;
    let now = (state.clock)();
    Ok(Json(GatewayIdentity {
        org_id: device.org_id,
        key_id: device.key_id,
        machines: device.machines,
        now,
    }))
}
