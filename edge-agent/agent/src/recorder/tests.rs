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

/// Returns the bean temperature of an agent that is started at 130 °C in mid-roast: DROP at 400 s,
/// CHARGE of the next batch at 800 s.
fn begun_before_c(s: u64) -> f64 {
    let t = s as f64;
    match s {
        0..=400 => 230.0 - 100.0 * (-t / 300.0).exp(),
        401..=600 => 203.6 - (t - 400.0) * 0.4,
        601..=800 => 123.6 + (t - 600.0) * 0.35,
        _ => 90.0 + 103.6 * (-(t - 800.0) / 20.0).exp() + (t - 800.0) * 0.1,
    }
}

fn started_in_mid_roast() -> Recorder {
    Recorder { live: LiveRoast::new(MachineModel::default(), true), ..recorder(1000) }
}

/// An agent that starts in mid-roast shows that a roast seems to have begun before, and records it
/// with an estimated CHARGE once its DROP shows that it was one. The next roast is recorded as usual.
#[test]
fn a_roast_that_began_before_the_agent_is_shown_and_recorded_with_an_estimated_charge() {
    const START: EpochMs = EpochMs(1_760_000_000_000);
    let mut recorder = started_in_mid_roast();
    let (mut shown, mut events, mut closed) = (None, Vec::new(), None);
    for s in 0..1_000_u64 {
        let cut = recorder.push(sample(s * 10, begun_before_c(s), &[]));
        events.extend(cut.iter().flat_map(|cut| cut.frame.events.clone()));
        closed = closed.or_else(|| cut.and_then(|cut| cut.closed));
        if s == 300 {
            shown = recorder.begun_before();
            assert!(recorder.roast.is_none(), "a drum that warms up looks the same");
        }
    }
    let shown = shown.unwrap().ms_since(START);
    assert!((-400_000..=0).contains(&shown), "CHARGE {shown} ms from the agent's start");
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    let charges: Vec<_> = events.iter().filter(|e| e.kind == EventKind::Charge).collect();
    let [estimated, next, ..] = charges[..] else { panic!("{kinds:?}") };
    let note = Some(contract::event::BEGUN_BEFORE_NOTE);
    assert_eq!((kinds[0], estimated.note.as_deref()), (EventKind::Charge, note));
    assert_eq!((estimated.seq, estimated.elapsed_s, estimated.bt_c), (0, 0.0, None));
    assert_eq!((&next.note, next.session == estimated.session), (&None, false));
    let dropped = events.iter().find(|event| event.kind == EventKind::Drop).unwrap();
    assert_eq!(dropped.session, estimated.session);
    let drop_ms = dropped.at.ms_since(START);
    assert!((380_000..=420_000).contains(&drop_ms), "DROP {drop_ms} ms from the agent's start");
    assert_eq!(elapsed_ms(dropped), dropped.at.ms_since(estimated.at));
    let closed = closed.unwrap();
    assert_eq!((closed.roast.first_seq, closed.last_seq), (0, dropped.seq));
    assert_eq!(closed.ended.ms_since(closed.roast.started), elapsed_ms(dropped));
    assert_eq!(recorder.learned().roasts, 0, "nothing is learned from an estimated CHARGE");
    assert_eq!(recorder.begun_before(), None);
}

/// The machine reports CHARGE and DROP itself, and was charged before the agent started. It may
/// report DROP when the probe falls already.
#[test]
fn a_roast_that_began_before_the_agent_is_recorded_when_its_machine_reports_drop() {
    for drop_s in [400, 420] {
        let mut recorder = recorder(1000);
        let (mut events, mut closed) = (Vec::new(), Vec::new());
        for s in 0..850_u64 {
            let reported: &[EventKind] = match s {
                800 => &[EventKind::Charge],
                s if s == drop_s => &[EventKind::Drop],
                _ => &[],
            };
            let cut = recorder.push(sample(s * 10, begun_before_c(s), reported));
            events.extend(cut.iter().flat_map(|cut| cut.frame.events.clone()));
            closed.extend(cut.and_then(|cut| cut.closed));
            // The drum that warms up for the next batch is none: its CHARGE will be reported.
            if [300, 500, 790].contains(&s) {
                assert_eq!(recorder.begun_before().is_some(), s == 300, "{s} s");
            }
        }
        let found: Vec<_> = events.iter().map(|e| (e.kind, e.source, e.seq)).collect();
        let expected = [
            (EventKind::Charge, EventSource::Inferred, 0),
            (EventKind::Drop, EventSource::Machine, drop_s),
            (EventKind::Charge, EventSource::Machine, 800),
        ];
        assert_eq!(found[..3], expected);
        assert_eq!(events[0].note.as_deref(), Some(contract::event::BEGUN_BEFORE_NOTE));
        assert_eq!((&events[0].session, &events[2].note), (&events[1].session, &None));
        assert_ne!(events[0].session, events[2].session);
        let [closed] = &closed[..] else { panic!("{closed:?}") };
        assert_eq!((closed.roast.first_seq, closed.last_seq), (0, drop_s));
        assert_eq!(recorder.learned().roasts, 0, "nothing is learned from an estimated CHARGE");
    }
}

#[test]
fn a_person_s_mark_shows_that_a_roast_runs_whose_charge_was_not_seen() {
    let mut recorder = started_in_mid_roast();
    let no_roast = recorder.record_manual_event(EventKind::Fc, None);
    assert_eq!(no_roast, Err(EventNotApplicable), "nothing was measured");
    let mut cuts = Vec::new();
    for s in 0..350_u64 {
        cuts.extend(recorder.push(sample(s * 10, begun_before_c(s), &[])));
        let marked = match s {
            300 => recorder.record_manual_event(EventKind::Fc, None),
            340 => recorder.record_manual_event(EventKind::Drop, None),
            _ => continue,
        };
        cuts.extend(marked.unwrap());
    }
    cuts.extend(recorder.flush());
    let events: Vec<_> = cuts.iter().flat_map(|cut| &cut.frame.events).collect();
    let reported = events.iter().filter(|event| event.source == EventSource::Person);
    let times: Vec<_> = reported.map(|event| (event.kind, event.seq)).collect();
    assert_eq!(times, [(EventKind::Fc, 300), (EventKind::Drop, 340)]);
    assert!(events.iter().all(|event| event.session == events[0].session));
    assert_eq!(events[0].note.as_deref(), Some(contract::event::BEGUN_BEFORE_NOTE));
    let closed = cuts.iter().find_map(|cut| cut.closed.as_ref()).unwrap();
    assert_eq!((closed.roast.first_seq, closed.last_seq), (0, 340));
    assert_eq!(recorder.learned().roasts, 0, "nothing is learned from an estimated CHARGE");
}

/// The journal on disk may be opened during the roast.
#[test]
fn what_a_disk_knows_of_the_machine_outlasts_a_roast_from_which_nothing_is_learned() {
    let mut recorder = started_in_mid_roast();
    for s in 0..350_u64 {
        recorder.push(sample(s * 10, begun_before_c(s), &[]));
        if s == 300 {
            recorder.record_manual_event(EventKind::Fc, None).unwrap();
        }
    }
    let learned = MachineModel { roasts: 3, ..MachineModel::default() };
    recorder.set_learned(learned.clone());
    recorder.record_manual_event(EventKind::Drop, None).unwrap();
    assert_eq!(recorder.learned(), &learned);
}

/// A gateway whose clock begins in 1970 has no date for a CHARGE before it.
#[test]
fn an_estimated_charge_is_never_dated_before_1970() {
    let mut recorder = started_in_mid_roast();
    let mut events = Vec::new();
    for s in 0..700_u64 {
        let mut sample = sample(s * 10, begun_before_c(s), &[]);
        sample.wall = EpochMs(5_000 + i64::try_from(s).unwrap() * 1_000);
        events.extend(recorder.push(sample).into_iter().flat_map(|cut| cut.frame.events));
    }
    assert!(events.iter().any(|event| event.kind == EventKind::Drop), "{events:?}");
    assert!(events.iter().all(|event| event.at.is_plausible()), "{events:?}");
    assert_eq!(events[0].at, EpochMs(0));
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
    second.resume(running.clone(), -59_500);
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

/// Records a roast from sample 25 to sample 105 while `wall` sets the wall clock, and returns its
/// frames.
fn roast_with_clock(wall: impl Fn(u64) -> i64) -> Vec<CompletedFrame> {
    let mut recorder = recorder(1000);
    let mut frames = Vec::new();
    for i in 0..150 {
        let marks: &[EventKind] = match i {
            25 => &[EventKind::Charge],
            65 => &[EventKind::Fc],
            105 => &[EventKind::Drop],
            _ => &[],
        };
        let mut sample = sample(i, 180.0, marks);
        sample.wall = EpochMs(wall(i));
        frames.extend(recorder.push(sample));
    }
    frames
}

fn elapsed_ms(event: &MachineEvent) -> i64 {
    (event.elapsed_s * 1000.0).round() as i64
}

fn running(frames: &[CompletedFrame]) -> RunningRoast {
    frames.last().unwrap().running.clone().unwrap()
}

/// Checks that the durations of a roast are those of the monotonic clock, and that every frame of
/// the roast and every event is dated on one line.
fn check_durations(frames: &[CompletedFrame], case: &str) {
    let events: Vec<_> = frames.iter().flat_map(|f| &f.frame.events).collect();
    let elapsed: Vec<i64> = events.iter().map(|e| elapsed_ms(e)).collect();
    assert_eq!(elapsed, [0, 4_000, 8_000], "{case}");
    let closed = frames.iter().find_map(|f| f.closed.as_ref()).unwrap();
    assert_eq!(closed.ended.ms_since(closed.roast.started), 8_000, "{case}");
    for frame in frames.iter().map(|f| &f.frame) {
        for event in &frame.events {
            let index = usize::try_from(event.seq - frame.first_seq).unwrap();
            assert_eq!(event.at, frame.wall_at(index), "{case}: {:?}", event.kind);
        }
        if (25..=105).contains(&frame.first_seq) {
            let since = frame.wall.ms_since(closed.roast.started);
            assert_eq!(since, (frame.first_seq as i64 - 25) * 100, "{case}");
        }
    }
}

#[test]
fn no_step_of_the_wall_clock_changes_a_duration() {
    const RIGHT: i64 = 1_760_000_000_000;
    const HALF_HOURS: i64 = 19_800_000; // a clock chip in local time, five and a half hours ahead
    for (case, step) in [
        ("two weeks back", -14 * 86_400_000),
        ("an hour ahead", 3_600_000),
        ("300 days back", -300 * 86_400_000),
        ("to 1970", -RIGHT),
        ("to 2106", 4_294_967_296_000 - RIGHT),
        ("half hours ahead", HALF_HOURS),
        ("half hours back", -HALF_HOURS),
    ] {
        // Before CHARGE in the same frame, at CHARGE, during the roast, and at DROP.
        for at in [23, 25, 26, 50, 105, 106] {
            let frames =
                roast_with_clock(|i| RIGHT + i as i64 * 100 + if i < at { 0 } else { step });
            check_durations(&frames, &format!("{case} at sample {at}"));
        }
    }
    let frames = roast_with_clock(|i| RIGHT + i as i64 * if i % 2 == 0 { 100 } else { 1_000_000 });
    check_durations(&frames, "at every sample");
}

/// Records samples `i` of a start of the agent whose kernel has run for `uptime_ms`.
fn restarted(uptime_ms: i64) -> Recorder {
    let kernel = KernelTime { boot: crate::clock::KernelBoot(1), ms: uptime_ms };
    recorder(1000).with_kernel_clock(Some(kernel))
}

/// The agent is restarted twice during a roast, while its clock is 300 days ahead, then right, then
/// in 1970.
#[test]
fn two_restarts_and_a_wrong_clock_do_not_change_the_elapsed_time() {
    let mut frames = Vec::new();
    let mut agent = restarted(50_000);
    for i in 0..30 {
        let marks: &[EventKind] = if i == 5 { &[EventKind::Charge] } else { &[] };
        let mut sample = sample(i, 180.0, marks);
        sample.wall = sample.wall.plus_ms(300 * 86_400_000);
        frames.extend(agent.push(sample));
    }
    let first = running(&frames);
    // The kernel has run for 80 s: CHARGE was at 50.5 s.
    for (uptime_ms, wall) in [(80_000, EpochMs(1_760_000_030_000)), (110_500, EpochMs(0))] {
        let roast = running(&frames);
        let now = crate::restart::ClockReading {
            mono_ms: 0,
            wall,
            kernel: Some(KernelTime { boot: crate::clock::KernelBoot(1), ms: uptime_ms }),
        };
        let newest = frames.last().unwrap().frame.wall;
        let charge_ms = crate::restart::charge_ms(&roast, newest, &now).unwrap();
        agent = restarted(uptime_ms);
        agent.resume(roast, charge_ms);
        for i in 0..20 {
            let mut sample = sample(i, 190.0, &[]);
            sample.wall = wall.plus_ms(i as i64 * 100);
            frames.extend(agent.push(sample));
        }
    }
    let mut last = sample(20, 200.0, &[EventKind::Drop]);
    last.wall = EpochMs(2_000);
    let dropped = agent.push(last).unwrap();
    let event = &dropped.frame.events[0];
    assert_eq!((&event.session, elapsed_ms(event)), (&first.session, 62_000));
    let closed = dropped.closed.unwrap();
    assert_eq!(closed.ended.ms_since(closed.roast.started), 62_000);
    let walls: Vec<i64> =
        frames[3..].iter().map(|f| f.frame.wall.ms_since(first.started)).collect();
    assert_eq!(walls, [29_500, 30_500, 60_000, 61_000]);
}

/// A restart right after the frame of CHARGE, and one right after the frame of DROP.
#[test]
fn a_restart_at_charge_or_drop_neither_loses_nor_repeats_the_roast() {
    let mut agent = restarted(0);
    let charge = agent.push(sample(0, 180.0, &[EventKind::Charge]));
    let charge = charge.or_else(|| agent.flush()).unwrap();
    let roast = charge.running.unwrap();
    let mut second = restarted(10_000);
    second.resume(roast.clone(), -10_000);
    let dropped = second.push(sample(100, 200.0, &[EventKind::Drop])).unwrap();
    assert_eq!(elapsed_ms(&dropped.frame.events[0]), 20_000);
    assert_eq!(dropped.closed.unwrap().roast.session, roast.session);
    assert!(dropped.running.is_none(), "nothing to continue after the next restart");
}
