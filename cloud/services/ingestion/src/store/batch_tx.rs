//! The statements of one batch's transaction, for each of the two databases. `commit` decides what
//! they store.

use ::database::sqlx::{self, AssertSqlSafe, QueryBuilder, query, query_as, query_scalar};
use contract::EpochMs;

use super::clock_correction::{FrameDate, SELECT_OFFSET};
use super::queries::newest_session_sql;
use super::row::{FrameRow, SELECT, columns_of, extras_of, quality_of};
use super::sessions::SessionRow;
use super::{ChainNo, SessionChange};
use crate::published::PublishedMessage;
use crate::verified_frame::VerifiedFrame;

/// Chain number, next frame number, gaps, last digest, organisation and chain id.
pub(super) type ChainRow = (i64, i64, String, Option<Vec<u8>>, String, Vec<u8>);

/// One row of the bulk insert.
pub(super) struct NewFrame<'f> {
    pub(super) org: &'f str,
    pub(super) no: ChainNo,
    pub(super) number: i64,
    pub(super) first_seq: i64,
    pub(super) date: FrameDate,
    pub(super) verified: &'f VerifiedFrame,
}

/// The new state of a chain, as its row stores it.
pub(super) struct Progress {
    pub(super) chain_no: i64,
    pub(super) next: i64,
    pub(super) gaps: String,
    pub(super) last_digest: Option<Vec<u8>>,
}

/// The statements that differ between the two databases.
pub(super) trait BatchTx: Send {
    fn lock_chains(
        &mut self,
        chain_nos: &[i64],
    ) -> impl Future<Output = Result<Vec<ChainRow>, sqlx::Error>> + Send;
    fn digest_of(
        &mut self,
        chain_no: i64,
        number: i64,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, sqlx::Error>> + Send;
    fn sample_before(
        &mut self,
        chain_no: i64,
        at_ms: i64,
    ) -> impl Future<Output = Result<Option<i64>, sqlx::Error>> + Send;
    /// Returns whether a chain has this content at this time. This recognises repeated messages of
    /// upstream Sim-Corp.
    fn contains(
        &mut self,
        chain_no: i64,
        t0_ms: i64,
        digest: &[u8],
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
    /// Returns whether a chain has this content among the frames from `number` that were received
    /// since `received_ms`. This recognises repeated messages whose time says nothing.
    fn contains_since(
        &mut self,
        chain_no: i64,
        digest: &[u8],
        number: i64,
        received_ms: i64,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
    /// Returns the clock offset of a boot, and 1 if it is estimated.
    fn offset_of(
        &mut self,
        boot: (i64, i64),
    ) -> impl Future<Output = Result<Option<(i64, i16)>, sqlx::Error>> + Send;
    /// Returns whether a chain has this session.
    fn has_session(
        &mut self,
        org: &str,
        no: ChainNo,
        session: &str,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
    /// Returns the session of a chain with the highest sample numbers.
    fn newest_session(
        &mut self,
        no: ChainNo,
    ) -> impl Future<Output = Result<Option<SessionRow>, sqlx::Error>> + Send;
    /// Returns the newest frame of a chain with samples and a smaller number.
    fn frame_before(
        &mut self,
        chain_no: i64,
        number: i64,
    ) -> impl Future<Output = Result<Option<FrameRow>, sqlx::Error>> + Send;
    /// Returns the time of a session's latest CHARGE.
    fn charged_at(
        &mut self,
        org: &str,
        session: &str,
    ) -> impl Future<Output = Result<Option<i64>, sqlx::Error>> + Send;
    /// Stores what the publisher said about the sample of a frame that is already stored.
    fn set_published(
        &mut self,
        chain_no: i64,
        number: i64,
        published: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Returns the last sample of the sessions of a chain that have an end.
    fn newest_end(
        &mut self,
        no: ChainNo,
    ) -> impl Future<Output = Result<Option<i64>, sqlx::Error>> + Send;
    /// Ends the sessions of a chain of single messages that have no end before sample `seq`, at
    /// which the next session begins.
    fn end_previous(
        &mut self,
        no: ChainNo,
        seq: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    fn insert(
        &mut self,
        frames: &[NewFrame<'_>],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    fn update_progress(
        &mut self,
        progress: &[Progress],
        now: EpochMs,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    fn apply(
        &mut self,
        change: &SessionChange,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Adds a single message's sample to the session that has ended but ran when the sample was
    /// taken.
    fn append_late(
        &mut self,
        new: &NewFrame<'_>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

const DIGEST_OF: &str = "SELECT digest FROM frames WHERE chain_no = $1 AND number = $2 LIMIT 1";

/// Selects the newest sample that is older than a time, in a chain of single messages.
const SELECT_SAMPLE_BEFORE: &str = "SELECT number FROM frames WHERE chain_no = $1 \
     AND samples > 0 AND t0_ms < $2 ORDER BY number DESC LIMIT 1";
/// Adds a sample that arrived after the DROP: telemetry and events have separate topics, and
/// neither waits for the other. Only the newest session of the chain, by sample numbers, can get
/// it; sessions of the machine's other chains do not matter. A sample that arrives after samples
/// from more than a minute past the session's end, or after the next session has begun, no longer
/// changes a session. Of samples that got other times than their own, the publisher's elapsed time
/// says whether they are before the DROP.
const APPEND_LATE: &str = "UPDATE sessions SET last_seq = $2, curve_ms = NULL \
     WHERE chain_no = $1 AND status = 'CLOSED' AND first_seq = \
     (SELECT MAX(first_seq) FROM sessions WHERE chain_no = $1 AND status = 'CLOSED') \
     AND last_seq < $2 AND started_ms <= $3 AND ended_ms >= $3 \
     AND (CAST($4 AS double precision) IS NULL OR drop_s IS NULL OR drop_s >= $4) \
     AND NOT EXISTS (SELECT 1 FROM sessions n WHERE n.chain_no = $1 AND n.first_seq > sessions.last_seq) \
     AND NOT EXISTS (SELECT 1 FROM frames f WHERE f.chain_no = $1 AND f.number > sessions.last_seq \
     AND f.number < $2 AND f.t0_ms > sessions.ended_ms + 60000)";
/// Selects a row if a chain of single messages has a frame with this time and digest.
const SELECT_FRAME_EXISTS: &str =
    "SELECT 1 FROM frames WHERE chain_no = $1 AND t0_ms = $2 AND digest = $3 LIMIT 1";
/// Selects a row if the newest of such frames have this digest, for a message whose time says
/// nothing.
const SELECT_CONTENT_SINCE: &str = "SELECT 1 FROM frames WHERE chain_no = $1 AND number >= $2 \
     AND digest = $3 AND received_ms >= $4 LIMIT 1";
const SELECT_SESSION_EXISTS: &str =
    "SELECT 1 FROM sessions WHERE org_id = $1 AND session_id = $2 AND chain_no = $3";
const SELECT_CHARGED: &str =
    "SELECT MAX(at_ms) FROM events WHERE org_id = $1 AND session_id = $2 AND kind = 'CHARGE'";
const SET_PUBLISHED: &str = "UPDATE frames SET published = $3 WHERE chain_no = $1 AND number = $2";
const SELECT_NEWEST_END: &str =
    "SELECT MAX(last_seq) FROM sessions WHERE machine_no = $1 AND chain_no = $2";
/// Ends the sessions before sample $3 that have no end.
const END_PREVIOUS: &str = "UPDATE sessions SET last_seq = $3 - 1, curve_ms = NULL \
     WHERE machine_no = $1 AND chain_no = $2 AND first_seq < $3 AND last_seq IS NULL";

const INSERT: &str = "INSERT INTO frames (org_id, chain_no, number, machine_no, boot, mono_ms, clock, \
     first_seq, samples, t0_ms, wall_ms, offsets_ms, bt_c, et_c, ror_c_per_min, gas_pct, fan_pct, \
     drum_rpm, ambient_c, extras, quality, trust, digest, signed, received_ms, published) ";

/// Returns a boot id, which is any 64 bits, as the databases' signed type.
const fn signed(boot: u64) -> i64 {
    boot.cast_signed()
}

/// Returns a number of a frame as the databases' signed type.
pub(super) fn number(n: u64) -> i64 {
    // Decoded numbers are at most 2^53-1.
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Binds the scalar values up to the offsets, which both databases bind alike.
macro_rules! bind_head {
    ($row:expr, $new:expr) => {{
        let frame = &$new.verified.frame;
        $row.push_bind($new.org)
            .push_bind($new.no.chain)
            .push_bind($new.number)
            .push_bind($new.no.machine)
            .push_bind(signed(frame.boot_id))
            .push_bind(number(frame.mono_ms))
            .push_bind($new.date.clock)
            .push_bind($new.first_seq)
            .push_bind(i32::try_from(frame.sample_count()).unwrap_or(i32::MAX))
            .push_bind($new.date.t0_ms)
            .push_bind($new.date.wall_ms);
    }};
}

/// Binds the values after the columns.
macro_rules! bind_tail {
    ($row:expr, $new:expr) => {{
        let frame = &$new.verified.frame;
        $row.push_bind(extras_of($new.verified))
            .push_bind(quality_of(frame))
            .push_bind($new.verified.trust.code())
            .push_bind($new.verified.digest.0.to_vec())
            .push_bind($new.verified.signed.as_slice())
            .push_bind($new.verified.received.0)
            .push_bind($new.verified.published.as_ref().and_then(PublishedMessage::of_samples));
    }};
}

/// Returns the elapsed time that a publisher said of a sample, if its own time was replaced.
fn said_elapsed_s(new: &NewFrame<'_>) -> Option<f64> {
    match &new.verified.published {
        Some(PublishedMessage::Sample(samples, _)) => {
            samples.context(0).filter(|context| context.restamped)?;
            samples.elapsed_s(0)
        }
        _ => None,
    }
}

/// Splits the rows into statements of a few fixed sizes, so that the server reuses its plans.
fn chunks<'c, 'f>(mut frames: &'c [NewFrame<'f>]) -> Vec<&'c [NewFrame<'f>]> {
    const LARGEST: usize = 64;
    let mut chunks = Vec::new();
    while !frames.is_empty() {
        let size = if frames.len() >= LARGEST { LARGEST } else { 1 << frames.len().ilog2() };
        let (chunk, rest) = frames.split_at(size);
        chunks.push(chunk);
        frames = rest;
    }
    chunks
}

/// The statements that are the same text on both databases; only the type of the transaction differs.
macro_rules! reads {
    () => {
        async fn digest_of(
            &mut self,
            chain_no: i64,
            number: i64,
        ) -> Result<Option<Vec<u8>>, sqlx::Error> {
            query_scalar(DIGEST_OF).bind(chain_no).bind(number).fetch_optional(&mut **self).await
        }

        async fn sample_before(
            &mut self,
            chain_no: i64,
            at_ms: i64,
        ) -> Result<Option<i64>, sqlx::Error> {
            let found = query_scalar(SELECT_SAMPLE_BEFORE).bind(chain_no).bind(at_ms);
            found.fetch_optional(&mut **self).await
        }

        async fn contains(
            &mut self,
            chain_no: i64,
            t0_ms: i64,
            digest: &[u8],
        ) -> Result<bool, sqlx::Error> {
            let found = query(SELECT_FRAME_EXISTS).bind(chain_no).bind(t0_ms).bind(digest);
            found.fetch_optional(&mut **self).await.map(|row| row.is_some())
        }

        async fn contains_since(
            &mut self,
            chain_no: i64,
            digest: &[u8],
            number: i64,
            received_ms: i64,
        ) -> Result<bool, sqlx::Error> {
            let found = query(SELECT_CONTENT_SINCE)
                .bind(chain_no)
                .bind(number)
                .bind(digest)
                .bind(received_ms);
            found.fetch_optional(&mut **self).await.map(|row| row.is_some())
        }

        async fn offset_of(&mut self, boot: (i64, i64)) -> Result<Option<(i64, i16)>, sqlx::Error> {
            let found = query_as(SELECT_OFFSET).bind(boot.0).bind(boot.1);
            found.fetch_optional(&mut **self).await
        }

        async fn has_session(
            &mut self,
            org: &str,
            no: ChainNo,
            session: &str,
        ) -> Result<bool, sqlx::Error> {
            let found = query(SELECT_SESSION_EXISTS).bind(org).bind(session).bind(no.chain);
            found.fetch_optional(&mut **self).await.map(|row| row.is_some())
        }

        async fn newest_session(&mut self, no: ChainNo) -> Result<Option<SessionRow>, sqlx::Error> {
            let found = query_as(AssertSqlSafe(newest_session_sql()));
            let found = found.bind(no.machine).bind(no.chain).bind(i64::MAX);
            found.fetch_optional(&mut **self).await
        }

        async fn frame_before(
            &mut self,
            chain_no: i64,
            number: i64,
        ) -> Result<Option<FrameRow>, sqlx::Error> {
            let sql = format!(
                "SELECT {SELECT} FROM frames WHERE chain_no = $1 AND number < $2 AND samples > 0 \
                 ORDER BY number DESC LIMIT 1"
            );
            let found = query_as(AssertSqlSafe(sql)).bind(chain_no).bind(number);
            found.fetch_optional(&mut **self).await
        }

        async fn charged_at(
            &mut self,
            org: &str,
            session: &str,
        ) -> Result<Option<i64>, sqlx::Error> {
            let charged = query_scalar(SELECT_CHARGED).bind(org).bind(session);
            charged.fetch_one(&mut **self).await
        }

        async fn set_published(
            &mut self,
            chain_no: i64,
            number: i64,
            published: &str,
        ) -> Result<(), sqlx::Error> {
            let set = query(SET_PUBLISHED).bind(chain_no).bind(number).bind(published);
            set.execute(&mut **self).await.map(drop)
        }

        async fn append_late(&mut self, new: &NewFrame<'_>) -> Result<(), sqlx::Error> {
            let at = new.verified.frame.wall.0;
            let late = query(APPEND_LATE).bind(new.no.chain).bind(new.first_seq).bind(at);
            late.bind(said_elapsed_s(new)).execute(&mut **self).await.map(drop)
        }

        async fn newest_end(&mut self, no: ChainNo) -> Result<Option<i64>, sqlx::Error> {
            let end = query_scalar(SELECT_NEWEST_END).bind(no.machine).bind(no.chain);
            end.fetch_one(&mut **self).await
        }

        async fn end_previous(&mut self, no: ChainNo, seq: i64) -> Result<(), sqlx::Error> {
            let end = query(END_PREVIOUS).bind(no.machine).bind(no.chain).bind(seq);
            end.execute(&mut **self).await.map(drop)
        }
    };
}

impl BatchTx for sqlx::Transaction<'_, sqlx::Postgres> {
    async fn lock_chains(&mut self, chain_nos: &[i64]) -> Result<Vec<ChainRow>, sqlx::Error> {
        // All instances lock in the same order, so they cannot deadlock.
        query_as(
            "SELECT chain_no, next_number, gaps, last_digest, org_id, chain FROM chains \
             WHERE chain_no = ANY($1) ORDER BY chain_no FOR UPDATE",
        )
        .bind(chain_nos)
        .fetch_all(&mut **self)
        .await
    }

    reads!();

    async fn insert(&mut self, frames: &[NewFrame<'_>]) -> Result<(), sqlx::Error> {
        for chunk in chunks(frames) {
            let mut insert = QueryBuilder::<sqlx::Postgres>::new(INSERT);
            insert.push_values(chunk, |mut row, new| {
                bind_head!(row, new);
                let offsets = new.verified.frame.offsets_ms.iter();
                let offsets: Vec<i32> =
                    offsets.map(|ms| i32::try_from(*ms).unwrap_or(i32::MAX)).collect();
                row.push_bind(offsets);
                for values in columns_of(&new.verified.frame) {
                    row.push_bind(values);
                }
                bind_tail!(row, new);
            });
            insert.build().execute(&mut **self).await?;
        }
        Ok(())
    }

    async fn update_progress(
        &mut self,
        progress: &[Progress],
        now: EpochMs,
    ) -> Result<(), sqlx::Error> {
        let nos: Vec<i64> = progress.iter().map(|p| p.chain_no).collect();
        let next: Vec<i64> = progress.iter().map(|p| p.next).collect();
        let gaps: Vec<&str> = progress.iter().map(|p| p.gaps.as_str()).collect();
        let digests: Vec<Option<&[u8]>> =
            progress.iter().map(|p| p.last_digest.as_deref()).collect();
        query(
            "UPDATE chains SET next_number = u.next, gaps = u.gaps, last_digest = u.digest, \
             seen_ms = $5 FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bytea[]) \
             AS u (no, next, gaps, digest) WHERE chain_no = u.no",
        )
        .bind(nos)
        .bind(next)
        .bind(gaps)
        .bind(digests)
        .bind(now.0)
        .execute(&mut **self)
        .await
        .map(drop)
    }

    async fn apply(&mut self, change: &SessionChange) -> Result<(), sqlx::Error> {
        for statement in change.statements().into_iter().flatten() {
            statement.bind_pg().execute(&mut **self).await?;
        }
        Ok(())
    }
}

impl BatchTx for sqlx::Transaction<'_, sqlx::Sqlite> {
    async fn lock_chains(&mut self, chain_nos: &[i64]) -> Result<Vec<ChainRow>, sqlx::Error> {
        // BEGIN IMMEDIATE already holds SQLite's only write lock.
        query_as(
            "SELECT chain_no, next_number, gaps, last_digest, org_id, chain FROM chains \
             WHERE chain_no IN (SELECT value FROM json_each($1)) ORDER BY chain_no",
        )
        .bind(serde_json::Value::from(chain_nos).to_string())
        .fetch_all(&mut **self)
        .await
    }

    reads!();

    async fn insert(&mut self, frames: &[NewFrame<'_>]) -> Result<(), sqlx::Error> {
        for chunk in chunks(frames) {
            let mut insert = QueryBuilder::<sqlx::Sqlite>::new(INSERT);
            insert.push_values(chunk, |mut row, new| {
                bind_head!(row, new);
                row.push_bind(serde_json::json!(new.verified.frame.offsets_ms).to_string());
                for values in columns_of(&new.verified.frame) {
                    row.push_bind(values.map(|values| serde_json::json!(values).to_string()));
                }
                bind_tail!(row, new);
            });
            insert.build().execute(&mut **self).await?;
        }
        Ok(())
    }

    async fn update_progress(
        &mut self,
        progress: &[Progress],
        now: EpochMs,
    ) -> Result<(), sqlx::Error> {
        for p in progress {
            query(
                "UPDATE chains SET next_number = $2, gaps = $3, last_digest = $4, seen_ms = $5 \
                 WHERE chain_no = $1",
            )
            .bind(p.chain_no)
            .bind(p.next)
            .bind(&p.gaps)
            .bind(&p.last_digest)
            .bind(now.0)
            .execute(&mut **self)
            .await?;
        }
        Ok(())
    }

    async fn apply(&mut self, change: &SessionChange) -> Result<(), sqlx::Error> {
        for statement in change.statements().into_iter().flatten() {
            statement.bind_sqlite().execute(&mut **self).await?;
        }
        Ok(())
    }
}
