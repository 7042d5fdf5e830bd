//! The embedded MQTT broker: rumqttd on loopback, in this process.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

use crate::config::BrokerConfig;

const PACKET_BYTES_MAX: usize = 512 * 1024;

/// Starts the broker. It stops with the process: no client relies on anything that it stores.
///
/// # Errors
/// When a port is in use.
pub fn start(config: &BrokerConfig) -> anyhow::Result<()> {
    for (field, address) in
        [("broker.listen", config.listen), ("broker.listen_v4", config.listen_v4)]
    {
        // rumqttd only logs that a port is in use; checked here, it is a clear error.
        TcpListener::bind(address).map(drop).with_context(|| {
            format!(
                "{address} is in use, probably by another MQTT broker; set {field} to a free port, \
                 or mqtt.host to use that broker"
            )
        })?;
    }
    let settings = Config {
        id: 0,
        router: RouterConfig {
            max_connections: 10_010,
            max_outgoing_packet_count: 2_000,
            // Bounds what is buffered for slow readers, per topic filter: 8 × 4 MB.
            max_segment_size: 4 * 1024 * 1024,
            max_segment_count: 8,
            custom_segment: None,
            initialized_filters: None,
            shared_subscriptions_strategy: rumqttd::Strategy::RoundRobin,
        },
        v4: Some(HashMap::from([("v4".to_owned(), server("v4", config.listen_v4))])),
        v5: Some(HashMap::from([("v5".to_owned(), server("v5", config.listen))])),
        ..Config::default()
    };
    std::thread::Builder::new().name("broker".to_owned()).spawn(move || {
        if let Err(error) = Broker::new(settings).start() {
            tracing::error!(%error, "the embedded broker stopped");
        }
    })?;
    Ok(())
}

fn server(name: &str, listen: SocketAddr) -> ServerSettings {
    ServerSettings {
        name: name.to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: 10_000,
            max_payload_size: PACKET_BYTES_MAX,
            max_inflight_count: 1_000,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    }
}
