//! The values of a control: its range, the size of a step, and which values reduce heat.

use firmware_profiles::Control;

use super::WriteError;

/// The largest single step of the burner upwards, as a share of its range, in any unit.
const HEAT_STEP_SHARE_MAX: f64 = 0.2;
/// A forbidden value also covers values this close to it, as a share of the control's range.
const FORBIDDEN_TOLERANCE_SHARE: f64 = 0.01;

/// Returns whether `value` reduces heat: it is below every value the control may have, or is 0.
pub(super) fn reduces_heat(control: &Control, possible: Option<[f64; 2]>, value: f64) -> bool {
    let below = possible.is_some_and(|[lowest, _]| value < lowest - 1e-9);
    control.role.heats() && (below || value <= 1e-9)
}

/// Returns how close to a forbidden value a value is forbidden too.
pub(super) fn forbidden_tolerance(control: &Control) -> f64 {
    let [low, high] = range(control);
    (high - low) * FORBIDDEN_TOLERANCE_SHARE
}

/// Returns the control's range; a switch without a range is 0 or 1.
pub(super) fn range(control: &Control) -> [f64; 2] {
    control.range.unwrap_or([0.0, 1.0])
}

/// Checks the step size from every value the control may have. For heat only the step upwards from
/// the lowest of them counts.
pub(super) fn check_step(
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
