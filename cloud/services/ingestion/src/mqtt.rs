//! Receives frames, receipts and upstream Sim-Corp messages by shared subscriptions, which
//! any number of instances share; publishes the pipeline's acknowledgements ([`crate::bus`]).
//!
//! One task polls the client and only forwards. While the pipeline is full it does not poll, and
//! TCP backpressure makes the broker wait. The MQTT session is clean: what a broker would hold for
//! a dead instance, the edge resends to a running one, since only our own acknowledgement counts as
//! delivery.

use std::time::Duration;

use contract::envelope::PayloadKind;
use contract::topic::{self, TopicKind};
use service::mqtt::{
    BrokerError, BrokerSettings, ConnectionBounds, ConnectionEvent, MqttConnection,
};
use service::tasks::{self, Tasks};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::pipeline::{Acks, Lane, Message, Pipeline, Reply};
use crate::session_closed::SessionClosedAcks;
use crate::warning_log::WarningLog;
use crate::{IngestionConfig, metric};

/// Acknowledgements are published once (`QoS` 0) and need no slots; at most 2 000 frames from the
/// broker await our PUBACK.
const BOUNDS: ConnectionBounds =
    ConnectionBounds { in_flight: 64, receive: 2_000, packet: 512 * 1024 };
const GROUP: &str = "ingestion";
/// The kinds of messages that machines publish.
const SUBSCRIBED: [TopicKind; 5] = [
    TopicKind::LiveFrame,
    TopicKind::BacklogFrame,
    TopicKind::Receipt,
    TopicKind::Telemetry,
    TopicKind::Events,
];
/// The capacity of the client's queue of outgoing messages.
const QUEUE: usize = 4_096;
const WAIT_MAX: Duration = Duration::from_secs(5);
/// The length of a topic's part that names the machine, in messages: that of three identities.
const MACHINE_CHARS_MAX: usize = 400;
/// How long the client stays connected at shutdown to acknowledge the last commits.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Connects to the broker, and keeps reconnecting. Returns `None` when no broker is configured.
pub fn start(
    config: &IngestionConfig,
    mqtt: &BrokerSettings,
    (pipeline, acks, session_acks): (&Pipeline, Acks, SessionClosedAcks),
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Result<Option<Bus>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(None);
    }
    let client = format!("simcorp-ingestion-{}", config.instance);
    // Upstream publishers never resend: not ready before all subscriptions are granted.
    let topics = || {
        let mut topics: Vec<String> =
            SUBSCRIBED.iter().map(|kind| kind.shared_filter(GROUP)).collect();
        // And the acknowledgements of `SessionClosed` events by services.
        topics.push(contract::ops::SessionTopic::ClosedAck.shared_filter(GROUP));
        topics
    };
    let options = mqtt.options(&client, BOUNDS)?;
    let link = MqttConnection::new(options, QUEUE, topics, (WAIT_MAX, trust::jitter))
        .with_vital(SUBSCRIBED.len());
    let bus = Bus { client: link.client(), connected: link.ready_flag() };
    // The connection outlives a run, because `bus` publishes through it; each run connects anew.
    let receiver = (link, Some(pipeline.clone()), session_acks);
    let until = stop.clone();
    tasks.spawn_restarting_with(
        "ingestion-receive",
        receiver,
        move |(link, pipeline, session_acks)| {
            Box::pin(receive(link, pipeline, session_acks, until.clone()))
        },
    );
    // The queue of acknowledgements outlives a run.
    let publisher = bus.clone();
    tasks.spawn_restarting_with("ingestion-acks", acks, move |acks| {
        Box::pin(publish_acks(publisher.clone(), acks))
    });
    Ok(Some(bus))
}

async fn receive(
    link: &mut MqttConnection,
    pipeline: &mut Option<Pipeline>,
    session_acks: &SessionClosedAcks,
    stop: CancellationToken,
) {
    link.reconnect();
    let warnings = WarningLog::default();
    while let Some(news) = link.next(&stop).await {
        let ConnectionEvent::Message { topic, payload } = news else { continue };
        let Some(pipeline) = pipeline.as_ref() else { break };
        let received = async {
            if topic.starts_with("ops/") {
                session_acks.receive(&topic, &payload);
            } else {
                forward(pipeline, &warnings, &topic, payload).await;
            }
        };
        if let Err(panicked) = tasks::isolate("receive-message", received).await {
            tracing::error!(error = %panicked, topic = machine_of(&topic), "dropped a message");
        }
    }
    // No more messages are received. Queued ones are still committed, and acknowledged while the
    // client is connected.
    *pipeline = None;
    link.drain(DRAIN_TIME).await;
}

async fn forward(pipeline: &Pipeline, warnings: &WarningLog, topic: &str, payload: Vec<u8>) {
    let (origin, kind) = match topic::parse_topic(topic) {
        Ok(parsed) => parsed,
        Err(error) => {
            metric::invalid("topic");
            let machine = machine_of(topic);
            if let Some(left_out) = warnings.is_due(&machine, Instant::now()) {
                tracing::warn!(
                    topic = machine,
                    left_out,
                    "dropped a message on a topic that names no machine: {error}; rename the \
                     machine at its publisher; further warnings about this topic in a minute"
                );
            }
            return;
        }
    };
    let (lane, message) = match kind {
        TopicKind::LiveFrame => (Lane::Live, Message::Frame(payload)),
        TopicKind::BacklogFrame => (Lane::Backlog, Message::Frame(payload)),
        TopicKind::Receipt => (Lane::Backlog, Message::Receipt(payload)),
        TopicKind::Telemetry => (Lane::Live, Message::Legacy(PayloadKind::Telemetry, payload)),
        TopicKind::Events => (Lane::Live, Message::Legacy(PayloadKind::Event, payload)),
        TopicKind::Ack => return,
    };
    pipeline.send(lane, origin, message, Reply::Bus).await;
}

/// Returns the part of a topic that names the machine, shortened to what an identity may have.
fn machine_of(topic: &str) -> String {
    let end = topic.match_indices('/').nth(3).map_or(topic.len(), |(end, _)| end);
    topic[..end].chars().take(MACHINE_CHARS_MAX).collect()
}

async fn publish_acks(bus: Bus, acks: &mut Acks) {
    while let Some((origin, ack)) = acks.recv().await {
        if let Err(panicked) = tasks::isolate("publish-ack", bus.publish_ack(&origin, &ack)).await {
            tracing::error!(error = %panicked, %origin, "dropped an acknowledgement");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_named_by_its_machine() {
        assert_eq!(
            machine_of("roaster/an org/site/Loring S35/telemetry"),
            "roaster/an org/site/Loring S35"
        );
        assert_eq!(machine_of("roaster/org"), "roaster/org");
        assert_eq!(machine_of(&"é".repeat(1_000)).chars().count(), MACHINE_CHARS_MAX);
    }
}
