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
use crate::store::{FrameRow, IngestStore, Untold, Wait};

const PASS_EVERY: Duration = Duration::from_secs(1);
const A_PASS: i64 = 50;
/// A roast whose receipt or frames have not come by then is told as it is: so long after it was seen
/// closed where its gateway is silent, and so long in any case.
const CLOSED_MS: i64 = 600_000;
const SILENT_MS: i64 = 60_000;
const CLOSED_LONG_MS: i64 = 6 * 3_600_000;
/// Silent for so long a running roast is over: of a publisher that keeps nothing, and of a gateway,
/// which may come back.
const UNSIGNED_SILENT_MS: i64 = 30 * 60_000;
const SIGNED_SILENT_MS: i64 = 24 * 3_600_000;
const FIRST: (i64, String) = (i64::MIN, String::new());
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
        let mut cursors = [FIRST, FIRST];
        let mut pass = tokio::time::interval(PASS_EVERY);
        pass.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((org, session)) = taken.recv() => {
                    if let Err(error) = store.taken(&org, session.as_str()).await {
                        tracing::warn!(%error, "could not note that an end was taken; it is told again");
                    }
                    continue;
                }
                _ = pass.tick() => {}
            }
            let now = clock();
            if let Err(error) = find(&store, now, &mut cursors).await {
                tracing::warn!(%error, "could not look for ended roasts; the next pass tries again");
            }
            if let Some(bus) = bus.as_ref().filter(|bus| bus.is_connected())
                && let Err(error) = tell(&store, bus, now).await
            {
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

/// Ends roasts that nobody will end, and puts ends that can be told into the outbox. A roast that
/// fails does not stand before the others: each pass goes on after the last, and then begins again.
async fn find(
    store: &IngestStore,
    now: EpochMs,
    [running, closed]: &mut [(i64, String); 2],
) -> Result<(), StoreError> {
    let silent = (now.plus(-UNSIGNED_SILENT_MS), now.plus(-SIGNED_SILENT_MS));
    let abandoned = store.abandoned(silent, (running.0, &running.1), A_PASS).await?;
    *running = after(&abandoned);
    for roast in &abandoned {
        if let Err(error) = end(store, roast, now).await {
            tracing::warn!(%error, session = roast.session_id, "could not end a roast");
        }
    }
    store.see_closed(now).await?;
    let wait = Wait {
        closed_before: now.plus(-CLOSED_MS),
        silent_since: now.plus(-SILENT_MS),
        closed_long_before: now.plus(-CLOSED_LONG_MS),
    };
    let untold = store.untold(&wait, (closed.0, &closed.1), A_PASS).await?;
    *closed = after(&untold);
    for roast in &untold {
        if let Err(error) = announce(store, roast, now).await {
            tracing::warn!(%error, session = roast.session_id, "could not announce a roast");
        }
    }
    Ok(())
}

/// Where the next pass goes on.
fn after(roasts: &[Untold]) -> (i64, String) {
    let full = i64::try_from(roasts.len()).is_ok_and(|n| n == A_PASS);
    let last = roasts.last().filter(|_| full);
    last.map_or(FIRST, |last| (last.started_ms, last.session_id.clone()))
}

fn org_of(roast: &Untold) -> Result<OrgId, StoreError> {
    OrgId::new(roast.org_id.clone()).map_err(|e| StoreError::row("announcing", e))
}

/// Ends a roast at its last sample.
async fn end(store: &IngestStore, roast: &Untold, now: EpochMs) -> Result<(), StoreError> {
    let org = org_of(roast)?;
    let Some(session) = store.session(&org, &roast.session_id).await? else { return Ok(()) };
    store.make_curve(&org, &session, false, now).await?;
    let curve = store.curve(&org, &roast.session_id).await?;
    let last = curve.and_then(|curve| Some(curve.sample_at(curve.len().checked_sub(1)?)));
    let ended = last.unwrap_or(EpochMs(session.started_ms)).max(EpochMs(session.started_ms));
    store.close_abandoned(&org, &roast.session_id, ended).await
}

async fn announce(store: &IngestStore, roast: &Untold, now: EpochMs) -> Result<(), StoreError> {
    let org = org_of(roast)?;
    let Some(event) = describe(store, &org, &roast.session_id, now).await? else { return Ok(()) };
    if store.announce(&org, &event, now).await? {
        let reason = event.reason.map_or("", CloseReason::as_str);
        metrics::counter!("simcorp_sessions_closed_total", "reason" => reason).increment(1);
    }
    Ok(())
}

async fn tell(store: &IngestStore, bus: &Bus, now: EpochMs) -> Result<(), StoreError> {
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
