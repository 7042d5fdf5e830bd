//! MQTT: receives `session closed` events by a shared subscription, and acknowledges them once the
//! kernel has their missions.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use contract::Origin;
use contract::ops::{self, SessionClosed, SessionClosedAck, SessionTopic};
use rumqttc::{AsyncClient, PublishOptions, QoS};
use service::mqtt::{BrokerError, BrokerSettings, ConnectionBounds, MqttConnection};
use service::tasks::{self, Tasks};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{DispatcherConfig, MissionDispatcher, increment};

const BOUNDS: ConnectionBounds =
    ConnectionBounds { in_flight: 64, receive: 256, packet: 64 * 1024 };
const GROUP: &str = "dispatcher";
/// The most events that wait for the kernel; further ones are dropped, and the publisher resends
/// them.
const QUEUE_MAX: usize = 1_000;
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long events in dispatch may still be acknowledged after the process is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to the broker and reconnects when needed. Returns a flag that is true while connected.
pub fn start(
    config: &DispatcherConfig,
    mqtt: &BrokerSettings,
    work: MissionDispatcher,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Result<Arc<AtomicBool>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(Arc::default());
    }
    let options = mqtt.options(&format!("simcorp-dispatcher-{}", config.instance), BOUNDS)?;
    let topics = || vec![SessionTopic::Closed.shared_filter(GROUP)];
    let link = MqttConnection::new(options, QUEUE_MAX, topics, (RECONNECT_WAIT_MAX, trust::jitter));
    let (client, connected) = (link.client(), link.ready_flag());
    let (queue, waiting) = mpsc::channel(QUEUE_MAX);
    // The connection and the queue outlive a run; each run connects anew. What a run loses is not
    // acknowledged, and is resent.
    let parts = (work.clone(), stop.clone());
    tasks.spawn_restarting_with("dispatcher-receive", (link, queue), move |(link, queue)| {
        let (work, stop) = parts.clone();
        Box::pin(receive(link, work, queue, stop))
    });
    let parts = (client, work, stop.clone());
    tasks.spawn_restarting_with("dispatcher", waiting, move |waiting| {
        let (client, work, stop) = parts.clone();
        Box::pin(dispatch(client, work, waiting, stop))
    });
    Ok(connected)
}

type ClosedSession = (Origin, SessionClosed);

async fn receive(
    link: &mut MqttConnection,
    work: MissionDispatcher,
    queue: &mpsc::Sender<ClosedSession>,
    stop: CancellationToken,
) {
    let receive = |topic: &str, payload: &[u8]| {
        if let Some(event) = parse_event(&work, topic, payload)
            && queue.try_send(event).is_err()
        {
            tracing::warn!("too many closed sessions wait; one is dropped until it is resent");
        }
    };
    link.receive_messages(("parse-event", DRAIN_TIMEOUT), &stop, receive).await;
}

fn parse_event(work: &MissionDispatcher, topic: &str, payload: &[u8]) -> Option<ClosedSession> {
    let (origin, SessionTopic::Closed) = ops::parse_topic(topic).ok()? else { return None };
    let event: SessionClosed = match serde_json::from_slice(payload) {
        Ok(event) => event,
        Err(error) => {
            let problem = format!("{topic}: {error}");
            work.record_error(Some(&origin.org), problem, |counters| {
                increment(&mut counters.parse_errors);
            });
            return None;
        }
    };
    let problem = event
        .problem()
        .or_else(|| (event.origin != origin).then(|| "its origin is not the topic's".to_owned()));
    if let Some(problem) = problem {
        let problem = format!("{topic}: {problem}");
        work.record_error(Some(&origin.org), problem, |counters| {
            increment(&mut counters.validation_errors);
        });
        return None;
    }
    Some((origin, event))
}

async fn dispatch(
    client: AsyncClient,
    work: MissionDispatcher,
    waiting: &mut mpsc::Receiver<ClosedSession>,
    stop: CancellationToken,
) {
    loop {
        let (origin, event) = tokio::select! {
            () = stop.cancelled() => return,
            end = waiting.recv() => match end { Some(end) => end, None => return },
        };
        // An event that is not acknowledged is resent, later each time.
        match tasks::isolate("dispatch-event", work.dispatch(&event)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => continue,
            Err(panicked) => {
                tracing::error!(error = %panicked, session = %event.session_id, "skipped an event");
                continue;
            }
        }
        let taken = SessionClosedAck { session_id: event.session_id };
        let Ok(body) = serde_json::to_vec(&taken) else { continue };
        let options = PublishOptions::new(QoS::AtLeastOnce);
        if let Err(error) =
            client.publish(SessionTopic::ClosedAck.topic(&origin), body, options).await
        {
            tracing::debug!(%error, "could not acknowledge a closed session; it is resent");
        }
    }
}
