//! X.509: requests for certificates, made without the private key leaving its holder, and reading
//! certificates.

use contract::{EpochMs, KeyId};
use rcgen::{CertificateParams, DistinguishedName, DnType, PublicKeyData, SigningKey};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificationRequest};

use crate::key::{Algorithm, KeyError, PublicKey, SignError, Signer, pem_body, to_pem};
use crate::purpose::Purpose;

const LABEL: &str = "CERTIFICATE";
/// The largest request or certificate. Ours are smaller than 2 KB.
const DER_BYTES_MAX: usize = 16 * 1024;

/// Why a text or bytes are not a certificate or not a request for one.
#[derive(Debug, thiserror::Error)]
pub enum X509Error {
    /// The text has no PEM block of a certificate.
    #[error("not a certificate (-----BEGIN CERTIFICATE-----)")]
    NotPem,
    /// The bytes are not a certificate or a request; the text is the reason.
    #[error("malformed certificate or request: {0}")]
    Malformed(String),
    /// The public key in it is not supported.
    #[error("the key in it is {0}")]
    Key(#[from] KeyError),
    /// The request has another name or asks for more; the text is the expected key.
    #[error("not a request of {0} for a certificate of its own key")]
    WrongSubject(String),
    /// The signature of the request is not the key's.
    #[error("the signature does not match")]
    Signature,
    /// The holder of the key did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// An adapter from a [`Signer`] to the traits of `rcgen`.
pub struct RcgenSigner<'s> {
    signer: &'s dyn Signer,
    public: PublicKey,
}

impl<'s> RcgenSigner<'s> {
    /// Creates an adapter for `signer`.
    ///
    /// # Errors
    /// When the signer cannot return its public key.
    pub fn new(signer: &'s dyn Signer) -> Result<Self, SignError> {
        Ok(Self { public: signer.public_key()?, signer })
    }
}

impl PublicKeyData for RcgenSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        match &self.public {
            PublicKey::Ed25519(key) => key,
            PublicKey::P256(key) => key,
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.public.algorithm() {
            Algorithm::EdDsa => &rcgen::PKCS_ED25519,
            Algorithm::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl SigningKey for RcgenSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // rcgen keeps no cause; the holder of the key has logged it.
        let signature = self.signer.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(to_der_signature(self.public.algorithm(), signature))
    }
}

/// Converts a signature to the form of certificates and TLS: r‖s of ECDSA becomes a DER sequence of
/// two integers (RFC 3279, 2.2.3).
pub(crate) fn to_der_signature(algorithm: Algorithm, signature: Vec<u8>) -> Vec<u8> {
    if algorithm == Algorithm::EdDsa {
        return signature;
    }
    let integer = |bytes: &[u8]| {
        let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len().saturating_sub(1));
        let digits = &bytes[start..];
        // A leading 1 bit would make the integer negative.
        let pad = usize::from(digits[0] & 0x80 != 0);
        let mut der = vec![0x02, u8::try_from(digits.len().saturating_add(pad)).unwrap_or(0)];
        der.extend((0..pad).map(|_| 0));
        der.extend_from_slice(digits);
        der
    };
    let (r, s) = signature.split_at(signature.len() / 2);
    if r.is_empty() {
        return signature; // no signature at all: every verifier refuses it
    }
    let inner = [integer(r), integer(s)].concat();
    // 2 × (2 + 33) bytes at most: a length of one byte.
    [&[0x30, u8::try_from(inner.len()).unwrap_or(0)], &inner[..]].concat()
}

/// Creates a request (PKCS#10, DER) for a certificate of `signer`'s key in its own name.
///
/// # Errors
/// When the key cannot sign now.
pub fn create_request(signer: &dyn Signer) -> Result<Vec<u8>, X509Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, signer.key_id().as_str());
    params.distinguished_name = name;
    let request = params.serialize_request(&RcgenSigner::new(signer)?).map_err(|_| SignError {
        key_id: signer.key_id().clone(),
        problem: "the key did not sign the request".to_owned(),
    })?;
    Ok(request.der().to_vec())
}

/// Verifies that the holder of the key `key_id` made a request, and returns the public key that the
/// request proves possession of.
///
/// # Errors
/// When it is malformed, has another name, requests more, or its signature is not the key's.
pub fn verify_request(der: &[u8], key_id: &KeyId) -> Result<PublicKey, X509Error> {
    if der.len() > DER_BYTES_MAX {
        return Err(X509Error::Malformed(format!("longer than {DER_BYTES_MAX} bytes")));
    }
    let (rest, request) = X509CertificationRequest::from_der(der)
        .map_err(|error| X509Error::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(X509Error::Malformed("bytes after its end".to_owned()));
    }
    let info = &request.certification_request_info;
    let public = PublicKey::from_spki(info.subject_pki.raw)?;
    if Purpose::classify(info.raw, key_id, &public) != Some(Purpose::CertificateRequest) {
        return Err(X509Error::WrongSubject(key_id.to_string()));
    }
    request.verify_signature().map_err(|_| X509Error::Signature)?;
    Ok(public)
}

/// The parts of a certificate that we use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate itself, DER.
    pub der: Vec<u8>,
    /// The common name of its subject.
    pub common_name: String,
    /// The public key that it certifies.
    pub public_key: PublicKey,
    /// The serial number, in hex.
    pub serial: String,
    /// The start of its validity.
    pub not_before: EpochMs,
    /// The end of its validity.
    pub not_after: EpochMs,
}

impl Certificate {
    /// Parses a certificate. It does not verify who signed the certificate.
    ///
    /// # Errors
    /// When it is not a certificate, or its key is neither Ed25519 nor P-256.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        let malformed = |error: &dyn std::fmt::Display| X509Error::Malformed(error.to_string());
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| malformed(&error))?;
        let name = parsed.subject().iter_common_name().next();
        let name = name.and_then(|name| name.as_str().ok()).unwrap_or_default();
        let at = |time: x509_parser::time::ASN1Time| EpochMs(time.timestamp().saturating_mul(1000));
        Ok(Self {
            der: der.to_vec(),
            common_name: name.to_owned(),
            public_key: PublicKey::from_spki(parsed.public_key().raw)?,
            serial: parsed.raw_serial_as_string().replace(':', ""),
            not_before: at(parsed.validity().not_before),
            not_after: at(parsed.validity().not_after),
        })
    }

    /// Parses the first certificate of a PEM.
    ///
    /// # Errors
    /// As [`Certificate::from_der`].
    pub fn from_pem(text: &str) -> Result<Self, X509Error> {
        Self::from_der(&pem_body(text, LABEL).ok_or(X509Error::NotPem)?)
    }

    /// Encodes the certificate as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem(LABEL, &self.der)
    }

    /// Returns the SHA-256 of the whole certificate, which pins it.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        crate::sha256_digest(&self.der).0
    }
}

/// Returns the time from which a certificate is valid, whatever its key; `None` if it is not a
/// certificate.
#[must_use]
pub fn not_before(der: &[u8]) -> Option<EpochMs> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some(EpochMs(parsed.validity().not_before.timestamp().saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileKey;

    fn key(name: &str, algorithm: Algorithm) -> FileKey {
        FileKey::generate(format!("device:{name}@leipzig").parse().unwrap(), algorithm).unwrap()
    }

    #[test]
    fn a_request_proves_its_own_key_and_name_alone() {
        for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
            for _ in 0..50 {
                let key = key("gw", algorithm);
                let der = create_request(&key).unwrap();
                let id = Signer::key_id(&key);
                assert_eq!(verify_request(&der, id).unwrap(), *key.public_key());
                let other = "device:other@leipzig".parse().unwrap();
                assert!(matches!(verify_request(&der, &other), Err(X509Error::WrongSubject(_))));
                let mut forged = der.clone();
                *forged.last_mut().unwrap() ^= 1;
                assert!(verify_request(&forged, id).is_err());
                assert!(verify_request(&der[..der.len() - 1], id).is_err());
                assert!(verify_request(&[&der[..], &[0]].concat(), id).is_err());
            }
        }
    }

    #[test]
    fn integers_of_a_signature_are_never_negative_nor_padded() {
        let mut raw = [0; 64];
        raw[31] = 0x80;
        raw[32] = 0xff;
        let der = to_der_signature(Algorithm::Es256, raw.to_vec());
        assert_eq!(&der[..6], &[0x30, 39, 0x02, 2, 0, 0x80]);
        assert_eq!(&der[6..10], &[0x02, 33, 0, 0xff]);
        assert_eq!(to_der_signature(Algorithm::Es256, vec![0; 64]), [0x30, 6, 2, 1, 0, 2, 1, 0]);
    }
}
