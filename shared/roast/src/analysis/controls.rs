//! The control changes that the operator or a controller made, and the energy that the burner used.

use serde::Serialize;

use super::tenths;
use crate::recording::Recording;
use crate::sample::Sample;

/// The controls whose changes are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Control {
    /// The burner.
    Gas,
    /// The fan.
    Fan,
    /// The speed of the drum.
    Drum,
}

/// One change of one control.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ControlMove {
    /// Time from CHARGE; negative before it.
    pub seconds: f64,
    /// The control that was moved.
    pub control: Control,
    /// The setting before, %.
    pub from_pct: f64,
    /// The setting after, %.
    pub to_pct: f64,
}

/// The energy that the burner used: its setting times the time, in minutes at full power.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Energy {
    /// The energy before CHARGE, in minutes at full power.
    pub before_charge_full_min: f64,
    /// The energy from CHARGE to DROP, in minutes at full power.
    pub roast_full_min: f64,
    /// The energy after DROP, in minutes at full power.
    pub after_drop_full_min: f64,
    /// The sum of all three per kilogram of green beans.
    pub full_min_per_kg: Option<f64>,
}

impl Energy {
    /// Returns the energy in kWh for a burner of `burner_kw` kW.
    #[must_use]
    pub fn kwh(&self, burner_kw: f64) -> f64 {
        let minutes = self.before_charge_full_min + self.roast_full_min + self.after_drop_full_min;
        minutes / 60.0 * burner_kw
    }
}

/// Returns every change of a control by at least 0.5 points, in the order of time. Ignores unknown
/// values.
#[must_use]
pub fn control_moves(recording: &Recording, charge: i64) -> Vec<ControlMove> {
    let of = |sample: &Sample, control| match control {
        Control::Gas => sample.gas_pct,
        Control::Fan => sample.fan_pct,
        Control::Drum => sample.drum_pct,
    };
    let mut moves = Vec::new();
    for control in [Control::Gas, Control::Fan, Control::Drum] {
        let mut last: Option<f64> = None;
        for sample in &recording.samples {
            let Some(to_pct) = of(sample, control) else { continue };
            if let Some(from_pct) = last
                && (to_pct - from_pct).abs() >= 0.5
            {
                let seconds = tenths(sample.t_ms.saturating_sub(charge) as f64 / 1000.0);
                moves.push(ControlMove { seconds, control, from_pct, to_pct });
            }
            last = Some(to_pct);
        }
    }
    moves.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    moves
}

/// Returns the energy that the burner used, or `None` if the recording has no burner values.
#[must_use]
pub fn energy(recording: &Recording, charge: i64, until: i64) -> Option<Energy> {
    const GAP_MS: i64 = 30_000;
    let mut sums = [0.0; 3];
    let mut known = false;
    for pair in recording.samples.windows(2) {
        let Some(gas) = pair[0].gas_pct else { continue };
        known = true;
        let part = match pair[0].t_ms {
            t if t < charge => 0,
            t if t < until => 1,
            _ => 2,
        };
        let ms = pair[1].t_ms.saturating_sub(pair[0].t_ms).min(GAP_MS);
        sums[part] += gas / 100.0 * ms as f64 / 60_000.0;
    }
    let kg = recording.weight_in_g.filter(|g| *g > 0.0).map(|g| g / 1000.0);
    known.then(|| Energy {
        before_charge_full_min: tenths(sums[0]),
        roast_full_min: tenths(sums[1]),
        after_drop_full_min: tenths(sums[2]),
        full_min_per_kg: kg.map(|kg| tenths(sums.iter().sum::<f64>() / kg)),
    })
}
