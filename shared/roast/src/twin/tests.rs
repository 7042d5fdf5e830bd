//! Each make roasts inside the envelope of real ones; causes have their effects.

use super::*;
use crate::sample::Sample;

#[derive(Debug, Default, Clone, Copy)]
struct Roast {
    charge_c: f64,
    tp_s: f64,
    tp_c: f64,
    peak_ror: f64,
    fc_s: f64,
    fc_c: f64,
    fc_ror: f64,
    drop_s: f64,
    drop_c: f64,
    et_less_bt: f64,
    moisture: f64,
    moves: u32,
}

/// The `n`th roast.
fn roast(mut twin: Twin, n: usize) -> Roast {
    let mut found = Roast { tp_c: f64::MAX, ..Roast::default() };
    let (mut charged, mut count): (Option<u64>, usize) = (None, 0);
    let mut past = std::collections::VecDeque::new();
    let mut gas = 0.0;
    for s in 0..20_000_u64 {
        let moisture = twin.state().beans.map_or(0.0, |beans| beans.moisture);
        let events = twin.advance(1_000);
        let reading = twin.reading();
        let (bt, et) = (twin.state().bt_probe_c, twin.state().et_probe_c);
        past.push_back(bt);
        if past.len() > 31 {
            past.pop_front();
        }
        let ror = (bt - past[0]) * 60.0 / (past.len() - 1).max(1) as f64;
        for event in events {
            let since = s as f64 - charged.unwrap_or(s) as f64;
            match event {
                EventKind::Charge => {
                    charged = Some(s);
                    found = Roast { tp_c: f64::MAX, charge_c: bt, ..Roast::default() };
                }
                EventKind::Fc => (found.fc_s, found.fc_c, found.fc_ror) = (since, bt, ror),
                _ if count == n => {
                    (found.drop_s, found.drop_c) = (since, bt);
                    (found.et_less_bt, found.moisture) = (et - bt, moisture);
                    return found;
                }
                _ => (count, charged) = (count + 1, None),
            }
        }
        let Some(charged) = charged else { continue };
        if bt < found.tp_c && s - charged < 200 {
            (found.tp_s, found.tp_c) = ((s - charged) as f64, bt);
        }
        if s - charged > 90 {
            found.peak_ror = found.peak_ror.max(ror);
        }
        found.moves += u32::from((reading.gas_pct - gas).abs() > 1.0);
        gas = reading.gas_pct;
    }
    panic!("no roast {n} within hours: {found:?}");
}

/// A figure of a roast, by its name.
type Figure = (&'static str, fn(&Roast) -> f64);

/// p10..p90 of 202 real roasts, by make.
fn within(name: &str) -> Vec<(Figure, (f64, f64))> {
    let limits = match name {
        "drum-15kg" => [
            (155.0, 194.0),
            (56.0, 68.0),
            (74.0, 91.0),
            (20.2, 25.3),
            (445.0, 540.0),
            (170.0, 203.0),
            (10.8, 13.7),
            (623.0, 735.0),
            (214.0, 221.0),
            (21.0, 33.0),
            (9.0, 22.0),
        ],
        "sample-250g" => [
            (127.0, 166.0),
            (50.0, 81.0),
            (104.0, 129.0),
            (9.9, 16.2),
            (366.0, 531.0),
            (165.0, 181.0),
            (5.1, 11.2),
            (482.0, 726.0),
            (181.0, 197.0),
            (19.0, 35.0),
            (-53.0, 25.0),
        ],
        _ => [
            (166.0, 191.0),
            (68.0, 82.0),
            (89.0, 118.0),
            (11.8, 17.1),
            (479.0, 658.0),
            (166.0, 201.0),
            (7.6, 10.7),
            (554.0, 748.0),
            (185.0, 210.0),
            (8.0, 16.0),
            (-42.0, -24.0),
        ],
    };
    let figures: [Figure; 11] = [
        ("charge °C", |r| r.charge_c),
        ("TP s", |r| r.tp_s),
        ("TP °C", |r| r.tp_c),
        ("peak RoR", |r| r.peak_ror),
        ("FC s", |r| r.fc_s),
        ("FC °C", |r| r.fc_c),
        ("RoR at FC", |r| r.fc_ror),
        ("drop s", |r| r.drop_s),
        ("drop °C", |r| r.drop_c),
        ("development %", |r| (r.drop_s - r.fc_s) / r.drop_s * 100.0),
        ("ET − BT at drop", |r| r.et_less_bt),
    ];
    figures.into_iter().zip(limits).collect()
}

#[test]
fn every_make_roasts_inside_the_measured_envelope() {
    let mut outside = Vec::new();
    for preset in PRESETS {
        for n in [0, 2] {
            let found = roast(Twin::new(preset, 42, 10_000), n);
            println!("{} #{n}: {found:?}", preset.name);
            for ((what, figure), (low, high)) in within(preset.name) {
                let value = figure(&found);
                if !(low..=high).contains(&value) {
                    outside
                        .push(format!("{} #{n}: {what} {value:.1} not {low}–{high}", preset.name));
                }
            }
            if !(0.005..0.045).contains(&found.moisture) || !(2..=17).contains(&found.moves) {
                outside.push(format!("{} #{n}: {found:?}", preset.name));
            }
        }
    }
    assert!(outside.is_empty(), "{outside:#?}");
}

/// With the controls held, from the same charge: the probe `s` seconds after.
fn held(preset: Preset, gas: f64, fan: f64, load: f64, ambient: f64) -> Vec<(f64, f64)> {
    let mut twin = Twin::new(preset, 1, 1_000).with_conditions(load, ambient);
    while !twin.advance(100).contains(&EventKind::Charge) {}
    twin.hold(gas, fan, 1.0);
    (0..400)
        .map(|_| {
            twin.advance(1_000);
            (twin.state().bt_probe_c, twin.state().et_probe_c)
        })
        .collect()
}

fn low(curve: &[(f64, f64)]) -> (usize, f64) {
    let mut best = (0, f64::MAX);
    for (s, (bt, _)) in curve.iter().enumerate().take(200) {
        if *bt < best.1 {
            best = (s, *bt);
        }
    }
    best
}

#[test]
fn each_control_has_its_physical_effect() {
    for preset in PRESETS {
        let name = preset.name;
        let usual = held(preset, 0.6, 0.4, 1.0, 24.0);
        let rise = |c: &[(f64, f64)], from: usize, to: usize| c[to].0 - c[from].0;
        let hot = held(preset, 0.8, 0.4, 1.0, 24.0);
        assert!(rise(&hot, 200, 300) > rise(&usual, 200, 300), "{name}: more gas, more rise");
        let early = (hot[3].0 - usual[3].0).abs();
        assert!(early < 1.0, "{name}: after a delay, not at once: {early}");
        let big = held(preset, 0.6, 0.4, 1.4, 24.0);
        assert!(low(&big).1 < low(&usual).1, "{name}: a bigger batch turns lower");
        assert!(low(&big).0 >= low(&usual).0, "{name}: and later");
        let gap = |c: &[(f64, f64)]| c[300].1 - c[300].0;
        let airy = held(preset, 0.6, 0.9, 1.0, 24.0);
        assert!(gap(&airy) < gap(&usual), "{name}: more air, ET comes nearer to BT");
        let cold = held(preset, 0.6, 0.4, 1.0, 5.0);
        assert!(cold[300].0 < usual[300].0 - 1.0, "{name}: gas in % drifts with the room");
        let mut twin = Twin::new(preset, 1, 1_000);
        while !twin.advance(100).contains(&EventKind::Charge) {}
        twin.advance(300_000);
        twin.hold(0.0, 0.6, 1.0);
        twin.advance(60_000);
        let before = twin.state().bt_probe_c;
        twin.advance(60_000);
        assert!(twin.state().bt_probe_c < before + 2.0, "{name}: no gas, no rise within the lag");
    }
}

#[test]
fn the_same_seed_is_the_same_roast_bit_for_bit() {
    let run = || {
        let mut twin = Twin::new(PRESETS[0], 7, 0);
        (0..600)
            .flat_map(|_| {
                twin.advance(1_000);
                let r = twin.reading();
                [r.bt_c.to_bits(), r.et_c.to_bits()]
            })
            .fold(0_u64, |hash, bits| hash.rotate_left(5) ^ bits)
    };
    assert_eq!(run(), run());
}

/// Samples of a twin at 1 Hz, and when it told CHARGE, FC and DROP, ms.
fn stream(preset: Preset, seed: u64) -> (Vec<Sample>, Vec<(EventKind, i64)>) {
    let mut twin = Twin::new(preset, seed, 60_000);
    let (mut samples, mut told) = (Vec::new(), Vec::new());
    for s in 0..1_100_i64 {
        told.extend(twin.advance(1_000).into_iter().map(|kind| (kind, s * 1000)));
        samples.push(twin.reading().sample(s * 1000));
        if told.iter().any(|(kind, at)| *kind == EventKind::Drop && s * 1000 - at > 60_000) {
            break;
        }
    }
    (samples, told)
}

fn found(samples: &[Sample]) -> crate::replay::DetectedRoast {
    let mut order = crate::event::ReorderBuffer::new(3_000);
    let mut samples: Vec<Sample> =
        samples.iter().filter_map(|s| order.push(*s).ok()).flatten().collect();
    samples.extend(order.finish());
    let recording = crate::recording::Recording { samples, ..Default::default() };
    let walk = crate::replay::replay(&recording, &crate::machine_model::MachineModel::default());
    walk.roast().cloned().unwrap_or_default()
}

#[test]
fn the_events_of_a_twin_are_detected_in_its_disturbed_curve() {
    use fault::{Fault, Window};
    let all = |fault| Window { fault, from_ms: 0, to_ms: i64::MAX };
    let part = |fault| Window { fault, from_ms: 300_000, to_ms: 345_000 };
    for preset in PRESETS {
        let (samples, told) = stream(preset, 11);
        for windows in [
            vec![],
            vec![all(Fault::Spike { off_c: 90.0, one_in: 40 })],
            vec![all(Fault::Quantised { step_c: 1.0 })],
            vec![all(Fault::Staircase { every_ms: 3_000 })],
            vec![all(Fault::Doubled), all(Fault::Shuffled)],
            vec![part(Fault::Dropout)],
            vec![part(Fault::UnitFlip)],
            vec![part(Fault::LinkCut)],
            vec![part(Fault::Stuck)],
        ] {
            let roast = found(&fault::apply(&samples, &windows, 5));
            for kind in [EventKind::Charge, EventKind::Drop] {
                let (_, at) = told.iter().find(|(k, _)| *k == kind).unwrap();
                let mark = roast.mark(kind).map(|mark| mark.at_ms - at);
                assert!(
                    mark.is_some_and(|off| off.abs() <= 10_000),
                    "{} {windows:?}: {kind} off by {mark:?} ms",
                    preset.name
                );
            }
            assert!(roast.mark(EventKind::Tp).is_some(), "{} {windows:?}", preset.name);
        }
    }
}
