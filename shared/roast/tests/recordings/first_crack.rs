//! First crack: in a gap, and in long roasts.

use contract::EventKind;
use roast::analysis::phase::Phase;
use roast::analysis::{Marks, analyze};
use roast::event::{DetectedMark, MarkChange, Method};
use roast::machine_model::MachineModel;
use roast::recording::Recording;
use roast::replay::replay;
use roast::sample::Sample;

use crate::curves::{curve, made};
use crate::found;

#[test]
fn a_first_crack_in_a_gap_is_placed_in_the_gap() {
    let mut recording = made(800, curve(660.0, 0.0));
    let whole = found(&recording).unwrap();
    let cracked = whole.mark(EventKind::Fc).unwrap().at_ms;
    recording.samples.retain(|s| !(cracked - 60_000..cracked + 60_000).contains(&s.t_ms));
    let roast = found(&recording).unwrap();
    let found = roast.mark(EventKind::Fc).unwrap();
    assert!((found.at_ms - cracked).abs() <= 10_000, "{found:?}, was {cracked}");
    assert!(found.known_ms >= cracked + 60_000, "detected before data came back");
}

/// The length of long roasts in minutes. They turn at 80 °C and crack at 197 °C.
const LONG_MIN: [i64; 4] = [12, 15, 20, 30];

/// Returns a long roast without marks, and the time of its first crack, ms.
fn long_roast(minutes: i64) -> (Recording, i64) {
    let slow_s = 30.67 * minutes as f64;
    let dropped_s = 60.0 + 60.0 * minutes as f64;
    let rising = move |s: f64| {
        234.0 - 174.0 * (-(s - 60.0) / slow_s).exp() + 130.0 * (-(s - 60.0) / 20.0).exp()
    };
    let bt = move |s: f64| match s {
        s if s <= 60.0 => 190.0,
        s if s <= dropped_s => rising(s),
        s => rising(dropped_s) - (s - dropped_s) * 1.2,
    };
    let recording = made(60 * minutes + 160, bt);
    let cracked = |sample: &&Sample| sample.t_ms > 200_000 && sample.bt_c >= Some(197.0);
    let at_ms = recording.samples.iter().find(cracked).unwrap().t_ms;
    (recording, at_ms)
}

/// Returns a long roast with the marks of its file.
fn marked_long_roast(minutes: i64) -> (Recording, i64) {
    let (mut recording, cracked_ms) = long_roast(minutes);
    let dropped_ms = (60 + 60 * minutes) * 1000;
    let marks =
        [(EventKind::Charge, 60_000), (EventKind::Fc, cracked_ms), (EventKind::Drop, dropped_ms)];
    recording.marks = marks.map(|(kind, ms)| (kind, usize::try_from(ms / 1000).unwrap())).to_vec();
    (recording, cracked_ms)
}

#[test]
fn a_long_roast_has_a_wide_interval_of_first_crack_and_no_advice() {
    for minutes in LONG_MIN {
        let (recording, cracked_ms) = long_roast(minutes);
        let walk = replay(&recording, &MachineModel::default());
        let fc = *first_cracks(&walk.changes).last().unwrap();
        assert!(fc.confidence < roast::analysis::CONFIDENCE_MIN, "{minutes} min: {fc:?}");
        assert!((fc.from_ms..=fc.to_ms).contains(&cracked_ms), "{minutes} min: {fc:?}");
        let marks = Marks::of(&recording, &walk.marks_of(&recording));
        let analysis = analyze(&recording, &marks).unwrap();
        assert_eq!(analysis.recommendations, [], "{minutes} min");
    }
}

#[test]
fn the_first_crack_of_a_long_roast_is_known_after_two_roasts() {
    for minutes in LONG_MIN {
        let (recording, cracked_ms) = marked_long_roast(minutes);
        let mut learned = MachineModel::default();
        for _ in 0..2 {
            learned.learn_from_recording(&recording, &replay(&recording, &learned));
        }
        let walk = replay(&recording, &learned);
        let fc = *first_cracks(&walk.changes).last().unwrap();
        // Within a fortieth of the roast.
        let near_ms = minutes * 1_500;
        assert!((fc.at_ms - cracked_ms).abs() <= near_ms, "{minutes} min: {fc:?}, {cracked_ms}");
        assert!((fc.from_ms..=fc.to_ms).contains(&cracked_ms), "{minutes} min: {fc:?}");
    }
}

#[test]
fn the_first_crack_of_the_file_goes_before_the_found_one() {
    for minutes in LONG_MIN {
        let (recording, cracked_ms) = marked_long_roast(minutes);
        let walk = replay(&recording, &MachineModel::default());
        let marks = Marks::of(&recording, &walk.marks_of(&recording));
        assert!(marks.is_confident(EventKind::Fc));
        let analysis = analyze(&recording, &marks).unwrap();
        let cracked_s = (cracked_ms - 60_000) as f64 / 1000.0;
        assert_eq!(analysis.fc_seconds, Some(cracked_s), "{minutes} min");
        let development = analysis.phases.last().unwrap();
        assert_eq!(development.phase, Phase::Development, "{minutes} min");
        assert!((development.start_seconds - cracked_s).abs() < 0.1, "{minutes} min");
    }
}

/// Returns roasts of one machine that crack at other temperatures each time, and are dropped after a
/// fifth of the whole.
fn regular_developments() -> Vec<Recording> {
    let roast = |dropped_s: i64| {
        let mut recording = made(dropped_s + 100, curve(dropped_s as f64, 0.0));
        let cracked_s = dropped_s - (dropped_s - 60) / 5;
        recording.marks = [(EventKind::Charge, 60), (EventKind::Fc, cracked_s)]
            .into_iter()
            .chain([(EventKind::Drop, dropped_s)])
            .map(|(kind, s)| (kind, usize::try_from(s).unwrap()))
            .collect();
        recording
    };
    let dropped_s = [640, 700, 610, 720, 630, 690, 600, 710, 650, 620, 700, 640];
    dropped_s.into_iter().map(roast).collect()
}

/// Returns every revision of first crack.
fn first_cracks(changes: &[MarkChange]) -> Vec<DetectedMark> {
    let found = changes.iter().filter_map(|change| match change {
        MarkChange::Detected(mark) if mark.kind == EventKind::Fc => Some(*mark),
        _ => None,
    });
    found.collect()
}

#[test]
fn first_crack_is_revised_by_the_usual_share_of_development() {
    let (mut learned, mut errors) = (MachineModel::default(), Vec::new());
    for recording in regular_developments() {
        let walk = replay(&recording, &learned);
        let marked = recording.mark_ms(EventKind::Fc).unwrap();
        if learned.first_crack.mark_count() >= 6 {
            let found = first_cracks(&walk.changes);
            let [live, revised] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!((live.revision, revised.revision), (0, 1));
            assert!(live.known_ms < revised.known_ms);
            assert!((revised.from_ms..=revised.to_ms).contains(&marked), "{revised:?}, {marked}");
            assert!(revised.to_ms - revised.from_ms < live.to_ms - live.from_ms);
            let bt_c = walk.bt_at(revised.at_ms).unwrap();
            assert!((revised.bt_c.unwrap() - bt_c).abs() < 0.5, "{revised:?}, {bt_c}");
            errors.push([live, revised].map(|mark| (mark.at_ms - marked).abs()));
        }
        learned.learn_from_recording(&recording, &walk);
    }
    let sum_ms = |i: usize| errors.iter().map(|e| e[i]).sum::<i64>();
    assert!(sum_ms(1) * 2 < sum_ms(0), "{errors:?}");
}

#[test]
fn a_first_crack_that_was_heard_is_not_revised() {
    let mut learned = MachineModel::default();
    for recording in regular_developments() {
        learned.learn_from_recording(&recording, &replay(&recording, &learned));
    }
    let mut recording = regular_developments().remove(0);
    for sample in &mut recording.samples {
        sample.cracks = Some(((sample.t_ms - 450_000) / 2_000).clamp(0, 60) as f64);
    }
    let walk = replay(&recording, &learned);
    let found = first_cracks(&walk.changes);
    assert_eq!(found.last().unwrap().method, Method::Acoustic, "{found:?}");
    assert!((found.last().unwrap().at_ms - 452_000).abs() <= 2_000, "{found:?}");
}

#[test]
fn a_first_crack_below_the_line_of_the_machine_follows_from_drop_and_is_not_certain() {
    let mut learned = MachineModel::default();
    // Roasts that always crack near the same temperature.
    let (mut usual, dropped_s) = (made(760, curve(660.0, 0.0)), 660);
    usual.marks = vec![(EventKind::Charge, 60), (EventKind::Fc, 540), (EventKind::Drop, dropped_s)];
    for _ in 0..6 {
        learned.learn_from_recording(&usual, &replay(&usual, &learned));
    }
    let line_c = usual.samples[540].bt_c.unwrap();
    for (below_c, expected) in [(6.0, true), (30.0, false)] {
        // A slower roast that is dropped below the line.
        let slower = curve(660.0, line_c - below_c - usual.samples[660].bt_c.unwrap());
        let recording = made(760, slower);
        let found = first_cracks(&replay(&recording, &learned).changes);
        assert_eq!(!found.is_empty(), expected, "{below_c} °C below: {found:?}");
        for fc in found {
            assert!((540_000..660_000).contains(&fc.at_ms), "{fc:?}");
            assert!(fc.confidence < roast::analysis::CONFIDENCE_MIN, "{fc:?}");
        }
    }
}
