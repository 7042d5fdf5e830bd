//! A connection to the broker that comes back by itself, with its subscriptions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, QoS, SubscribeFilterInput,
    SubscribeReasonCode,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

const FIRST_WAIT: Duration = Duration::from_millis(100);

/// What a connection tells whoever follows it.
#[derive(Debug)]
pub enum News {
    /// The broker is there, and lets us hear everything that must be heard: what is sent from now on
    /// can be answered. May be told more than once.
    Ready,
    /// The broker does not let us hear something vital; it is asked again after a while.
    Refused,
    /// No connection, and why; it is tried again after a while.
    Down(String),
    Message {
        topic: String,
        payload: Vec<u8>,
    },
}

/// One connection. Whoever follows it must keep asking for the [`next`](Link::next) news: nothing
/// comes in or goes out in between, so that who has no room for more makes the broker wait.
pub struct Link {
    client: AsyncClient,
    events: EventLoop,
    topics: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    vital: usize,
    random: fn() -> u64,
    wait: Backoff,
    /// After a failure nothing is tried before.
    due: Option<Instant>,
    /// What is wrong was told to the log.
    told: bool,
    up: Arc<AtomicBool>,
    /// Whether it was up when it was told to stop.
    leaving: bool,
    /// What asks for the topics; one at a time.
    asking: Option<JoinHandle<()>>,
}

impl Link {
    /// A connection that will ask for `topics` whenever it is made, with room for `queue` messages of
    /// ours. It waits at most `wait_max` from one try to the next, spread by `random`.
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
            vital: usize::MAX,
            random,
            wait: Backoff::new(FIRST_WAIT, wait_max),
            due: None,
            told: false,
            up: Arc::default(),
            leaving: false,
            asking: None,
        }
    }

    /// Only the first `count` topics are vital; the others are asked for and may be refused.
    #[must_use]
    pub const fn vital(mut self, count: usize) -> Self {
        self.vital = count;
        self
    }

    /// For sending.
    #[must_use]
    pub fn client(&self) -> AsyncClient {
        self.client.clone()
    }

    /// Whether it is ready, from now on.
    #[must_use]
    pub fn up(&self) -> Arc<AtomicBool> {
        self.up.clone()
    }

    /// What happens next; `None` once `stop` is cancelled.
    pub async fn next(&mut self, stop: &CancellationToken) -> Option<News> {
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.leaving |= self.up.swap(false, Ordering::Relaxed);
                    return None;
                }
                event = Self::poll(&mut self.events, self.due) => event,
            };
            self.due = None;
            let news = match event {
                Ok(event) => self.understand(event),
                Err(error) => Some(self.failed(error.to_string())),
            };
            if news.is_some() {
                return news;
            }
        }
    }

    async fn poll(
        events: &mut EventLoop,
        due: Option<Instant>,
    ) -> Result<Event, rumqttc::ConnectionError> {
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        events.poll().await
    }

    fn understand(&mut self, event: Event) -> Option<News> {
        match event {
            Event::Incoming(Incoming::ConnAck(_)) => self.ask(Duration::ZERO),
            Event::Incoming(Incoming::SubAck(answer)) => Some(self.heard(&answer.return_codes)),
            Event::Incoming(Incoming::Publish(publish)) => Some(News::Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload.to_vec(),
            }),
            _ => None,
        }
    }

    /// Asks to hear everything, after a while. On a task of its own: whoever polls must not wait for
    /// the request queue.
    fn ask(&mut self, after: Duration) -> Option<News> {
        let topics = (self.topics)();
        if topics.is_empty() {
            return Some(self.ready());
        }
        let filters: Vec<SubscribeFilterInput> = topics
            .iter()
            .map(|topic| SubscribeFilterInput::new(topic.clone(), QoS::AtLeastOnce))
            .collect();
        let client = self.client.clone();
        self.stop_asking();
        self.asking = Some(tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Err(error) = client.subscribe_many(filters).await {
                tracing::warn!(%error, "could not subscribe");
            }
        }));
        None
    }

    fn stop_asking(&mut self) {
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
    }

    fn heard(&mut self, codes: &[SubscribeReasonCode]) -> News {
        let refused = |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
        let Some(first) = codes.iter().position(refused) else { return self.ready() };
        if !std::mem::replace(&mut self.told, true) {
            for (topic, _) in (self.topics)().iter().zip(codes).filter(|(_, code)| refused(code)) {
                tracing::warn!(topic, "the broker does not let us hear this");
            }
        }
        if first >= self.vital {
            return self.ready();
        }
        self.up.store(false, Ordering::Relaxed);
        let wait = self.wait.next((self.random)());
        self.ask(wait);
        News::Refused
    }

    fn ready(&mut self) -> News {
        self.wait.reset();
        self.told = false;
        if !self.up.swap(true, Ordering::Relaxed) {
            tracing::info!("connected to the broker");
        }
        News::Ready
    }

    fn failed(&mut self, problem: String) -> News {
        self.stop_asking();
        self.up.store(false, Ordering::Relaxed);
        if !std::mem::replace(&mut self.told, true) {
            tracing::error!(problem, "no connection to the broker; trying again");
        }
        self.due = Some(Instant::now() + self.wait.next((self.random)()));
        News::Down(problem)
    }

    /// Sends what is still queued, for at most `limit`; nothing where there was no connection.
    pub async fn drain(mut self, limit: Duration) {
        if !self.leaving && !self.up.load(Ordering::Relaxed) {
            return;
        }
        let drain = async { while self.events.poll().await.is_ok() {} };
        let _ = tokio::time::timeout(limit, drain).await;
    }
}
