//! Upstream Sim-Corp's compact JWS: header `{alg:"EdDSA", kid}`, claims = the payload's own fields
//! with `iat` and `exp` beside them. We check what upstream does not: that the claims equal the
//! payload, and that the key is the one that the message names.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use contract::EpochMs;
use serde_json::Value;

use crate::key::PublicKey;

/// Why a JWS does not authenticate its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// The text is not a compact JWS with `alg`, `kid`, `iat` and `exp` as required.
    #[error("not a compact JWS with alg EdDSA and a kid")]
    Malformed,
    /// The header names another key than the message.
    #[error("the kid inside the signature is another")]
    OtherKey,
    /// The signature is not the key's, or the key is not an Ed25519 key.
    #[error("the signature does not fit")]
    Signature,
    /// The claims differ from the payload.
    #[error("the claims are not the payload")]
    OtherPayload,
    /// The JWS had expired at the message's own time.
    #[error("expired before the message was made")]
    Expired,
}

/// Checks that `jws` was signed by `key`, whose name is `kid`, over exactly `payload`, and that it
/// had not expired at `at`.
///
/// # Errors
/// States which of these conditions is not met.
pub fn verify(
    jws: &str,
    kid: &str,
    key: &PublicKey,
    payload: &Value,
    at: EpochMs,
) -> Result<(), JwsError> {
    let (signed, signature) = jws.rsplit_once('.').ok_or(JwsError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(JwsError::Malformed)?;
    let json = |part: &str| -> Option<Value> {
        serde_json::from_slice(&BASE64URL.decode(part).ok()?).ok()
    };
    let header = json(header).ok_or(JwsError::Malformed)?;
    if header.get("alg").and_then(Value::as_str) != Some("EdDSA") {
        return Err(JwsError::Malformed);
    }
    if header.get("kid").and_then(Value::as_str) != Some(kid) {
        return Err(JwsError::OtherKey);
    }
    let signature = BASE64URL.decode(signature).map_err(|_| JwsError::Malformed)?;
    if !matches!(key, PublicKey::Ed25519(_)) || !key.verifies(signed.as_bytes(), &signature) {
        return Err(JwsError::Signature);
    }
    let Some(Value::Object(mut claims)) = json(claims) else { return Err(JwsError::Malformed) };
    let seconds = |claim: Option<Value>| claim.and_then(|v| v.as_i64());
    let (issued, expires) = (seconds(claims.remove("iat")), seconds(claims.remove("exp")));
    let (Some(_), Some(expires)) = (issued, expires) else { return Err(JwsError::Malformed) };
    if Value::Object(claims) != *payload {
        return Err(JwsError::OtherPayload);
    }
    // Against the message's own time, not the wall clock: a message may arrive late and be valid.
    if expires.saturating_mul(1000) < at.0 {
        return Err(JwsError::Expired);
    }
    Ok(())
}
