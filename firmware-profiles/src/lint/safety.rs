//! Rules about the safe state and the agent's own limits.

use super::{Findings, unknown_reference};
use crate::condition::{ForbidRule, SafeStep};
use crate::document::{Control, Profile, Role};

pub(super) fn check(profile: &Profile, findings: &mut Findings) {
    let l = &profile.limits;
    findings.require(
        (100.0..=300.0).contains(&l.bt_max_c) && (100.0..=600.0).contains(&l.et_max_c),
        "limits",
        "limits",
        "bt_max_c is not between 100 and 300, or et_max_c not between 100 and 600",
    );
    findings.require(
        (20.0..=80.0).contains(&l.drum_stop_below_c),
        "limits",
        "limits",
        "drum_stop_below_c is not between 20 and 80",
    );
    let Some(safe) = &profile.safe_state else {
        findings.add(
            "no-safe-state",
            "safe_state",
            "is missing; say in which order the machine is made safe, or order = [] where nothing can be moved",
        );
        return;
    };
    for text in &safe.order {
        match SafeStep::parse(text) {
            None => findings.add(
                "safe-state",
                "safe_state",
                format!("{text:?} is not control=value, control=max, control=min or control=keep"),
            ),
            Some(step) => match control(profile, step.control()) {
                None => findings.add(
                    "safe-state",
                    "safe_state",
                    format!("{text:?} names {}, which is no [[control]] here", step.control()),
                ),
                Some(control) => check_safe_step(control, &step, text, findings),
            },
        }
    }
    let moved = |role: Role| {
        let controls = profile.controls.iter().filter(move |c| c.role == role);
        controls.map(|c| c.name.as_str()).collect::<Vec<_>>()
    };
    let steps: Vec<SafeStep> = safe.order.iter().filter_map(|s| SafeStep::parse(s)).collect();
    for burner in moved(Role::Burner) {
        findings.require(
            steps.iter().any(|step| step.control() == burner),
            "safe-state",
            "safe_state",
            "sets no step for the burner",
        );
    }
    for text in &safe.forbid {
        let Some(forbidden) = ForbidRule::parse(text) else {
            findings.add(
                "forbid",
                "safe_state",
                format!(
                    "{text:?} is not control, control=value or control=value while channel > number"
                ),
            );
            continue;
        };
        if control(profile, &forbidden.control).is_none() {
            let sentence =
                format!("{text:?} names {}, which is no [[control]] here", forbidden.control);
            findings.add("forbid", "safe_state", sentence);
        }
        if let Some(condition) = &forbidden.condition
            && let Some(problem) = unknown_reference(profile, Some(condition))
        {
            findings.add("forbid", "safe_state", format!("{text:?} {problem}"));
        }
    }
}

fn control<'p>(profile: &'p Profile, name: &str) -> Option<&'p Control> {
    profile.controls.iter().find(|c| c.name == name)
}

/// Checks one step of the safe state. A drum that stops with hot beans in it causes a fire, and the
/// safe state must never raise heat.
fn check_safe_step(control: &Control, step: &SafeStep, text: &str, findings: &mut Findings) {
    let [low, high] = control.range.unwrap_or([0.0, 1.0]);
    if let SafeStep::Set { value, .. } = step {
        findings.require(
            (low..=high).contains(value),
            "safe-state",
            "safe_state",
            &format!("{text:?} is outside the control's range {low} to {high}"),
        );
    }
    let least = match step {
        SafeStep::Set { value, .. } => *value <= low,
        SafeStep::Min { .. } => true,
        SafeStep::Max { .. } | SafeStep::Keep { .. } => false,
    };
    let stops_drum = control.role == Role::Drum
        && (matches!(step, SafeStep::Set { value, .. } if *value == 0.0) || (least && low <= 0.0));
    findings.require(
        !stops_drum,
        "drum-stop",
        "safe_state",
        &format!("{text:?} stops the drum, and hot beans in a standing drum catch fire; keep it"),
    );
    findings.require(
        !control.role.heats() || least,
        "heat-in-safe-state",
        "safe_state",
        &format!("{text:?} leaves heat on; the safe value of heat is the lowest of its range"),
    );
    findings.require(
        !control.role.is_local_only(),
        "safe-state",
        "safe_state",
        &format!("{text:?} moves a control that must only be operated at the machine"),
    );
}
