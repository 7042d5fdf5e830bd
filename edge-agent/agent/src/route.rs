//! How the broker is reached with the certificate that enrolment gave.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, TlsConfiguration, Transport};
use rustls::ClientConfig;
use service::mqtt::{Broker, BrokerError};

use crate::config::EdgeConfig;
use crate::identity::Enrolled;
use crate::uplink::BOUNDS;

/// A broker, and as whom one comes to it.
#[derive(Debug, Clone)]
pub struct Route {
    broker: Broker,
    /// Who certifies it, PEM.
    pub authority: String,
    client: String,
}

impl Route {
    /// As the configuration says, or else the fleet. `None`: by the configuration alone, without the
    /// certificate that was given.
    ///
    /// # Errors
    /// When `uplink.ca_file` cannot be read.
    pub fn of(config: &EdgeConfig, enrolled: &Enrolled) -> std::io::Result<Option<Self>> {
        let machine = &config.machine.id;
        // Unlike the key's name this is one name over all organisations: two who call themselves alike
        // would throw each other out.
        let client = format!("{}-{machine}", enrolled.certificate.name);
        let configured = &config.uplink;
        if !configured.is_configured() {
            let Some(broker) = &enrolled.granted.broker else { return Ok(None) };
            let (host, port) = (broker.host.clone(), broker.port);
            let named = Broker { host, port, ..Broker::default() };
            return Ok(Some(Self { broker: named, authority: broker.authority.clone(), client }));
        }
        match (&configured.ca_file, &configured.cert_file) {
            (Some(path), None) => {
                let authority = std::fs::read_to_string(path)?;
                let broker = Broker { ca_file: None, ..configured.clone() };
                Ok(Some(Self { broker, authority, client }))
            }
            _ => Ok(None),
        }
    }

    /// A connection's options; `mark` tells it from another of the same gateway.
    ///
    /// # Errors
    /// When the password cannot be read.
    pub fn options(&self, tls: ClientConfig, mark: &str) -> Result<MqttOptions, BrokerError> {
        let mut options = self.broker.options(&format!("{}{mark}", self.client), BOUNDS)?;
        let tls = TlsConfiguration::Rustls(Arc::new(tls));
        options.set_transport(Transport::Tls(tls));
        Ok(options)
    }

    #[must_use]
    pub fn target(&self) -> String {
        format!("{}:{}", self.broker.host, self.broker.port)
    }
}

/// Connects, and leaves again.
///
/// # Errors
/// In a sentence, why not.
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
    let answered = tokio::time::timeout(TIME_MAX, connect).await;
    let _ = client.try_disconnect();
    answered.map_err(|_| format!("does not answer within {} s", TIME_MAX.as_secs()))?
}
