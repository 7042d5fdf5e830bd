//! Publishes `SessionClosed` events through the outbox: once a session is complete, or waiting
//! longer would not help. Each event is resent until a service acknowledges it.

use std::time::Duration;

use contract::mission::CloseReason;
use contract::ops::{self, SessionClosed};
use contract::{Channel, EpochMs, MachineId, OrgId, Origin, SessionId, SiteId};
use database::StoreError;
use service::shutdown::CancellationToken;
use service::tasks::Tasks;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::store::{FrameRow, IngestStore, PendingSession, PublishAfter};
use crate::sweep::{OrgTurns, PassLimits, Quarantine};
use service::clock::Clock;

const PASS_EVERY: Duration = Duration::from_secs(1);
/// The sessions that a pass examines, and those that it closes or publishes; more if many
/// organisations share them.
const SESSIONS_A_PASS: PassLimits = PassLimits { examined: 1_000, due: 50, due_of_chain: 2 };
const EVENTS_PER_PASS: usize = 50;
/// A session whose receipt or frames are still missing is published as it is: `CLOSED_MS` after it
/// was first seen closed if its gateway has been silent for `SILENT_MS`, and after `CLOSED_LONG_MS`
/// in any case.
const CLOSED_MS: i64 = 600_000;
const SILENT_MS: i64 = 60_000;
const CLOSED_LONG_MS: i64 = 6 * 3_600_000;
/// A running session ends after this silence: of a publisher that stores nothing (unsigned), and of
/// a gateway (signed), which may come back.
const UNSIGNED_SILENT_MS: i64 = 30 * 60_000;
const SIGNED_SILENT_MS: i64 = 24 * 3_600_000;
/// The time between two publications of an event: the first wait, doubled each time, and the
/// longest.
const RESEND_MS: (i64, i64) = (5_000, 3_600_000);
/// After this many publications, in three quarters of an hour, an event counts as acknowledged if
/// its session has its mission or its report. Upstream Sim-Corp's dispatcher acknowledges nothing;
/// ours has had its chances by then.
const UNACKNOWLEDGED_TRIES: i64 = 10;
const COUNT_EVERY: u32 = 15;
/// The capacity of the queue of acknowledgements; further ones are lost, and their events resent.
const ACK_QUEUE_LEN: usize = 1_024;

/// The queue to which acknowledgements of `SessionClosed` events are sent.
#[derive(Clone)]
pub struct SessionClosedAcks(mpsc::Sender<(OrgId, SessionId)>);

pub fn ack_queue() -> (SessionClosedAcks, mpsc::Receiver<(OrgId, SessionId)>) {
    let (sender, receiver) = mpsc::channel(ACK_QUEUE_LEN);
    (SessionClosedAcks(sender), receiver)
}

impl SessionClosedAcks {
    pub fn receive(&self, topic: &str, payload: &[u8]) {
        let Ok((origin, ops::SessionTopic::ClosedAck)) = ops::parse_topic(topic) else { return };
        let Ok(ack) = serde_json::from_slice::<ops::SessionClosedAck>(payload) else { return };
        let _ = self.0.try_send((origin.org, ack.session_id));
    }
}

/// Starts the publisher. It begins from the database, so that it can be started again; the queue of
/// acknowledgements outlives its runs.
pub fn start(
    store: IngestStore,
    bus: Option<Bus>,
    acks: mpsc::Receiver<(OrgId, SessionId)>,
    clock: Clock,
    tasks: &Tasks,
    stop: CancellationToken,
) {
    tasks.spawn_restarting_with("session-closed", acks, move |acks| {
        Box::pin(run((store.clone(), bus.clone(), clock.clone()), acks, stop.clone()))
    });
}

async fn run(
    (store, bus, clock): (IngestStore, Option<Bus>, Clock),
    acks: &mut mpsc::Receiver<(OrgId, SessionId)>,
    stop: CancellationToken,
) {
    let mut passes = 0_u32;
    let mut sweeps = SessionSweeps::default();
    let mut pass = tokio::time::interval(PASS_EVERY);
    pass.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some((org, session)) = acks.recv() => {
                if let Err(error) = store.acknowledge_session_closed(&org, session.as_str()).await {
                    tracing::warn!(%error, "could not store an ack; its event is resent");
                }
                continue;
            }
            _ = pass.tick() => {}
        }
        let (now, began) = (clock(), Instant::now());
        if let Err(error) = sweeps.close_and_enqueue(&store, now).await {
            tracing::warn!(%error, "could not look for ended sessions; the next pass retries");
        }
        if let Some(bus) = bus.as_ref().filter(|bus| bus.is_connected())
            && let Err(error) = publish_due(&store, bus, now).await
        {
            tracing::warn!(%error, "could not publish closed sessions; the next pass retries");
        }
        passes = passes.wrapping_add(1);
        if passes.is_multiple_of(COUNT_EVERY) {
            review_outbox(&store).await;
        }
        // Passes take at most half of the time: a busy database has time for what machines send.
        let took = began.elapsed();
        if took.saturating_mul(2) > PASS_EVERY {
            pass.reset_after(took);
        }
    }
}

/// Closes abandoned sessions, and puts the closed sessions that can be published into the outbox.
/// The organisations take turns, and a session that fails does not block the others.
pub(crate) struct SessionSweeps {
    abandoned: OrgTurns,
    closed: OrgTurns,
    not_closed: Quarantine,
    not_published: Quarantine,
}

impl Default for SessionSweeps {
    fn default() -> Self {
        Self {
            abandoned: OrgTurns::default(),
            closed: OrgTurns::default(),
            not_closed: Quarantine::new("close-session"),
            not_published: Quarantine::new("publish-session"),
        }
    }
}

impl SessionSweeps {
    /// Takes some sessions of each organisation; the next pass continues after them, then starts
    /// over.
    pub(crate) async fn close_and_enqueue(
        &mut self,
        store: &IngestStore,
        now: EpochMs,
    ) -> Result<(), StoreError> {
        let orgs = store.orgs_with_unsettled_sessions().await?;
        let limits = SESSIONS_A_PASS.of_each(orgs.len());
        let silent = (now.plus_ms(-UNSIGNED_SILENT_MS), now.plus_ms(-SIGNED_SILENT_MS));
        let abandoned = store
            .abandoned_sessions(silent, &self.abandoned.cursors(&orgs), limits.examined)
            .await?;
        for roast in self.abandoned.take(abandoned, limits) {
            let closed = close_at_last_sample(store, &roast, now);
            self.not_closed.each(&item_of(&roast), Instant::now(), closed).await?;
        }
        store.mark_closed_seen(now).await?;
        let wait = PublishAfter {
            closed_before: now.plus_ms(-CLOSED_MS),
            silent_since: now.plus_ms(-SILENT_MS),
            closed_long_before: now.plus_ms(-CLOSED_LONG_MS),
        };
        let unpublished =
            store.unpublished_sessions(&wait, &self.closed.cursors(&orgs), limits.examined).await?;
        for roast in self.closed.take(unpublished, limits) {
            let published = enqueue(store, &roast, now);
            self.not_published.each(&item_of(&roast), Instant::now(), published).await?;
        }
        Ok(())
    }
}

fn item_of(roast: &PendingSession) -> String {
    format!("{}/{}", roast.org_id, roast.session_id)
}

fn org_of(roast: &PendingSession) -> Result<OrgId, StoreError> {
    OrgId::new(roast.org_id.clone()).map_err(|e| StoreError::row("announcing", e))
}

/// Closes a session at its last sample.
async fn close_at_last_sample(
    store: &IngestStore,
    roast: &PendingSession,
    now: EpochMs,
) -> Result<(), StoreError> {
    let org = org_of(roast)?;
    let Some(session) = store.session(&org, &roast.session_id).await? else { return Ok(()) };
    store.make_curve(&org, &session, false, now).await?;
    let curve = store.curve(&org, &roast.session_id).await?;
    let last_ms =
        curve.and_then(|curve| Some(session.elapsed_ms(&curve, curve.len().checked_sub(1)?)));
    let ended = EpochMs(session.started_ms).plus_ms(last_ms.unwrap_or(0).max(0));
    store.close_abandoned(&org, &roast.session_id, ended).await
}

async fn enqueue(
    store: &IngestStore,
    roast: &PendingSession,
    now: EpochMs,
) -> Result<(), StoreError> {
    let org = org_of(roast)?;
    let Some(event) = build_event(store, &org, &roast.session_id, now).await? else {
        return Ok(());
    };
    if store.enqueue_session_closed(&org, &event, now).await? {
        let reason = event.reason.map_or("", CloseReason::as_str);
        metrics::counter!("simcorp_sessions_closed_total", "reason" => reason).increment(1);
    }
    Ok(())
}

async fn publish_due(store: &IngestStore, bus: &Bus, now: EpochMs) -> Result<(), StoreError> {
    for event in store.take_due(now, RESEND_MS, EVENTS_PER_PASS).await? {
        let Ok(body) = serde_json::to_vec(&event) else { continue };
        if !bus.publish_event(ops::SessionTopic::Closed.topic(&event.origin), body).await {
            break; // it stays in the outbox
        }
    }
    Ok(())
}

/// Removes the events that were handled without an acknowledgement, and counts the others.
async fn review_outbox(store: &IngestStore) {
    if let Err(error) = store.remove_handled_sessions(UNACKNOWLEDGED_TRIES).await {
        tracing::warn!(%error, "could not look for handled roasts; a later pass retries");
    }
    if let Ok(waiting) = store.outbox_len().await {
        metrics::gauge!("simcorp_outbox_waiting").set(waiting as f64);
    }
    if let Ok(running) = store.running_sessions_len().await {
        metrics::gauge!("simcorp_sessions_active").set(running as f64);
    }
}

/// Builds the event for a closed session; `None` if the session does not exist.
async fn build_event(
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
    let has = |channel: Channel| {
        let any = |curve: &FrameRow| (0..curve.len()).any(|i| curve.value(&channel, i).is_some());
        Some(curve.as_ref().is_some_and(any))
    };
    let duration = session.duration_s();
    let last = curve.as_ref().and_then(|curve| {
        Some(session.elapsed_ms(curve, curve.len().checked_sub(1)?) as f64 / 1000.0)
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
        duration_sec: duration,
        last_telemetry_delta_sec: duration.zip(last).map(|(end, last)| (end - last).max(0.0)),
        has_bt: has(Channel::Bt),
        has_et: has(Channel::Et),
    }))
}
