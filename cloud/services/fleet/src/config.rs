//! The configuration section `[fleet]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

/// `[fleet]`: gateways, their keys and certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetConfig {
    /// The address of the API for people and services.
    pub listen: SocketAddr,
    /// The URL at which `simcorp device` reaches that API.
    pub url: String,
    /// The address of the API for gateways: TLS with a certificate of our own authority.
    pub gateway_listen: SocketAddr,
    /// The URL at which gateways reach that API. Every enrolment token contains it.
    pub gateway_url: String,
    /// The name of this instance. Two instances need different names.
    pub instance: String,
    /// The lifetime of a gateway's certificate, s. The gateway renews it after two thirds of this.
    pub certificate_life_s: u32,
    pub authority: AuthorityConfig,
    pub broker: BrokerConfig,
}

/// `[fleet.authority]`: the certificate authority (CA) for gateways.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthorityConfig {
    /// The CA certificates, PEM. The first one issues; the others are still trusted.
    /// If not set: `authority.pem` in the data folder. In development the first start creates it,
    /// otherwise `simcorp authority create` does.
    pub cert_file: Option<PathBuf>,
    /// The CA's private key, PKCS#8 PEM, mode 0600. If not set: `authority.key` in the data folder.
    pub key_file: Option<PathBuf>,
    /// Set instead of `key_file`: the socket of a `simcorp-signer`, whose key is in an HSM or in a
    /// cloud's KMS, used through its PKCS#11 module. The key is configured there for the device
    /// `authority` of the site `fleet`, with `purposes = ["certificate"]`.
    pub signer_socket: Option<PathBuf>,
}

/// `[fleet.broker]`: how gateways reach the broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// The host that gateways receive when they enrol. If empty, gateways have it in their own
    /// configuration.
    pub host: String,
    pub port: u16,
    /// The CA certificates for the broker's certificate, PEM. If not set: our own authority.
    pub ca_file: Option<PathBuf>,
    /// Whether the fleet sends to Mosquitto's dynamic security plugin, over the connection of
    /// `[mqtt]`, what each gateway may do.
    pub dynamic_security: bool,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self { host: String::new(), port: 8883, ca_file: None, dynamic_security: false }
    }
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4009)),
            url: "http://127.0.0.1:4009".to_owned(),
            gateway_listen: SocketAddr::from(([127, 0, 0, 1], 4019)),
            gateway_url: "https://localhost:4019".to_owned(),
            instance: "1".to_owned(),
            certificate_life_s: 90 * 86_400,
            authority: AuthorityConfig::default(),
            broker: BrokerConfig::default(),
        }
    }
}

impl FleetConfig {
    /// Adds every invalid value to `mistakes`.
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            contract::DeviceId::new(self.instance.clone()).is_ok(),
            "fleet.instance",
            "not a name of letters, digits and . _ -",
        );
        mistakes.require_http_url("fleet.url", &self.url);
        mistakes.require(
            (20..=825 * 86_400).contains(&self.certificate_life_s),
            "fleet.certificate_life_s",
            "not between 20 and 71280000, which is 825 days",
        );
        mistakes.require(
            self.host().is_some() && self.gateway_url.len() <= 256,
            "fleet.gateway_url",
            "not an address such as https://fleet.example.com:4019",
        );
        let both = self.authority.key_file.is_some() && self.authority.signer_socket.is_some();
        mistakes.require(
            !both,
            "fleet.authority.key_file",
            "is set together with signer_socket; set only one of them",
        );
        mistakes.require(self.broker.port > 0, "fleet.broker.port", "is 0");
    }

    /// Returns the host of `gateway_url`. The listener's certificate is issued for this host.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        let rest = self.gateway_url.strip_prefix("https://")?;
        let authority = rest.split('/').next()?;
        let host = match authority.strip_prefix('[') {
            Some(v6) => v6.split_once(']')?.0,
            None => authority.split(':').next()?,
        };
        (!host.is_empty()).then_some(host)
    }
}
