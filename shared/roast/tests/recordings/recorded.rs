//! What must hold for every recording, and the special cases among them.

use contract::EventKind;
use roast::clean::ValueQuality;
use roast::machine_model::MachineModel;
use roast::replay::replay;

use crate::{found, named, recordings};

/// Checks that a gap in the data counts as a gap only, never as a DROP or a change of unit.
#[test]
fn a_gap_in_the_data_is_never_a_drop() {
    let Some(all) = recordings("skywalker") else { return };
    let mut cuts = 0;
    for (name, recording) in &all {
        let (Some(charge), Some(drop)) =
            (recording.mark_ms(EventKind::Charge), recording.mark_ms(EventKind::Drop))
        else {
            continue;
        };
        for gap_s in [10, 30, 60, 120, 300, 600] {
            for part in 1..6 {
                let from = charge + (drop - charge) * part / 6;
                let mut cut = recording.clone();
                cut.samples.retain(|s| !(from..from + gap_s * 1000).contains(&s.t_ms));
                cuts += 1;
                if !name.contains("25-10-25_1609") {
                    let view =
                        roast::clean::clean_channel(cut.samples.iter().map(|s| (s.t_ms, s.bt_c)));
                    assert!(
                        view.iter().all(|c| c.quality != ValueQuality::UnitFlip),
                        "{name}: {gap_s} s"
                    );
                }
                let Some(roast) = found(&cut) else { continue };
                if let Some(found) = roast.mark(EventKind::Drop) {
                    assert!(
                        found.known_ms >= drop - 30_000,
                        "{name}: a gap of {gap_s} s at {} s of {} s is detected as a DROP at {} s",
                        (from - charge) / 1000,
                        (drop - charge) / 1000,
                        (found.at_ms - charge) / 1000
                    );
                }
            }
        }
    }
    assert!(cuts > 1_000, "only {cuts} cuts");
}

/// Checks that a recording cut off while the roast still runs has no DROP.
#[test]
fn a_recording_that_ends_in_mid_roast_has_no_drop() {
    let Some(all) = recordings("skywalker") else { return };
    for (name, recording) in &all {
        let Some(drop) = recording.mark_ms(EventKind::Drop) else { continue };
        let mut cut = recording.clone();
        cut.samples.retain(|s| s.t_ms < drop - 20_000);
        let dropped = found(&cut).and_then(|roast| roast.mark(EventKind::Drop).copied());
        assert_eq!(dropped, None, "{name}");
    }
}

/// Checks that a recording gives the same result in one piece and when continued from snapshots.
#[test]
fn detection_continued_from_a_snapshot_gives_the_same_result() {
    let Some(all) = recordings("skywalker") else { return };
    for (name, recording) in all.iter().take(12) {
        let whole = replay(recording, &MachineModel::default());
        let mut tracker = roast::event::Tracker::new(MachineModel::default());
        let mut changes = Vec::new();
        for (i, sample) in recording.samples.iter().enumerate() {
            if i % 50 == 49 {
                let kept = serde_json::to_string(&tracker).unwrap();
                tracker = serde_json::from_str(&kept).unwrap();
            }
            changes.extend(tracker.push(sample));
        }
        changes.extend(tracker.finish());
        assert_eq!(changes, whole.changes, "{name}");
    }
}

#[test]
fn a_probe_that_flips_to_fahrenheit_is_detected_and_makes_no_mark() {
    let Some(all) = recordings("skywalker") else { return };
    let recording = named(&all, "25-10-25_1609");
    let walk = replay(recording, &MachineModel::default());
    assert!(walk.bt.iter().filter_map(|c| c.value).all(|bt| bt < 260.0), "°F is not °C");
    assert!(walk.bt.iter().filter(|c| c.quality == ValueQuality::UnitFlip).count() > 50);
    let flip = recording.mark_ms(EventKind::Drop).unwrap() - 13_000;
    let roast = walk.roast().unwrap();
    for kind in [EventKind::Fc, EventKind::Drop] {
        let near = roast.mark(kind).map(|m| (m.at_ms - flip).abs());
        assert!(near.is_none_or(|ms| ms > 8_000), "{kind} at the flip");
    }
}

#[test]
fn dropouts_and_a_jump_are_no_roast() {
    let Some(all) = recordings("skywalker") else { return };
    // An aborted roast with 54 dropouts; a recording without CHARGE, with a jump of 96 °C and a
    // gap of 4 s; one without samples.
    for part in ["25-09-06_1405", "25-09-06_1409", "pid_set"] {
        assert!(found(named(&all, part)).is_none(), "{part}");
    }
    let aborted = found(named(&all, "25-09-06_1401"));
    assert!(aborted.is_none_or(|roast| roast.mark(EventKind::Drop).is_none()));
}

#[test]
fn preheating_is_not_a_charge() {
    let Some(all) = recordings("skywalker") else { return };
    for (name, recording) in &all {
        let Some(charge) = recording.mark_ms(EventKind::Charge).filter(|t| *t > 90_000) else {
            continue;
        };
        if name.contains("25-08-17_1612") {
            continue; // its mark was set three minutes late
        }
        let walk = replay(recording, &MachineModel::default());
        let early = walk.changes.iter().any(|change| {
            matches!(change, roast::event::MarkChange::Detected(m) if m.at_ms < charge - 30_000)
        });
        assert!(!early, "{name}");
    }
}
