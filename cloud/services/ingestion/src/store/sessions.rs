//! Sessions: the events of frames open, fill and close them. Sample numbers order the sessions of a
//! chain; no date does.

use ::database::sqlx::{self, FromRow, query};
use ::database::{StoreError, on};
use contract::event::BEGUN_BEFORE_NOTE;
use contract::{ClockQuality, EpochMs, EventKind, Frame, MachineEvent, Origin, SessionId};

use super::clock_correction::FrameDate;
use super::{ChainNo, EventRow, FrameRow, IngestStore};
use crate::verified_frame;

/// The change that one event makes to its session, whatever the order in which events arrive.
#[derive(Debug, Clone)]
pub struct SessionChange {
    org: String,
    no: ChainNo,
    session: SessionId,
    started: EpochMs,
    seq: i64,
    /// `None`: the session begins without an event.
    event: Option<MachineEvent>,
    /// Whether the event's message was signed and verified: [`crate::verified_frame::Trust::code`].
    trust: i16,
    /// What a publisher of upstream Sim-Corp said about the event, as JSON.
    published: Option<String>,
    /// `None` for a message without a gateway's clocks.
    clocks: Option<GatewayClocks>,
}

/// What the clocks of the gateway said about a session.
#[derive(Debug, Clone, Copy)]
struct GatewayClocks {
    wall_started_ms: i64,
    boot: i64,
    /// The time of CHARGE on the monotonic clock of `boot`. Negative if CHARGE was in an earlier
    /// boot.
    start_mono_ms: i64,
    /// The time of the event since CHARGE.
    elapsed_ms: i64,
}

/// The longest roast, in ms: as long as the elapsed time that an event may have.
const ROAST_MS_MAX: i64 = 10_000_000_000;

/// One statement with the values it needs.
pub(super) enum Statement<'c> {
    Session(&'c SessionChange),
    Event(&'c SessionChange, &'c MachineEvent),
}

/// Opens or changes a session. An event determines when its session began (its time less its
/// elapsed seconds), so even a DROP that arrives before its CHARGE opens the right session. A
/// session with that id on another chain is not changed: no device may change another device's
/// session. A complete session is not changed either: its receipt says what belongs to it, and a
/// gateway, or the thief of its key, cannot rewrite it. A gateway's events say how long after its
/// start a session ended: the end keeps this distance, whatever date the start gets.
const UPSERT_SESSION: &str = "\
INSERT INTO sessions (org_id, session_id, machine_no, chain_no, started_ms, ended_ms, status, \
                      first_seq, last_seq, fc_s, drop_s, wall_started_ms, boot, start_mono_ms) \
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
ON CONFLICT (org_id, session_id) DO UPDATE SET \
  started_ms = CASE WHEN EXCLUDED.first_seq IS NOT NULL THEN EXCLUDED.started_ms \
                    ELSE sessions.started_ms END, \
  ended_ms = CASE WHEN EXCLUDED.wall_started_ms IS NULL \
    THEN COALESCE(EXCLUDED.ended_ms, sessions.ended_ms) \
    ELSE (CASE WHEN EXCLUDED.first_seq IS NOT NULL THEN EXCLUDED.started_ms \
               ELSE sessions.started_ms END) \
         + COALESCE(EXCLUDED.ended_ms - EXCLUDED.started_ms, \
                    sessions.ended_ms - sessions.started_ms) END, \
  wall_started_ms = CASE WHEN EXCLUDED.first_seq IS NOT NULL THEN EXCLUDED.wall_started_ms \
    ELSE COALESCE(sessions.wall_started_ms, EXCLUDED.wall_started_ms) END, \
  boot = COALESCE(EXCLUDED.boot, sessions.boot), \
  start_mono_ms = COALESCE(EXCLUDED.start_mono_ms, sessions.start_mono_ms), \
  status = CASE WHEN EXCLUDED.ended_ms IS NOT NULL THEN EXCLUDED.status ELSE sessions.status END, \
  first_seq = COALESCE(EXCLUDED.first_seq, sessions.first_seq), \
  last_seq = COALESCE(EXCLUDED.last_seq, sessions.last_seq), \
  fc_s = COALESCE(EXCLUDED.fc_s, sessions.fc_s), \
  drop_s = COALESCE(EXCLUDED.drop_s, sessions.drop_s) \
WHERE sessions.chain_no = EXCLUDED.chain_no AND sessions.completeness <> 'complete'";

/// Stores an event. One of a gateway is dated by its distance from the session's start.
const INSERT_EVENT: &str = "\
INSERT INTO events (org_id, session_id, machine_no, kind, source, seq, at_ms, elapsed_s, bt_c, \
                    note, trust, published) \
SELECT $1, $2, $3, $4, $5, $6, COALESCE(s.started_ms + $13, $7), $8, $9, $10, $11, $12 \
FROM sessions s WHERE s.org_id = $1 AND s.session_id = $2 AND s.machine_no = $3 \
    AND s.completeness <> 'complete' \
ON CONFLICT (org_id, session_id, kind, source, seq, at_ms) DO NOTHING";

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;
type SqliteQuery<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

macro_rules! bind {
    ($statement:expr) => {
        match $statement {
            Statement::Session(c) => {
                let is = |kind| c.event.as_ref().filter(|event| event.kind == kind);
                let (fc, drop) = (is(EventKind::Fc), is(EventKind::Drop));
                let begins = c.event.is_none() || is(EventKind::Charge).is_some();
                let began = c.clocks.filter(|_| begins);
                query(UPSERT_SESSION)
                    .bind(&c.org)
                    .bind(c.session.as_str())
                    .bind(c.no.machine)
                    .bind(c.no.chain)
                    .bind(c.started.0)
                    .bind(drop.map(|event| event.at.0))
                    .bind(if drop.is_some() { "CLOSED" } else { "ACTIVE" })
                    .bind(begins.then_some(c.seq))
                    .bind(drop.map(|_| c.seq))
                    .bind(fc.map(|event| event.elapsed_s))
                    .bind(drop.map(|event| event.elapsed_s))
                    .bind(c.clocks.map(|clocks| clocks.wall_started_ms))
                    .bind(began.map(|clocks| clocks.boot))
                    .bind(began.map(|clocks| clocks.start_mono_ms))
            }
            Statement::Event(c, event) => query(INSERT_EVENT)
                .bind(&c.org)
                .bind(c.session.as_str())
                .bind(c.no.machine)
                .bind(event.kind.as_str())
                .bind(event.source.as_str())
                .bind(c.seq)
                .bind(event.at.0)
                .bind(event.elapsed_s)
                .bind(event.bt_c)
                .bind(event.note.as_deref())
                .bind(c.trust)
                .bind(c.published.as_deref())
                .bind(c.clocks.map(|clocks| clocks.elapsed_ms)),
        }
    };
}

impl<'c> Statement<'c> {
    pub(super) fn bind_pg(self) -> PgQuery<'c> {
        bind!(self)
    }

    pub(super) fn bind_sqlite(self) -> SqliteQuery<'c> {
        bind!(self)
    }
}

impl SessionChange {
    /// Returns the change that an event at sample `seq` makes.
    #[must_use]
    pub fn from_event(org: &str, no: ChainNo, seq: i64, event: &MachineEvent) -> Self {
        let started = event.at.plus_ms(elapsed_ms(event).saturating_neg());
        let (session, mut event) = (event.session.clone(), event.clone());
        // PostgreSQL's text cannot hold a NUL; the signed bytes keep the original.
        event.note = event.note.map(|note| note.replace('\0', "\u{fffd}"));
        let event = Some(event);
        Self {
            org: org.to_owned(),
            no,
            session,
            started,
            seq,
            event,
            trust: 0,
            published: None,
            clocks: None,
        }
    }

    /// Returns the same change, with what a publisher said about the event.
    #[must_use]
    pub fn with_published(mut self, published: Option<String>) -> Self {
        self.published = published;
        self
    }

    /// Returns the same change, with the clocks of the gateway's frame that holds the event, and
    /// with the date of the frame's row.
    pub(super) fn with_clocks(mut self, frame: &Frame, date: &FrameDate) -> Self {
        let mono = i64::try_from(frame.mono_ms).unwrap_or(i64::MAX);
        // The frames of an imported recording have no clock; a gateway's frame without samples has.
        let has_clock = frame.clock != ClockQuality::Unknown || frame.sample_count() == 0;
        self.clocks = self.event.as_ref().filter(|_| has_clock).map(|event| GatewayClocks {
            wall_started_ms: self.started.0,
            boot: frame.boot_id.cast_signed(),
            // The dates of a frame and of its events are on one line: the gateway counts both from
            // the frame's first sample by the monotonic clock.
            start_mono_ms: mono.saturating_add(self.started.ms_since(frame.wall)),
            elapsed_ms: elapsed_ms(event),
        });
        self.started = self.started.plus_ms(date.shift_ms());
        if let Some(event) = &mut self.event {
            event.at = event.at.plus_ms(date.shift_ms());
        }
        self
    }

    /// Returns the same change, with the trust of the event's message.
    #[must_use]
    pub const fn with_trust(mut self, trust: i16) -> Self {
        self.trust = trust;
        self
    }

    /// Returns the change that opens a session at sample `seq` without an event.
    #[must_use]
    pub fn opened(org: &str, no: ChainNo, session: &SessionId, started: EpochMs, seq: i64) -> Self {
        Self {
            org: org.to_owned(),
            no,
            session: session.clone(),
            started,
            seq,
            event: None,
            trust: 0,
            published: None,
            clocks: None,
        }
    }

    /// Returns the session that this change opens, as it is read back.
    pub(super) fn session_row(&self, origin: &Origin) -> SessionRow {
        let is = |kind| self.event.as_ref().filter(|event| event.kind == kind);
        let (fc, drop) = (is(EventKind::Fc), is(EventKind::Drop));
        let begins = self.event.is_none() || is(EventKind::Charge).is_some();
        let began = self.clocks.filter(|_| begins);
        SessionRow {
            session_id: self.session.to_string(),
            site_id: origin.site.to_string(),
            machine_id: origin.machine.to_string(),
            machine_no: self.no.machine,
            chain_no: self.no.chain,
            kid: String::new(),
            started_ms: self.started.0,
            ended_ms: drop.map(|event| event.at.0),
            status: if drop.is_some() { "CLOSED" } else { "ACTIVE" }.to_owned(),
            first_seq: begins.then_some(self.seq),
            last_seq: drop.map(|_| self.seq),
            fc_s: fc.map(|event| event.elapsed_s),
            drop_s: drop.map(|event| event.elapsed_s),
            completeness: "open".to_owned(),
            points: None,
            verified_points: None,
            unsigned_points: None,
            failed_points: None,
            max_bt_c: None,
            wall_started_ms: self.clocks.map(|clocks| clocks.wall_started_ms),
            boot: began.map(|clocks| clocks.boot),
            start_mono_ms: began.map(|clocks| clocks.start_mono_ms),
            closed_seen_ms: None,
            start_estimated: 0,
            begun_before: i64::from(
                is(EventKind::Charge)
                    .is_some_and(|charge| charge.note.as_deref() == Some(BEGUN_BEFORE_NOTE)),
            ),
        }
    }

    /// Returns the event of this change in a session that began at `started`, as it is read back.
    pub(super) fn event_row(&self, origin: &Origin, started: EpochMs) -> Option<EventRow> {
        let event = self.event.as_ref()?;
        let measured = self.clocks.map(|clocks| started.plus_ms(clocks.elapsed_ms));
        Some(EventRow {
            arrival: 1,
            session_id: self.session.to_string(),
            site_id: origin.site.to_string(),
            machine_id: origin.machine.to_string(),
            machine_no: self.no.machine,
            kind: event.kind.as_str().to_owned(),
            source: event.source.as_str().to_owned(),
            at_ms: measured.unwrap_or(event.at).0,
            elapsed_s: event.elapsed_s,
            bt_c: event.bt_c,
            note: event.note.clone(),
            trust: self.trust,
            published: self.published.clone(),
        })
    }

    pub(super) fn statements(&self) -> [Option<Statement<'_>>; 2] {
        [
            Some(Statement::Session(self)),
            self.event.as_ref().map(|event| Statement::Event(self, event)),
        ]
    }
}

/// Returns the time of an event since CHARGE, in ms.
#[allow(clippy::cast_possible_truncation)] // seconds of a roast, as milliseconds
fn elapsed_ms(event: &MachineEvent) -> i64 {
    (event.elapsed_s * 1000.0).round() as i64
}

/// A session as it is stored.
#[derive(Debug, Clone, FromRow)]
pub struct SessionRow {
    pub session_id: String,
    pub site_id: String,
    pub machine_id: String,
    pub machine_no: i64,
    pub chain_no: i64,
    pub kid: String,
    pub started_ms: i64,
    pub ended_ms: Option<i64>,
    pub status: String,
    pub first_seq: Option<i64>,
    pub last_seq: Option<i64>,
    pub fc_s: Option<f64>,
    pub drop_s: Option<f64>,
    pub completeness: String,
    pub points: Option<i64>,
    pub verified_points: Option<i64>,
    pub unsigned_points: Option<i64>,
    pub failed_points: Option<i64>,
    pub max_bt_c: Option<f64>,
    /// The start by the gateway's clock, if a gateway reported it.
    pub wall_started_ms: Option<i64>,
    /// The boot that CHARGE is in, and its time on that boot's monotonic clock.
    pub boot: Option<i64>,
    pub start_mono_ms: Option<i64>,
    /// When the session was first seen closed, by the server's clock.
    pub closed_seen_ms: Option<i64>,
    /// 1 if `started_ms` was estimated from the arrival of frames.
    pub start_estimated: i64,
    /// How many CHARGE events say that the roast began before its agent was started.
    pub begun_before: i64,
}

impl SessionRow {
    /// Returns the time of a sample since the start of the session, in ms. It is measured by the
    /// monotonic clock within the boot of CHARGE; in a later boot the gateway counts its dates from
    /// the start of the roast, so that they measure it too.
    #[must_use]
    pub fn elapsed_ms(&self, frame: &FrameRow, i: usize) -> i64 {
        let offset = i64::from(frame.offsets_ms.get(i).copied().unwrap_or(0));
        let (first, start) = match (frame.boot, self.boot.zip(self.start_mono_ms)) {
            (Some(boot), Some((session_boot, start))) if boot == session_boot => {
                (frame.mono_ms, start)
            }
            // A curve is dated with its session.
            (None, _) => (frame.t0_ms, self.started_ms),
            (Some(_), _) => (
                frame.wall_ms.unwrap_or(frame.t0_ms),
                self.wall_started_ms.unwrap_or(self.started_ms),
            ),
        };
        first.saturating_add(offset).saturating_sub(start)
    }

    /// Returns the duration of an ended session in seconds; `None` while it runs, and if its
    /// publisher's dates contradict each other and it has no DROP.
    #[must_use]
    pub fn duration_s(&self) -> Option<f64> {
        let by_dates_ms = self.ended_ms?.saturating_sub(self.started_ms);
        // A gateway measures the time of its DROP, and a publisher says it: both go before dates.
        self.drop_s.or_else(|| (by_dates_ms >= 0).then_some(by_dates_ms as f64 / 1000.0))
    }

    /// Returns when the session ended: never before its start.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as milliseconds
    pub fn ended(&self) -> Option<EpochMs> {
        let started = EpochMs(self.started_ms);
        let ended = self.ended_ms.map(EpochMs)?;
        let measured = self.duration_s().map(|s| started.plus_ms((s * 1000.0).round() as i64));
        Some(measured.unwrap_or_else(|| ended.max(started)))
    }
}

pub(super) const SELECT_SESSION: &str = "\
SELECT s.session_id, m.site_id, m.machine_id, s.machine_no, s.chain_no, c.kid, s.started_ms, \
       s.ended_ms, s.status, s.first_seq, s.last_seq, s.fc_s, s.drop_s, s.completeness, s.points, \
       s.verified_points, s.unsigned_points, s.failed_points, s.max_bt_c, s.wall_started_ms, \
       s.boot, s.start_mono_ms, s.closed_seen_ms, \
       CAST(COALESCE(o.estimated, 0) AS bigint) AS start_estimated, \
       (SELECT COUNT(*) FROM events e WHERE e.org_id = s.org_id AND e.session_id = s.session_id \
        AND e.kind = 'CHARGE' \
        AND e.note = 'begun before the agent started; CHARGE is an estimate') AS begun_before \
FROM sessions s JOIN machines m ON m.machine_no = s.machine_no \
JOIN chains c ON c.chain_no = s.chain_no \
LEFT JOIN clock_offsets o ON o.chain_no = s.chain_no AND o.boot = s.boot ";

/// A receipt whose session has not been found complete yet.
#[derive(Debug, Clone, FromRow)]
pub struct OpenReceipt {
    pub org_id: String,
    pub session_id: String,
    pub started_ms: i64,
    pub chain_no: i64,
    pub completeness: String,
    pub receipt: Vec<u8>,
    pub next_number: i64,
    pub gaps: String,
    pub last_digest: Option<Vec<u8>>,
}

impl IngestStore {
    /// Stores a verified receipt with its session, and opens the session if its events have not
    /// arrived. Returns whether the session has been found complete before: then the device has not
    /// received that result.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn store_receipt(
        &self,
        no: ChainNo,
        receipt: &contract::Receipt,
        signed: &[u8],
        now: EpochMs,
    ) -> Result<bool, StoreError> {
        // A roast does not end in the future; how long it took is right all the same.
        let ahead_ms = verified_frame::ahead_ms(receipt.ended, now);
        let duration_ms = receipt.ended.ms_since(receipt.started).max(0);
        let (begun, duration_ms) = if duration_ms > ROAST_MS_MAX {
            (receipt.ended, 0) // dates of two clocks, which measure nothing
        } else {
            (receipt.started, duration_ms)
        };
        let started = begun.plus_ms(ahead_ms.saturating_neg());
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        on!(self.database, pool => query(
            "INSERT INTO sessions (org_id, session_id, machine_no, chain_no, started_ms, ended_ms, \
             status, first_seq, last_seq, receipt, wall_started_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, 'CLOSED', $7, $8, $9, $10) \
             ON CONFLICT (org_id, session_id) DO UPDATE SET receipt = EXCLUDED.receipt, \
             ended_ms = COALESCE(sessions.ended_ms, \
                 sessions.started_ms + EXCLUDED.ended_ms - EXCLUDED.started_ms), \
             status = 'CLOSED', \
             wall_started_ms = COALESCE(sessions.wall_started_ms, EXCLUDED.wall_started_ms), \
             first_seq = EXCLUDED.first_seq, last_seq = EXCLUDED.last_seq \
             WHERE sessions.chain_no = EXCLUDED.chain_no AND sessions.completeness <> 'complete'")
            .bind(receipt.origin.org.as_str()).bind(receipt.session.as_str())
            .bind(no.machine).bind(no.chain).bind(started.0).bind(started.plus_ms(duration_ms).0)
            .bind(number(receipt.first_seq)).bind(number(receipt.last_seq)).bind(signed)
            .bind(receipt.started.0)
            .execute(pool).await.map(drop))
        .map_err(StoreError::query("storing a receipt"))?;
        let found: Option<String> = on!(self.database, pool => sqlx::query_scalar(
            "SELECT completeness FROM sessions WHERE org_id = $1 AND session_id = $2 AND chain_no = $3")
            .bind(receipt.origin.org.as_str()).bind(receipt.session.as_str()).bind(no.chain)
            .fetch_optional(pool).await)
        .map_err(StoreError::query("storing a receipt"))?;
        Ok(found.as_deref() == Some(contract::session::Completeness::Complete.as_str()))
    }

    /// Returns the digests of a chain's frames from `first` to `last`, in order.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn digests(
        &self,
        chain_no: i64,
        first: u64,
        last: u64,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        on!(self.database, pool => sqlx::query_scalar(
            "SELECT digest FROM frames WHERE chain_no = $1 AND number BETWEEN $2 AND $3 ORDER BY number")
            .bind(chain_no).bind(number(first)).bind(number(last)).fetch_all(pool).await)
        .map_err(StoreError::query("reading digests"))
    }

    /// Records the completeness that was found for a session, and its totals once it is complete.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_completeness(
        &self,
        org: &str,
        session: &str,
        completeness: contract::session::Completeness,
        totals: Option<Totals>,
    ) -> Result<(), StoreError> {
        let t = totals;
        on!(self.database, pool => query(
            "UPDATE sessions SET completeness = $3, points = COALESCE($4, points), \
             verified_points = COALESCE($5, verified_points), \
             unsigned_points = COALESCE($6, unsigned_points), \
             failed_points = COALESCE($7, failed_points), max_bt_c = COALESCE($8, max_bt_c) \
             WHERE org_id = $1 AND session_id = $2")
            .bind(org).bind(session).bind(completeness.as_str())
            .bind(t.map(|t| t.points)).bind(t.map(|t| t.verified)).bind(t.map(|t| t.unsigned))
            .bind(t.map(|_| 0_i64)).bind(t.and_then(|t| t.max_bt_c))
            .execute(pool).await.map(drop))
        .map_err(StoreError::query("recording a session's completeness"))
    }
}

/// The totals of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    pub points: i64,
    pub verified: i64,
    pub unsigned: i64,
    pub max_bt_c: Option<f64>,
}
