//! `[fleet]`

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

/// `[fleet]`: gateways, their keys and certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetConfig {
    /// For people and services.
    pub listen: SocketAddr,
    /// The same as `simcorp device` reaches it.
    pub url: String,
    /// For gateways, by TLS with a certificate of our own authority.
    pub gateway_listen: SocketAddr,
    /// The same as gateways reach it; it stands in enrolment tokens.
    pub gateway_url: String,
    /// Names this instance; two instances need two names.
    pub instance: String,
    /// Seconds a gateway's certificate is good for. It is renewed after two thirds of them.
    pub certificate_life_s: u32,
    pub authority: AuthorityConfig,
    pub broker: BrokerConfig,
}

/// `[fleet.authority]`: who certifies gateways.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthorityConfig {
    /// PEM; the first issues, the others are still believed. Not set: `authority.pem` in the data
    /// folder, made at the first start in development, else by `simcorp authority create`.
    pub cert_file: Option<PathBuf>,
    /// Its key, PKCS#8 PEM, mode 0600. Not set: `authority.key` in the data folder.
    pub key_file: Option<PathBuf>,
    /// Or the socket of a `simcorp-signer`, whose key is in an HSM or a cloud's KMS by its PKCS#11
    /// module, for the device `authority` of the site `fleet`, with `purposes = ["certificate"]`.
    pub signer_socket: Option<PathBuf>,
}

/// `[fleet.broker]`: the broker as gateways reach it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Told to gateways that enrol. Empty: they have it in their own configuration.
    pub host: String,
    pub port: u16,
    /// Who certifies it, PEM. Not set: our own authority.
    pub ca_file: Option<PathBuf>,
    /// Tell Mosquitto's dynamic security which gateway may what, over `[mqtt]`.
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
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            contract::DeviceId::new(self.instance.clone()).is_ok(),
            "fleet.instance",
            "not a name of letters, digits and . _ -",
        );
        mistakes.require(
            self.url.starts_with("http://") || self.url.starts_with("https://"),
            "fleet.url",
            "not an address such as http://127.0.0.1:4009",
        );
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
            "is set beside signer_socket; there is one key",
        );
        mistakes.require(self.broker.port > 0, "fleet.broker.port", "is 0");
    }

    /// The host of `gateway_url`, which the listener's certificate names.
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
