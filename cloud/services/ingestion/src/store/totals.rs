//! The totals of sessions, counted from their frames; those of running sessions only from the frames
//! that have arrived since the last count.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::database::sqlx::query_as;
use ::database::{StoreError, on};
use contract::{Channel, OrgId};
use quick_cache::sync::Cache;

use super::commit::state_of;
use super::row::end_of;
use super::sessions::{SessionRow, Totals};
use super::{FrameRow, IngestStore};
use crate::chain::ChainState;
use crate::published::PublishedSamples;

const FRAMES_A_READ: i64 = 2_000;
/// The maximum number of running sessions whose counts are kept. At this bound each new one evicts
/// one that is rarely read; that one is counted as a whole again.
pub(super) const COUNTS_MAX: usize = 20_000;

/// The counts of running sessions, by organisation and session.
pub(super) type RunningCounts = Cache<(String, String), Arc<RunningCount>>;

/// What has been counted of a session.
#[derive(Debug, Clone, Default)]
struct SessionCount {
    totals: Totals,
    /// The keys that signed messages of publishers.
    kids: BTreeSet<String>,
    /// The sample after the last one that was counted.
    next: i64,
}

/// A count, and what it was counted from.
#[derive(Debug)]
pub(super) struct RunningCount {
    range: (i64, i64),
    chain_no: i64,
    /// The state of the chain before its frames were read.
    chain: ChainState,
    count: SessionCount,
}

impl SessionCount {
    fn new(first: i64) -> Self {
        Self { next: first, ..Self::default() }
    }

    /// Adds the samples of a frame up to `last`. Samples before the next one are not added: frames
    /// that overlap count once.
    fn add(&mut self, frame: &FrameRow, last: i64) {
        let totals = &mut self.totals;
        for i in 0..frame.len() {
            let seq = frame.seq_at(i);
            if seq < self.next || seq > last {
                continue;
            }
            self.next = seq.saturating_add(1);
            totals.points = totals.points.saturating_add(1);
            match frame.trust {
                0 => totals.verified = totals.verified.saturating_add(1),
                _ => totals.unsigned = totals.unsigned.saturating_add(1),
            }
            if let Some(bt) = frame.value(&Channel::Bt, i) {
                totals.max_bt_c = Some(totals.max_bt_c.map_or(bt, |max: f64| max.max(bt)));
            }
        }
        let kids = frame.published.iter().flat_map(PublishedSamples::kids);
        self.kids.extend(kids.map(str::to_owned));
    }
}

impl RunningCount {
    /// Returns whether all frames that the chain has got since are after those that were counted.
    fn can_go_on(&self, chain: &ChainState) -> bool {
        let before = chain.gaps.iter().filter(|gap| gap.first < self.chain.next);
        chain.next >= self.chain.next && before.eq(self.chain.gaps.iter())
    }
}

impl IngestStore {
    /// Returns a session's totals, counted from its frames.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn totals(&self, org: &OrgId, session: &SessionRow) -> Result<Totals, StoreError> {
        self.totals_with_kids(org, session).await.map(|(totals, _)| totals)
    }

    /// Returns a session's totals, and the keys that signed messages of publishers in it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn totals_with_kids(
        &self,
        org: &OrgId,
        session: &SessionRow,
    ) -> Result<(Totals, BTreeSet<String>), StoreError> {
        let range = self.sample_range(session).await?;
        let mut count = SessionCount::new(range.0);
        self.count_frames(org, session.chain_no, (range.1, u64::MAX), &mut count).await?;
        if count.totals.points == 0 {
            self.count_curve(org, session, range, &mut count).await?;
        }
        Ok((count.totals, count.kids))
    }

    /// Returns the same for a session that is read again and again while it runs: reads only the
    /// frames that have arrived since the last call, and all of them after a gap was filled.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn running_totals(
        &self,
        org: &OrgId,
        session: &SessionRow,
    ) -> Result<(Totals, BTreeSet<String>), StoreError> {
        let key = (org.as_str().to_owned(), session.session_id.clone());
        let (range, chain_no) = (self.sample_range(session).await?, session.chain_no);
        // Before the frames: of those that are stored in between, none after this state is counted.
        // One that leaves a gap would otherwise hide the frames that fill it later.
        let chain = self.chain_progress(chain_no).await?;
        let known = self.counts.get(&key).filter(|known| {
            (known.range, known.chain_no) == (range, chain_no) && known.can_go_on(&chain)
        });
        let mut count = match known {
            Some(known) if known.chain == chain => {
                return Ok((known.count.totals, known.count.kids.clone()));
            }
            Some(known) => known.count.clone(),
            None => SessionCount::new(range.0),
        };
        self.count_frames(org, chain_no, (range.1, chain.next), &mut count).await?;
        let result = (count.totals, count.kids.clone());
        if count.totals.points == 0 {
            self.count_curve(org, session, range, &mut count).await?;
            return Ok((count.totals, count.kids));
        }
        self.counts.insert(key, Arc::new(RunningCount { range, chain_no, chain, count }));
        Ok(result)
    }

    /// Returns which frames of a chain have arrived.
    async fn chain_progress(&self, chain_no: i64) -> Result<ChainState, StoreError> {
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT next_number, gaps FROM chains WHERE chain_no = $1")
            .bind(chain_no).fetch_optional(pool).await)
        .map_err(StoreError::query("reading the state of a chain"))?;
        Ok(row.map(|(next, gaps)| state_of(next, &gaps, None)).unwrap_or_default())
    }

    /// Adds the samples of a chain's frames from the next one to `last`, up to the first frame whose
    /// number is not below `end_number`.
    async fn count_frames(
        &self,
        org: &OrgId,
        chain_no: i64,
        (last, end_number): (i64, u64),
        count: &mut SessionCount,
    ) -> Result<(), StoreError> {
        loop {
            let read = self.frames_of_range(org, chain_no, count.next, last, FRAMES_A_READ);
            let frames = read.await?;
            let Some(end) = end_of(&frames) else { return Ok(()) };
            for frame in &frames {
                if u64::try_from(frame.number).is_ok_and(|number| number >= end_number) {
                    return Ok(());
                }
                count.add(frame, last);
            }
            if end > last {
                return Ok(());
            }
            count.next = count.next.max(end);
        }
    }

    /// Adds the samples of a session's curve, which holds them all after retention has dropped the
    /// frames.
    async fn count_curve(
        &self,
        org: &OrgId,
        session: &SessionRow,
        (first, last): (i64, i64),
        count: &mut SessionCount,
    ) -> Result<(), StoreError> {
        if let Some(curve) = self.curve(org, &session.session_id).await? {
            count.next = first;
            count.add(&curve, last);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use contract::{
        ChainId, ClockQuality, Column, Digest, EpochMs, EventKind, EventSource, Frame,
        MachineEvent, Origin, SessionId,
    };

    use super::*;
    use crate::verified_frame::{Numbering, Trust, VerifiedFrame};

    const NOW: EpochMs = EpochMs(1_760_000_000_000);
    const CHAIN: ChainId = ChainId([9; 16]);

    fn origin() -> Origin {
        "acme/leipzig/r-1".parse().unwrap()
    }

    /// Twelve linked frames of ten samples each: CHARGE is in the first one, DROP in the tenth.
    fn frames() -> Vec<VerifiedFrame> {
        let mut frames: Vec<VerifiedFrame> = Vec::new();
        for n in 0..12_u32 {
            let first_seq = u64::from(n) * 10;
            let wall = NOW.plus_ms(i64::from(n) * 1_000);
            let event = |kind| MachineEvent {
                kind,
                seq: first_seq,
                at: wall,
                elapsed_s: f64::from(n),
                session: SessionId::new("S-1").unwrap(),
                source: EventSource::Machine,
                bt_c: None,
                note: None,
            };
            let values = (0..10).map(|i| Some(150.0 + f64::from(n * 10 + i) / 10.0)).collect();
            let frame = Frame {
                origin: origin(),
                chain: CHAIN,
                number: u64::from(n) + 1,
                previous: frames.last().map(|frame| frame.digest),
                boot_id: 1,
                first_seq,
                mono_ms: u64::from(n) * 1_000,
                wall,
                clock: ClockQuality::Synchronised,
                profile_digest: None,
                offsets_ms: (0..10).map(|i| i * 100).collect(),
                columns: vec![Column { channel: Channel::Bt, values, quality: Vec::new() }],
                events: match n {
                    0 => vec![event(EventKind::Charge)],
                    9 => vec![event(EventKind::Drop)],
                    _ => Vec::new(),
                },
            };
            let signed = frame.encode();
            let digest: Digest = trust::sha256_digest(&signed);
            frames.push(VerifiedFrame {
                digest,
                signed,
                frame,
                kid: "device:gw@leipzig".to_owned(),
                trust: Trust::Verified,
                numbering: Numbering::Edge,
                published: None,
                received: NOW,
            });
        }
        frames
    }

    #[tokio::test]
    async fn the_totals_of_a_running_session_equal_a_recount_and_cost_no_scan() {
        for order in [
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            [1, 2, 4, 6, 5, 3, 7, 9, 8, 10, 12, 11],
            [3, 1, 7, 2, 8, 9, 12, 4, 5, 6, 10, 11],
            [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
        ] {
            let (_folder, database) = service_testbed::open_sqlite().await;
            let store = IngestStore::new(database);
            let (origin, frames) = (origin(), frames());
            let no = store.chain_no(&origin, CHAIN, "kid", NOW).await.unwrap();
            let mut last = None;
            for number in order {
                let frame = std::slice::from_ref(&frames[number - 1]);
                store.commit(&[no], frame, NOW).await.unwrap();
                let Some(row) = store.session(&origin.org, "S-1").await.unwrap() else { continue };
                let running = store.running_totals(&origin.org, &row).await.unwrap();
                let recount = store.totals_with_kids(&origin.org, &row).await.unwrap();
                assert_eq!(running, recount, "{order:?} up to {number}");
                let again = store.running_totals(&origin.org, &row).await.unwrap();
                assert_eq!(again, recount, "{order:?} up to {number}");
                last = Some((row, recount));
            }
            let (row, recount) = last.unwrap();
            assert_eq!(recount.0.points, 91, "from CHARGE to DROP");
            // No frame is read when none has arrived.
            let delete = ::database::sqlx::query("DELETE FROM frames");
            let ::database::Pool::Sqlite(pool) = store.database().pool() else { panic!("SQLite") };
            delete.execute(pool).await.unwrap();
            let kept = store.running_totals(&origin.org, &row).await.unwrap();
            assert_eq!(kept, recount);
            store.clear_number_cache();
            assert_eq!(store.running_totals(&origin.org, &row).await.unwrap().0.points, 0);
        }
    }

    /// A frame that leaves a gap is stored after the state of its chain was read, and before the
    /// frames are.
    #[tokio::test]
    async fn a_frame_that_arrives_during_a_count_hides_none_that_fills_its_gap() {
        let (_folder, database) = service_testbed::open_sqlite().await;
        let store = IngestStore::new(database);
        let (origin, frames) = (origin(), frames());
        let no = store.chain_no(&origin, CHAIN, "kid", NOW).await.unwrap();
        store.commit(&[no, no], &frames[..2], NOW).await.unwrap();
        let before = store.chain_progress(no.chain).await.unwrap();
        store.commit(&[no], &frames[3..4], NOW).await.unwrap();
        let mut count = SessionCount::new(0);
        let until = (i64::MAX - 1, before.next);
        store.count_frames(&origin.org, no.chain, until, &mut count).await.unwrap();
        assert_eq!((count.totals.points, count.next), (20, 20), "not the fourth frame");
        store.commit(&[no], &frames[2..3], NOW).await.unwrap();
        let until = (i64::MAX - 1, store.chain_progress(no.chain).await.unwrap().next);
        store.count_frames(&origin.org, no.chain, until, &mut count).await.unwrap();
        assert_eq!(count.totals.points, 40);
    }
}
