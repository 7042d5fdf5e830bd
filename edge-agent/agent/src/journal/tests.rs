//! Tests the journal's guarantees: quota, power cuts, damage, frames that the cloud has lost.

mod chain_changes;

use super::*;
use crate::clock::{KernelBoot, KernelTime};
use contract::{ClockQuality, EpochMs, EventKind, Frame, FrameRange, ReceiptVerdict, SessionId};

const NOW: EpochMs = EpochMs(1_760_000_000_000);
const CHAIN: ChainId = ChainId([1; 16]);

fn origin() -> Origin {
    "acme/leipzig/r-1".parse().unwrap()
}

fn frame(number: u64) -> Frame {
    Frame {
        origin: origin(),
        chain: CHAIN,
        number,
        previous: None,
        boot_id: 1,
        first_seq: number * 10,
        mono_ms: 0,
        wall: NOW,
        clock: ClockQuality::Unknown,
        profile_digest: None,
        offsets_ms: vec![0; 10],
        columns: vec![],
        events: vec![],
    }
}

/// Opens the journal in `folder`, and starts its chain if it is new.
fn open(folder: &tempfile::TempDir) -> Journal {
    let journal = Journal::open(folder.path(), 16).unwrap();
    let known = journal.meta("chain").unwrap();
    if known.is_none() {
        journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    }
    journal
}

fn roast(first_frame: u64) -> RunningRoast {
    RunningRoast {
        session: SessionId::new("S-1").unwrap(),
        started: NOW,
        first_seq: first_frame * 10,
        first_frame,
        event_kinds: vec![EventKind::Charge],
        charge: None,
    }
}

/// Tests the journal, its log, and what a stop saves beside it.
#[test]
fn only_its_owner_may_read_the_journal() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    append(&mut journal, 1, None);
    let memory = Journal::in_memory().unwrap();
    memory.load_or_start_chain(&origin(), CHAIN).unwrap();
    memory.save_memory(folder.path()).unwrap();
    let files: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .map(|file| (file.file_name(), file.metadata().unwrap().permissions().mode() & 0o777))
        .collect();
    for name in [FILE, "journal.db-wal", saved_memory::SAVED_FILE] {
        assert!(files.iter().any(|(file, _)| file == name), "{name}: {files:?}");
    }
    assert!(files.iter().all(|(_, mode)| *mode == 0o600), "{files:?}");
}

fn append(journal: &mut Journal, number: u64, running: Option<&RunningRoast>) {
    let signed = vec![0; 60_000];
    let message = StoredMessage::Signed(&signed);
    journal.append(&frame(number), Digest([2; 32]), message, None, running).unwrap();
}

fn ack(first: u64, last: u64) -> contract::Ack {
    let mut ack = contract::Ack::new(CHAIN);
    ack.acked.push(FrameRange { first, last });
    ack
}

#[test]
fn the_quota_deletes_acknowledged_frames_first_and_never_the_running_roast() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    for number in 1..=100 {
        append(&mut journal, number, None);
    }
    for number in 101..=400 {
        append(&mut journal, number, Some(&roast(101)));
    }
    journal.apply_ack(&ack(51, 120)).unwrap();
    let lost = journal.enforce_quota().unwrap();
    assert_eq!(lost, 50, "frames 1 to 50 were not acknowledged, but the quota required more space");
    let left = journal.unsent(0, i64::MAX, FetchLimit::of_frames(1000), &[]).unwrap();
    assert_eq!((left.first().unwrap().number, left.len()), (121, 280));
    assert_eq!(journal.totals().unwrap().frames, 300, "the running roast is complete");
    assert_eq!(journal.load_or_start_chain(&origin(), CHAIN).unwrap().next_number, 401);
}

#[test]
fn frames_that_the_cloud_lost_are_resent_and_refused_frames_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    (1..=4).for_each(|number| append(&mut journal, number, None));
    journal.apply_ack(&ack(1, 4)).unwrap();
    assert!(journal.unsent(0, i64::MAX, FetchLimit::of_frames(10), &[]).unwrap().is_empty());
    let mut answer = contract::Ack::new(CHAIN);
    answer.need.push(FrameRange { first: 2, last: 3 });
    answer
        .refused
        .push(contract::RejectedFrame { frame: 2, reason: contract::Refusal::SequenceReused });
    answer
        .refused
        .push(contract::RejectedFrame { frame: 3, reason: contract::Refusal::BadSignature });
    journal.apply_ack(&answer).unwrap();
    let unsent: Vec<u64> = journal
        .unsent(0, i64::MAX, FetchLimit::of_frames(10), &[])
        .unwrap()
        .iter()
        .map(|f| f.number)
        .collect();
    assert_eq!(unsent, [3], "a forged frame with this number must not block the real one");
    assert_eq!(journal.totals().unwrap().refused_frames, 1);
}

#[test]
fn the_receipt_of_a_complete_roast_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    append(&mut journal, 1, Some(&roast(1)));
    let closed = ClosedRoast { roast: roast(1), last_seq: 20, last_frame: 2, ended: NOW };
    journal
        .append(&frame(2), Digest([2; 32]), StoredMessage::Signed(&[1]), Some(&closed), None)
        .unwrap();
    let waiting = journal.unsigned_receipts(5).unwrap();
    assert_eq!(waiting.len(), 1, "the receipt is stored with the roast's last frame");
    let receipt = contract::Receipt::decode(&waiting[0].text).unwrap();
    assert_eq!((receipt.first_frame, receipt.last_frame, receipt.last_seq), (1, 2, 20));
    assert!(
        journal.open_receipts(5).unwrap().is_empty(),
        "a receipt is not sent before it is signed"
    );
    journal.store_signed_receipt(&waiting[0].key, &[7]).unwrap();
    assert!(journal.unsigned_receipts(5).unwrap().is_empty());
    assert_eq!(journal.open_receipts(5).unwrap(), [(origin(), vec![7])]);
    assert!(journal.running_roast().unwrap().is_none());
    let mut answer = contract::Ack::new(CHAIN);
    let session_id = SessionId::new("S-1").unwrap();
    answer.receipts.push(ReceiptVerdict { session_id, complete: true, digest_differs: false });
    journal.apply_ack(&answer).unwrap();
    assert!(journal.open_receipts(5).unwrap().is_empty());
}

/// Cuts the power a thousand times, at any byte of the log. In half of the cases the page that was
/// being written is torn. What was committed before is complete, and the journal opens.
#[test]
fn a_write_ahead_log_cut_at_any_byte_loses_no_committed_frame() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    let mut lengths = Vec::new();
    let wal = folder.path().join(format!("{FILE}-wal"));
    for number in 1..=8 {
        journal
            .append(&frame(number), Digest([2; 32]), StoredMessage::Signed(&[9; 300]), None, None)
            .unwrap();
        lengths.push(std::fs::metadata(&wal).unwrap().len());
    }
    let (database, log) =
        (std::fs::read(folder.path().join(FILE)).unwrap(), std::fs::read(&wal).unwrap());
    // Any pseudo-random sequence with a long period is enough; this one is the same in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..1_000 {
        let cut = next(log.len() + 1);
        let mut left = log[..cut].to_vec();
        if next(2) == 0 {
            // The disk had started to write more of the page, and the bytes are wrong.
            left.extend((0..next(4_096)).map(|i| u8::try_from((i * 31) % 251).unwrap()));
        }
        let copy = tempfile::tempdir().unwrap();
        std::fs::write(copy.path().join(FILE), &database).unwrap();
        std::fs::write(copy.path().join(format!("{FILE}-wal")), &left).unwrap();
        let reopened = Journal::open(copy.path(), 16).unwrap();
        let found: Vec<u64> = reopened
            .unsent(0, i64::MAX, FetchLimit::of_frames(99), &[])
            .unwrap()
            .iter()
            .map(|f| f.number)
            .collect();
        let whole = lengths.iter().filter(|length| **length <= cut as u64).count() as u64;
        assert_eq!(
            found,
            (1..=found.len() as u64).collect::<Vec<_>>(),
            "cut at {cut}: not a prefix of the frames"
        );
        assert!(found.len() as u64 >= whole, "cut at {cut}: {} of {whole}", found.len());
        assert_eq!(
            reopened.load_or_start_chain(&origin(), CHAIN).unwrap().next_number,
            found.len() as u64 + 1
        );
    }
}

/// Frames that could not be signed are stored like the others, signed later in order, and sent only
/// then.
#[test]
fn unsigned_frames_are_stored_and_sent_after_they_are_signed() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    let keep = |journal: &mut Journal, number, message: StoredMessage<'_>| {
        journal.append(&frame(number), Digest([2; 32]), message, None, None).unwrap()
    };
    assert!(keep(&mut journal, 1, StoredMessage::Signed(b"one")).is_some());
    for (number, text) in [(2, b"two"), (3, b"ttt")] {
        assert!(keep(&mut journal, number, StoredMessage::Unsigned(text)).is_none());
    }
    drop(journal);
    let mut journal = open(&folder);
    let sent = |journal: &Journal| -> Vec<(u64, Vec<u8>)> {
        let unsent = journal.unsent(0, i64::MAX, FetchLimit::of_frames(99), &[]).unwrap();
        unsent.into_iter().map(|f| (f.number, f.signed)).collect()
    };
    assert_eq!(sent(&journal), [(1, b"one".to_vec())]);
    assert_eq!(journal.totals().unwrap().unsigned_frames, 2);
    let waiting = journal.unsigned_frames(10).unwrap();
    let texts: Vec<&[u8]> = waiting.iter().map(|w| w.text.as_slice()).collect();
    assert_eq!(texts, [b"two", b"ttt"]);
    journal.store_signed_frames(&[(waiting[0].key, b"TWO".to_vec())]).unwrap();
    assert_eq!(sent(&journal), [(1, b"one".to_vec()), (2, b"TWO".to_vec())]);
    assert_eq!(journal.unsigned_frames(10).unwrap().len(), 1);
    assert_eq!(journal.load_or_start_chain(&origin(), CHAIN).unwrap().next_number, 4);
}

#[test]
fn a_roast_without_an_observed_end_does_not_block_the_quota() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    for number in 1..=400 {
        append(&mut journal, number, Some(&roast(1)));
    }
    journal.apply_ack(&ack(1, 400)).unwrap();
    journal.enforce_quota().unwrap();
    assert_eq!(journal.totals().unwrap().frames, 400, "the running roast stays");
    journal.abandon_roasts(None).unwrap();
    assert!(journal.running_roast().unwrap().is_none());
    assert_eq!(journal.enforce_quota().unwrap(), 0, "no unacknowledged frame was deleted");
    assert!(journal.totals().unwrap().frames < 400);
    assert!(journal.open_receipts(5).unwrap().is_empty(), "no receipt if the end was not observed");
}

#[test]
fn a_journal_of_the_first_version_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    db.execute_batch(&format!("{SCHEMA} PRAGMA user_version = 1;")).unwrap();
    db.execute("INSERT INTO meta (key, value) VALUES ('chain', ?1)", [CHAIN.0]).unwrap();
    let sql = "INSERT INTO frames (chain, number, samples, made_ms, state, digest, signed) \
               VALUES (?1, 1, 10, 0, 0, ?2, x'00')";
    db.execute(sql, params![CHAIN.0, [2_u8; 32]]).unwrap();
    drop(db);
    let journal = Journal::open(folder.path(), 16).unwrap();
    let position = journal.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
    assert_eq!(position.chain, CHAIN, "the chain continues");
    assert_eq!(
        journal.unsent(0, i64::MAX, FetchLimit::of_frames(10), &[]).unwrap()[0].origin,
        origin()
    );
    assert!(
        journal.unsent(0, i64::MAX, FetchLimit::of_frames(10), &[CHAIN]).unwrap().is_empty(),
        "the chain is skipped"
    );
}

#[test]
fn a_page_damaged_after_a_clean_stop_is_detected_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    for number in 1..=40 {
        append(&mut journal, number, None);
    }
    drop(journal);
    let path = folder.path().join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    for page in [3, 4, 5, 6, 7] {
        bytes[page * 4096..page * 4096 + 64].fill(0xa5);
    }
    std::fs::write(&path, bytes).unwrap();
    let opened = Journal::open(folder.path(), 16);
    assert!(matches!(opened, Err(JournalError::Damaged { .. })));
}

#[test]
fn the_quota_deletes_refused_and_unsigned_frames_last() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    for number in 1..=300 {
        let content = vec![0; 60_000];
        let message = match number {
            11..=20 => StoredMessage::Unsigned(&content),
            _ => StoredMessage::Signed(&content),
        };
        journal.append(&frame(number), Digest([2; 32]), message, None, None).unwrap();
    }
    let mut answer = ack(200, 220);
    answer.refused.extend(
        (1..=10).map(|frame| contract::RejectedFrame {
            frame,
            reason: contract::Refusal::SequenceReused,
        }),
    );
    journal.apply_ack(&answer).unwrap();
    let lost = journal.enforce_quota().unwrap();
    let totals = journal.totals().unwrap();
    assert_eq!((totals.refused_frames, totals.unsigned_frames), (10, 10));
    assert!(lost > 0 && totals.unsent_frames > 0, "{lost} {totals:?}");
    // When nothing else is left, they go too: the newest samples are stored in any case.
    journal.set_quota_bytes(0);
    journal.enforce_quota().unwrap();
    assert_eq!(journal.totals().unwrap().frames, 0);
}

#[test]
fn a_frame_links_to_the_last_one_although_the_quota_has_deleted_that() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    for number in 1..=10 {
        let digest = Digest([u8::try_from(number).unwrap(); 32]);
        let content = vec![9; 60_000];
        let message = StoredMessage::Signed(&content);
        journal.append(&frame(number), digest, message, None, None).unwrap();
    }
    journal.apply_ack(&ack(10, 10)).unwrap();
    let used = journal.used_bytes().unwrap();
    journal.set_quota_bytes(used - 4096);
    assert_eq!(journal.enforce_quota().unwrap(), 0, "the acknowledged frame was enough");
    let position = journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    assert_eq!((position.next_number, position.previous), (11, Some(Digest([10; 32]))));
}

#[test]
fn a_running_roast_that_moves_from_memory_to_disk_keeps_its_charge_on_the_kernel_s_clock() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, mut memory) = (open(&folder), Journal::in_memory().unwrap());
    memory.load_or_start_chain(&origin(), CHAIN).unwrap();
    let charge = KernelTime { boot: KernelBoot(7), ms: 61_000 };
    append(&mut memory, 1, Some(&RunningRoast { charge: Some(charge), ..roast(1) }));
    disk.take_over(&memory).unwrap();
    assert_eq!(disk.running_roast().unwrap().unwrap().charge, Some(charge));
}

#[test]
fn a_page_that_the_disk_cannot_read_is_damage_and_a_failed_write_is_not() {
    let classify = |code| {
        let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        JournalError::sql("testing")(source)
    };
    let read = classify(rusqlite::ffi::SQLITE_IOERR_READ);
    assert!(matches!(read, JournalError::Damaged { .. }), "{read}");
    let written = classify(rusqlite::ffi::SQLITE_IOERR_WRITE);
    assert!(matches!(written, JournalError::Sql { .. }), "{written}");
}
