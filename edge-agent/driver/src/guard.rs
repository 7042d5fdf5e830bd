//! What may be moved, how far and how often: the machine's own profile decides, by what was read of
//! the machine last. Pure; the clock is passed in.
//!
//! Less heat is never kept waiting: whoever takes heat away is not asked how much, how soon, or
//! whether the machine can be read. Less is what lies below everything that the control may stand at:
//! below what the machine shows, and, until it shows that it has followed, below what was ordered
//! too. Where nothing is shown, it is none at all.

mod refused;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use contract::Quality;
use firmware_profiles::condition::{Condition, Forbidden, Operator};
use firmware_profiles::{Control, Profile, Remote, Role, Writes};

pub use refused::Refused;

/// What was read before that says nothing of what the machine does now, ms.
const FRESH_MS: u64 = 3_000;
/// A value that was written is applied at once or not at all, ms.
const APPLY_WITHIN_MS: u64 = 10_000;
const HOUR_MS: u64 = 3_600_000;
/// The burner rises by at most this share of its range at once, whatever its unit.
const HEAT_STEP_SHARE_MAX: f64 = 0.2;
/// A forbidden value is meant with what lies this near to it, as a share of the control's range.
const NEAR: f64 = 0.01;

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
    pub const fn control(self) -> usize {
        match self {
            Self::To(at, _) | Self::Apply(at) | Self::HandBack(at) => at,
        }
    }
}

/// What was read of the machine last.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    /// When the reading began.
    pub at_ms: Option<u64>,
    /// By the profile's names: °C, %, …. What has a remark is not among them, nor what is derived
    /// from such.
    pub values: BTreeMap<String, f64>,
    pub remarks: BTreeMap<String, Quality>,
    /// Those that were read this time.
    pub states: BTreeMap<String, bool>,
}

/// What was done with a control and is not seen to have come true yet.
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    /// When it was moved last.
    at_ms: Option<u64>,
    /// The lowest and the highest that was ordered, and the last: the machine may stand at any.
    orders: Option<Orders>,
    /// When the last write ended; a reading that began later shows what came of it.
    ended_ms: Option<u64>,
    /// The machine was told to take it back: where it goes only a later reading tells.
    handed: bool,
    /// A value that waits to be applied, and what was ordered before it.
    staged: Option<(f64, Option<Orders>)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Orders {
    since_ms: u64,
    low: f64,
    high: f64,
    last: f64,
}

/// Watches over one machine's controls.
#[derive(Debug)]
pub struct Guard {
    profile: Arc<Profile>,
    moved: Vec<Moved>,
    /// What was before the move that is under way.
    before: Vec<Moved>,
    written_ms: VecDeque<u64>,
    /// What the count of the last write pushed out.
    forgotten_ms: Option<u64>,
    known: Known,
}

impl Guard {
    pub fn new(profile: Arc<Profile>) -> Self {
        let moved = vec![Moved::default(); profile.controls.len()];
        let before = moved.clone();
        Self {
            profile,
            moved,
            before,
            written_ms: VecDeque::new(),
            forgotten_ms: None,
            known: Known::default(),
        }
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Takes a reading to heart.
    pub fn saw(&mut self, known: Known) {
        self.known = known;
        let began_ms = self.known.at_ms.unwrap_or(0);
        for at in 0..self.moved.len() {
            let Some(shown) = self.shown(at, began_ms) else { continue };
            let tolerance = self.profile.controls[at].readback_tol.unwrap_or(0.0) + 1e-9;
            let moved = &mut self.moved[at];
            if moved.ended_ms.is_some_and(|ended| began_ms > ended) {
                moved.handed = false;
                let there = |orders: &Orders| (orders.last - shown).abs() <= tolerance;
                moved.orders = moved.orders.filter(|orders| !there(orders));
            }
        }
    }

    /// Whether it may happen now, and whether it goes before everything else that waits: it takes
    /// heat away.
    ///
    /// # Errors
    /// The first rule that speaks against it.
    pub fn look(&self, wanted: Move, now_ms: u64) -> Result<bool, Refused> {
        let at = wanted.control();
        let control = self.profile.controls.get(at).ok_or(Refused::Unknown)?;
        if self.profile.machine.writes == Writes::Disabled {
            return Err(Refused::Disabled);
        }
        // A set-point moves heat by the machine's own judgement, and a mode says whose that is.
        let known_role = matches!(control.role, Role::Burner | Role::Air | Role::Drum);
        if control.remote == Remote::Never || !known_role {
            return Err(Refused::Local(control.name.clone()));
        }
        match wanted {
            Move::To(_, value) => self.to(at, value, now_ms),
            Move::Apply(_) => self.apply(at, now_ms),
            // It may do there what it likes, so it is as much heat, and as little air, as there is.
            Move::HandBack(_) => {
                self.rested(at, now_ms)?;
                self.unworn(now_ms)?;
                self.sound(control, now_ms)?;
                self.heeded(at, now_ms)?;
                self.needed(control, now_ms)?;
                let [low, high] = range(control);
                self.forbidden(control, if control.role.heats() { high } else { low }, now_ms)?;
                if !control.role.heats() {
                    self.needed_by_heat(control, low, now_ms)?;
                }
                Ok(false)
            }
        }
    }

    /// Looks once more, now that it is about to be written, and remembers it.
    ///
    /// # Errors
    /// As [`Guard::look`].
    pub fn begin(&mut self, wanted: Move, now_ms: u64) -> Result<(), Refused> {
        self.look(wanted, now_ms)?;
        self.count(now_ms);
        let at = wanted.control();
        let moved = &mut self.moved[at];
        self.before[at] = *moved;
        (moved.at_ms, moved.ended_ms) = (Some(now_ms), None);
        match wanted {
            Move::To(_, value) => {
                moved.staged = Some((value, moved.orders));
                let before = moved.orders;
                moved.orders = Some(Orders {
                    since_ms: before.map_or(now_ms, |orders| orders.since_ms),
                    low: before.map_or(value, |orders| orders.low.min(value)),
                    high: before.map_or(value, |orders| orders.high.max(value)),
                    last: value,
                });
            }
            Move::Apply(_) => moved.staged = None,
            Move::HandBack(_) => (moved.staged, moved.handed) = (None, true),
        }
        Ok(())
    }

    /// Whether an apply of this control would apply something.
    pub fn expects_apply(&self, at: usize) -> bool {
        self.moved.get(at).is_some_and(|moved| moved.staged.is_some())
    }

    /// How what was begun has ended, while the reading or errand of `mono_ms` was under way.
    pub fn ended(&mut self, wanted: Move, outcome: &Result<(), Refused>, mono_ms: u64) {
        let at = wanted.control();
        let Some(moved) = self.moved.get_mut(at) else { return };
        moved.ended_ms = Some(mono_ms);
        match outcome {
            Ok(()) if matches!(wanted, Move::HandBack(_)) => moved.orders = None,
            Ok(()) => {}
            // It never left: nothing has changed.
            Err(Refused::Unsent(_)) => {
                *moved = self.before[at];
                self.written_ms.pop_back();
                if let Some(oldest) = self.forgotten_ms.take() {
                    self.written_ms.push_front(oldest);
                }
            }
            // Whether it was taken is not known; what is staged there is not ours to apply.
            Err(_) => moved.staged = None,
        }
    }

    /// Whether it takes heat away.
    fn to(&self, at: usize, value: f64, now_ms: u64) -> Result<bool, Refused> {
        let control = &self.profile.controls[at];
        let [low, high] = range(control);
        if !(low - 1e-9..=high + 1e-9).contains(&value) {
            return Err(Refused::Range { control: control.name.clone(), value, low, high });
        }
        let stands = self.stands(at, now_ms);
        if cuts(control, stands, value) {
            self.forbidden_value(control, value, now_ms)?;
            return Ok(true);
        }
        // Less than was ordered a moment ago, and no less than is shown: not held up by the clock.
        let last = self.moved[at].orders.map(|orders| orders.last);
        if !(control.role.heats() && last.is_some_and(|last| value < last - 1e-9)) {
            self.rested(at, now_ms)?;
            self.unworn(now_ms)?;
        }
        self.heeded(at, now_ms)?;
        self.raise(control, stands, value, now_ms)?;
        Ok(false)
    }

    /// Whether what is staged would take heat away, by what is known now.
    fn apply(&self, at: usize, now_ms: u64) -> Result<bool, Refused> {
        let (control, moved) = (&self.profile.controls[at], &self.moved[at]);
        let passed = moved.at_ms.map(|then| now_ms.saturating_sub(then));
        let staged = moved.staged.filter(|_| passed.is_some_and(|p| p <= APPLY_WITHIN_MS));
        let Some((value, before)) = staged else { return Err(Refused::Unknown) };
        let stands = self.between(at, before, now_ms);
        if cuts(control, stands, value) {
            return Ok(true);
        }
        self.raise(control, stands, value, now_ms)?;
        Ok(false)
    }

    /// Every rule of a move that is no cut, but for those of the clock.
    fn raise(
        &self,
        control: &Control,
        stands: Option<[f64; 2]>,
        value: f64,
        now_ms: u64,
    ) -> Result<(), Refused> {
        self.forbidden(control, value, now_ms)?;
        self.sound(control, now_ms)?;
        let Some([lowest, highest]) = stands else {
            let problem = format!("nothing tells where {} stands", control.name);
            return Err(Refused::Unsound(problem));
        };
        step(control, [lowest, highest], value)?;
        self.needed(control, now_ms)?;
        if !control.role.heats() && value < highest - 1e-9 {
            self.needed_by_heat(control, value, now_ms)?;
        }
        Ok(())
    }

    /// What is known now, if it was read of late.
    fn fresh(&self, now_ms: u64) -> Option<&Known> {
        let fresh = self.known.at_ms.is_some_and(|at| now_ms.saturating_sub(at) <= FRESH_MS);
        fresh.then_some(&self.known)
    }

    /// Where the machine shows a control to stand.
    fn shown(&self, at: usize, now_ms: u64) -> Option<f64> {
        let channel = self.profile.controls[at].readback.as_ref()?;
        self.fresh(now_ms)?.values.get(channel).copied()
    }

    /// The lowest and the highest that a control may stand at.
    fn stands(&self, at: usize, now_ms: u64) -> Option<[f64; 2]> {
        self.between(at, self.moved[at].orders, now_ms)
    }

    fn between(&self, at: usize, orders: Option<Orders>, now_ms: u64) -> Option<[f64; 2]> {
        let shown = self.shown(at, now_ms).filter(|_| !self.moved[at].handed)?;
        let ends = orders.map_or([shown; 2], |o| [o.low.min(shown), o.high.max(shown)]);
        Some(ends)
    }

    fn rested(&self, at: usize, now_ms: u64) -> Result<(), Refused> {
        let control = &self.profile.controls[at];
        let least = ms(control.min_interval_s.unwrap_or(0.0));
        let passed = self.moved[at].at_ms.map_or(u64::MAX, |then| now_ms.saturating_sub(then));
        if passed < least {
            let (control, wait_ms) = (control.name.clone(), least - passed);
            return Err(Refused::Soon { control, wait_ms });
        }
        Ok(())
    }

    /// The machine has gone where it was ordered last, or still has time to.
    fn heeded(&self, at: usize, now_ms: u64) -> Result<(), Refused> {
        let control = &self.profile.controls[at];
        let since = self.moved[at].orders.map(|orders| now_ms.saturating_sub(orders.since_ms));
        if since.is_some_and(|since| since > ms(control.readback_s.unwrap_or(0.0))) {
            return Err(Refused::Unheeded(control.name.clone()));
        }
        Ok(())
    }

    /// The machine is read, each channel that is required is right, and for more heat none too hot.
    fn sound(&self, control: &Control, now_ms: u64) -> Result<(), Refused> {
        let unsound = |problem: String| Err(Refused::Unsound(problem));
        let Some(known) = self.fresh(now_ms) else {
            return unsound(format!("not within {} s", FRESH_MS / 1000));
        };
        for channel in self.profile.channels.iter().filter(|channel| channel.required) {
            if let Some(remark) = known.remarks.get(&channel.name) {
                return unsound(format!("{} is {}", channel.name, word(*remark)));
            }
            if !known.values.contains_key(&channel.name) {
                return unsound(format!("{} has no value", channel.name));
            }
        }
        let limits = &self.profile.limits;
        let limited = [("btC", limits.bt_max_c), ("etC", limits.et_max_c)];
        for (channel, most) in limited.into_iter().filter(|_| control.role.heats()) {
            let own = self.profile.channels.iter().any(|c| c.name == channel)
                || self.profile.derived.iter().any(|d| d.name == channel);
            match known.values.get(channel) {
                Some(value) if *value >= most => {
                    return unsound(format!("{channel} is at the profile's limit of {most} °C"));
                }
                None if own => return unsound(format!("{channel} is not known")),
                _ => {}
            }
        }
        Ok(())
    }

    fn needed(&self, control: &Control, now_ms: u64) -> Result<(), Refused> {
        let met = |need: &String| match Condition::parse(need) {
            // Where it is another control's to say, that is where it is shown and where it was
            // ordered to.
            Some(Condition::Compare { channel, operator, value }) => {
                let shown = self.fresh(now_ms).and_then(|known| known.values.get(&channel));
                let mut ends: Vec<Option<f64>> = vec![shown.copied()];
                for (at, other) in self.profile.controls.iter().enumerate() {
                    if other.readback.as_ref() == Some(&channel) {
                        let stands = self.stands(at, now_ms);
                        ends.extend([stands.map(|[low, _]| low), stands.map(|[_, high]| high)]);
                    }
                }
                ends.into_iter().all(|end| end.is_some_and(|end| compare(end, operator, value)))
            }
            Some(state) => self.holds(&state, now_ms) == Some(true),
            None => false,
        };
        let refused = |need: &String| {
            Err(Refused::Needs { control: control.name.clone(), need: need.clone() })
        };
        control.needs.iter().find(|need| !met(need)).map_or(Ok(()), refused)
    }

    /// Air and drum are not taken away from under a burner that needs them, nor where what it needs of
    /// them is shown by another channel than theirs.
    fn needed_by_heat(&self, control: &Control, value: f64, now_ms: u64) -> Result<(), Refused> {
        let Some(shown_as) = &control.readback else { return Ok(()) };
        for (at, burner) in self.profile.controls.iter().enumerate() {
            let off = self.stands(at, now_ms).is_some_and(|[_, high]| high <= 0.0);
            if !burner.role.heats() || off {
                continue;
            }
            let unmet = burner.needs.iter().find(|need| match Condition::parse(need) {
                Some(Condition::Compare { channel, operator, value: bound }) => {
                    let theirs: &[&str] = match control.role {
                        Role::Air => &["fan", "air"],
                        _ => &["drum"],
                    };
                    let about = theirs.iter().any(|word| channel.starts_with(word));
                    if channel == *shown_as { !compare(value, operator, bound) } else { about }
                }
                _ => false,
            });
            if let Some(need) = unmet {
                let (control, need) = (burner.name.clone(), need.clone());
                return Err(Refused::Needs { control, need });
            }
        }
        Ok(())
    }

    /// What is forbidden while something holds is forbidden too while that is not known.
    fn forbidden(&self, control: &Control, value: f64, now_ms: u64) -> Result<(), Refused> {
        self.forbidden_value(control, value, now_ms)?;
        for (text, rule) in self.rules(control).filter(|(_, rule)| rule.value.is_none()) {
            if rule.while_.is_none_or(|w| self.holds(&w, now_ms) != Some(false)) {
                return Err(Refused::Forbidden(text));
            }
        }
        let stops = control.role == Role::Drum && value <= near(control);
        let most = self.profile.limits.drum_stop_below_c;
        let bt_c = self.fresh(now_ms).and_then(|known| known.values.get("btC"));
        if stops && bt_c.is_none_or(|bt_c| *bt_c > most) {
            let rule = format!("{}=0 unless the beans are below {most} °C", control.name);
            return Err(Refused::Forbidden(rule));
        }
        Ok(())
    }

    /// The rules that name a value: those alone speak to a cut, since `burner while …` means more.
    fn forbidden_value(&self, control: &Control, value: f64, now_ms: u64) -> Result<(), Refused> {
        for (text, rule) in self.rules(control) {
            let meant = rule.value.is_some_and(|named| (named - value).abs() <= near(control));
            if meant && rule.while_.is_none_or(|w| self.holds(&w, now_ms) != Some(false)) {
                return Err(Refused::Forbidden(text));
            }
        }
        Ok(())
    }

    fn rules(&self, control: &Control) -> impl Iterator<Item = (String, Forbidden)> {
        let texts = self.profile.safe_state.iter().flat_map(|safe| &safe.forbid);
        let rules = texts.filter_map(|text| Some((text.clone(), Forbidden::parse(text)?)));
        rules.filter(|(_, rule)| rule.control == control.name)
    }

    fn holds(&self, condition: &Condition, now_ms: u64) -> Option<bool> {
        let known = self.fresh(now_ms)?;
        match condition {
            Condition::State(name) => known.states.get(name).copied(),
            Condition::Compare { channel, operator, value } => {
                Some(compare(*known.values.get(channel)?, *operator, *value))
            }
        }
    }

    /// Some panels keep what is written in a memory that wears.
    fn unworn(&self, now_ms: u64) -> Result<(), Refused> {
        let most = self.profile.limits.writes_per_hour_max;
        let within = |at: &&u64| now_ms.saturating_sub(**at) < HOUR_MS;
        if self.written_ms.iter().filter(within).count() >= most as usize {
            return Err(Refused::Worn(most));
        }
        Ok(())
    }

    /// Every write counts; those past the bound need not be remembered to be past it.
    fn count(&mut self, now_ms: u64) {
        let full = self.written_ms.len() >= self.profile.limits.writes_per_hour_max as usize;
        self.forgotten_ms = if full { self.written_ms.pop_front() } else { None };
        self.written_ms.push_back(now_ms);
    }
}

/// Less heat than whatever it may stand at, or none.
fn cuts(control: &Control, stands: Option<[f64; 2]>, value: f64) -> bool {
    let below = stands.is_some_and(|[lowest, _]| value < lowest - 1e-9);
    control.role.heats() && (below || value <= 1e-9)
}

fn near(control: &Control) -> f64 {
    let [low, high] = range(control);
    (high - low) * NEAR
}

/// A switch without a range is off or on.
fn range(control: &Control) -> [f64; 2] {
    control.range.unwrap_or([0.0, 1.0])
}

/// From wherever it may stand. Less heat than was ordered is measured from what is shown alone.
fn step(control: &Control, [lowest, highest]: [f64; 2], value: f64) -> Result<(), Refused> {
    let [low, high] = range(control);
    let mut most = control.max_step.unwrap_or(f64::INFINITY);
    let mut step = value - lowest;
    if control.role.heats() {
        most = most.min((high - low) * HEAT_STEP_SHARE_MAX);
    } else {
        step = step.max(highest - value);
    }
    if step > most + 1e-9 {
        return Err(Refused::Step { control: control.name.clone(), step, most });
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

const fn word(remark: Quality) -> &'static str {
    match remark {
        Quality::Range => "outside what it can be",
        Quality::Spike => "a spike",
        Quality::Stale => "an old value",
        Quality::UnitSuspect => "in a unit that is in doubt",
    }
}

#[cfg(test)]
mod tests;
