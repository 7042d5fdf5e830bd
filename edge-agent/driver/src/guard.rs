//! What may be moved, how far and how often: the machine's own profile decides, by what was read of
//! the machine last. Pure; the clock is passed in.
//!
//! Less heat is never kept waiting: whoever takes heat away is not asked how much, how soon, or
//! whether the machine can be read.

use std::collections::{BTreeMap, VecDeque};

use contract::Quality;
use firmware_profiles::condition::{Condition, Forbidden, Operator};
use firmware_profiles::{Control, Profile, Remote, Role, Writes};

/// What was read before that says nothing of what the machine does now, ms.
const FRESH_MS: u64 = 3_000;
/// A value that was written is applied at once or not at all, ms.
const APPLY_WITHIN_MS: u64 = 10_000;
const HOUR_MS: u64 = 3_600_000;

/// Why something is not moved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("the profile lets nothing be written to this machine")]
    Disabled,
    #[error("the profile has no control that is written so")]
    Unknown,
    #[error("{0} is moved at the machine alone")]
    Local(String),
    #[error("{control} goes from {low} to {high}, not to {value}")]
    Range { control: String, value: f64, low: f64, high: f64 },
    #[error("{control} moves by at most {most} at once, not by {step}")]
    Step { control: String, step: f64, most: f64 },
    #[error("{control} was moved just now; the next step is due in {wait_ms} ms")]
    Soon { control: String, wait_ms: u64 },
    #[error("{0} values were written within the hour, and the profile allows no more")]
    Worn(u32),
    #[error("{control} needs {need}, which does not hold or is not known")]
    Needs { control: String, need: String },
    #[error("the profile forbids {0}")]
    Forbidden(String),
    #[error("the machine is not read soundly: {0}")]
    Unsound(String),
    /// More is asked for than is looked at, or it waited too long.
    #[error("the machine is busy")]
    Busy,
    /// It was written, or may have been, and the machine did not say that it took it.
    #[error("the machine did not confirm it: {0}")]
    Unconfirmed(String),
}

/// What somebody would do with a control, by its place in the profile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Move {
    /// To a value, in the control's unit.
    To(usize, f64),
    /// The write by which the machine takes the value that was written before.
    Apply(usize),
    /// Back to the machine's own regulation.
    HandBack(usize),
}

impl Move {
    const fn control(self) -> usize {
        match self {
            Self::To(at, _) | Self::Apply(at) | Self::HandBack(at) => at,
        }
    }
}

/// What was read of the machine last.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    pub at_ms: Option<u64>,
    /// By the profile's names: °C, %, ….
    pub values: BTreeMap<String, f64>,
    pub remarks: BTreeMap<String, Quality>,
    pub states: BTreeMap<String, bool>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    at_ms: Option<u64>,
    /// `None` when it is not known whether the machine took it.
    value: Option<f64>,
}

/// Watches over one machine's controls.
#[derive(Debug)]
pub struct Guard {
    profile: Profile,
    moved: Vec<Moved>,
    written_ms: VecDeque<u64>,
    pub known: Known,
}

impl Guard {
    pub fn new(profile: Profile) -> Self {
        let moved = vec![Moved::default(); profile.controls.len()];
        Self { profile, moved, written_ms: VecDeque::new(), known: Known::default() }
    }

    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Lets it happen, and remembers that it did; or says why not.
    ///
    /// # Errors
    /// The first rule that speaks against it.
    pub fn allow(&mut self, wanted: Move, now_ms: u64) -> Result<(), Refused> {
        let at = wanted.control();
        let control = self.profile.controls.get(at).ok_or(Refused::Unknown)?;
        if self.profile.machine.writes == Writes::Disabled {
            return Err(Refused::Disabled);
        }
        if control.remote == Remote::Never {
            return Err(Refused::Local(control.name.clone()));
        }
        match wanted {
            Move::To(_, value) => {
                range(control, value)?;
                self.forbidden(control, value, now_ms)?;
                if !self.cuts_heat(at, value, now_ms) {
                    self.rested(at, now_ms)?;
                    self.sound(now_ms)?;
                    self.step(at, value, now_ms)?;
                    self.needed(control, now_ms)?;
                    self.count(now_ms)?;
                }
                self.moved[at] = Moved { at_ms: Some(now_ms), value: Some(value) };
            }
            // What it applies was allowed; less heat must not fail for the want of it.
            Move::Apply(_) => {
                let passed = self.moved[at].at_ms.map(|then| now_ms.saturating_sub(then));
                if passed.is_none_or(|passed| passed > APPLY_WITHIN_MS) {
                    return Err(Refused::Unknown);
                }
            }
            Move::HandBack(_) => self.moved[at] = Moved { at_ms: Some(now_ms), value: None },
        }
        Ok(())
    }

    /// The machine did not confirm what was allowed: where it stands is not known from us.
    pub fn unconfirmed(&mut self, wanted: Move) {
        if let Some(moved) = self.moved.get_mut(wanted.control()) {
            moved.value = None;
        }
    }

    /// What is known now, if it was read of late.
    fn fresh(&self, now_ms: u64) -> Option<&Known> {
        let fresh = self.known.at_ms.is_some_and(|at| now_ms.saturating_sub(at) <= FRESH_MS);
        fresh.then_some(&self.known)
    }

    /// Where a control stands: as the machine shows it, or as it was moved last.
    fn stands(&self, at: usize, now_ms: u64) -> Option<f64> {
        let shown = self.profile.controls[at].readback.as_ref().and_then(|channel| {
            self.fresh(now_ms).and_then(|known| known.values.get(channel).copied())
        });
        shown.or(self.moved[at].value)
    }

    /// Less heat than now; where now is not known, the least there is.
    fn cuts_heat(&self, at: usize, value: f64, now_ms: u64) -> bool {
        let control = &self.profile.controls[at];
        let least = control.range.is_some_and(|[low, _]| value <= low);
        let less = self.stands(at, now_ms).is_some_and(|stands| value <= stands);
        control.role.heats() && (least || less)
    }

    fn rested(&self, at: usize, now_ms: u64) -> Result<(), Refused> {
        let control = &self.profile.controls[at];
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds, by the linter
        let least = (control.min_interval_s.unwrap_or(0.0) * 1000.0) as u64;
        let passed = self.moved[at].at_ms.map_or(u64::MAX, |then| now_ms.saturating_sub(then));
        if passed < least {
            let (control, wait_ms) = (control.name.clone(), least - passed);
            return Err(Refused::Soon { control, wait_ms });
        }
        Ok(())
    }

    fn step(&self, at: usize, value: f64, now_ms: u64) -> Result<(), Refused> {
        let control = &self.profile.controls[at];
        let Some(most) = control.max_step else { return Ok(()) };
        let stands = self.stands(at, now_ms).ok_or_else(|| {
            Refused::Unsound(format!("nothing tells where {} stands", control.name))
        })?;
        let step = (value - stands).abs();
        if step > most + 1e-9 {
            return Err(Refused::Step { control: control.name.clone(), step, most });
        }
        Ok(())
    }

    /// The machine is read, each channel that is required is right, and none is too hot.
    fn sound(&self, now_ms: u64) -> Result<(), Refused> {
        let unsound = |problem: String| Err(Refused::Unsound(problem));
        let Some(known) = self.fresh(now_ms) else {
            return unsound(format!("not within {} s", FRESH_MS / 1000));
        };
        for channel in self.profile.channels.iter().filter(|channel| channel.required) {
            if !known.values.contains_key(&channel.name) {
                return unsound(format!("{} has no value", channel.name));
            }
            if let Some(remark) = known.remarks.get(&channel.name) {
                return unsound(format!("{} is {}", channel.name, word(*remark)));
            }
        }
        let limits = &self.profile.limits;
        for (channel, most) in [("btC", limits.bt_max_c), ("etC", limits.et_max_c)] {
            if known.values.get(channel).is_some_and(|value| *value >= most) {
                return unsound(format!("{channel} is at the profile's limit of {most} °C"));
            }
        }
        Ok(())
    }

    fn needed(&self, control: &Control, now_ms: u64) -> Result<(), Refused> {
        let unmet = control.needs.iter().find(|need| {
            Condition::parse(need).and_then(|need| self.holds(&need, now_ms)) != Some(true)
        });
        let refused = |need: &String| {
            Err(Refused::Needs { control: control.name.clone(), need: need.clone() })
        };
        unmet.map_or(Ok(()), refused)
    }

    /// What is forbidden while something holds is forbidden too while that is not known.
    fn forbidden(&self, control: &Control, value: f64, now_ms: u64) -> Result<(), Refused> {
        for text in self.profile.safe_state.iter().flat_map(|safe| &safe.forbid) {
            let Some(rule) = Forbidden::parse(text).filter(|r| r.control == control.name) else {
                continue;
            };
            let meant = rule.value.is_none_or(|forbidden| (forbidden - value).abs() < 1e-9);
            let holds = rule.while_.as_ref().is_none_or(|w| self.holds(w, now_ms) != Some(false));
            if meant && holds {
                return Err(Refused::Forbidden(text.clone()));
            }
        }
        let stops = control.role == Role::Drum && value <= 0.0;
        let most = self.profile.limits.drum_stop_below_c;
        let bt_c = self.fresh(now_ms).and_then(|known| known.values.get("btC"));
        if stops && bt_c.is_none_or(|bt_c| *bt_c > most) {
            let rule = format!("{}=0 unless the beans are below {most} °C", control.name);
            return Err(Refused::Forbidden(rule));
        }
        Ok(())
    }

    fn holds(&self, condition: &Condition, now_ms: u64) -> Option<bool> {
        let known = self.fresh(now_ms)?;
        match condition {
            Condition::State(name) => known.states.get(name).copied(),
            Condition::Compare { channel, operator, value } => {
                let shown = known.values.get(channel)?;
                Some(match operator {
                    Operator::Less => shown < value,
                    Operator::AtMost => shown <= value,
                    Operator::AtLeast => shown >= value,
                    Operator::More => shown > value,
                })
            }
        }
    }

    /// Some panels keep what is written in a memory that wears.
    fn count(&mut self, now_ms: u64) -> Result<(), Refused> {
        while self.written_ms.front().is_some_and(|at| now_ms.saturating_sub(*at) >= HOUR_MS) {
            self.written_ms.pop_front();
        }
        let most = self.profile.limits.writes_per_hour_max;
        if self.written_ms.len() >= most as usize {
            return Err(Refused::Worn(most));
        }
        self.written_ms.push_back(now_ms);
        Ok(())
    }
}

const fn word(remark: Quality) -> &'static str {
    match remark {
        Quality::Range => "outside what it can be",
        Quality::Spike => "a spike",
        Quality::Stale => "an old value",
        Quality::UnitSuspect => "in a unit that is in doubt",
    }
}

fn range(control: &Control, value: f64) -> Result<(), Refused> {
    let [low, high] = control.range.unwrap_or([0.0, 1.0]);
    if !(low - 1e-9..=high + 1e-9).contains(&value) {
        return Err(Refused::Range { control: control.name.clone(), value, low, high });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probatone 7 with a bring-up record: burner (0), air (1), drum (2).
    fn guard(more: &str) -> Guard {
        let entry = firmware_profiles::shipped("probat.probatone.modbus-7in").unwrap();
        let text = entry.text.replace(
            "verified = false\nwrites = \"disabled\"",
            "verified = true\nwrites = \"enabled\"\n\
             bring_up = { by = [\"A\", \"B\"], on = \"2026-11-22\", record = \"binder 7\" }",
        );
        let profile = firmware_profiles::check(&format!("{text}\n{more}")).unwrap().profile;
        Guard::new(profile)
    }

    fn seen(guard: &mut Guard, at_ms: u64, values: &[(&str, f64)]) {
        let usual = [("btC", 150.0), ("gasPct", 40.0), ("fanPct", 60.0), ("drumPct", 70.0)];
        let all = usual.iter().chain(values).map(|(name, value)| ((*name).to_owned(), *value));
        guard.known = Known { at_ms: Some(at_ms), values: all.collect(), ..Known::default() };
    }

    const BURNER: usize = 0;
    const DRUM: usize = 2;

    #[test]
    fn a_profile_as_it_is_shipped_moves_nothing() {
        for entry in firmware_profiles::SHIPPED {
            let profile = firmware_profiles::check(entry.text).unwrap().profile;
            let controls = profile.controls.len();
            let mut guard = Guard::new(profile);
            for at in 0..controls {
                assert_eq!(guard.allow(Move::To(at, 0.0), 0), Err(Refused::Disabled));
            }
        }
    }

    #[test]
    fn heat_is_raised_by_small_steps_with_time_between_them_and_cut_at_once() {
        let mut guard = guard("");
        seen(&mut guard, 1_000, &[]);
        let step = guard.allow(Move::To(BURNER, 70.0), 1_000).unwrap_err();
        assert_eq!(step, Refused::Step { control: "burner".into(), step: 30.0, most: 20.0 });
        assert_eq!(guard.allow(Move::To(BURNER, 60.0), 1_000), Ok(()));
        seen(&mut guard, 2_000, &[("gasPct", 60.0)]);
        let soon = guard.allow(Move::To(BURNER, 65.0), 2_000).unwrap_err();
        assert_eq!(soon, Refused::Soon { control: "burner".into(), wait_ms: 1_000 });
        assert_eq!(guard.allow(Move::To(BURNER, 5.0), 2_000), Ok(()), "all at once, at any time");
        // The machine is not read, and where the burner stands is not known.
        guard.known = Known::default();
        guard.unconfirmed(Move::To(BURNER, 5.0));
        assert_eq!(guard.allow(Move::To(BURNER, 0.0), 3_000), Ok(()));
        assert!(matches!(guard.allow(Move::To(BURNER, 1.0), 9_000), Err(Refused::Unsound(_))));
        let range = guard.allow(Move::To(BURNER, 101.0), 9_000);
        assert!(matches!(range, Err(Refused::Range { .. })), "{range:?}");
        assert!(matches!(
            guard.allow(Move::To(BURNER, f64::NAN), 9_000),
            Err(Refused::Range { .. })
        ));
    }

    #[test]
    fn more_heat_needs_a_machine_that_turns_moves_air_and_is_read_soundly() {
        let mut guard = guard("");
        let up = Move::To(BURNER, 50.0);
        for (values, problem) in [
            (("drumPct", 10.0), "burner needs drumPct >= 40"),
            (("fanPct", 10.0), "burner needs fanPct >= 25"),
            (("btC", 236.0), "btC is at the profile's limit of 235 °C"),
        ] {
            seen(&mut guard, 1_000, &[values]);
            let told = guard.allow(up, 1_000).unwrap_err().to_string();
            assert!(told.contains(problem), "{told}");
        }
        seen(&mut guard, 1_000, &[]);
        guard.known.remarks.insert("btC".into(), Quality::Spike);
        let told = guard.allow(up, 1_000).unwrap_err().to_string();
        assert!(told.contains("btC is a spike"), "{told}");
        seen(&mut guard, 1_000, &[]);
        assert!(matches!(guard.allow(up, 5_000), Err(Refused::Unsound(_))), "read too long ago");
        assert_eq!(guard.allow(up, 3_000), Ok(()));
    }

    #[test]
    fn a_drum_turns_while_beans_are_hot() {
        let mut guard = guard("forbid = [\"drum=55 while btC > 100\"]");
        seen(&mut guard, 1_000, &[("drumPct", 60.0)]);
        let told = guard.allow(Move::To(DRUM, 55.0), 1_000).unwrap_err();
        assert_eq!(told, Refused::Forbidden("drum=55 while btC > 100".into()));
        guard.profile.controls[DRUM].range = Some([0.0, 100.0]);
        let told = guard.allow(Move::To(DRUM, 0.0), 1_000).unwrap_err();
        assert!(matches!(told, Refused::Forbidden(_)), "{told}");
        guard.known = Known::default();
        let told = guard.allow(Move::To(DRUM, 0.0), 1_000).unwrap_err();
        assert!(matches!(told, Refused::Forbidden(_)), "not known to be cold: {told}");
        seen(&mut guard, 1_000, &[("btC", 30.0), ("drumPct", 5.0)]);
        assert_eq!(guard.allow(Move::To(DRUM, 0.0), 1_000), Ok(()));
    }

    #[test]
    fn writes_are_counted_by_the_hour_and_what_cuts_heat_is_not_held_back() {
        let mut guard = guard("[limits]\nwrites_per_hour_max = 3");
        for i in 0..3 {
            seen(&mut guard, i * 10_000, &[]);
            guard.allow(Move::To(BURNER, 45.0), i * 10_000).unwrap();
        }
        seen(&mut guard, 40_000, &[]);
        assert_eq!(guard.allow(Move::To(BURNER, 45.0), 40_000), Err(Refused::Worn(3)));
        assert_eq!(guard.allow(Move::Apply(BURNER), 40_000), Err(Refused::Unknown));
        assert_eq!(guard.allow(Move::To(BURNER, 0.0), 40_000), Ok(()));
        assert_eq!(guard.allow(Move::Apply(BURNER), 40_500), Ok(()));
        seen(&mut guard, HOUR_MS, &[]);
        assert_eq!(guard.allow(Move::To(BURNER, 45.0), HOUR_MS), Ok(()), "an hour later");
    }
}
