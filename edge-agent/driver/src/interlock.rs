//! The safety rules for writes to a machine: which control may be moved, how far and how often. The
//! machine's profile sets the limits; the last reading of the machine decides whether they are met.
//! Pure; the clock is passed in.
//!
//! Reducing heat is always allowed: step size, minimum interval and stale readings do not block it.
//! A value reduces heat when it is below every value that the control may have now: below the
//! readback and, until the readback confirms the last write, below every written value too. When
//! there is no readback, only 0 reduces heat.

mod error;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use contract::Quality;
use firmware_profiles::condition::{Condition, ForbidRule, Operator};
use firmware_profiles::{Control, Profile, Remote, Role, Writes};

pub use error::WriteError;

/// The age at which a reading is stale and no longer describes the machine, ms.
const READING_FRESH_MS: u64 = 3_000;
/// How long after the write of a value its apply write is accepted, ms.
const APPLY_WITHIN_MS: u64 = 10_000;
const HOUR_MS: u64 = 3_600_000;
/// The largest single step of the burner upwards, as a share of its range, in any unit.
const HEAT_STEP_SHARE_MAX: f64 = 0.2;
/// A forbidden value also covers values this close to it, as a share of the control's range.
const FORBIDDEN_TOLERANCE_SHARE: f64 = 0.01;

/// A requested write to a control. The `usize` is the control's index in the profile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Command {
    /// Sets the control to a value, in the control's unit.
    Set(usize, f64),
    /// Applies the value written before: a second write that makes the machine use it.
    Apply(usize),
    /// Returns the control to the machine's own regulation.
    ReleaseToLocal(usize),
}

impl Command {
    pub const fn control(self) -> usize {
        match self {
            Self::Set(at, _) | Self::Apply(at) | Self::ReleaseToLocal(at) => at,
        }
    }
}

/// The last reading of the machine, as the rules use it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MachineSnapshot {
    /// When the reading began, monotonic ms; `None` before the first reading.
    pub at_ms: Option<u64>,
    /// Values by channel name in the profile: °C, %, …. Excludes channels that have a quality flag
    /// and channels derived from those.
    pub values: BTreeMap<String, f64>,
    pub quality_flags: BTreeMap<String, Quality>,
    /// The states that were read in this reading.
    pub states: BTreeMap<String, bool>,
}

/// The writes to one control that the readback has not confirmed yet.
#[derive(Debug, Clone, Copy, Default)]
struct ControlState {
    /// When the last write began.
    at_ms: Option<u64>,
    /// The lowest, highest and last value written: the control may have any value in between.
    unconfirmed: Option<UnconfirmedWrites>,
    /// When the last write ended; a reading that began later shows its effect.
    ended_ms: Option<u64>,
    /// The control was returned to the machine: only a later reading shows its value.
    released: bool,
    /// A written value that waits for its apply write, and the unconfirmed values before it.
    staged: Option<(f64, Option<UnconfirmedWrites>)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct UnconfirmedWrites {
    since_ms: u64,
    low: f64,
    high: f64,
    last: f64,
}

/// Decides whether a write to a control of one machine is allowed.
#[derive(Debug)]
pub struct Interlock {
    profile: Arc<Profile>,
    controls: Vec<ControlState>,
    /// Each control's state before the write in progress, to restore if nothing was sent.
    before_write: Vec<ControlState>,
    written_ms: VecDeque<u64>,
    /// The time that the last counted write pushed out of `written_ms`.
    evicted_ms: Option<u64>,
    snapshot: MachineSnapshot,
}

impl Interlock {
    pub fn new(profile: Arc<Profile>) -> Self {
        let controls = vec![ControlState::default(); profile.controls.len()];
        let before_write = controls.clone();
        Self {
            profile,
            controls,
            before_write,
            written_ms: VecDeque::new(),
            evicted_ms: None,
            snapshot: MachineSnapshot::default(),
        }
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Stores a new reading, and clears the written values that it confirms.
    pub fn observe(&mut self, snapshot: MachineSnapshot) {
        self.snapshot = snapshot;
        let began_ms = self.snapshot.at_ms.unwrap_or(0);
        for at in 0..self.controls.len() {
            let Some(shown) = self.readback(at, began_ms) else { continue };
            let tolerance = self.profile.controls[at].readback_tol.unwrap_or(0.0) + 1e-9;
            let state = &mut self.controls[at];
            if state.ended_ms.is_some_and(|ended| began_ms > ended) {
                state.released = false;
                let there = |writes: &UnconfirmedWrites| (writes.last - shown).abs() <= tolerance;
                state.unconfirmed = state.unconfirmed.filter(|writes| !there(writes));
            }
        }
    }

    /// Checks a write against all rules now. Returns `true` when the write reduces heat, and so
    /// goes before every other waiting write.
    ///
    /// # Errors
    /// The first rule that forbids it.
    pub fn evaluate(&self, command: Command, now_ms: u64) -> Result<bool, WriteError> {
        let at = command.control();
        let control = self.profile.controls.get(at).ok_or(WriteError::NoSuchControl)?;
        if self.profile.machine.writes == Writes::Disabled {
            return Err(WriteError::Disabled);
        }
        // With a set-point the machine's own controller moves the heat, and a mode selects which
        // controller does.
        let writable_role = matches!(control.role, Role::Burner | Role::Air | Role::Drum);
        if control.remote == Remote::Never || !writable_role {
            return Err(WriteError::LocalOnly(control.name.clone()));
        }
        match command {
            Command::Set(_, value) => self.check_set(at, value, now_ms),
            Command::Apply(_) => self.check_apply(at, now_ms),
            // The machine may then choose any value: check for the most heat and the least air.
            Command::ReleaseToLocal(_) => {
                self.check_min_interval(at, now_ms)?;
                self.check_write_budget(now_ms)?;
                self.check_readings(control, now_ms)?;
                self.check_followed(at, now_ms)?;
                self.check_needs(control, now_ms)?;
                let [low, high] = range(control);
                self.check_forbidden(
                    control,
                    if control.role.heats() { high } else { low },
                    now_ms,
                )?;
                if !control.role.heats() {
                    self.check_burner_needs(control, low, now_ms)?;
                }
                Ok(false)
            }
        }
    }

    /// Checks the write again just before it is sent, and records it.
    ///
    /// # Errors
    /// As [`Interlock::evaluate`].
    pub fn start(&mut self, command: Command, now_ms: u64) -> Result<(), WriteError> {
        self.evaluate(command, now_ms)?;
        self.count_write(now_ms);
        let at = command.control();
        let state = &mut self.controls[at];
        self.before_write[at] = *state;
        (state.at_ms, state.ended_ms) = (Some(now_ms), None);
        match command {
            Command::Set(_, value) => {
                state.staged = Some((value, state.unconfirmed));
                let before = state.unconfirmed;
                state.unconfirmed = Some(UnconfirmedWrites {
                    since_ms: before.map_or(now_ms, |writes| writes.since_ms),
                    low: before.map_or(value, |writes| writes.low.min(value)),
                    high: before.map_or(value, |writes| writes.high.max(value)),
                    last: value,
                });
            }
            Command::Apply(_) => state.staged = None,
            Command::ReleaseToLocal(_) => (state.staged, state.released) = (None, true),
        }
        Ok(())
    }

    /// Returns whether a written value of this control waits for its apply write.
    pub fn has_staged(&self, at: usize) -> bool {
        self.controls.get(at).is_some_and(|state| state.staged.is_some())
    }

    /// Records the outcome of a write that [`Interlock::start`] allowed. `mono_ms`: when it ended.
    pub fn complete(&mut self, command: Command, outcome: &Result<(), WriteError>, mono_ms: u64) {
        let at = command.control();
        let Some(state) = self.controls.get_mut(at) else { return };
        state.ended_ms = Some(mono_ms);
        match outcome {
            Ok(()) if matches!(command, Command::ReleaseToLocal(_)) => state.unconfirmed = None,
            Ok(()) => {}
            // Nothing was sent, so nothing has changed.
            Err(WriteError::NotSent(_)) => {
                *state = self.before_write[at];
                self.written_ms.pop_back();
                if let Some(oldest) = self.evicted_ms.take() {
                    self.written_ms.push_front(oldest);
                }
            }
            // The machine may or may not have executed the write, so the staged value there may not
            // be ours: do not apply it.
            Err(_) => state.staged = None,
        }
    }

    /// Checks [`Command::Set`]. Returns whether it reduces heat.
    fn check_set(&self, at: usize, value: f64, now_ms: u64) -> Result<bool, WriteError> {
        let control = &self.profile.controls[at];
        let [low, high] = range(control);
        if !(low - 1e-9..=high + 1e-9).contains(&value) {
            return Err(WriteError::OutOfRange { control: control.name.clone(), value, low, high });
        }
        let possible = self.possible_values(at, now_ms);
        if reduces_heat(control, possible, value) {
            self.check_forbidden_value(control, value, now_ms)?;
            return Ok(true);
        }
        // Heat below the last written value, though not below the readback: the minimum interval
        // and the write budget do not apply.
        let last = self.controls[at].unconfirmed.map(|writes| writes.last);
        if !(control.role.heats() && last.is_some_and(|last| value < last - 1e-9)) {
            self.check_min_interval(at, now_ms)?;
            self.check_write_budget(now_ms)?;
        }
        self.check_followed(at, now_ms)?;
        self.check_non_reducing(control, possible, value, now_ms)?;
        Ok(false)
    }

    /// Checks [`Command::Apply`]. Returns whether the staged value reduces heat, by the last reading.
    fn check_apply(&self, at: usize, now_ms: u64) -> Result<bool, WriteError> {
        let (control, state) = (&self.profile.controls[at], &self.controls[at]);
        let passed = state.at_ms.map(|then| now_ms.saturating_sub(then));
        let staged = state.staged.filter(|_| passed.is_some_and(|p| p <= APPLY_WITHIN_MS));
        let Some((value, before)) = staged else { return Err(WriteError::NoSuchControl) };
        let possible = self.possible_values_with(at, before, now_ms);
        if reduces_heat(control, possible, value) {
            return Ok(true);
        }
        self.check_non_reducing(control, possible, value, now_ms)?;
        Ok(false)
    }

    /// Checks every rule for a write that does not reduce heat, except the time-based rules.
    fn check_non_reducing(
        &self,
        control: &Control,
        possible: Option<[f64; 2]>,
        value: f64,
        now_ms: u64,
    ) -> Result<(), WriteError> {
        self.check_forbidden(control, value, now_ms)?;
        self.check_readings(control, now_ms)?;
        let Some([lowest, highest]) = possible else {
            let problem = format!("the current value of {} is not known", control.name);
            return Err(WriteError::ReadingsUnreliable(problem));
        };
        check_step(control, [lowest, highest], value)?;
        self.check_needs(control, now_ms)?;
        if !control.role.heats() && value < highest - 1e-9 {
            self.check_burner_needs(control, value, now_ms)?;
        }
        Ok(())
    }

    /// Returns the last reading unless it is stale.
    fn fresh_snapshot(&self, now_ms: u64) -> Option<&MachineSnapshot> {
        let fresh =
            self.snapshot.at_ms.is_some_and(|at| now_ms.saturating_sub(at) <= READING_FRESH_MS);
        fresh.then_some(&self.snapshot)
    }

    /// Returns the readback of a control from a fresh reading.
    fn readback(&self, at: usize, now_ms: u64) -> Option<f64> {
        let channel = self.profile.controls[at].readback.as_ref()?;
        self.fresh_snapshot(now_ms)?.values.get(channel).copied()
    }

    /// Returns the lowest and highest value that a control may have now: readback and unconfirmed
    /// writes.
    fn possible_values(&self, at: usize, now_ms: u64) -> Option<[f64; 2]> {
        self.possible_values_with(at, self.controls[at].unconfirmed, now_ms)
    }

    fn possible_values_with(
        &self,
        at: usize,
        writes: Option<UnconfirmedWrites>,
        now_ms: u64,
    ) -> Option<[f64; 2]> {
        let shown = self.readback(at, now_ms).filter(|_| !self.controls[at].released)?;
        let ends = writes.map_or([shown; 2], |o| [o.low.min(shown), o.high.max(shown)]);
        Some(ends)
    }

    fn check_min_interval(&self, at: usize, now_ms: u64) -> Result<(), WriteError> {
        let control = &self.profile.controls[at];
        let least = ms(control.min_interval_s.unwrap_or(0.0));
        let passed = self.controls[at].at_ms.map_or(u64::MAX, |then| now_ms.saturating_sub(then));
        if passed < least {
            let (control, wait_ms) = (control.name.clone(), least.saturating_sub(passed));
            return Err(WriteError::TooSoon { control, wait_ms });
        }
        Ok(())
    }

    /// Checks that the machine followed the writes to this control, or still has time to
    /// (`readback_s`).
    fn check_followed(&self, at: usize, now_ms: u64) -> Result<(), WriteError> {
        let control = &self.profile.controls[at];
        let since =
            self.controls[at].unconfirmed.map(|writes| now_ms.saturating_sub(writes.since_ms));
        if since.is_some_and(|since| since > ms(control.readback_s.unwrap_or(0.0))) {
            return Err(WriteError::NotFollowed(control.name.clone()));
        }
        Ok(())
    }

    /// Checks that the reading is fresh, that every required channel has a value without a quality
    /// flag, and, for a control that heats, that BT and ET are below the profile's limits.
    fn check_readings(&self, control: &Control, now_ms: u64) -> Result<(), WriteError> {
        let unsound = |problem: String| Err(WriteError::ReadingsUnreliable(problem));
        let Some(snapshot) = self.fresh_snapshot(now_ms) else {
            return unsound(format!("no reading within {} s", READING_FRESH_MS / 1000));
        };
        let read = self.profile.channels.iter().filter(|c| c.required).map(|c| &c.name);
        let derived = self.profile.derived.iter().filter(|d| d.required).map(|d| &d.name);
        for name in read.chain(derived) {
            if let Some(flag) = snapshot.quality_flags.get(name) {
                return unsound(format!("{name} is {}", quality_text(*flag)));
            }
            if !snapshot.values.contains_key(name) {
                return unsound(format!("{name} has no value"));
            }
        }
        let limits = &self.profile.limits;
        let limited = [("btC", limits.bt_max_c), ("etC", limits.et_max_c)];
        for (channel, most) in limited.into_iter().filter(|_| control.role.heats()) {
            let own = self.profile.channels.iter().any(|c| c.name == channel)
                || self.profile.derived.iter().any(|d| d.name == channel);
            match snapshot.values.get(channel) {
                Some(value) if *value >= most => {
                    return unsound(format!("{channel} is at the profile's limit of {most} °C"));
                }
                None if own => return unsound(format!("{channel} is not known")),
                _ => {}
            }
        }
        Ok(())
    }

    fn check_needs(&self, control: &Control, now_ms: u64) -> Result<(), WriteError> {
        let met = |need: &String| match Condition::parse(need) {
            // Where the channel is another control's readback, the readback and all its unconfirmed
            // written values must meet the need.
            Some(Condition::Compare { channel, operator, value }) => {
                let shown =
                    self.fresh_snapshot(now_ms).and_then(|snapshot| snapshot.values.get(&channel));
                let mut ends: Vec<Option<f64>> = vec![shown.copied()];
                for (at, other) in self.profile.controls.iter().enumerate() {
                    if other.readback.as_ref() == Some(&channel) {
                        let possible = self.possible_values(at, now_ms);
                        ends.extend([possible.map(|[low, _]| low), possible.map(|[_, high]| high)]);
                    }
                }
                ends.into_iter().all(|end| end.is_some_and(|end| compare(end, operator, value)))
            }
            Some(state) => self.holds(&state, now_ms) == Some(true),
            None => false,
        };
        let refused = |need: &String| {
            Err(WriteError::NeedNotMet { control: control.name.clone(), need: need.clone() })
        };
        control.needs.iter().find(|need| !met(need)).map_or(Ok(()), refused)
    }

    /// Checks that a lower air or drum value leaves every lit burner's needs met. Refuses it too
    /// when the burner's need is on another channel of that air or drum than this control's
    /// readback.
    fn check_burner_needs(
        &self,
        control: &Control,
        value: f64,
        now_ms: u64,
    ) -> Result<(), WriteError> {
        let Some(shown_as) = &control.readback else { return Ok(()) };
        for (at, burner) in self.profile.controls.iter().enumerate() {
            let off = self.possible_values(at, now_ms).is_some_and(|[_, high]| high <= 0.0);
            if !burner.role.heats() || off {
                continue;
            }
            let unmet = burner.needs.iter().find(|need| match Condition::parse(need) {
                Some(Condition::Compare { channel, operator, value: bound }) => {
                    let theirs: &[&str] = match control.role {
                        Role::Air => &["fan", "air"],
                        _ => &["drum"],
                    };
                    let about = theirs.iter().any(|prefix| channel.starts_with(prefix));
                    if channel == *shown_as { !compare(value, operator, bound) } else { about }
                }
                _ => false,
            });
            if let Some(need) = unmet {
                let (control, need) = (burner.name.clone(), need.clone());
                return Err(WriteError::NeedNotMet { control, need });
            }
        }
        Ok(())
    }

    /// Checks the profile's `forbid` rules and the drum-stop limit. A rule with a condition also
    /// applies while the condition is unknown.
    fn check_forbidden(
        &self,
        control: &Control,
        value: f64,
        now_ms: u64,
    ) -> Result<(), WriteError> {
        self.check_forbidden_value(control, value, now_ms)?;
        for (text, rule) in self.forbid_rules(control).filter(|(_, rule)| rule.value.is_none()) {
            if rule.condition.is_none_or(|w| self.holds(&w, now_ms) != Some(false)) {
                return Err(WriteError::Forbidden(text));
            }
        }
        let stops = control.role == Role::Drum && value <= forbidden_tolerance(control);
        let most = self.profile.limits.drum_stop_below_c;
        let bt_c = self.fresh_snapshot(now_ms).and_then(|snapshot| snapshot.values.get("btC"));
        if stops && bt_c.is_none_or(|bt_c| *bt_c > most) {
            let rule = format!("{}=0 unless the beans are below {most} °C", control.name);
            return Err(WriteError::Forbidden(rule));
        }
        Ok(())
    }

    /// Checks the `forbid` rules that name a value. Only these apply to a write that reduces heat,
    /// since `burner while …` forbids more heat.
    fn check_forbidden_value(
        &self,
        control: &Control,
        value: f64,
        now_ms: u64,
    ) -> Result<(), WriteError> {
        for (text, rule) in self.forbid_rules(control) {
            let applies = rule
                .value
                .is_some_and(|forbidden| (forbidden - value).abs() <= forbidden_tolerance(control));
            if applies && rule.condition.is_none_or(|w| self.holds(&w, now_ms) != Some(false)) {
                return Err(WriteError::Forbidden(text));
            }
        }
        Ok(())
    }

    fn forbid_rules(&self, control: &Control) -> impl Iterator<Item = (String, ForbidRule)> {
        let texts = self.profile.safe_state.iter().flat_map(|safe| &safe.forbid);
        let rules = texts.filter_map(|text| Some((text.clone(), ForbidRule::parse(text)?)));
        rules.filter(|(_, rule)| rule.control == control.name)
    }

    fn holds(&self, condition: &Condition, now_ms: u64) -> Option<bool> {
        let snapshot = self.fresh_snapshot(now_ms)?;
        match condition {
            Condition::State(name) => snapshot.states.get(name).copied(),
            Condition::Compare { channel, operator, value } => {
                Some(compare(*snapshot.values.get(channel)?, *operator, *value))
            }
        }
    }

    /// Checks the number of writes in the last hour: some panels store writes in a memory that
    /// wears out.
    fn check_write_budget(&self, now_ms: u64) -> Result<(), WriteError> {
        let most = self.profile.limits.writes_per_hour_max;
        let within = |at: &&u64| now_ms.saturating_sub(**at) < HOUR_MS;
        if self.written_ms.iter().filter(within).count() >= most as usize {
            return Err(WriteError::WriteBudgetSpent(most));
        }
        Ok(())
    }

    /// Counts a write. Keeps at most `writes_per_hour_max` times, which is enough to detect the
    /// limit.
    fn count_write(&mut self, now_ms: u64) {
        let full = self.written_ms.len() >= self.profile.limits.writes_per_hour_max as usize;
        self.evicted_ms = if full { self.written_ms.pop_front() } else { None };
        self.written_ms.push_back(now_ms);
    }
}

/// Returns whether `value` reduces heat: it is below every value the control may have, or is 0.
fn reduces_heat(control: &Control, possible: Option<[f64; 2]>, value: f64) -> bool {
    let below = possible.is_some_and(|[lowest, _]| value < lowest - 1e-9);
    control.role.heats() && (below || value <= 1e-9)
}

fn forbidden_tolerance(control: &Control) -> f64 {
    let [low, high] = range(control);
    (high - low) * FORBIDDEN_TOLERANCE_SHARE
}

/// Returns the control's range; a switch without a range is 0 or 1.
fn range(control: &Control) -> [f64; 2] {
    control.range.unwrap_or([0.0, 1.0])
}

/// Checks the step size from every value the control may have. For heat only the step upwards from
/// the lowest of them counts.
fn check_step(
    control: &Control,
    [lowest, highest]: [f64; 2],
    value: f64,
) -> Result<(), WriteError> {
    let [low, high] = range(control);
    let mut most = control.max_step.unwrap_or(f64::INFINITY);
    let mut step = value - lowest;
    if control.role.heats() {
        most = most.min((high - low) * HEAT_STEP_SHARE_MAX);
    } else {
        step = step.max(highest - value);
    }
    if step > most + 1e-9 {
        return Err(WriteError::StepTooLarge { control: control.name.clone(), step, most });
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // the linter bounds seconds
fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

fn compare(shown: f64, operator: Operator, value: f64) -> bool {
    match operator {
        Operator::Less => shown < value,
        Operator::AtMost => shown <= value,
        Operator::AtLeast => shown >= value,
        Operator::More => shown > value,
    }
}

const fn quality_text(remark: Quality) -> &'static str {
    match remark {
        Quality::Range => "outside its valid range",
        Quality::Spike => "a spike",
        Quality::Stale => "an old value",
        Quality::UnitSuspect => "possibly in the wrong unit",
    }
}

#[cfg(test)]
mod tests;
