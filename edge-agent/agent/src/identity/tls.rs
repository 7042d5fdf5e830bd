//! TLS 1.3 as a gateway speaks it: the time is one that cannot be turned back, and the proof is made
//! by whoever holds the key.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version};
use trust::tls::Shown;

use super::IdentityError;
use crate::known_time::KnownTime;

fn wrong(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

/// The certificates of a PEM, as somebody to trust.
pub fn authorities(pem: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(wrong)?).map_err(wrong)?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate of an authority"));
    }
    Ok(roots)
}

/// Towards whoever `pem` certifies.
pub fn towards(
    pem: &str,
    shown: Option<Shown>,
    time: &KnownTime,
) -> Result<ClientConfig, IdentityError> {
    config(Trusted::These(Arc::new(authorities(pem)?)), shown, time)
}

/// Towards somebody whose authority is known by its fingerprint alone.
pub fn pinned(fingerprint: [u8; 32], time: &KnownTime) -> Result<ClientConfig, IdentityError> {
    config(Trusted::ByFingerprint(fingerprint), None, time)
}

fn config(
    trusted: Trusted,
    shown: Option<Shown>,
    time: &KnownTime,
) -> Result<ClientConfig, IdentityError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier { trusted, provider: provider.clone() };
    let builder = ClientConfig::builder_with_details(provider, Arc::new(time.clone()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(wrong)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(match shown {
        Some(shown) => builder.with_client_cert_resolver(Arc::new(shown)),
        None => builder.with_no_client_auth(),
    })
}

/// Who may certify the other side.
#[derive(Debug)]
enum Trusted {
    These(Arc<RootCertStore>),
    /// Whom the other side shows itself, if it has this fingerprint.
    ByFingerprint([u8; 32]),
}

/// Verifies as ever, but for two things: an authority may be known by its fingerprint, and a
/// certificate that is not good yet is taken for good: that it was issued says that our clock is
/// behind.
#[derive(Debug)]
struct Verifier {
    trusted: Trusted,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let fingerprint = match &self.trusted {
            Trusted::These(roots) => return Ok(roots.clone()),
            Trusted::ByFingerprint(fingerprint) => fingerprint,
        };
        let ours = |der: &&CertificateDer<'_>| trust::digest(der).0 == *fingerprint;
        let authority = shown.iter().find(ours).ok_or_else(|| {
            Error::General("certified by another authority than the token names".to_owned())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let issued = trust::x509::not_before(end_entity).map_or(0, |at| at.0.max(0) / 1000);
        let issued = Duration::from_secs(u64::try_from(issued).unwrap_or(0));
        let now =
            if now.as_secs() < issued.as_secs() { UnixTime::since_unix_epoch(issued) } else { now };
        WebPkiServerVerifier::builder_with_provider(
            self.roots(intermediates)?,
            self.provider.clone(),
        )
        .build()
        .map_err(|error| Error::General(error.to_string()))?
        .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
