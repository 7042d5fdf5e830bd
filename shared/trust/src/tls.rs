//! TLS with a key that stays in its PKCS#11 token: the holder of the key signs the handshake.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, Signer as TlsSigner, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};

use crate::key::{Algorithm, PublicKey, Signer};
use crate::x509::to_der_signature;

/// An adapter from a [`Signer`] to the traits of rustls.
#[derive(Clone)]
pub struct HandshakeKey {
    signer: Arc<dyn Signer>,
    algorithm: Algorithm,
}

impl HandshakeKey {
    /// Creates an adapter for `signer`, whose public key is `public`.
    #[must_use]
    pub fn new(signer: Arc<dyn Signer>, public: &PublicKey) -> Self {
        Self { signer, algorithm: public.algorithm() }
    }
}

impl fmt::Debug for HandshakeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandshakeKey({})", self.signer.key_id())
    }
}

impl SigningKey for HandshakeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn TlsSigner>> {
        offered.contains(&self.scheme()).then(|| Box::new(self.clone()) as Box<dyn TlsSigner>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.algorithm {
            Algorithm::EdDsa => SignatureAlgorithm::ED25519,
            Algorithm::Es256 => SignatureAlgorithm::ECDSA,
        }
    }
}

impl TlsSigner for HandshakeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature =
            self.signer.sign(message).map_err(|error| Error::General(error.to_string()))?;
        Ok(to_der_signature(self.algorithm, signature))
    }

    fn scheme(&self) -> SignatureScheme {
        match self.algorithm {
            Algorithm::EdDsa => SignatureScheme::ED25519,
            Algorithm::Es256 => SignatureScheme::ECDSA_NISTP256_SHA256,
        }
    }
}

/// The certificate that a client presents in handshakes. It can be replaced at any time: open
/// connections continue, and the next handshake uses the new certificate.
#[derive(Clone, Debug, Default)]
pub struct ClientCertificate(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl ClientCertificate {
    /// Replaces the certificate (DER) and its key.
    pub fn replace(&self, certificate: &[u8], key: HandshakeKey) {
        let chain = vec![CertificateDer::from(certificate.to_vec())];
        let certified = Arc::new(CertifiedKey::new(chain, Arc::new(key)));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certified);
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_certs(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
