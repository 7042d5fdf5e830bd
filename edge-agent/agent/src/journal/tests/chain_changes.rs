//! Tests which chain is in use, and what moves from one to the next.

use super::*;
use roast::machine_model::MachineModel;

#[test]
fn the_first_frame_of_a_new_chain_has_no_previous_digest() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    (1..=3).for_each(|number| append(&mut journal, number, None));
    let fresh = ChainId([8; 16]);
    journal.start_chain(fresh, &origin()).unwrap();
    drop(journal);
    let mut journal = open(&folder);
    let position = journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    assert_eq!((position.chain, position.next_number, position.previous), (fresh, 1, None));
    assert_eq!(position.next_seq, 40, "sample numbers continue");
    // No panic, and no receipt, over a roast on two chains.
    let closed = ClosedRoast { roast: roast(500), last_seq: 20, last_frame: 20, ended: NOW };
    let mut first = frame(1);
    first.chain = fresh;
    let message = StoredMessage::Signed(&[1]);
    journal.append(&first, Digest([2; 32]), message, Some(&closed), None).unwrap();
    assert!(journal.unsigned_receipts(5).unwrap().is_empty());
}

#[test]
fn a_chain_whose_stored_numbers_are_damaged_is_not_continued() {
    for key in ["next_number", "next_seq"] {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(&folder);
        append(&mut journal, 1, None);
        let sql = "UPDATE meta SET value = ?2 WHERE key = ?1";
        journal.db.execute(sql, rusqlite::params![key, u64::MAX.to_be_bytes()]).unwrap();
        let fresh = ChainId([9; 16]);
        let position = journal.load_or_start_chain(&origin(), fresh).unwrap();
        let begun = (position.chain, position.next_number, position.next_seq);
        assert_eq!(begun, (fresh, 1, 0), "{key}");
        assert_eq!(journal.load_or_start_chain(&origin(), CHAIN).unwrap(), position, "{key}");
    }
}

#[test]
fn a_journal_starts_a_new_chain_when_its_machine_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    append(&mut journal, 1, Some(&roast(1)));
    drop(journal);

    let mut journal = open(&folder);
    let moved: Origin = "acme/leipzig/r-2".parse().unwrap();
    let position = journal.load_or_start_chain(&moved, ChainId([9; 16])).unwrap();
    assert_eq!((position.chain, position.next_number), (ChainId([9; 16]), 1));
    assert_eq!(position.next_seq, 20, "sample numbers continue");
    assert!(journal.running_roast().unwrap().is_none(), "a roast does not move with the gateway");
    // Frames that the cloud does not have yet are still sent under the machine that they are from.
    let mut next = frame(1);
    (next.origin, next.chain) = (moved.clone(), ChainId([9; 16]));
    journal.append(&next, Digest([3; 32]), StoredMessage::Signed(b"frame"), None, None).unwrap();
    let unsent = journal.unsent(0, i64::MAX, FetchLimit::of_frames(10), &[]).unwrap();
    let origins: Vec<_> = unsent.into_iter().map(|frame| frame.origin).collect();
    assert_eq!(origins, [origin(), moved.clone()]);
    assert_eq!(journal.unsent_origins().unwrap(), [origin(), moved.clone()]);
    assert_eq!(
        journal.load_or_start_chain(&moved, CHAIN).unwrap().next_number,
        2,
        "the new chain is started only once"
    );
}

#[test]
fn what_was_learned_follows_a_renamed_machine_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder);
    journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    let learned = MachineModel { roasts: 3, ..MachineModel::default() };
    journal.save_learned(&learned).unwrap();

    let renamed: Origin = "acme/leipzig/Drum-1".parse().unwrap();
    journal.load_or_start_chain(&renamed, ChainId([8; 16])).unwrap();
    assert_eq!(journal.learned().unwrap().roasts, 0, "it may be another machine");
    assert_eq!(journal.learned_since_rename(&renamed).unwrap().roasts, 0);
    assert_eq!(journal.learned_since_rename(&origin()).unwrap(), learned, "as configured");
    assert_eq!(journal.learned().unwrap(), learned);
    // A later start does not replace what was learned since.
    journal.save_learned(&MachineModel { roasts: 4, ..learned.clone() }).unwrap();
    assert_eq!(journal.learned_since_rename(&origin()).unwrap().roasts, 4);
    // And each machine has its own again.
    journal.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
    assert_eq!(journal.learned().unwrap(), learned);
}

#[test]
fn a_chain_that_went_on_in_memory_is_not_continued_after_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    append(&mut journal, 1, Some(&roast(1)));
    Journal::mark_chain_in_memory(folder.path()).unwrap();
    drop(journal);
    let start = || {
        let journal = Journal::open_after_salvage(folder.path(), 16, NOW).unwrap();
        let position = journal.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
        assert!(journal.running_roast().unwrap().is_none());
        (position.chain, position.next_number, position.next_seq, position.previous)
    };
    let first = start();
    assert_ne!(
        first.0, CHAIN,
        "the cloud may have frames of this chain that the disk does not know"
    );
    assert_eq!((first.1, first.2, first.3), (1, 20, None));
    assert_eq!(start(), first, "only once");
}

/// Appends frame `number` of a chain, with the running roast `session`.
fn append_roast(journal: &mut Journal, chain: ChainId, number: u64, session: &str) {
    let running = RunningRoast { session: SessionId::new(session).unwrap(), ..roast(number) };
    let frame = Frame { chain, ..frame(number) };
    let message = StoredMessage::Signed(&[1]);
    journal.append(&frame, Digest([2; 32]), message, None, Some(&running)).unwrap();
}

/// A chain that began in memory numbers its samples from 0.
#[test]
fn a_roast_that_began_in_memory_is_newer_than_those_on_disk_whatever_their_sample_numbers() {
    const MEMORY: ChainId = ChainId([6; 16]);
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, mut memory) = (open(&folder), Journal::in_memory().unwrap());
    append_roast(&mut disk, CHAIN, 900, "S-old");
    memory.load_or_start_chain(&origin(), MEMORY).unwrap();
    append_roast(&mut memory, MEMORY, 1, "S-new");
    disk.take_over(&memory).unwrap();
    let running = disk.running_roast().unwrap().unwrap();
    assert_eq!((running.session.as_str(), running.first_seq), ("S-new", 10));
    // Both are closed, with a receipt each: the newest is sent first.
    let close = |session: &str, receipt: &[u8]| {
        disk.store_signed_receipt(session, receipt).unwrap();
        disk.db.execute("UPDATE roasts SET state = 1 WHERE session = ?1", [session]).unwrap();
    };
    close("S-new", b"new");
    close("S-old", b"old");
    let receipts: Vec<Vec<u8>> =
        disk.open_receipts(5).unwrap().into_iter().map(|(_, receipt)| receipt).collect();
    assert_eq!(receipts, [b"new".to_vec(), b"old".to_vec()]);
    // The chains stay apart, and the one that goes on is that of the newest samples.
    let position = disk.load_or_start_chain(&origin(), ChainId([9; 16])).unwrap();
    assert_eq!((position.chain, position.next_number, position.next_seq), (MEMORY, 2, 20));
}

#[test]
fn a_frame_that_waited_while_a_chain_was_started_does_not_move_the_new_chain() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    append(&mut journal, 1, Some(&roast(1)));
    let fresh = ChainId([8; 16]);
    journal.start_chain(fresh, &origin()).unwrap();
    append(&mut journal, 2, Some(&roast(1)));
    let position = journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    assert_eq!((position.chain, position.next_number, position.previous), (fresh, 1, None));
    assert_eq!(position.next_seq, 30, "its samples count");
    assert!(journal.running_roast().unwrap().is_none(), "the abandoned roast stays so");
    let unsent = journal.unsent(0, i64::MAX, FetchLimit::of_frames(10), &[]).unwrap();
    assert_eq!(unsent.iter().map(|frame| frame.number).collect::<Vec<_>>(), [1, 2]);
    // A journal that does not know the frame's chain can send the frame all the same.
    let mut memory = Journal::in_memory().unwrap();
    memory.load_or_start_chain(&origin(), fresh).unwrap();
    append(&mut memory, 3, None);
    let unsent = memory.unsent(0, i64::MAX, FetchLimit::of_frames(10), &[]).unwrap();
    assert_eq!((unsent[0].chain, &unsent[0].origin), (CHAIN, &origin()));
}

#[test]
fn an_acknowledgement_changes_only_frames_of_its_own_chain() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    append(&mut journal, 1, None);
    let moved: Origin = "acme/leipzig/r-2".parse().unwrap();
    let other = ChainId([9; 16]);
    journal.load_or_start_chain(&moved, other).unwrap();
    let next = Frame { chain: other, origin: moved, ..frame(1) };
    journal.append(&next, Digest([3; 32]), StoredMessage::Signed(b"frame"), None, None).unwrap();
    journal.apply_ack(&ack(1, 1)).unwrap();
    let unsent = journal.unsent(0, i64::MAX, FetchLimit::of_frames(10), &[]).unwrap();
    assert_eq!(unsent.iter().map(|frame| frame.chain).collect::<Vec<_>>(), [other]);
}

/// A power cut may follow at once: the next start must find none of it.
#[test]
fn a_new_chain_abandons_the_running_roast_and_exchanges_what_was_learned_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.load_or_start_chain(&origin(), CHAIN).unwrap();
    let learned = MachineModel { roasts: 3, ..MachineModel::default() };
    journal.save_learned(&learned).unwrap();
    append(&mut journal, 1, Some(&roast(1)));
    journal.start_chain(ChainId([8; 16]), &origin()).unwrap();
    assert!(journal.running_roast().unwrap().is_none());
    assert_eq!(journal.learned().unwrap(), learned, "it is the same machine");
    let moved: Origin = "acme/leipzig/r-2".parse().unwrap();
    journal.start_chain(ChainId([9; 16]), &moved).unwrap();
    assert_eq!(journal.learned().unwrap(), MachineModel::default());
    assert_eq!(journal.learned_about(&origin()).unwrap(), learned);
}

#[test]
fn a_disk_that_takes_over_another_machine_keeps_what_was_learned_about_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, memory) = (open(&folder), Journal::in_memory().unwrap());
    disk.load_or_start_chain(&origin(), CHAIN).unwrap();
    let learned = MachineModel { roasts: 3, ..MachineModel::default() };
    disk.save_learned(&learned).unwrap();
    let moved: Origin = "acme/leipzig/r-2".parse().unwrap();
    memory.load_or_start_chain(&moved, ChainId([9; 16])).unwrap();
    disk.take_over(&memory).unwrap();
    assert_eq!(disk.learned().unwrap(), MachineModel::default(), "of the other machine");
    assert_eq!(disk.learned_since_rename(&origin()).unwrap(), learned);
}
