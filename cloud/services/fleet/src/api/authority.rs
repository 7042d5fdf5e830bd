//! The certificate authority (CA) for gateways.

use axum::Json;
use axum::extract::State as Extract;
use contract::EpochMs;
use http_stack::auth::Caller;
use http_stack::error::ApiError;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use crate::authority::CertificateAuthority;

/// The certificate authority (CA), for brokers and for every party that verifies a gateway.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityDetails {
    /// The CA certificates, PEM; the issuing certificate is first.
    pub certificates: String,
    /// SHA-256 of the issuing certificate, hex.
    pub fingerprint: String,
    pub not_after: EpochMs,
}

impl State {
    /// Returns the certificate authority.
    ///
    /// # Errors
    /// 503 while no authority exists.
    pub(super) fn authority(&self) -> Result<&CertificateAuthority, ApiError> {
        self.authority.as_deref().ok_or_else(|| {
            let problem = "no authority exists; create one with: simcorp authority create";
            ApiError::Unavailable(problem.to_owned())
        })
    }
}

/// Returns the CA certificates that sign the gateways' certificates.
#[utoipa::path(get, path = "/authority", tag = "authority",
    responses((status = 200, body = AuthorityDetails), (status = 503)))]
pub async fn show(
    Extract(state): Extract<State>,
    _caller: Caller,
) -> Result<Json<AuthorityDetails>, ApiError> {
    let authority = state.authority()?;
    let certificate = authority.certificate();
    Ok(Json(AuthorityDetails {
        certificates: authority.pem().to_owned(),
        fingerprint: contract::Digest(certificate.fingerprint()).to_string(),
        not_after: certificate.not_after,
    }))
}
