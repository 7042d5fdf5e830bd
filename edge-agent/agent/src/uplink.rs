//! Sends frames and receipts to the cloud: MQTT 5, two lanes, and acknowledgements of our own
//! in addition to MQTT's.
//!
//! The live lane sends frames as they are stored. The backlog lane sends all other frames that the
//! cloud does not have — after an outage, a restart, a lost acknowledgement — behind the live ones,
//! the running roast first, a bounded number at a time. A frame counts as delivered only when the
//! cloud acknowledges that it has committed it.

mod connection;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use contract::topic::TopicKind;
use contract::{ChainId, Origin, Refusal};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, QoS};
use service::mqtt::{ConnectionBounds, MqttConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use connection::{ConnectionEvent, forward_events};

use crate::agent_state::AgentState;
use crate::journal::{FetchLimit, OutgoingFrame};
use crate::journal_writer::JournalCommand;
use crate::json_copy::{JsonCopies, JsonCopy};
use crate::renamed_machine;
use crate::send_window::SendWindow;

/// The limits of the MQTT client. It has more slots for messages in flight than [`SendWindow`] ever
/// fills; not many more, because the client allocates memory for each slot, used or not.
pub const MQTT_BOUNDS: ConnectionBounds =
    ConnectionBounds { in_flight: 512, receive: 64, packet: 64 * 1024 };
/// The maximum total size of the frames in flight, in bytes; one frame may exceed it. Memory is
/// scarce on the gateway.
const IN_FLIGHT_BYTES_MAX: usize = 512 * 1024;
/// How many messages may wait inside the client.
const QUEUE: usize = 512;
/// The longest wait between two attempts to connect.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How often unsent and overdue frames are looked for.
const SEND_INTERVAL: Duration = Duration::from_millis(250);
/// How often receipts are sent that the cloud has not confirmed.
const RECEIPTS_EVERY: Duration = Duration::from_secs(10);
/// How long refused frames and chains are skipped before they are retried: for example those of a
/// gateway that is not registered yet.
const REFUSED_PAUSE: Duration = Duration::from_mins(1);
/// How many single frames may be skipped within one such pause, because the cloud refuses them for
/// now. Beyond it the backlog waits for the end of the pause, and then continues behind them.
const DEFERRED_FRAMES_MAX: usize = 32;
/// How many chains may be skipped because the cloud refuses all of their frames for now.
const DEFERRED_CHAINS_MAX: usize = 4;
const RECEIPTS_AT_ONCE: usize = 20;

/// Maintains the connection and sends everything that the journal contains unsent, until `stop`.
/// Subscribes to the acknowledgements for the machines in `origins`: the current machine first,
/// then those with frames that are still unsent. `copies` makes the JSON that is sent beside live
/// frames, if any is.
pub async fn run(
    options: MqttOptions,
    origins: Vec<Origin>,
    commands: SyncSender<JournalCommand>,
    (live, copies): (&mut mpsc::Receiver<OutgoingFrame>, Option<&mut JsonCopies>),
    state: AgentState,
    stop: CancellationToken,
) {
    let topics = move || origins.iter().map(|origin| TopicKind::Ack.topic(origin)).collect();
    // Only the first topic is required: the others are of machines that this gateway was at before.
    let link = MqttConnection::new(options, QUEUE, topics, (WAIT_MAX, trust::jitter)).with_vital(1);
    let client = link.client();
    let (event_sender, mut events) = mpsc::channel(1024);
    let mut connection =
        tokio::spawn(forward_events(link, event_sender, state.clone(), stop.clone()));
    let mut sender = Sender {
        client: client.clone(),
        commands,
        copies,
        send_window: SendWindow::default(),
        ready: false,
        in_flight: BTreeMap::new(),
        maybe_resent_until_id: 0,
        deferred_frames: BTreeSet::new(),
        deferred_chains: Vec::new(),
        last_resend_request: None,
        deferred_until: Instant::now(),
        skipped_frames: false,
        lanes: Lanes::default(),
        receipts_due: Instant::now(),
    };
    let mut poll = tokio::time::interval(SEND_INTERVAL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            ended = &mut connection => {
                // Before the stop it ends only with a panic, which this task's supervisor must see.
                if let Err(error) = ended && let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
                return;
            }
            Some(event) = events.recv() => sender.handle(event, &state).await,
            Some(frame) = live.recv() => sender.send_live(frame, &state),
            _ = poll.tick() => sender.send_waiting().await,
        }
    }
    let _ = client.try_disconnect();
    // The connection task may be waiting for room in this channel; closing it ends the wait.
    drop(events);
    let _ = connection.await;
}

/// The progress of each lane, as ids of frames in the journal.
#[derive(Debug, Default)]
struct Lanes {
    /// The first frame of the running roast; 0 if not looked up yet.
    running_from: i64,
    /// The first live frame on this connection; 0 before there is one.
    live_from: i64,
    /// The last backlog frame of the running roast that was sent or skipped.
    running_at: i64,
    /// The last older backlog frame that was sent or skipped.
    older_at: i64,
    /// The last frame that was received on the live lane.
    live_last: i64,
}

impl Lanes {
    /// Restarts each lane at its start. Frames in flight are skipped on the way.
    fn restart(&mut self) {
        *self = Self { live_last: self.live_last, ..Self::default() };
    }
}

/// A frame that was sent and that the cloud has not answered yet.
struct InFlightFrame {
    /// The frame's id in the journal.
    id: i64,
    sent: Instant,
    bytes: usize,
}

/// Decides which frames to send, and sends them.
struct Sender<'c> {
    client: AsyncClient,
    commands: SyncSender<JournalCommand>,
    copies: Option<&'c mut JsonCopies>,
    send_window: SendWindow,
    ready: bool,
    /// The frames in flight, by chain and frame number.
    in_flight: BTreeMap<(ChainId, u64), InFlightFrame>,
    /// Frames up to this journal id may have been sent twice: their acknowledgements are not used
    /// to measure the round trip.
    maybe_resent_until_id: i64,
    /// Frames that the cloud refused for now, and that are skipped.
    deferred_frames: BTreeSet<(ChainId, u64)>,
    /// Chains that the cloud refused for now, and that are skipped.
    deferred_chains: Vec<ChainId>,
    /// When the skipped frames and chains are retried.
    deferred_until: Instant,
    /// Whether frames were skipped since the backlog lanes last started from the beginning.
    skipped_frames: bool,
    /// When the lanes last restarted because the cloud requested frames again.
    last_resend_request: Option<Instant>,
    lanes: Lanes,
    receipts_due: Instant,
}

impl Sender<'_> {
    /// Handles an event of the connection.
    async fn handle(&mut self, event: ConnectionEvent, state: &AgentState) {
        match event {
            ConnectionEvent::Ready => {
                self.ready = true;
                self.restart_lanes();
                state.update(|state| {
                    state.uplink_connected = true;
                    state.uplink_error = None;
                });
                metrics::gauge!("simcorp_edge_uplink_connected").set(1.0);
                let (answer, waiting) = oneshot::channel();
                if let Some(newest) = self
                    .query_journal(JournalCommand::ReadNewestUnsent { answer }, waiting)
                    .await
                    .flatten()
                {
                    self.send_live(newest, state);
                }
                self.send_waiting().await;
            }
            ConnectionEvent::Down(problem) => {
                self.ready = false;
                state.update(|state| {
                    state.uplink_connected = false;
                    state.uplink_error = Some(problem);
                });
                metrics::gauge!("simcorp_edge_uplink_connected").set(0.0);
            }
            ConnectionEvent::Ack(ack) => {
                for range in &ack.acked {
                    self.complete_range(ack.chain, range.first, range.last);
                }
                if !ack.acked.is_empty() {
                    state.update(|state| state.uplink_error = None);
                }
                for refused in &ack.refused {
                    if refused.reason.is_final() {
                        self.complete_range(ack.chain, refused.frame, refused.frame);
                    } else {
                        self.defer((ack.chain, refused.frame), refused.reason);
                        let problem = renamed_machine::describe_refusal(refused.reason);
                        state.update(|state| {
                            if state.uplink_error.as_ref() != Some(&problem) {
                                tracing::error!(problem, "frames stay here; retrying each minute");
                                state.uplink_error = Some(problem);
                            }
                        });
                    }
                }
                let now = Instant::now();
                let pause = self.send_window.timeout().saturating_mul(2);
                let recent = self
                    .last_resend_request
                    .is_some_and(|at| now.saturating_duration_since(at) < pause);
                if !ack.need.is_empty() && !recent {
                    // The cloud has lost frames, perhaps after it acknowledged them: restart all
                    // lanes.
                    self.last_resend_request = Some(now);
                    self.lanes.restart();
                }
                let commands = self.commands.clone();
                // The queue to the journal is long. Waiting for room in it must not stop the lanes.
                if commands.try_send(JournalCommand::Ack(ack)).is_err() {
                    // Without this acknowledgement the journal still counts its frames as unsent:
                    // the lanes restart from the beginning.
                    self.lanes.restart();
                }
                if self.in_flight.len() < self.send_window.max_in_flight() / 2 {
                    self.send_waiting().await;
                }
            }
        }
    }

    /// Skips a frame that the cloud refused for now, until the end of the pause. Skips its whole
    /// chain if the reason is the key or the machine.
    fn defer(&mut self, key: (ChainId, u64), reason: Refusal) {
        self.in_flight.remove(&key);
        if self.deferred_frames.is_empty() && self.deferred_chains.is_empty() {
            self.deferred_until = Instant::now() + REFUSED_PAUSE;
        }
        let whole = matches!(reason, Refusal::UnknownKey | Refusal::WrongOrigin);
        if whole && self.deferred_chains.contains(&key.0) {
            return;
        }
        if whole && self.deferred_chains.len() < DEFERRED_CHAINS_MAX {
            self.deferred_chains.push(key.0);
        } else if self.deferred_frames.len() < DEFERRED_FRAMES_MAX {
            self.deferred_frames.insert(key);
            self.skipped_frames = true;
        }
    }

    /// Removes frames from those in flight, and measures their round trip.
    fn complete_range(&mut self, chain: ChainId, first: u64, last: u64) {
        let now = Instant::now();
        let done = self.in_flight.extract_if((chain, first)..=(chain, last), |_, _| true);
        for (_, frame) in done {
            if frame.id > self.maybe_resent_until_id {
                self.send_window.on_ack(now.saturating_duration_since(frame.sent));
            }
        }
    }

    /// Resets everything that is known about the connection, after it was made again.
    fn restart_lanes(&mut self) {
        self.in_flight.clear();
        self.deferred_frames.clear();
        self.deferred_chains.clear();
        self.send_window = SendWindow::default();
        self.maybe_resent_until_id =
            self.maybe_resent_until_id.max(self.lanes.live_last).max(self.lanes.older_at);
        self.lanes = Lanes::default();
        self.receipts_due = Instant::now();
    }

    /// Sends a frame on the live lane. Does nothing while the connection is down.
    fn send_live(&mut self, frame: OutgoingFrame, state: &AgentState) {
        // Also without a connection: the copies that follow count from the roast's beginning.
        let copies = self
            .copies
            .as_mut()
            .map(|copies| copies.of_signed(&frame.signed, state.session_started()));
        if !self.ready {
            return; // the backlog lane sends it later
        }
        if self.lanes.live_last != 0 && frame.id != self.lanes.live_last.saturating_add(1) {
            // The channel of the live lane was full for a moment: the backlog lane must find the
            // frames that were not passed on.
            self.lanes.restart();
        }
        self.lanes.live_last = frame.id;
        if self.lanes.live_from == 0 {
            self.lanes.live_from = frame.id;
        }
        let origin = frame.origin.clone();
        // The frame first: its copies must not take its place in the client's queue.
        if self.publish(TopicKind::LiveFrame, frame) {
            self.publish_copies(&origin, copies.unwrap_or_default());
        }
    }

    /// Publishes the JSON copies of a frame. One that the client or the broker does not accept is
    /// lost.
    fn publish_copies(&self, origin: &Origin, copies: Vec<JsonCopy>) {
        for copy in copies {
            let options = PublishOptions::new(QoS::AtMostOnce);
            let _ = self.client.try_publish(copy.topic.topic(origin), copy.body, options);
        }
    }

    /// Publishes a frame. Returns `false` if the client accepts no more messages now; the frame is
    /// found again later.
    fn publish(&mut self, kind: TopicKind, frame: OutgoingFrame) -> bool {
        let key = (frame.chain, frame.number);
        let under_way =
            InFlightFrame { id: frame.id, sent: Instant::now(), bytes: frame.signed.len() };
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let sent =
            self.client.try_publish(kind.topic(&frame.origin), frame.signed, options).is_ok();
        // A frame that was not sent counts as in flight too: it becomes overdue and is sent again.
        self.in_flight.insert(key, under_way);
        sent
    }

    /// Removes frames that were not answered in time from those in flight, and restarts the lanes,
    /// so that the frames are sent again.
    fn expire_overdue(&mut self, now: Instant) {
        let limit = self.send_window.timeout();
        let before = self.in_flight.len();
        self.in_flight.retain(|_, frame| now.saturating_duration_since(frame.sent) <= limit);
        if self.in_flight.len() < before {
            self.send_window.on_timeout();
            self.maybe_resent_until_id =
                self.lanes.live_last.max(self.lanes.older_at).max(self.maybe_resent_until_id);
            self.lanes.restart();
        }
    }

    /// Sends backlog frames: those of the running roast first, then older ones. Then sends
    /// receipts, if they are due.
    async fn send_waiting(&mut self) {
        if !self.ready {
            return;
        }
        let now = Instant::now();
        self.expire_overdue(now);
        if !self.deferred_frames.is_empty() || !self.deferred_chains.is_empty() {
            if now >= self.deferred_until {
                // Single frames: the backlog continues behind them, and restarts when it has come
                // to its end. Chains: the key may have been registered meanwhile, so it restarts
                // now.
                self.deferred_frames.clear();
                if !self.deferred_chains.is_empty() {
                    self.deferred_chains.clear();
                    self.lanes.restart();
                }
            } else if self.deferred_frames.len() >= DEFERRED_FRAMES_MAX {
                return;
            }
        }
        if self.lanes.running_from == 0 {
            let (answer, waiting) = oneshot::channel();
            let from = self
                .query_journal(JournalCommand::ReadRunningRoastStart { answer }, waiting)
                .await
                .flatten();
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
        } else if self.skipped_frames && self.in_flight.is_empty() && now >= self.deferred_until {
            // The backlog has come to its end, and frames were skipped on the way.
            self.skipped_frames = false;
            self.lanes.restart();
        }
        if now >= self.receipts_due {
            self.receipts_due = now + RECEIPTS_EVERY;
            self.send_receipts().await;
        }
    }

    /// Sends the frames with journal ids between `after` and `before`, both exclusive, that fit the
    /// window. Returns the id of the last frame that was sent or skipped.
    async fn send_lane(&mut self, after: i64, before: i64) -> Option<i64> {
        let bytes_in_flight: usize = self.in_flight.values().map(|frame| frame.bytes).sum();
        let room = FetchLimit {
            frames: self.send_window.max_in_flight().saturating_sub(self.in_flight.len()),
            bytes: IN_FLIGHT_BYTES_MAX.saturating_sub(bytes_in_flight),
        };
        if room.frames == 0 || room.bytes == 0 || after >= before.saturating_sub(1) {
            return None;
        }
        let (answer, waiting) = oneshot::channel();
        let except = self.deferred_chains.clone();
        let command = JournalCommand::ReadUnsent { after, before, room, except, answer };
        let frames = self.query_journal(command, waiting).await.unwrap_or_default();
        let mut at = None;
        for frame in frames {
            let id = frame.id;
            let key = (frame.chain, frame.number);
            if self.in_flight.contains_key(&key) || self.deferred_frames.contains(&key) {
                at = Some(id);
                continue;
            }
            if !self.publish(TopicKind::BacklogFrame, frame) {
                break;
            }
            at = Some(id);
        }
        at
    }

    /// Sends receipts that the cloud has not confirmed.
    async fn send_receipts(&self) {
        let (answer, waiting) = oneshot::channel();
        let command = JournalCommand::ReadReceipts { limit: RECEIPTS_AT_ONCE, answer };
        for (origin, receipt) in self.query_journal(command, waiting).await.unwrap_or_default() {
            let options = PublishOptions::new(QoS::AtLeastOnce);
            let topic = TopicKind::Receipt.topic(&origin);
            let _ = self.client.try_publish(topic, receipt, options);
        }
    }

    /// Sends a request to the thread that owns the journal. Returns `None` if its queue is full or
    /// closed, or if it does not answer.
    async fn query_journal<T>(
        &self,
        command: JournalCommand,
        answer: oneshot::Receiver<T>,
    ) -> Option<T> {
        self.commands.try_send(command).ok()?;
        answer.await.ok()
    }
}
