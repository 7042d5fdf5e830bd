//! A connection to the broker that reconnects by itself and renews its subscriptions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectionError, DisconnectReasonCode, Event, EventLoop, Incoming, MqttOptions,
    QoS, StateError, SubscribeFilterInput, SubscribeReasonCode,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::name_conflict::{ConflictDetector, NameConflict};
use crate::backoff::Backoff;
use crate::tasks;

const FIRST_WAIT: Duration = Duration::from_millis(100);

/// What happened on a connection, as [`MqttConnection::next`] returns it.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// Connected, and the broker granted all vital subscriptions: messages sent from now on can be
    /// answered. May be returned more than once.
    Ready,
    /// The broker refused a vital subscription. The connection subscribes again after a wait.
    SubscriptionRefused,
    /// The connection failed, with the reason. The connection is retried after a wait.
    Down(String),
    /// The broker delivered a message.
    Message {
        /// The topic that it was published on.
        topic: String,
        /// The content.
        payload: Vec<u8>,
    },
}

/// One connection. The owner must keep calling [`next`](MqttConnection::next): nothing is received or sent
/// between the calls, so that an owner without room for more messages makes the broker wait.
pub struct MqttConnection {
    client: AsyncClient,
    events: EventLoop,
    topics: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    vital_count: usize,
    random: fn() -> u64,
    wait: Backoff,
    conflict: ConflictDetector,
    /// After a failure, the time of the next attempt.
    retry_at: Option<Instant>,
    /// Whether the current problem has been logged.
    problem_logged: bool,
    up: Arc<AtomicBool>,
    /// Whether the first attempt to connect has begun.
    started: bool,
    /// Whether the connection was up when `stop` was cancelled.
    up_at_stop: bool,
    /// The task that subscribes to the topics; at most one at a time.
    subscribing: Option<JoinHandle<()>>,
}

impl MqttConnection {
    /// Creates a connection that subscribes to `topics` each time it is established, with room for
    /// `queue` outgoing messages. It waits at most `wait_max` between attempts, randomised by
    /// `random`.
    #[must_use]
    pub fn new(
        options: MqttOptions,
        queue: usize,
        topics: impl Fn() -> Vec<String> + Send + Sync + 'static,
        (wait_max, random): (Duration, fn() -> u64),
    ) -> Self {
        let (client, events) = AsyncClient::builder(options).capacity(queue).build();
        Self {
            client,
            events,
            topics: Box::new(topics),
            vital_count: usize::MAX,
            random,
            wait: Backoff::new(FIRST_WAIT, wait_max),
            conflict: ConflictDetector::default(),
            retry_at: None,
            problem_logged: false,
            up: Arc::default(),
            started: false,
            up_at_stop: false,
            subscribing: None,
        }
    }

    /// Makes only the first `count` topics vital. The broker may refuse the others.
    #[must_use]
    pub const fn with_vital(mut self, count: usize) -> Self {
        self.vital_count = count;
        self
    }

    /// Returns a client for publishing.
    #[must_use]
    pub fn client(&self) -> AsyncClient {
        self.client.clone()
    }

    /// Returns a flag that is true while the connection is ready.
    #[must_use]
    pub fn ready_flag(&self) -> Arc<AtomicBool> {
        self.up.clone()
    }

    /// Returns why another client seems to use this client's name, if one does. The connection then
    /// waits longer between its attempts.
    #[must_use]
    pub fn name_conflict(&self) -> Option<NameConflict> {
        self.conflict.conflict(Instant::now())
    }

    /// Waits for the next event; `None` once `stop` is cancelled.
    pub async fn next(&mut self, stop: &CancellationToken) -> Option<ConnectionEvent> {
        self.started = true;
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.up_at_stop |= self.up.swap(false, Ordering::Relaxed);
                    return None;
                }
                event = Self::poll(&mut self.events, self.retry_at) => event,
            };
            self.retry_at = None;
            let news = match event {
                Ok(event) => self.handle_event(event),
                Err(error) => Some(self.on_failure(&error)),
            };
            if news.is_some() {
                return news;
            }
        }
    }

    /// Connects anew and calls `receive` with the topic and the content of each message until `stop`
    /// is cancelled; then sends the messages that are still queued, for at most `drain_max`. A
    /// message with which `receive` panics is dropped; the panic is counted for `work`.
    pub async fn receive_messages(
        &mut self,
        (work, drain_max): (&'static str, Duration),
        stop: &CancellationToken,
        mut receive: impl FnMut(&str, &[u8]),
    ) {
        self.reconnect();
        while let Some(event) = self.next(stop).await {
            let ConnectionEvent::Message { topic, payload } = event else { continue };
            if let Err(panicked) = tasks::catch(work, || receive(&topic, &payload)) {
                tracing::error!(error = %panicked, "dropped a message");
            }
        }
        self.drain(drain_max).await;
    }

    async fn poll(events: &mut EventLoop, due: Option<Instant>) -> Result<Event, ConnectionError> {
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        events.poll().await
    }

    fn handle_event(&mut self, event: Event) -> Option<ConnectionEvent> {
        match event {
            Event::Incoming(Incoming::ConnAck(_)) => self.subscribe(Duration::ZERO),
            Event::Incoming(Incoming::SubAck(answer)) => Some(self.on_suback(&answer.return_codes)),
            Event::Incoming(Incoming::Publish(publish)) => Some(ConnectionEvent::Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload.to_vec(),
            }),
            _ => None,
        }
    }

    /// Subscribes to all topics after a wait. This runs on a task of its own, because the task that
    /// polls the connection must not wait for the request queue.
    fn subscribe(&mut self, after: Duration) -> Option<ConnectionEvent> {
        let topics = (self.topics)();
        if topics.is_empty() {
            return Some(self.on_ready());
        }
        let filters: Vec<SubscribeFilterInput> = topics
            .iter()
            .map(|topic| SubscribeFilterInput::new(topic.clone(), QoS::AtLeastOnce))
            .collect();
        let client = self.client.clone();
        self.cancel_subscribe();
        self.subscribing = Some(tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Err(error) = client.subscribe_many(filters).await {
                tracing::warn!(%error, "cannot queue the subscriptions");
            }
        }));
        None
    }

    fn cancel_subscribe(&mut self) {
        if let Some(asking) = self.subscribing.take() {
            asking.abort();
        }
    }

    fn on_suback(&mut self, codes: &[SubscribeReasonCode]) -> ConnectionEvent {
        let refused = |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
        let Some(first) = codes.iter().position(refused) else { return self.on_ready() };
        if !std::mem::replace(&mut self.problem_logged, true) {
            for (topic, _) in (self.topics)().iter().zip(codes).filter(|(_, code)| refused(code)) {
                tracing::warn!(topic, "the broker refused a subscription");
            }
        }
        if first >= self.vital_count {
            return self.on_ready();
        }
        self.up.store(false, Ordering::Relaxed);
        let wait = self.wait.next((self.random)());
        self.subscribe(wait);
        ConnectionEvent::SubscriptionRefused
    }

    fn on_ready(&mut self) -> ConnectionEvent {
        self.wait.reset();
        self.conflict.on_ready(Instant::now());
        self.problem_logged = false;
        if !self.up.swap(true, Ordering::Relaxed) {
            tracing::info!("connected to the broker");
        }
        ConnectionEvent::Ready
    }

    fn on_failure(&mut self, error: &ConnectionError) -> ConnectionEvent {
        self.cancel_subscribe();
        self.up.store(false, Ordering::Relaxed);
        let problem = error.to_string();
        let now = Instant::now();
        let wait = self
            .conflict
            .on_failure(now, is_session_taken_over(error), (self.random)())
            .unwrap_or_else(|| self.wait.next((self.random)()));
        if !std::mem::replace(&mut self.problem_logged, true) {
            tracing::error!(problem, "no connection to the broker; retrying");
        }
        self.retry_at = Some(now + wait);
        ConnectionEvent::Down(problem)
    }

    /// Drops the connection, if there has been one, and connects anew with the next call of
    /// [`next`](MqttConnection::next). A task calls this at its start: a panic of its last run may
    /// have left the connection in any state.
    pub fn reconnect(&mut self) {
        if !self.started {
            return;
        }
        self.cancel_subscribe();
        self.up.store(false, Ordering::Relaxed);
        self.events.clean();
        self.retry_at = None;
    }

    /// Sends the messages that are still queued, for at most `limit`. Sends nothing if there was no
    /// connection.
    pub async fn drain(&mut self, limit: Duration) {
        if !self.up_at_stop && !self.up.load(Ordering::Relaxed) {
            return;
        }
        let drain = async { while self.events.poll().await.is_ok() {} };
        let _ = tokio::time::timeout(limit, drain).await;
    }
}

/// Returns whether the broker ended the connection because another client uses the same name.
const fn is_session_taken_over(error: &ConnectionError) -> bool {
    matches!(
        error,
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        })
    )
}
