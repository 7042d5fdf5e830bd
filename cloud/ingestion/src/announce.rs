//! Tells that roasts have ended, through the outbox: once a roast is complete, or waiting longer would
//! not help; again until somebody has taken notice.

use std::time::Duration;

use contract::mission::CloseReason;
use contract::ops::{self, SessionClosed};
use contract::{EpochMs, MachineId, OrgId, Origin, SessionId, SiteId};
use service::shutdown::CancellationToken;
use store::StoreError;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::Clock;
use crate::mqtt::Bus;
use crate::store::{FrameRow, IngestStore};

const PASS_EVERY: Duration = Duration::from_secs(1);
const A_PASS: i64 = 50;
/// A roast whose receipt or frames have not come by then is told as it is.
const ENDED_MS: i64 = 600_000;
const SILENT_MS: i64 = 60_000;
/// Between two tellings: the first wait, doubled each time, and the longest.
const AGAIN_MS: (i64, i64) = (5_000, 3_600_000);
const COUNT_EVERY: u32 = 15;
/// Notices waiting to be noted; more are told again and noticed again.
const NOTICES: usize = 1_024;

/// Where notices that somebody has taken an end arrive.
#[derive(Clone)]
pub struct Taken(mpsc::Sender<(OrgId, SessionId)>);

pub fn queue() -> (Taken, mpsc::Receiver<(OrgId, SessionId)>) {
    let (sender, receiver) = mpsc::channel(NOTICES);
    (Taken(sender), receiver)
}

impl Taken {
    pub fn note(&self, topic: &str, payload: &[u8]) {
        let Ok((origin, ops::Kind::Taken)) = ops::parse(topic) else { return };
        let Ok(taken) = serde_json::from_slice::<ops::Taken>(payload) else { return };
        let _ = self.0.try_send((origin.org, taken.session_id));
    }
}

pub fn start(
    store: IngestStore,
    bus: Option<Bus>,
    mut taken: mpsc::Receiver<(OrgId, SessionId)>,
    clock: Clock,
    tracker: &TaskTracker,
    stop: CancellationToken,
) {
    tracker.spawn(async move {
        let mut passes = 0_u32;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((org, session)) = taken.recv() => {
                    if let Err(error) = store.taken(&org, session.as_str()).await {
                        tracing::warn!(%error, "could not note that an end was taken; it is told again");
                    }
                    continue;
                }
                () = tokio::time::sleep(PASS_EVERY) => {}
            }
            if let Err(error) = pass(&store, bus.as_ref(), clock()).await {
                tracing::warn!(%error, "could not tell ends of roasts; the next pass tries again");
            }
            passes = passes.wrapping_add(1);
            if passes.is_multiple_of(COUNT_EVERY)
                && let Ok(waiting) = store.waiting().await
            {
                metrics::gauge!("simcorp_outbox_waiting").set(waiting as f64);
            }
        }
    });
}

async fn pass(store: &IngestStore, bus: Option<&Bus>, now: EpochMs) -> Result<(), StoreError> {
    for untold in store.untold(now.plus(-ENDED_MS), now.plus(-SILENT_MS), A_PASS).await? {
        let org = OrgId::new(untold.org_id).map_err(|e| StoreError::row("announcing", e))?;
        if let Some(event) = describe(store, &org, &untold.session_id, now).await?
            && store.announce(&org, &event, now).await?
        {
            let reason = event.reason.map_or("", CloseReason::as_str);
            metrics::counter!("simcorp_sessions_closed_total", "reason" => reason).increment(1);
        }
    }
    let Some(bus) = bus.filter(|bus| bus.is_connected()) else { return Ok(()) };
    for event in store.due(now, AGAIN_MS, A_PASS).await? {
        let Ok(body) = serde_json::to_vec(&event) else { continue };
        if !bus.tell(ops::Kind::Closed.topic(&event.origin), body).await {
            break; // it stays in the outbox
        }
    }
    Ok(())
}

/// What there is to say about an ended roast.
async fn describe(
    store: &IngestStore,
    org: &OrgId,
    id: &str,
    now: EpochMs,
) -> Result<Option<SessionClosed>, StoreError> {
    const DOING: &str = "describing the end of a roast";
    let Some(session) = store.session(org, id).await? else { return Ok(None) };
    let mut curve = store.curve(org, id).await?;
    if curve.is_none() {
        store.make_curve(org, &session, false, now).await?;
        curve = store.curve(org, id).await?;
    }
    let totals = store.totals(org, &session).await?;
    let has = |column: usize| {
        let any = |curve: &FrameRow| (0..curve.len()).any(|i| curve.value(column, i).is_some());
        Some(curve.as_ref().is_some_and(any))
    };
    let duration = session.ended_ms.map(|ended| (ended - session.started_ms) as f64 / 1000.0);
    let last = curve.as_ref().and_then(|curve| {
        let newest = curve.sample_at(curve.len().checked_sub(1)?);
        Some((newest.0 - session.started_ms) as f64 / 1000.0)
    });
    let damaged = |error: contract::IdError| StoreError::row(DOING, error);
    Ok(Some(SessionClosed {
        kind: SessionClosed::KIND.to_owned(),
        version: SessionClosed::VERSION,
        emitted_at: now,
        origin: Origin {
            org: org.clone(),
            site: SiteId::new(session.site_id).map_err(damaged)?,
            machine: MachineId::new(session.machine_id).map_err(damaged)?,
        },
        session_id: SessionId::new(session.session_id).map_err(damaged)?,
        report_kind: contract::mission::POST_ROAST.to_owned(),
        reason: Some(match session.drop_s {
            Some(_) => CloseReason::Drop,
            None => CloseReason::Silence,
        }),
        drop_seconds: session.drop_s,
        telemetry_points: u64::try_from(totals.points).ok(),
        duration_sec: duration.filter(|seconds| *seconds >= 0.0),
        last_telemetry_delta_sec: duration.zip(last).map(|(end, last)| (end - last).max(0.0)),
        has_bt: has(0),
        has_et: has(1),
    }))
}
