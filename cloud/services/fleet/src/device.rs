//! The types of the device registry: gateways, their keys and their certificates.

use contract::{EpochMs, KeyId, MachineId, OrgId, SiteId};
use serde::Serialize;
use trust::PublicKey;
use utoipa::ToSchema;

/// How long signatures of a gateway's old key are accepted after the gateway received a new key.
/// Frames that wait in a journal were signed before the change.
pub const OLD_KEY_ACCEPTED_MS: i64 = 90 * 86_400_000;

/// Returns the common name in a gateway's certificates for one of its keys.
///
/// The broker uses it as the user name. It is therefore unique over all organisations, short, and
/// without characters that have a meaning in topics. Each key of a gateway has a different name, so
/// that the broker refuses a key that was replaced.
#[must_use]
pub fn certificate_name(org: &OrgId, key_id: &KeyId, key_number: i64) -> String {
    let digest = trust::sha256_digest(format!("{org}\0{key_id}\0{key_number}").as_bytes());
    let hex = digest.0.iter().take(15).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    format!("gw-{hex}")
}

/// A gateway in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    #[schema(value_type = String)]
    pub org_id: OrgId,
    #[schema(value_type = String)]
    pub key_id: KeyId,
    #[schema(value_type = String)]
    pub site_id: SiteId,
    /// The machines that the gateway may publish for.
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineId>,
    /// The number of its current key.
    pub key_number: i64,
    /// The common name in its certificates. Absent if the gateway was registered manually and has
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_name: Option<String>,
    pub created_at: EpochMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<EpochMs>,
    /// When two agents were last seen to send under this name and key. Absent if there was no such
    /// conflict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_conflict_at: Option<EpochMs>,
}

/// A current or former key of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceKey {
    /// The key's number. A gateway's first key has number 1.
    pub number: i64,
    /// `EdDSA` or `ES256`
    pub algorithm: &'static str,
    /// The public key, PEM.
    pub public_key: String,
    pub added_at: EpochMs,
    /// The time at which another key replaced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<EpochMs>,
    /// Signatures of a replaced key are accepted until this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub believed_until: Option<EpochMs>,
}

/// A gateway to register, manually or by its enrolment.
#[derive(Debug, Clone)]
pub struct NewDevice<'n> {
    pub org: &'n OrgId,
    pub key_id: &'n KeyId,
    pub site: &'n SiteId,
    pub machines: &'n [MachineId],
    pub public: &'n PublicKey,
    /// Whether the gateway enrols and will authenticate with certificates.
    pub enrols: bool,
    /// Whether the new key may replace the key that is registered.
    pub replaces: bool,
    /// Whether the replaced key may be compromised. If so, its signatures are rejected at once.
    pub compromised: bool,
}

/// The result of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// The gateway is registered, and its key has this number.
    Accepted(i64),
    /// Refused: the name has another key, or this key was replaced before.
    OtherKey,
    Revoked,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// The serial number, hex.
    pub serial: String,
    /// The number of the gateway's key that the certificate is for.
    pub key_number: i64,
    /// The reason: `enrolled`, `renewed` or `recovered`.
    pub why: String,
    pub not_before: EpochMs,
    pub not_after: EpochMs,
    pub issued_at: EpochMs,
}
