//! Signing and verifying. Each message names the key that signed it.
//!
//! A gateway sends `COSE_Sign1` messages (RFC 9052) signed with `EdDSA` (Ed25519) or with `ES256`
//! (P-256), because a TPM has no Ed25519. The content type is signed too, so a receipt can never be
//! mistaken for a frame. Upstream Sim-Corp's compact JWS is read, never written.
//!
//! This crate must never log, print or return a private key.
//!
//! A message is signed with one key and verified with its public key:
//!
//! ```rust
//! use trust::{Algorithm, CONTENT_FRAME, FileKey, SignedMessage, sign_message};
//!
//! let key = FileKey::generate("device:gw-1@leipzig".parse()?, Algorithm::EdDsa)?;
//! let bytes = sign_message(&key, CONTENT_FRAME, b"payload".to_vec())?;
//!
//! let message = SignedMessage::parse(&bytes)?;
//! message.verify(key.public_key())?;
//! assert_eq!(message.key_id().as_str(), "device:gw-1@leipzig");
//! assert_eq!(message.payload(), b"payload");
//!
//! let other = FileKey::generate("device:gw-2@leipzig".parse()?, Algorithm::EdDsa)?;
//! assert!(message.verify(other.public_key()).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Arithmetic on outside values is checked or saturating; an exception states its bound.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
#![warn(missing_docs)]

mod cose;
mod enrollment;
mod file_key;
pub mod jws;
mod key;
mod purpose;
pub mod socket;
pub mod tls;
pub mod x509;

pub use cose::{
    CONTENT_FRAME, CONTENT_OUTCOME, CONTENT_RECEIPT, CoseError, SignedMessage, sha256_digest,
    sign_message, verify_many,
};
pub use enrollment::EnrollmentToken;
pub use file_key::{FileKey, FileKeyError};
pub use key::{Algorithm, KeyError, PublicKey, SignError, Signer};
pub use purpose::{MESSAGE_BYTES_MAX, Purpose};
pub use socket::SocketKey;

/// Returns random bytes from the system.
///
/// # Errors
/// When the system provides none; this does not happen on a Linux that has booted.
pub fn random<const N: usize>() -> Result<[u8; N], std::io::Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no random numbers"))?;
    Ok(bytes)
}

/// Returns a random number for jitter; always 0 if the system provides no random numbers.
#[must_use]
pub fn jitter() -> u64 {
    random::<8>().map_or(0, u64::from_le_bytes)
}

/// Returns whether two secrets, or digests of them, are equal. It takes constant time, so that the
/// time does not reveal where they differ.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Returns a random identity of 32 hex digits.
///
/// # Errors
/// As [`random`].
pub fn random_id() -> Result<String, std::io::Error> {
    Ok(format!("{:032x}", u128::from_be_bytes(random()?)))
}
