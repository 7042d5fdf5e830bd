//! Checks how every database stores frames: the same checks on SQLite and on PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_wrap,
    clippy::float_cmp
)] // a test may break

use contract::*;
use ingestion::IngestStore;
use ingestion::store::{ChainNo, OrgCursor, Outcome, PendingSession};
use ingestion::verified_frame::{Numbering, Opening, Repeats, Trust, VerifiedFrame};
use service_testbed::NOW;

/// Makes a test of each check on SQLite, and one on PostgreSQL.
macro_rules! on_both {
    ($($check:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $check() {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("test.db");
                super::$check(&crate::open(format!("sqlite:{}", path.display())).await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $check() {
                let cluster = testbed::Postgres::start().await.unwrap();
                super::$check(&crate::open(cluster.url()).await).await;
            })*
        }
    };
}

mod clocks;
mod curves;
mod frames;
mod machine_names;
mod sessions;
mod sweeps;

const CHAIN: ChainId = ChainId([9; 16]);

fn origin() -> Origin {
    Origin {
        org: OrgId::new("acme").unwrap(),
        site: SiteId::new("leipzig").unwrap(),
        machine: MachineId::new("r-1").unwrap(),
    }
}

/// The position before the first session of the organisation.
fn first() -> [OrgCursor; 1] {
    [OrgCursor::first("acme".to_owned())]
}

/// Returns the sessions that a sweep has work with.
fn due(examined: Vec<PendingSession>) -> Vec<PendingSession> {
    examined.into_iter().filter(|session| session.is_due).collect()
}

async fn open(url: String) -> IngestStore {
    let database = service_testbed::open_database(url).await;
    database.ensure_partitions(NOW).await.unwrap();
    IngestStore::new(database)
}

/// Frame `n` holds samples `10·(n−1)..10·n`, linked to frame `n−1`; `salt` changes its content.
fn frame(n: u64, salt: f64) -> VerifiedFrame {
    let previous = (n > 1).then(|| frame(n - 1, 0.0).digest);
    let values = (0..10).map(|i| Some(150.0 + salt + ((n - 1) * 10 + i) as f64 / 10.0)).collect();
    let session = SessionId::new("S-1").unwrap();
    let event = |kind, seq: u64, elapsed_s| MachineEvent {
        kind,
        seq,
        at: NOW.plus_ms(seq as i64 * 100),
        elapsed_s,
        session: session.clone(),
        source: EventSource::Machine,
        bt_c: Some(150.0),
        note: None,
    };
    let events = match n {
        2 => vec![event(EventKind::Charge, 15, 0.0)],
        4 => vec![event(EventKind::Fc, 33, 1.8)],
        5 => vec![event(EventKind::Drop, 44, 2.9)],
        _ => vec![],
    };
    let frame = Frame {
        origin: origin(),
        chain: CHAIN,
        number: n,
        previous,
        boot_id: u64::MAX,
        first_seq: (n - 1) * 10,
        mono_ms: n * 1000,
        wall: NOW.plus_ms((n as i64 - 1) * 1000),
        clock: ClockQuality::Synchronised,
        profile_digest: None,
        offsets_ms: (0..10).map(|i| i * 100).collect(),
        columns: vec![
            Column { channel: Channel::Bt, values, quality: vec![(3, Quality::Spike)] },
            Column { channel: Channel::Gas, values: vec![None; 10], quality: vec![] },
            Column {
                channel: Channel::parse("inletC").unwrap(),
                values: vec![Some(1.5); 10],
                quality: vec![],
            },
        ],
        events,
    };
    let payload = frame.encode();
    VerifiedFrame {
        digest: trust::sha256_digest(&payload),
        signed: payload,
        frame,
        kid: "device:gw@leipzig".to_owned(),
        trust: Trust::Verified,
        numbering: Numbering::Edge,
        published: None,
        received: NOW,
    }
}

async fn name(store: &IngestStore) -> ChainNo {
    store.chain_no(&origin(), CHAIN, "device:gw@leipzig", NOW).await.unwrap()
}

async fn commit(store: &IngestStore, frames: &[VerifiedFrame]) -> (Vec<Outcome>, Vec<(u64, u64)>) {
    let no = name(store).await;
    let done = store.commit(&vec![no; frames.len()], frames, NOW).await.unwrap();
    let gaps = done.gaps[&no.chain].iter().map(|gap| (gap.first, gap.last)).collect();
    (done.outcomes, gaps)
}

async fn seqs(store: &IngestStore) -> Vec<i64> {
    let no = name(store).await;
    let frames = store.frames_of_range(&origin().org, no.chain, 0, 1 << 40, 10_000).await.unwrap();
    frames.iter().flat_map(|f| (0..f.offsets_ms.len()).map(|i| f.seq_at(i))).collect()
}

/// One upstream message: a point at `second` of a roast, or its DROP.
fn told(second: i64, opens: bool, drop: bool) -> VerifiedFrame {
    let mut verified = frame(1, 0.0);
    let (session, at) = (SessionId::new("S-1").unwrap(), NOW.plus_ms(second * 1000));
    let event = MachineEvent {
        kind: EventKind::Drop,
        seq: 0,
        at,
        elapsed_s: second as f64,
        session: session.clone(),
        source: EventSource::Machine,
        bt_c: None,
        note: None,
    };
    let bt = Column { channel: Channel::Bt, values: vec![Some(200.0)], quality: vec![] };
    verified.frame.wall = at;
    verified.frame.offsets_ms = if drop { vec![] } else { vec![0] };
    verified.frame.columns = if drop { vec![] } else { vec![bt] };
    verified.frame.events = if drop { vec![event] } else { vec![] };
    verified.digest = trust::sha256_digest(format!("{second} {drop}").as_bytes());
    let opens = opens.then_some(Opening { session, started: NOW, after: None });
    verified.numbering = Numbering::Arrival { opens, repeats: Repeats::SameTime };
    verified
}
