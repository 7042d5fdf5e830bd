//! Roasts in the journal: the running one, the closed ones, their receipts, and what was learned
//! from them about the machine.
//!
//! Row ids order the roasts: a roast is added when it begins. Sample numbers order only the roasts of
//! one chain, because a chain that began in memory numbers its samples from 0. No date orders them.

use contract::{ChainId, EpochMs, EventKind, Origin, SessionId};
use roast::machine_model::MachineModel;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::chains::read_origin;
use super::{Journal, JournalError};
use crate::clock::{KernelBoot, KernelTime};
use crate::recorder::RunningRoast;

impl Journal {
    /// Abandons all running roasts except `resumed`. Their end was not observed, so they get no
    /// DROP and no receipt, and they must not protect their frames from the quota any longer.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn abandon_roasts(&self, resumed: Option<&SessionId>) -> Result<(), JournalError> {
        self.db
            .execute(
                "UPDATE roasts SET state = 3 WHERE state = 0 AND session <> ?1",
                [resumed.map_or("", SessionId::as_str)],
            )
            .map(drop)
            .map_err(JournalError::sql("abandoning old roasts"))
    }

    /// Returns the roast that is running, or was running when the agent stopped.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn running_roast(&self) -> Result<Option<RunningRoast>, JournalError> {
        let row = self.db.query_row(
            "SELECT session, started_ms, first_seq, first_frame, marked, kernel_boot, \
             charge_uptime_ms FROM roasts WHERE state = 0 ORDER BY rowid DESC LIMIT 1",
            [],
            |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, i64>(2)?,
                    row.get::<_, i64>(3)?,
                    row.get::<_, String>(4)?,
                    row.get::<_, Option<String>>(5)?.zip(row.get::<_, Option<i64>>(6)?),
                ))
            },
        );
        let row = row.optional().map_err(JournalError::sql("looking for a running roast"))?;
        Ok(row.and_then(|(session, started_ms, first_seq, first_frame, marked, charge)| {
            Some(RunningRoast {
                session: SessionId::new(session).ok()?,
                started: EpochMs(started_ms),
                first_seq: u64::try_from(first_seq).ok()?,
                first_frame: u64::try_from(first_frame).ok()?,
                event_kinds: marked.split(' ').filter_map(EventKind::parse).collect(),
                charge: charge.and_then(|(boot, ms)| {
                    Some(KernelTime { boot: KernelBoot::parse(&boot)?, ms })
                }),
            })
        }))
    }

    /// Returns the id of the first frame of the running roast.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn running_roast_first_id(&self) -> Result<Option<i64>, JournalError> {
        self.db
            .query_row(
                "SELECT f.id FROM roasts r JOIN frames f ON f.chain = r.chain AND f.number = r.first_frame \
                 WHERE r.state = 0 ORDER BY r.rowid DESC LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()
            .map_err(JournalError::sql("finding the running roast"))
    }

    /// Returns what was learned about the machine up to the end of its last roast. Returns the
    /// default for a new machine, and if the stored value cannot be parsed: then it is learned
    /// again.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn learned(&self) -> Result<MachineModel, JournalError> {
        let stored = self.meta("learned")?;
        Ok(stored.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default())
    }

    /// Stores what was learned about the machine.
    ///
    /// # Errors
    /// When the journal cannot be written. It is stored again at the end of the next roast.
    pub fn save_learned(&self, learned: &MachineModel) -> Result<(), JournalError> {
        // This cannot fail: numbers and lists of numbers can always be written as JSON.
        let json = serde_json::to_vec(learned).unwrap_or_default();
        self.db
            .execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('learned', ?1)", [json])
            .map(drop)
            .map_err(JournalError::sql("storing what was learned"))
    }

    /// Returns what was learned about the machine `origin` before another took its place.
    pub(super) fn learned_before(
        &self,
        origin: &Origin,
    ) -> Result<Option<MachineModel>, JournalError> {
        let stored = self.meta(&learned_of(origin))?;
        Ok(stored.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// Continues with what was learned under `previous`, the machine's id before it was renamed,
    /// unless something has been learned under its present id. Returns what is known then.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn learned_since_rename(&self, previous: &Origin) -> Result<MachineModel, JournalError> {
        let learned = self.learned()?;
        match self.learned_before(previous)? {
            Some(before) if learned.roasts == 0 => {
                self.save_learned(&before)?;
                Ok(before)
            }
            _ => Ok(learned),
        }
    }

    /// Returns the signed receipts of closed roasts that the cloud has not confirmed as complete,
    /// newest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn open_receipts(&self, limit: usize) -> Result<Vec<(Origin, Vec<u8>)>, JournalError> {
        const DOING: &str = "reading open receipts";
        let mut rows = self
            .db
            .prepare_cached(
                "SELECT c.origin, r.receipt FROM roasts r JOIN chains c ON c.chain = r.chain WHERE r.state = 1 AND r.receipt IS NOT NULL \
                 ORDER BY r.rowid DESC LIMIT ?1",
            )
            .map_err(JournalError::sql(DOING))?;
        rows.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok((read_origin(row, 0)?, row.get(1)?))
        })
        .and_then(Iterator::collect)
        .map_err(JournalError::sql(DOING))
    }
}

/// Returns the key under which what was learned about a machine is set aside.
fn learned_of(origin: &Origin) -> String {
    format!("learned {origin}")
}

/// Sets aside what was learned about the machine `before`, and continues with what was set aside
/// about the machine `now`, if anything was.
pub(super) fn exchange_learned(
    db: &Connection,
    before: &Origin,
    now: &Origin,
) -> rusqlite::Result<()> {
    const COPY: &str = "INSERT OR REPLACE INTO meta (key, value) \
                        SELECT ?1, value FROM meta WHERE key = ?2";
    db.execute(COPY, [learned_of(before).as_str(), "learned"])?;
    db.execute("DELETE FROM meta WHERE key = 'learned'", [])?;
    db.execute(COPY, ["learned", learned_of(now).as_str()]).map(drop)
}

/// Inserts or updates a roast. With `last_frame` the roast is closed, without it running.
pub(super) fn put_roast(
    tx: &rusqlite::Transaction<'_>,
    chain: ChainId,
    roast: &RunningRoast,
    last_frame: Option<u64>,
) -> rusqlite::Result<()> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let marked: Vec<&str> = roast.event_kinds.iter().map(|kind| kind.as_str()).collect();
    tx.prepare_cached(
        "INSERT INTO roasts (session, chain, started_ms, first_seq, first_frame, marked, last_frame, \
         state, kernel_boot, charge_uptime_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
         ON CONFLICT (session) DO UPDATE SET marked = excluded.marked, \
         last_frame = excluded.last_frame, state = excluded.state, \
         kernel_boot = excluded.kernel_boot, charge_uptime_ms = excluded.charge_uptime_ms \
         WHERE marked <> excluded.marked OR state <> excluded.state \
         OR kernel_boot IS NOT excluded.kernel_boot \
         OR charge_uptime_ms IS NOT excluded.charge_uptime_ms",
    )?
    .execute(params![
        roast.session.as_str(),
        chain.0,
        roast.started.0,
        number(roast.first_seq),
        number(roast.first_frame),
        marked.join(" "),
        last_frame.map(number),
        i64::from(last_frame.is_some()),
        roast.charge.map(|charge| charge.boot.to_string()),
        roast.charge.map(|charge| charge.ms)
    ])
    .map(drop)
}
