//! Ends of roasts come in by a shared subscription; that they were taken goes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contract::Origin;
use contract::ops::{self, Kind, SessionClosed, Taken};
use rumqttc::{AsyncClient, Event, EventLoop, Incoming, PublishOptions, QoS};
use service::backoff::Backoff;
use service::mqtt::{Bounds, Broker, BrokerError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{DispatcherConfig, Work};

const BOUNDS: Bounds = Bounds { in_flight: 64, receive: 256, packet: 64 * 1024 };
const GROUP: &str = "dispatcher";
/// Ends waiting for the kernel; more are dropped, and told again.
const WAITING: usize = 1_000;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Connects to the broker, and keeps connecting. Answers whether it is connected, from now on.
pub fn start(
    config: &DispatcherConfig,
    mqtt: &Broker,
    work: Work,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Arc<AtomicBool>, BrokerError> {
    let connected = Arc::new(AtomicBool::new(false));
    if !mqtt.is_configured() {
        return Ok(connected);
    }
    let name = format!("simcorp-dispatcher-{}", config.instance);
    let (client, events) =
        AsyncClient::builder(mqtt.options(&name, BOUNDS)?).capacity(WAITING).build();
    let (queue, waiting) = mpsc::channel(WAITING);
    let up = connected.clone();
    tracker.spawn(receive((client.clone(), events), work.clone(), queue, up, stop.clone()));
    tracker.spawn(dispatch(client, work, waiting, stop.clone()));
    Ok(connected)
}

type End = (Origin, SessionClosed);

async fn receive(
    (client, mut events): (AsyncClient, EventLoop),
    work: Work,
    queue: mpsc::Sender<End>,
    connected: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let mut wait = Backoff::new(FIRST_WAIT, LAST_WAIT);
    let mut told = false;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.poll() => event,
        };
        match event {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                connected.store(true, Ordering::Relaxed);
                tracing::info!("connected to the broker");
                (told, wait) = (false, Backoff::new(FIRST_WAIT, LAST_WAIT));
                let client = client.clone();
                // On a task of its own: whoever polls must not wait for the request queue.
                tokio::spawn(async move {
                    let filter = Kind::Closed.shared_filter(GROUP);
                    if let Err(error) = client.subscribe(filter, QoS::AtLeastOnce).await {
                        tracing::error!(%error, "could not subscribe");
                    }
                });
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                let topic = std::str::from_utf8(&publish.topic).unwrap_or_default();
                if let Some(end) = read(&work, topic, &publish.payload)
                    && queue.try_send(end).is_err()
                {
                    tracing::warn!("too many ends of roasts wait; one is left to be told again");
                }
            }
            Ok(_) => {}
            Err(error) => {
                connected.store(false, Ordering::Relaxed);
                if !told {
                    tracing::error!(%error, "no connection to the broker; trying again");
                    told = true;
                }
                let spread = trust::random::<8>().map_or(0, u64::from_le_bytes);
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(wait.next(spread)) => {}
                }
            }
        }
    }
    // What is being dispatched is still answered while the client lives.
    connected.store(false, Ordering::Relaxed);
    drop(queue);
    let drain = async { while events.poll().await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), drain).await;
}

fn read(work: &Work, topic: &str, payload: &[u8]) -> Option<End> {
    let (origin, Kind::Closed) = ops::parse(topic).ok()? else { return None };
    let event: SessionClosed = match serde_json::from_slice(payload) {
        Ok(event) => event,
        Err(error) => {
            let problem = format!("{topic}: {error}");
            work.failed(Some(&origin.org), problem, |counters| counters.parse_errors += 1);
            return None;
        }
    };
    let problem = event
        .problem()
        .or_else(|| (event.origin != origin).then(|| "it says another origin".to_owned()));
    if let Some(problem) = problem {
        let problem = format!("{topic}: {problem}");
        work.failed(Some(&origin.org), problem, |counters| counters.validation_errors += 1);
        return None;
    }
    Some((origin, event))
}

async fn dispatch(
    client: AsyncClient,
    work: Work,
    mut waiting: mpsc::Receiver<End>,
    stop: CancellationToken,
) {
    loop {
        let (origin, event) = tokio::select! {
            () = stop.cancelled() => return,
            end = waiting.recv() => match end { Some(end) => end, None => return },
        };
        if work.dispatch(&event).await.is_err() {
            continue; // told again
        }
        let taken = Taken { session_id: event.session_id };
        let Ok(body) = serde_json::to_vec(&taken) else { continue };
        let options = PublishOptions::new(QoS::AtLeastOnce);
        if let Err(error) = client.publish(Kind::Taken.topic(&origin), body, options).await {
            tracing::debug!(%error, "could not say that an end was taken; it is told again");
        }
    }
}
