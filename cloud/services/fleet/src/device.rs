//! Gateways as the fleet knows them.

use contract::{EpochMs, KeyId, MachineId, OrgId, SiteId};
use serde::Serialize;
use trust::PublicKey;
use utoipa::ToSchema;

/// After a gateway has got another key, what the old one signed is still taken for so long: frames
/// that wait in a journal were signed before.
pub const OLD_KEY_BELIEVED_MS: i64 = 90 * 86_400_000;

/// What a gateway is called in its certificates: the broker takes it for the user's name, so it is
/// one name over all organisations, short, and without what topics are made of. Each of its keys has
/// another, so that the broker refuses a key that was replaced.
#[must_use]
pub fn certificate_name(org: &OrgId, key_id: &KeyId, key_number: i64) -> String {
    let digest = trust::digest(format!("{org}\0{key_id}\0{key_number}").as_bytes());
    let hex = digest.0.iter().take(15).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    format!("gw-{hex}")
}

/// A gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    #[schema(value_type = String)]
    pub org_id: OrgId,
    #[schema(value_type = String)]
    pub key_id: KeyId,
    #[schema(value_type = String)]
    pub site_id: SiteId,
    /// The machines it may speak for.
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineId>,
    /// The number of its present key.
    pub key_number: i64,
    /// What its certificates are called; none: it was registered by hand and has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_name: Option<String>,
    pub created_at: EpochMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<EpochMs>,
}

/// A key that a gateway has, or had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceKey {
    /// The first is 1.
    pub number: i64,
    /// `EdDSA` or `ES256`
    pub algorithm: &'static str,
    /// PEM
    pub public_key: String,
    pub added_at: EpochMs,
    /// When another took its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<EpochMs>,
    /// What it has signed is still taken until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub believed_until: Option<EpochMs>,
}

/// A gateway that is registered: by hand, or by its enrolment.
#[derive(Debug, Clone)]
pub struct NewDevice<'n> {
    pub org: &'n OrgId,
    pub key_id: &'n KeyId,
    pub site: &'n SiteId,
    pub machines: &'n [MachineId],
    pub public: &'n PublicKey,
    /// It enrols, and will show certificates.
    pub enrols: bool,
    /// Its key may take the place of the one that is known.
    pub replaces: bool,
    /// What the key before it signs is believed no longer: somebody may have it.
    pub compromised: bool,
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// Its key has this number.
    As(i64),
    /// The name has another key.
    OtherKey,
    Revoked,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// Hex
    pub serial: String,
    /// Of which of the gateway's keys.
    pub key_number: i64,
    /// enrolled, renewed or recovered
    pub why: String,
    pub not_before: EpochMs,
    pub not_after: EpochMs,
    pub issued_at: EpochMs,
}
