//! Connects to the broker with the certificate that the gateway received at enrolment.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, TlsConfiguration, Transport};
use rustls::ClientConfig;
use service::mqtt::{BrokerError, BrokerSettings};

use crate::config::EdgeConfig;
use crate::identity::Enrolled;
use crate::uplink::MQTT_BOUNDS;

/// A broker, and the client id to connect to it with.
#[derive(Debug, Clone)]
pub struct BrokerEndpoint {
    broker: BrokerSettings,
    /// The certificates of the authority that certifies the broker, PEM.
    pub authority: String,
    /// The MQTT client id, without a suffix.
    client_id: String,
}

impl BrokerEndpoint {
    /// Returns the broker that the configuration names, or else the one that the fleet service
    /// named. Returns `None` if the enrolment certificate is not to be used: the configured broker
    /// has its own client certificate or no `ca_file`, or no broker is known.
    ///
    /// # Errors
    /// When `uplink.ca_file` cannot be read.
    pub fn resolve(config: &EdgeConfig, enrolled: &Enrolled) -> std::io::Result<Option<Self>> {
        let machine = &config.machine.id;
        // Unlike the key's name, the client id must be unique over all organisations: the broker
        // disconnects a client when another one connects with the same id.
        let client = format!("{}-{machine}", enrolled.certificate.common_name);
        let configured = &config.uplink;
        if !configured.is_configured() {
            let Some(broker) = &enrolled.granted.broker else { return Ok(None) };
            let (host, port) = (broker.host.clone(), broker.port);
            let settings = BrokerSettings { host, port, ..BrokerSettings::default() };
            return Ok(Some(Self {
                broker: settings,
                authority: broker.authority.clone(),
                client_id: client,
            }));
        }
        match (&configured.ca_file, &configured.cert_file) {
            (Some(path), None) => {
                let authority = std::fs::read_to_string(path)?;
                let broker = BrokerSettings { ca_file: None, ..configured.clone() };
                Ok(Some(Self { broker, authority, client_id: client }))
            }
            _ => Ok(None),
        }
    }

    /// Returns the MQTT options of a connection. `mark` is appended to the client id, so that
    /// several connections of one gateway have different ids.
    ///
    /// # Errors
    /// When the password cannot be read.
    pub fn options(&self, tls: ClientConfig, mark: &str) -> Result<MqttOptions, BrokerError> {
        let mut options = self.broker.options(&format!("{}{mark}", self.client_id), MQTT_BOUNDS)?;
        let tls = TlsConfiguration::Rustls(Arc::new(tls));
        options.set_transport(Transport::Tls(tls));
        Ok(options)
    }

    /// Returns the broker's `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.broker.host, self.broker.port)
    }
}

/// Connects to the broker, and disconnects again.
///
/// # Errors
/// A sentence that says why the connection failed; after 10 s without an answer it fails too.
pub async fn connect_once(options: MqttOptions) -> Result<(), String> {
    const TIME_MAX: Duration = Duration::from_secs(10);
    let (client, mut events) = AsyncClient::builder(options).capacity(4).build();
    let connect = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    let result = tokio::time::timeout(TIME_MAX, connect).await;
    let _ = client.try_disconnect();
    result.map_err(|_| format!("does not answer within {} s", TIME_MAX.as_secs()))?
}
