//! Readings that are wrong, frequent or unusual, and files that cannot be read.

use contract::EventKind;
use roast::recording::Recording;
use roast::sample::Sample;

use crate::curves::{curve, made};
use crate::found;

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
                let (a, b) = (calm.mark(kind).unwrap().at_ms, roast.mark(kind).map(|m| m.at_ms));
                assert!(
                    b.is_some_and(|b| (a - b).abs() <= 4_000),
                    "{off} °C at {at} s: {kind} {a} {b:?}"
                );
            }
        }
    }
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
