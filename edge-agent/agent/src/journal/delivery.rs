//! Reads the frames that are to be sent, and applies the cloud's acknowledgements.

use contract::{ChainId, FrameRange, Origin};
use rusqlite::{OptionalExtension as _, params};

use super::chains::read_origin;
use super::{Journal, JournalError, OutgoingFrame};

/// The most that one read of unsent frames may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimit {
    pub frames: usize,
    /// The total size of the signed messages. The first frame is always returned, whatever its
    /// size.
    pub bytes: usize,
}

impl FetchLimit {
    /// Returns a limit on the number of frames only, of any size.
    #[must_use]
    pub const fn of_frames(frames: usize) -> Self {
        Self { frames, bytes: usize::MAX }
    }
}

impl Journal {
    /// Returns the machines with frames or receipts that the cloud does not have yet, at most 16.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn unsent_origins(&self) -> Result<Vec<Origin>, JournalError> {
        const DOING: &str = "listing the machines of unsent frames";
        let mut rows = self
            .db
            .prepare(
                "SELECT origin FROM chains c WHERE \
                 EXISTS (SELECT 1 FROM frames f WHERE f.chain = c.chain AND f.state IN (0, 3)) OR \
                 EXISTS (SELECT 1 FROM roasts r WHERE r.chain = c.chain AND r.state = 1) \
                 GROUP BY origin LIMIT 16",
            )
            .map_err(JournalError::sql(DOING))?;
        rows.query_map([], |row| read_origin(row, 0))
            .and_then(Iterator::collect)
            .map_err(JournalError::sql(DOING))
    }

    /// Returns unsent frames with ids greater than `after` and less than `before`, oldest first.
    /// Skips the chains in `except`; only its first four entries count.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn unsent(
        &self,
        after: i64,
        before: i64,
        room: FetchLimit,
        except: &[ChainId],
    ) -> Result<Vec<OutgoingFrame>, JournalError> {
        const DOING: &str = "reading unsent frames";
        let mut rows = self
            .db
            .prepare_cached(
                "SELECT id, chain, number, signed, \
                 (SELECT origin FROM chains c WHERE c.chain = frames.chain) FROM frames \
                 WHERE state = 0 AND id > ?1 AND id < ?2 AND chain NOT IN (?4, ?5, ?6, ?7) \
                 ORDER BY id LIMIT ?3",
            )
            .map_err(JournalError::sql(DOING))?;
        let limit = i64::try_from(room.frames).unwrap_or(i64::MAX);
        let except = |i: usize| except.get(i).map_or([0; 16], |chain| chain.0);
        let values = params![after, before, limit, except(0), except(1), except(2), except(3)];
        let mut found = rows.query(values).map_err(JournalError::sql(DOING))?;
        let (mut frames, mut bytes): (Vec<OutgoingFrame>, usize) = (Vec::new(), 0);
        while let Some(row) = found.next().map_err(JournalError::sql(DOING))? {
            let frame = outgoing(row).map_err(JournalError::sql(DOING))?;
            bytes = bytes.saturating_add(frame.signed.len());
            if bytes > room.bytes && !frames.is_empty() {
                break;
            }
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Returns the newest unsent frame: after an outage the agent sends the newest frame first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn newest_unsent(&self) -> Result<Option<OutgoingFrame>, JournalError> {
        self.db
            .query_row(
                "SELECT id, chain, number, signed, \
                 (SELECT origin FROM chains c WHERE c.chain = frames.chain) FROM frames \
                 WHERE state = 0 ORDER BY id DESC LIMIT 1",
                [],
                outgoing,
            )
            .optional()
            .map_err(JournalError::sql("reading the newest unsent frame"))
    }

    /// Applies an acknowledgement from the cloud: frames that it has committed, needs again or
    /// refuses, and roasts that are complete.
    ///
    /// # Errors
    /// When the journal cannot be written. Nothing is applied then; the cloud sends it again.
    pub fn apply_ack(&mut self, ack: &contract::Ack) -> Result<(), JournalError> {
        const DOING: &str = "applying an acknowledgement";
        let tx = self.db.transaction().map_err(JournalError::sql(DOING))?;
        let ends = |range: &FrameRange| {
            let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            (number(range.first), number(range.last))
        };
        let put = || -> rusqlite::Result<()> {
            let mut state = tx.prepare_cached(
                "UPDATE frames SET state = ?4 \
                 WHERE chain = ?1 AND number BETWEEN ?2 AND ?3 AND state <> ?4",
            )?;
            for range in &ack.acked {
                let (first, last) = ends(range);
                state.execute(params![ack.chain.0, first, last, 1])?;
            }
            for range in &ack.need {
                let (first, last) = ends(range);
                tx.prepare_cached(
                    "UPDATE frames SET state = 0 \
                     WHERE chain = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1",
                )?
                .execute(params![ack.chain.0, first, last])?;
            }
            // A refusal is final only if the cloud verified our signature first. After "unknown
            // key" the key may still be registered, and a third party can cause "bad signature".
            for refused in ack.refused.iter().filter(|refused| refused.reason.is_final()) {
                let number = i64::try_from(refused.frame).unwrap_or(i64::MAX);
                tx.prepare_cached(
                    "UPDATE frames SET state = 2 WHERE chain = ?1 AND number = ?2 AND state = 0",
                )?
                .execute(params![ack.chain.0, number])?;
            }
            for verdict in ack.receipts.iter().filter(|verdict| verdict.complete) {
                tx.prepare_cached("UPDATE roasts SET state = 2 WHERE session = ?1 AND state = 1")?
                    .execute([verdict.session_id.as_str()])?;
            }
            Ok(())
        };
        put().map_err(JournalError::sql(DOING))?;
        tx.commit().map_err(JournalError::sql(DOING))
    }
}

/// Converts a row of (id, chain, number, signed, origin) into a frame to send.
fn outgoing(row: &rusqlite::Row<'_>) -> rusqlite::Result<OutgoingFrame> {
    Ok(OutgoingFrame {
        id: row.get(0)?,
        chain: ChainId(row.get(1)?),
        number: row.get::<_, i64>(2)?.unsigned_abs(),
        signed: row.get(3)?,
        origin: read_origin(row, 4)?,
    })
}
