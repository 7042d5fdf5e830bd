//! The way to the cloud: MQTT 5, two lanes, our own acknowledgements.
//!
//! Live frames go as they are kept. Whatever else the cloud does not have — from an outage, a
//! restart, a lost answer — goes on the backlog lane behind them, the running roast first, a bounded
//! number at a time. A frame counts as delivered only when the cloud says that it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use contract::topic::Kind;
use contract::{Ack, ChainId, Origin, Refusal};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, QoS};
use service::mqtt::{self, Bounds, Link};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::journal::{Outgoing, Room};
use crate::keeper::Job;
use crate::pace::Pace;

/// More slots than [`Pace`] ever fills: the client keeps memory for each, used or not.
pub const BOUNDS: Bounds = Bounds { in_flight: 512, receive: 64, packet: 64 * 1024 };
/// What the frames under way may hold together, but for one: memory on the gateway is the budget.
const UNDER_WAY_BYTES_MAX: usize = 512 * 1024;
/// Messages that wait inside the client.
const QUEUE: usize = 512;
const WAIT_MAX: Duration = Duration::from_secs(20);
/// To take leave of the broker when the agent stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const RECEIPTS_EVERY: Duration = Duration::from_secs(10);
/// A gateway that is not registered yet asks again this often.
const REFUSED_PAUSE: Duration = Duration::from_mins(1);
/// Single frames refused for now that are passed over in a minute; then the backlog pauses, and
/// goes on behind them.
const PUT_OFF_MAX: usize = 32;
/// Chains refused as a whole that are passed over.
const CHAINS_OFF_MAX: usize = 4;
const RECEIPTS_AT_ONCE: usize = 20;

/// What the connection tells.
enum News {
    Ready,
    Down(String),
    Ack(Ack),
}

/// Keeps the connection up and everything kept on its way, until `stop`. Answers come for the
/// machines of `origins`: the present one first, and those whose frames still wait.
pub async fn run(
    options: MqttOptions,
    origins: Vec<Origin>,
    jobs: SyncSender<Job>,
    live: &mut mpsc::Receiver<Outgoing>,
    board: Board,
    stop: CancellationToken,
) {
    let topics = move || origins.iter().map(|origin| Kind::Ack.topic(origin)).collect();
    // Those after the first are machines that this gateway was beside before.
    let link = Link::new(options, QUEUE, topics, (WAIT_MAX, trust::spread)).vital(1);
    let client = link.client();
    let (news_out, mut news) = mpsc::channel(1024);
    let connection = tokio::spawn(poll(link, news_out, stop.clone()));
    let mut sender = Sender {
        client: client.clone(),
        jobs,
        pace: Pace::default(),
        ready: false,
        under_way: BTreeMap::new(),
        sent_before: 0,
        put_off: BTreeSet::new(),
        chains_off: Vec::new(),
        needed: None,
        put_off_until: Instant::now(),
        passed_over: false,
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
    // Whoever follows the connection may be waiting for room in here.
    drop(news);
    let _ = connection.await;
}

/// Follows the connection and only forwards: who follows it must never wait for a publish.
async fn poll(mut link: Link, news: mpsc::Sender<News>, stop: CancellationToken) {
    while let Some(told) = link.next(&stop).await {
        let told = match told {
            mqtt::News::Ready => News::Ready,
            // Without answers nothing is ever delivered. A gateway that has just enrolled is let in
            // within seconds; one that was revoked never again.
            mqtt::News::Refused => {
                let problem = "the broker does not let this gateway hear answers; is it enrolled \
                               for this machine, or was it revoked?";
                News::Down(problem.to_owned())
            }
            mqtt::News::Down(problem) => News::Down(problem),
            mqtt::News::Message { payload, .. } => match serde_json::from_slice::<Ack>(&payload) {
                Ok(ack) => News::Ack(ack),
                Err(error) => {
                    tracing::warn!(%error, "an answer that is none");
                    continue;
                }
            },
        };
        if news.send(told).await.is_err() {
            break;
        }
    }
    link.drain(LAST_WORDS).await;
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

impl Lanes {
    /// From the start of each lane, passing over what is under way.
    fn look_again(&mut self) {
        *self = Self { live_last: self.live_last, ..Self::default() };
    }
}

/// A frame that was sent and not answered yet.
struct UnderWay {
    /// In the journal.
    id: i64,
    sent: Instant,
    bytes: usize,
}

struct Sender {
    client: AsyncClient,
    jobs: SyncSender<Job>,
    pace: Pace,
    ready: bool,
    /// By chain and number.
    under_way: BTreeMap<(ChainId, u64), UnderWay>,
    /// Frames up to this journal id may have been sent twice: their answers teach no pace.
    sent_before: i64,
    /// Frames and whole chains that were refused for now, and until when they are passed over.
    put_off: BTreeSet<(ChainId, u64)>,
    chains_off: Vec<ChainId>,
    put_off_until: Instant,
    /// Frames were passed over since the backlog was begun from its start.
    passed_over: bool,
    /// When the cloud last asked for frames again and was heard.
    needed: Option<Instant>,
    lanes: Lanes,
    receipts_due: Instant,
}

impl Sender {
    async fn hear(&mut self, news: News, board: &Board) {
        match news {
            News::Ready => {
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
                        self.put_off((ack.chain, refused.frame), refused.reason);
                        let problem = format!("the cloud refuses our frames: {}", refused.reason);
                        board.update(|state| {
                            if state.uplink_error.as_ref() != Some(&problem) {
                                tracing::error!(problem, "kept here, and tried again each minute");
                                state.uplink_error = Some(problem);
                            }
                        });
                    }
                }
                let now = Instant::now();
                let heard = self.needed.is_some_and(|at| now - at < 2 * self.pace.limit());
                if !ack.need.is_empty() && !heard {
                    // Lost on the other side, perhaps after it was acknowledged: all lanes again.
                    self.needed = Some(now);
                    self.lanes.look_again();
                }
                let jobs = self.jobs.clone();
                // The keeper's queue is long; waiting for it must not stop the lanes.
                if jobs.try_send(Job::Ack(ack)).is_err() {
                    // What it says is still unsent on disk: the lanes look again from the start.
                    self.lanes.look_again();
                }
                if self.under_way.len() < self.pace.window() / 2 {
                    self.send_waiting().await;
                }
            }
        }
    }

    /// What was refused for now is passed over for a while: the frame, or its whole chain where the
    /// reason is its key or its machine.
    fn put_off(&mut self, key: (ChainId, u64), reason: Refusal) {
        self.under_way.remove(&key);
        if self.put_off.is_empty() && self.chains_off.is_empty() {
            self.put_off_until = Instant::now() + REFUSED_PAUSE;
        }
        let whole = matches!(reason, Refusal::UnknownKey | Refusal::WrongOrigin);
        if whole && self.chains_off.contains(&key.0) {
            return;
        }
        if whole && self.chains_off.len() < CHAINS_OFF_MAX {
            self.chains_off.push(key.0);
        } else if self.put_off.len() < PUT_OFF_MAX {
            self.put_off.insert(key);
            self.passed_over = true;
        }
    }

    fn settled(&mut self, chain: ChainId, first: u64, last: u64) {
        let now = Instant::now();
        let done = self.under_way.extract_if((chain, first)..=(chain, last), |_, _| true);
        for (_, frame) in done {
            if frame.id > self.sent_before {
                self.pace.answered(now.saturating_duration_since(frame.sent));
            }
        }
    }

    fn restart_lanes(&mut self) {
        self.under_way.clear();
        self.put_off.clear();
        self.chains_off.clear();
        self.pace = Pace::default();
        self.sent_before = self.sent_before.max(self.lanes.live_last).max(self.lanes.older_at);
        self.lanes = Lanes::default();
        self.receipts_due = Instant::now();
    }

    fn send_live(&mut self, frame: Outgoing) {
        if !self.ready {
            return; // the backlog has it
        }
        if self.lanes.live_last != 0 && frame.id != self.lanes.live_last + 1 {
            // The lane was full for a moment: the backlog looks for what fell out of it.
            self.lanes.look_again();
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
        let under_way = UnderWay { id: frame.id, sent: Instant::now(), bytes: frame.signed.len() };
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let sent =
            self.client.try_publish(kind.topic(&frame.origin), frame.signed, options).is_ok();
        // Not sent is kept as under way too: it becomes due again by its age.
        self.under_way.insert(key, under_way);
        sent
    }

    /// Sends again what nobody answered in time.
    fn look_for_overdue(&mut self, now: Instant) {
        let limit = self.pace.limit();
        let before = self.under_way.len();
        self.under_way.retain(|_, frame| now.saturating_duration_since(frame.sent) <= limit);
        if self.under_way.len() < before {
            self.pace.timed_out();
            self.sent_before = self.lanes.live_last.max(self.lanes.older_at).max(self.sent_before);
            self.lanes.look_again();
        }
    }

    /// Sends what waits: the running roast, then what is older.
    async fn send_waiting(&mut self) {
        if !self.ready {
            return;
        }
        let now = Instant::now();
        self.look_for_overdue(now);
        if !self.put_off.is_empty() || !self.chains_off.is_empty() {
            if now >= self.put_off_until {
                // Single frames: on behind them, and round again when the lane has come to its end.
                // Chains: perhaps the key has been registered meanwhile.
                self.put_off.clear();
                if !self.chains_off.is_empty() {
                    self.chains_off.clear();
                    self.lanes.look_again();
                }
            } else if self.put_off.len() >= PUT_OFF_MAX {
                return;
            }
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
        } else if self.passed_over && self.under_way.is_empty() && now >= self.put_off_until {
            // The end of the lane, and frames were passed over on the way.
            self.passed_over = false;
            self.lanes.look_again();
        }
        if now >= self.receipts_due {
            self.receipts_due = now + RECEIPTS_EVERY;
            self.send_receipts().await;
        }
    }

    /// Sends the frames after `after` and before `before` that fit the window. Answers the last.
    async fn send_lane(&mut self, after: i64, before: i64) -> Option<i64> {
        let held: usize = self.under_way.values().map(|frame| frame.bytes).sum();
        let room = Room {
            frames: self.pace.window().saturating_sub(self.under_way.len()),
            bytes: UNDER_WAY_BYTES_MAX.saturating_sub(held),
        };
        if room.frames == 0 || room.bytes == 0 || after >= before.saturating_sub(1) {
            return None;
        }
        let (answer, waiting) = oneshot::channel();
        let except = self.chains_off.clone();
        let job = Job::Unsent { after, before, room, except, answer };
        let frames = self.ask(job, waiting).await.unwrap_or_default();
        let mut at = None;
        for frame in frames {
            let id = frame.id;
            let key = (frame.chain, frame.number);
            if self.under_way.contains_key(&key) || self.put_off.contains(&key) {
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
        for (origin, receipt) in self.ask(job, waiting).await.unwrap_or_default() {
            let options = PublishOptions::new(QoS::AtLeastOnce);
            let topic = Kind::Receipt.topic(&origin);
            let _ = self.client.try_publish(topic, receipt, options);
        }
    }

    async fn ask<T>(&self, job: Job, answer: oneshot::Receiver<T>) -> Option<T> {
        self.jobs.try_send(job).ok()?;
        answer.await.ok()
    }
}
