//! Commits the verified frames and receipts of a batch, and writes into their slots what is
//! acknowledged. Retries until the database accepts them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ::database::StoreError;
use contract::{Ack, EpochMs, FrameRange, Origin, Receipt, ReceiptVerdict, Refusal};
use futures_util::future::BoxFuture;
use service::clock::Clock;
use service::tasks;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::name_conflicts::NameConflicts;
use super::retry;
use super::slot::{Slot, SlotState, VerifiedReceipt, refusal_ack};
use crate::clock_correction::ClockCorrection;
use crate::metric;
use crate::store::{ChainNo, IngestStore, Outcome};
use crate::verified_frame::{Numbering, VerifiedFrame};

/// The maximum number of ranges of missing frames in an acknowledgement.
const NEEDED_RANGES_MAX: usize = 16;

pub(super) struct Committer {
    pub(super) store: IngestStore,
    pub(super) clock: Clock,
    /// Notified after each commit of frames.
    pub(super) wake: Arc<Notify>,
    pub(super) dating: ClockCorrection,
    pub(super) conflicts: Arc<NameConflicts>,
    /// Notified after a receipt was stored.
    pub(super) receipt_stored: Arc<Notify>,
}

/// The result of a committed batch.
#[derive(Default)]
struct CommittedBatch {
    /// The chain and the outcome of each frame, in the order of the frames.
    frames: Vec<(ChainNo, Outcome)>,
    /// The frames that each chain of the batch still lacks.
    gaps: HashMap<i64, Vec<FrameRange>>,
}

impl Committer {
    /// Commits the verified frames of a batch in one transaction.
    pub(super) async fn commit(&self, slots: &mut [Slot]) {
        let verified = slots.iter_mut().filter_map(|slot| Some((slot.take_frame()?, slot)));
        let (frames, slots): (Vec<VerifiedFrame>, Vec<&mut Slot>) = verified.unzip();
        if frames.is_empty() {
            return;
        }
        let committed = self.commit_with_retry(&frames).await;
        self.wake.notify_one();
        for ((slot, verified), (no, outcome)) in
            slots.into_iter().zip(&frames).zip(committed.frames)
        {
            let frame = &verified.frame;
            tracing::debug!(
                origin = %frame.origin, chain = %frame.chain, frame = frame.number, ?outcome,
                "committed"
            );
            if self.conflicts.note(verified, outcome) {
                self.report_conflict(verified).await;
            }
            let gaps = committed.gaps.get(&no.chain).map(Vec::as_slice).unwrap_or_default();
            let acknowledged = tasks::catch("acknowledge", || {
                if outcome == Outcome::Stored && verified.numbering == Numbering::Edge {
                    self.dating.note(no.chain, verified);
                }
                ack_of(verified, outcome, gaps)
            });
            slot.state = SlotState::Done(acknowledged.unwrap_or_else(|panicked| {
                tracing::error!(origin = %frame.origin, error = %panicked, "a frame is not acknowledged");
                None
            }));
        }
    }

    /// Reports that two agents send under the name of a frame's device.
    async fn report_conflict(&self, verified: &VerifiedFrame) {
        let (origin, kid) = (&verified.frame.origin, verified.kid.as_str());
        metric::name_conflict();
        tracing::warn!(
            %origin, kid,
            "two agents send under one device name and key: was the card copied? Stop one of them, \
             and enrol it under a name of its own"
        );
        if let Err(error) =
            self.store.record_name_conflict(&origin.org, kid, verified.received).await
        {
            tracing::debug!(%error, "could not store a name conflict; the next one is tried again");
        }
    }

    /// Stores the verified receipts of a batch.
    pub(super) async fn store_receipts(&self, slots: &mut [Slot]) {
        for slot in slots {
            let Some(verified) = slot.take_receipt() else { continue };
            let stored = self.store_receipt_with_retry(&slot.origin, &verified);
            let complete =
                tasks::isolate("store-receipt", stored).await.unwrap_or_else(|panicked| {
                    tracing::error!(origin = %slot.origin, error = %panicked, "dropped a receipt");
                    false
                });
            if complete {
                // The first verdict was lost on the way: send it again.
                let VerifiedReceipt { receipt, .. } = verified;
                let mut ack = Ack::new(receipt.chain);
                ack.receipts.push(ReceiptVerdict {
                    session_id: receipt.session,
                    complete: true,
                    digest_differs: false,
                });
                slot.state = SlotState::Done(Some(ack));
            }
        }
    }

    /// Retries until the database accepts the batch; a frame that it can never store is refused
    /// alone.
    async fn commit_with_retry(&self, frames: &[VerifiedFrame]) -> CommittedBatch {
        let mut wait = retry::backoff();
        loop {
            let start = Instant::now();
            let problem = match tasks::isolate("commit", self.try_commit(frames)).await {
                Ok(Ok(committed)) => {
                    count(frames, &committed, start.elapsed());
                    return committed;
                }
                Ok(Err(error)) if !error.is_about_data() => {
                    metric::retried();
                    self.store.clear_number_cache();
                    retry::wait_for_database(&mut wait, &error).await;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                // A panic counts as a fault of the data: the frame that causes it is refused.
                Err(panicked) => panicked.to_string(),
            };
            self.store.clear_number_cache();
            return match frames {
                [poison] => reject_unstorable(poison, &problem),
                _ => self.commit_one_by_one(frames).await,
            };
        }
    }

    /// Commits each frame alone, so that a frame that the database cannot hold does not stop the
    /// others.
    async fn commit_one_by_one(&self, frames: &[VerifiedFrame]) -> CommittedBatch {
        let mut all = CommittedBatch::default();
        for frame in frames {
            let one = std::slice::from_ref(frame);
            let committed = Box::pin(self.commit_with_retry(one)).await;
            all.frames.extend(committed.frames);
            all.gaps.extend(committed.gaps);
        }
        all
    }

    fn try_commit<'a>(
        &'a self,
        frames: &'a [VerifiedFrame],
    ) -> BoxFuture<'a, Result<CommittedBatch, StoreError>> {
        Box::pin(async move {
            let now = (self.clock)();
            let mut chains = Vec::with_capacity(frames.len());
            for verified in frames {
                let frame = &verified.frame;
                let no =
                    self.store.chain_no(&frame.origin, frame.chain, &verified.kid, now).await?;
                chains.push(no);
            }
            let committed = self.store.commit(&chains, frames, now).await?;
            let frames = chains.into_iter().zip(committed.outcomes).collect();
            Ok(CommittedBatch { frames, gaps: committed.gaps })
        })
    }

    /// Stores a receipt; returns whether the session was already found complete.
    async fn store_receipt_with_retry(&self, origin: &Origin, verified: &VerifiedReceipt) -> bool {
        let VerifiedReceipt { receipt, signed } = verified;
        let mut wait = retry::backoff();
        let now = (self.clock)();
        let complete = loop {
            match self.try_store_receipt(receipt, signed, now).await {
                Ok(complete) => break complete,
                // Trying again might never end, and hold up what other machines send. The gateway sends
                // the receipt again.
                Err(error) if error.is_about_data() => {
                    self.store.clear_number_cache();
                    let session = &receipt.session;
                    tracing::error!(%origin, %session, %error, "dropped a receipt that cannot be stored");
                    return false;
                }
                Err(error) => {
                    self.store.clear_number_cache();
                    retry::wait_for_database(&mut wait, &error).await;
                }
            }
        };
        if !complete {
            let samples = receipt.sample_count();
            tracing::info!(%origin, session = %receipt.session, samples, "stored a receipt");
            self.receipt_stored.notify_one();
        }
        complete
    }

    /// Stores a receipt; returns whether the session was already found complete. The future is
    /// boxed, because the compiler cannot see that a borrowed query may move between threads.
    fn try_store_receipt<'a>(
        &'a self,
        receipt: &'a Receipt,
        signed: &'a [u8],
        now: EpochMs,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            // The signature was verified: the key that signed the receipt also signs the chain.
            let kid = trust::SignedMessage::parse(signed).map(|signed| signed.key_id().to_string());
            let kid = kid.unwrap_or_default();
            let no = self.store.chain_no(&receipt.origin, receipt.chain, &kid, now).await?;
            self.store.store_receipt(no, receipt, signed, now).await
        })
    }
}

/// Returns the acknowledgement of one frame; `None` if it must be sent again later. `gaps` are the
/// frames that its chain still lacks.
fn ack_of(verified: &VerifiedFrame, outcome: Outcome, gaps: &[FrameRange]) -> Option<Ack> {
    let frame = &verified.frame;
    match outcome {
        Outcome::Stored | Outcome::Duplicate => {
            let mut ack = Ack::new(frame.chain);
            ack.push_acked(frame.number);
            ack.need = gaps.iter().take(NEEDED_RANGES_MAX).copied().collect();
            Some(ack)
        }
        Outcome::Refused(refusal) => {
            metric::refused(refusal);
            tracing::warn!(
                origin = %frame.origin, chain = %frame.chain, frame = frame.number,
                reason = refusal.as_str(), "refused a frame: {refusal}"
            );
            Some(refusal_ack(frame.chain, frame.number, refusal))
        }
        Outcome::Deferred => None,
    }
}

/// Refuses a frame that the database cannot hold: the edge keeps it, and an error is logged.
fn reject_unstorable(verified: &VerifiedFrame, problem: &str) -> CommittedBatch {
    let frame = &verified.frame;
    tracing::error!(
        origin = %frame.origin, chain = %frame.chain, frame = frame.number, problem,
        "the database cannot hold this frame; it stays at the edge"
    );
    let refused = Outcome::Refused(Refusal::Malformed);
    CommittedBatch { frames: vec![(ChainNo::NONE, refused)], gaps: HashMap::new() }
}

/// Counts the points and frames of a batch in the metrics.
fn count(frames: &[VerifiedFrame], committed: &CommittedBatch, took: Duration) {
    let (mut unsigned, mut duplicates, mut stored) = (0_u64, 0_u64, 0_usize);
    let mut verified: BTreeMap<&str, u64> = BTreeMap::new();
    for (frame, (_, outcome)) in frames.iter().zip(&committed.frames) {
        let points = frame.frame.sample_count() as u64;
        match (outcome, frame.kid.is_empty()) {
            (Outcome::Stored, false) => {
                stored = stored.saturating_add(1);
                let of_key = verified.entry(&frame.kid).or_default();
                *of_key = of_key.saturating_add(points);
            }
            (Outcome::Stored, true) => unsigned = unsigned.saturating_add(points),
            (Outcome::Duplicate, _) => duplicates = duplicates.saturating_add(1),
            _ => {}
        }
    }
    metric::committed(&verified, stored, took.as_secs_f64());
    metric::unsigned(unsigned);
    metric::duplicates(duplicates);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use contract::{ChainId, ClockQuality, Digest, Frame, RejectedFrame};

    use super::*;
    use crate::pipeline::Reply;
    use crate::verified_frame::Trust;

    const NOW: EpochMs = EpochMs(1_760_000_000_000);

    fn slot(number: u8) -> Slot {
        let origin: Origin = "acme/leipzig/r-1".parse().unwrap();
        let frame = Frame {
            origin: origin.clone(),
            chain: ChainId([1; 16]),
            number: u64::from(number),
            previous: (number > 1).then(|| Digest([number - 1; 32])),
            boot_id: 1,
            first_seq: u64::from(number),
            mono_ms: u64::from(number),
            wall: NOW,
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: vec![0],
            columns: vec![],
            events: vec![],
        };
        let verified = VerifiedFrame {
            frame,
            digest: Digest([number; 32]),
            signed: Vec::new(),
            kid: "kid".to_owned(),
            trust: Trust::Verified,
            numbering: Numbering::Edge,
            published: None,
            received: NOW,
        };
        Slot { origin, reply: Reply::Bus, state: SlotState::VerifiedFrame(Box::new(verified)) }
    }

    /// The clock is read once an attempt: it panics with the batch, and then with the second frame
    /// alone.
    #[tokio::test]
    async fn a_frame_whose_commit_panics_is_refused_alone() {
        let (_folder, database) = service_testbed::open_sqlite().await;
        let reads = AtomicU32::new(0);
        let committer = Committer {
            store: IngestStore::new(database),
            clock: Arc::new(move || {
                let read = reads.fetch_add(1, Ordering::Relaxed);
                assert!(!matches!(read, 0 | 2), "attempt {read}");
                NOW
            }),
            wake: Arc::default(),
            dating: ClockCorrection::default(),
            conflicts: Arc::default(),
            receipt_stored: Arc::default(),
        };
        let mut slots = [slot(1), slot(2), slot(3)];
        committer.commit(&mut slots).await;
        let acks = slots.map(|slot| match slot.state {
            SlotState::Done(Some(ack)) => ack,
            _ => panic!("without an acknowledgement"),
        });
        for (ack, number) in [(&acks[0], 1), (&acks[2], 3)] {
            assert_eq!(ack.acked, [FrameRange { first: number, last: number }]);
            assert!(ack.refused.is_empty());
        }
        let refused = [RejectedFrame { frame: 2, reason: Refusal::Malformed }];
        assert_eq!((acks[1].acked.len(), acks[1].refused.as_slice()), (0, &refused[..]));
        let org = contract::OrgId::new("acme").unwrap();
        assert_eq!(committer.store.frames_after(Some(&org), 0, 10).await.unwrap().len(), 2);
    }
}
