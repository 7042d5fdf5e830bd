//! Curves: the samples of a closed session in one row, which is quick to read and remains when
//! retention drops the frames.

use std::collections::BTreeMap;

use ::database::sqlx::{FromRow, query, query_as, query_scalar};
use ::database::{Pool, StoreError, on};
use contract::point::ExtraValue;
use contract::{EpochMs, OrgId};
use serde_json::json;

use super::IngestStore;
use super::row::{FrameRow, Values};
use super::sessions::SessionRow;

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

/// The maximum number of samples in a curve: a day at 10 Hz.
const SAMPLES_MAX: usize = 864_000;
/// A session that has not ended when its chain has been silent for a week will not end.
const ENDLESS_MS: i64 = 7 * 86_400_000;
/// The number of frames read at a time.
const PAGE: i64 = 2_000;

/// A finished session that has no curve yet.
#[derive(Debug, Clone, FromRow)]
pub struct SessionWithoutCurve {
    pub org_id: String,
    pub session_id: String,
    pub started_ms: i64,
}

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

    /// Returns sessions without a curve whose curve is due, the oldest first, after the position
    /// `after` in that order. It is due when the session is closed, or followed by another, or on a
    /// chain that ended; and the chain has no gaps, or has been silent since `quiet`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sessions_without_curve(
        &self,
        quiet: EpochMs,
        after: (i64, &str),
        limit: i64,
    ) -> Result<Vec<SessionWithoutCurve>, StoreError> {
        on!(self.database, pool => query_as(
            "SELECT s.org_id, s.session_id, s.started_ms FROM sessions s \
             JOIN chains c ON c.chain_no = s.chain_no \
             WHERE s.curve_ms IS NULL \
             AND (s.ended_ms IS NOT NULL OR c.seen_ms < $1 - $2 OR EXISTS (SELECT 1 FROM sessions n \
                  WHERE n.chain_no = s.chain_no AND n.first_seq > s.first_seq)) \
             AND (c.seen_ms < $1 OR c.gaps = '[]') AND COALESCE(s.closed_seen_ms, 0) < $1 \
             AND (s.started_ms > $3 OR (s.started_ms = $3 AND s.session_id > $4)) \
             ORDER BY s.started_ms, s.session_id LIMIT $5")
            .bind(quiet.0).bind(ENDLESS_MS).bind(after.0).bind(after.1).bind(limit)
            .fetch_all(pool).await)
        .map_err(StoreError::query("listing sessions without a curve"))
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
        let mut curve: Option<Curve> = None;
        let mut from = first;
        loop {
            let frames = self.frames_of_range(org, session.chain_no, from, last, PAGE).await?;
            let Some(end) = frames.last().map(|f| f.seq_at(f.len())) else { break };
            join(&mut curve, session, &frames, (first, last));
            let whole = i64::try_from(frames.len()).is_ok_and(|read| read < PAGE);
            if whole || end <= from {
                break;
            }
            from = end;
        }
        let count = curve.as_ref().map_or(0, Curve::len);
        let expected = session
            .last_seq
            .zip(session.first_seq)
            .map(|(last, first)| last.saturating_sub(first).saturating_add(1));
        let whole = expected
            .is_some_and(|expected| i64::try_from(count).is_ok_and(|count| count >= expected));
        if let Some(curve) = curve {
            self.put_curve(org, session, (&curve.finish(), whole), now).await?;
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
        let most = i64::try_from(SAMPLES_MAX).unwrap_or(i64::MAX);
        if session.last_seq.is_some() {
            // A session whose CHARGE never arrived is not longer than a day either.
            return Ok((first.max(last - most + 1), last));
        }
        let next: Option<i64> = on!(self.database, pool => query_scalar(
            "SELECT MIN(first_seq) FROM sessions WHERE chain_no = $1 AND first_seq > $2")
            .bind(session.chain_no).bind(first).fetch_one(pool).await)
        .map_err(StoreError::query("finding where a session ends"))?;
        let most = first.saturating_add(most - 1);
        Ok((first, next.map_or(most, |next| (next - 1).min(most))))
    }

    async fn put_curve(
        &self,
        org: &OrgId,
        session: &SessionRow,
        (curve, whole): (&FrameRow, bool),
        now: EpochMs,
    ) -> Result<(), StoreError> {
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
        let text = |values: &Values| values.as_ref().map(|values| json!(values).to_string());
        match self.database.pool() {
            Pool::Postgres(pool) => put!(pool, &curve.offsets_ms, Values::clone),
            Pool::Sqlite(pool) => put!(pool, json!(curve.offsets_ms).to_string(), text),
        }
        .map_err(StoreError::query("storing a curve"))
    }
}

/// A curve that is being assembled.
struct Curve {
    row: FrameRow,
    extras: BTreeMap<String, Vec<Option<ExtraValue>>>,
    quality: BTreeMap<String, Vec<(usize, u8)>>,
}

/// Appends the samples of `frames` that lie in the range.
fn join(
    curve: &mut Option<Curve>,
    session: &SessionRow,
    frames: &[FrameRow],
    (first, last): (i64, i64),
) {
    for frame in frames {
        let inside = |i: &usize| (first..=last).contains(&frame.seq_at(*i));
        let mut samples = (0..frame.len()).filter(inside);
        let Some(from) = samples.next() else { continue };
        let to = samples.next_back().unwrap_or(from);
        curve.get_or_insert_with(|| Curve::begin(session, frame, from)).append(
            session,
            frame,
            (from, to),
        );
    }
}

impl Curve {
    /// Returns an empty curve that begins with sample `from` of `frame`. It is dated with its
    /// session, so that no date of a frame can distort it.
    fn begin(session: &SessionRow, frame: &FrameRow, from: usize) -> Self {
        let elapsed_ms = session.elapsed_ms(frame, from).max(0);
        let row = FrameRow {
            first_seq: frame.seq_at(from),
            boot: None,
            t0_ms: session.started_ms.saturating_add(elapsed_ms),
            wall_ms: None,
            offsets_ms: Vec::new(),
            values: Default::default(),
            extras: None,
            quality: None,
            published: None,
            ..frame.clone()
        };
        Self { row, extras: BTreeMap::new(), quality: BTreeMap::new() }
    }

    const fn len(&self) -> usize {
        self.row.offsets_ms.len()
    }

    /// Appends the samples `from..=to` of a frame.
    fn append(&mut self, session: &SessionRow, frame: &FrameRow, (from, to): (usize, usize)) {
        let (len, more) = (self.len(), to - from + 1);
        let begins_ms = self.row.t0_ms.saturating_sub(session.started_ms);
        for i in from..=to {
            let since = session.elapsed_ms(frame, i).saturating_sub(begins_ms).max(0);
            // A sample with an impossible time keeps its place, at the time of the one before.
            let before = self.row.offsets_ms.last().copied().unwrap_or(0);
            self.row.offsets_ms.push(i32::try_from(since).unwrap_or(before));
        }
        for (all, new) in self.row.values.iter_mut().zip(&frame.values) {
            if all.is_none() && new.is_none() {
                continue;
            }
            let all = all.get_or_insert_with(|| vec![None; len]);
            match new {
                Some(new) => all.extend((from..=to).map(|i| new.get(i).copied().flatten())),
                None => all.extend(std::iter::repeat_n(None, more)),
            }
        }
        let new: BTreeMap<String, Vec<Option<ExtraValue>>> = parse(frame.extras.as_deref());
        for name in new.keys() {
            self.extras.entry(name.clone()).or_insert_with(|| vec![None; len]);
        }
        for (name, all) in &mut self.extras {
            let new = new.get(name);
            all.extend((from..=to).map(|i| new.and_then(|new| new.get(i).cloned().flatten())));
        }
        let remarks: BTreeMap<String, Vec<(usize, u8)>> = parse(frame.quality.as_deref());
        for (name, remarks) in remarks {
            let inside = remarks.into_iter().filter(|(i, _)| (from..=to).contains(i));
            let shifted = inside.map(|(i, code)| (len + i - from, code));
            self.quality.entry(name).or_default().extend(shifted);
        }
        if frame.published.is_some() || self.row.published.is_some() {
            let published = self.row.published.get_or_insert_default();
            published.append(len, frame.published.as_ref(), from, to);
        }
        self.row.trust = self.row.trust.max(frame.trust);
    }

    fn finish(mut self) -> FrameRow {
        self.quality.retain(|_, remarks| !remarks.is_empty());
        self.row.extras = (!self.extras.is_empty()).then(|| json!(self.extras).to_string());
        self.row.quality = (!self.quality.is_empty()).then(|| json!(self.quality).to_string());
        self.row
    }
}

/// Parses JSON of a row, which ingestion itself wrote.
fn parse<T: serde::de::DeserializeOwned + Default>(text: Option<&str>) -> T {
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}
