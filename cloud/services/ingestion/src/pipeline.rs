//! From receipt to commit. Machines are spread over writers; a writer takes all waiting messages,
//! verifies them, commits them in one transaction and acknowledges them. While one batch is written
//! the next one collects: batches grow with the load and no timer adds to the latency.
//!
//! Live frames are processed before backlog. A full queue makes the sender wait.

mod retry;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use ::database::StoreError;
use contract::envelope::PayloadKind;
use contract::{Ack, ChainId, EpochMs, Origin, ReceiptVerdict, Refusal, RejectedFrame};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::clock_correction::ClockCorrection;
use crate::keys::KeyCache;
use crate::store::{ChainNo, Committed, IngestStore, Outcome};
use crate::verified_frame::{Numbering, TrustedKey, VerifiedFrame};
use crate::verify::UnverifiedMessage;
use crate::{IngestionConfig, legacy, metric};
use service::clock::Clock;

/// The maximum number of messages in a transaction.
const BATCH_MAX: usize = 512;
/// The bytes at which a batch is full: large frames make small batches.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A received message.
#[derive(Debug)]
pub enum Message {
    Frame(Vec<u8>),
    Receipt(Vec<u8>),
    /// A JSON message of upstream Sim-Corp.
    Legacy(PayloadKind, Vec<u8>),
}

impl Message {
    const fn len(&self) -> usize {
        match self {
            Self::Frame(bytes) | Self::Receipt(bytes) | Self::Legacy(_, bytes) => bytes.len(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Live,
    Backlog,
}

/// Where the answer goes.
#[derive(Debug)]
pub enum Reply {
    /// Published to the device.
    Bus,
    /// To the request that waits.
    Request(oneshot::Sender<Ack>),
}

#[derive(Debug)]
struct QueuedMessage {
    origin: Origin,
    message: Message,
    reply: Reply,
}

/// The acknowledgements for devices; the bus publishes them.
pub type AckReceiver = mpsc::Receiver<(Origin, Ack)>;

/// The entry to the pipeline. Clones share the queues.
#[derive(Clone)]
pub struct Pipeline {
    writers: Arc<Vec<Lanes>>,
    answers: Arc<std::sync::Mutex<Option<AckReceiver>>>,
    receipts: Arc<Notify>,
}

struct Lanes {
    live: mpsc::Sender<QueuedMessage>,
    backlog: mpsc::Sender<QueuedMessage>,
}

impl Pipeline {
    /// Starts the writers. They end when the last clone of the pipeline is dropped and all queued
    /// messages have been written.
    pub fn start(
        config: &IngestionConfig,
        store: &IngestStore,
        clock: &Clock,
        (wake, dating): (&Arc<Notify>, &ClockCorrection),
        tracker: &TaskTracker,
    ) -> Self {
        let (answer, answers) = mpsc::channel(config.queue);
        let receipts = Arc::new(Notify::new());
        let keys = Arc::new(KeyCache::default());
        let mut writers = Vec::with_capacity(config.writers);
        for _ in 0..config.writers {
            let (live, live_in) = mpsc::channel(config.queue / config.writers);
            let (backlog, backlog_in) = mpsc::channel(config.queue / config.writers);
            let writer = Writer {
                store: store.clone(),
                keys: keys.clone(),
                clock: clock.clone(),
                acks: answer.clone(),
                wake: wake.clone(),
                dating: dating.clone(),
                receipts: receipts.clone(),
                accept_unsigned: config.accept_unsigned,
                logged: LogOnce::default(),
            };
            tracker.spawn(writer.run(live_in, backlog_in));
            writers.push(Lanes { live, backlog });
        }
        let answers = Arc::new(std::sync::Mutex::new(Some(answers)));
        Self { writers: Arc::new(writers), answers, receipts }
    }

    /// Returns the acknowledgements for devices to the first caller; `None` after that.
    pub(crate) fn take_acks(&self) -> Option<AckReceiver> {
        self.answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// Returns the notifier that fires when a receipt was stored.
    pub(crate) fn receipt_stored(&self) -> Arc<Notify> {
        self.receipts.clone()
    }

    /// Queues a message; waits while the queue is full. Returns `false` when ingestion is stopping.
    pub async fn send(&self, lane: Lane, origin: Origin, message: Message, reply: Reply) -> bool {
        // One machine, one writer: its frames keep their order.
        let mut hasher = DefaultHasher::new();
        origin.hash(&mut hasher);
        let count = self.writers.len() as u64;
        let index = usize::try_from(hasher.finish() % count).unwrap_or(0);
        let lanes = &self.writers[index];
        let queue = match lane {
            Lane::Live => &lanes.live,
            Lane::Backlog => &lanes.backlog,
        };
        queue.send(QueuedMessage { origin, message, reply }).await.is_ok()
    }
}

/// A refusal is logged once a machine and reason, then counted: a broken device must not fill the
/// log.
#[derive(Default)]
struct LogOnce(std::collections::HashSet<(Origin, Refusal)>);

impl LogOnce {
    const KEPT_MAX: usize = 10_000;

    fn refused(&mut self, origin: &Origin, refusal: Refusal, frame: Option<u64>) {
        metric::refused(refusal);
        if self.0.len() >= Self::KEPT_MAX {
            self.0.clear();
        }
        if self.0.insert((origin.clone(), refusal)) {
            tracing::warn!(
                %origin, frame, reason = refusal.as_str(),
                "refused a frame: {refusal}; further ones of this kind are only counted"
            );
        }
    }
}

struct Writer {
    store: IngestStore,
    keys: Arc<KeyCache>,
    clock: Clock,
    acks: mpsc::Sender<(Origin, Ack)>,
    wake: Arc<Notify>,
    dating: ClockCorrection,
    receipts: Arc<Notify>,
    accept_unsigned: bool,
    logged: LogOnce,
}

/// Refuses a frame that the database cannot hold: the edge keeps it, and an error is logged.
fn reject_unstorable(frame: &VerifiedFrame, error: &StoreError) -> (Vec<ChainNo>, Committed) {
    tracing::error!(
        origin = %frame.frame.origin, chain = %frame.frame.chain, frame = frame.frame.number, %error,
        "the database cannot hold this frame; it stays at the edge"
    );
    let outcomes = vec![Outcome::Refused(Refusal::Malformed)];
    (vec![ChainNo::NONE], Committed { outcomes, ..Committed::default() })
}

/// A message and its acknowledgement so far.
struct PendingAck {
    origin: Origin,
    ack: Option<Ack>,
    reply: Reply,
}

impl Writer {
    async fn run(
        mut self,
        mut live: mpsc::Receiver<QueuedMessage>,
        mut backlog: mpsc::Receiver<QueuedMessage>,
    ) {
        loop {
            let first = tokio::select! {
                biased;
                Some(message) = live.recv() => message,
                Some(message) = backlog.recv() => message,
                else => break,
            };
            let mut bytes = first.message.len();
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
                let Ok(next) = live.try_recv().or_else(|_| backlog.try_recv()) else { break };
                bytes += next.message.len();
                batch.push(next);
            }
            metric::queued("live", live.len());
            metric::queued("backlog", backlog.len());
            self.process(batch).await;
        }
    }

    /// Verifies, commits and acknowledges one batch; retries until the database accepts it.
    async fn process(&mut self, batch: Vec<QueuedMessage>) {
        let mut answering: Vec<PendingAck> = Vec::with_capacity(batch.len());
        let mut claims: Vec<(usize, UnverifiedMessage, bool)> = Vec::with_capacity(batch.len());
        let mut frames: Vec<(usize, VerifiedFrame)> = Vec::with_capacity(batch.len());
        for (i, QueuedMessage { origin, message, reply }) in batch.into_iter().enumerate() {
            match message {
                Message::Frame(bytes) | Message::Receipt(bytes) if bytes.is_empty() => {
                    self.logged.refused(&origin, Refusal::Malformed, None);
                }
                Message::Frame(bytes) => match UnverifiedMessage::parse(origin.clone(), bytes) {
                    Ok(claim) => claims.push((i, claim, false)),
                    Err(refusal) => self.logged.refused(&origin, refusal, None),
                },
                Message::Receipt(bytes) => match UnverifiedMessage::parse(origin.clone(), bytes) {
                    Ok(claim) => claims.push((i, claim, true)),
                    Err(refusal) => self.logged.refused(&origin, refusal, None),
                },
                Message::Legacy(expect, bytes) => {
                    // One by one: each must see the roast that the one before it opened.
                    if let Some(frame) = self.read_legacy(&origin, expect, &bytes).await {
                        let mut one = [PendingAck { origin, ack: None, reply }];
                        self.commit(vec![(0, frame)], &mut one).await;
                        answering.extend(one);
                        continue;
                    }
                }
            }
            answering.push(PendingAck { origin, ack: None, reply });
        }
        let receipts = self.verify_batch(claims, &mut frames, &mut answering).await;
        self.commit(frames, &mut answering).await;
        for (i, receipt, signed) in receipts {
            let origin = answering[i].origin.clone();
            if self.store_receipt_with_retry(&origin, &receipt, &signed).await {
                // The first verdict was lost on the way: send it again.
                let mut ack = Ack::new(receipt.chain);
                let session_id = receipt.session.clone();
                ack.receipts.push(ReceiptVerdict {
                    session_id,
                    complete: true,
                    digest_differs: false,
                });
                answering[i].ack = Some(ack);
            }
        }
        self.reply(answering);
    }

    async fn read_legacy(
        &mut self,
        origin: &Origin,
        expect: PayloadKind,
        bytes: &[u8],
    ) -> Option<VerifiedFrame> {
        let mut wait = retry::backoff();
        loop {
            let (store, keys, now) = (&self.store, &self.keys, (self.clock)());
            let unsigned = self.accept_unsigned;
            match legacy::read(store, keys, origin, expect, bytes, unsigned, now).await {
                Ok(frame) => return Some(frame),
                // Upstream publishers never resend: the message waits here for the database.
                Err(legacy::LegacyError::Store(error)) => {
                    self.store.clear_number_cache();
                    retry::wait_for_database(&mut wait, &error).await;
                }
                Err(legacy::LegacyError::Refused(refusal)) => {
                    self.logged.refused(origin, refusal, None);
                    return None;
                }
                Err(error) => {
                    metric::invalid("envelope");
                    tracing::debug!(%origin, %error, "dropped a message");
                    return None;
                }
            }
        }
    }

    /// Looks up the keys and checks all signatures of the batch together.
    async fn verify_batch(
        &mut self,
        claims: Vec<(usize, UnverifiedMessage, bool)>,
        frames: &mut Vec<(usize, VerifiedFrame)>,
        answering: &mut [PendingAck],
    ) -> Vec<(usize, contract::Receipt, Vec<u8>)> {
        let received = (self.clock)();
        let mut keys: Vec<Option<Arc<TrustedKey>>> = Vec::with_capacity(claims.len());
        for (_, claim, _) in &claims {
            keys.push(self.find_key(claim).await);
        }
        let questions: Vec<_> = claims
            .iter()
            .zip(&keys)
            .filter_map(|((_, claim, _), key)| Some((&claim.signed, &key.as_ref()?.public)))
            .collect();
        // One core a writer: the writers are the parallelism.
        let mut verdicts = trust::verify_many(&questions, 1).into_iter();
        let mut receipts = Vec::new();
        for ((i, claim, is_receipt), mut key) in claims.into_iter().zip(keys) {
            let verdict = match &key {
                Some(known) => {
                    let verdict = verdicts.next().unwrap_or(Err(trust::CoseError::Signature));
                    let verdict = known.or_previous_keys(&claim.signed, verdict, received);
                    if verdict.is_err() {
                        let again;
                        (key, again) = self.verify_with_refreshed_key(&claim, received).await;
                        again
                    } else {
                        verdict
                    }
                }
                None => Err(trust::CoseError::Signature),
            };
            let origin = answering[i].origin.clone();
            if is_receipt {
                match claim.into_receipt(key.as_deref(), verdict) {
                    Ok((receipt, signed)) => receipts.push((i, receipt, signed)),
                    Err(refusal) => self.logged.refused(&origin, refusal, None),
                }
                continue;
            }
            match claim.into_frame(key.as_deref(), verdict, received) {
                Ok(frame) => frames.push((i, frame)),
                Err(refused) => {
                    let (claim, refusal) = *refused;
                    let claimed = claim.claimed_frame();
                    self.logged.refused(&origin, refusal, claimed.as_ref().map(|f| f.number));
                    // The refusal goes to the device that the frame claims: it reveals nothing that
                    // the sender did not know, and an honest agent needs it.
                    if let Some(frame) = claimed {
                        answering[i].ack = Some(refusal_of(frame.chain, frame.number, refusal));
                    }
                }
            }
        }
        receipts
    }

    async fn find_key(&self, claim: &UnverifiedMessage) -> Option<Arc<TrustedKey>> {
        let mut wait = retry::backoff();
        loop {
            match self.keys.find(&self.store, &claim.origin.org, claim.signed.key_id()).await {
                Ok(key) => return key,
                Err(error) => retry::wait_for_database(&mut wait, &error).await,
            }
        }
    }

    /// Verifies with the key as the registry has it now. While the database is unavailable the
    /// first verdict stands: the frame is refused; the edge keeps it and resends it.
    async fn verify_with_refreshed_key(
        &self,
        claim: &UnverifiedMessage,
        now: EpochMs,
    ) -> (Option<Arc<TrustedKey>>, Result<(), trust::CoseError>) {
        let (org, kid) = (&claim.origin.org, claim.signed.key_id());
        let Ok(Some(key)) = self.keys.refresh(&self.store, org, kid).await else {
            return (None, Err(trust::CoseError::Signature));
        };
        let verdict = claim.signed.verify(&key.public);
        let verdict = key.or_previous_keys(&claim.signed, verdict, now);
        (Some(key), verdict)
    }

    async fn commit(&self, frames: Vec<(usize, VerifiedFrame)>, answering: &mut [PendingAck]) {
        if frames.is_empty() {
            return;
        }
        let (places, frames): (Vec<usize>, Vec<VerifiedFrame>) = frames.into_iter().unzip();
        let (named, committed) = self.commit_with_retry(&frames).await;
        self.wake.notify_one();
        for (((place, no), verified), outcome) in
            places.into_iter().zip(&named).zip(&frames).zip(&committed.outcomes)
        {
            let frame = &verified.frame;
            tracing::debug!(
                origin = %frame.origin, chain = %frame.chain, frame = frame.number, ?outcome,
                "committed"
            );
            if *outcome == Outcome::Stored && verified.numbering == Numbering::Edge {
                self.dating.note(no.chain, frame);
            }
            let ack = match outcome {
                Outcome::Stored | Outcome::Duplicate => {
                    let mut ack = Ack::new(frame.chain);
                    ack.push_acked(frame.number);
                    ack.need = committed.gaps.get(&no.chain).cloned().unwrap_or_default();
                    ack.need.truncate(16);
                    ack
                }
                Outcome::Refused(refusal) => {
                    metric::refused(*refusal);
                    tracing::warn!(
                        origin = %frame.origin, chain = %frame.chain, frame = frame.number,
                        reason = refusal.as_str(), "refused a frame: {refusal}"
                    );
                    refusal_of(frame.chain, frame.number, *refusal)
                }
                Outcome::Deferred => continue,
            };
            answering[place].ack = Some(ack);
        }
    }

    /// Retries until the database accepts the batch; a frame that it can never store is refused
    /// alone.
    async fn commit_with_retry(&self, frames: &[VerifiedFrame]) -> (Vec<ChainNo>, Committed) {
        let mut wait = retry::backoff();
        loop {
            let start = Instant::now();
            match self.try_commit(frames).await {
                Ok((named, committed)) => {
                    count(frames, &committed, start.elapsed());
                    return (named, committed);
                }
                Err(error) if error.is_about_data() => match frames {
                    [poison] => return reject_unstorable(poison, &error),
                    _ => return self.commit_one_by_one(frames).await,
                },
                Err(error) => {
                    metric::retried();
                    self.store.clear_number_cache();
                    retry::wait_for_database(&mut wait, &error).await;
                }
            }
        }
    }

    /// One frame that the database cannot hold must not stop those beside it.
    async fn commit_one_by_one(&self, frames: &[VerifiedFrame]) -> (Vec<ChainNo>, Committed) {
        let mut all = (Vec::with_capacity(frames.len()), Committed::default());
        for frame in frames {
            let one = std::slice::from_ref(frame);
            let (named, committed) = Box::pin(self.commit_with_retry(one)).await;
            all.0.extend(named);
            all.1.outcomes.extend(committed.outcomes);
            all.1.gaps.extend(committed.gaps);
        }
        all
    }

    fn try_commit<'a>(
        &'a self,
        frames: &'a [VerifiedFrame],
    ) -> BoxFuture<'a, Result<(Vec<ChainNo>, Committed), StoreError>> {
        Box::pin(async move {
            let now = (self.clock)();
            let mut named = Vec::with_capacity(frames.len());
            for verified in frames {
                let frame = &verified.frame;
                let no =
                    self.store.chain_no(&frame.origin, frame.chain, &verified.kid, now).await?;
                named.push(no);
            }
            let committed = self.store.commit(&named, frames, now).await?;
            Ok((named, committed))
        })
    }

    /// Stores a receipt; returns whether the session was already found complete.
    async fn store_receipt_with_retry(
        &self,
        origin: &Origin,
        receipt: &contract::Receipt,
        signed: &[u8],
    ) -> bool {
        let mut wait = retry::backoff();
        let now = (self.clock)();
        let complete = loop {
            match self.try_store_receipt(receipt, signed, now).await {
                Ok(complete) => break complete,
                Err(error) => {
                    self.store.clear_number_cache();
                    retry::wait_for_database(&mut wait, &error).await;
                }
            }
        };
        if !complete {
            let samples = receipt.sample_count();
            tracing::info!(%origin, session = %receipt.session, samples, "stored a receipt");
            self.receipts.notify_one();
        }
        complete
    }

    /// Boxed, as the compiler cannot see that a borrowed query may move between threads.
    fn try_store_receipt<'a>(
        &'a self,
        receipt: &'a contract::Receipt,
        signed: &'a [u8],
        now: EpochMs,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            // The signature was verified: whoever signs the receipt signs the chain.
            let kid = trust::SignedMessage::parse(signed).map(|signed| signed.key_id().to_string());
            let kid = kid.unwrap_or_default();
            let no = self.store.chain_no(&receipt.origin, receipt.chain, &kid, now).await?;
            self.store.store_receipt(no, receipt, signed).await
        })
    }

    /// Sends the acknowledgements: to the bus one message for each chain of the batch, to each HTTP
    /// request its own.
    fn reply(&self, answering: Vec<PendingAck>) {
        let mut for_bus: Vec<(Origin, Ack)> = Vec::new();
        for PendingAck { origin, ack, reply } in answering {
            let Some(ack) = ack else { continue };
            match reply {
                Reply::Request(waiting) => {
                    // A client that has gone away needs no answer.
                    let _ = waiting.send(ack);
                }
                Reply::Bus if ack.chain == legacy::CHAIN => {}
                Reply::Bus => {
                    let same =
                        for_bus.iter_mut().find(|(o, a)| *o == origin && a.chain == ack.chain);
                    match same {
                        Some((_, joined)) => join(joined, ack),
                        None => for_bus.push((origin, ack)),
                    }
                }
            }
        }
        for answer in for_bus {
            // Without a bus there is no receiver for acknowledgements; the edge resends later.
            if self.acks.try_send(answer).is_err() {
                metrics::counter!("simcorp_ingest_acks_dropped_total").increment(1);
            }
        }
    }
}

fn join(joined: &mut Ack, ack: Ack) {
    for range in ack.acked {
        (range.first..=range.last).for_each(|frame| joined.push_acked(frame));
    }
    joined.refused.extend(ack.refused);
    if !ack.need.is_empty() {
        joined.need = ack.need;
    }
}

fn refusal_of(chain: ChainId, frame: u64, reason: Refusal) -> Ack {
    let mut ack = Ack::new(chain);
    ack.refused.push(RejectedFrame { frame, reason });
    ack
}

fn count(frames: &[VerifiedFrame], committed: &Committed, took: Duration) {
    let (mut verified, mut unsigned, mut duplicates, mut stored) = (0, 0, 0, 0);
    for (frame, outcome) in frames.iter().zip(&committed.outcomes) {
        match (outcome, frame.kid.is_empty()) {
            (Outcome::Stored, false) => {
                stored += 1;
                verified += frame.frame.sample_count() as u64;
            }
            (Outcome::Stored, true) => unsigned += frame.frame.sample_count() as u64,
            (Outcome::Duplicate, _) => duplicates += 1,
            _ => {}
        }
    }
    metric::committed(verified, stored, took.as_secs_f64());
    metric::unsigned(unsigned);
    metric::duplicates(duplicates);
}
