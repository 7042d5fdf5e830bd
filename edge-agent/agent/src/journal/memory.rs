//! The journal in memory, which takes the place of the one on disk while the disk cannot be used.
//!
//! It is small, and it is lost with the process. Its frames are sent like those on disk; the quota
//! deletes only frames that the cloud has. What is left moves to disk as soon as a disk can be used.

use std::path::Path;

use contract::Origin;
use roast::machine_model::MachineModel;
use rusqlite::types::Value;
use rusqlite::{Connection, Transaction, params_from_iter};

use super::roasts::exchange_learned;
use super::{Journal, JournalError};

/// The largest journal in memory, in bytes: about two hours of frames of one second.
pub const MEMORY_BYTES_MAX: u64 = 8 * 1024 * 1024;

impl Journal {
    /// Creates an empty journal in memory.
    ///
    /// # Errors
    /// When no memory is left.
    pub fn in_memory() -> Result<Self, JournalError> {
        let db = Connection::open_in_memory()
            .map_err(JournalError::sql("creating a journal in memory"))?;
        let journal = Self::set_up(db, Path::new(":memory:"), MEMORY_BYTES_MAX)?;
        Ok(Self { in_memory: true, ..journal })
    }

    /// Returns whether this journal is in memory.
    pub const fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Returns whether the journal is larger than its quota, after everything that may be deleted
    /// was deleted.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn is_over_quota(&self) -> Result<bool, JournalError> {
        Ok(self.used_bytes()? > self.quota_bytes)
    }

    /// Returns what was learned about the machine `origin`: what was set aside if this journal is of
    /// another machine.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn learned_about(&self, origin: &Origin) -> Result<MachineModel, JournalError> {
        if self.machine()?.as_ref() == Some(origin) {
            return self.learned();
        }
        Ok(self.learned_before(origin)?.unwrap_or_default())
    }

    /// Moves the content of `memory` into this journal, behind what it contains, and continues the
    /// chain of `memory`. Roasts that were running in this journal are abandoned. If `memory` is of
    /// another machine, what was learned is exchanged. A roast that closed in memory gets its receipt
    /// now, if all of its frames are here.
    ///
    /// # Errors
    /// When this journal cannot be written. Nothing is moved then.
    pub fn take_over(&mut self, memory: &Self) -> Result<(), JournalError> {
        const DOING: &str = "moving the journal from memory to disk";
        let from = &memory.db;
        let machines = self.machine()?.zip(memory.machine()?);
        let tx = self.db.transaction().map_err(JournalError::sql(DOING))?;
        let put = || -> rusqlite::Result<()> {
            tx.execute("UPDATE roasts SET state = 3 WHERE state = 0", [])?;
            if let Some((before, now)) = machines.filter(|(before, now)| before != now) {
                exchange_learned(&tx, &before, &now)?;
            }
            copy_content(from, &tx)?;
            copy_rows(
                from,
                &tx,
                "SELECT key, value FROM meta \
                 WHERE key IN ('chain', 'next_number', 'next_seq', 'last_digest')",
                "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)",
            )
        };
        put().map_err(JournalError::sql(DOING))?;
        tx.commit().map_err(JournalError::sql(DOING))?;
        if let Err(error) = self.add_late_receipts() {
            tracing::error!(%error, "roasts that closed in memory may have no receipt");
        }
        Ok(())
    }

    /// Adds the chains, frames and roasts of another journal that this one does not have. The
    /// current chain of this journal stays.
    ///
    /// # Errors
    /// When this journal cannot be written. Nothing is added then.
    pub fn add_content_of(&mut self, other: &Self) -> Result<(), JournalError> {
        const DOING: &str = "adding salvaged frames";
        let tx = self.db.transaction().map_err(JournalError::sql(DOING))?;
        copy_content(&other.db, &tx).map_err(JournalError::sql(DOING))?;
        tx.commit().map_err(JournalError::sql(DOING))
    }
}

/// Copies chains, frames and roasts. The frames get ids greater than those of both journals, in
/// their old order: the uplink must not mistake one for the frame that had the same id before.
fn copy_content(from: &Connection, to: &Transaction<'_>) -> rusqlite::Result<()> {
    let base = last_frame_id(from)?.max(last_frame_id(to)?).saturating_add(1);
    copy_rows(
        from,
        to,
        "SELECT chain, origin FROM chains",
        "INSERT OR IGNORE INTO chains (chain, origin) VALUES (?1, ?2)",
    )?;
    copy_rows(
        from,
        to,
        &format!(
            "SELECT id + {base}, chain, number, samples, made_ms, state, digest, signed \
             FROM frames ORDER BY id"
        ),
        "INSERT OR IGNORE INTO frames \
         (id, chain, number, samples, made_ms, state, digest, signed) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    copy_rows(
        from,
        to,
        "SELECT session, chain, started_ms, first_seq, first_frame, marked, last_frame, state, \
         receipt, unsigned_receipt, kernel_boot, charge_uptime_ms FROM roasts ORDER BY rowid",
        "INSERT INTO roasts (session, chain, started_ms, first_seq, first_frame, marked, \
         last_frame, state, receipt, unsigned_receipt, kernel_boot, charge_uptime_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
         ON CONFLICT (session) DO UPDATE SET marked = excluded.marked, \
         last_frame = excluded.last_frame, state = excluded.state, receipt = excluded.receipt, \
         unsigned_receipt = excluded.unsigned_receipt, kernel_boot = excluded.kernel_boot, \
         charge_uptime_ms = excluded.charge_uptime_ms WHERE state IN (0, 3)",
    )
}

fn last_frame_id(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT COALESCE(MAX(id), 0) FROM frames", [], |row| row.get(0))
}

/// Copies the rows of a query into another database with an INSERT of as many values.
fn copy_rows(
    from: &Connection,
    to: &Transaction<'_>,
    select: &str,
    insert: &str,
) -> rusqlite::Result<()> {
    let mut select = from.prepare(select)?;
    let columns = select.column_count();
    let mut insert = to.prepare(insert)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let values = (0..columns)
            .map(|column| row.get::<_, Value>(column))
            .collect::<rusqlite::Result<Vec<_>>>()?;
        insert.execute(params_from_iter(values))?;
    }
    Ok(())
}
