//! The bus: frames, receipts and the reference's messages come in by shared subscriptions, so any
//! number of instances share them; answers go out.
//!
//! One task polls the client and only forwards. When the pipeline is full it polls no further, and
//! TCP makes the broker wait. The session is clean: what a broker would hold for a dead instance
//! the edge sends again to a living one, since only our own answer counts as delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contract::envelope::Expect;
use contract::topic::{self, Kind};
use contract::{Ack, Origin};
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, IncomingPacketSizeLimit, MqttOptions, NetworkOptions,
    PublishOptions, QoS, TlsConfiguration, Transport,
};
use secrecy::ExposeSecret as _;
use service::backoff::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pipeline::{Answers, Lane, Message, Pipeline, Reply};
use crate::{IngestionConfig, MqttConfig, metric};

/// Packets in flight from the broker to us before it waits for our PUBACK.
const RECEIVE_MAX: u16 = 2_000;
const GROUP: &str = "ingestion";

/// Why the bus cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    #[error("mqtt: {path} cannot be read: {source}", path = path.display())]
    File { path: std::path::PathBuf, source: std::io::Error },
    #[error("mqtt.password: {0}")]
    Secret(#[from] service::secret::SecretError),
}

/// A handle on the bus.
#[derive(Clone)]
pub struct Bus {
    client: AsyncClient,
    connected: Arc<AtomicBool>,
}

impl Bus {
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Sends a device its answer. Lost answers are harmless: the edge asks again.
    pub async fn answer(&self, origin: &Origin, ack: &Ack) {
        if !self.is_connected() {
            return; // a queue of old answers would stand before the new subscriptions
        }
        let Ok(body) = serde_json::to_vec(ack) else { return };
        let options = PublishOptions::new(QoS::AtMostOnce);
        if let Err(error) = self.client.publish(Kind::Ack.topic(origin), body, options).await {
            tracing::debug!(%error, "could not send an answer");
        }
    }
}

/// Connects to the broker, and keeps connecting. `None` when there is none configured.
pub fn start(
    config: &IngestionConfig,
    mqtt: &MqttConfig,
    pipeline: &Pipeline,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Option<Bus>, MqttError> {
    if mqtt.host.is_empty() {
        return Ok(None);
    }
    let options = options(config, mqtt)?;
    let (client, events) = AsyncClient::builder(options).capacity(4_096).build();
    let bus = Bus { client, connected: Arc::default() };
    tracker.spawn(receive(bus.clone(), events, pipeline.clone(), stop.clone()));
    if let Some(answers) = pipeline.take_answers() {
        tracker.spawn(send_answers(bus.clone(), answers));
    }
    Ok(Some(bus))
}

fn options(config: &IngestionConfig, mqtt: &MqttConfig) -> Result<MqttOptions, MqttError> {
    let client = format!("simcorp-ingestion-{}", config.instance);
    let mut options = MqttOptions::new(client, (mqtt.host.as_str(), mqtt.port));
    options
        .set_keep_alive(15)
        .set_clean_start(true)
        .set_receive_maximum(Some(RECEIVE_MAX))
        .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(512 * 1024));
    // Small messages must not wait for the one before to be acknowledged (Nagle): 40 ms each.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if let Some(password) = mqtt.password.resolve()? {
        let password = password.expose_secret().as_bytes().to_vec();
        options.set_credentials(mqtt.username.clone(), password);
    }
    if let Some(path) = &mqtt.ca_file {
        let client_auth = match (&mqtt.cert_file, &mqtt.key_file) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        options.set_transport(Transport::Tls(TlsConfiguration::Simple {
            ca: read(path)?,
            alpn: None,
            client_auth,
        }));
    }
    Ok(options)
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, MqttError> {
    std::fs::read(path).map_err(|source| MqttError::File { path: path.to_owned(), source })
}

async fn receive(bus: Bus, mut events: EventLoop, pipeline: Pipeline, stop: CancellationToken) {
    let mut wait = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut told = false;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.poll() => event,
        };
        match event {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                bus.connected.store(true, Ordering::Relaxed);
                tracing::info!("connected to the broker");
                (told, wait) =
                    (false, Backoff::new(Duration::from_millis(100), Duration::from_secs(5)));
                subscribe(&bus.client);
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                let topic = std::str::from_utf8(&publish.topic).unwrap_or_default();
                forward(&pipeline, topic, publish.payload.to_vec()).await;
            }
            Ok(_) => {}
            Err(error) => {
                bus.connected.store(false, Ordering::Relaxed);
                if !told {
                    tracing::error!(%error, "no connection to the broker; trying again");
                    told = true;
                }
                let spread = u64::from(Instant::now().elapsed().subsec_nanos());
                tokio::time::sleep(wait.next(spread)).await;
            }
        }
    }
    // Nothing more comes in; what is queued is still written, and answered while the client lives.
    bus.connected.store(false, Ordering::Relaxed);
    drop(pipeline);
    let drain = async { while events.poll().await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), drain).await;
}

/// On a task of its own: whoever polls must not wait for the request queue.
fn subscribe(client: &AsyncClient) {
    let client = client.clone();
    tokio::spawn(async move {
        let kinds =
            [Kind::LiveFrame, Kind::BacklogFrame, Kind::Receipt, Kind::Telemetry, Kind::Events];
        for kind in kinds {
            let filter = kind.shared_filter(GROUP);
            if let Err(error) = client.subscribe(filter, QoS::AtLeastOnce).await {
                tracing::error!(%error, "could not subscribe");
            }
        }
    });
}

async fn forward(pipeline: &Pipeline, topic: &str, payload: Vec<u8>) {
    let Ok((origin, kind)) = topic::parse(topic) else {
        metric::invalid("topic");
        return;
    };
    let (lane, message) = match kind {
        Kind::LiveFrame => (Lane::Live, Message::Frame(payload)),
        Kind::BacklogFrame => (Lane::Backlog, Message::Frame(payload)),
        Kind::Receipt => (Lane::Backlog, Message::Receipt(payload)),
        Kind::Telemetry => (Lane::Live, Message::Reference(Expect::Telemetry, payload)),
        Kind::Events => (Lane::Live, Message::Reference(Expect::Event, payload)),
        Kind::Ack => return,
    };
    pipeline.send(lane, origin, message, Reply::Bus).await;
}

async fn send_answers(bus: Bus, mut answers: Answers) {
    while let Some((origin, ack)) = answers.recv().await {
        bus.answer(&origin, &ack).await;
    }
}
