//! The replay of a stream for a client that reconnects: the rows that it has missed, read in pages.

use std::collections::BTreeSet;
use std::sync::Arc;

use contract::OrgId;
use database::StoreError;
use futures_util::future::BoxFuture;

use super::{ReadPace, ResumeId, StreamFilter, StreamKind};
use crate::live_tail::{LiveRow, Position};
use crate::row_json::{self, CommittedRow};
use crate::store::IngestStore;

/// The limits of a page of replayed rows: rows, and samples of frames.
const REPLAY_PAGE: (i64, usize) = (500, contract::frame::SAMPLES_MAX);
/// The number of late rows that are read at once: so many frames of any size fit.
const LATE_ROWS: usize = 4;

/// Returns the position of a client that reconnects, or `None` if no row has come so far: then the
/// database was restored to a time before, and the client would receive nothing until its number
/// comes again. It may be a little ahead of this instance's tail.
pub(super) async fn reached(
    store: &IngestStore,
    what: StreamKind,
    last: ResumeId,
) -> Result<Option<ResumeId>, StoreError> {
    let (frames, events) = store.newest_arrivals(1).await?;
    let newest = match what {
        StreamKind::Telemetry => frames,
        StreamKind::Events => events,
    };
    Ok(newest.first().is_some_and(|newest| last.arrival <= *newest).then_some(last))
}

/// What a client that reconnects has missed: the rows between its last one and the position of the
/// tail. Later rows it receives live.
pub(super) struct Replay {
    last: ResumeId,
    until: Position,
    /// The rows up to this one have been read.
    read: i64,
    /// The rows that the client knew to be missing, and that have not been read yet.
    late: Vec<i64>,
    /// The rows that were replayed although the tail still waits for them.
    found: BTreeSet<i64>,
}

impl Replay {
    pub(super) fn new(last: ResumeId, until: Position) -> Self {
        let (read, late) = (last.arrival, last.missing.clone());
        Self { last, until, read, late, found: BTreeSet::new() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.late.is_empty() && self.read >= self.until.arrival
    }

    /// Returns whether a row of the tail is new to the client.
    pub(super) fn lacks(&self, arrival: i64) -> bool {
        if arrival <= self.last.arrival && !self.last.missing.contains(&arrival) {
            return false; // the client had received it before it reconnected
        }
        arrival > self.until.arrival
            || (self.until.missing.contains(&arrival) && !self.found.contains(&arrival))
    }

    /// Reads the next page. The future is boxed, because the compiler cannot see that a borrowed
    /// query may move between threads.
    fn next_page<'a>(
        &'a mut self,
        store: &'a IngestStore,
        filter: &'a StreamFilter,
        what: StreamKind,
    ) -> BoxFuture<'a, Result<Vec<LiveRow>, StoreError>> {
        Box::pin(async move {
            let is_late = !self.late.is_empty();
            let (rows, newest) = if is_late {
                let late: Vec<i64> = self.late.drain(..self.late.len().min(LATE_ROWS)).collect();
                (rows_at(store, &filter.org, what, &late).await?, Some(self.read))
            } else {
                rows_between(store, filter, what, (self.read, self.until.arrival)).await?
            };
            self.read = newest.unwrap_or(self.until.arrival);
            let found = rows.iter().map(|row| row.arrival);
            self.found.extend(found.filter(|arrival| self.until.missing.contains(arrival)));
            let waiting =
                self.until.missing.iter().filter(|arrival| !self.found.contains(*arrival));
            let missing: BTreeSet<i64> = waiting.chain(&self.late).copied().collect();
            // The client lacks the late rows after each one too, until it receives them.
            let late: &[CommittedRow] = if is_late { &rows } else { &[] };
            let late: Vec<i64> = late.iter().map(|row| row.arrival).collect();
            let shared: Arc<[i64]> = missing.iter().copied().collect();
            let rows = rows.into_iter().zip(1_usize..).map(|(row, next)| {
                let missing = match late.get(next..) {
                    None | Some([]) => shared.clone(),
                    Some(unsent) => {
                        let all: BTreeSet<i64> = missing.iter().chain(unsent).copied().collect();
                        all.into_iter().collect()
                    }
                };
                LiveRow { row, missing }
            });
            Ok(rows.collect())
        })
    }
}

/// Returns the rows with these arrival numbers that have been committed by now.
async fn rows_at(
    store: &IngestStore,
    org: &OrgId,
    what: StreamKind,
    arrivals: &[i64],
) -> Result<Vec<CommittedRow>, StoreError> {
    Ok(match what {
        StreamKind::Telemetry => {
            let rows = store.frames_at(Some(org), arrivals).await?;
            let running = store.running_sessions(rows.iter().map(|row| row.frame.chain_no)).await?;
            rows.into_iter().filter_map(|row| row_json::committed_frame(row, &running)).collect()
        }
        StreamKind::Events => {
            let rows = store.events_at(Some(org), arrivals).await?.into_iter();
            rows.filter_map(|row| row_json::committed_event(&row.org_id, row.event)).collect()
        }
    })
}

/// Returns a page of the rows of the requested machines after the first arrival number and up to the
/// second, and the newest number of the page; `None` if there are no rows.
async fn rows_between(
    store: &IngestStore,
    filter: &StreamFilter,
    what: StreamKind,
    range: (i64, i64),
) -> Result<(Vec<CommittedRow>, Option<i64>), StoreError> {
    let (org, names) = (Some(&filter.org), filter.machines.names());
    Ok(match what {
        StreamKind::Telemetry => {
            let rows = store.frames_between(org, names, range, REPLAY_PAGE).await?;
            let running = store.running_sessions(rows.iter().map(|row| row.frame.chain_no)).await?;
            let newest = rows.last().map(|row| row.frame.arrival);
            let rows = rows.into_iter();
            (rows.filter_map(|row| row_json::committed_frame(row, &running)).collect(), newest)
        }
        StreamKind::Events => {
            let rows = store.events_between(org, names, range, REPLAY_PAGE.0).await?;
            let newest = rows.last().map(|row| row.event.arrival);
            let rows = rows.into_iter();
            let committed =
                |row: crate::store::ArrivedEvent| row_json::committed_event(&row.org_id, row.event);
            (rows.filter_map(committed).collect(), newest)
        }
    })
}

/// Reads the next page of a replay, and waits until the organisation may have read its cells.
pub(super) async fn read_page(
    replay: &mut Replay,
    store: &IngestStore,
    pace: &ReadPace,
    filter: &StreamFilter,
    what: StreamKind,
) -> Result<Vec<LiveRow>, StoreError> {
    let _turn = pace.replay_turn(&filter.org).await;
    let rows = replay.next_page(store, filter, what).await?;
    let cells = rows.iter().map(|row| row.row.cells()).fold(0, usize::saturating_add);
    pace.wait(&filter.org, cells).await;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::machine_filter::MachineFilter;
    use crate::verified_frame::{Numbering, Trust, VerifiedFrame};
    use contract::{ChainId, ClockQuality, Digest, EpochMs, Frame, Origin};
    use database::{Database, DatabaseConfig};

    const NOW: EpochMs = EpochMs(1_760_000_000_000);
    const CHAIN: ChainId = ChainId([1; 16]);

    fn origin() -> Origin {
        "acme/leipzig/r-1".parse().unwrap()
    }

    fn frame(number: u64) -> VerifiedFrame {
        let digest = |number: u64| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            Digest(digest)
        };
        let frame = Frame {
            origin: origin(),
            chain: CHAIN,
            number,
            previous: (number > 1).then(|| digest(number - 1)),
            boot_id: 1,
            first_seq: number,
            mono_ms: number,
            wall: NOW,
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: vec![0],
            columns: vec![],
            events: vec![],
        };
        VerifiedFrame {
            frame,
            digest: digest(number),
            signed: Vec::new(),
            kid: "kid".to_owned(),
            trust: Trust::Verified,
            numbering: Numbering::Edge,
            published: None,
            received: NOW,
        }
    }

    /// Returns a store with the frames up to `count`.
    async fn store_with(folder: &tempfile::TempDir, count: u64) -> IngestStore {
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
        let database = Database::open(&config).await.unwrap();
        database.migrate_up().await.unwrap();
        let store = IngestStore::new(database);
        let no = store.chain_no(&origin(), CHAIN, "kid", NOW).await.unwrap();
        let frames: Vec<_> = (1..=count).map(frame).collect();
        store.commit(&vec![no; frames.len()], &frames, NOW).await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_position_that_a_restored_database_has_not_reached_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = store_with(&folder, 5).await;
        let is_reached = async |what, arrival| {
            let last = ResumeId { arrival, missing: Vec::new() };
            reached(&store, what, last).await.unwrap().is_some()
        };
        assert!(is_reached(StreamKind::Telemetry, 5).await);
        assert!(!is_reached(StreamKind::Telemetry, 6).await);
        assert!(!is_reached(StreamKind::Events, 1).await, "no event has come");
    }

    #[tokio::test]
    async fn a_replay_reads_page_after_page_and_the_rows_that_were_late() {
        let folder = tempfile::tempdir().unwrap();
        let store = store_with(&folder, 1_200).await;
        let last = ResumeId { arrival: 10, missing: vec![3] };
        let mut replay = Replay::new(last, Position { arrival: 1_150, missing: [].into() });
        let (mut arrivals, mut pages) = (Vec::new(), 0);
        let filter = StreamFilter { org: origin().org, machines: MachineFilter::default() };
        while !replay.is_done() {
            let page = replay.next_page(&store, &filter, StreamKind::Telemetry).await.unwrap();
            arrivals.extend(page.iter().map(|row| row.row.arrival));
            pages += 1;
        }
        assert_eq!(arrivals[0], 3);
        assert_eq!(arrivals[1..], (11..=1_150).collect::<Vec<_>>());
        assert!(pages > 2, "in parts");
    }

    #[tokio::test]
    async fn an_id_in_the_middle_of_late_rows_names_those_that_follow() {
        let folder = tempfile::tempdir().unwrap();
        let store = store_with(&folder, 10).await;
        let last = ResumeId { arrival: 10, missing: vec![2, 3, 5, 7, 8] };
        let mut replay = Replay::new(last, Position { arrival: 10, missing: [].into() });
        let filter = StreamFilter { org: origin().org, machines: MachineFilter::default() };
        let mut ids = Vec::new();
        while !replay.is_done() {
            let page = replay.next_page(&store, &filter, StreamKind::Telemetry).await.unwrap();
            ids.extend(page.iter().map(|row| ResumeId::text(10, &row.missing)));
        }
        assert_eq!(ids, ["10~3.5.7.8", "10~5.7.8", "10~7.8", "10~8", "10"]);
    }

    #[test]
    fn rows_that_a_client_has_are_not_sent_again_and_late_ones_are() {
        let last = ResumeId { arrival: 20, missing: vec![15] };
        let mut replay = Replay::new(last, Position { arrival: 40, missing: [15, 18, 33].into() });
        assert!(!replay.is_done());
        for (arrival, lacks) in [
            (41, true),  // after the position of the tail
            (40, false), // replayed
            (33, true),  // the tail waits for it
            (20, false), // received before
            (18, false), // received before, though this tail still waits for it
            (15, true),  // the client waits for it
            (14, false),
        ] {
            assert_eq!(replay.lacks(arrival), lacks, "{arrival}");
        }
        replay.found.insert(33);
        assert!(!replay.lacks(33), "committed in time to be replayed");
        (replay.read, replay.late) = (40, vec![]);
        assert!(replay.is_done());
    }
}
