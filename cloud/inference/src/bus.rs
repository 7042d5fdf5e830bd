//! Points and events come in, marks go out. Every instance hears everything; the one that holds the
//! lease speaks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::envelope::{self, Envelope, Expect, Payload};
use contract::point::RoastEvent;
use contract::topic::{self, Kind};
use contract::{EpochMs, Origin};
use rumqttc::{AsyncClient, PublishOptions, QoS};
use service::mqtt::{Bounds, Broker, BrokerError, Link, News};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::follow::Followed;
use crate::store::InferenceStore;
use crate::{Clock, InferenceConfig};

const BOUNDS: Bounds = Bounds { in_flight: 64, receive: 1_000, packet: 256 * 1024 };
/// Messages that wait for a machine's settings to be read; more are dropped.
const WAITING: usize = 10_000;
const WAIT_MAX: Duration = Duration::from_secs(5);
/// What is told as the process ends has this long to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Whoever holds this speaks, ms.
const LEASE: &str = "inference";
const LEASE_MS: i64 = 10_000;
const SETTINGS_MS: i64 = 30_000;

type Message = (Origin, Payload);

/// What all share.
#[derive(Clone)]
pub struct Following {
    pub machines: Arc<Mutex<Followed>>,
    pub store: InferenceStore,
    pub clock: Clock,
    pub speaks: Arc<AtomicBool>,
}

impl Following {
    pub fn with<T>(&self, change: impl FnOnce(&mut Followed) -> T) -> T {
        change(&mut self.machines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Connects to the broker, and keeps connecting. Answers whether it is connected, from now on.
pub fn start(
    config: &InferenceConfig,
    mqtt: &Broker,
    following: Following,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Arc<AtomicBool>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(Arc::default());
    }
    let name = format!("simcorp-inference-{}", config.instance);
    let topics = || {
        let all = [Kind::Telemetry, Kind::Events];
        all.map(|kind| format!("roaster/+/+/+/{}", kind.suffix())).into()
    };
    let options = mqtt.options(&name, BOUNDS)?;
    let link = Link::new(options, WAITING, topics, (WAIT_MAX, trust::spread));
    let (client, connected) = (link.client(), link.up());
    let (queue, waiting) = mpsc::channel(WAITING);
    tracker.spawn(receive(link, queue, stop.clone()));
    tracker.spawn(follow(following.clone(), waiting, stop.clone()));
    tracker.spawn(speak(client, following, (name, connected.clone()), stop.clone()));
    Ok(connected)
}

async fn receive(mut link: Link, queue: mpsc::Sender<Message>, stop: CancellationToken) {
    while let Some(news) = link.next(&stop).await {
        let News::Message { topic, payload } = news else { continue };
        if let Some(message) = read(&topic, &payload)
            && queue.try_send(message).is_err()
        {
            metrics::counter!("simcorp_inference_dropped_total").increment(1);
        }
    }
    link.drain(LAST_WORDS).await;
}

/// What is no message of the reference is ingestion's to refuse.
fn read(topic: &str, payload: &[u8]) -> Option<Message> {
    let (origin, kind) = topic::parse(topic).ok()?;
    let expect = match kind {
        Kind::Telemetry => Expect::Telemetry,
        Kind::Events => Expect::Event,
        _ => return None,
    };
    let received = envelope::read(payload, expect, &origin).ok()?;
    Some((origin, received.payload))
}

async fn follow(
    following: Following,
    mut waiting: mpsc::Receiver<Message>,
    stop: CancellationToken,
) {
    loop {
        let (origin, payload) = tokio::select! {
            () = stop.cancelled() => return,
            message = waiting.recv() => match message { Some(message) => message, None => return },
        };
        let now = (following.clock)();
        match payload {
            Payload::Event(event) => following.with(|all| all.heard(&origin, &event, now)),
            Payload::Telemetry(point) => {
                let mut settings = None;
                if following.with(|all| all.is_new(&origin)) {
                    settings = match following.store.settings(&origin).await {
                        Ok(settings) => settings,
                        Err(error) => {
                            tracing::warn!(%error, %origin, "no settings for now; looked up later");
                            continue; // the next point asks again
                        }
                    };
                }
                let settings = settings.unwrap_or_default();
                following.with(|all| all.point(&origin, &point, settings, now));
            }
        }
    }
}

/// Tells what has settled, while this instance holds the lease.
async fn speak(
    client: AsyncClient,
    following: Following,
    (holder, connected): (String, Arc<AtomicBool>),
    stop: CancellationToken,
) {
    // Two processes of one name are two holders.
    let holder = format!("{holder}-{}", trust::random_id().unwrap_or_default());
    let mut renewed = EpochMs(0);
    let mut read = EpochMs(0);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = (following.clock)();
        // Another instance may have been told.
        if now.since(read) >= SETTINGS_MS || now < read {
            match following.store.everything().await {
                Ok(settings) => following.with(|all| all.set_all(&settings)),
                Err(error) => tracing::debug!(%error, "no settings for now; read again later"),
            }
            read = now;
        }
        let spoke = following.speaks.load(Ordering::Relaxed);
        // Who hears nothing has nothing to say: the lease ends, and another takes it.
        if !connected.load(Ordering::Relaxed) {
            following.speaks.store(false, Ordering::Relaxed);
            following.with(|all| all.due(now));
            continue;
        }
        if now.since(renewed) >= LEASE_MS / 3 || now < renewed {
            let held = following.store.database().lease(LEASE, &holder, LEASE_MS, now).await;
            let speaks = match held {
                Ok(fence) => fence.is_some(),
                Err(error) => {
                    tracing::debug!(%error, "who speaks cannot be told now");
                    spoke && now.since(renewed) < LEASE_MS
                }
            };
            if speaks {
                renewed = now;
            }
            following.speaks.store(speaks, Ordering::Relaxed);
        }
        let speaks = following.speaks.load(Ordering::Relaxed);
        // Who does not speak keeps count of what was to be told.
        let mut due = following.with(|all| all.due(now));
        if speaks && !spoke {
            due = following.with(|all| all.again(now));
        }
        if !speaks {
            continue;
        }
        for (origin, event) in due {
            metrics::counter!("simcorp_inferred_total", "kind" => event.kind.as_str()).increment(1);
            tracing::info!(%origin, kind = %event.kind, "found a mark");
            tell(&client, &origin, event, now).await;
        }
    }
}

async fn tell(client: &AsyncClient, origin: &Origin, event: RoastEvent, now: EpochMs) {
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
    if let Err(error) = client.publish(Kind::Events.topic(origin), body, options).await {
        tracing::warn!(%error, "a mark was not told");
    }
}
