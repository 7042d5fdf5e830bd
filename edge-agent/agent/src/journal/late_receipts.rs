//! Makes the receipts of roasts that closed while their frames were in two journals: the first ones
//! on a damaged disk, the last ones in memory. Once the journal in memory has moved to disk, the
//! frames are together.

use contract::{ChainId, EpochMs, EventKind, Origin, SessionId};
use rusqlite::{Connection, params};

use super::chains::read_origin;
use super::salvage::decode_stored;
use super::unsigned::put_receipt;
use super::{Journal, JournalError};
use crate::recorder::{ClosedRoast, RunningRoast};

/// How many roasts get their receipts at once. More than one closes in memory only if a salvage takes
/// as long as a roast.
const ROASTS_MAX: i64 = 16;
/// DROP is in the roast's last frame, or at most so many frames later: the curve shows it late.
const DROP_WITHIN_FRAMES: i64 = 600;

impl Journal {
    /// Stores the unsigned receipts of closed roasts that have none, if all of their frames are
    /// here. The times of the end are those of DROP: a roast that ended without one gets no receipt.
    ///
    /// # Errors
    /// When the journal cannot be read or written. Nothing is stored then.
    pub(super) fn add_late_receipts(&self) -> Result<(), JournalError> {
        const DOING: &str = "making the receipts of roasts that closed in memory";
        let tx = self.db.unchecked_transaction().map_err(JournalError::sql(DOING))?;
        let put = || -> rusqlite::Result<()> {
            for (origin, chain, closed) in closed_without_receipt(&tx)? {
                put_receipt(&tx, &origin, chain, &closed)?;
            }
            Ok(())
        };
        put().map_err(JournalError::sql(DOING))?;
        tx.commit().map_err(JournalError::sql(DOING))
    }
}

/// Returns the newest closed roasts without a receipt whose DROP is stored.
fn closed_without_receipt(
    db: &Connection,
) -> rusqlite::Result<Vec<(Origin, ChainId, ClosedRoast)>> {
    let mut rows = db.prepare_cached(
        "SELECT c.origin, r.chain, r.session, r.started_ms, r.first_seq, r.first_frame, \
         r.last_frame FROM roasts r JOIN chains c ON c.chain = r.chain \
         WHERE r.state = 1 AND r.receipt IS NULL AND r.unsigned_receipt IS NULL \
         AND r.last_frame IS NOT NULL ORDER BY r.rowid DESC LIMIT ?1",
    )?;
    let mut rows = rows.query([ROASTS_MAX])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let chain = ChainId(row.get(1)?);
        let Ok(session) = SessionId::new(row.get::<_, String>(2)?) else { continue };
        let last_frame: i64 = row.get(6)?;
        let Some((last_seq, ended)) = find_drop(db, chain, last_frame, &session)? else { continue };
        let first_seq = row.get::<_, i64>(4)?.unsigned_abs();
        let roast = RunningRoast {
            session,
            started: EpochMs(row.get(3)?),
            first_seq,
            first_frame: row.get::<_, i64>(5)?.unsigned_abs(),
            event_kinds: Vec::new(),
            charge: None,
        };
        let (last_seq, last_frame) = (last_seq.max(first_seq), last_frame.unsigned_abs());
        let closed = ClosedRoast { roast, last_seq, last_frame, ended };
        found.push((read_origin(row, 0)?, chain, closed));
    }
    Ok(found)
}

/// Returns the sample and the time of a roast's DROP, which is in the frame `last_frame` or after it.
fn find_drop(
    db: &Connection,
    chain: ChainId,
    last_frame: i64,
    session: &SessionId,
) -> rusqlite::Result<Option<(u64, EpochMs)>> {
    let mut rows = db.prepare_cached(
        "SELECT state, signed FROM frames WHERE chain = ?1 AND number >= ?2 \
         ORDER BY number LIMIT ?3",
    )?;
    let mut rows = rows.query(params![chain.0, last_frame, DROP_WITHIN_FRAMES])?;
    while let Some(row) = rows.next()? {
        let message: Vec<u8> = row.get(1)?;
        let Some(frame) = decode_stored(row.get(0)?, &message) else { continue };
        let mut events = frame.events.iter();
        let dropped = events.find(|e| e.kind == EventKind::Drop && e.session == *session);
        if let Some(dropped) = dropped {
            return Ok(Some((dropped.seq, dropped.at)));
        }
    }
    Ok(None)
}
