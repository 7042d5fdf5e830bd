//! Ends of roasts come in by a shared subscription; that they were taken goes out.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use contract::Origin;
use contract::ops::{self, Kind, SessionClosed, Taken};
use rumqttc::{AsyncClient, PublishOptions, QoS};
use service::mqtt::{Bounds, Broker, BrokerError, Link, News};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{DispatcherConfig, Work};

const BOUNDS: Bounds = Bounds { in_flight: 64, receive: 256, packet: 64 * 1024 };
const GROUP: &str = "dispatcher";
/// Ends waiting for the kernel; more are dropped, and told again.
const WAITING: usize = 1_000;
const WAIT_MAX: Duration = Duration::from_secs(5);
/// What is being dispatched when the process ends has this long to be answered.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Connects to the broker, and keeps connecting. Answers whether it is connected, from now on.
pub fn start(
    config: &DispatcherConfig,
    mqtt: &Broker,
    work: Work,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Arc<AtomicBool>, BrokerError> {
    if !mqtt.is_configured() {
        return Ok(Arc::default());
    }
    let options = mqtt.options(&format!("simcorp-dispatcher-{}", config.instance), BOUNDS)?;
    let topics = || vec![Kind::Closed.shared_filter(GROUP)];
    let link = Link::new(options, WAITING, topics, (WAIT_MAX, trust::spread));
    let (client, connected) = (link.client(), link.up());
    let (queue, waiting) = mpsc::channel(WAITING);
    tracker.spawn(receive(link, work.clone(), queue, stop.clone()));
    tracker.spawn(dispatch(client, work, waiting, stop.clone()));
    Ok(connected)
}

type End = (Origin, SessionClosed);

async fn receive(mut link: Link, work: Work, queue: mpsc::Sender<End>, stop: CancellationToken) {
    while let Some(news) = link.next(&stop).await {
        let News::Message { topic, payload } = news else { continue };
        if let Some(end) = read(&work, &topic, &payload)
            && queue.try_send(end).is_err()
        {
            tracing::warn!("too many ends of roasts wait; one is left to be told again");
        }
    }
    drop(queue);
    link.drain(LAST_WORDS).await;
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
