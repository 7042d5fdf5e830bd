//! The publisher's connection to the broker: frames go out, acknowledgements come back to whoever
//! waits for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::topic::{self, Kind};
use contract::{Ack, Origin};
use rumqttc::{AsyncClient, PublishOptions, QoS};
use service::mqtt::{Bounds, Broker, BrokerError, Link, News};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::SimulationConfig;

const BOUNDS: Bounds = Bounds { in_flight: 512, receive: 512, packet: 256 * 1024 };
const QUEUE: usize = 2_000;
/// Acknowledgements that wait for one machine; more are dropped, since frames are sent again.
const ACKS: usize = 64;
const WAIT_MAX: Duration = Duration::from_secs(5);

type Listeners = Arc<Mutex<HashMap<Origin, mpsc::Sender<Ack>>>>;

/// A connection that comes back by itself; clones share it.
#[derive(Clone)]
pub struct Bus {
    client: AsyncClient,
    connected: Arc<AtomicBool>,
    listeners: Listeners,
}

/// Connects, and keeps connecting; `None`: no broker is configured.
pub fn start(
    config: &SimulationConfig,
    mqtt: &Broker,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Option<Bus>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(None);
    }
    let name = format!("simcorp-simulation-{}", config.instance);
    let listeners = Listeners::default();
    let listening = listeners.clone();
    let topics = move || {
        let listeners = listening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut topics: Vec<_> = listeners.keys().map(|origin| Kind::Ack.topic(origin)).collect();
        topics.sort_unstable();
        topics
    };
    let options = mqtt.options(&name, BOUNDS)?;
    let link = Link::new(options, QUEUE, topics, (WAIT_MAX, trust::spread));
    // Machines come and go: one that may not be heard keeps nobody else waiting.
    let link = link.vital(0);
    let bus = Bus { client: link.client(), connected: link.up(), listeners };
    tracker.spawn(drive(bus.clone(), link, stop.clone()));
    Ok(Some(bus))
}

impl Bus {
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Hands a message to the broker; `false`: not now.
    pub async fn send(&self, origin: &Origin, kind: Kind, bytes: Vec<u8>) -> bool {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.is_connected() && self.client.publish(kind.topic(origin), bytes, options).await.is_ok()
    }

    /// Listens to what is answered to a machine; `None`: somebody listens already.
    pub async fn listen(&self, origin: &Origin) -> Option<mpsc::Receiver<Ack>> {
        let (sender, receiver) = mpsc::channel(ACKS);
        {
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            if listeners.contains_key(origin) {
                return None;
            }
            listeners.insert(origin.clone(), sender);
        }
        // Not now: the next connection subscribes for everybody who listens.
        let _ = self.client.subscribe(Kind::Ack.topic(origin), QoS::AtLeastOnce).await;
        Some(receiver)
    }

    pub async fn leave(&self, origin: &Origin) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(origin);
        let _ = self.client.unsubscribe(Kind::Ack.topic(origin)).await;
    }

    fn heard(&self, topic: &str, payload: &[u8]) {
        let Ok((origin, Kind::Ack)) = topic::parse(topic) else { return };
        let Ok(ack) = serde_json::from_slice(payload) else { return };
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listeners.get(&origin) {
            let _ = listener.try_send(ack);
        }
    }
}

async fn drive(bus: Bus, mut link: Link, stop: CancellationToken) {
    while let Some(news) = link.next(&stop).await {
        if let News::Message { topic, payload } = news {
            bus.heard(&topic, &payload);
        }
    }
}
