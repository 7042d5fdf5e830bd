//! The rules on the state of the machine: its readings, what a control needs, and what the profile
//! forbids.

use contract::Quality;
use firmware_profiles::condition::{Condition, ForbidRule, Operator};
use firmware_profiles::{Control, Role};

use super::values::forbidden_tolerance;
use super::{Interlock, READING_FRESH_MS, WriteError};

impl Interlock {
    /// Checks that the reading is fresh, that every required channel has a value without a quality
    /// flag, and, for a control that heats, that BT and ET are below the profile's limits.
    pub(super) fn check_readings(&self, control: &Control, now_ms: u64) -> Result<(), WriteError> {
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

    /// Checks the profile's `needs` of this control.
    pub(super) fn check_needs(&self, control: &Control, now_ms: u64) -> Result<(), WriteError> {
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
    pub(super) fn check_burner_needs(
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
    pub(super) fn check_forbidden(
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
    pub(super) fn check_forbidden_value(
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
