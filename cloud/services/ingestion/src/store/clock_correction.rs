//! Dates frames, and corrects the dates of those that were made before their gateway knew the date.
//!
//! Only dates change. Elapsed times come from [`SessionRow::elapsed_ms`], which reads no wall clock.
//!
//! [`SessionRow::elapsed_ms`]: super::SessionRow::elapsed_ms

use ::database::sqlx::{query, query_as, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};
use contract::ClockQuality;

use super::IngestStore;
use crate::verified_frame::{Numbering, VerifiedFrame};

const DOING: &str = "correcting dates";
/// The number of frames corrected in one transaction.
const FRAMES_PER_TX: i64 = 5_000;
/// A clock with a smaller error than this counts as right, if the offset comes from a clock that
/// was set.
const TOLERANCE_MS: i64 = 1_000;
/// The same for an estimated offset, which contains the time that frames need to arrive.
pub const ESTIMATE_TOLERANCE_MS: i64 = 5_000;
/// A gateway's monotonic clock may drift from the server's by this part of its uptime: 1/2000 is
/// 500 ppm, several times what a crystal does in heat or cold.
const DRIFT_PART: i64 = 2_000;

/// Selects the clock offset of boot $2 of chain $1, and whether it is estimated.
pub(super) const SELECT_OFFSET: &str =
    "SELECT offset_ms, estimated FROM clock_offsets WHERE chain_no = $1 AND boot = $2";

/// The wall-clock time at which a boot's monotonic clock was zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    pub offset_ms: i64,
    /// Estimated from the arrival of live frames, because the gateway's clock was not set.
    pub estimated: bool,
}

impl ClockOffset {
    /// Returns the offset that [`SELECT_OFFSET`] has read.
    pub(super) const fn of_row((offset_ms, estimated): (i64, i16)) -> Self {
        Self { offset_ms, estimated: estimated == 1 }
    }

    const fn tolerance_ms(self) -> i64 {
        if self.estimated { ESTIMATE_TOLERANCE_MS } else { TOLERANCE_MS }
    }

    /// Returns `frames.clock` of a frame that is dated by this offset.
    const fn code(self) -> i16 {
        if self.estimated { 4 } else { 3 }
    }

    /// Returns whether this offset is better than the stored one, after the boot has lasted for
    /// `uptime_ms`: a clock that was set is better than an estimate, and the smallest estimate is
    /// the best, because a frame never arrives before it was made.
    ///
    /// The estimates of a gateway whose monotonic clock is fast fall for ever, and each replacement
    /// dates all sessions of the boot again. An estimate that is smaller only by what a clock drifts
    /// in that uptime therefore replaces nothing. A clock that is worse by a factor of `f` causes a
    /// replacement only when the uptime has grown by the factor `f / (f − 1)`: in a year about 15 at
    /// 1000 ppm, and none below 500 ppm.
    const fn replaces(self, stored: Self, uptime_ms: i64) -> bool {
        let drift_ms = uptime_ms.saturating_div(DRIFT_PART);
        let noise_ms = ESTIMATE_TOLERANCE_MS / 2;
        let margin_ms = if drift_ms > noise_ms { drift_ms } else { noise_ms };
        let smaller = self.offset_ms <= stored.offset_ms.saturating_sub(margin_ms);
        stored.estimated && (!self.estimated || smaller)
    }
}

/// How the row of a frame is dated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameDate {
    pub(super) t0_ms: i64,
    /// The gateway's date, if the row has another one.
    pub(super) wall_ms: Option<i64>,
    /// `frames.clock`.
    pub(super) clock: i16,
}

impl FrameDate {
    /// Dates a frame by the offset of its boot, if it is known and the gateway's clock was not set.
    /// Without an offset, a date in the future is replaced by the date of arrival.
    pub(super) fn of(verified: &VerifiedFrame, known: Option<ClockOffset>) -> Self {
        let frame = &verified.frame;
        let (wall, clock) = (frame.wall.0, i16::from(frame.clock.code()));
        let ahead_ms = verified.ahead_ms();
        let is_set = frame.clock == ClockQuality::Synchronised && ahead_ms == 0;
        if is_set || verified.numbering != Numbering::Edge {
            return Self { t0_ms: wall, wall_ms: None, clock };
        }
        let (t0_ms, clock, tolerance_ms) = match known {
            Some(known) => {
                let mono = i64::try_from(frame.mono_ms).unwrap_or(i64::MAX);
                let dated = known.offset_ms.saturating_add(mono);
                (dated, known.code(), known.tolerance_ms())
            }
            None => (wall.saturating_sub(ahead_ms), clock.min(1), 1),
        };
        if t0_ms.saturating_sub(wall).saturating_abs() < tolerance_ms {
            return Self { t0_ms: wall, wall_ms: None, clock };
        }
        Self { t0_ms, wall_ms: Some(wall), clock }
    }

    /// Returns how far the row's date is from the gateway's, in ms.
    pub(super) const fn shift_ms(&self) -> i64 {
        match self.wall_ms {
            Some(wall_ms) => self.t0_ms.saturating_sub(wall_ms),
            None => 0,
        }
    }
}

/// Selects the sessions that began in boot $2 of chain $1.
macro_rules! sessions_of_boot {
    () => {
        "s.machine_no = (SELECT machine_no FROM chains WHERE chain_no = $1) \
         AND s.chain_no = $1 AND s.boot = $2 "
    };
}

/// A session moves as a whole, by the monotonic time of its CHARGE: its events, its end and its
/// curve move with it, whatever boots they are in.
///
/// Parameters: $1 chain, $2 boot, $3 offset, $4 last frame number, $5 tolerance, $6 the new clock
/// code.
const STATEMENTS: [&str; 5] = [
    // A session that has no monotonic time yet (opened by its receipt) gets that of its first
    // sample.
    "UPDATE sessions SET wall_started_ms = COALESCE(wall_started_ms, started_ms), boot = $2, \
     start_mono_ms = d.mono_ms + COALESCE(wall_started_ms, started_ms) - d.made_ms \
     FROM (SELECT first_seq, first_seq + samples AS past, mono_ms, \
           COALESCE(wall_ms, t0_ms) AS made_ms FROM frames \
           WHERE chain_no = $1 AND boot = $2 AND clock < 2 AND number <= $4) AS d \
     WHERE sessions.machine_no = (SELECT machine_no FROM chains WHERE chain_no = $1) \
     AND sessions.chain_no = $1 AND sessions.boot IS NULL \
     AND sessions.first_seq >= d.first_seq AND sessions.first_seq < d.past",
    concat!(
        "UPDATE curves SET t0_ms = t0_ms + s.start_mono_ms + $3 - s.started_ms FROM sessions s \
         WHERE curves.org_id = s.org_id AND curves.session_id = s.session_id AND ",
        sessions_of_boot!(),
        "AND ABS(s.start_mono_ms + $3 - s.started_ms) >= $5"
    ),
    concat!(
        "UPDATE events \
         SET at_ms = s.start_mono_ms + $3 + CAST(ROUND(events.elapsed_s * 1000) AS BIGINT) \
         FROM sessions s WHERE events.org_id = s.org_id AND events.session_id = s.session_id AND ",
        sessions_of_boot!(),
        "AND ABS(s.start_mono_ms + $3 + CAST(ROUND(events.elapsed_s * 1000) AS BIGINT) \
             - events.at_ms) >= $5"
    ),
    "UPDATE sessions SET started_ms = start_mono_ms + $3, \
     ended_ms = ended_ms + start_mono_ms + $3 - started_ms \
     WHERE machine_no = (SELECT machine_no FROM chains WHERE chain_no = $1) \
     AND chain_no = $1 AND boot = $2 AND ABS(start_mono_ms + $3 - started_ms) >= $5",
    "UPDATE frames SET clock = $6, \
     wall_ms = CASE WHEN ABS(mono_ms + $3 - t0_ms) < $5 THEN wall_ms \
                    ELSE COALESCE(wall_ms, t0_ms) END, \
     t0_ms = CASE WHEN ABS(mono_ms + $3 - t0_ms) < $5 THEN t0_ms ELSE mono_ms + $3 END \
     WHERE chain_no = $1 AND boot = $2 AND clock < 2 AND number <= $4",
];

impl IngestStore {
    /// Stores the clock offset of a boot, from a frame made while its clock was set. The first such
    /// value is kept; it replaces an estimate.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_offset(
        &self,
        chain_no: i64,
        boot: i64,
        offset_ms: i64,
    ) -> Result<(), StoreError> {
        self.put_offset((chain_no, boot), ClockOffset { offset_ms, estimated: false }).await
    }

    /// Stores an estimate of a boot's clock offset. A smaller estimate replaces a greater one, if it
    /// is smaller by more than the clock may have drifted, and never an offset from a clock that was
    /// set.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_estimate(
        &self,
        chain_no: i64,
        boot: i64,
        offset_ms: i64,
    ) -> Result<(), StoreError> {
        let estimate = ClockOffset { offset_ms, estimated: true };
        // Each live frame of a clock that is not set gives an estimate.
        if self.offsets.get(&(chain_no, boot)).is_some_and(|known| !estimate.replaces(known, 0)) {
            return Ok(());
        }
        self.put_offset((chain_no, boot), estimate).await
    }

    async fn put_offset(&self, boot: (i64, i64), offset: ClockOffset) -> Result<(), StoreError> {
        let stored = self.offset_of(boot).await?;
        let mut replaces = stored.is_some_and(|stored| offset.replaces(stored, 0));
        if replaces && offset.estimated {
            let uptime_ms = self.uptime_ms(boot).await?;
            replaces = stored.is_some_and(|stored| offset.replaces(stored, uptime_ms));
        }
        if replaces {
            // First: if this process stops in between, the frames are dated again by the stored
            // offset, and the new one is noted again with a later frame.
            self.reopen_estimated(boot).await?;
        }
        if replaces || stored.is_none() {
            let mut tx = self.database.begin().await?;
            // Frames are stored and dated under this lock: after it, by the new offset.
            lock_chain(&mut tx, boot.0).await?;
            on_tx!(&mut tx, c => query(
                "INSERT INTO clock_offsets (chain_no, boot, offset_ms, estimated) \
                 VALUES ($1, $2, $3, $4) ON CONFLICT (chain_no, boot) DO UPDATE \
                 SET offset_ms = EXCLUDED.offset_ms, estimated = EXCLUDED.estimated \
                 WHERE clock_offsets.estimated = 1")
                .bind(boot.0).bind(boot.1).bind(offset.offset_ms).bind(i16::from(offset.estimated))
                .execute(c).await.map(drop))
            .map_err(StoreError::query(DOING))?;
            tx.commit().await?;
        }
        if replaces {
            // Those that were dated by the old offset meanwhile.
            self.reopen_estimated(boot).await?;
        }
        if let Some(stored) = self.offset_of(boot).await? {
            self.offsets.insert(boot, stored);
        }
        Ok(())
    }

    /// Returns the stored clock offset of a boot.
    async fn offset_of(
        &self,
        (chain_no, boot): (i64, i64),
    ) -> Result<Option<ClockOffset>, StoreError> {
        let found: Option<(i64, i16)> = on!(self.database, pool => query_as(SELECT_OFFSET)
            .bind(chain_no).bind(boot).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok(found.map(ClockOffset::of_row))
    }

    /// Returns the time of a boot's newest frame by the gateway's monotonic clock, ms.
    async fn uptime_ms(&self, (chain_no, boot): (i64, i64)) -> Result<i64, StoreError> {
        let newest: Option<i64> = on!(self.database, pool => query_scalar(
            "SELECT mono_ms FROM frames WHERE chain_no = $1 AND boot = $2 \
             ORDER BY number DESC LIMIT 1")
            .bind(chain_no).bind(boot).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok(newest.unwrap_or(0))
    }

    /// Marks the frames that were dated by an estimate as not dated.
    async fn reopen_estimated(&self, (chain_no, boot): (i64, i64)) -> Result<(), StoreError> {
        let mut after = i64::MIN;
        loop {
            let last: Option<i64> = on!(self.database, pool => query_scalar(
                "SELECT MAX(number) FROM (SELECT number FROM frames WHERE chain_no = $1 \
                 AND number > $3 AND boot = $2 AND clock = 4 ORDER BY number LIMIT $4) AS part")
                .bind(chain_no).bind(boot).bind(after).bind(FRAMES_PER_TX).fetch_one(pool).await)
            .map_err(StoreError::query(DOING))?;
            let Some(last) = last else { return Ok(()) };
            on!(self.database, pool => query(
                "UPDATE frames SET clock = 1 WHERE chain_no = $1 AND boot = $2 AND clock = 4 \
                 AND number > $3 AND number <= $4")
                .bind(chain_no).bind(boot).bind(after).bind(last).execute(pool).await.map(drop))
            .map_err(StoreError::query(DOING))?;
            after = last;
        }
    }

    /// Returns the boots whose clock offset is known and that still have uncorrected frames: at most
    /// 1 000, the organisations in turn.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn undated_boots(&self) -> Result<Vec<(i64, i64)>, StoreError> {
        on!(self.database, pool => query_as(
            "SELECT chain_no, boot FROM (SELECT b.chain_no, b.boot, ROW_NUMBER() OVER ( \
               PARTITION BY c.org_id ORDER BY b.chain_no, b.boot) AS turn FROM \
               (SELECT DISTINCT f.chain_no, f.boot FROM frames f JOIN clock_offsets o \
                ON o.chain_no = f.chain_no AND o.boot = f.boot WHERE f.clock < 2) AS b \
               JOIN chains c ON c.chain_no = b.chain_no) AS boots \
             ORDER BY turn, chain_no, boot LIMIT 1000")
            .fetch_all(pool).await)
        .map_err(StoreError::query(DOING))
    }

    /// Corrects the dates of a boot if its offset is known; returns the number of frames checked.
    /// The signed bytes are not changed.
    ///
    /// # Errors
    /// When the database does not answer: the last batch has changed nothing.
    pub async fn correct_dates(&self, chain_no: i64, boot: i64) -> Result<u64, StoreError> {
        if self.offset_of((chain_no, boot)).await?.is_none() {
            return Ok(0);
        }
        let mut dated = 0_u64;
        loop {
            let mut tx = self.database.begin().await?;
            let part = correct_batch(&mut tx, (chain_no, boot)).await?;
            tx.commit().await?;
            dated = dated.saturating_add(part);
            if part < FRAMES_PER_TX.unsigned_abs() {
                return Ok(dated);
            }
        }
    }
}

/// Takes the same row lock as for committing frames: no frame is added to the chain meanwhile.
async fn lock_chain(tx: &mut Tx, chain_no: i64) -> Result<(), StoreError> {
    on_tx!(tx, c => query("UPDATE chains SET seen_ms = seen_ms WHERE chain_no = $1")
        .bind(chain_no).execute(c).await.map(drop))
    .map_err(StoreError::query(DOING))
}

async fn correct_batch(tx: &mut Tx, (chain_no, boot): (i64, i64)) -> Result<u64, StoreError> {
    lock_chain(tx, chain_no).await?;
    let offset: Option<(i64, i16)> = on_tx!(&mut *tx, c => query_as(SELECT_OFFSET)
        .bind(chain_no).bind(boot).fetch_optional(c).await)
    .map_err(StoreError::query(DOING))?;
    let Some(offset) = offset.map(ClockOffset::of_row) else { return Ok(0) };
    let last: Option<i64> = on_tx!(&mut *tx, c => query_scalar(
        "SELECT MAX(number) FROM (SELECT number FROM frames WHERE chain_no = $1 AND boot = $2 \
         AND clock < 2 ORDER BY number LIMIT $3) AS part")
        .bind(chain_no).bind(boot).bind(FRAMES_PER_TX).fetch_one(c).await)
    .map_err(StoreError::query(DOING))?;
    let Some(last) = last else { return Ok(0) };
    let mut corrected = 0;
    for statement in STATEMENTS {
        corrected = on_tx!(&mut *tx, c => query(statement)
            .bind(chain_no).bind(boot).bind(offset.offset_ms).bind(last)
            .bind(offset.tolerance_ms()).bind(offset.code())
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query(DOING))?;
    }
    Ok(corrected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how often a boot of 60 days is dated again whose estimates fall by `drift_ppm`, with
    /// an estimate each second.
    fn replacements(drift_ppm: i64) -> usize {
        let estimate = |offset_ms| ClockOffset { offset_ms, estimated: true };
        let (mut stored, mut count) = (estimate(0), 0);
        for second in 1..=60 * 86_400 {
            let fallen = estimate(-second * drift_ppm / 1_000);
            if fallen.replaces(stored, second * 1_000) {
                (stored, count) = (fallen, count + 1);
            }
        }
        count
    }

    #[test]
    fn a_clock_that_drifts_slowly_dates_its_sessions_once() {
        for drift_ppm in [-100, 0, 20, 100, 499] {
            assert_eq!(replacements(drift_ppm), 0, "{drift_ppm} ppm");
        }
        assert!((1..=15).contains(&replacements(1_000)), "{}", replacements(1_000));
        assert!(replacements(5_000) <= 100, "{}", replacements(5_000));
    }

    #[test]
    fn an_estimate_that_is_smaller_by_more_than_drift_replaces_one_of_a_backlog() {
        let estimate = |offset_ms| ClockOffset { offset_ms, estimated: true };
        let hour_ms = 3_600_000;
        assert!(!estimate(-2_499).replaces(estimate(0), hour_ms));
        assert!(estimate(-2_500).replaces(estimate(0), hour_ms));
        assert!(!estimate(-2_500).replaces(estimate(0), 48 * hour_ms));
        assert!(estimate(-hour_ms).replaces(estimate(0), 48 * hour_ms));
        let set = ClockOffset { offset_ms: 1, estimated: false };
        assert!(set.replaces(estimate(0), 48 * hour_ms) && !estimate(-hour_ms).replaces(set, 0));
    }
}
