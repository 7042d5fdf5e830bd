//! Tests what the recorder creates from samples: frames without gaps, and roasts from CHARGE to
//! DROP.

use super::*;
use contract::{MachineId, OrgId, SiteId};

fn recorder(frame_ms: u64) -> Recorder {
    let origin = Origin {
        org: OrgId::new("acme").unwrap(),
        site: SiteId::new("leipzig").unwrap(),
        machine: MachineId::new("r-1").unwrap(),
    };
    let position =
        JournalPosition { chain: ChainId([7; 16]), next_number: 1, next_seq: 0, previous: None };
    Recorder::new(origin, 1, 100, frame_ms, false, MachineModel::default(), position)
}

fn sample(i: u64, bt: f64, marks: &[EventKind]) -> Sample {
    Sample {
        mono_ms: i * 100,
        wall: EpochMs(1_760_000_000_000 + i as i64 * 100),
        clock: ClockQuality::Synchronised,
        reading: Reading {
            values: vec![(Channel::Bt, Some(bt))],
            events: marks.to_vec(),
            ..Reading::default()
        },
    }
}

#[test]
fn frames_are_numbered_without_gaps() {
    let mut recorder = recorder(1000);
    let (mut frames, mut digests) = (Vec::new(), Vec::new());
    for i in 0..95 {
        if let Some(cut) = recorder.push(sample(i, 180.0, &[])) {
            assert_eq!(cut.digest, trust::sha256_digest(&cut.frame.encode()));
            digests.push(cut.digest);
            frames.push(cut.frame);
        }
    }
    frames.extend(recorder.flush().map(|cut| cut.frame));
    assert_eq!(frames.iter().map(|f| f.number).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    let seqs: Vec<u64> = frames.iter().flat_map(|f| f.first_seq..=f.last_seq().unwrap()).collect();
    assert_eq!(seqs, (0..95).collect::<Vec<_>>());
    assert_eq!(frames[0].previous, None);
    for (frame, digest) in frames[1..].iter().zip(digests) {
        assert_eq!(frame.previous, Some(digest), "frame {}", frame.number);
    }
}

#[test]
fn a_roast_is_the_range_from_charge_to_drop() {
    let mut recorder = recorder(1000);
    let mut cuts = Vec::new();
    for i in 0..100 {
        let marks: &[EventKind] = match i {
            25 => &[EventKind::Charge],
            73 => &[EventKind::Drop],
            _ => &[],
        };
        cuts.extend(recorder.push(sample(i, 180.0, marks)));
    }
    let closed: Vec<_> = cuts.iter().filter_map(|cut| cut.closed.clone()).collect();
    assert_eq!(closed.len(), 1);
    let (roast, last) = (&closed[0].roast, &closed[0]);
    assert_eq!((roast.first_seq, last.last_seq), (25, 73));
    let frame_of = |seq: u64| {
        let holds =
            |f: &&CompletedFrame| (f.frame.first_seq..=f.frame.last_seq().unwrap()).contains(&seq);
        cuts.iter().find(holds).unwrap().frame.number
    };
    assert_eq!((roast.first_frame, last.last_frame), (frame_of(25), frame_of(73)));
    let events: Vec<_> = cuts.iter().flat_map(|c| c.frame.events.clone()).collect();
    assert_eq!(
        events.iter().map(|e| e.kind).collect::<Vec<_>>(),
        [EventKind::Charge, EventKind::Drop]
    );
    assert!((events[1].elapsed_s - 4.8).abs() < 1e-9);
}

#[test]
fn a_roast_continues_after_a_restart_and_ends_once() {
    let mut first = recorder(1000);
    let mut last = None;
    for i in 0..30 {
        let marks: &[EventKind] = if i == 5 { &[EventKind::Charge] } else { &[] };
        last = first.push(sample(i, 180.0, marks)).or(last);
    }
    let running = last.unwrap().running.unwrap();
    let mut second = recorder(1000);
    second.resume(running.clone(), 0, EpochMs(1_760_000_000_000 + 60_000));
    let cut = second.push(sample(600, 200.0, &[EventKind::Drop])).unwrap();
    assert_eq!(cut.closed.unwrap().roast.session, running.session);
    assert!(cut.running.is_none());
}

#[test]
fn a_jump_of_the_wall_clock_does_not_distort_the_curve() {
    let mut recorder = recorder(1000);
    let mut cuts = Vec::new();
    for i in 0..60 {
        let marks: &[EventKind] = match i {
            5 => &[EventKind::Charge],
            45 => &[EventKind::Drop],
            _ => &[],
        };
        let mut sample = sample(i, 180.0, marks);
        if i >= 20 {
            sample.wall = sample.wall.plus_ms(-3_600_000);
        }
        cuts.extend(recorder.push(sample));
    }
    let events: Vec<_> = cuts.iter().flat_map(|c| &c.frame.events).collect();
    assert!((events[1].elapsed_s - 4.0).abs() < 1e-9, "{}", events[1].elapsed_s);
    let roast = cuts.iter().filter(|c| c.frame.number <= 4);
    let walls: Vec<i64> = roast.map(|c| c.frame.wall.0 - 1_760_000_000_000).collect();
    assert_eq!(walls, [0, 1000, 2000, 3000], "times of the roast by the monotonic clock");
    assert!(
        cuts.last().unwrap().frame.wall.0 < 1_760_000_000_000,
        "the frame after the roast has the new wall time"
    );
}

#[test]
fn an_event_from_a_person_is_recorded_at_any_moment() {
    let mut recorder = recorder(300);
    assert_eq!(
        recorder.record_manual_event(EventKind::Charge, None),
        Err(EventNotApplicable),
        "nothing was measured yet"
    );
    for i in 0..3 {
        let cut = recorder.push(sample(i, 180.0, &[]));
        assert_eq!(cut.is_some(), i == 2, "one frame of three samples");
    }
    assert_eq!(
        recorder.record_manual_event(EventKind::Drop, None),
        Err(EventNotApplicable),
        "no roast is running"
    );
    let alone = recorder.record_manual_event(EventKind::Charge, None).unwrap().unwrap();
    assert_eq!((alone.frame.sample_count(), alone.frame.events[0].seq), (0, 2));
    assert_eq!(alone.frame.wall, EpochMs(1_760_000_000_200));
    recorder.push(sample(3, 180.0, &[]));
    let dropped = recorder.record_manual_event(EventKind::Drop, None).unwrap().unwrap();
    assert_eq!((dropped.frame.first_seq, dropped.closed.unwrap().last_seq), (3, 3));
}

#[test]
fn a_new_charge_closes_a_roast_whose_end_was_missed() {
    let mut recorder = recorder(1000);
    recorder.push(sample(0, 180.0, &[EventKind::Charge]));
    let again = recorder.push(sample(20, 90.0, &[EventKind::Charge]));
    assert!(
        again.is_none_or(|cut| cut.closed.is_none()),
        "a repeated CHARGE does not start another roast"
    );
    let cut = recorder.push(sample(3_000, 180.0, &[EventKind::Charge])).unwrap();
    assert_eq!(cut.closed.unwrap().last_seq, 1);
    assert!(cut.running.is_some());
    assert!(!cut.frame.events.iter().any(|e| e.kind == EventKind::Drop), "no DROP was observed");
}

#[test]
fn a_clock_set_during_a_roast_does_not_distort_the_curve_and_is_reported() {
    let mut recorder = recorder(1000);
    let mut frames = Vec::new();
    for i in 0..120 {
        let marks: &[EventKind] = match i {
            20 => &[EventKind::Charge],
            80 => &[EventKind::Drop],
            _ => &[],
        };
        let mut sample = sample(i, 180.0, marks);
        // The wall clock is in 1970 until the fifth second, then set from the network.
        if i < 50 {
            sample.wall = EpochMs(i as i64 * 100);
            sample.clock = ClockQuality::FreeRunning;
        }
        frames.extend(recorder.push(sample).map(|cut| cut.frame));
    }
    let at = |mono| frames.iter().find(|frame| frame.mono_ms >= mono).unwrap();
    let running = at(6_000);
    assert_eq!((running.wall, running.clock), (EpochMs(6_000), ClockQuality::FreeRunning));
    let after = at(9_000);
    assert_eq!(after.clock, ClockQuality::Synchronised);
    assert_eq!(after.wall.0 - i64::try_from(after.mono_ms).unwrap(), 1_760_000_000_000);
}
