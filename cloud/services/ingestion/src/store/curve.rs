//! Curves: the samples of a closed session in one row, which is quick to read and remains when
//! retention drops the frames.

use ::database::sqlx::{query, query_as, query_scalar};
use ::database::{Pool, StoreError, on};
use contract::{EpochMs, OrgId};

use super::IngestStore;
use super::curve_assembly::{CurveAssembly, CurveBounds};
use super::row::{FrameRow, Values, end_of};
use super::sessions::SessionRow;
use crate::metric;

/// Selects a curve in the shape of one long frame.
const SELECT: &str = "SELECT s.chain_no, CAST(0 AS bigint) AS number, s.machine_no, \
     CAST(0 AS bigint) AS arrival, CAST(NULL AS bigint) AS boot, CAST(0 AS bigint) AS mono_ms, \
     c.first_seq, c.t0_ms, CAST(NULL AS bigint) AS wall_ms, c.offsets_ms, c.bt_c, c.et_c, \
     c.ror_c_per_min, c.gas_pct, c.fan_pct, c.drum_rpm, c.ambient_c, \
     c.extras, c.quality, c.trust, c.made_ms AS received_ms, c.published \
     FROM curves c JOIN sessions s ON s.org_id = c.org_id AND s.session_id = c.session_id \
     WHERE c.org_id = $1 AND c.session_id = $2";

/// Stores a curve. Only a curve with at least as many samples, or the complete one, replaces a
/// stored one: a curve made before the session's start or end had arrived may hold too many
/// samples.
const UPSERT_CURVE: &str = "INSERT INTO curves (org_id, session_id, first_seq, samples, t0_ms, \
     offsets_ms, bt_c, et_c, ror_c_per_min, gas_pct, fan_pct, drum_rpm, ambient_c, extras, \
     quality, trust, made_ms, published) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $19) \
     ON CONFLICT (org_id, session_id) DO UPDATE SET first_seq = EXCLUDED.first_seq, \
     samples = EXCLUDED.samples, t0_ms = EXCLUDED.t0_ms, offsets_ms = EXCLUDED.offsets_ms, \
     bt_c = EXCLUDED.bt_c, et_c = EXCLUDED.et_c, ror_c_per_min = EXCLUDED.ror_c_per_min, \
     gas_pct = EXCLUDED.gas_pct, fan_pct = EXCLUDED.fan_pct, drum_rpm = EXCLUDED.drum_rpm, \
     ambient_c = EXCLUDED.ambient_c, extras = EXCLUDED.extras, quality = EXCLUDED.quality, \
     trust = EXCLUDED.trust, made_ms = EXCLUDED.made_ms, published = EXCLUDED.published \
     WHERE CAST($18 AS BIGINT) = 1 OR curves.samples <= EXCLUDED.samples";

/// The maximum number of samples in a curve: eight hours at 10 Hz.
const SAMPLES_MAX: i64 = 288_000;
/// The maximum number of frames that are read at a time.
const PAGE: i64 = 2_000;

impl IngestStore {
    /// Returns the curve of a session, in the shape of one frame; `None` until it has been made.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn curve(&self, org: &OrgId, session: &str) -> Result<Option<FrameRow>, StoreError> {
        on!(self.database, pool => query_as(SELECT)
            .bind(org.as_str()).bind(session).fetch_optional(pool).await)
        .map_err(StoreError::query("reading a curve"))
    }

    /// Makes the curve of a session from the frames that have arrived. The curve is final, and
    /// retention may drop the frames, once it holds every sample that the session is known to have,
    /// or if `settled`.
    ///
    /// # Errors
    /// When the database does not answer: the next pass retries.
    pub async fn make_curve(
        &self,
        org: &OrgId,
        session: &SessionRow,
        settled: bool,
        now: EpochMs,
    ) -> Result<(), StoreError> {
        if session.first_seq.is_none() && !settled {
            return Ok(()); // its start is not known
        }
        let (first, last) = self.sample_range(session).await?;
        let mut curve = CurveAssembly::new(session, (first, last), CurveBounds::DEFAULT);
        let mut from = first;
        loop {
            let frames = self.frames_of_range(org, session.chain_no, from, last, PAGE).await?;
            let Some(end) = end_of(&frames) else { break };
            for frame in &frames {
                curve.append(frame);
            }
            if end <= from || end > last {
                break;
            }
            from = end;
        }
        let count = curve.len();
        let expected = session
            .last_seq
            .zip(session.first_seq)
            .map(|(last, first)| last.saturating_sub(first).saturating_add(1));
        let whole = expected
            .is_some_and(|expected| i64::try_from(count).is_ok_and(|count| count >= expected));
        let (curve, dropped) = curve.finish().map_err(|e| StoreError::row("making a curve", e))?;
        if let Some(curve) = curve {
            self.put_curve(org, session, (&curve, whole), now).await?;
        }
        if dropped.is_any() {
            metric::dropped_from_curve(dropped.values, dropped.remarks, dropped.contexts);
            tracing::warn!(
                %org, session = session.session_id, values = dropped.values,
                remarks = dropped.remarks, contexts = dropped.contexts,
                "left values out of a curve: too many channels, samples, remarks or batches"
            );
        }
        if !whole && !settled {
            return Ok(());
        }
        on!(self.database, pool => query(
            "UPDATE sessions SET curve_ms = $3 WHERE org_id = $1 AND session_id = $2 \
             AND COALESCE(last_seq, -1) = $4")
            .bind(org.as_str()).bind(&session.session_id).bind(now.0)
            // The session may have grown meanwhile: then the next pass makes the curve again.
            .bind(session.last_seq.unwrap_or(-1))
            .execute(pool).await.map(drop))
        .map_err(StoreError::query("recording a final curve"))
    }

    /// Returns the first and the last sample number of a session. A session without an end ends
    /// before the next one of its chain begins.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sample_range(&self, session: &SessionRow) -> Result<(i64, i64), StoreError> {
        let (first, last) = session.range();
        if session.last_seq.is_some() {
            // A session whose CHARGE never arrived is not longer either.
            return Ok((first.max(last.saturating_sub(SAMPLES_MAX).saturating_add(1)), last));
        }
        let next: Option<i64> = on!(self.database, pool => query_scalar(
            "SELECT MIN(first_seq) FROM sessions WHERE chain_no = $1 AND first_seq > $2")
            .bind(session.chain_no).bind(first).fetch_one(pool).await)
        .map_err(StoreError::query("finding where a session ends"))?;
        let most = first.saturating_add(SAMPLES_MAX).saturating_sub(1);
        Ok((first, next.map_or(most, |next| next.saturating_sub(1).min(most))))
    }

    async fn put_curve(
        &self,
        org: &OrgId,
        session: &SessionRow,
        (curve, whole): (&FrameRow, bool),
        now: EpochMs,
    ) -> Result<(), StoreError> {
        const DOING: &str = "storing a curve";
        let published =
            curve.published.as_ref().and_then(|samples| serde_json::to_string(samples).ok());
        macro_rules! put {
            ($pool:expr, $offsets:expr, $values:expr) => {{
                let mut put = query(UPSERT_CURVE)
                    .bind(org.as_str())
                    .bind(&session.session_id)
                    .bind(curve.first_seq)
                    .bind(i32::try_from(curve.len()).unwrap_or(i32::MAX))
                    .bind(curve.t0_ms)
                    .bind($offsets);
                for values in &curve.values {
                    put = put.bind($values(values));
                }
                put.bind(&curve.extras)
                    .bind(&curve.quality)
                    .bind(curve.trust)
                    .bind(now.0)
                    .bind(i64::from(whole))
                    .bind(published.as_deref())
                    .execute($pool)
                    .await
                    .map(drop)
            }};
        }
        let _turn = self.database.write_turn().await;
        match self.database.pool() {
            Pool::Postgres(pool) => put!(pool, &curve.offsets_ms, Values::clone),
            Pool::Sqlite(pool) => {
                let offsets = serde_json::to_string(&curve.offsets_ms);
                let offsets = offsets.map_err(|e| StoreError::row(DOING, e))?;
                // Numbers and nulls can always be written as JSON.
                let text = |values: &Values| serde_json::to_string(values.as_ref()?).ok();
                put!(pool, offsets, text)
            }
        }
        .map_err(StoreError::query(DOING))
    }
}
