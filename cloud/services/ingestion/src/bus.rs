//! The handle with which ingestion publishes on the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use contract::topic::TopicKind;
use contract::{Ack, Origin};
use rumqttc::{AsyncClient, PublishOptions, QoS};

/// A handle on the bus.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: AsyncClient,
    pub(crate) connected: Arc<AtomicBool>,
}

impl Bus {
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Publishes an event to services, which acknowledge it themselves. Returns `false` if it could
    /// not be queued.
    pub async fn publish_event(&self, topic: String, body: Vec<u8>) -> bool {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.is_connected() && self.client.publish(topic, body, options).await.is_ok()
    }

    /// Publishes an acknowledgement to a device. A lost one is harmless: the edge resends.
    pub async fn publish_ack(&self, origin: &Origin, ack: &Ack) {
        if !self.is_connected() {
            return; // old acks must not queue ahead of the new subscriptions
        }
        let Ok(body) = serde_json::to_vec(ack) else { return };
        let options = PublishOptions::new(QoS::AtMostOnce);
        if let Err(error) = self.client.publish(TopicKind::Ack.topic(origin), body, options).await {
            tracing::debug!(%error, "could not publish an ack");
        }
    }
}
