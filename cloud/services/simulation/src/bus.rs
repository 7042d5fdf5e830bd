//! The publisher's connection to the broker: sends frames, and passes each acknowledgement to the
//! simulated machine that waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::topic::{self, TopicKind};
use contract::{Ack, Origin};
use rumqttc::{AsyncClient, PublishOptions, QoS};
use service::mqtt::{
    BrokerError, BrokerSettings, ConnectionBounds, ConnectionEvent, MqttConnection,
};
use service::tasks::Tasks;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::SimulationConfig;

const BOUNDS: ConnectionBounds =
    ConnectionBounds { in_flight: 512, receive: 512, packet: 256 * 1024 };
const QUEUE: usize = 2_000;
/// The maximum number of queued acknowledgements of one machine. More are dropped; that is safe
/// because frames are sent again.
const ACKS: usize = 64;
const WAIT_MAX: Duration = Duration::from_secs(5);

type Listeners = Arc<Mutex<HashMap<Origin, mpsc::Sender<Ack>>>>;

/// A connection to the broker that reconnects by itself; clones share it.
#[derive(Clone)]
pub struct BrokerConnection {
    client: AsyncClient,
    connected: Arc<AtomicBool>,
    listeners: Listeners,
}

/// Connects to the broker, and reconnects until `stop`. Returns `None` if no broker is configured.
pub fn start(
    config: &SimulationConfig,
    mqtt: &BrokerSettings,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Result<Option<BrokerConnection>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(None);
    }
    let name = format!("simcorp-simulation-{}", config.instance);
    let listeners = Listeners::default();
    let listening = listeners.clone();
    let topics = move || {
        let listeners = listening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut topics: Vec<_> =
            listeners.keys().map(|origin| TopicKind::Ack.topic(origin)).collect();
        topics.sort_unstable();
        topics
    };
    let options = mqtt.options(&name, BOUNDS)?;
    let link = MqttConnection::new(options, QUEUE, topics, (WAIT_MAX, trust::jitter));
    // Machines start and end at any time: a refused subscription of one must not block the others.
    let link = link.with_vital(0);
    let bus = BrokerConnection { client: link.client(), connected: link.ready_flag(), listeners };
    // The connection outlives a run, because `bus` publishes through it; each run connects anew.
    let parts = (bus.clone(), stop.clone());
    tasks.spawn_restarting_with("simulation-mqtt", link, move |link| {
        let (bus, stop) = parts.clone();
        Box::pin(drive(bus, link, stop))
    });
    Ok(Some(bus))
}

impl BrokerConnection {
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Publishes a message; returns `false` if that is not possible now.
    pub async fn send(&self, origin: &Origin, kind: TopicKind, bytes: Vec<u8>) -> bool {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.is_connected() && self.client.publish(kind.topic(origin), bytes, options).await.is_ok()
    }

    /// Subscribes to the acknowledgements for a machine. Returns `None` if the machine already has
    /// a listener.
    pub async fn listen(&self, origin: &Origin) -> Option<mpsc::Receiver<Ack>> {
        let (sender, receiver) = mpsc::channel(ACKS);
        {
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            if listeners.contains_key(origin) {
                return None;
            }
            listeners.insert(origin.clone(), sender);
        }
        // If this fails, the next connection subscribes for all listeners.
        let _ = self.client.subscribe(TopicKind::Ack.topic(origin), QoS::AtLeastOnce).await;
        Some(receiver)
    }

    /// Removes the listener of a machine and unsubscribes.
    pub async fn stop_listening(&self, origin: &Origin) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(origin);
        let _ = self.client.unsubscribe(TopicKind::Ack.topic(origin)).await;
    }

    fn dispatch_ack(&self, topic: &str, payload: &[u8]) {
        let Ok((origin, TopicKind::Ack)) = topic::parse_topic(topic) else { return };
        let Ok(ack) = serde_json::from_slice(payload) else { return };
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listeners.get(&origin) {
            let _ = listener.try_send(ack);
        }
    }
}

async fn drive(bus: BrokerConnection, link: &mut MqttConnection, stop: CancellationToken) {
    link.reconnect();
    while let Some(news) = link.next(&stop).await {
        if let ConnectionEvent::Message { topic, payload } = news {
            bus.dispatch_ack(&topic, &payload);
        }
    }
}
