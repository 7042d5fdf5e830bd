//! Corrects the dates of frames made before their gateway knew the date.

use ::database::sqlx::{query, query_as, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};

use super::IngestStore;

const DOING: &str = "correcting dates";
/// The number of frames corrected in one transaction.
const FRAMES_PER_TX: i64 = 5_000;
/// A clock with a smaller error than this counts as right.
const TOLERANCE_MS: i64 = 1_000;

/// Selects the frames of a boot whose clock was not synchronised, up to number $4, and the error of
/// each.
macro_rules! off {
    ($rest:literal) => {
        concat!(
            "(SELECT first_seq, first_seq + samples AS past, mono_ms + $3 - t0_ms AS delta \
              FROM frames WHERE chain_no = $1 AND boot = $2 AND clock < 2 AND number <= $4) AS d ",
            $rest
        )
    };
}

/// A roast begins and ends with samples: each of the two moves with the frame that holds it. A curve
/// begins with its roast.
const STATEMENTS: [&str; 5] = [
    concat!(
        "UPDATE curves SET t0_ms = t0_ms + d.delta FROM sessions s, ",
        off!(
            "WHERE s.chain_no = $1 AND curves.org_id = s.org_id AND curves.session_id = s.session_id \
             AND curves.first_seq >= d.first_seq AND curves.first_seq < d.past \
             AND (d.delta >= $5 OR d.delta <= -$5)"
        )
    ),
    concat!(
        "UPDATE events SET at_ms = at_ms + d.delta FROM sessions s, ",
        off!(
            "WHERE s.chain_no = $1 AND events.org_id = s.org_id AND events.session_id = s.session_id \
             AND events.seq >= d.first_seq AND events.seq < d.past \
             AND (d.delta >= $5 OR d.delta <= -$5)"
        )
    ),
    concat!(
        "UPDATE sessions SET started_ms = started_ms + d.delta FROM ",
        off!(
            "WHERE sessions.chain_no = $1 AND sessions.first_seq >= d.first_seq \
             AND sessions.first_seq < d.past AND (d.delta >= $5 OR d.delta <= -$5)"
        )
    ),
    concat!(
        "UPDATE sessions SET ended_ms = ended_ms + d.delta FROM ",
        off!(
            "WHERE sessions.chain_no = $1 AND sessions.last_seq >= d.first_seq \
             AND sessions.last_seq < d.past AND (d.delta >= $5 OR d.delta <= -$5)"
        )
    ),
    "UPDATE frames SET clock = 3, t0_ms = CASE WHEN mono_ms + $3 - t0_ms BETWEEN 1 - $5 AND $5 - 1 \
     THEN t0_ms ELSE mono_ms + $3 END \
     WHERE chain_no = $1 AND boot = $2 AND clock < 2 AND number <= $4",
];

impl IngestStore {
    /// Stores the clock offset of a boot; the first stored value is kept.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_offset(
        &self,
        chain_no: i64,
        boot: i64,
        offset_ms: i64,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "INSERT INTO clock_offsets (chain_no, boot, offset_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (chain_no, boot) DO NOTHING")
            .bind(chain_no).bind(boot).bind(offset_ms).execute(pool).await.map(drop))
        .map_err(StoreError::query(DOING))
    }

    /// Returns the boots whose clock offset is known and that still have uncorrected frames; at
    /// most 1 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn undated_boots(&self) -> Result<Vec<(i64, i64)>, StoreError> {
        on!(self.database, pool => query_as(
            "SELECT DISTINCT f.chain_no, f.boot FROM frames f JOIN clock_offsets o \
             ON o.chain_no = f.chain_no AND o.boot = f.boot WHERE f.clock < 2 LIMIT 1000")
            .fetch_all(pool).await)
        .map_err(StoreError::query(DOING))
    }

    /// Corrects the dates of a boot if its offset is known; returns the number of frames checked.
    /// The signed bytes are not changed.
    ///
    /// # Errors
    /// When the database does not answer: the last batch has changed nothing.
    pub async fn correct_dates(&self, chain_no: i64, boot: i64) -> Result<u64, StoreError> {
        let offset: Option<i64> = on!(self.database, pool => query_scalar(
            "SELECT offset_ms FROM clock_offsets WHERE chain_no = $1 AND boot = $2")
            .bind(chain_no).bind(boot).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        let Some(offset) = offset else { return Ok(0) };
        let mut dated = 0;
        loop {
            let mut tx = self.database.begin().await?;
            let part = correct_batch(&mut tx, (chain_no, boot), offset).await?;
            tx.commit().await?;
            dated += part;
            if part < FRAMES_PER_TX.unsigned_abs() {
                return Ok(dated);
            }
        }
    }
}

async fn correct_batch(
    tx: &mut Tx,
    (chain_no, boot): (i64, i64),
    offset: i64,
) -> Result<u64, StoreError> {
    // The same row lock as for committing frames: no frame is added to the chain meanwhile.
    on_tx!(&mut *tx, c => query("UPDATE chains SET seen_ms = seen_ms WHERE chain_no = $1")
        .bind(chain_no).execute(c).await.map(drop))
    .map_err(StoreError::query(DOING))?;
    let last: Option<i64> = on_tx!(&mut *tx, c => query_scalar(
        "SELECT MAX(number) FROM (SELECT number FROM frames WHERE chain_no = $1 AND boot = $2 \
         AND clock < 2 ORDER BY number LIMIT $3) AS part")
        .bind(chain_no).bind(boot).bind(FRAMES_PER_TX).fetch_one(c).await)
    .map_err(StoreError::query(DOING))?;
    let Some(last) = last else { return Ok(0) };
    let mut corrected = 0;
    for statement in STATEMENTS {
        corrected = on_tx!(&mut *tx, c => query(statement)
            .bind(chain_no).bind(boot).bind(offset).bind(last).bind(TOLERANCE_MS)
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query(DOING))?;
    }
    Ok(corrected)
}
