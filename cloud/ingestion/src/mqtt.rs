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
use rumqttc::{AsyncClient, PublishOptions, QoS};
use service::mqtt::{Bounds, Broker, BrokerError, Link, News};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pipeline::{Answers, Lane, Message, Pipeline, Reply};
use crate::{IngestionConfig, announce, metric};

/// Answers are sent once (`QoS` 0) and need no slots; the broker waits for our PUBACK of 2 000 frames.
const BOUNDS: Bounds = Bounds { in_flight: 64, receive: 2_000, packet: 512 * 1024 };
const GROUP: &str = "ingestion";
/// What machines say.
const HEARD: [Kind; 5] =
    [Kind::LiveFrame, Kind::BacklogFrame, Kind::Receipt, Kind::Telemetry, Kind::Events];
/// Answers that wait to leave.
const QUEUE: usize = 4_096;
const WAIT_MAX: Duration = Duration::from_secs(5);
/// What is still written as the process ends has this long to be answered.
const LAST_WORDS: Duration = Duration::from_secs(2);

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

    /// Tells services something; whether anybody has heard it they say themselves.
    pub async fn tell(&self, topic: String, body: Vec<u8>) -> bool {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.is_connected() && self.client.publish(topic, body, options).await.is_ok()
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
    mqtt: &Broker,
    (pipeline, taken): (&Pipeline, announce::Taken),
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Option<Bus>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(None);
    }
    let client = format!("simcorp-ingestion-{}", config.instance);
    // The reference's publishers never send again: nobody is told "ready" before all is heard.
    let topics = || {
        let mut topics: Vec<String> = HEARD.iter().map(|kind| kind.shared_filter(GROUP)).collect();
        // And what services took of what they were told.
        topics.push(contract::ops::Kind::Taken.shared_filter(GROUP));
        topics
    };
    let options = mqtt.options(&client, BOUNDS)?;
    let link = Link::new(options, QUEUE, topics, (WAIT_MAX, trust::spread)).vital(HEARD.len());
    let bus = Bus { client: link.client(), connected: link.up() };
    tracker.spawn(receive(link, (pipeline.clone(), taken), stop.clone()));
    if let Some(answers) = pipeline.take_answers() {
        tracker.spawn(send_answers(bus.clone(), answers));
    }
    Ok(Some(bus))
}

async fn receive(
    mut link: Link,
    (pipeline, taken): (Pipeline, announce::Taken),
    stop: CancellationToken,
) {
    while let Some(news) = link.next(&stop).await {
        let News::Message { topic, payload } = news else { continue };
        if topic.starts_with("ops/") {
            taken.note(&topic, &payload);
        } else {
            forward(&pipeline, &topic, payload).await;
        }
    }
    // Nothing more comes in; what is queued is still written, and answered while the client lives.
    drop(pipeline);
    link.drain(LAST_WORDS).await;
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
