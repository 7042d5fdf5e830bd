//! The gateway's TLS 1.3 configuration: certificates are checked against a time that cannot be set
//! back, and the handshake is signed wherever the key is held (in a file or by the signer).

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version};
use trust::tls::ClientCertificate;

use super::IdentityError;
use crate::trusted_clock::TrustedClock;

fn tls_error(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

/// Parses the certificates of a PEM as trusted authorities.
///
/// # Errors
/// When it contains no certificate, or an invalid one.
pub fn parse_ca_certificates(pem: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(tls_error)?).map_err(tls_error)?;
    }
    if roots.is_empty() {
        return Err(tls_error("it contains no certificate of an authority"));
    }
    Ok(roots)
}

/// Returns a configuration for servers that an authority of `pem` certifies. With `shown`, the
/// client presents that certificate.
pub fn client_config(
    pem: &str,
    shown: Option<ClientCertificate>,
    time: &TrustedClock,
) -> Result<ClientConfig, IdentityError> {
    config(TrustAnchors::Roots(Arc::new(parse_ca_certificates(pem)?)), shown, time)
}

/// Returns a configuration for a server whose authority is known only by its fingerprint. The
/// client presents no certificate.
pub fn pinned_client_config(
    fingerprint: [u8; 32],
    time: &TrustedClock,
) -> Result<ClientConfig, IdentityError> {
    config(TrustAnchors::ByFingerprint(fingerprint), None, time)
}

fn config(
    trusted: TrustAnchors,
    shown: Option<ClientCertificate>,
    time: &TrustedClock,
) -> Result<ClientConfig, IdentityError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = ServerVerifier { trusted, provider: provider.clone() };
    let builder = ClientConfig::builder_with_details(provider, Arc::new(time.clone()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(tls_error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(match shown {
        Some(shown) => builder.with_client_cert_resolver(Arc::new(shown)),
        None => builder.with_no_client_auth(),
    })
}

/// The authorities that may certify the server.
#[derive(Debug)]
enum TrustAnchors {
    Roots(Arc<RootCertStore>),
    /// An authority that the server sends itself, if its certificate has this fingerprint.
    ByFingerprint([u8; 32]),
}

/// Verifies as WebPKI does, with two differences. An authority may be known by its fingerprint. A
/// server certificate that is not valid yet is accepted as from its first valid moment: that it was
/// issued shows that our clock is behind.
#[derive(Debug)]
struct ServerVerifier {
    trusted: TrustAnchors,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let fingerprint = match &self.trusted {
            TrustAnchors::Roots(roots) => return Ok(roots.clone()),
            TrustAnchors::ByFingerprint(fingerprint) => fingerprint,
        };
        let ours = |der: &&CertificateDer<'_>| trust::sha256_digest(der).0 == *fingerprint;
        let authority = shown.iter().find(ours).ok_or_else(|| {
            Error::General("certified by another authority than the token names".to_owned())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

impl ServerCertVerifier for ServerVerifier {
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
        Err(Error::General("TLS 1.2 is not supported".to_owned()))
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
