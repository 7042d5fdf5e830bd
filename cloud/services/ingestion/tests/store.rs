//! Checks how every database stores frames: the same checks on SQLite and on PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_wrap,
    clippy::float_cmp
)] // a test may break

use contract::*;
use database::{Database, DatabaseConfig};
use ingestion::IngestStore;
use ingestion::store::{ChainNo, Outcome, PublishAfter, SessionFilter};
use ingestion::verified_frame::{Numbering, Repeats, Trust, VerifiedFrame};
use proptest::prelude::*;
use testbed::Postgres;

const NOW: EpochMs = EpochMs(1_760_000_000_000);
const CHAIN: ChainId = ChainId([9; 16]);

fn origin() -> Origin {
    Origin {
        org: OrgId::new("acme").unwrap(),
        site: SiteId::new("leipzig").unwrap(),
        machine: MachineId::new("r-1").unwrap(),
    }
}

async fn open(url: String) -> IngestStore {
    let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
    let database = Database::open(&config).await.unwrap();
    database.migrate_up().await.unwrap();
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

async fn twice_changes_nothing(store: &IngestStore) {
    let frames: Vec<_> = (1..=3).map(|n| frame(n, 0.0)).collect();
    assert_eq!(commit(store, &frames).await.0, [Outcome::Stored; 3]);
    assert_eq!(commit(store, &frames).await.0, [Outcome::Duplicate; 3]);
    let doubled = [frame(4, 0.0), frame(4, 0.0)];
    assert_eq!(commit(store, &doubled).await.0, [Outcome::Stored, Outcome::Duplicate]);
    assert_eq!(seqs(store).await, (0..40).collect::<Vec<_>>());
}

async fn a_used_number_with_other_content_is_refused(store: &IngestStore) {
    commit(store, &[frame(1, 0.0), frame(2, 0.0)]).await;
    let forged = [frame(2, 7.0)];
    assert_eq!(commit(store, &forged).await.0, [Outcome::Refused(Refusal::SequenceReused)]);
    let mut unlinked = frame(3, 0.0);
    unlinked.frame.previous = Some(Digest([1; 32]));
    assert_eq!(commit(store, &[unlinked]).await.0, [Outcome::Refused(Refusal::BrokenChain)]);
    let no = name(store).await;
    let kept = store.frames_of_range(&origin().org, no.chain, 10, 19, 10).await.unwrap();
    assert_eq!(kept[0].value(&Channel::Bt, 0), Some(151.0), "the first one stays");
    assert_eq!(seqs(store).await.len(), 20);
}

/// Frames of a gateway that started in 1970, and whose clock was set with the sixth.
fn waking(n: u64) -> VerifiedFrame {
    let mut verified = frame(n, 0.0);
    let f = &mut verified.frame;
    f.boot_id = 77;
    if n < 6 {
        f.clock = ClockQuality::FreeRunning;
        f.wall = EpochMs((n as i64 - 1) * 1000);
        for event in &mut f.events {
            event.at = EpochMs(event.at.0 - NOW.0);
        }
    }
    verified
}

async fn dates_are_put_right_in_any_order(store: &IngestStore) {
    let no = name(store).await;
    let boot = 77;
    let offset = NOW.0 - 1000; // of frame(n): wall is NOW + (n-1) s, mono n s
    // First frames whose time is not known, then the one with the time, then more frames without
    // one.
    commit(store, &[waking(1), waking(2), waking(4), waking(5)]).await;
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 0, "the time is not known yet");
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert!(session.started_ms < 10_000, "in 1970");
    commit(store, &[waking(6)]).await;
    store.note_offset(no.chain, boot, offset).await.unwrap();
    store.note_offset(no.chain, boot, 5).await.unwrap();
    assert_eq!(store.undated_boots().await.unwrap(), [(no.chain, boot)]);
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 4);
    commit(store, &[waking(3)]).await;
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 0, "dated when it was stored");
    assert_eq!(store.undated_boots().await.unwrap(), []);
    // All is as if the clock had been right from the start; the signed bytes are unchanged.
    let frames = store.frames_of_range(&origin().org, no.chain, 0, 1 << 40, 100).await.unwrap();
    let starts: Vec<i64> = frames.iter().map(|f| f.t0_ms - NOW.0).collect();
    assert_eq!(starts, [0, 1000, 2000, 3000, 4000, 5000]);
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert_eq!(session.started_ms, NOW.0 + 1500);
    assert_eq!(session.ended_ms, Some(NOW.0 + 4400));
    let events = store.events_of(&origin().org, "S-1").await.unwrap();
    let at: Vec<i64> = events.iter().map(|event| event.at_ms - NOW.0).collect();
    assert_eq!(at, [1500, 3300, 4400]);
    let digests = store.digests(no.chain, 1, 2).await.unwrap();
    assert_eq!(digests, [waking(1).digest.0.to_vec(), waking(2).digest.0.to_vec()]);
}

async fn holes_are_known_and_filled(store: &IngestStore) {
    let (outcomes, gaps) = commit(store, &[frame(6, 0.0), frame(1, 0.0), frame(3, 0.0)]).await;
    assert_eq!(outcomes, [Outcome::Stored; 3], "in any order");
    assert_eq!(gaps, [(2, 2), (4, 5)]);
    let (_, gaps) = commit(store, &[frame(5, 0.0), frame(2, 0.0)]).await;
    assert_eq!(gaps, [(4, 4)]);
    let (_, gaps) = commit(store, &[frame(4, 0.0)]).await;
    assert_eq!(gaps, []);
    assert_eq!(seqs(store).await, (0..60).collect::<Vec<_>>());
}

async fn a_roast_is_the_same_in_any_order_of_arrival(store: &IngestStore) {
    for n in [5, 4, 6, 2, 1, 3] {
        commit(store, &[frame(n, 0.0)]).await;
    }
    let org = origin().org;
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.first_seq, session.last_seq), (Some(15), Some(44)));
    assert_eq!(session.started_ms, NOW.0 + 1500);
    assert_eq!(session.ended_ms, Some(NOW.0 + 4400));
    assert_eq!((session.fc_s, session.drop_s), (Some(1.8), Some(2.9)));
    assert_eq!(session.status, "CLOSED");
    let totals = store.totals(&org, &session).await.unwrap();
    assert_eq!((totals.points, totals.verified, totals.max_bt_c), (30, 30, Some(154.4)));
    let kinds: Vec<_> =
        store.events_of(&org, "S-1").await.unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["CHARGE", "FC", "DROP"]);
    let listed =
        store.sessions(&org, &SessionFilter { limit: 10, ..SessionFilter::default() }).await;
    assert_eq!(listed.unwrap().len(), 1);
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
    let opens = opens.then_some((session, NOW));
    verified.numbering = Numbering::Arrival { opens, repeats: Repeats::SameTime };
    verified
}

async fn a_sample_taken_before_drop_and_sent_after_it_belongs_to_the_roast(store: &IngestStore) {
    let org = origin().org;
    for (second, drop) in [(0, false), (1, false), (3, true), (2, false)] {
        commit(store, &[told(second, second == 0, drop)]).await;
    }
    let points = async || {
        let session = store.session(&org, "S-1").await.unwrap().unwrap();
        assert_eq!((session.status.as_str(), session.drop_s), ("CLOSED", Some(3.0)));
        store.totals(&org, &session).await.unwrap().points
    };
    assert_eq!(points().await, 3);
    // Its curve was final until the very last sample came; samples of the cooling afterwards are
    // not part of it.
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    store.make_curve(&org, &session, true, NOW).await.unwrap();
    let curveless = async || {
        store.sessions_without_curve(NOW.plus_ms(60_000), (i64::MIN, ""), 10).await.unwrap().len()
    };
    assert_eq!(curveless().await, 0);
    commit(store, &[told(50, false, false)]).await;
    assert_eq!((points().await, curveless().await), (3, 0));
    // The samples before it come with it: a second too much is better than one too few.
    commit(store, &[told(3, false, false)]).await;
    assert_eq!((points().await, curveless().await), (5, 1));
    // Too late to be a message out of order; it is stored, and changes no session.
    commit(store, &[told(70, false, false)]).await;
    commit(store, &[VerifiedFrame { digest: Digest([7; 32]), ..told(1, false, false) }]).await;
    assert_eq!(points().await, 5);
}

/// Two instances have read the first messages of a roast at once: each says that it opens the roast.
async fn a_roast_that_two_instances_open_keeps_all_its_samples(store: &IngestStore) {
    for second in 0..3 {
        commit(store, &[told(second, second < 2, false)]).await;
    }
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.first_seq, session.last_seq), (Some(1), None), "it runs");
    commit(store, &[told(3, false, true)]).await;
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert_eq!(store.totals(&origin().org, &session).await.unwrap().points, 3);
}

async fn another_tenant_sees_nothing(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let (rival, no) = (OrgId::new("rival").unwrap(), name(store).await);
    assert!(store.session(&rival, "S-1").await.unwrap().is_none());
    assert!(store.events_of(&rival, "S-1").await.unwrap().is_empty());
    assert!(store.machines(&rival).await.unwrap().is_empty());
    assert!(store.frames_of_range(&rival, no.chain, 0, 100, 10).await.unwrap().is_empty());
    assert!(store.frames_after(Some(&rival), 0, 10).await.unwrap().is_empty());
    assert!(store.events_after(Some(&rival), 0, 10).await.unwrap().is_empty());
    assert_eq!(store.frames_after(Some(&origin().org), 0, 10).await.unwrap().len(), 5);
}

async fn the_newest_is_found(store: &IngestStore) {
    commit(store, &(1..=3).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let no = name(store).await;
    let newest = store.newest_frame(&origin().org, no.chain).await.unwrap().unwrap();
    assert_eq!(
        (newest.number, newest.value(&Channel::Bt, 9), newest.value(&Channel::Gas, 0)),
        (3, Some(152.9), None)
    );
    assert!(newest.extras.unwrap().contains("inletC"));
    assert_eq!(store.newest_arrivals(2).await.unwrap().0, [3, 2]);
    assert_eq!(store.machines(&origin().org).await.unwrap()[0].chain_no, no.chain);
}

/// PostgreSQL's text cannot hold a NUL: such a note must not stop a batch.
async fn a_note_with_a_nul_stops_nothing(store: &IngestStore) {
    let mut marked = frame(1, 0.0);
    let mut event = frame(2, 0.0).frame.events.remove(0);
    event.note = Some("a\0b".to_owned());
    marked.frame.events.push(event);
    assert_eq!(commit(store, &[marked]).await.0, [Outcome::Stored]);
    let events = store.events_of(&origin().org, "S-1").await.unwrap();
    assert_eq!(events[0].note.as_deref(), Some("a\u{fffd}b"));
}

/// An agent that was started in mid-roast sends CHARGE, FC and DROP together when the roast ends. Its
/// CHARGE is an estimate before its first sample.
async fn a_roast_that_began_before_its_agent_is_stored_and_marked(store: &IngestStore) {
    let mut frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    let mut events: Vec<MachineEvent> =
        frames.iter_mut().flat_map(|verified| verified.frame.events.drain(..)).collect();
    for event in &mut events {
        event.source = EventSource::Inferred;
        event.elapsed_s = event.at.ms_since(NOW.plus_ms(-60_000)) as f64 / 1000.0;
    }
    let charge = &mut events[0];
    (charge.seq, charge.at, charge.elapsed_s) = (0, NOW.plus_ms(-60_000), 0.0);
    charge.note = Some(contract::event::BEGUN_BEFORE_NOTE.to_owned());
    frames[4].frame.events = events;
    commit(store, &frames).await;
    let (org, no) = (origin().org, name(store).await);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.status.as_str(), session.begun_before), ("CLOSED", 1));
    assert_eq!((session.first_seq, session.last_seq), (Some(0), Some(44)));
    assert!((session.started_ms - NOW.0 + 60_000).abs() <= 5_000, "{}", session.started_ms);
    assert_eq!((session.fc_s, session.duration_s()), (Some(63.3), Some(64.4)));
    let stored = store.frames_of_range(&org, no.chain, 0, 44, 100).await.unwrap();
    assert_eq!(session.elapsed_ms(&stored[0], 0), 60_000, "its first samples are missing");
}

async fn the_row_of_a_closed_roast_agrees_with_its_frames(store: &IngestStore) {
    // The second arrives without its extra channel and with another one.
    let mut frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    frames[2].frame.columns.pop();
    commit(store, &frames).await;
    let org = origin().org;
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert!(store.curve(&org, "S-1").await.unwrap().is_none());
    let start = (i64::MIN, "");
    assert_eq!(
        store.sessions_without_curve(NOW.plus_ms(60_000), start, 10).await.unwrap().len(),
        1
    );
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    assert!(store.sessions_without_curve(NOW.plus_ms(60_000), start, 10).await.unwrap().is_empty());

    let no = name(store).await;
    let frames = store.frames_of_range(&org, no.chain, 15, 44, 100).await.unwrap();
    let curve = store.curve(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((curve.first_seq, curve.len()), (15, 30));
    let told = frames.iter().flat_map(|f| (0..f.len()).map(move |i| (f, i)));
    for (frame, i) in told.filter(|(f, i)| (15..=44).contains(&f.seq_at(*i))) {
        let at = usize::try_from(frame.seq_at(i) - 15).unwrap();
        assert_eq!(curve.sample_at(at), frame.sample_at(i));
        for channel in Channel::STANDARD {
            assert_eq!(curve.value(&channel, at), frame.value(&channel, i), "{channel:?}");
        }
    }
    let extras: serde_json::Value = serde_json::from_str(&curve.extras.unwrap()).unwrap();
    let inlet = extras["inletC"].as_array().unwrap();
    assert_eq!(inlet.len(), 30);
    assert_eq!((&inlet[4], &inlet[5], &inlet[15]), (&1.5.into(), &().into(), &1.5.into()));
    let quality: serde_json::Value = serde_json::from_str(&curve.quality.unwrap()).unwrap();
    // Sample 3 of each frame is a spike: sequence numbers 23, 33 and 43.
    assert_eq!(quality["btC"], serde_json::json!([[8, 2], [18, 2], [28, 2]]));
    assert!(store.curve(&OrgId::new("rival").unwrap(), "S-1").await.unwrap().is_none());
}

/// Frame `n` of a roast of six frames, each with as many samples as a frame may have.
fn large(n: u64) -> VerifiedFrame {
    let samples = u32::try_from(contract::frame::SAMPLES_MAX).unwrap();
    let mut verified = frame(1, 0.0);
    let digest = |n: u64| Digest([u8::try_from(n).unwrap(); 32]);
    verified.digest = digest(n);
    let f = &mut verified.frame;
    f.number = n;
    f.previous = (n > 1).then(|| digest(n - 1));
    f.first_seq = (n - 1) * u64::from(samples);
    f.wall = NOW.plus_ms(f.first_seq as i64 * 100);
    f.mono_ms = 1000 + f.first_seq * 100;
    f.offsets_ms = (0..samples).map(|i| i * 100).collect();
    let values = vec![Some(150.0); contract::frame::SAMPLES_MAX];
    f.columns = vec![Column { channel: Channel::Bt, values, quality: vec![] }];
    let (mut charge, mut drop) = (frame(2, 0.0).frame.events, frame(5, 0.0).frame.events);
    charge[0].seq = 0;
    drop[0].seq = 6 * u64::from(samples) - 1;
    f.events = match n {
        1 => charge,
        6 => drop,
        _ => vec![],
    };
    verified
}

async fn large_frames_are_read_in_parts_and_none_is_lost(store: &IngestStore) {
    const SAMPLES: usize = 6 * contract::frame::SAMPLES_MAX;
    commit(store, &(1..=6).map(large).collect::<Vec<_>>()).await;
    let (org, no) = (origin().org, name(store).await);
    let read = store.frames_of_range(&org, no.chain, 0, 1 << 40, 2_000).await.unwrap();
    assert_eq!(read.len(), 4, "not more at once");
    let rest = ingestion::store::end_of(&read).unwrap();
    assert_eq!(store.frames_of_range(&org, no.chain, rest, 1 << 40, 2_000).await.unwrap().len(), 2);
    assert_eq!(store.frames_after(None, 0, 2_000).await.unwrap().len(), 4);
    let some = store.frames_between(None, (None, None), (1, 4), (10, 5_000)).await.unwrap();
    assert_eq!(some.len(), 1);
    assert_eq!(store.frames_at(Some(&org), &[2, 3, 4, 5, 6, 7]).await.unwrap().len(), 4);
    assert_eq!(store.newest_frames(&org, no.chain, 1_000).await.unwrap().len(), 1);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!(store.totals(&org, &session).await.unwrap().points, SAMPLES as i64);
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    assert_eq!(store.curve(&org, "S-1").await.unwrap().unwrap().len(), SAMPLES);
}

/// A gateway, or the thief of its key, sends further events of a session whose receipt is complete.
async fn a_complete_session_is_not_rewritten(store: &IngestStore) {
    let frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    commit(store, &frames).await;
    let org = origin().org;
    let complete = contract::session::Completeness::Complete;
    store.set_completeness("acme", "S-1", complete, None).await.unwrap();
    let read = async || {
        let row = store.session(&org, "S-1").await.unwrap().unwrap();
        (row.started_ms, row.ended_ms, row.drop_s, row.first_seq, row.last_seq, row.completeness)
    };
    let before = read().await;
    let mut forged = frame(6, 0.0);
    let mut charge = frame(2, 0.0).frame.events.remove(0);
    let mut drop = frame(5, 0.0).frame.events.remove(0);
    (charge.seq, charge.at) = (51, NOW.plus_ms(5_100));
    (drop.seq, drop.at, drop.elapsed_s) = (59, NOW.plus_ms(5_900), 50.0);
    forged.frame.events = vec![charge, drop];
    assert_eq!(commit(store, &[forged]).await.0, [Outcome::Stored], "its samples are kept");
    assert_eq!(read().await, before);
    let events = store.events_of(&org, "S-1").await.unwrap();
    assert_eq!(events.len(), 3, "{events:?}");
}

/// A chain with many open sessions has one that runs, and takes no place of another's.
async fn the_newest_running_session_of_each_chain_is_found(store: &IngestStore) {
    let mut second = frame(3, 0.0);
    let mut charge = frame(2, 0.0).frame.events.remove(0);
    (charge.seq, charge.at) = (25, NOW.plus_ms(2_500));
    charge.session = SessionId::new("S-2").unwrap();
    second.frame.events = vec![charge];
    commit(store, &[frame(1, 0.0), frame(2, 0.0), second]).await;
    let chain = name(store).await.chain;
    let running = store.running_sessions([chain, chain + 1, chain]).await.unwrap();
    assert_eq!(running.len(), 1);
    assert_eq!(running[&chain].session_id, "S-2");
    assert!(store.running_sessions([]).await.unwrap().is_empty());
    let many = store.running_sessions(chain..chain + 1_000).await.unwrap();
    assert_eq!(many.len(), 1, "more chains than one statement has selects");
}

/// Frame `n` with its dates moved by `shift_ms`, with other events: (kind, sample, elapsed seconds,
/// session).
fn shifted(n: u64, shift_ms: i64, events: &[(EventKind, u64, f64, &str)]) -> VerifiedFrame {
    let mut verified = frame(n, 0.0);
    let sample = frame(2, 0.0).frame.events.remove(0);
    let event = |(kind, seq, elapsed_s, session): &(EventKind, u64, f64, &str)| MachineEvent {
        kind: *kind,
        seq: *seq,
        at: NOW.plus_ms(*seq as i64 * 100 + shift_ms),
        elapsed_s: *elapsed_s,
        session: SessionId::new(*session).unwrap(),
        ..sample.clone()
    };
    verified.frame.events = events.iter().map(event).collect();
    verified.frame.wall = verified.frame.wall.plus_ms(shift_ms);
    verified.frame.clock = ClockQuality::FreeRunning;
    verified.received = NOW.plus_ms(n as i64 * 1000);
    verified
}

const DAY_MS: i64 = 86_400_000;

/// The clock of a gateway is set back by two weeks, or ahead, between two roasts.
async fn sample_numbers_order_roasts_whatever_their_dates(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let chain = name(store).await.chain;
    let running = async || {
        store.running_sessions([chain]).await.unwrap().remove(&chain).map(|s| s.session_id)
    };
    let abandoned = async || -> Vec<String> {
        let silent = (NOW.plus_ms(-1), NOW.plus_ms(-1));
        let found = store.abandoned_sessions(silent, (i64::MIN, ""), 10).await.unwrap();
        found.into_iter().map(|session| session.session_id).collect()
    };
    for (roast, shift_ms) in (2..).zip([-14 * DAY_MS, 30 * DAY_MS, 0, -NOW.0]) {
        let (n, session) = (roast + 4, format!("S-{roast}"));
        let charge = [(EventKind::Charge, n * 10 - 5, 0.0, session.as_str())];
        commit(store, &[shifted(n, shift_ms, &charge)]).await;
        assert_eq!(running().await.as_deref(), Some(session.as_str()));
        let before: Vec<String> = (2..roast).map(|n| format!("S-{n}")).collect();
        let mut ended = abandoned().await;
        ended.sort();
        assert_eq!(ended, before, "only roasts before {session} have ended");
    }
}

/// A frame of a roast across a restart. The clock is 300 days ahead in the first boot and never set;
/// the second boot counts the roast on, and has a right clock after it.
fn restarted(n: u64) -> VerifiedFrame {
    let events: &[_] = match n {
        2 => &[(EventKind::Charge, 15, 0.0, "S-1")],
        4 => &[(EventKind::Fc, 33, 1.8, "S-1")],
        5 => &[(EventKind::Drop, 44, 2.9, "S-1")],
        _ => &[],
    };
    let mut verified = shifted(n, if n < 6 { 300 * DAY_MS } else { 0 }, events);
    let frame = &mut verified.frame;
    (frame.boot_id, frame.mono_ms) = if n < 4 { (1, n * 1000) } else { (2, (n - 3) * 1000) };
    if n == 6 {
        frame.clock = ClockQuality::Synchronised;
    }
    verified
}

/// Checks that all times of session `S-1` are those that its gateway measured.
async fn check_times(store: &IngestStore, case: &str) {
    let (org, no) = (origin().org, name(store).await);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.status.as_str(), session.duration_s()), ("CLOSED", Some(2.9)), "{case}");
    let ended = session.ended().unwrap();
    assert_eq!(ended.0 - session.started_ms, 2_900, "{case}");
    assert_eq!(session.ended_ms, Some(ended.0), "{case}");
    let near = |at: i64, expected: i64| (at - NOW.0 - expected).abs() <= 5_000;
    assert!(near(session.started_ms, 1_500), "{case}: {}", EpochMs(session.started_ms));
    for frame in store.frames_of_range(&org, no.chain, 15, 44, 100).await.unwrap() {
        for i in (0..frame.len()).filter(|i| (15..=44).contains(&frame.seq_at(*i))) {
            let expected = (frame.seq_at(i) - 15) * 100;
            assert_eq!(session.elapsed_ms(&frame, i), expected, "{case}: {}", frame.number);
        }
        assert!(near(frame.t0_ms, (frame.number - 1) * 1000), "{case}: {}", frame.number);
    }
    let events = store.events_of(&org, "S-1").await.unwrap();
    let at: Vec<i64> = events.iter().map(|event| event.at_ms - session.started_ms).collect();
    assert_eq!(at, [0, 1_800, 2_900], "{case}");
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    let curve = store.curve(&org, "S-1").await.unwrap().unwrap();
    assert_eq!(curve.t0_ms, session.started_ms, "{case}");
    assert_eq!(curve.offsets_ms, (0..30).map(|i| i * 100).collect::<Vec<_>>(), "{case}");
}

async fn a_roast_across_a_restart_keeps_its_times_while_the_clock_was_ahead(store: &IngestStore) {
    for n in [6, 5, 2, 4, 1, 3] {
        commit(store, &[restarted(n)]).await;
    }
    check_times(store, "as it arrived").await;
    let chain = name(store).await.chain;
    // The second boot is dated by its clock, the first one by the arrival of its frames.
    store.note_offset(chain, 2, NOW.0 + 2_000).await.unwrap();
    assert_eq!(store.correct_dates(chain, 2).await.unwrap(), 2);
    check_times(store, "one boot is dated").await;
    store.note_estimate(chain, 1, NOW.0 - 700).await.unwrap();
    assert_eq!(store.correct_dates(chain, 1).await.unwrap(), 3);
    check_times(store, "both boots are dated").await;
}

/// The clock chip of a gateway keeps the local time of a zone with a half hour.
async fn a_clock_that_is_not_set_is_dated_by_an_estimate_until_it_is_set(store: &IngestStore) {
    const ZONE_MS: i64 = 19_800_000;
    let local = |n: u64| {
        let events = frame(n, 0.0).frame.events;
        let mut verified = shifted(n, -ZONE_MS, &[]);
        verified.frame.events = events;
        for event in &mut verified.frame.events {
            event.at = event.at.plus_ms(-ZONE_MS);
        }
        verified
    };
    let (org, no) = (origin().org, name(store).await);
    let boot = -1; // u64::MAX as a signed number
    let started = async || {
        let session = store.session(&org, "S-1").await.unwrap().unwrap();
        let marked = if session.start_estimated == 1 { "estimated" } else { "stated" };
        (session.started_ms - NOW.0, marked)
    };
    let codes = async || -> Vec<i64> {
        database::on!(store.database(), pool => database::sqlx::query_scalar(
            "SELECT DISTINCT CAST(clock AS BIGINT) FROM frames ORDER BY 1")
            .fetch_all(pool).await)
        .unwrap()
    };
    commit(store, &(1..=5).map(local).collect::<Vec<_>>()).await;
    assert_eq!((started().await, codes().await), ((1_500 - ZONE_MS, "stated"), vec![1]));
    store.note_estimate(no.chain, boot, NOW.0 + 2_000).await.unwrap(); // three seconds late
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 5);
    store.note_estimate(no.chain, boot, NOW.0 + 9_000).await.unwrap();
    commit(store, &[local(6)]).await;
    assert_eq!((started().await, codes().await), ((4_500, "estimated"), vec![4]));
    assert_eq!(store.undated_boots().await.unwrap(), []);
    check_times(store, "estimated").await;
    store.note_offset(no.chain, boot, NOW.0 - 1_000).await.unwrap();
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 6);
    store.note_estimate(no.chain, boot, NOW.0 - 9_000).await.unwrap();
    assert_eq!((started().await, codes().await), ((1_500, "stated"), vec![3]));
    check_times(store, "set").await;
}

async fn an_estimate_that_another_instance_has_replaced_dates_no_frame(store: &IngestStore) {
    let (no, boot, other) = (name(store).await, -1, IngestStore::new(store.database().clone()));
    commit(store, &[shifted(1, -19_800_000, &[])]).await;
    store.note_estimate(no.chain, boot, NOW.0 + 9_000).await.unwrap();
    other.note_offset(no.chain, boot, NOW.0 - 1_000).await.unwrap();
    // Its cache still holds the estimate.
    commit(store, &[shifted(2, -19_800_000, &[])]).await;
    store.correct_dates(no.chain, boot).await.unwrap();
    let frames = store.frames_of_range(&origin().org, no.chain, 0, 19, 10).await.unwrap();
    let dates: Vec<_> = frames.iter().map(|frame| frame.sample_at(0)).collect();
    assert_eq!(dates, [NOW, NOW.plus_ms(1_000)]);
}

/// A clock in 2106, even if the gateway says that it is synchronised.
async fn no_date_is_stored_in_the_future(store: &IngestStore) {
    let leap_ms = 4_294_967_296_000 - NOW.0;
    let (org, no) = (origin().org, name(store).await);
    let receipt = Receipt {
        origin: origin(),
        session: SessionId::new("S-2").unwrap(),
        chain: CHAIN,
        first_frame: 7,
        last_frame: 8,
        first_seq: 65,
        last_seq: 75,
        started: NOW.plus_ms(leap_ms),
        ended: NOW.plus_ms(leap_ms + 1_000),
        digest: Digest([0; 32]),
    };
    store.store_receipt(no, &receipt, b"signed", NOW).await.unwrap();
    let session = store.session(&org, "S-2").await.unwrap().unwrap();
    assert_eq!((session.ended(), session.duration_s()), (Some(NOW), Some(1.0)));
    for n in [1, 2, 3, 4, 5] {
        let mut leapt = shifted(n, leap_ms, &[]);
        leapt.frame.events = frame(n, 0.0).frame.events;
        for event in &mut leapt.frame.events {
            event.at = event.at.plus_ms(leap_ms);
        }
        leapt.frame.clock = ClockQuality::Synchronised;
        commit(store, &[leapt]).await;
    }
    check_times(store, "in 2106").await;
}

/// CHARGE is detected in the frame after that of its sample, and the clock is set in between.
async fn a_clock_set_between_charge_and_its_detection_changes_no_time(store: &IngestStore) {
    const STEP_MS: i64 = -3_600_000;
    let at = |seq: i64| NOW.plus_ms(seq * 100 + STEP_MS);
    let mut frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    let charge = frames[1].frame.events.remove(0);
    frames[2].frame.events.push(charge);
    for verified in &mut frames[2..] {
        verified.frame.wall = verified.frame.wall.plus_ms(STEP_MS);
        for event in &mut verified.frame.events {
            event.at = at(event.seq as i64);
        }
    }
    commit(store, &frames).await;
    let (org, no) = (origin().org, name(store).await);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    for frame in store.frames_of_range(&org, no.chain, 15, 44, 100).await.unwrap() {
        for i in (0..frame.len()).filter(|i| (15..=44).contains(&frame.seq_at(*i))) {
            assert_eq!(session.elapsed_ms(&frame, i), (frame.seq_at(i) - 15) * 100);
        }
    }
    assert_eq!(session.duration_s(), Some(2.9));
}

/// Earlier versions stored such rows.
async fn a_duration_stored_by_dates_that_contradict_each_other_is_not_shown(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    for shift_ms in [25_919_959_000_i64, -2 * 25_919_959_000] {
        database::on!(store.database(), pool => database::sqlx::query(
            "UPDATE sessions SET started_ms = started_ms + $1")
            .bind(shift_ms).execute(pool).await.map(drop))
        .unwrap();
        let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
        assert_eq!(session.duration_s(), Some(2.9));
        assert_eq!(session.ended(), Some(EpochMs(session.started_ms + 2_900)));
    }
}

/// A gateway's clock was set during the roast: the receipt's two dates are of two clocks.
async fn a_receipt_whose_dates_are_decades_apart_measures_nothing(store: &IngestStore) {
    let no = name(store).await;
    for (started, ended) in [(EpochMs(0), NOW), (NOW, EpochMs(253_402_214_400_000))] {
        let receipt = Receipt {
            origin: origin(),
            session: SessionId::new(format!("S-{}", started.0)).unwrap(),
            chain: CHAIN,
            first_frame: 2,
            last_frame: 5,
            first_seq: 15,
            last_seq: 44,
            started,
            ended,
            digest: Digest([0; 32]),
        };
        store.store_receipt(no, &receipt, b"signed", NOW).await.unwrap();
        let session = store.session(&origin().org, receipt.session.as_str()).await.unwrap();
        let session = session.unwrap();
        assert_eq!((session.started_ms, session.duration_s()), (NOW.0, Some(0.0)), "{started}");
    }
}

/// Single precision holds no number of this size: an infinity would spread to totals and JSON.
async fn a_value_beyond_single_precision_is_stored_as_missing(store: &IngestStore) {
    let mut verified = frame(1, 0.0);
    verified.frame.columns[0].values[4] = Some(f64::MAX);
    assert_eq!(commit(store, &[verified]).await.0, [Outcome::Stored]);
    let no = name(store).await;
    let stored = store.frames_of_range(&origin().org, no.chain, 0, 9, 10).await.unwrap();
    let values = [3, 4, 5].map(|i| stored[0].value(&Channel::Bt, i));
    assert_eq!(values, [Some(150.3), None, Some(150.5)]);
}

async fn open_receipts_are_found_by_organisation(store: &IngestStore) {
    let sessions: &[(&str, &[i64])] = &[("acme", &[1, 2, 3]), ("beta", &[9]), ("zeta", &[])];
    for (org, starts) in sessions {
        let origin: Origin = format!("{org}/leipzig/r-1").parse().unwrap();
        let no = store.chain_no(&origin, CHAIN, "kid", NOW).await.unwrap();
        for start in *starts {
            let receipt = Receipt {
                origin: origin.clone(),
                session: SessionId::new(format!("S-{start}")).unwrap(),
                chain: CHAIN,
                first_frame: 2,
                last_frame: 5,
                first_seq: 15,
                last_seq: 44,
                started: NOW.plus_ms(*start),
                ended: NOW.plus_ms(4_400),
                digest: Digest([0; 32]),
            };
            store.store_receipt(no, &receipt, b"signed", NOW.plus_ms(10_000)).await.unwrap();
        }
    }
    assert_eq!(store.orgs_with_open_receipts().await.unwrap(), ["acme", "beta"]);
    let ids = |open: Vec<ingestion::store::OpenReceipt>| -> Vec<String> {
        open.into_iter().map(|open| open.session_id).collect()
    };
    let first = store.open_receipts_of("acme", (i64::MIN, ""), 2).await.unwrap();
    let last = (first[1].started_ms, first[1].session_id.clone());
    assert_eq!(ids(first), ["S-1", "S-2"]);
    let rest = store.open_receipts_of("acme", (last.0, &last.1), 2).await.unwrap();
    assert_eq!(ids(rest), ["S-3"]);
    assert_eq!(ids(store.newest_open_receipts_of("acme", 2).await.unwrap()), ["S-3", "S-2"]);
    assert!(store.open_receipts_of("zeta", (i64::MIN, ""), 2).await.unwrap().is_empty());
}

/// The receipt arrives before the frames: a curve of a part of them is not final.
async fn a_curve_of_a_part_is_made_again(store: &IngestStore) {
    commit(store, &(1..=4).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let org = origin().org;
    let receipt = Receipt {
        origin: origin(),
        session: SessionId::new("S-1").unwrap(),
        chain: CHAIN,
        first_frame: 2,
        last_frame: 5,
        first_seq: 15,
        last_seq: 44,
        started: NOW.plus_ms(1_500),
        ended: NOW.plus_ms(4_400),
        digest: Digest([0; 32]),
    };
    let no = name(store).await;
    assert!(!store.store_receipt(no, &receipt, b"signed", NOW).await.unwrap());
    let curve = async || {
        let session = store.session(&org, "S-1").await.unwrap().unwrap();
        store.make_curve(&org, &session, false, NOW).await.unwrap();
        let left = store
            .sessions_without_curve(NOW.plus_ms(60_000), (i64::MIN, ""), 10)
            .await
            .unwrap()
            .len();
        (store.curve(&org, "S-1").await.unwrap().unwrap().len(), left)
    };
    assert_eq!(curve().await, (25, 1));
    commit(store, &[frame(5, 0.0)]).await;
    assert_eq!(curve().await, (30, 0));
}

/// The end of the session is not known: it ends where the next session of its chain begins.
async fn a_roast_without_an_end_does_not_take_the_next_one(store: &IngestStore) {
    let mut frames: Vec<_> = (1..=8).map(|n| frame(n, 0.0)).collect();
    frames[4].frame.events.clear();
    let mut next = frames[1].frame.events[0].clone();
    (next.session, next.seq) = (SessionId::new("S-2").unwrap(), 61);
    next.at = NOW.plus_ms(6_100);
    frames[6].frame.events.push(next);
    commit(store, &frames).await;
    let org = origin().org;
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!(store.sample_range(&session).await.unwrap(), (15, 60));
    assert_eq!(store.totals(&org, &session).await.unwrap().points, 46);
}

async fn retention_takes_frames_and_never_a_roast_without_its_curve(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let (org, later) = (origin().org, NOW.plus_ms(60 * 86_400_000));
    assert_eq!(store.database().drop_frames(later).await.unwrap(), database::Dropped::default());
    assert_eq!(seqs(store).await.len(), 50, "a server whose clock has leapt drops nothing");
    let alive = "UPDATE chains SET seen_ms = $1";
    database::on!(store.database(), pool => database::sqlx::query(alive)
        .bind(later.0 + 1).execute(pool).await.map(drop))
    .unwrap();
    assert_eq!(store.database().drop_frames(later).await.unwrap(), database::Dropped::default());
    assert_eq!(seqs(store).await.len(), 50, "a roast without its curve keeps its frames");
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    assert_eq!(
        store.database().drop_frames(NOW).await.unwrap(),
        database::Dropped::default(),
        "its time has not come"
    );
    store.database().drop_frames(later).await.unwrap();
    assert_eq!(seqs(store).await, Vec::<i64>::new());
    assert_eq!(store.curve(&org, "S-1").await.unwrap().unwrap().len(), 30);
    let again = [frame(3, 0.0)];
    assert_eq!(commit(store, &again).await.0, [Outcome::Duplicate], "its number stays taken");
}

async fn one_old_roast_without_a_curve_does_not_keep_all_frames(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let (org, later) = (origin().org, NOW.plus_ms(60 * 86_400_000));
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    let rival: Origin = "rival/leipzig/r-1".parse().unwrap();
    let no = store.chain_no(&rival, CHAIN, "kid", later.plus_ms(1)).await.unwrap();
    let receipt = Receipt {
        origin: rival,
        session: SessionId::new("S-1970").unwrap(),
        chain: CHAIN,
        first_frame: 1,
        last_frame: 2,
        first_seq: 0,
        last_seq: 10,
        started: EpochMs(0),
        ended: EpochMs(1_000),
        digest: Digest([0; 32]),
    };
    store.store_receipt(no, &receipt, b"signed", later).await.unwrap();
    store.database().drop_frames(later).await.unwrap();
    assert_eq!(seqs(store).await, Vec::<i64>::new());
}

async fn a_roast_that_loses_its_samples_without_a_curve_is_counted(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let later = NOW.plus_ms(200 * 86_400_000);
    database::on!(store.database(), pool => database::sqlx::query("UPDATE chains SET seen_ms = $1")
        .bind(later.0 + 1).execute(pool).await.map(drop))
    .unwrap();
    assert_eq!(store.database().drop_frames(later).await.unwrap().roasts, 1);
    assert_eq!(seqs(store).await, Vec::<i64>::new());
    assert_eq!(store.database().drop_frames(later).await.unwrap().roasts, 0, "once");
}

async fn a_roast_gets_its_curve_although_its_gateway_sends_and_lacks_a_frame_for_ever(
    store: &IngestStore,
) {
    commit(store, &[frame(1, 0.0), frame(2, 0.0), frame(3, 0.0), frame(5, 0.0)]).await;
    // The gateway has just sent.
    let quiet = NOW.plus_ms(-15 * 60_000);
    let due = async || store.sessions_without_curve(quiet, (i64::MIN, ""), 10).await.unwrap().len();
    assert_eq!(due().await, 0);
    store.mark_closed_seen(NOW.plus_ms(-7 * 3_600_000)).await.unwrap();
    assert_eq!(due().await, 1);
}

async fn a_roast_is_published_only_once_it_was_seen_closed(store: &IngestStore) {
    let chain = ChainId([0; 16]);
    let no = store.chain_no(&origin(), chain, "", NOW).await.unwrap();
    for mut message in [told(0, true, false), told(3, false, true)] {
        message.frame.chain = chain;
        store.commit(&[no], &[message], NOW).await.unwrap();
    }
    let wait = PublishAfter { closed_before: NOW, silent_since: NOW, closed_long_before: NOW };
    let due = async || store.unpublished_sessions(&wait, (i64::MIN, ""), 10).await.unwrap().len();
    assert_eq!(due().await, 0);
    store.mark_closed_seen(NOW).await.unwrap();
    assert_eq!(due().await, 1);
}

/// A backup is restored, and another tenant's chain gets the number that is cached.
async fn a_number_that_names_another_chain_by_now_is_not_used(store: &IngestStore) {
    commit(store, &[frame(1, 0.0)]).await;
    let no = name(store).await;
    database::on!(store.database(), pool => database::sqlx::query(
        "UPDATE chains SET org_id = 'rival' WHERE chain_no = $1")
        .bind(no.chain).execute(pool).await.map(drop))
    .unwrap();
    let next = [frame(2, 0.0)];
    assert!(store.commit(&[no], &next, NOW).await.is_err(), "nothing is mixed");
    assert_eq!(seqs(store).await.len(), 10);
}

async fn an_invalid_row_is_distinguished_from_an_unavailable_database(store: &IngestStore) {
    let sql = if store.database().is_postgres() {
        "ALTER TABLE frames ADD CONSTRAINT odd CHECK (first_seq <> 10)"
    } else {
        "CREATE TRIGGER odd BEFORE INSERT ON frames WHEN NEW.first_seq = 10 \
         BEGIN SELECT RAISE(ABORT, 'odd'); END"
    };
    database::on!(store.database(), pool => database::sqlx::query(sql).execute(pool).await.map(drop))
        .unwrap();
    let no = name(store).await;
    let error = store.commit(&[no], &[frame(2, 0.0)], NOW).await.unwrap_err();
    assert!(error.is_about_data(), "{error}");
    commit(store, &[frame(1, 0.0)]).await;
    store.database().close().await;
    let error = store.commit(&[no], &[frame(3, 0.0)], NOW).await.unwrap_err();
    assert!(!error.is_about_data(), "{error}");
}

async fn an_event_is_removed_when_its_session_has_a_mission_and_was_told_often(
    store: &IngestStore,
) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let event: ops::SessionClosed = serde_json::from_value(serde_json::json!({
        "type": "session.closed", "version": 1, "emittedAt": NOW, "orgId": "acme",
        "siteId": "leipzig", "machineId": "r-1", "sessionId": "S-1",
    }))
    .unwrap();
    assert!(store.enqueue_session_closed(&origin().org, &event, NOW).await.unwrap());
    for n in 0..3 {
        assert_eq!(store.take_due(NOW.plus_ms(n * 10), (1, 1), 10).await.unwrap().len(), 1);
    }
    assert_eq!(store.remove_handled_sessions(3).await.unwrap(), 0, "it has no mission");
    database::on!(store.database(), pool => database::sqlx::query(
        "INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, body, \
         max_attempts, created_ms, updated_ms) VALUES ('acme', 'm-1', \
         'generate-roast-report:POST_ROAST_V1:S-1', 'generate-roast-report', 'PENDING', 1, '{}', \
         5, 0, 0)")
        .execute(pool).await.map(drop))
    .unwrap();
    assert_eq!(store.remove_handled_sessions(4).await.unwrap(), 0, "its dispatcher may be away");
    assert_eq!(store.remove_handled_sessions(3).await.unwrap(), 1);
    assert_eq!(store.outbox_len().await.unwrap(), 0);
}

macro_rules! on_both {
    ($($check:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $check() {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("test.db");
                super::$check(&super::open(format!("sqlite:{}", path.display())).await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $check() {
                let cluster = super::Postgres::start().await.unwrap();
                super::$check(&super::open(cluster.url()).await).await;
            })*
        }
    };
}
on_both!(
    twice_changes_nothing,
    dates_are_put_right_in_any_order,
    a_used_number_with_other_content_is_refused,
    holes_are_known_and_filled,
    a_roast_is_the_same_in_any_order_of_arrival,
    a_sample_taken_before_drop_and_sent_after_it_belongs_to_the_roast,
    a_roast_that_two_instances_open_keeps_all_its_samples,
    another_tenant_sees_nothing,
    the_newest_is_found,
    a_note_with_a_nul_stops_nothing,
    a_roast_that_began_before_its_agent_is_stored_and_marked,
    the_row_of_a_closed_roast_agrees_with_its_frames,
    large_frames_are_read_in_parts_and_none_is_lost,
    a_complete_session_is_not_rewritten,
    the_newest_running_session_of_each_chain_is_found,
    sample_numbers_order_roasts_whatever_their_dates,
    a_roast_across_a_restart_keeps_its_times_while_the_clock_was_ahead,
    a_clock_that_is_not_set_is_dated_by_an_estimate_until_it_is_set,
    an_estimate_that_another_instance_has_replaced_dates_no_frame,
    no_date_is_stored_in_the_future,
    a_clock_set_between_charge_and_its_detection_changes_no_time,
    a_duration_stored_by_dates_that_contradict_each_other_is_not_shown,
    a_receipt_whose_dates_are_decades_apart_measures_nothing,
    a_value_beyond_single_precision_is_stored_as_missing,
    open_receipts_are_found_by_organisation,
    a_curve_of_a_part_is_made_again,
    a_roast_without_an_end_does_not_take_the_next_one,
    retention_takes_frames_and_never_a_roast_without_its_curve,
    one_old_roast_without_a_curve_does_not_keep_all_frames,
    a_roast_that_loses_its_samples_without_a_curve_is_counted,
    a_roast_gets_its_curve_although_its_gateway_sends_and_lacks_a_frame_for_ever,
    a_roast_is_published_only_once_it_was_seen_closed,
    a_number_that_names_another_chain_by_now_is_not_used,
    an_invalid_row_is_distinguished_from_an_unavailable_database,
    an_event_is_removed_when_its_session_has_a_mission_and_was_told_often,
);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batches of any frames, again and again, in any order: each sample is there once.
    #[test]
    fn any_delivery_stores_each_frame_once(
        deliveries in prop::collection::vec(prop::collection::vec(1..12_u64, 1..8), 1..10)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = open(format!("sqlite:{}", folder.path().join("t.db").display())).await;
            let mut sent = std::collections::BTreeSet::new();
            for batch in &deliveries {
                let frames: Vec<_> = batch.iter().map(|n| frame(*n, 0.0)).collect();
                commit(&store, &frames).await;
                sent.extend(batch.iter().copied());
            }
            let expected: Vec<i64> =
                sent.iter().flat_map(|n| (*n as i64 - 1) * 10..*n as i64 * 10).collect();
            assert_eq!(seqs(&store).await, expected);
        });
    }
}
