//! DROP: its time from the curve, a scale, the exhaust, or the file.

use contract::EventKind;
use roast::event::Method;
use roast::machine_model::MachineModel;
use roast::replay::replay;

use crate::curves::{curve, made};
use crate::found;

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
    assert_eq!(drop.method, Method::Scale);
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
    assert_eq!(drop.method, Method::Exhaust);
    assert!((drop.at_ms - 660_000).abs() <= 4_000, "{drop:?}");
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

#[test]
fn a_curve_that_ends_at_its_drop_has_the_drop_of_the_file() {
    let mut recording = made(665, curve(660.0, 0.0));
    recording.marks = vec![(EventKind::Charge, 60), (EventKind::Drop, 660)];
    let walk = replay(&recording, &MachineModel::default());
    let marks = walk.marks_of(&recording);
    let drop = marks.iter().find(|mark| mark.kind == EventKind::Drop).unwrap();
    assert_eq!((drop.at_ms, drop.method), (660_000, Method::Reported));
}
