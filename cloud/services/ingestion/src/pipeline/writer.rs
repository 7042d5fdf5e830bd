//! A writer: takes all waiting messages of its machines as one batch, and processes one batch after
//! the other.

use contract::Origin;
use service::tasks;
use tokio::sync::mpsc;

use super::commit::Committer;
use super::replies::Replies;
use super::slot::{SignedContent, Slot, SlotState};
use super::verification::Verifier;
use super::{Message, QueuedMessage};
use crate::metric;

/// The maximum number of messages in a transaction.
const BATCH_MAX: usize = 512;
/// The bytes at which a batch is full: large frames make small batches.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) struct Writer {
    pub(super) verifier: Verifier,
    pub(super) committer: Committer,
    pub(super) replies: Replies,
}

impl Writer {
    /// Processes messages until both queues are closed and empty.
    pub(super) async fn run(
        &self,
        live: &mut mpsc::Receiver<QueuedMessage>,
        backlog: &mut mpsc::Receiver<QueuedMessage>,
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
                bytes = bytes.saturating_add(next.message.len());
                batch.push(next);
            }
            metric::queued("live", live.len());
            metric::queued("backlog", backlog.len());
            self.process(batch).await;
        }
    }

    /// Verifies, commits and acknowledges one batch; retries until the database accepts it.
    async fn process(&self, batch: Vec<QueuedMessage>) {
        let mut slots: Vec<Slot> = Vec::with_capacity(batch.len());
        for QueuedMessage { origin, message, reply } in batch {
            let parsed = tasks::isolate("parse", self.parse(&origin, message)).await;
            let state = parsed.unwrap_or_else(|panicked| {
                tracing::error!(%origin, error = %panicked, "dropped a message");
                SlotState::Done(None)
            });
            let mut slot = Slot { origin, reply, state };
            if matches!(slot.state, SlotState::VerifiedFrame(_)) {
                // A message of upstream Sim-Corp. They are committed one by one: each must see the
                // session that the one before it opened.
                self.committer.commit(std::slice::from_mut(&mut slot)).await;
            }
            slots.push(slot);
        }
        self.verify(&mut slots).await;
        self.committer.commit(&mut slots).await;
        self.committer.store_receipts(&mut slots).await;
        self.replies.send(slots);
    }

    /// Verifies the messages of a batch; one that panics is dropped alone, so that those that came
    /// with it are not sent with it again and again.
    async fn verify(&self, slots: &mut [Slot]) {
        let Err(panicked) = tasks::isolate("verify", self.verifier.verify(slots)).await else {
            return;
        };
        tracing::error!(error = %panicked, "verifying the messages of a batch one by one");
        for slot in slots {
            let alone = self.verifier.verify(std::slice::from_mut(slot));
            if let Err(panicked) = tasks::isolate("verify", alone).await {
                tracing::error!(origin = %slot.origin, error = %panicked, "dropped a message");
                slot.state = SlotState::Done(None);
            }
        }
    }

    /// Reads a message; a signed one is not verified yet.
    async fn parse(&self, origin: &Origin, message: Message) -> SlotState {
        match message {
            Message::Frame(bytes) => self.verifier.parse(origin, SignedContent::Frame, bytes),
            Message::Receipt(bytes) => self.verifier.parse(origin, SignedContent::Receipt, bytes),
            Message::Legacy(kind, bytes) => self.verifier.read_legacy(origin, kind, &bytes).await,
        }
    }
}
