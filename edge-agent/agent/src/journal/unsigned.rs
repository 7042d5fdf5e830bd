//! Frames and receipts that wait for the key: kept like the others, sent once they are signed.

use contract::Receipt;
use rusqlite::params;

use super::{Journal, JournalError};

/// `frames.state` of a frame that is not signed yet.
pub const STATE: i64 = 3;

/// A text that waits for the key, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting<K> {
    pub key: K,
    pub text: Vec<u8>,
}

impl Journal {
    /// The oldest frames that are not signed, at most `limit`.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub fn unsigned_frames(&self, limit: usize) -> Result<Vec<Waiting<i64>>, JournalError> {
        const DOING: &str = "reading frames that wait for the key";
        let mut rows = self
            .db
            .prepare_cached("SELECT id, signed FROM frames WHERE state = 3 ORDER BY id LIMIT ?1")
            .map_err(JournalError::sql(DOING))?;
        rows.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(Waiting { key: row.get(0)?, text: row.get(1)? })
        })
        .and_then(Iterator::collect)
        .map_err(JournalError::sql(DOING))
    }

    /// Keeps the signed messages of frames that waited: from now on they are to be sent.
    ///
    /// # Errors
    /// When the disk does not take it; then all of them wait on.
    pub fn frames_signed(&mut self, signed: &[(i64, Vec<u8>)]) -> Result<(), JournalError> {
        const DOING: &str = "keeping signed frames";
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

    /// Keeps a receipt that cannot be signed now.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn keep_unsigned_receipt(&self, receipt: &Receipt) -> Result<(), JournalError> {
        self.db
            .execute(
                "UPDATE roasts SET unsigned_receipt = ?2 WHERE session = ?1",
                params![receipt.session.as_str(), receipt.encode()],
            )
            .map(drop)
            .map_err(JournalError::sql("keeping a receipt that waits for the key"))
    }

    /// A receipt that waits for the key.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub fn unsigned_receipts(&self, limit: usize) -> Result<Vec<Waiting<String>>, JournalError> {
        const DOING: &str = "reading receipts that wait for the key";
        let mut rows = self
            .db
            .prepare_cached(
                "SELECT session, unsigned_receipt FROM roasts \
                 WHERE unsigned_receipt IS NOT NULL AND receipt IS NULL LIMIT ?1",
            )
            .map_err(JournalError::sql(DOING))?;
        rows.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(Waiting { key: row.get(0)?, text: row.get(1)? })
        })
        .and_then(Iterator::collect)
        .map_err(JournalError::sql(DOING))
    }

    /// Keeps the signed receipt of a roast whose receipt waited.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn receipt_signed(&self, session: &str, signed: &[u8]) -> Result<(), JournalError> {
        self.db
            .execute(
                "UPDATE roasts SET receipt = ?2, unsigned_receipt = NULL WHERE session = ?1",
                params![session, signed],
            )
            .map(drop)
            .map_err(JournalError::sql("keeping a signed receipt"))
    }
}
