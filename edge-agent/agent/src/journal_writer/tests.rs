//! Tests what the journal writer does when the disk cannot be used: the chain has no hole, memory is
//! bounded, and every loss is counted.

use std::path::Path;
use std::sync::Arc;

use super::*;
use contract::{ChainId, Channel, ClockQuality, Frame};
use driver::Reading;
use roast::machine_model::MachineModel;
use trust::{Algorithm, FileKey, SignedMessage};

const START: EpochMs = EpochMs(1_760_000_000_000);

fn origin() -> Origin {
    "acme/leipzig/r-1".parse().unwrap()
}

fn opening(folder: &Path) -> JournalOpening {
    let kid = "device:gw@leipzig".parse().unwrap();
    let key = FileKey::generate(kid, Algorithm::EdDsa).unwrap();
    JournalOpening {
        folder: folder.to_owned(),
        quota_mb: 16,
        signer: Arc::new(key),
        clock: GatewayClock::at(START),
    }
}

/// Creates a writer whose frames have one sample each.
fn writer(journal: Journal, opening: JournalOpening) -> JournalWriter {
    let position = journal.load_or_start_chain(&origin(), ChainId([7; 16])).unwrap();
    let learned = MachineModel::default();
    let recorder = Recorder::new(origin(), 1, 100, 100, false, learned, position);
    let (live, _) = mpsc::channel(1);
    JournalWriter::new(recorder, journal, opening, AgentState::new("r-1".to_owned()), live, 100)
}

fn push(writer: &mut JournalWriter, samples: std::ops::Range<u64>) {
    for i in samples {
        let reading = Reading { values: vec![(Channel::Bt, Some(180.0))], ..Reading::default() };
        let wall = START.plus_ms(i64::try_from(i).unwrap() * 100);
        let clock = ClockQuality::Synchronised;
        writer.execute(JournalCommand::Sample(Sample { mono_ms: i * 100, wall, clock, reading }));
    }
}

/// Returns the number of frames in a journal, after checking that they are one unbroken chain.
fn chain_length(journal: &Journal) -> u64 {
    let unsent = journal.unsent(0, i64::MAX, FetchLimit::of_frames(10_000), &[]).unwrap();
    let (mut previous, mut next_seq) = (None, 0);
    for (number, outgoing) in (1..).zip(&unsent) {
        let message = SignedMessage::parse(&outgoing.signed).unwrap();
        let frame = Frame::decode(message.payload()).unwrap();
        assert_eq!((frame.number, frame.previous, frame.first_seq), (number, previous, next_seq));
        next_seq += frame.sample_count() as u64;
        previous = Some(trust::sha256_digest(message.payload()));
    }
    unsent.len() as u64
}

fn wait_for_disk(writer: &mut JournalWriter) {
    for _ in 0..500 {
        writer.move_to_disk();
        if !writer.journal.is_in_memory() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still in memory: {:?}", writer.state.status().journal_error);
}

#[test]
fn a_full_queue_drops_samples_before_they_are_numbered_and_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(Journal::open(folder.path(), 16).unwrap(), opening(folder.path()));
    writer.journal.set_read_only(true);
    push(&mut writer, 0..650);
    let status = writer.state.status();
    assert_eq!((status.samples, status.samples_dropped, status.frames_lost), (600, 50, 0));
    let problem = status.journal_error.unwrap();
    assert!(problem.contains("read-only") && problem.contains("samples are dropped"), "{problem}");
    let (done, mut result) = oneshot::channel();
    let charge = JournalCommand::RecordEvent { kind: EventKind::Charge, note: None, done };
    writer.execute(charge);
    assert_eq!(result.try_recv(), Ok(ManualEventResult::NoRoom));
    assert_eq!(writer.state.points().0.len(), 650, "a dropped sample is shown");
    writer.journal.set_read_only(false);
    push(&mut writer, 650..660);
    assert_eq!(writer.state.status().journal_error, None);
    // The first of these samples still found the queue full, and emptied it.
    assert_eq!(chain_length(&writer.journal), 609);
    assert_eq!(writer.state.status().samples_dropped, 51);
}

#[test]
fn a_journal_in_memory_moves_to_disk_without_a_hole_in_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("journal");
    // Something else is where the folder must be.
    std::fs::write(&place, "").unwrap();
    let Err(problem) = Journal::open(&place, 16) else { panic!("opened") };
    assert!(problem.is_passing());
    let mut writer = writer(Journal::in_memory().unwrap(), opening(&place));
    writer.start_opening(&problem);
    push(&mut writer, 0..50);
    writer.move_to_disk();
    let said = writer.state.status().journal_error.unwrap();
    assert!(said.contains("kept in memory, at most 8 MB"), "{said}");
    assert_eq!(chain_length(&writer.journal), 50, "the frames can be sent from memory");
    std::fs::remove_file(&place).unwrap();
    wait_for_disk(&mut writer);
    assert_eq!(writer.state.status().journal_error, None);
    push(&mut writer, 50..60);
    assert_eq!(chain_length(&writer.journal), 60);
    drop(writer);
    let journal = Journal::open(&place, 16).unwrap();
    let position = journal.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
    assert_eq!((position.chain, position.next_number), (ChainId([7; 16]), 61));
}

/// Stops a writer as the agent does.
fn stop(writer: JournalWriter) {
    let (commands, receiver) = std::sync::mpsc::sync_channel(1);
    commands.send(JournalCommand::Stop).unwrap();
    writer.run(&receiver);
}

#[test]
fn a_stop_saves_the_frames_in_memory_while_the_journal_is_being_salvaged() {
    let folder = tempfile::tempdir().unwrap();
    // Holds the journal, as a salvage that takes longer than the stop does.
    let salvaging = Journal::open(folder.path(), 16).unwrap();
    let Err(problem) = Journal::open(folder.path(), 16) else { panic!("opened twice") };
    Journal::mark_chain_in_memory(folder.path()).unwrap();
    let mut first = writer(Journal::in_memory().unwrap(), opening(folder.path()));
    first.start_opening(&problem);
    push(&mut first, 0..30);
    stop(first);
    drop(salvaging);
    for start in 0..2 {
        let journal = Journal::open_after_salvage(folder.path(), 16, START).unwrap();
        assert_eq!(chain_length(&journal), 30, "start {start}");
        let position = journal.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
        assert_eq!((position.chain, position.next_number), (ChainId([7; 16]), 31));
    }
}

#[test]
fn a_stop_without_a_disk_counts_the_frames_that_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("journal");
    std::fs::write(&place, "").unwrap();
    let mut writer = writer(Journal::in_memory().unwrap(), opening(&place));
    assert_eq!(writer.save_memory_at_stop(), 0, "nothing was sampled");
    push(&mut writer, 0..30);
    assert_eq!(writer.save_memory_at_stop(), 30);
}

/// The gateway was moved to another machine, and the agent started while the disk could not be used:
/// acknowledgements of the frames that are on it must be heard later.
#[test]
fn the_machines_of_frames_on_a_disk_that_is_used_later_are_published() {
    let folder = tempfile::tempdir().unwrap();
    let before: Origin = "acme/leipzig/r-0".parse().unwrap();
    let mut disk = Journal::open(folder.path(), 16).unwrap();
    let position = disk.load_or_start_chain(&before, ChainId([3; 16])).unwrap();
    let learned = MachineModel::default();
    let mut recorder = Recorder::new(before.clone(), 1, 100, 100, false, learned, position);
    let reading = Reading { values: vec![(Channel::Bt, Some(180.0))], ..Reading::default() };
    let clock = ClockQuality::Synchronised;
    let sample = Sample { mono_ms: 0, wall: START, clock, reading };
    let cut = recorder.push(sample).unwrap();
    disk.append(&cut.frame, cut.digest, StoredMessage::Signed(b"one"), None, None).unwrap();
    drop(disk);
    let mut writer = writer(Journal::in_memory().unwrap(), opening(folder.path()));
    let mut origins = writer.watch_origins();
    writer.publish_origins();
    assert_eq!(*origins.borrow_and_update(), [origin()]);
    writer.start_opening(&JournalError::ReadOnly { doing: "testing" });
    wait_for_disk(&mut writer);
    assert!(origins.has_changed().unwrap());
    assert_eq!(*origins.borrow_and_update(), [origin(), before]);
}

#[test]
fn a_journal_found_damaged_while_it_is_used_is_left_and_its_chain_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(Journal::open(folder.path(), 16).unwrap(), opening(folder.path()));
    push(&mut writer, 0..20);
    writer.leave_damaged_journal(&damaged());
    assert!(writer.journal.is_in_memory());
    push(&mut writer, 20..25);
    wait_for_disk(&mut writer);
    push(&mut writer, 25..30);
    assert_eq!(chain_length(&writer.journal), 30);
    drop(writer);
    let journal = Journal::open_after_salvage(folder.path(), 16, START).unwrap();
    let position = journal.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
    assert_eq!((position.chain, position.next_number), (ChainId([7; 16]), 31));
}

fn mark(writer: &mut JournalWriter, kind: EventKind) {
    let (done, mut result) = oneshot::channel();
    writer.execute(JournalCommand::RecordEvent { kind, note: None, done });
    assert_eq!(result.try_recv(), Ok(ManualEventResult::Recorded), "{kind}");
}

/// Records a roast from sample 4 to sample 24, and leaves the disk at sample 20: the roast closes in
/// memory, while its first frames are on the disk.
fn roast_that_closes_in_memory(folder: &Path) -> JournalWriter {
    let mut writer = writer(Journal::open(folder, 16).unwrap(), opening(folder));
    push(&mut writer, 0..5);
    mark(&mut writer, EventKind::Charge);
    push(&mut writer, 5..20);
    let memory = Journal::in_memory().unwrap();
    memory.continue_chain(writer.recorder.position(), writer.recorder.origin()).unwrap();
    Journal::mark_chain_in_memory(folder).unwrap();
    writer.journal = memory;
    push(&mut writer, 20..25);
    mark(&mut writer, EventKind::Drop);
    let receipts = writer.journal.unsigned_receipts(5).unwrap();
    assert!(receipts.is_empty(), "its first frames are not here: {receipts:?}");
    writer
}

fn damaged() -> JournalError {
    let source = rusqlite::Error::InvalidParameterName("a damaged page".to_owned());
    JournalError::Damaged { doing: "reading", source }
}

/// Checks the receipt of [`roast_that_closes_in_memory`].
fn check_receipt(journal: &Journal) {
    let unsigned = journal.unsigned_receipts(5).unwrap();
    let [receipt] = &unsigned[..] else { panic!("{unsigned:?}") };
    let receipt = contract::Receipt::decode(&receipt.text).unwrap();
    assert_eq!((receipt.first_frame, receipt.last_frame), (5, 26));
    assert_eq!((receipt.first_seq, receipt.last_seq), (4, 24));
    assert_eq!(receipt.ended.ms_since(receipt.started), 2_000);
    let unsent = journal.unsent(0, i64::MAX, FetchLimit::of_frames(100), &[]).unwrap();
    let own = unsent.iter().filter(|frame| (5..=26).contains(&frame.number));
    let digests = own.flat_map(|frame| {
        let message = SignedMessage::parse(&frame.signed).unwrap();
        trust::sha256_digest(message.payload()).0
    });
    assert_eq!(receipt.digest, trust::sha256_digest(&digests.collect::<Vec<u8>>()));
}

#[test]
fn a_roast_that_closes_in_memory_gets_its_receipt_when_its_frames_are_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = roast_that_closes_in_memory(folder.path());
    writer.start_opening(&damaged());
    wait_for_disk(&mut writer);
    check_receipt(&writer.journal);
}

#[test]
fn a_roast_that_closes_in_memory_gets_its_receipt_after_a_restart_too() {
    let folder = tempfile::tempdir().unwrap();
    let writer = roast_that_closes_in_memory(folder.path());
    writer.journal.save_memory(folder.path()).unwrap();
    drop(writer);
    check_receipt(&Journal::open_after_salvage(folder.path(), 16, START).unwrap());
}

#[test]
fn a_roast_that_lost_a_frame_on_a_damaged_disk_gets_no_receipt() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = roast_that_closes_in_memory(folder.path());
    let disk = rusqlite::Connection::open(folder.path().join(crate::journal::FILE)).unwrap();
    assert_eq!(disk.execute("DELETE FROM frames WHERE number = 8", []).unwrap(), 1);
    drop(disk);
    writer.start_opening(&damaged());
    wait_for_disk(&mut writer);
    assert!(writer.journal.unsigned_receipts(5).unwrap().is_empty());
    assert_eq!(writer.journal.totals().unwrap().open_receipts, 1, "it is never complete");
}

#[test]
fn a_full_journal_in_memory_drops_samples_until_the_cloud_has_its_frames() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(Journal::in_memory().unwrap(), opening(folder.path()));
    push(&mut writer, 0..10);
    writer.journal.set_quota_bytes(0);
    assert_eq!(writer.journal.enforce_quota().unwrap(), 0, "unsent frames stay");
    writer.measure_memory();
    push(&mut writer, 10..20);
    assert_eq!(writer.state.status().samples_dropped, 10);
    assert_eq!(chain_length(&writer.journal), 10);
    writer.journal.set_quota_bytes(1 << 20);
    writer.measure_memory();
    push(&mut writer, 20..30);
    assert_eq!((chain_length(&writer.journal), writer.state.status().samples_dropped), (20, 10));
}
