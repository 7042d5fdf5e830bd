//! The safety rules for writes to a machine: which control may be moved, how far and how often. The
//! machine's profile sets the limits; the last reading of the machine decides whether they are met.
//! Pure; the clock is passed in.
//!
//! Reducing heat is always allowed: step size, minimum interval and stale readings do not block it.
//! A value reduces heat when it is below every value that the control may have now: below the
//! readback and, until the readback confirms the last write, below every written value too. When
//! there is no readback, only 0 reduces heat.

mod conditions;
mod error;
mod timing;
mod values;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use contract::Quality;
use firmware_profiles::{Control, Profile, Remote, Role, Writes};

pub use error::WriteError;
use values::{check_step, range, reduces_heat};

/// The age at which a reading is stale and no longer describes the machine, ms.
const READING_FRESH_MS: u64 = 3_000;
/// How long after the write of a value its apply write is accepted, ms.
const APPLY_WITHIN_MS: u64 = 10_000;

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
}

#[cfg(test)]
mod tests;
