//! Frames and receipts that are not signed yet, because the key could not be used. They are stored
//! like the others, and sent once they are signed.

use contract::{ChainId, Origin, Receipt};
use rusqlite::{Transaction, params};

use super::{Journal, JournalError};
use crate::recorder::ClosedRoast;

/// An encoded frame or receipt without a signature, and the key of its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedItem<K> {
    /// The frame's id, or the receipt's session.
    pub key: K,
    /// The encoded content that is to be signed.
    pub text: Vec<u8>,
}

impl Journal {
    /// Returns the oldest frames that are not signed, at most `limit`.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn unsigned_frames(&self, limit: usize) -> Result<Vec<UnsignedItem<i64>>, JournalError> {
        const DOING: &str = "reading unsigned frames";
        let mut rows = self
            .db
            .prepare_cached("SELECT id, signed FROM frames WHERE state = 3 ORDER BY id LIMIT ?1")
            .map_err(JournalError::sql(DOING))?;
        rows.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(UnsignedItem { key: row.get(0)?, text: row.get(1)? })
        })
        .and_then(Iterator::collect)
        .map_err(JournalError::sql(DOING))
    }

    /// Stores the signed messages of frames that were not signed. From now on they can be sent.
    ///
    /// # Errors
    /// When the journal cannot be written. Then all of them remain unsigned.
    pub fn store_signed_frames(&mut self, signed: &[(i64, Vec<u8>)]) -> Result<(), JournalError> {
        const DOING: &str = "storing signed frames";
        let tx = self.db.transaction().map_err(JournalError::sql(DOING))?;
        let put = || -> rusqlite::Result<()> {
            let mut update = tx.prepare_cached(
                "UPDATE frames SET state = 0, signed = ?2 WHERE id = ?1 AND state = 3",
            )?;
            signed.iter().try_for_each(|(id, bytes)| update.execute(params![id, bytes]).map(drop))
        };
        put().map_err(JournalError::sql(DOING))?;
        tx.commit().map_err(JournalError::sql(DOING))
    }

    /// Returns receipts that are not signed, at most `limit`.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn unsigned_receipts(
        &self,
        limit: usize,
    ) -> Result<Vec<UnsignedItem<String>>, JournalError> {
        const DOING: &str = "reading unsigned receipts";
        let mut rows = self
            .db
            .prepare_cached(
                "SELECT session, unsigned_receipt FROM roasts \
                 WHERE unsigned_receipt IS NOT NULL AND receipt IS NULL LIMIT ?1",
            )
            .map_err(JournalError::sql(DOING))?;
        rows.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(UnsignedItem { key: row.get(0)?, text: row.get(1)? })
        })
        .and_then(Iterator::collect)
        .map_err(JournalError::sql(DOING))
    }

    /// Stores the signed receipt of a roast whose receipt was not signed.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn store_signed_receipt(&self, session: &str, signed: &[u8]) -> Result<(), JournalError> {
        self.db
            .execute(
                "UPDATE roasts SET receipt = ?2, unsigned_receipt = NULL WHERE session = ?1",
                params![session, signed],
            )
            .map(drop)
            .map_err(JournalError::sql("storing a signed receipt"))
    }
}

/// Stores the unsigned receipt of a closed roast, with a digest over the digests of its frames in
/// order. The transaction is the one of the roast's last frame: after a power cut either the
/// receipt is stored, or the roast is still running. If a frame of the roast is missing, the roast
/// gets no receipt, and the cloud never confirms it as complete; [`Journal::take_over`] tries again
/// when a journal in memory brings the frames.
pub(super) fn put_receipt(
    tx: &Transaction<'_>,
    origin: &Origin,
    chain: ChainId,
    closed: &ClosedRoast,
) -> rusqlite::Result<()> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let (first, last) = (closed.roast.first_frame, closed.last_frame);
    let mut rows = tx.prepare_cached(
        "SELECT digest FROM frames WHERE chain = ?1 AND number BETWEEN ?2 AND ?3 ORDER BY number",
    )?;
    let digests =
        rows.query_map(params![chain.0, number(first), number(last)], |row| row.get(0))?;
    let digests: Vec<[u8; 32]> = digests.collect::<Result<_, _>>()?;
    let frames = last.checked_sub(first).and_then(|after| after.checked_add(1));
    if digests.is_empty() || Some(digests.len() as u64) != frames {
        tracing::error!(session = %closed.roast.session, "frames of a roast are not in this journal; no receipt");
        return Ok(());
    }
    let receipt = Receipt {
        origin: origin.clone(),
        session: closed.roast.session.clone(),
        chain,
        first_frame: first,
        last_frame: last,
        first_seq: closed.roast.first_seq,
        last_seq: closed.last_seq,
        started: closed.roast.started,
        ended: closed.ended,
        digest: trust::sha256_digest(&digests.concat()),
    };
    tx.execute(
        "UPDATE roasts SET unsigned_receipt = ?2 WHERE session = ?1",
        params![receipt.session.as_str(), receipt.encode()],
    )
    .map(drop)
}
