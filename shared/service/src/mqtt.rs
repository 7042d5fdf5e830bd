//! The configuration of an MQTT broker, and the connection to it.

mod connection;
mod name_conflict;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rumqttc::{IncomingPacketSizeLimit, MqttOptions, NetworkOptions, TlsConfiguration, Transport};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use crate::config::Mistakes;
use crate::secret::{Secret, SecretError};

pub use self::connection::{ConnectionEvent, MqttConnection};
pub use self::name_conflict::NameConflict;

/// A broker, as the configuration sections `[mqtt]` and `[uplink]` describe it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerSettings {
    /// The host name or IP address; empty when there is no broker.
    pub host: String,
    /// The TCP port, 1..65535.
    pub port: u16,
    /// CA certificates (PEM) that verify the broker. Without them the connection has no TLS, which
    /// is allowed on loopback only.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate (PEM), for a broker that requires one.
    pub cert_file: Option<PathBuf>,
    /// The private key (PEM) of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The user name; it is sent only together with a password.
    pub username: String,
    /// The password, as a reference or in place.
    pub password: Secret,
    /// The address of the MQTT 5 server, if the broker runs in this process: clients connect to it
    /// directly.
    #[serde(skip)]
    pub local: Option<SocketAddr>,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 1883,
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: String::new(),
            password: Secret::default(),
            local: None,
        }
    }
}

/// Why a connection cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A certificate or key file cannot be read.
    #[error("the broker's {path} cannot be read: {source}", path = path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The reason of the operating system.
        source: std::io::Error,
    },
    /// The reference to the password cannot be resolved.
    #[error("the broker's password: {0}")]
    Secret(#[from] SecretError),
}

/// The bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionBounds {
    /// Our packets that the broker has not acknowledged yet. The client keeps a slot for each.
    pub in_flight: u16,
    /// The broker's packets that we have not acknowledged yet.
    pub receive: u16,
    /// The size of one incoming packet, in bytes.
    pub packet: u32,
}

impl BrokerSettings {
    /// Returns the broker's URL, without user name and password; `None` if no broker is configured.
    #[must_use]
    pub fn url(&self) -> Option<String> {
        let scheme = if self.ca_file.is_some() { "mqtts" } else { "mqtt" };
        self.is_configured().then(|| format!("{scheme}://{}:{}", self.host, self.port))
    }

    /// Returns true if a broker is configured.
    #[must_use]
    pub const fn is_configured(&self) -> bool {
        !self.host.is_empty()
    }

    /// Reports what is wrong with the configuration section `section`.
    pub fn check(&self, section: &str, mistakes: &mut Mistakes) {
        let field = |name: &str| format!("{section}.{name}");
        let loopback = self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        mistakes.require(self.port > 0, &field("port"), "is 0");
        mistakes.require(
            self.host.is_empty() || loopback || self.ca_file.is_some(),
            &field("ca_file"),
            "is required to connect to another host: samples never cross a network unencrypted",
        );
        mistakes.require(
            self.cert_file.is_some() == self.key_file.is_some(),
            &field("cert_file"),
            "cert_file and key_file must be set together",
        );
    }

    /// Returns the options of a connection with the client id `client`. The MQTT session is clean:
    /// only our own acknowledgement counts as delivery, never the broker's stored session.
    ///
    /// # Errors
    /// When a certificate or the password cannot be read.
    pub fn options(
        &self,
        client: &str,
        bounds: ConnectionBounds,
    ) -> Result<MqttOptions, BrokerError> {
        let local = self.local.map(|address| (address.ip().to_string(), address.port()));
        let address = local.unwrap_or_else(|| (self.host.clone(), self.port));
        let mut options = MqttOptions::new(client, address);
        options
            .set_keep_alive(15)
            .set_clean_start(true)
            .set_outgoing_inflight_upper_limit(bounds.in_flight)
            .set_receive_maximum(Some(bounds.receive))
            .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(bounds.packet));
        // Without Nagle's algorithm, which delays each small message by about 40 ms, until the
        // message before it is acknowledged.
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        if let Some(password) = self.password.resolve()? {
            let password = password.expose_secret().as_bytes().to_vec();
            options.set_credentials(self.username.clone(), password);
        }
        if let Some(path) = &self.ca_file {
            let client_auth = match (&self.cert_file, &self.key_file) {
                (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
                _ => None,
            };
            let ca = read(path)?;
            let tls = TlsConfiguration::Simple { ca, alpn: None, client_auth };
            options.set_transport(Transport::Tls(tls));
        }
        Ok(options)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BrokerError> {
    std::fs::read(path).map_err(|source| BrokerError::File { path: path.to_owned(), source })
}
