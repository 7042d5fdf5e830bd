//! Public keys, and the trait for holders of a private key.

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use contract::KeyId;

/// The two signature algorithms that a fleet needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// `EdDSA` over Ed25519: file keys, SoftHSM, cloud KMS.
    EdDsa,
    /// ECDSA over P-256 with SHA-256, signature r‖s: TPM 2.0 and most tokens.
    Es256,
}

impl Algorithm {
    /// Returns the name in JOSE and COSE registries: `EdDSA` or `ES256`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
        }
    }

    /// Parses that name; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::EdDsa, Self::Es256].into_iter().find(|a| a.as_str() == text)
    }
}

/// Why a text is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text has no PEM block of a public key.
    #[error("not a PEM public key (-----BEGIN PUBLIC KEY-----)")]
    NotPem,
    /// The key is of another algorithm.
    #[error("neither an Ed25519 nor a P-256 public key")]
    Unsupported,
}

/// A public key that can verify signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// The 32 bytes of RFC 8032.
    Ed25519([u8; 32]),
    /// The uncompressed point: 04 ‖ x ‖ y.
    P256([u8; 65]),
}

/// DER of `SubjectPublicKeyInfo` up to the key's own bytes (RFC 8410, RFC 5480).
const SPKI_ED25519: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl PublicKey {
    /// Returns the algorithm of the key's signatures.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed25519(_) => Algorithm::EdDsa,
            Self::P256(_) => Algorithm::Es256,
        }
    }

    /// Returns true if `signature` was made over `message` with the private key of this public key.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
            }
            Self::P256(key) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key)
                .verify(message, signature)
                .is_ok(),
        }
    }

    /// Parses a DER `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// When it holds any other kind of key.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        if let Some(key) = der.strip_prefix(&SPKI_ED25519) {
            return key.try_into().map(Self::Ed25519).map_err(|_| KeyError::Unsupported);
        }
        match der.strip_prefix(&SPKI_P256) {
            Some(key) if key.first() == Some(&4) => {
                key.try_into().map(Self::P256).map_err(|_| KeyError::Unsupported)
            }
            _ => Err(KeyError::Unsupported),
        }
    }

    /// Encodes the key as a DER `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn to_spki(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => [&SPKI_ED25519[..], key].concat(),
            Self::P256(key) => [&SPKI_P256[..], key].concat(),
        }
    }

    /// Parses a PEM `PUBLIC KEY`.
    ///
    /// # Errors
    /// When it is not one, or of another algorithm.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_spki(&pem_body(text, "PUBLIC KEY").ok_or(KeyError::NotPem)?)
    }

    /// Encodes the key as a PEM `PUBLIC KEY`.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem("PUBLIC KEY", &self.to_spki())
    }
}

/// Decodes the bytes between the BEGIN and END lines of a PEM with the given label.
pub(crate) fn pem_body(text: &str, label: &str) -> Option<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let body = text.split_once(&begin)?.1.split_once(&end)?.0;
    let joined: String = body.split_ascii_whitespace().collect();
    BASE64.decode(joined).ok()
}

pub(crate) fn to_pem(label: &str, der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + "-----END " + label + "-----\n"
}

/// Why a key cannot sign, such as a PKCS#11 token that is absent or locked.
#[derive(Debug, thiserror::Error)]
#[error("{key_id} cannot sign: {problem}")]
pub struct SignError {
    /// The key that should have signed.
    pub key_id: KeyId,
    /// Why it did not, in words.
    pub problem: String,
}

/// A holder of a private key: a file in development, the signer's socket on a gateway.
pub trait Signer: Send + Sync {
    /// Returns the name of the key.
    fn key_id(&self) -> &KeyId;
    /// Returns the public key.
    ///
    /// # Errors
    /// When the holder of the key cannot be reached.
    fn public_key(&self) -> Result<PublicKey, SignError>;

    /// Signs a message. May take tens of milliseconds on a TPM.
    ///
    /// # Errors
    /// When the key cannot be used now.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}
