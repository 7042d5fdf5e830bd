//! The way to the cloud: MQTT 5, two lanes, our own acknowledgements.
//!
//! Live frames go as they are kept. Whatever else the cloud does not have — from an outage, a
//! restart, a lost answer — goes on the backlog lane behind them, the running roast first, a bounded
//! number at a time. A frame counts as delivered only when the cloud says that it is committed.

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use contract::topic::Kind;
use contract::{Ack, ChainId, Origin};
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, IncomingPacketSizeLimit, MqttOptions, NetworkOptions,
    PublishOptions, QoS, TlsConfiguration, Transport,
};
use service::backoff::Backoff;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::UplinkConfig;
use crate::journal::Outgoing;
use crate::keeper::Job;

/// Backlog frames under way at once.
const WINDOW: usize = 64;
const LOOK_EVERY: Duration = Duration::from_millis(250);
const RECEIPTS_EVERY: Duration = Duration::from_secs(10);
/// A gateway that is not registered yet asks again this often.
const REFUSED_PAUSE: Duration = Duration::from_mins(1);
const RECEIPTS_AT_ONCE: usize = 20;

/// Why the uplink cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("uplink: {path} cannot be read: {source}", path = path.display())]
    File { path: std::path::PathBuf, source: std::io::Error },
    #[error("uplink.password: {0}")]
    Secret(#[from] service::secret::SecretError),
}

/// What the connection tells.
enum News {
    Ready,
    Down(String),
    Ack(Ack),
}

/// The options of a connection as `client`.
///
/// # Errors
/// When a certificate or the password cannot be read.
pub fn options(config: &UplinkConfig, client: &str) -> Result<MqttOptions, UplinkError> {
    use secrecy::ExposeSecret as _;
    let mut options = MqttOptions::new(client, (config.host.as_str(), config.port));
    options
        .set_keep_alive(15)
        .set_clean_start(true)
        .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(64 * 1024));
    // Small messages must not wait for the one before to be acknowledged (Nagle): 40 ms each.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if let Some(password) = config.password.resolve()? {
        let password = password.expose_secret().as_bytes().to_vec();
        options.set_credentials(config.username.clone(), password);
    }
    if let Some(path) = &config.ca_file {
        let client_auth = match (&config.cert_file, &config.key_file) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let ca = read(path)?;
        options.set_transport(Transport::Tls(TlsConfiguration::Simple {
            ca,
            alpn: None,
            client_auth,
        }));
    }
    Ok(options)
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, UplinkError> {
    std::fs::read(path).map_err(|source| UplinkError::File { path: path.to_owned(), source })
}

/// Keeps the connection up and everything kept on its way, until `stop`.
pub async fn run(
    config: UplinkConfig,
    options: MqttOptions,
    origin: Origin,
    jobs: SyncSender<Job>,
    mut live: mpsc::Receiver<Outgoing>,
    board: Board,
    stop: CancellationToken,
) {
    let (client, events) = AsyncClient::builder(options).capacity(256).build();
    let (news_out, mut news) = mpsc::channel(1024);
    let connection =
        tokio::spawn(poll(client.clone(), events, origin.clone(), news_out, stop.clone()));
    let mut sender = Sender {
        client: client.clone(),
        origin,
        jobs,
        resend: Duration::from_millis(config.resend_ms),
        ready: false,
        under_way: BTreeMap::new(),
        lanes: Lanes::default(),
        receipts_due: Instant::now(),
    };
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(news) = news.recv() => sender.hear(news, &board).await,
            Some(frame) = live.recv() => sender.send_live(frame),
            _ = look.tick() => sender.send_waiting().await,
        }
    }
    let _ = client.try_disconnect();
    let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
}

/// Polls the connection and only forwards: whoever polls must never wait for a publish.
async fn poll(
    client: AsyncClient,
    mut events: EventLoop,
    origin: Origin,
    news: mpsc::Sender<News>,
    stop: CancellationToken,
) {
    let mut wait = Backoff::new(Duration::from_millis(200), Duration::from_secs(20));
    loop {
        let told = match events.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                wait.reset();
                // Answers must be able to reach us before anything is sent.
                let (client, topic) = (client.clone(), Kind::Ack.topic(&origin));
                tokio::spawn(async move {
                    if let Err(error) = client.subscribe(topic, QoS::AtLeastOnce).await {
                        tracing::warn!(%error, "could not subscribe to answers");
                    }
                });
                continue;
            }
            Ok(Event::Incoming(Incoming::SubAck(_))) => News::Ready,
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                match serde_json::from_slice::<Ack>(&publish.payload) {
                    Ok(ack) => News::Ack(ack),
                    Err(error) => {
                        tracing::warn!(%error, "an answer that is none");
                        continue;
                    }
                }
            }
            Ok(_) => continue,
            Err(error) => {
                if stop.is_cancelled() {
                    return;
                }
                if news.send(News::Down(error.to_string())).await.is_err() {
                    return;
                }
                let spread = trust::random::<8>().map_or(0, u64::from_le_bytes);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait.next(spread)) => {}
                }
                continue;
            }
        };
        if news.send(told).await.is_err() {
            return;
        }
    }
}

/// Where each lane of the backlog has got to, by journal id.
#[derive(Debug, Default)]
struct Lanes {
    /// First frame of the running roast.
    running_from: i64,
    /// First frame that went live on this connection; 0 before there was one.
    live_from: i64,
    running_at: i64,
    older_at: i64,
    /// The last frame that came on the live lane.
    live_last: i64,
}

struct Sender {
    client: AsyncClient,
    origin: Origin,
    jobs: SyncSender<Job>,
    resend: Duration,
    ready: bool,
    /// By (chain, number): journal id, and when it was sent.
    under_way: BTreeMap<(ChainId, u64), (i64, Instant)>,
    lanes: Lanes,
    receipts_due: Instant,
}

impl Sender {
    async fn hear(&mut self, news: News, board: &Board) {
        match news {
            News::Ready => {
                tracing::info!("connected to the cloud");
                self.ready = true;
                self.restart_lanes();
                board.update(|state| {
                    state.uplink_connected = true;
                    state.uplink_error = None;
                });
                metrics::gauge!("simcorp_edge_uplink_connected").set(1.0);
                let (answer, waiting) = oneshot::channel();
                if let Some(newest) =
                    self.ask(Job::NewestUnsent { answer }, waiting).await.flatten()
                {
                    self.send_live(newest);
                }
                self.send_waiting().await;
            }
            News::Down(problem) => {
                self.ready = false;
                board.update(|state| {
                    if state.uplink_connected || state.uplink_error.is_none() {
                        tracing::warn!(
                            problem,
                            "no connection to the cloud; keeping everything here"
                        );
                    }
                    state.uplink_connected = false;
                    state.uplink_error = Some(problem);
                });
                metrics::gauge!("simcorp_edge_uplink_connected").set(0.0);
            }
            News::Ack(ack) => {
                for range in &ack.acked {
                    self.settled(ack.chain, range.first, range.last);
                }
                if !ack.acked.is_empty() {
                    board.update(|state| state.uplink_error = None);
                }
                for refused in &ack.refused {
                    if refused.reason.is_final() {
                        self.settled(ack.chain, refused.frame, refused.frame);
                    } else {
                        self.put_off((ack.chain, refused.frame));
                        let problem = format!("the cloud refuses our frames: {}", refused.reason);
                        board.update(|state| {
                            if state.uplink_error.as_ref() != Some(&problem) {
                                tracing::error!(problem, "kept here, and tried again each minute");
                                state.uplink_error = Some(problem);
                            }
                        });
                    }
                }
                if !ack.need.is_empty() && self.under_way.is_empty() {
                    // Lost on the other side after it was acknowledged: look again from the start.
                    self.lanes.older_at = 0;
                    self.lanes.running_at = self.lanes.running_from - 1;
                }
                let jobs = self.jobs.clone();
                // The keeper's queue is long; waiting for it must not stop the lanes.
                if jobs.try_send(Job::Ack(ack)).is_err() {
                    // What it says is still unsent on disk: the lanes look again from the start.
                    self.lanes = Lanes::default();
                }
                if self.under_way.len() < WINDOW / 2 {
                    self.send_waiting().await;
                }
            }
        }
    }

    /// A frame that was refused for now is not sent again for a while.
    fn put_off(&mut self, key: (ChainId, u64)) {
        if let Some((_, sent)) = self.under_way.get_mut(&key) {
            *sent = Instant::now() + REFUSED_PAUSE;
        }
    }

    fn settled(&mut self, chain: ChainId, first: u64, last: u64) {
        let done: Vec<_> =
            self.under_way.range((chain, first)..=(chain, last)).map(|(key, _)| *key).collect();
        for key in done {
            self.under_way.remove(&key);
        }
    }

    fn restart_lanes(&mut self) {
        self.under_way.clear();
        self.lanes = Lanes::default();
        self.receipts_due = Instant::now();
    }

    fn send_live(&mut self, frame: Outgoing) {
        if !self.ready {
            return; // the backlog has it
        }
        if self.lanes.live_last != 0 && frame.id != self.lanes.live_last + 1 {
            // The lane was full for a moment: the backlog looks for what fell out of it.
            self.lanes = Lanes::default();
        }
        self.lanes.live_last = frame.id;
        if self.lanes.live_from == 0 {
            self.lanes.live_from = frame.id;
        }
        self.publish(Kind::LiveFrame, frame);
    }

    /// `false` when the connection takes nothing more now; the frame is found again later.
    fn publish(&mut self, kind: Kind, frame: Outgoing) -> bool {
        let key = (frame.chain, frame.number);
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let sent = self.client.try_publish(kind.topic(&self.origin), frame.signed, options).is_ok();
        // Not sent is kept as under way too: it becomes due again by its age.
        self.under_way.insert(key, (frame.id, Instant::now()));
        sent
    }

    /// Sends what waits: frames that are overdue, then the running roast, then what is older.
    async fn send_waiting(&mut self) {
        if !self.ready {
            return;
        }
        let now = Instant::now();
        let overdue =
            self.under_way.values().any(|(_, sent)| now.duration_since(*sent) > self.resend);
        if overdue {
            let resend = self.resend;
            self.under_way.retain(|_, (_, sent)| now.duration_since(*sent) <= resend);
            self.lanes = Lanes::default();
        }
        if self.lanes.running_from == 0 {
            let (answer, waiting) = oneshot::channel();
            let from = self.ask(Job::RunningFrom { answer }, waiting).await.flatten();
            self.lanes.running_from = from.unwrap_or(i64::MAX);
            self.lanes.running_at = self.lanes.running_from.saturating_sub(1);
        }
        let live_from = if self.lanes.live_from == 0 { i64::MAX } else { self.lanes.live_from };
        let running = self.send_lane(self.lanes.running_at, live_from).await;
        if let Some(at) = running {
            self.lanes.running_at = at;
        }
        let before = live_from.min(self.lanes.running_from);
        if let Some(at) = self.send_lane(self.lanes.older_at, before).await {
            self.lanes.older_at = at;
        }
        if now >= self.receipts_due {
            self.receipts_due = now + RECEIPTS_EVERY;
            self.send_receipts().await;
        }
    }

    /// Sends the frames after `after` and before `before` that fit the window. Answers the last.
    async fn send_lane(&mut self, after: i64, before: i64) -> Option<i64> {
        let room = WINDOW.saturating_sub(self.under_way.len());
        if room == 0 || after >= before.saturating_sub(1) {
            return None;
        }
        let (answer, waiting) = oneshot::channel();
        let job = Job::Unsent { after, before, limit: room, answer };
        let frames = self.ask(job, waiting).await.unwrap_or_default();
        let mut at = None;
        for frame in frames {
            let id = frame.id;
            if self.under_way.contains_key(&(frame.chain, frame.number)) {
                at = Some(id);
                continue;
            }
            if !self.publish(Kind::BacklogFrame, frame) {
                break;
            }
            at = Some(id);
        }
        at
    }

    async fn send_receipts(&self) {
        let (answer, waiting) = oneshot::channel();
        let job = Job::Receipts { limit: RECEIPTS_AT_ONCE, answer };
        for receipt in self.ask(job, waiting).await.unwrap_or_default() {
            let options = PublishOptions::new(QoS::AtLeastOnce);
            let topic = Kind::Receipt.topic(&self.origin);
            let _ = self.client.try_publish(topic, receipt, options);
        }
    }

    async fn ask<T>(&self, job: Job, answer: oneshot::Receiver<T>) -> Option<T> {
        self.jobs.try_send(job).ok()?;
        answer.await.ok()
    }
}
