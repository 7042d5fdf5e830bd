//! The embedded MQTT broker: rumqttd on loopback, in this process, with one port for both versions
//! of MQTT.

mod listener;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};
use service::shutdown::CancellationToken;
use service::tasks::{self, Tasks};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::listener::{SharedPort, VersionServers};
use crate::config::BrokerConfig;

const PACKET_BYTES_MAX: usize = 512 * 1024;
/// How many files a client of the shared port takes: its connection, and both ends of the one to
/// the server of its version.
pub const FILES_PER_CLIENT: usize = 3;

/// Starts the broker, for at most `clients_max` clients of its shared port. It stops with the
/// process: no client relies on anything that it stores. Returns the address of its MQTT 5 server,
/// for clients in this process.
///
/// # Errors
/// When a port is in use.
pub async fn start(
    config: &BrokerConfig,
    clients_max: usize,
    (tasks, stop): (&Tasks, &CancellationToken),
) -> anyhow::Result<SocketAddr> {
    let shared = bind(config.listen, "broker.listen").await?;
    // rumqttd binds these itself and only logs that a port is in use; checked here, it is an error.
    let v4 = bind(config.listen_v4, "broker.listen_v4").await?;
    let v5 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let servers = VersionServers { v4: v4.local_addr()?, v5: v5.local_addr()? };
    drop((v4, v5));
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
        v4: Some(HashMap::from([("v4".to_owned(), server("v4", servers.v4))])),
        v5: Some(HashMap::from([("v5".to_owned(), server("v5", servers.v5))])),
        ..Config::default()
    };
    let supervised = tasks.clone();
    // The broker cannot be started again: its ports belong to the threads of the first start.
    std::thread::Builder::new().name("broker".to_owned()).spawn(move || {
        let reason = match tasks::catch("broker", || Broker::new(settings).start()) {
            Ok(Ok(())) => "the embedded broker ended".to_owned(),
            Ok(Err(error)) => format!("the embedded broker ended: {error}"),
            Err(panicked) => panicked.to_string(),
        };
        supervised.end_process(reason);
    })?;
    let places = Arc::new(Semaphore::new(clients_max));
    let port = SharedPort { listener: Arc::new(shared), servers, places };
    let stop = stop.clone();
    tasks.spawn_restarting("broker-port", move || port.clone().accept_clients(stop.clone()));
    Ok(servers.v5)
}

async fn bind(address: SocketAddr, field: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "{address} is in use, probably by another MQTT broker; set {field} to a free port, \
             or mqtt.host to use that broker"
        )
    })
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
