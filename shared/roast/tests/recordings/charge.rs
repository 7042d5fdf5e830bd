//! CHARGE: cold and cooling drums, batch after batch, and roasts that began before.

use contract::EventKind;
use roast::event::{MarkChange, Method, Tracker};
use roast::machine_model::MachineModel;
use roast::recording::Recording;
use roast::replay::replay;
use roast::sample::Sample;
use roast::twin::{PRESETS, Twin};

use crate::curves::{curve, made};
use crate::found;

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

/// Tests the same with a machine that reports CHARGE and DROP itself: the curve makes no mark, and the
/// roast is shown until the machine may have reported its DROP a little late.
#[test]
fn a_roast_that_began_before_is_shown_for_a_machine_that_reports_its_events() {
    let steady = curve(660.0, 0.0);
    let cooling = |s: f64| 30.0 + (steady(660.0) - 30.0) * (-(s - 660.0) / 150.0).exp();
    let all = made(900, |s| if s <= 660.0 { steady(s) } else { cooling(s) });
    for begin_s in [62, 75, 95, 130, 200, 400] {
        let mut tracker = Tracker::new(MachineModel::default()).without_end_detection();
        for sample in &all.since(begin_s * 1000).samples {
            let changes = tracker.push(sample);
            assert!(changes.is_empty(), "{begin_s} s: {changes:?}");
            if [600_000, 675_000].contains(&sample.t_ms) {
                let charge_ms = tracker.begun_before_ms();
                let charge_ms = charge_ms.unwrap_or_else(|| panic!("{begin_s} s: not shown"));
                let plausible = begin_s * 1000 - 600_000..=begin_s * 1000;
                assert!(plausible.contains(&charge_ms), "{begin_s} s: CHARGE at {charge_ms} ms");
            }
        }
        assert_eq!(tracker.begun_before_ms(), None, "{begin_s} s: the fall has shown its end");
        assert!(tracker.report_event(EventKind::Charge, 900_000, None), "{begin_s} s");
        assert_eq!(tracker.charge_ms(), Some(900_000), "{begin_s} s");
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
fn a_drum_that_only_warms_up_is_not_a_charge() {
    // A start at 58 °C without a dip; and a slow cooling between batches that turns to warming.
    assert!(found(&made(600, |s| 58.0 + s * 0.25)).is_none());
    let between = |s: f64| if s < 300.0 { 200.0 - s * 0.15 } else { 155.0 + (s - 300.0) * 0.1 };
    assert!(found(&made(700, between)).is_none());
}
