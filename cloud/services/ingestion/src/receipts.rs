//! The reconciler of closed sessions. For each receipt it checks that all frames have arrived and
//! that the digest matches. "Complete" is determined once and recorded; missing frames are
//! requested again in every pass. A complete session gets its curve in one row; a session that
//! stays incomplete gets a curve of the samples that have arrived.
//!
//! A new receipt or a timer starts a pass. It takes no input; the next pass repeats a failed one.

use std::sync::Arc;
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
use crate::store::{IngestStore, OpenReceipt};
use crate::sweep;
use service::clock::Clock;

const PASS_EVERY: Duration = Duration::from_secs(5);
const RECEIPTS_A_PASS: usize = 200;
/// A session without a receipt, or with missing frames, gets its curve when its gateway has sent
/// nothing for this long, or when its chain has no gaps.
const CURVE_AFTER: Duration = Duration::from_mins(15);
/// Samples that have not arrived this long after the session was first seen closed are not expected
/// any more. Retention is never shorter.
const SETTLED_AFTER: Duration = Duration::from_hours(24 * 28);
const CURVES_EVERY: Duration = Duration::from_mins(2);
const CURVES_A_PASS: i64 = 50;
const FIRST: (i64, String) = (i64::MIN, String::new());

pub fn start(
    store: IngestStore,
    bus: Option<Bus>,
    wake: Arc<Notify>,
    clock: Clock,
    tasks: &Tasks,
    stop: CancellationToken,
) {
    tasks.spawn("receipts", async move {
        let (mut cursor, mut curves) = (FIRST, FIRST);
        let mut curves_due = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = wake.notified() => {}
                () = tokio::time::sleep(PASS_EVERY) => {}
            }
            if let Err(error) = pass(&store, bus.as_ref(), &clock, &mut cursor).await {
                tracing::warn!(%error, "could not check receipts; the next pass retries");
            }
            if Instant::now() < curves_due {
                continue;
            }
            curves_due = Instant::now() + CURVES_EVERY;
            if let Err(error) = make_curves(&store, clock(), &mut curves).await {
                tracing::warn!(%error, "could not make curves; the next pass retries");
            }
        }
    });
}

async fn pass(
    store: &IngestStore,
    bus: Option<&Bus>,
    clock: &Clock,
    cursor: &mut (i64, String),
) -> Result<(), StoreError> {
    let after = (cursor.0, cursor.1.as_str());
    let open = store.open_receipts(after, RECEIPTS_A_PASS).await?;
    // After the last page the next pass starts again with the first.
    let last = open.last().map(|open| (open.started_ms, open.session_id.clone()));
    *cursor = last.filter(|_| open.len() == RECEIPTS_A_PASS).unwrap_or(FIRST);
    for open in open {
        let session = open.session_id.clone();
        sweep::each("check-receipt", &session, check_receipt(store, bus, open, clock())).await?;
    }
    Ok(())
}

/// Makes the curves of sessions that will not become complete, or not soon. A curve that still
/// lacks samples is made again in each round, until `SETTLED_AFTER` has passed since the session was
/// first seen closed.
async fn make_curves(
    store: &IngestStore,
    now: EpochMs,
    cursor: &mut (i64, String),
) -> Result<(), StoreError> {
    let ms = |wait: Duration| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    let after = (cursor.0, cursor.1.as_str());
    let sessions =
        store.sessions_without_curve(now.plus_ms(-ms(CURVE_AFTER)), after, CURVES_A_PASS).await?;
    let last = sessions.last().map(|last| (last.started_ms, last.session_id.clone()));
    *cursor = last.unwrap_or(FIRST);
    for pending in sessions {
        let id = pending.session_id;
        let org = pending.org_id;
        let made = async {
            let org = OrgId::new(org).map_err(|e| StoreError::row("making curves", e))?;
            let Some(session) = store.session(&org, &id).await? else { return Ok(()) };
            // By the server's clock: a gateway's date does not say how long samples were missing.
            let seen = EpochMs(session.closed_seen_ms.unwrap_or(now.0));
            let settled = now.ms_since(seen) > ms(SETTLED_AFTER);
            store.make_curve(&org, &session, settled, now).await
        };
        sweep::each("make-curve", &id, made).await?;
    }
    Ok(())
}

async fn check_receipt(
    store: &IngestStore,
    bus: Option<&Bus>,
    open: OpenReceipt,
    now: EpochMs,
) -> Result<(), StoreError> {
    const DOING: &str = "checking a receipt";
    let signed = SignedMessage::parse(&open.receipt).map_err(|e| StoreError::row(DOING, e))?;
    let receipt = Receipt::decode(signed.payload()).map_err(|e| StoreError::row(DOING, e))?;
    let chain = crate::store::chain_state(&open);
    let mut ack = Ack::new(receipt.chain);
    let mut digest_differs = false;
    let complete = if chain.covers(receipt.first_frame, receipt.last_frame) {
        let digests = store.digests(open.chain_no, receipt.first_frame, receipt.last_frame).await?;
        digest_differs = trust::sha256_digest(&digests.concat()) != receipt.digest;
        !digest_differs
    } else {
        ack.need = missing(&chain.gaps, chain.next, &receipt);
        false
    };
    let completeness = if complete { Completeness::Complete } else { Completeness::Incomplete };
    if open.completeness != completeness.as_str() {
        let org = OrgId::new(open.org_id.clone()).map_err(|e| StoreError::row(DOING, e))?;
        let totals = match store.session(&org, &open.session_id).await? {
            Some(session) if complete => {
                store.make_curve(&org, &session, true, now).await?;
                Some(store.totals(&org, &session).await?)
            }
            _ => None,
        };
        store.set_completeness(&open.org_id, &open.session_id, completeness, totals).await?;
        tracing::info!(
            session = open.session_id,
            samples = receipt.sample_count(),
            found = completeness.as_str(),
            digest_differs,
            "checked whether a session is complete"
        );
    }
    ack.receipts.push(ReceiptVerdict {
        session_id: receipt.session.clone(),
        complete,
        digest_differs,
    });
    if let Some(bus) = bus {
        bus.publish_ack(&receipt.origin, &ack).await;
    }
    Ok(())
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
