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
use rumqttc::{AsyncClient, Event, EventLoop, Incoming, PublishOptions, QoS};
use service::backoff::Backoff;
use service::mqtt::{Bounds, Broker, BrokerError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pipeline::{Answers, Lane, Message, Pipeline, Reply};
use crate::{IngestionConfig, announce, metric};

/// Answers are sent once (`QoS` 0) and need no slots; the broker waits for our PUBACK of 2 000 frames.
const BOUNDS: Bounds = Bounds { in_flight: 64, receive: 2_000, packet: 512 * 1024 };
const GROUP: &str = "ingestion";
/// What machines say, each kind by a subscription of its own.
const HEARD: [Kind; 5] =
    [Kind::LiveFrame, Kind::BacklogFrame, Kind::Receipt, Kind::Telemetry, Kind::Events];
/// These, and what services took of what they were told.
const SUBSCRIPTIONS: usize = HEARD.len() + 1;

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
    let options = mqtt.options(&client, BOUNDS)?;
    let (client, events) = AsyncClient::builder(options).capacity(4_096).build();
    let bus = Bus { client, connected: Arc::default() };
    tracker.spawn(receive(bus.clone(), events, (pipeline.clone(), taken), stop.clone()));
    if let Some(answers) = pipeline.take_answers() {
        tracker.spawn(send_answers(bus.clone(), answers));
    }
    Ok(Some(bus))
}

async fn receive(
    bus: Bus,
    mut events: EventLoop,
    (pipeline, taken): (Pipeline, announce::Taken),
    stop: CancellationToken,
) {
    let mut wait = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut told = false;
    let mut unheard = SUBSCRIPTIONS;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.poll() => event,
        };
        match event {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                (told, wait) =
                    (false, Backoff::new(Duration::from_millis(100), Duration::from_secs(5)));
                unheard = SUBSCRIPTIONS;
                subscribe(&bus.client);
            }
            // The reference's publishers never send again: nobody is told "ready" before this.
            Ok(Event::Incoming(Incoming::SubAck(_))) => {
                unheard = unheard.saturating_sub(1);
                if unheard == 0 {
                    bus.connected.store(true, Ordering::Relaxed);
                    tracing::info!("connected to the broker");
                }
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                let topic = std::str::from_utf8(&publish.topic).unwrap_or_default();
                if topic.starts_with("ops/") {
                    taken.note(topic, &publish.payload);
                } else {
                    forward(&pipeline, topic, publish.payload.to_vec()).await;
                }
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
        for kind in HEARD {
            let filter = kind.shared_filter(GROUP);
            if let Err(error) = client.subscribe(filter, QoS::AtLeastOnce).await {
                tracing::error!(%error, "could not subscribe");
            }
        }
        let taken = contract::ops::Kind::Taken.shared_filter(GROUP);
        if let Err(error) = client.subscribe(taken, QoS::AtLeastOnce).await {
            tracing::error!(%error, "could not subscribe");
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
