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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use contract::{Ack, FrameRange};
    use service::clock::Clock;
    use service::metrics::Metrics;
    use service_testbed::NOW;
    use tokio::sync::oneshot;

    use super::super::Reply;
    use super::super::refusal_log::RefusalLog;
    use super::*;
    use crate::clock_correction::ClockCorrection;
    use crate::store::IngestStore;
    use crate::test_gateway::{Gateway, frame, origin};
    use crate::warning_log::WarningLog;

    /// What is logged while a test runs.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn writer(store: &IngestStore, verifier_clock: Clock) -> Writer {
        let (acks, _) = mpsc::channel(1);
        let verifier = Verifier {
            store: store.clone(),
            keys: Arc::default(),
            clock: verifier_clock,
            accept_unsigned: false,
            refusals: RefusalLog::default(),
            warnings: WarningLog::default(),
        };
        let committer = Committer {
            store: store.clone(),
            clock: Arc::new(|| NOW),
            wake: Arc::default(),
            dating: ClockCorrection::default(),
            conflicts: Arc::default(),
            receipt_stored: Arc::default(),
        };
        Writer { verifier, committer, replies: Replies { acks } }
    }

    /// Returns the batch of the gateway's first three frames, and where their acknowledgements come.
    fn batch(gateway: &Gateway) -> (Vec<QueuedMessage>, Vec<oneshot::Receiver<Ack>>) {
        let mut previous = None;
        let queued = (1..=3).map(|number| {
            let sent = frame(1, number, previous, NOW);
            previous = Some(trust::sha256_digest(&sent.encode()));
            let (reply, answer) = oneshot::channel();
            let message = Message::Frame(gateway.signed(&sent));
            (QueuedMessage { origin: origin(), message, reply: Reply::Request(reply) }, answer)
        });
        queued.unzip()
    }

    /// The clock is read once a verification: it panics with the batch, and then with the second
    /// message alone.
    #[tokio::test]
    async fn a_message_whose_verification_panics_is_dropped_alone_counted_and_logged() {
        let (_folder, database) = service_testbed::open_sqlite().await;
        let gateway = Gateway::register(&database).await;
        let reads = AtomicU32::new(0);
        let clock: Clock = Arc::new(move || {
            let read = reads.fetch_add(1, Ordering::Relaxed);
            assert!(!matches!(read, 0 | 2), "verification {read}");
            NOW
        });
        let writer = writer(&IngestStore::new(database), clock);
        let (batch, answers) = batch(&gateway);

        let _ = Metrics::install(); // fails if another test has installed the recorder
        let (counted, log) = (Metrics::separate().unwrap(), Log::default());
        let written = log.clone();
        let logging = tracing_subscriber::fmt().json().with_writer(move || written.clone());
        let guard = tracing::subscriber::set_default(logging.finish());
        counted.clone().scope(writer.process(batch)).await;
        drop(guard);

        let mut acks = Vec::new();
        for answer in answers {
            acks.push(answer.await.ok());
        }
        let [Some(first), None, Some(third)] = acks.as_slice() else { panic!("{acks:?}") };
        for (ack, number) in [(first, 1), (third, 3)] {
            assert_eq!(ack.acked, [FrameRange { first: number, last: number }]);
            assert!(ack.refused.is_empty());
        }
        assert_eq!(third.need, [FrameRange { first: 2, last: 2 }], "it is sent again");
        let shown = counted.render();
        assert!(shown.contains("simcorp_task_panics_total{task=\"verify\"} 2"), "{shown}");
        let text = log.text();
        let dropped: Vec<&str> =
            text.lines().filter(|line| line.contains("dropped a message")).collect();
        let [line] = dropped.as_slice() else { panic!("{text}") };
        for part in ["ERROR", "acme/leipzig/r-1", "verify panicked: verification 2"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
