//! The embedded MQTT broker: rumqttd on loopback, in this process, behind one port for both versions
//! of MQTT and one for MQTT 3.1.1. Both bound how many clients there are, in all and of a peer.

mod listener;
mod packet_end;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};
use service::connections::{ConnectionLimits, ConnectionPlaces};
use service::shutdown::CancellationToken;
use service::tasks::{self, Tasks};
use tokio::net::TcpListener;

use self::listener::{SharedPort, VersionServers};
use crate::config::BrokerConfig;

const PACKET_BYTES_MAX: usize = 512 * 1024;
/// How many files a client of the broker's ports takes: its connection, and both ends of the one to
/// the server of its version.
pub const FILES_PER_CLIENT: usize = 3;

/// Starts the broker, for at most `clients_max` clients of its ports. It stops with the process: no
/// client relies on anything that it stores. Returns the address of its MQTT 5 server, for clients
/// in this process.
///
/// # Errors
/// When a port is in use.
pub async fn start(
    config: &BrokerConfig,
    clients_max: usize,
    (tasks, stop): (&Tasks, &CancellationToken),
) -> anyhow::Result<SocketAddr> {
    let shared = bind(config.listen, "broker.listen").await?;
    let older = bind(config.listen_v4, "broker.listen_v4").await?;
    // rumqttd binds these itself; it has no limit for a peer, and clients reach it through the ports
    // above.
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let v5 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let servers = VersionServers { v4: v4.local_addr()?, v5: v5.local_addr()? };
    drop((v4, v5));
    let settings = Config {
        id: 0,
        router: RouterConfig {
            max_connections: 10_010,
            max_outgoing_packet_count: 2_000,
            // Bounds what is buffered for slow readers, per topic filter: 4 × 256 KB.
            max_segment_size: 256 * 1024,
            max_segment_count: 4,
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
        let ended = || match Broker::new(settings).start() {
            Ok(()) => "the embedded broker ended".to_owned(),
            Err(error) => format!("the embedded broker ended: {error}"),
        };
        let reason = tasks::catch("broker", ended).unwrap_or_else(|panicked| panicked.to_string());
        supervised.end_process(reason);
    })?;
    let places = ConnectionPlaces::new(client_limits(clients_max));
    let only_v4 = VersionServers { v5: servers.v4, ..servers };
    for (name, listener, servers) in
        [("broker-port", shared, servers), ("broker-port-v4", older, only_v4)]
    {
        let port = SharedPort { listener: Arc::new(listener), servers, places: places.clone() };
        let stop = stop.clone();
        tasks.spawn_restarting(name, move || port.clone().accept_clients(stop.clone()));
    }
    Ok(servers.v5)
}

/// Returns the limits of the broker's ports together: a quarter of the clients may come from one
/// peer, and three quarters from this computer, where services and agents run.
const fn client_limits(clients_max: usize) -> ConnectionLimits {
    let limits = ConnectionLimits::without_probes(clients_max).with_quarter_per_peer();
    ConnectionLimits { per_local_peer: clients_max.saturating_sub(limits.per_peer), ..limits }
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
