//! The reconciler of closed sessions. For each receipt it checks that all frames have arrived and
//! that the digest matches. "Complete" is determined once and recorded; missing frames are
//! requested again, at growing intervals while nothing arrives. A complete session gets its curve
//! in one row; a session that stays incomplete gets a curve of the samples that have arrived.
//!
//! A new receipt or a timer starts a pass. It takes no input; the next pass repeats a failed one.
//! In a pass each organisation has its turn, with a few of its receipts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contract::session::Completeness;
use contract::{Ack, EpochMs, FrameRange, OrgId, Receipt, ReceiptVerdict};
use database::StoreError;
use service::shutdown::CancellationToken;
use service::tasks::Tasks;
use tokio::sync::Notify;
use tokio::time::Instant;
use trust::SignedMessage;

use crate::bus::Bus;
use crate::receipt_verdicts::{Lack, Verdicts};
use crate::store::{IngestStore, OpenReceipt, PendingSession};
use crate::sweep::{self, OrgTurns, PassLimits, Quarantine};
use service::clock::Clock;

const PASS_EVERY: Duration = Duration::from_secs(5);
/// The shortest time between two passes, however many receipts arrive. After a long pass it is as
/// long as the pass.
const PASS_GAP: Duration = Duration::from_millis(100);
/// In a pass, each organisation has so many of its newest receipts checked, and so many of the
/// others in the order of time.
const NEWEST_A_PASS: i64 = 10;
const OTHERS_A_PASS: i64 = 20;
/// The number of digests that are read at a time.
const DIGESTS_A_READ: u64 = 10_000;
/// A receipt of more frames does not fit: the longest session has fewer.
const FRAMES_MAX: u64 = 1_000_000;
/// A session without a receipt, or with missing frames, gets its curve when its gateway has sent
/// nothing for this long, or when its chain has no gaps.
const CURVE_AFTER: Duration = Duration::from_mins(15);
/// Samples that have not arrived this long after the session was first seen closed are not expected
/// any more. Retention is never shorter.
const SETTLED_AFTER: Duration = Duration::from_hours(24 * 28);
const CURVES_EVERY: Duration = Duration::from_mins(2);
/// The sessions that a pass examines, and the curves that it makes.
const CURVES_A_PASS: PassLimits = PassLimits { examined: 5_000, due: 50, due_of_chain: 50 };

/// Starts the reconciler. It begins from the database, so that it can be started again.
pub fn start(
    store: IngestStore,
    bus: Option<Bus>,
    wake: Arc<Notify>,
    clock: Clock,
    tasks: &Tasks,
    stop: CancellationToken,
) {
    tasks.spawn_restarting("receipts", move || {
        let reconciler = Reconciler::new(store.clone(), bus.clone(), clock.clone());
        run(reconciler, wake.clone(), stop.clone())
    });
}

async fn run(mut reconciler: Reconciler, wake: Arc<Notify>, stop: CancellationToken) {
    let mut curves = CurveSweep::default();
    let mut curves_made: Option<Instant> = None;
    let mut wait = PASS_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let start = Instant::now();
        wait = match reconciler.pass().await {
            // Others may be complete as well.
            Ok(()) if reconciler.checker.has_completed.swap(false, Ordering::Relaxed) => PASS_GAP,
            Ok(()) => PASS_EVERY,
            Err(error) => {
                tracing::warn!(%error, "could not check receipts; the next pass retries");
                PASS_EVERY
            }
        };
        // Passes take at most half of the time, however often receipts arrive.
        let rest = PASS_GAP.max(start.elapsed());
        if tokio::time::timeout(rest, stop.cancelled()).await.is_ok() {
            break;
        }
        if curves_made.is_some_and(|at| at.elapsed() < CURVES_EVERY) {
            continue;
        }
        curves_made = Some(Instant::now());
        let now = (reconciler.checker.clock)();
        if let Err(error) = curves.pass(&reconciler.checker.store, now).await {
            tracing::warn!(%error, "could not make curves; the next pass retries");
        }
    }
}

pub(crate) struct Reconciler {
    checker: ReceiptChecker,
    /// The last receipt of each organisation that was checked in the order of time.
    turns: OrgTurns,
    quarantine: Quarantine,
}

struct ReceiptChecker {
    store: IngestStore,
    bus: Option<Bus>,
    clock: Clock,
    verdicts: Verdicts,
    /// Whether the last pass has found a complete session.
    has_completed: AtomicBool,
}

impl Reconciler {
    pub(crate) fn new(store: IngestStore, bus: Option<Bus>, clock: Clock) -> Self {
        let (verdicts, has_completed) = (Verdicts::default(), AtomicBool::new(false));
        Self {
            checker: ReceiptChecker { store, bus, clock, verdicts, has_completed },
            turns: OrgTurns::default(),
            quarantine: Quarantine::new("check-receipt"),
        }
    }

    /// Checks receipts of each organisation in turn: the newest ones, and others in the order of
    /// time.
    pub(crate) async fn pass(&mut self) -> Result<(), StoreError> {
        let store = &self.checker.store;
        let orgs = store.orgs_with_open_receipts().await?;
        if orgs.is_empty() {
            return Ok(());
        }
        let cursors = self.turns.cursors(&orgs);
        let newest = store.newest_open_receipts(&cursors, NEWEST_A_PASS).await?;
        let others = store.open_receipts(&cursors, OTHERS_A_PASS).await?;
        let limits =
            PassLimits { examined: OTHERS_A_PASS, due: OTHERS_A_PASS, due_of_chain: u32::MAX };
        let others = self.turns.take(others, limits);
        let mut checked = BTreeSet::new();
        for open in sweep::of_orgs_in_turn(newest).into_iter().chain(others) {
            let item = format!("{}/{}", open.org_id, open.session_id);
            if !checked.insert(item.clone()) {
                continue; // it is one of the newest, and of the others
            }
            self.quarantine.each(&item, Instant::now(), self.checker.check(open)).await?;
        }
        Ok(())
    }
}

impl ReceiptChecker {
    async fn check(&self, open: OpenReceipt) -> Result<(), StoreError> {
        const DOING: &str = "checking a receipt";
        let now = (self.clock)();
        let key = (open.org_id.clone(), open.session_id.clone());
        let signed = SignedMessage::parse(&open.receipt).map_err(|e| StoreError::row(DOING, e))?;
        let receipt = Receipt::decode(signed.payload()).map_err(|e| StoreError::row(DOING, e))?;
        let chain = crate::store::chain_state(&open);
        let known = trust::sha256_digest(&open.receipt);
        let lack = if !chain.covers(receipt.first_frame, receipt.last_frame) {
            Some(Lack::Frames(missing(&chain.gaps, chain.next, &receipt)))
        } else if self.verdicts.digest_differs(&key, known)
            || !self.digest_fits(&open, &receipt).await?
        {
            Some(Lack::Digest)
        } else {
            None
        };
        self.record(&open, &receipt, lack.as_ref(), now).await?;
        let mut ack = Ack::new(receipt.chain);
        ack.receipts.push(ReceiptVerdict {
            session_id: receipt.session.clone(),
            complete: lack.is_none(),
            digest_differs: lack == Some(Lack::Digest),
        });
        if let Some(Lack::Frames(frames)) = &lack {
            ack.need.clone_from(frames);
        }
        let is_due = if let Some(lack) = lack {
            self.verdicts.note(key, known, lack, Instant::now())
        } else {
            self.verdicts.forget(&key);
            self.has_completed.store(true, Ordering::Relaxed);
            true
        };
        if let Some(bus) = self.bus.as_ref().filter(|_| is_due) {
            bus.publish_ack(&receipt.origin, &ack).await;
        }
        Ok(())
    }

    /// Records whether the session is complete, if that has changed, and makes the curve of a
    /// complete one.
    async fn record(
        &self,
        open: &OpenReceipt,
        receipt: &Receipt,
        lack: Option<&Lack>,
        now: EpochMs,
    ) -> Result<(), StoreError> {
        const DOING: &str = "checking a receipt";
        let found = match lack {
            None => Completeness::Complete,
            Some(_) => Completeness::Incomplete,
        };
        if open.completeness == found.as_str() {
            return Ok(());
        }
        let org = OrgId::new(open.org_id.clone()).map_err(|e| StoreError::row(DOING, e))?;
        let totals = match self.store.session(&org, &open.session_id).await? {
            Some(session) if lack.is_none() => {
                self.store.make_curve(&org, &session, true, now).await?;
                Some(self.store.totals(&org, &session).await?)
            }
            _ => None,
        };
        self.store.set_completeness(&open.org_id, &open.session_id, found, totals).await?;
        tracing::info!(
            session = open.session_id,
            samples = receipt.sample_count(),
            found = found.as_str(),
            digest_differs = lack == Some(&Lack::Digest),
            "checked whether a session is complete"
        );
        Ok(())
    }

    /// Reads the digests of a receipt's frames, all of which have arrived, and compares them.
    async fn digest_fits(&self, open: &OpenReceipt, receipt: &Receipt) -> Result<bool, StoreError> {
        if receipt.last_frame.saturating_sub(receipt.first_frame) >= FRAMES_MAX {
            return Ok(false);
        }
        let mut digests = Vec::new();
        let mut first = receipt.first_frame;
        while first <= receipt.last_frame {
            let last =
                receipt.last_frame.min(first.saturating_add(DIGESTS_A_READ.saturating_sub(1)));
            digests.extend(self.store.digests(open.chain_no, first, last).await?.concat());
            first = last.saturating_add(1);
        }
        Ok(trust::sha256_digest(&digests) == receipt.digest)
    }
}

/// Makes the curves of sessions that will not become complete, or not soon. A curve that still
/// lacks samples is made again in each round, until `SETTLED_AFTER` has passed since the session was
/// first seen closed.
pub(crate) struct CurveSweep {
    turns: OrgTurns,
    quarantine: Quarantine,
}

impl Default for CurveSweep {
    fn default() -> Self {
        Self { turns: OrgTurns::default(), quarantine: Quarantine::new("make-curve") }
    }
}

impl CurveSweep {
    /// Makes some curves of each organisation, in turn.
    pub(crate) async fn pass(
        &mut self,
        store: &IngestStore,
        now: EpochMs,
    ) -> Result<(), StoreError> {
        let orgs = store.orgs_with_unsettled_sessions().await?;
        let limits = CURVES_A_PASS.of_each(orgs.len());
        let quiet = now.plus_ms(ms(CURVE_AFTER).saturating_neg());
        let sessions = store
            .sessions_without_curve(quiet, &self.turns.cursors(&orgs), limits.examined)
            .await?;
        for pending in self.turns.take(sessions, limits) {
            let item = format!("{}/{}", pending.org_id, pending.session_id);
            let made = make_curve(store, &pending, now);
            self.quarantine.each(&item, Instant::now(), made).await?;
        }
        Ok(())
    }
}

async fn make_curve(
    store: &IngestStore,
    pending: &PendingSession,
    now: EpochMs,
) -> Result<(), StoreError> {
    let org =
        OrgId::new(pending.org_id.clone()).map_err(|e| StoreError::row("making curves", e))?;
    let Some(session) = store.session(&org, &pending.session_id).await? else { return Ok(()) };
    // By the server's clock: a gateway's date does not say how long samples were missing.
    let seen = EpochMs(session.closed_seen_ms.unwrap_or(now.0));
    let settled = now.ms_since(seen) > ms(SETTLED_AFTER);
    store.make_curve(&org, &session, settled, now).await
}

fn ms(wait: Duration) -> i64 {
    i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the frames of a receipt that have not arrived, as at most 64 ranges.
fn missing(gaps: &[FrameRange], next: u64, receipt: &Receipt) -> Vec<FrameRange> {
    let beyond = FrameRange { first: next.max(1), last: u64::MAX };
    let ranges = gaps.iter().copied().chain([beyond]).filter_map(|gap| {
        let first = gap.first.max(receipt.first_frame);
        let last = gap.last.min(receipt.last_frame);
        (first <= last).then_some(FrameRange { first, last })
    });
    ranges.take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receipts_of_all_organisations_are_checked_in_turn() {
        let open = |org: &str, session: usize| OpenReceipt {
            org_id: org.to_owned(),
            session_id: format!("{org}-{session}"),
            started_ms: 0,
            chain_no: 1,
            completeness: "open".to_owned(),
            receipt: Vec::new(),
            next_number: 1,
            gaps: "[]".to_owned(),
            last_digest: None,
        };
        let mut waiting: Vec<OpenReceipt> = (0..4).map(|n| open("flood", n)).collect();
        waiting.push(open("tidy", 0));
        let order = sweep::of_orgs_in_turn(waiting).into_iter().map(|open| open.session_id);
        let order: Vec<String> = order.collect();
        assert_eq!(order, ["flood-0", "tidy-0", "flood-1", "flood-2", "flood-3"]);
    }
}
