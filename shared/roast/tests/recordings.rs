//! Tests on real roasts: compares detected marks with the marks of people, and checks what must
//! never be detected.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::path::{Path, PathBuf};

use contract::EventKind;
use roast::clean::ValueQuality;
use roast::cut_score::CutSheet;
use roast::machine_model::MachineModel;
use roast::recording::Recording;
use roast::replay::{DetectedRoast, replay};
use roast::score::ScoreSheet;

type Named = (String, Recording);

/// Returns the recorded roasts of one folder, by name. Without recordings it prints a message and
/// returns `None`; in CI it fails.
fn recordings(folder: &str) -> Option<Vec<Named>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/roasts").join(folder);
    let Ok(entries) = std::fs::read_dir(&root) else {
        assert!(std::env::var_os("CI").is_none(), "no recordings in {}", root.display());
        println!("skipped: no recordings");
        return None;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "alog" || e == "csv"));
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, roast::formats::read(&std::fs::read_to_string(path).unwrap()).unwrap())
    };
    Some(paths.into_iter().map(read).collect())
}

fn named<'r>(all: &'r [Named], part: &str) -> &'r Recording {
    &all.iter().find(|(name, _)| name.contains(part)).unwrap().1
}

fn found(recording: &Recording) -> Option<DetectedRoast> {
    replay(recording, &MachineModel::default()).roast().cloned()
}

/// Checks the accuracy reached so far. A change that makes a number worse must change it here, so
/// that it shows in its diff.
#[test]
fn the_accuracy_of_detection_does_not_decrease() {
    let Some(all) = recordings("skywalker") else { return };
    let mut sheet = ScoreSheet::default();
    sheet.add_machine(all.iter().map(|(name, recording)| (name.as_str(), recording)));
    let score = sheet.score();
    for miss in sheet.comparisons.iter().filter(|m| m.error_s.is_none_or(|e| e.abs() > 30.0)) {
        println!("{} {} {:?}", miss.recording, miss.kind, miss.error_s);
    }
    let reached = |kind: EventKind| {
        let table = &score.marks[kind.as_str()];
        (table.marks, table.within_10_s, table.within_30_s, table.covered)
    };
    let at_least = |kind, (marks, ten, thirty, covered)| {
        let now = reached(kind);
        assert_eq!(now.0, marks, "{kind}: another number of marks");
        assert!(now.1 >= ten && now.2 >= thirty && now.3 >= covered, "{kind} got worse: {now:?}");
    };
    // Not detected: one CHARGE that was marked three minutes after the beans went in, and one that
    // was marked while the probe gave no readings.
    at_least(EventKind::Charge, (39, 37, 37, 37));
    at_least(EventKind::Tp, (38, 37, 37, 36));
    // Further than 10 s off: a DROP on a probe that had flipped to °F and no longer changed, and two
    // of the machine's first three, which were marked 12 s before the curve bends.
    at_least(EventKind::Drop, (38, 35, 38, 36));
    at_least(EventKind::Fc, (35, 7, 27, 30));
    assert!(score.forecast.mae_c <= 0.76, "the forecast got worse: {:?}", score.forecast);
    let held = score.forecast.covered as f64 / score.forecast.points as f64;
    assert!((0.87..=0.93).contains(&held), "intervals hold {held}");
    assert_eq!(
        (score.phantom_drops, score.false_charges),
        (0, 1),
        "only the CHARGE that was marked too late"
    );
}

/// Checks that a recording that begins late shows the same turning point, first crack and DROP.
/// Without CHARGE the time on the line of first crack is an estimate, so first crack moves.
#[test]
fn a_recording_that_begins_late_shows_the_same_marks() {
    for (folder, moved_max) in [("skywalker", 2), ("hottop", 0)] {
        let Some(all) = recordings(folder) else { return };
        let mut sheet = CutSheet::default();
        sheet.add_machine(all.iter().map(|(name, recording)| (name.as_str(), recording)));
        for far in sheet.comparisons.iter().filter(|c| c.error_s.is_none_or(|e| e.abs() > 10.0)) {
            println!("{} {:?} {} {:?}", far.recording, far.cut, far.kind, far.error_s);
        }
        let tables = sheet.tables();
        assert!(tables.len() >= 15, "{folder}: {tables:?}");
        for table in tables {
            assert_eq!(table.missed, 0, "{folder}: {table:?}");
            if table.kind == "FC" {
                assert!(table.marks - table.within_30_s <= moved_max, "{folder}: {table:?}");
            } else {
                assert_eq!(table.within_10_s, table.marks, "{folder}: {table:?}");
            }
        }
    }
}

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

mod golden {
    //! Special cases found in the data. Cases whose files are not available here are constructed.

    use super::*;
    use roast::event::{MarkChange, Method, Tracker};
    use roast::sample::Sample;
    use roast::twin::{PRESETS, Twin};

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

    fn made(seconds: i64, bt: impl Fn(f64) -> f64) -> Recording {
        let samples = (0..seconds).map(|s| Sample::bean(s * 1000, Some(bt(s as f64)))).collect();
        Recording { samples, ..Recording::default() }
    }

    /// Returns a bean curve: 60 s at 190 °C, CHARGE, turning point about a minute later, DROP at
    /// `end`, then cooling.
    fn curve(end: f64, warmer: f64) -> impl Fn(f64) -> f64 {
        let rising =
            move |t: f64| 230.0 + warmer - 205.0 * (-t / 230.0).exp() + 165.0 * (-t / 18.0).exp();
        move |s| match s {
            s if s <= 60.0 => 190.0 + warmer,
            s if s <= end => rising(s - 60.0),
            s => (rising(end - 60.0) - (s - end) * 1.5).max(60.0),
        }
    }

    #[test]
    fn a_roast_of_six_minutes_is_detected() {
        let roast = found(&made(560, curve(440.0, 20.0))).unwrap();
        let drop = roast.mark(EventKind::Drop).unwrap();
        assert!((drop.at_ms - 440_000).abs() <= 3_000, "{drop:?}");
        assert!((roast.mark(EventKind::Charge).unwrap().at_ms - 60_000).abs() <= 3_000);
    }

    /// Tests a scale under the tray that shows DROP 14 s before the probe does, and, earlier, a
    /// hand that presses on it.
    #[test]
    fn a_scale_gives_the_time_of_drop_and_never_makes_a_mark() {
        let mut recording = made(800, curve(660.0, 0.0));
        for sample in &mut recording.samples {
            let on_the_tray = if sample.t_ms >= 646_000 { 5_210.0 } else { 10.0 };
            let hand = if (300_000..304_000).contains(&sample.t_ms) { 900.0 } else { 0.0 };
            sample.weight_g = Some(on_the_tray + hand);
        }
        let roast = found(&recording).unwrap();
        let drop = roast.mark(EventKind::Drop).unwrap();
        assert_eq!(drop.method, roast::event::Method::Scale);
        assert!((drop.at_ms - 646_000).abs() <= 2_000, "{drop:?}");
        assert!((roast.mark(EventKind::Charge).unwrap().at_ms - 60_000).abs() <= 3_000);
    }

    /// Tests a machine whose exhaust temperature changes as the door opens, and whose bean probe
    /// shows it with a different delay in each roast: the exhaust gives the time of DROP once
    /// people's marks have shown that it is more accurate.
    #[test]
    fn the_exhaust_gives_the_time_of_drop_where_it_is_more_accurate() {
        let mut learned = MachineModel::default();
        let mut last = None;
        for late in [2.0, 22.0, 9.0, 28.0, 4.0, 17.0, 25.0, 6.0, 20.0] {
            let mut recording = made(820, curve(660.0 + late, 0.0));
            for sample in &mut recording.samples {
                let s = sample.t_ms as f64 / 1000.0;
                sample.et_c = Some(if s < 660.0 { 225.0 } else { 225.0 - (s - 660.0) * 0.8 });
            }
            let marked = recording.samples.iter().position(|s| s.t_ms == 660_000).unwrap();
            let charged = recording.samples.iter().position(|s| s.t_ms == 60_000).unwrap();
            recording.marks = vec![(EventKind::Charge, charged), (EventKind::Drop, marked)];
            let walked = replay(&recording, &learned);
            last = walked.roast().and_then(|roast| roast.mark(EventKind::Drop)).copied();
            learned.learn_from_recording(&recording, &walked);
        }
        let drop = last.unwrap();
        assert_eq!(drop.method, roast::event::Method::Exhaust);
        assert!((drop.at_ms - 660_000).abs() <= 4_000, "{drop:?}");
    }

    #[test]
    fn one_outlier_before_charge_changes_nothing() {
        let steady = curve(660.0, 0.0);
        let wild = move |s: f64| if (s - 30.0).abs() < 0.5 { 378.0 } else { steady(s) };
        let roast = found(&made(800, wild)).unwrap();
        assert!((roast.mark(EventKind::Charge).unwrap().at_ms - 60_000).abs() <= 3_000);
        assert!((roast.mark(EventKind::Drop).unwrap().at_ms - 660_000).abs() <= 3_000);
    }

    #[test]
    fn no_single_reading_makes_or_moves_a_mark() {
        let steady = curve(660.0, 0.0);
        let calm = found(&made(800, &steady)).unwrap();
        for at in [30.0, 120.0, 200.0, 350.0, 500.0, 640.0] {
            for off in [-14.0, -10.0, -5.0, 5.0, 10.0, 14.0] {
                let wild = |s: f64| steady(s) + if (s - at).abs() < 0.5 { off } else { 0.0 };
                let roast = found(&made(800, wild)).unwrap();
                for kind in [
                    EventKind::Charge,
                    EventKind::Tp,
                    EventKind::DryEnd,
                    EventKind::Fc,
                    EventKind::Drop,
                ] {
                    let (a, b) =
                        (calm.mark(kind).unwrap().at_ms, roast.mark(kind).map(|m| m.at_ms));
                    assert!(
                        b.is_some_and(|b| (a - b).abs() <= 4_000),
                        "{off} °C at {at} s: {kind} {a} {b:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_charge_into_a_cooling_drum_is_detected() {
        for fall in [0.15, 0.2, 0.3] {
            let steady = curve(660.0, 0.0);
            let cooling = |s: f64| if s < 60.0 { 190.0 + (60.0 - s) * fall } else { steady(s) };
            let roast = found(&made(800, cooling)).unwrap();
            let charge = roast.mark(EventKind::Charge).unwrap();
            assert!((charge.at_ms - 60_000).abs() <= 4_000, "{fall} °C/s: {charge:?}");
        }
    }

    /// Tests a recording that begins while the last batch leaves; the next one follows minutes
    /// later.
    #[test]
    fn minutes_between_batches_are_no_roast() {
        for (rate, minutes) in [(1.0, 5.0), (1.0, 10.0), (0.6, 9.0), (0.35, 12.0)] {
            let charge = minutes * 60.0;
            let bottom_s = 75.0 / rate;
            let steady = curve(600.0 + 60.0, 0.0);
            let bt = |s: f64| match s {
                s if s < bottom_s => 217.0 - s * rate,
                s if s < charge => 142.0 + (s - bottom_s) * 48.0 / (charge - bottom_s),
                s => steady(s - charge + 60.0),
            };
            #[allow(clippy::cast_possible_truncation)] // seconds of a test
            let roast = found(&made(charge as i64 + 740, bt)).unwrap();
            let off = |kind, at: f64| roast.mark(kind).map(|m| m.at_ms as f64 / 1000.0 - at);
            let ends = (off(EventKind::Charge, charge), off(EventKind::Drop, charge + 600.0));
            assert!(ends.0.is_some_and(|s| s.abs() <= 4.0), "{rate} °C/s, {minutes} min: {ends:?}");
            assert!(ends.1.is_some_and(|s| s.abs() <= 4.0), "{rate} °C/s, {minutes} min: {ends:?}");
        }
    }

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
    fn a_roast_with_a_hundred_samples_per_second_is_detected() {
        let steady = curve(660.0, 0.0);
        let samples =
            (0..80_000).map(|i| Sample::bean(i * 10, Some(steady(i as f64 / 100.0)))).collect();
        let recording = Recording { samples, ..Recording::default() };
        let roast = found(&recording).unwrap();
        assert!((roast.mark(EventKind::Drop).unwrap().at_ms - 660_000).abs() <= 3_000);
    }

    #[test]
    fn a_burner_that_goes_out_is_not_a_drop() {
        let mut recording = made(640, curve(1_000.0, 0.0));
        for sample in &mut recording.samples {
            let out = sample.t_ms >= 560_000;
            (sample.gas_pct, sample.fan_pct) = (Some(if out { 0.0 } else { 60.0 }), Some(100.0));
        }
        assert_eq!(found(&recording).unwrap().mark(EventKind::Drop), None);
    }

    /// Tests a roaster that turns the burner off at another time before each drop, while the beans
    /// still get warmer, stay as warm, or cool slowly.
    #[test]
    fn a_drop_after_coasting_is_where_the_probe_turns() {
        for drift in [0.04, 0.0, -0.04] {
            let mut learned = MachineModel::default();
            for coast in [60.0, 20.0, 90.0, 35.0, 75.0, 10.0, 50.0] {
                let steady = curve(1_000.0, 0.0);
                let bt = |s: f64| {
                    let coasted = steady(660.0 - coast) + (s - 660.0 + coast) * drift;
                    match s {
                        s if s <= 660.0 - coast => steady(s),
                        s if s <= 660.0 => coasted,
                        s => coasted - (s - 660.0) * (drift + 1.2),
                    }
                };
                let mut recording = made(760, bt);
                for sample in &mut recording.samples {
                    let out = sample.t_ms as f64 / 1000.0 >= 660.0 - coast;
                    (sample.gas_pct, sample.fan_pct) =
                        (Some(if out { 0.0 } else { 60.0 }), Some(100.0));
                }
                recording.marks = vec![(EventKind::Charge, 60), (EventKind::Drop, 660)];
                let walked = replay(&recording, &learned);
                let drop = *walked.roast().unwrap().mark(EventKind::Drop).unwrap();
                assert!((drop.at_ms - 660_000).abs() <= 5_000, "{coast} s, {drift}: {drop:?}");
                assert_eq!(drop.method, Method::Break, "{coast} s, {drift}");
                assert!((drop.from_ms..=drop.to_ms).contains(&660_000), "{drop:?}");
                learned.learn_from_recording(&recording, &walked);
            }
        }
    }

    /// Returns the marks of an air popper: a probe at 27 °C, beans from 40 s on, DROP at 500 s.
    fn popped() -> Recording {
        let rising = |s: f64| 27.0 + 205.0 * (1.0 - (-(s - 40.0) / 250.0).exp());
        made(560, move |s| match s {
            s if s <= 40.0 => 27.0,
            s if s <= 500.0 => rising(s),
            s => rising(500.0) - (s - 500.0) * 1.5,
        })
    }

    #[test]
    fn a_roast_that_begins_with_a_cold_probe_is_detected() {
        let roast = found(&popped()).unwrap();
        let off = |kind, at: i64| roast.mark(kind).map_or(i64::MAX, |m| (m.at_ms - at).abs());
        assert_eq!(roast.mark(EventKind::Charge).unwrap().method, Method::BegunBefore);
        assert!(off(EventKind::Charge, 40_000) <= 8_000, "{roast:?}");
        assert!(off(EventKind::Drop, 500_000) <= 5_000, "{roast:?}");
        for kind in [EventKind::Tp, EventKind::DryEnd, EventKind::Fc] {
            assert!(roast.mark(kind).is_some(), "{kind}: {roast:?}");
        }
    }

    #[test]
    fn a_drum_that_is_heated_from_cold_and_then_charged_has_one_roast() {
        let steady = curve(660.0, 0.0);
        let heated = |s: f64| if s < 600.0 { 25.0 + s * 0.275 } else { steady(s - 540.0) };
        let walk = replay(&made(1_400, heated), &MachineModel::default());
        assert_eq!(walk.roasts.len(), 1);
        let roast = walk.roast().unwrap();
        let at = |kind| roast.mark(kind).unwrap().at_ms;
        assert!((at(EventKind::Charge) - 600_000).abs() <= 4_000, "{roast:?}");
        assert!((at(EventKind::Drop) - 1_200_000).abs() <= 4_000, "{roast:?}");
        let early = |c: &MarkChange| matches!(c, MarkChange::Detected(m) if m.at_ms < 590_000);
        assert!(!walk.changes.iter().any(early), "{:?}", walk.changes);
    }

    /// Tests a detector that is started during a roast: it tells at once that a roast seems to have
    /// begun before, and its marks once the fall at DROP has shown that it was one.
    #[test]
    fn a_roast_that_began_before_the_detector_is_shown_as_such() {
        let steady = curve(660.0, 0.0);
        let cooling = |s: f64| 30.0 + (steady(660.0) - 30.0) * (-(s - 660.0) / 150.0).exp();
        let all = made(900, |s| if s <= 660.0 { steady(s) } else { cooling(s) });
        let whole = found(&all).unwrap();
        for begin_s in [62, 75, 95, 130, 200, 400] {
            let recording = all.since(begin_s * 1000);
            let mut tracker = Tracker::new(MachineModel::default());
            let (mut shown, mut changes) = (false, Vec::new());
            for sample in &recording.samples {
                changes.extend(tracker.push(sample));
                shown |= tracker.begun_before_ms().is_some();
            }
            let marks: Vec<_> = changes
                .iter()
                .filter_map(|c| match c {
                    MarkChange::Detected(mark) => Some(*mark),
                    MarkChange::Withdrawn(_) => None,
                })
                .collect();
            let find = |kind| marks.iter().rev().find(|m| m.kind == kind);
            let charge = find(EventKind::Charge);
            let charge = charge.unwrap_or_else(|| panic!("{begin_s} s: {changes:?}"));
            assert!((charge.from_ms..=charge.to_ms).contains(&60_000), "{begin_s} s: {charge:?}");
            if begin_s > 75 {
                assert!(shown, "{begin_s} s");
                assert_eq!(charge.method, Method::BegunBefore, "{begin_s} s");
            }
            for kind in [EventKind::Fc, EventKind::Drop] {
                let (again, known) = (find(kind), whole.mark(kind).unwrap());
                let again = again.unwrap_or_else(|| panic!("{begin_s} s: no {kind}: {marks:?}"));
                assert!((again.at_ms - known.at_ms).abs() <= 30_000, "{begin_s} s: {again:?}");
            }
        }
    }

    /// Tests batch after batch, each charged a minute after the last DROP, while the probe still falls.
    #[test]
    fn a_batch_charged_right_after_the_last_one_is_detected() {
        for preset in PRESETS {
            let (mut twin, mut tracker) =
                (Twin::new(preset, 1, 30_000), Tracker::new(MachineModel::default()));
            let ends = [EventKind::Charge, EventKind::Drop];
            let (mut truth, mut detected) = (Vec::new(), Vec::new());
            for s in 0..2_800_i64 {
                let told = twin.advance(1_000).into_iter().filter(|kind| ends.contains(kind));
                truth.extend(told.map(|kind| (kind, s * 1_000)));
                let bean = Sample::bean(s * 1_000, Some(twin.reading().bt_c));
                detected.extend(tracker.push(&bean).into_iter().filter_map(|c| match c {
                    MarkChange::Detected(m) if ends.contains(&m.kind) => Some((m.kind, m.at_ms)),
                    MarkChange::Detected(_) | MarkChange::Withdrawn(_) => None,
                }));
            }
            truth.retain(|(_, at_ms)| *at_ms < 2_600_000);
            assert!(truth.len() >= 5 && detected.len() >= truth.len(), "{truth:?} {detected:?}");
            for (known, found) in truth.iter().zip(&detected) {
                assert!(known.0 == found.0 && (known.1 - found.1).abs() <= 5_000, "{detected:?}");
            }
        }
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

    #[test]
    fn a_curve_that_ends_at_its_drop_has_the_drop_of_the_file() {
        let mut recording = made(665, curve(660.0, 0.0));
        recording.marks = vec![(EventKind::Charge, 60), (EventKind::Drop, 660)];
        let walk = replay(&recording, &MachineModel::default());
        let marks = walk.marks_of(&recording);
        let drop = marks.iter().find(|mark| mark.kind == EventKind::Drop).unwrap();
        assert_eq!((drop.at_ms, drop.method), (660_000, Method::Reported));
    }

    #[test]
    fn a_drum_that_only_warms_up_is_not_a_charge() {
        // A start at 58 °C without a dip; and a slow cooling between batches that turns to warming.
        assert!(found(&made(600, |s| 58.0 + s * 0.25)).is_none());
        let between = |s: f64| if s < 300.0 { 200.0 - s * 0.15 } else { 155.0 + (s - 300.0) * 0.1 };
        assert!(found(&made(700, between)).is_none());
    }

    #[test]
    fn a_roast_with_et_below_bt_is_detected() {
        let mut recording = made(800, curve(660.0, 0.0));
        for sample in &mut recording.samples {
            sample.et_c = sample.bt_c.map(|bt| bt - 40.0);
        }
        let roast = found(&recording).unwrap();
        for kind in [EventKind::Charge, EventKind::Tp, EventKind::DryEnd, EventKind::Drop] {
            assert!(roast.mark(kind).is_some(), "{kind}");
        }
    }

    #[test]
    fn sentinel_values_and_duplicate_timestamps_are_ignored() {
        let mut recording = made(800, curve(660.0, 0.0));
        for (i, sample) in recording.samples.iter_mut().enumerate() {
            if i % 37 == 0 {
                sample.bt_c = Some(-29_683.0);
            }
        }
        let doubled: Vec<Sample> = recording
            .samples
            .iter()
            .flat_map(|s| [*s, Sample { bt_c: Some(20.0), ..*s }])
            .skip(2)
            .collect();
        recording.samples = doubled;
        let roast = found(&recording).unwrap();
        assert!((roast.mark(EventKind::Drop).unwrap().at_ms - 660_000).abs() <= 4_000);
    }

    #[test]
    fn an_unreadable_recording_is_reported() {
        for (text, expected) in [
            ("", "no line names"),
            ("{'timex': [], 'temp1': [], 'temp2': []}", ""),
            ("{'timex': [1], 'temp1': [], 'temp2': []}", "as long as timex"),
        ] {
            match roast::formats::read(text) {
                Ok(recording) => assert!(recording.samples.is_empty() && expected.is_empty()),
                Err(error) => assert!(error.to_string().contains(expected), "{error}"),
            }
        }
        let bom = "\u{feff}time,bean\n0,100\n1.5,101\n";
        assert_eq!(roast::formats::read(bom).unwrap().samples[1].t_ms, 1_500);
    }
}
