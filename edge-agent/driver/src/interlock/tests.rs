//! Which writes the interlock allows and which it refuses.

use std::sync::Arc;

use super::timing::HOUR_MS;
use super::*;

/// Returns the interlock of a Probatone 7 with a bring-up record: burner (0), air (1), drum (2).
fn interlock(more: &str) -> Interlock {
    let entry = firmware_profiles::shipped("probat.probatone.modbus-7in").unwrap();
    let text = entry.text.replace(
        "verified = false\nwrites = \"disabled\"",
        "verified = true\nwrites = \"enabled\"\n\
         bring_up = { by = [\"A\", \"B\"], on = \"2026-11-22\", record = \"binder 7\" }",
    );
    let profile = firmware_profiles::check(&format!("{text}\n{more}")).unwrap().profile;
    Interlock::new(Arc::new(profile))
}

fn seen(interlock: &mut Interlock, at_ms: u64, values: &[(&str, f64)]) {
    let usual =
        [("btC", 150.0), ("etC", 200.0), ("gasPct", 40.0), ("fanPct", 60.0), ("drumPct", 70.0)];
    let all = usual.iter().chain(values).map(|(name, value)| ((*name).to_owned(), *value));
    interlock.observe(MachineSnapshot {
        at_ms: Some(at_ms),
        values: all.collect(),
        ..MachineSnapshot::default()
    });
}

/// Starts a write and completes it with the machine's confirmation.
fn done(interlock: &mut Interlock, wanted: Command, now_ms: u64) -> Result<(), WriteError> {
    interlock.start(wanted, now_ms)?;
    interlock.complete(wanted, &Ok(()), now_ms);
    Ok(())
}

const BURNER: usize = 0;
const AIR: usize = 1;
const DRUM: usize = 2;

fn burner(value: f64) -> Command {
    Command::Set(BURNER, value)
}

#[test]
fn a_shipped_profile_allows_no_writes() {
    for entry in firmware_profiles::SHIPPED {
        let profile = firmware_profiles::check(entry.text).unwrap().profile;
        let controls = profile.controls.len();
        let interlock = Interlock::new(Arc::new(profile));
        for at in 0..controls {
            for wanted in [Command::Set(at, 0.0), Command::Apply(at), Command::ReleaseToLocal(at)] {
                assert_eq!(interlock.evaluate(wanted, 0), Err(WriteError::Disabled));
            }
        }
    }
}

#[test]
fn a_required_derived_channel_must_have_a_value() {
    let mut interlock = interlock(
        "[[derived]]\nname = \"beanC\"\nunit = \"C\"\nrequired = true\n\
         terms = [{ channel = \"btC\", factor = 1 }]",
    );
    seen(&mut interlock, 1_000, &[]);
    let missing = Err(WriteError::ReadingsUnreliable("beanC has no value".to_owned()));
    assert_eq!(interlock.evaluate(burner(60.0), 1_000), missing);
    seen(&mut interlock, 1_000, &[("beanC", 150.0)]);
    assert_eq!(interlock.evaluate(burner(60.0), 1_000), Ok(false));
}

#[test]
fn raising_heat_is_limited_in_step_and_interval_and_reducing_it_is_not() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[]);
    let step = interlock.evaluate(burner(70.0), 1_000).unwrap_err();
    assert_eq!(step, WriteError::StepTooLarge { control: "burner".into(), step: 30.0, most: 20.0 });
    assert_eq!(done(&mut interlock, burner(60.0), 1_000), Ok(()));
    seen(&mut interlock, 2_000, &[("gasPct", 60.0)]);
    let soon = interlock.evaluate(burner(65.0), 2_000).unwrap_err();
    assert_eq!(soon, WriteError::TooSoon { control: "burner".into(), wait_ms: 1_000 });
    assert_eq!(interlock.evaluate(burner(5.0), 2_000), Ok(true), "no limit on step or interval");
    let range = interlock.evaluate(burner(101.0), 9_000);
    assert!(matches!(range, Err(WriteError::OutOfRange { .. })), "{range:?}");
    assert!(matches!(
        interlock.evaluate(burner(f64::NAN), 9_000),
        Err(WriteError::OutOfRange { .. })
    ));
    Arc::make_mut(&mut interlock.profile).controls[BURNER].max_step = Some(80.0);
    seen(&mut interlock, 9_000, &[("gasPct", 60.0)]);
    let most = interlock.evaluate(burner(81.0), 9_000).unwrap_err();
    assert!(
        matches!(most, WriteError::StepTooLarge { most: 20.0, .. }),
        "a fifth of its range: {most}"
    );
}

#[test]
fn an_outdated_readback_does_not_make_a_raise_a_reduction() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[("gasPct", 60.0)]);
    assert_eq!(done(&mut interlock, burner(0.0), 1_100), Ok(()));
    // The machine still shows 60: setting 60 again is a raise from the written 0.
    for more in [60.0, 15.0] {
        assert!(matches!(interlock.evaluate(burner(more), 1_200), Err(WriteError::TooSoon { .. })));
    }
    seen(&mut interlock, 4_000, &[("gasPct", 60.0)]);
    assert!(matches!(
        interlock.evaluate(burner(60.0), 4_000),
        Err(WriteError::StepTooLarge { .. })
    ));
    assert_eq!(interlock.evaluate(burner(15.0), 4_000), Ok(false), "a step from 0");
    // No fresh reading: only 0 is allowed, whatever was written or read before.
    assert!(matches!(
        interlock.evaluate(burner(10.0), 8_000),
        Err(WriteError::ReadingsUnreliable(_))
    ));
    assert_eq!(interlock.evaluate(burner(0.0), 8_000), Ok(true));
    // A value with a quality flag is not used as readback.
    interlock.observe(MachineSnapshot {
        at_ms: Some(9_000),
        quality_flags: [("gasPct".to_owned(), Quality::Range)].into(),
        values: [("btC".to_owned(), 150.0)].into(),
        ..MachineSnapshot::default()
    });
    assert!(matches!(
        interlock.evaluate(burner(10.0), 9_000),
        Err(WriteError::ReadingsUnreliable(_))
    ));
}

#[test]
fn a_value_below_the_last_written_one_ignores_the_minimum_interval() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[]);
    assert_eq!(done(&mut interlock, burner(60.0), 1_000), Ok(()));
    assert_eq!(interlock.evaluate(burner(50.0), 1_200), Ok(false), "readback 40, written 60");
    assert_eq!(interlock.evaluate(burner(39.0), 1_200), Ok(true));
}

#[test]
fn a_machine_that_does_not_follow_accepts_only_less_heat() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[]);
    assert_eq!(done(&mut interlock, burner(50.0), 1_000), Ok(()));
    seen(&mut interlock, 11_500, &[]);
    assert_eq!(
        interlock.evaluate(burner(45.0), 11_500),
        Err(WriteError::NotFollowed("burner".into()))
    );
    assert_eq!(done(&mut interlock, burner(30.0), 11_500), Ok(()));
    seen(&mut interlock, 14_000, &[("gasPct", 30.0)]);
    assert_eq!(
        interlock.evaluate(burner(45.0), 14_000),
        Ok(false),
        "the machine followed that write"
    );
    // A write that was never sent does not count as written.
    interlock.start(burner(45.0), 14_000).unwrap();
    interlock.complete(burner(45.0), &Err(WriteError::NotSent("no way".into())), 14_000);
    seen(&mut interlock, 30_000, &[("gasPct", 30.0)]);
    assert_eq!(interlock.evaluate(burner(45.0), 30_000), Ok(false));
}

#[test]
fn more_heat_requires_drum_air_and_reliable_readings() {
    let mut interlock = interlock("");
    for (values, problem) in [
        (("drumPct", 10.0), "burner needs drumPct >= 40"),
        (("fanPct", 10.0), "burner needs fanPct >= 25"),
        (("btC", 236.0), "btC is at the profile's limit of 235 °C"),
    ] {
        seen(&mut interlock, 1_000, &[values]);
        for wanted in [burner(50.0), Command::ReleaseToLocal(BURNER)] {
            let told = interlock.evaluate(wanted, 1_000).unwrap_err().to_string();
            assert!(told.contains(problem), "{told}");
        }
    }
    seen(&mut interlock, 1_000, &[]);
    interlock.snapshot.quality_flags.insert("btC".into(), Quality::Spike);
    let told = interlock.evaluate(burner(50.0), 1_000).unwrap_err().to_string();
    assert!(told.contains("btC is a spike"), "{told}");
    seen(&mut interlock, 1_000, &[]);
    let old = interlock.evaluate(burner(50.0), 5_000);
    assert!(matches!(old, Err(WriteError::ReadingsUnreliable(_))), "the reading is stale");
    assert_eq!(interlock.evaluate(burner(50.0), 3_000), Ok(false));
}

#[test]
fn an_apply_that_is_no_longer_allowed_is_refused() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[]);
    assert_eq!(
        interlock.evaluate(Command::Apply(BURNER), 1_000),
        Err(WriteError::NoSuchControl),
        "nothing to apply"
    );
    assert_eq!(done(&mut interlock, burner(50.0), 1_000), Ok(()));
    seen(&mut interlock, 2_000, &[("drumPct", 0.0)]);
    assert!(matches!(
        interlock.evaluate(Command::Apply(BURNER), 2_000),
        Err(WriteError::NeedNotMet { .. })
    ));
    assert_eq!(done(&mut interlock, burner(0.0), 2_000), Ok(()));
    assert_eq!(done(&mut interlock, Command::Apply(BURNER), 2_100), Ok(()));
    assert_eq!(
        interlock.evaluate(Command::Apply(BURNER), 2_200),
        Err(WriteError::NoSuchControl),
        "only once"
    );
    // The machine may have refused the write: the value staged there may come from another client.
    interlock.start(burner(0.0), 3_000).unwrap();
    interlock.complete(burner(0.0), &Err(WriteError::Unconfirmed("no".into())), 3_000);
    assert_eq!(interlock.evaluate(Command::Apply(BURNER), 3_100), Err(WriteError::NoSuchControl));
}

#[test]
fn air_and_drum_are_not_reduced_below_the_needs_of_a_lit_burner() {
    let mut interlock = interlock("forbid = [\"drum=55 while btC > 100\"]");
    for at in [AIR, DRUM] {
        Arc::make_mut(&mut interlock.profile).controls[at].range = Some([0.0, 100.0]);
    }
    let bound = [("fanPct", 30.0), ("drumPct", 45.0)];
    seen(&mut interlock, 1_000, &bound);
    for (at, low, need) in [(AIR, 20.0, "fanPct >= 25"), (DRUM, 38.0, "drumPct >= 40")] {
        let told = interlock.evaluate(Command::Set(at, low), 1_000).unwrap_err();
        assert_eq!(told, WriteError::NeedNotMet { control: "burner".into(), need: need.into() });
    }
    seen(&mut interlock, 1_000, &[bound[0], bound[1], ("gasPct", 0.0)]);
    assert_eq!(interlock.evaluate(Command::Set(AIR, 20.0), 1_000), Ok(false), "the burner is off");
    seen(&mut interlock, 1_000, &[("fanPct", 5.0)]);
    assert_eq!(
        interlock.evaluate(Command::Set(AIR, 15.0), 1_000),
        Ok(false),
        "more air is allowed"
    );

    seen(&mut interlock, 1_000, &[("drumPct", 60.0)]);
    let told = interlock.evaluate(Command::Set(DRUM, 55.0), 1_000).unwrap_err();
    assert_eq!(told, WriteError::Forbidden("drum=55 while btC > 100".into()));
    for stopped in [0.0, 0.5] {
        let told = interlock.evaluate(Command::Set(DRUM, stopped), 1_000).unwrap_err();
        assert!(matches!(told, WriteError::Forbidden(_)), "{told}");
    }
    interlock.observe(MachineSnapshot::default());
    let told = interlock.evaluate(Command::Set(DRUM, 0.0), 1_000).unwrap_err();
    assert!(matches!(told, WriteError::Forbidden(_)), "temperature unknown: {told}");
    seen(&mut interlock, 1_000, &[("btC", 30.0), ("drumPct", 5.0), ("gasPct", 0.0)]);
    assert_eq!(interlock.evaluate(Command::Set(DRUM, 0.0), 1_000), Ok(false));
}

#[test]
fn the_hourly_write_limit_does_not_block_reducing_heat() {
    let mut interlock = interlock("[limits]\nwrites_per_hour_max = 3");
    for i in 0..3 {
        seen(&mut interlock, i * 10_000, &[]);
        done(&mut interlock, burner(40.0), i * 10_000).unwrap();
    }
    seen(&mut interlock, 40_000, &[]);
    assert_eq!(interlock.evaluate(burner(40.0), 40_000), Err(WriteError::WriteBudgetSpent(3)));
    assert_eq!(
        interlock.evaluate(Command::ReleaseToLocal(AIR), 40_000),
        Err(WriteError::WriteBudgetSpent(3))
    );
    assert_eq!(done(&mut interlock, burner(0.0), 40_000), Ok(()));
    assert_eq!(done(&mut interlock, Command::Apply(BURNER), 40_500), Ok(()));
    seen(&mut interlock, HOUR_MS + 30_000, &[("gasPct", 0.0)]);
    assert_eq!(interlock.evaluate(burner(5.0), HOUR_MS + 30_000), Ok(false), "an hour later");
}

#[test]
fn unconfirmed_writes_count_as_possible_values() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[("gasPct", 60.0)]);
    assert_eq!(done(&mut interlock, burner(0.0), 1_000), Ok(()));
    seen(&mut interlock, 3_500, &[("gasPct", 60.0)]);
    assert_eq!(done(&mut interlock, burner(15.0), 3_500), Ok(()));
    // Readback 60, written 0 and 15: 10 may be more than the current value.
    assert_eq!(
        interlock.evaluate(burner(10.0), 3_600),
        Ok(false),
        "not a reduction, but below the last write"
    );
    // Repeated writes do not extend the time that the machine has to follow.
    seen(&mut interlock, 12_000, &[("gasPct", 60.0)]);
    assert_eq!(
        interlock.evaluate(burner(15.0), 12_000),
        Err(WriteError::NotFollowed("burner".into()))
    );
}

#[test]
fn an_unconfirmed_reduction_of_air_does_not_satisfy_the_need_of_the_burner() {
    let mut interlock = interlock("");
    Arc::make_mut(&mut interlock.profile).controls[AIR].range = Some([0.0, 100.0]);
    let off = [("gasPct", 0.0), ("fanPct", 35.0)];
    seen(&mut interlock, 1_000, &off);
    assert_eq!(done(&mut interlock, Command::Set(AIR, 15.0), 1_000), Ok(()));
    let told = interlock.evaluate(burner(20.0), 1_100).unwrap_err();
    assert_eq!(
        told,
        WriteError::NeedNotMet { control: "burner".into(), need: "fanPct >= 25".into() }
    );
    seen(&mut interlock, 2_000, &[("gasPct", 0.0), ("fanPct", 15.0)]);
    assert_eq!(
        done(&mut interlock, Command::Set(AIR, 35.0), 3_100),
        Ok(()),
        "{:?}",
        interlock.controls[AIR]
    );
}

#[test]
fn a_forbid_rule_on_the_burner_does_not_block_reducing_it() {
    let mut interlock = interlock("forbid = [\"burner while btC > 230\"]");
    seen(&mut interlock, 1_000, &[("btC", 232.0)]);
    assert!(matches!(interlock.evaluate(burner(45.0), 1_000), Err(WriteError::Forbidden(_))));
    assert_eq!(interlock.evaluate(burner(20.0), 1_000), Ok(true));
    interlock.observe(MachineSnapshot::default());
    assert_eq!(interlock.evaluate(burner(0.0), 1_000), Ok(true));
}

#[test]
fn the_value_of_a_released_control_is_known_only_from_a_later_reading() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[("gasPct", 60.0)]);
    assert_eq!(done(&mut interlock, Command::ReleaseToLocal(BURNER), 1_000), Ok(()));
    let told = interlock.evaluate(burner(50.0), 3_500).unwrap_err();
    assert!(
        matches!(told, WriteError::ReadingsUnreliable(_)),
        "the readback of 60 precedes the release: {told}"
    );
    assert_eq!(interlock.evaluate(burner(0.0), 3_500), Ok(true));
    seen(&mut interlock, 3_600, &[("gasPct", 30.0)]);
    assert_eq!(interlock.evaluate(burner(45.0), 3_600), Ok(false));
}

#[test]
fn a_value_staged_as_a_reduction_is_not_applied_as_a_raise() {
    let mut interlock = interlock("");
    seen(&mut interlock, 1_000, &[("gasPct", 60.0)]);
    assert_eq!(done(&mut interlock, burner(30.0), 1_000), Ok(()));
    // Meanwhile an operator has turned the burner off at the panel.
    seen(&mut interlock, 9_000, &[("gasPct", 0.0)]);
    assert!(matches!(
        interlock.evaluate(Command::Apply(BURNER), 9_000),
        Err(WriteError::StepTooLarge { .. })
    ));
}
