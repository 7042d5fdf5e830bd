//! First crack: in a gap, and in long roasts.

use contract::EventKind;
use roast::event::{DetectedMark, MarkChange, Method};
use roast::machine_model::MachineModel;
use roast::recording::Recording;
use roast::replay::replay;

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

#[test]
fn a_long_roast_has_a_wide_interval_of_first_crack() {
    // 30 minutes, turning at 80 °C, 200 °C at the mark, 25 minutes after CHARGE.
    let bt = |s: f64| match s {
        s if s <= 60.0 => 190.0,
        s => 234.0 - 174.0 * (-(s - 60.0) / 920.0).exp() + 130.0 * (-(s - 60.0) / 20.0).exp(),
    };
    let recording = made(1_860, bt);
    let walk = replay(&recording, &MachineModel::default());
    let changes = walk.changes.iter();
    let fc = changes
        .filter_map(|c| match c {
            MarkChange::Detected(mark) if mark.kind == EventKind::Fc => Some(*mark),
            _ => None,
        })
        .next_back()
        .unwrap();
    assert!(fc.confidence < roast::analysis::CONFIDENCE_MIN, "{fc:?}");
    assert!((fc.from_ms..=fc.to_ms).contains(&1_560_000), "{fc:?}");
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
