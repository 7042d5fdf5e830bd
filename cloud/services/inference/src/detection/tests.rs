//! Tests what is detected from points and told to machines.

use super::*;
use contract::MachineId;
use roast::twin::{PRESETS, Twin};

const NOW: EpochMs = EpochMs(1_760_000_000_000);

fn origin() -> Origin {
    "org/s/m".parse().unwrap()
}

fn point(t_s: i64, bt_c: f64, et_c: f64) -> TelemetryPoint {
    serde_json::from_value(json!({
        "ts": NOW.plus_ms(t_s * 1000), "machineId": MachineId::new("m").unwrap(),
        "elapsedSeconds": t_s, "btC": bt_c, "etC": et_c,
    }))
    .unwrap()
}

/// Follows a twin's first roast from its CHARGE for `seconds`; returns the events that became
/// due.
fn followed(settings: Settings, seconds: i64, speaks_at: Option<i64>) -> Vec<RoastEvent> {
    let mut twin = Twin::new(PRESETS[0], 5, 0);
    while !twin.advance(100).contains(&EventKind::Charge) {}
    let mut all = MachineTracker::new(10);
    let mut told = Vec::new();
    for s in 0..seconds {
        let r = twin.reading();
        let now = NOW.plus_ms(s * 1000);
        all.push_point(&origin(), &point(s, r.bt_c, r.et_c), settings, now);
        if speaks_at == Some(s) {
            let own: RoastEvent =
                serde_json::from_value(json!({"ts": now, "machineId": "m", "type": "NOTE"}))
                    .unwrap();
            all.observe_event(&origin(), &own, now);
        }
        told.extend(all.take_due(now).into_iter().map(|(_, event)| event));
        twin.advance(1_000);
    }
    told
}

#[test]
fn a_machine_that_is_forgotten_is_followed_anew() {
    let mut all = MachineTracker::new(1);
    all.push_point(&origin(), &point(0, 150.0, 180.0), Settings::default(), NOW);
    all.forget(&origin());
    all.forget(&origin());
    assert!(all.is_new(&origin()) && all.counts.is_empty());
    all.push_point(&origin(), &point(1, 150.0, 180.0), Settings::default(), NOW);
    assert!(!all.is_new(&origin()));
    assert_eq!(all.counts[&origin().org], 1);
}

#[test]
fn a_machine_without_events_gets_each_inferred_event_once() {
    let told = followed(Settings::default(), 1_200, None);
    let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
    let end = kinds.iter().position(|kind| *kind == EventKind::Drop).unwrap();
    // The next batch is charged a minute after the DROP.
    for roast in [&kinds[..=end], &kinds[end + 1..]] {
        assert_eq!(roast.first(), Some(&EventKind::Charge), "{kinds:?}");
        assert!(roast.contains(&EventKind::Tp), "{kinds:?}");
        let mut once = roast.to_vec();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), roast.len(), "{kinds:?}");
    }
    assert!(told.iter().all(|e| e.payload.as_ref().unwrap()["source"] == EVENT_SOURCE));
}

#[test]
fn no_event_is_inferred_for_a_machine_that_sends_its_own() {
    assert!(followed(Settings::default(), 1_200, Some(3)).is_empty());
}

#[test]
fn a_configured_temperature_marks_first_crack() {
    let settings = Settings {
        fc_bt_threshold_c: Some(150.0),
        min_first_crack_seconds: Some(60.0),
        ..Settings::default()
    };
    let told = followed(settings, 900, None);
    let fc = told.iter().find(|event| event.kind == EventKind::Fc).unwrap();
    let bt = fc.number("btC").unwrap();
    assert!((150.0..152.0).contains(&bt), "{bt}");
}

#[test]
fn silence_is_not_a_drop_and_the_oldest_machine_is_evicted_first() {
    let mut all = MachineTracker::new(1);
    for s in 0..60 {
        all.push_point(
            &origin(),
            &point(s, 180.0, 200.0),
            Settings::default(),
            NOW.plus_ms(s * 1000),
        );
    }
    let told = all.take_due(NOW.plus_ms(3_600_000));
    assert!(told.iter().all(|(_, event)| event.kind != EventKind::Drop), "{told:?}");
    let other: Origin = "org/s/other".parse().unwrap();
    all.push_point(&other, &point(61, 20.0, 20.0), Settings::default(), NOW.plus_ms(61_000));
    assert!(!all.is_new(&origin()) && all.is_new(&other), "in the middle of a roast");
    let later = NOW.plus_ms(3_600_000);
    all.push_point(&other, &point(3_600, 20.0, 20.0), Settings::default(), later);
    assert!(all.is_new(&origin()) && !all.is_new(&other));
}
#[test]
fn one_organisation_cannot_take_the_places_of_all() {
    let mut all = MachineTracker::new(10);
    let push = |all: &mut MachineTracker, origin: String, second: i64| {
        let origin: Origin = origin.parse().unwrap();
        let now = NOW.plus_ms(second * 1000);
        all.push_point(&origin, &point(second, 20.0, 20.0), Settings::default(), now);
    };
    for n in 0..100 {
        push(&mut all, format!("flood/s/m-{n}"), n);
    }
    let count = |all: &MachineTracker, org: &str| {
        all.followed().iter().filter(|origin| origin.org.as_str() == org).count()
    };
    assert_eq!(count(&all, "flood"), 10);
    for n in 0..10 {
        push(&mut all, format!("calm/s/m-{n}"), 100 + n);
    }
    assert_eq!((count(&all, "flood"), count(&all, "calm")), (5, 5), "each has its share");
    push(&mut all, "flood/s/another".to_owned(), 120);
    push(&mut all, "third/s/m-1".to_owned(), 121);
    assert_eq!(count(&all, "third"), 1);
    assert_eq!(count(&all, "flood") + count(&all, "calm"), 9);
}
