//! TLS with a key that stays in its token: the handshake's proof is made by whoever holds the key.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, Signer as TlsSigner, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};

use crate::key::{Algorithm, PublicKey, Signer};
use crate::x509::in_der;

/// A [`Signer`] as rustls asks for it.
#[derive(Clone)]
pub struct HandshakeKey {
    signer: Arc<dyn Signer>,
    algorithm: Algorithm,
}

impl HandshakeKey {
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
        Ok(in_der(self.algorithm, signature))
    }

    fn scheme(&self) -> SignatureScheme {
        match self.algorithm {
            Algorithm::EdDsa => SignatureScheme::ED25519,
            Algorithm::Es256 => SignatureScheme::ECDSA_NISTP256_SHA256,
        }
    }
}

/// The certificate that is shown in handshakes; it can be changed while connections live on, and
/// counts from the next handshake.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Shown {
    /// From now on `certificate`, with the key that it is of.
    pub fn change(&self, certificate: &[u8], key: HandshakeKey) {
        let chain = vec![CertificateDer::from(certificate.to_vec())];
        let certified = Arc::new(CertifiedKey::new(chain, Arc::new(key)));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certified);
    }
}

impl ResolvesClientCert for Shown {
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
