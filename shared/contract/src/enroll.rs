//! What a gateway and the fleet say to each other about certificates, as JSON over TLS.

use serde::{Deserialize, Serialize};

use crate::{DeviceId, EpochMs, KeyId, MachineId, OrgId, SiteId};

/// A gateway's first words: the token it was given, and a request made by its own key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enroll {
    pub token: String,
    pub org_id: OrgId,
    pub site_id: SiteId,
    pub device: DeviceId,
    /// What its configuration says it speaks for.
    pub machines: Vec<MachineId>,
    /// PKCS#10, DER, in base64.
    pub request: String,
}

/// A gateway with a good certificate asks for the next one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Renew {
    /// PKCS#10, DER, in base64.
    pub request: String,
}

/// A gateway whose certificate has expired asks for another with the same key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recover {
    pub org_id: OrgId,
    pub key_id: KeyId,
    /// PKCS#10, DER, in base64.
    pub request: String,
}

/// What a gateway was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Granted {
    pub org_id: OrgId,
    pub key_id: KeyId,
    /// The machines it may speak for.
    pub machines: Vec<MachineId>,
    /// PEM.
    pub certificate: String,
    /// PEM; the fleet itself, and gateways, are certified by these.
    pub authority: String,
    /// Where the fleet answers gateways.
    pub fleet_url: String,
    /// Where frames go, when the fleet knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerAddress>,
    /// The fleet's clock.
    pub now: EpochMs,
}

/// A broker, as gateways reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerAddress {
    pub host: String,
    pub port: u16,
    /// PEM: who certifies it.
    pub authority: String,
}

/// Who the fleet takes a gateway for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub org_id: OrgId,
    pub key_id: KeyId,
    pub machines: Vec<MachineId>,
    /// The fleet's clock.
    pub now: EpochMs,
}

/// The fleet's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    pub now: EpochMs,
}

/// Nobody has decided yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// For a person: what has to happen.
    pub waiting: String,
    pub since: EpochMs,
}
