//! The requests and responses between a gateway and the fleet service about certificates, as JSON
//! over TLS.

use serde::{Deserialize, Serialize};

use crate::{DeviceId, EpochMs, KeyId, MachineId, OrgId, SiteId};

/// A gateway's enrolment request: its enrolment token and a certificate request signed by its own
/// key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnrollRequest {
    /// The enrolment token: `sce1.URL.FINGERPRINT.ID.SECRET`.
    pub token: String,
    /// The organisation that the gateway belongs to.
    pub org_id: OrgId,
    /// The site at which the gateway stands.
    pub site_id: SiteId,
    /// The name of the gateway.
    pub device: DeviceId,
    /// The machines that the gateway's configuration names.
    pub machines: Vec<MachineId>,
    /// The certificate request: PKCS#10, DER, in base64.
    pub request: String,
}

/// A gateway's request for its next certificate, made while its certificate is still valid.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenewRequest {
    /// The certificate request: PKCS#10, DER, in base64.
    pub request: String,
}

/// A gateway's request for a new certificate of the same key, after its certificate has expired.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoverRequest {
    /// The organisation that the gateway belongs to.
    pub org_id: OrgId,
    /// The key of the expired certificate.
    pub key_id: KeyId,
    /// The certificate request: PKCS#10, DER, in base64.
    pub request: String,
}

/// The fleet service's response with a new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateGrant {
    /// The organisation that the gateway belongs to.
    pub org_id: OrgId,
    /// The key that the certificate is for.
    pub key_id: KeyId,
    /// The machines that the gateway may send data for.
    pub machines: Vec<MachineId>,
    /// The gateway's certificate, PEM.
    pub certificate: String,
    /// The CA certificates of the fleet service itself and of gateways, PEM.
    pub authority: String,
    /// The URL at which the fleet service answers gateways.
    pub fleet_url: String,
    /// The broker to send frames to, when the fleet service knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerAddress>,
    /// The time by the fleet service's clock.
    pub now: EpochMs,
}

/// The address at which gateways reach a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerAddress {
    /// The host name or IP address.
    pub host: String,
    /// The TCP port of the TLS listener.
    pub port: u16,
    /// The CA certificate of the broker, PEM.
    pub authority: String,
}

/// The identity of a gateway, as the fleet service has authenticated it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayIdentity {
    /// The organisation that the gateway belongs to.
    pub org_id: OrgId,
    /// The key of the gateway's certificate.
    pub key_id: KeyId,
    /// The machines that the gateway may send data for.
    pub machines: Vec<MachineId>,
    /// The time by the fleet service's clock.
    pub now: EpochMs,
}

/// The time by the fleet service's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetTime {
    /// The current time.
    pub now: EpochMs,
}

/// The response while a request waits for a person's decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingDecision {
    /// A sentence for people: what has to happen.
    pub waiting: String,
    /// When the request was received.
    pub since: EpochMs,
}
