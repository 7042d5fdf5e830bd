//! Tests that a damaged journal loses only what its damaged pages held.

use super::*;
use crate::journal::saved_memory::SAVED_FILE;
use crate::journal::{FetchLimit, StoredMessage};
use crate::recorder::{ClosedRoast, JournalPosition, RunningRoast};
use contract::{Channel, ClockQuality, Column, EventKind, Origin, SessionId};
use trust::{Algorithm, CONTENT_FRAME, FileKey, sha256_digest, sign_message};

const NOW: EpochMs = EpochMs(1_760_000_000_000);
const CHAIN: ChainId = ChainId([1; 16]);
const PAGE_BYTES: usize = 4096;

fn origin() -> Origin {
    "acme/leipzig/r-1".parse().unwrap()
}

fn key() -> FileKey {
    FileKey::generate("device:gw@leipzig".parse().unwrap(), Algorithm::EdDsa).unwrap()
}

/// Writes a chain of frames. Each tenth frame is too large for one page.
struct ChainWriter {
    journal: Journal,
    position: JournalPosition,
}

impl ChainWriter {
    fn open(folder: &Path) -> Self {
        let journal = Journal::open(folder, 16).unwrap();
        let position = journal.load_or_start_chain(&origin(), CHAIN).unwrap();
        Self { journal, position }
    }

    fn next_frame(&mut self) -> (Frame, Vec<u8>, Digest) {
        let number = self.position.next_number;
        let samples: u32 = if number.is_multiple_of(10) { 3_000 } else { 10 };
        let values = (0..samples).map(|i| Some(f64::from(i % 200) + 0.123)).collect();
        let frame = Frame {
            origin: origin(),
            chain: self.position.chain,
            number,
            previous: self.position.previous,
            boot_id: 1,
            first_seq: self.position.next_seq,
            mono_ms: 0,
            wall: NOW.plus_ms(i64::try_from(number).unwrap() * 1_000),
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: (0..samples).collect(),
            columns: vec![Column { channel: Channel::Bt, values, quality: vec![] }],
            events: vec![],
        };
        let payload = frame.encode();
        let digest = sha256_digest(&payload);
        self.position.next_number += 1;
        self.position.next_seq += u64::from(samples);
        self.position.previous = Some(digest);
        (frame, payload, digest)
    }

    fn append(&mut self, key: &FileKey, closed: Option<&ClosedRoast>) -> Vec<u8> {
        let (frame, payload, digest) = self.next_frame();
        let signed = sign_message(key, CONTENT_FRAME, payload).unwrap();
        let message = StoredMessage::Signed(&signed);
        self.journal.append(&frame, digest, message, closed, None).unwrap();
        signed
    }
}

fn unsent(journal: &Journal) -> Vec<(u64, Vec<u8>)> {
    let frames = journal.unsent(0, i64::MAX, FetchLimit::of_frames(10_000), &[]).unwrap();
    frames.into_iter().map(|frame| (frame.number, frame.signed)).collect()
}

fn open(folder: &Path, key: &FileKey) -> (Journal, Option<SalvageReport>) {
    Journal::open_or_salvage(folder, 16, &OwnKey::of(key), NOW).unwrap()
}

fn fill_with_random(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    for byte in bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
}

/// Returns how many damaged journals are kept in a folder.
fn set_aside(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    names
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .filter(|path| path.display().to_string().contains("journal-damaged-"))
        .count()
}

#[test]
fn a_page_of_random_bytes_loses_only_the_frames_on_it() {
    const FRAMES: u64 = 60;
    /// More small frames than this do not fit on a page.
    const LOST_MAX: u64 = 16;
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    let stored: Vec<(u64, Vec<u8>)> =
        (1..=FRAMES).map(|number| (number, writer.append(&key, None))).collect();
    drop(writer);
    let intact = fs::read(folder.path().join(FILE)).unwrap();
    let pages = intact.len() / PAGE_BYTES;
    assert!(pages > 20, "{pages}");
    let mut most_lost = 0;
    for page in 0..pages {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = intact.clone();
        fill_with_random(&mut bytes[page * PAGE_BYTES..][..PAGE_BYTES], page as u64);
        fs::write(folder.path().join(FILE), bytes).unwrap();
        let (mut journal, report) = open(folder.path(), &key);
        let left = unsent(&journal);
        assert!(left.iter().all(|frame| stored.contains(frame)), "page {page}: content changed");
        assert!(left.is_sorted(), "page {page}: not in the order in which they were stored");
        let lost = FRAMES - left.len() as u64;
        most_lost = most_lost.max(lost);
        assert!(lost <= LOST_MAX, "page {page}: {lost} frames lost");
        let Some(report) = report else {
            assert_eq!(lost, 0, "page {page}: damage was not found");
            continue;
        };
        assert_eq!(
            (report.saved, report.unsent, report.unlinked),
            (FRAMES - lost, FRAMES - lost, 0)
        );
        let missing: u64 = report.missing.iter().map(|r| r.last_frame - r.first_frame + 1).sum();
        assert_eq!(missing, lost, "page {page}");
        assert_eq!(set_aside(folder.path()), 1, "page {page}: the damaged file is kept");
        let position = journal.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
        assert_eq!(
            position.next_number, 1,
            "page {page}: the numbers of lost frames are not reused"
        );
        assert_ne!(position.chain, CHAIN);
        let mut writer = ChainWriter { journal, position };
        writer.append(&key, None);
        journal = writer.journal;
        assert_eq!(unsent(&journal).len(), left.len() + 1, "page {page}: the next frame is stored");
    }
    assert!(most_lost > 0, "no page held frames");
}

#[test]
fn frames_that_only_the_log_holds_are_salvaged() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    let stored: Vec<(u64, Vec<u8>)> = (1..=9).map(|n| (n, writer.append(&key, None))).collect();
    // The copy is what a power cut leaves: most of the frames are still in the log.
    let copy = tempfile::tempdir().unwrap();
    let log = fs::read(with_suffix(&folder.path().join(FILE), "-wal")).unwrap();
    let (salvaged, report) = {
        let damaged = copy.path().join("damaged.db");
        let mut bytes = fs::read(folder.path().join(FILE)).unwrap();
        fill_with_random(&mut bytes, 3);
        fs::write(&damaged, bytes).unwrap();
        fs::write(with_suffix(&damaged, "-wal"), log).unwrap();
        salvage(&damaged, &copy.path().join(WORK_FILE), &OwnKey::of(&key)).unwrap()
    };
    assert_eq!((unsent(&salvaged), report.saved), (stored, 9));
}

#[test]
fn unsigned_frames_survive_and_a_damaged_signature_is_made_again() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    writer.append(&key, None);
    let (frame, payload, digest) = writer.next_frame();
    let unsigned = StoredMessage::Unsigned(&payload);
    writer.journal.append(&frame, digest, unsigned, None, None).unwrap();
    let (frame, payload, digest) = writer.next_frame();
    let third = payload.clone();
    let mut forged = sign_message(&key, CONTENT_FRAME, payload).unwrap();
    *forged.last_mut().unwrap() ^= 1;
    let message = StoredMessage::Signed(&forged);
    writer.journal.append(&frame, digest, message, None, None).unwrap();
    // Neither the digest nor the signature fits this one.
    let (frame, payload, _) = writer.next_frame();
    let forged = sign_message(&self::key(), CONTENT_FRAME, payload).unwrap();
    let message = StoredMessage::Signed(&forged);
    writer.journal.append(&frame, Digest([0; 32]), message, None, None).unwrap();
    drop(writer);
    let into = folder.path().join(WORK_FILE);
    let (salvaged, report) = salvage(&folder.path().join(FILE), &into, &OwnKey::of(&key)).unwrap();
    assert_eq!((report.saved, report.unsent, report.damaged), (3, 3, 1));
    assert_eq!(unsent(&salvaged).len(), 1);
    let waiting = salvaged.unsigned_frames(10).unwrap();
    assert_eq!(waiting.len(), 2);
    assert_eq!(waiting[1].text, third, "the content is unchanged");
    // Without the key the digests decide.
    drop(salvaged);
    let blind = OwnKey::new(key.key_id().clone(), None);
    let (salvaged, report) = salvage(&folder.path().join(FILE), &into, &blind).unwrap();
    assert_eq!((report.saved, unsent(&salvaged).len()), (3, 2));
}

#[test]
fn a_closed_roast_and_its_receipt_survive_and_a_running_one_is_given_up() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    writer.append(&key, None);
    let roast = |session: &str, first_frame| RunningRoast {
        session: SessionId::new(session).unwrap(),
        started: NOW,
        first_seq: 0,
        first_frame,
        event_kinds: vec![EventKind::Charge],
        charge: None,
    };
    let closed = ClosedRoast { roast: roast("S-1", 1), last_seq: 19, last_frame: 2, ended: NOW };
    writer.append(&key, Some(&closed));
    let (frame, payload, digest) = writer.next_frame();
    let signed = sign_message(&key, CONTENT_FRAME, payload).unwrap();
    let (message, running) = (StoredMessage::Signed(&signed), roast("S-2", 3));
    writer.journal.append(&frame, digest, message, None, Some(&running)).unwrap();
    let receipts = writer.journal.unsigned_receipts(5).unwrap();
    drop(writer);
    let into = folder.path().join(WORK_FILE);
    let (salvaged, report) = salvage(&folder.path().join(FILE), &into, &OwnKey::of(&key)).unwrap();
    assert_eq!((report.saved, report.roasts), (3, 2));
    assert_eq!((salvaged.unsigned_receipts(5).unwrap(), receipts.len()), (receipts, 1));
    assert!(salvaged.running_roast().unwrap().is_none());
}

#[test]
fn a_salvage_that_a_power_cut_interrupts_is_finished_at_the_next_start() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    let stored: Vec<(u64, Vec<u8>)> = (1..=9).map(|n| (n, writer.append(&key, None))).collect();
    drop(writer);
    let path = folder.path().join(FILE);
    let (salvaged, _) = salvage(&path, &folder.path().join(WORK_FILE), &OwnKey::of(&key)).unwrap();
    salvaged.close_into_file().unwrap();
    fs::rename(folder.path().join(WORK_FILE), folder.path().join(COMPLETE_FILE)).unwrap();
    // The power was cut before the files were exchanged, or after the first half of it.
    for first_half in [false, true] {
        let copy = tempfile::tempdir().unwrap();
        fs::copy(folder.path().join(COMPLETE_FILE), copy.path().join(COMPLETE_FILE)).unwrap();
        if !first_half {
            fs::write(copy.path().join(FILE), vec![0x55; 40_000]).unwrap();
        }
        let (journal, report) = open(copy.path(), &key);
        assert_eq!((unsent(&journal), report), (stored.clone(), None));
        assert_eq!(set_aside(copy.path()), usize::from(!first_half));
        assert!(!copy.path().join(COMPLETE_FILE).exists());
    }
}

#[test]
fn a_file_that_is_no_journal_at_all_is_set_aside_and_a_new_one_is_opened() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    fs::write(folder.path().join(FILE), vec![0x55; 40_000]).unwrap();
    let (journal, report) = open(folder.path(), &key);
    let report = report.unwrap();
    assert_eq!((report.saved, unsent(&journal).len(), set_aside(folder.path())), (0, 0, 1));
    assert!(report.to_string().starts_with("0 frames saved"), "{report}");
}

#[test]
fn a_file_set_aside_earlier_is_added_to_the_journal_in_use() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    let old: Vec<Vec<u8>> = (0..12).map(|_| writer.append(&key, None)).collect();
    drop(writer);
    let aside = folder.path().join("journal-damaged-20260101T080000.db");
    fs::rename(folder.path().join(FILE), &aside).unwrap();
    let mut writer = ChainWriter::open(folder.path());
    writer.journal.start_chain(ChainId([2; 16]), &origin()).unwrap();
    writer.position = writer.journal.load_or_start_chain(&origin(), ChainId([2; 16])).unwrap();
    let new = writer.append(&key, None);
    for _ in 0..2 {
        let report = writer.journal.add_salvaged(folder.path(), &aside, &OwnKey::of(&key)).unwrap();
        assert_eq!((report.saved, report.missing_ranges), (12, 0));
        let sent: Vec<Vec<u8>> = unsent(&writer.journal).into_iter().map(|(_, m)| m).collect();
        assert_eq!(sent, [&[new.clone()][..], &old[..]].concat(), "each frame once");
    }
    let position = writer.journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    assert_eq!((position.chain, position.next_number), (ChainId([2; 16]), 2));
    assert!(!folder.path().join(WORK_FILE).exists());
}

#[test]
fn an_index_that_does_not_fit_its_table_is_found_after_an_error_and_salvaged() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    let mut stored: Vec<(u64, Vec<u8>)> = (1..=8).map(|n| (n, writer.append(&key, None))).collect();
    // A frame is stored while the index of unsent frames is hidden.
    let hide = "CREATE TEMP TABLE hidden AS SELECT * FROM sqlite_schema \
                WHERE name = 'frames_unsent'; PRAGMA writable_schema = ON; \
                DELETE FROM sqlite_schema WHERE name = 'frames_unsent'; \
                PRAGMA writable_schema = RESET;";
    writer.journal.db.execute_batch(hide).unwrap();
    stored.push((9, writer.append(&key, None)));
    let show = "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM hidden; \
                PRAGMA writable_schema = RESET;";
    writer.journal.db.execute_batch(show).unwrap();
    drop(writer);
    assert_eq!(open(folder.path(), &key).1, None, "the check at each start does not see it");
    let own = OwnKey::of(&key);
    let (journal, report) = Journal::reopen_or_salvage(folder.path(), 16, &own, NOW).unwrap();
    assert_eq!((unsent(&journal), report.unwrap().saved), (stored, 9));
    drop(journal);
    let (_, report) = Journal::reopen_or_salvage(folder.path(), 16, &own, NOW).unwrap();
    assert_eq!(report, None, "an intact journal is not salvaged");
}

#[test]
fn what_a_stop_saved_from_memory_is_salvaged_if_it_is_damaged() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    let stored: Vec<Vec<u8>> = (0..40).map(|_| writer.append(&key, None)).collect();
    drop(writer);
    let mut bytes = fs::read(folder.path().join(FILE)).unwrap();
    fill_with_random(&mut bytes[..PAGE_BYTES], 7);
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join(SAVED_FILE);
    fs::write(&saved, bytes).unwrap();
    let start = Journal::open_after_salvage(folder.path(), 16, NOW);
    assert!(matches!(start, Err(JournalError::SavedDamaged { .. })), "it takes too long there");
    let (journal, _) = open(folder.path(), &key);
    let left: Vec<Vec<u8>> = unsent(&journal).into_iter().map(|(_, signed)| signed).collect();
    assert_eq!(left, stored, "the damaged page held no frame");
    assert!(!saved.exists());
    assert_eq!(set_aside(folder.path()), 1);
}

#[test]
fn a_salvage_that_fails_leaves_no_file_that_takes_the_room_of_the_samples() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut writer = ChainWriter::open(folder.path());
    writer.append(&key, None);
    drop(writer);
    // The complete journal cannot take this name.
    fs::create_dir(folder.path().join(COMPLETE_FILE)).unwrap();
    let failed = salvage_in_place(folder.path(), &OwnKey::of(&key), NOW);
    assert!(matches!(failed, Err(JournalError::Salvage { .. })));
    assert!(!folder.path().join(WORK_FILE).exists());
    assert!(folder.path().join(FILE).exists(), "the damaged journal stays in its place");
}

#[test]
fn a_second_salvage_in_a_folder_is_refused_during_the_first() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    fs::write(folder.path().join(FILE), vec![0x55; 40_000]).unwrap();
    let work = folder.path().join(WORK_FILE);
    fs::write(&work, "of the first").unwrap();
    let first = lock_salvage(folder.path()).unwrap();
    let second = Journal::open_or_salvage(folder.path(), 16, &OwnKey::of(&key), NOW);
    assert!(matches!(second, Err(JournalError::Locked { .. })));
    assert_eq!(fs::read(&work).unwrap(), b"of the first", "it is left alone");
    drop(first);
    assert!(open(folder.path(), &key).1.is_some());
}

#[test]
fn only_the_newest_damaged_journals_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..6 {
        let name = format!("journal-damaged-2026010{n}T080000.db");
        let file = fs::File::create(folder.path().join(name)).unwrap();
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000 + n);
        file.set_modified(at).unwrap();
        fs::write(folder.path().join(format!("journal-damaged-2026010{n}T080000.db-wal")), "x")
            .unwrap();
    }
    fs::write(folder.path().join(FILE), "in use").unwrap();
    aside::remove_oldest(folder.path()).unwrap();
    let mut left: Vec<String> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.contains("-wal"))
        .collect();
    left.sort();
    let expected =
        ["journal-damaged-20260104T080000.db", "journal-damaged-20260105T080000.db", FILE];
    assert_eq!(left, expected, "room for one more");
}
