//! Receives telemetry points and events over MQTT, and publishes detected events. Every instance
//! receives all messages; only the instance that holds the lease publishes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::envelope::{self, Envelope, Payload, PayloadKind};
use contract::point::RoastEvent;
use contract::topic::{self, TopicKind};
use contract::{EpochMs, Origin};
use rumqttc::{AsyncClient, PublishOptions, QoS};
use service::mqtt::{BrokerError, BrokerSettings, ConnectionBounds, MqttConnection};
use service::tasks::{self, Tasks};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::detection::MachineTracker;
use crate::store::InferenceStore;
use crate::{Clock, InferenceConfig};

const BOUNDS: ConnectionBounds =
    ConnectionBounds { in_flight: 64, receive: 1_000, packet: 256 * 1024 };
/// Messages that may wait for a machine's settings to be read; further ones are dropped.
const QUEUE_MAX: usize = 10_000;
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long messages may take to be sent when the process stops.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);
/// The lease whose holder publishes; `LEASE_MS` is its duration, ms.
const LEASE_NAME: &str = "inference";
const LEASE_MS: i64 = 10_000;
const SETTINGS_REFRESH_MS: i64 = 30_000;

type Message = (Origin, Payload);

/// What the tasks and the HTTP handlers share.
#[derive(Clone)]
pub struct InferenceState {
    pub machines: Arc<Mutex<MachineTracker>>,
    pub store: InferenceStore,
    pub clock: Clock,
    pub is_publisher: Arc<AtomicBool>,
}

impl InferenceState {
    pub fn with<T>(&self, change: impl FnOnce(&mut MachineTracker) -> T) -> T {
        change(&mut self.machines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the tasks that connect to the broker (and reconnect), detect and publish. Returns a flag
/// that states, from now on, whether the broker is connected.
pub fn start(
    config: &InferenceConfig,
    mqtt: &BrokerSettings,
    following: InferenceState,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Result<Arc<AtomicBool>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(Arc::default());
    }
    let name = format!("simcorp-inference-{}", config.instance);
    let topics = || {
        let all = [TopicKind::Telemetry, TopicKind::Events];
        all.map(|kind| format!("roaster/+/+/+/{}", kind.suffix())).into()
    };
    let options = mqtt.options(&name, BOUNDS)?;
    let link = MqttConnection::new(options, QUEUE_MAX, topics, (RECONNECT_WAIT_MAX, trust::jitter));
    let (client, connected) = (link.client(), link.ready_flag());
    let (queue, waiting) = mpsc::channel(QUEUE_MAX);
    // The connection and the queue outlive a run; each run connects anew.
    let until = stop.clone();
    tasks.spawn_restarting_with("inference-receive", (link, queue), move |(link, queue)| {
        Box::pin(receive(link, queue, until.clone()))
    });
    let parts = (following.clone(), stop.clone());
    tasks.spawn_restarting_with("inference", waiting, move |waiting| {
        let (following, stop) = parts.clone();
        Box::pin(process_messages(following, waiting, stop))
    });
    // Two processes with the same name must be two holders of the lease.
    let holder = format!("{name}-{}", trust::random_id().unwrap_or_default());
    let parts = (client, following, (holder, connected.clone()), stop.clone());
    tasks.spawn_restarting("inference-publish", move || {
        let (client, following, lease, stop) = parts.clone();
        publish_due(client, following, lease, stop)
    });
    Ok(connected)
}

async fn receive(
    link: &mut MqttConnection,
    queue: &mpsc::Sender<Message>,
    stop: CancellationToken,
) {
    let receive = |topic: &str, payload: &[u8]| {
        if let Some(message) = parse_message(topic, payload)
            && queue.try_send(message).is_err()
        {
            metrics::counter!("simcorp_inference_dropped_total").increment(1);
        }
    };
    link.receive_messages(("parse-message", DRAIN_TIME_MAX), &stop, receive).await;
}

/// Parses a message. Returns `None` for an invalid one: ingestion is the service that refuses it.
fn parse_message(topic: &str, payload: &[u8]) -> Option<Message> {
    let (origin, kind) = topic::parse_topic(topic).ok()?;
    let expect = match kind {
        TopicKind::Telemetry => PayloadKind::Telemetry,
        TopicKind::Events => PayloadKind::Event,
        _ => return None,
    };
    let received = envelope::decode(payload, expect, &origin).ok()?;
    // Without a time and the elapsed time a point cannot be placed in a curve.
    let placed = match &received.payload {
        Payload::Telemetry(_) => received.ts_known && received.elapsed_known,
        Payload::Event(_) => received.ts_known,
    };
    placed.then_some((origin, received.payload))
}

async fn process_messages(
    following: InferenceState,
    waiting: &mut mpsc::Receiver<Message>,
    stop: CancellationToken,
) {
    loop {
        let (origin, payload) = tokio::select! {
            () = stop.cancelled() => return,
            message = waiting.recv() => match message { Some(message) => message, None => return },
        };
        let processed = process_message(&following, &origin, payload);
        if let Err(panicked) = tasks::isolate("process-message", processed).await {
            tracing::error!(error = %panicked, %origin, "forgot what is known of a machine");
            following.with(|all| all.forget(&origin));
        }
    }
}

async fn process_message(following: &InferenceState, origin: &Origin, payload: Payload) {
    let now = (following.clock)();
    match payload {
        Payload::Event(event) => following.with(|all| all.observe_event(origin, &event, now)),
        Payload::Telemetry(point) => {
            let mut settings = None;
            if following.with(|all| all.is_new(origin)) {
                let new = std::slice::from_ref(origin);
                settings = match following.store.settings_of(new).await {
                    Ok(mut settings) => settings.remove(origin),
                    Err(error) => {
                        tracing::warn!(%error, %origin, "cannot read the settings for now");
                        return; // the next point retries
                    }
                };
            }
            let settings = settings.unwrap_or_default();
            following.with(|all| all.push_point(origin, &point, settings, now));
        }
    }
}

/// Publishes the events that have settled, while this instance holds the lease.
async fn publish_due(
    client: AsyncClient,
    following: InferenceState,
    (holder, connected): (String, Arc<AtomicBool>),
    stop: CancellationToken,
) {
    let mut renewed = EpochMs(0);
    let mut read = EpochMs(0);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PUBLISH_INTERVAL) => {}
        }
        let now = (following.clock)();
        // Another instance may have changed the settings.
        if now.ms_since(read) >= SETTINGS_REFRESH_MS || now < read {
            let followed = following.with(|all| all.followed());
            match following.store.settings_of(&followed).await {
                Ok(settings) => following.with(|all| all.apply_all_settings(&followed, &settings)),
                Err(error) => tracing::debug!(%error, "cannot read the settings; retrying later"),
            }
            read = now;
        }
        let spoke = following.is_publisher.load(Ordering::Relaxed);
        // Without a connection, this instance receives nothing and must not publish: its lease
        // expires, and another instance acquires it.
        if !connected.load(Ordering::Relaxed) {
            following.is_publisher.store(false, Ordering::Relaxed);
            following.with(|all| all.take_due(now));
            continue;
        }
        if now.ms_since(renewed) >= LEASE_MS / 3 || now < renewed {
            let lease = following.store.database().lease(LEASE_NAME, &holder, LEASE_MS, now).await;
            let speaks = match lease {
                Ok(fence) => fence.is_some(),
                Err(error) => {
                    tracing::debug!(%error, "cannot renew the lease; retrying later");
                    spoke && now.ms_since(renewed) < LEASE_MS
                }
            };
            if speaks {
                renewed = now;
            }
            following.is_publisher.store(speaks, Ordering::Relaxed);
        }
        let speaks = following.is_publisher.load(Ordering::Relaxed);
        // Also without the lease: it records which events are published already.
        let mut due = following.with(|all| all.take_due(now));
        if speaks && !spoke {
            due = following.with(|all| all.recently_published(now));
        }
        if !speaks {
            continue;
        }
        for (origin, event) in due {
            metrics::counter!("simcorp_inferred_total", "kind" => event.kind.as_str()).increment(1);
            tracing::info!(%origin, kind = %event.kind, "detected an event");
            publish_event(&client, &origin, event, now).await;
        }
    }
}

async fn publish_event(client: &AsyncClient, origin: &Origin, event: RoastEvent, now: EpochMs) {
    let envelope = Envelope {
        ts: now,
        origin: origin.clone(),
        topic: "event",
        payload: Payload::Event(event),
        session_id: None,
        sig: None,
        kid: None,
        verification: None,
    };
    let Ok(body) = serde_json::to_vec(&envelope) else { return };
    let options = PublishOptions::new(QoS::AtLeastOnce);
    if let Err(error) = client.publish(TopicKind::Events.topic(origin), body, options).await {
        tracing::warn!(%error, "could not publish a detected event");
    }
}
