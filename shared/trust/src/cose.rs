//! `COSE_Sign1` messages: protected header {alg, content type, kid}, empty unprotected header.

use contract::{Digest, KeyId};
use coset::iana::Algorithm as CoseAlgorithm;
use coset::{
    ContentType, CoseSign1, CoseSign1Builder, HeaderBuilder, RegisteredLabelWithPrivate,
    TaggedCborSerializable as _,
};

use crate::key::{Algorithm, PublicKey, SignError, Signer};

/// The signed content type of a frame.
pub const CONTENT_FRAME: &str = "application/vnd.simcorp.frame+cbor";
/// The signed content type of a receipt.
pub const CONTENT_RECEIPT: &str = "application/vnd.simcorp.receipt+cbor";

/// The signed content type of the outcome of a command.
pub const CONTENT_OUTCOME: &str = "application/vnd.simcorp.outcome+cbor";

/// Why bytes are not a message that was signed with a given key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoseError {
    /// The bytes are not a tagged `COSE_Sign1` message; the text is the parser's reason.
    #[error("not a tagged COSE_Sign1 message: {0}")]
    Malformed(String),
    /// The headers are not exactly those that [`sign_message`] writes; the text names the
    /// difference.
    #[error("header {0}")]
    Header(&'static str),
    /// The message names another algorithm than the key's.
    #[error("signed with {claimed}, but the key is for {actual}")]
    Algorithm {
        /// The algorithm that the message names.
        claimed: &'static str,
        /// The algorithm of the key.
        actual: &'static str,
    },
    /// The signature is not the key's over these bytes.
    #[error("the signature does not match")]
    Signature,
}

/// Returns the SHA-256 of a signed payload, which identifies a frame.
#[must_use]
pub fn sha256_digest(payload: &[u8]) -> Digest {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, payload);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    Digest(bytes)
}

/// Signs `payload` as a message of the content type `content`.
///
/// # Errors
/// When the signer cannot sign.
pub fn sign_message(
    signer: &dyn Signer,
    content: &str,
    payload: Vec<u8>,
) -> Result<Vec<u8>, SignError> {
    let algorithm = match signer.public_key()?.algorithm() {
        Algorithm::EdDsa => CoseAlgorithm::EdDSA,
        Algorithm::Es256 => CoseAlgorithm::ES256,
    };
    let protected = HeaderBuilder::new()
        .algorithm(algorithm)
        .content_type(content.to_owned())
        .key_id(signer.key_id().as_str().as_bytes().to_vec())
        .build();
    let message = CoseSign1Builder::new()
        .protected(protected)
        .payload(payload)
        .try_create_signature(b"", |to_be_signed| signer.sign(to_be_signed))?
        .build();
    message
        .to_tagged_vec()
        .map_err(|error| SignError { key_id: signer.key_id().clone(), problem: error.to_string() })
}

/// A message whose signature has not been checked yet.
#[derive(Debug, Clone)]
pub struct SignedMessage {
    message: CoseSign1,
    key_id: KeyId,
    algorithm: Algorithm,
    content: String,
}

impl SignedMessage {
    /// Parses a tagged `COSE_Sign1` message whose headers are exactly those that [`sign_message`] writes.
    ///
    /// # Errors
    /// When it is anything else: unknown algorithm, other headers, no payload, trailing bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, CoseError> {
        let message = CoseSign1::from_tagged_slice(bytes)
            .map_err(|error| CoseError::Malformed(error.to_string()))?;
        if !message.unprotected.is_empty() {
            return Err(CoseError::Header("must have nothing unprotected"));
        }
        let header = &message.protected.header;
        let algorithm = match &header.alg {
            Some(RegisteredLabelWithPrivate::Assigned(CoseAlgorithm::EdDSA)) => Algorithm::EdDsa,
            Some(RegisteredLabelWithPrivate::Assigned(CoseAlgorithm::ES256)) => Algorithm::Es256,
            _ => return Err(CoseError::Header("alg must be EdDSA or ES256")),
        };
        if !header.crit.is_empty() || !header.rest.is_empty() {
            return Err(CoseError::Header("has fields that are not understood"));
        }
        let Some(ContentType::Text(content)) = header.content_type.clone() else {
            return Err(CoseError::Header("content type must be a text"));
        };
        let key_id = std::str::from_utf8(&header.key_id)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(CoseError::Header("kid must be device:{device}@{site}"))?;
        if message.payload.is_none() {
            return Err(CoseError::Malformed("no payload".to_owned()));
        }
        Ok(Self { message, key_id, algorithm, content })
    }

    /// Returns the key that claims to have signed. Trust it only after [`SignedMessage::verify`].
    #[must_use]
    pub const fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// Returns the signed content type. Trust it only after [`SignedMessage::verify`].
    #[must_use]
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Returns the signed payload. Trust it only after [`SignedMessage::verify`].
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.message.payload.as_deref().unwrap_or_default()
    }

    /// Checks the signature with `key`.
    ///
    /// # Errors
    /// When the key is of another algorithm, or the signature does not match.
    pub fn verify(&self, key: &PublicKey) -> Result<(), CoseError> {
        if key.algorithm() != self.algorithm {
            let (claimed, actual) = (self.algorithm.as_str(), key.algorithm().as_str());
            return Err(CoseError::Algorithm { claimed, actual });
        }
        self.message.verify_signature(b"", |signature, message| {
            if key.verifies(message, signature) { Ok(()) } else { Err(CoseError::Signature) }
        })
    }
}

/// Verifies many messages on up to `threads` threads; the results are in the order of the messages.
///
/// Each signature is verified by itself. Ed25519's batch verification would be about twice as fast,
/// but it cannot identify the forged signature in a batch, and it accepts some signatures that a
/// single verification refuses.
#[must_use]
pub fn verify_many(
    messages: &[(&SignedMessage, &PublicKey)],
    threads: usize,
) -> Vec<Result<(), CoseError>> {
    /// The fewest messages for one thread; with fewer, a thread costs more than it saves.
    const SHARE_MIN: usize = 16;
    let check = |share: &[(&SignedMessage, &PublicKey)]| -> Vec<Result<(), CoseError>> {
        share.iter().map(|(message, key)| message.verify(key)).collect()
    };
    let share = messages.len().div_ceil(threads.max(1)).max(SHARE_MIN);
    if share >= messages.len() {
        return check(messages);
    }
    std::thread::scope(|scope| {
        let running: Vec<_> =
            messages.chunks(share).map(|share| scope.spawn(move || check(share))).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}
