//! Signing and verifying, with keys that name themselves.
//!
//! What a gateway says is a `COSE_Sign1` message (RFC 9052) by `EdDSA` (Ed25519) or `ES256`
//! (P-256), since a TPM has no Ed25519. The content type is signed too, so a receipt can never be
//! taken for a frame. The reference's compact JWS is read, never written.
//!
//! This crate must never log, print or return a private key.

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
    CONTENT_FRAME, CONTENT_OUTCOME, CONTENT_RECEIPT, CoseError, Signed, digest, sign, verify_many,
};
pub use enrollment::EnrollmentToken;
pub use file_key::{FileKey, FileKeyError};
pub use key::{Algorithm, KeyError, PublicKey, SignError, Signer};
pub use purpose::{MESSAGE_BYTES_MAX, Purpose};
pub use socket::SocketKey;

/// Random bytes from the system.
///
/// # Errors
/// When it has none, which a Linux that has booted never says.
pub fn random<const N: usize>() -> Result<[u8; N], std::io::Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no random numbers"))?;
    Ok(bytes)
}

/// Any number, to spread waits by; the same each time where there is no randomness.
#[must_use]
pub fn spread() -> u64 {
    random::<8>().map_or(0, u64::from_le_bytes)
}

/// Whether two secrets, or digests of them, are the same, in a time that does not tell where they
/// differ.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// A random identity: 32 hex digits.
///
/// # Errors
/// As [`random`].
pub fn random_id() -> Result<String, std::io::Error> {
    Ok(format!("{:032x}", u128::from_be_bytes(random()?)))
}
