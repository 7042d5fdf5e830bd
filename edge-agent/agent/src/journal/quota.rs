//! The journal's quota: which frames are deleted when the journal is too large.

use rusqlite::params;

use super::{Journal, JournalError, STATE_ACKED, STATE_REFUSED, STATE_UNSENT, STATE_UNSIGNED};

impl Journal {
    /// Deletes frames until the journal is within its quota, or until only the running roast is
    /// left. A frame that only this journal has goes last: unsent frames after acknowledged ones,
    /// then frames that are not signed yet, then refused ones. Returns how many frames that the
    /// cloud has not acknowledged were deleted.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn enforce_quota(&mut self) -> Result<u64, JournalError> {
        let mut lost = 0_u64;
        let protected = self.running_roast_first_id()?.unwrap_or(i64::MAX);
        for state in [STATE_ACKED, STATE_UNSENT, STATE_UNSIGNED, STATE_REFUSED] {
            if state != STATE_ACKED && self.in_memory {
                break;
            }
            while self.used_bytes()? > self.quota_bytes {
                let deleted = self.delete_oldest(state, protected)?;
                if deleted == 0 {
                    break;
                }
                if state != STATE_ACKED {
                    lost = lost.saturating_add(deleted);
                }
            }
        }
        self.lost_frames = self.lost_frames.saturating_add(lost);
        Ok(lost)
    }

    /// Deletes some of the oldest frames of a state, with ids less than `before`. Returns how many.
    fn delete_oldest(&self, state: i64, before: i64) -> Result<u64, JournalError> {
        const AT_ONCE: i64 = 200;
        let deleted = self.db.execute(
            "DELETE FROM frames WHERE id IN \
             (SELECT id FROM frames WHERE state = ?1 AND id < ?2 ORDER BY id LIMIT ?3)",
            params![state, before, AT_ONCE],
        );
        deleted
            .map(|deleted| deleted as u64)
            .map_err(JournalError::sql("deleting frames for the quota"))
    }

    /// Returns the bytes in use: those of all pages that are not free.
    pub(super) fn used_bytes(&self) -> Result<i64, JournalError> {
        let pragma = |name: &str| -> Result<i64, JournalError> {
            self.db
                .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
                .map_err(JournalError::sql("measuring the journal"))
        };
        let used_pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
        Ok(used_pages.saturating_mul(pragma("page_size")?))
    }
}
