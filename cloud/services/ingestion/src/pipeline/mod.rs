//! From receipt to commit. Machines are spread over writers; a writer takes all waiting messages,
//! verifies them, commits them in one transaction and acknowledges them. While one batch is written
//! the next one collects: batches grow with the load and no timer adds to the latency.
//!
//! Live frames are processed before backlog. A full queue makes the sender wait.
//!
//! The path of a batch: [`writer`] collects it, [`verification`] checks its signatures, [`commit`]
//! stores it, [`replies`] acknowledges it. A [`slot`] holds one message on this path.

mod commit;
mod name_conflicts;
mod refusal_log;
mod replies;
mod retry;
mod slot;
mod verification;
mod writer;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use contract::envelope::PayloadKind;
use contract::{Ack, Origin};
use service::clock::Clock;
use service::tasks::Tasks;
use tokio::sync::{Notify, mpsc, oneshot};

use self::commit::Committer;
use self::name_conflicts::NameConflicts;
use self::refusal_log::RefusalLog;
use self::replies::Replies;
use self::verification::Verifier;
use self::writer::Writer;
use crate::IngestionConfig;
use crate::clock_correction::ClockCorrection;
use crate::keys::KeyCache;
use crate::store::IngestStore;
use crate::warning_log::WarningLog;

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

/// Where the acknowledgement of a message goes.
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
pub type Acks = mpsc::Receiver<(Origin, Ack)>;

/// The entry to the pipeline. Clones share the queues.
#[derive(Clone)]
pub struct Pipeline {
    writers: Arc<Vec<Lanes>>,
    receipt_stored: Arc<Notify>,
}

/// The queues of one writer.
struct Lanes {
    live: mpsc::Sender<QueuedMessage>,
    backlog: mpsc::Sender<QueuedMessage>,
}

impl Pipeline {
    /// Starts the writers; returns the entry to them and the acknowledgements for devices. They end
    /// when the last clone of the pipeline is dropped and all queued messages have been written.
    /// `wake` is notified after each commit.
    pub fn start(
        config: &IngestionConfig,
        store: &IngestStore,
        clock: &Clock,
        (wake, dating): (&Arc<Notify>, &ClockCorrection),
        tasks: &Tasks,
    ) -> (Self, Acks) {
        let (ack_sender, acks) = mpsc::channel(config.queue);
        let receipt_stored = Arc::new(Notify::new());
        let keys = Arc::new(KeyCache::default());
        let conflicts = Arc::new(NameConflicts::default());
        let mut writers = Vec::with_capacity(config.writers);
        let queue = config.queue.checked_div(config.writers).unwrap_or(config.queue);
        for _ in 0..config.writers {
            let (live, live_receiver) = mpsc::channel(queue);
            let (backlog, backlog_receiver) = mpsc::channel(queue);
            let writer = Writer {
                verifier: Verifier {
                    store: store.clone(),
                    keys: keys.clone(),
                    clock: clock.clone(),
                    accept_unsigned: config.accept_unsigned,
                    refusals: RefusalLog::default(),
                    warnings: WarningLog::default(),
                },
                committer: Committer {
                    store: store.clone(),
                    clock: clock.clone(),
                    wake: wake.clone(),
                    dating: dating.clone(),
                    conflicts: conflicts.clone(),
                    receipt_stored: receipt_stored.clone(),
                },
                replies: Replies { acks: ack_sender.clone() },
            };
            // The queues outlive a run. The batch of a run that panics is not acknowledged, and is
            // sent again.
            let parts = (writer, live_receiver, backlog_receiver);
            tasks.spawn_restarting_with("writer", parts, |(writer, live, backlog)| {
                Box::pin(writer.run(live, backlog))
            });
            writers.push(Lanes { live, backlog });
        }
        (Self { writers: Arc::new(writers), receipt_stored }, acks)
    }

    /// Returns the notifier that fires when a receipt was stored.
    pub(crate) fn receipt_stored(&self) -> Arc<Notify> {
        self.receipt_stored.clone()
    }

    /// Queues a message; waits while the queue is full. Returns `false` when ingestion is stopping.
    pub async fn send(&self, lane: Lane, origin: Origin, message: Message, reply: Reply) -> bool {
        // One machine, one writer: its frames keep their order.
        let mut hasher = DefaultHasher::new();
        origin.hash(&mut hasher);
        let count = self.writers.len() as u64;
        let index =
            hasher.finish().checked_rem(count).and_then(|index| usize::try_from(index).ok());
        let lanes = &self.writers[index.unwrap_or(0)];
        let queue = match lane {
            Lane::Live => &lanes.live,
            Lane::Backlog => &lanes.backlog,
        };
        queue.send(QueuedMessage { origin, message, reply }).await.is_ok()
    }
}
