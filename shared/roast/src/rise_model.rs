//! The model of a temperature's rise over the next minute: a ridge regression with Huber weights, and
//! an adaptive interval.

use serde::{Deserialize, Deserializer, Serialize};

const FEATURES: usize = 9;
/// The number of newer roasts after which the weight of a roast has halved.
const HALF_LIFE: f64 = 4.0;
/// The prior weighs as much as this many observations along each feature.
const PRIOR_WEIGHT: f64 = 50.0;
/// An error larger than this, °C, has no more influence than this one (Huber).
const HUBER_C: f64 = 2.0;
/// The interval's half width before any data, °C; the gain of its adaptation; and, after
/// [`MISSES`], its limits, °C.
const HALF_C: f64 = 3.0;
const FOLLOW: f64 = 0.12;
/// The target share of misses, of the forecasts whose minute is over. A little under a tenth,
/// because the next roast differs from this one.
const MISSES: f64 = 0.075;
const HALF_C_RANGE: (f64, f64) = (0.3, 30.0);

pub(crate) type Vector = [f64; FEATURES];

/// The model of the next minute of one channel, learned from a machine's roasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RiseModel {
    /// The weighted normal equations, without the prior.
    #[serde(deserialize_with = "padded_square")]
    a: [Vector; FEATURES],
    #[serde(deserialize_with = "padded")]
    b: Vector,
    #[serde(deserialize_with = "padded")]
    beta: Vector,
    pub(crate) half_c: f64,
    /// The number of forecasts of the running roast whose minute is over.
    pub(crate) resolved: u32,
}

/// The coefficients for drum roasters in general: the rise continues and falls a little each
/// minute. Chosen by hand; [`PRIOR_WEIGHT`] sets how much they count against a machine's own
/// roasts.
const PRIOR: Vector = [0.70, 0.25, -0.10, 0.35, -0.30, 0.0, 0.0, 0.0, 0.0];

/// Reads a vector. A model that was stored before a feature existed has nothing learned of it.
fn padded<'de, D: Deserializer<'de>>(from: D) -> Result<Vector, D::Error> {
    Ok(pad(&Vec::deserialize(from)?))
}

fn padded_square<'de, D: Deserializer<'de>>(from: D) -> Result<[Vector; FEATURES], D::Error> {
    let rows = Vec::<Vec<f64>>::deserialize(from)?;
    let mut square = [[0.0; FEATURES]; FEATURES];
    for (row, stored) in square.iter_mut().zip(&rows) {
        *row = pad(stored);
    }
    Ok(square)
}

fn pad(stored: &[f64]) -> Vector {
    let mut vector = [0.0; FEATURES];
    for (value, stored) in vector.iter_mut().zip(stored) {
        *value = *stored;
    }
    vector
}

impl Default for RiseModel {
    fn default() -> Self {
        Self {
            a: [[0.0; FEATURES]; FEATURES],
            b: [0.0; FEATURES],
            beta: PRIOR,
            half_c: HALF_C,
            resolved: 0,
        }
    }
}

impl RiseModel {
    pub(crate) fn rise(&self, x: &Vector) -> f64 {
        self.beta.iter().zip(x).map(|(b, x)| b * x).sum()
    }

    /// Learns from the outcome of a forecast: adapts the interval at once, and the coefficients at
    /// the end of the roast.
    pub(crate) fn resolve(&mut self, x: &Vector, forecast_rise: f64, rise: f64) {
        self.resolved = self.resolved.saturating_add(1);
        let miss = (rise - forecast_rise).abs();
        let step = FOLLOW * self.half_c.max(0.5);
        self.half_c += if miss > self.half_c { step * (1.0 - MISSES) } else { -step * MISSES };
        self.half_c = self.half_c.clamp(HALF_C_RANGE.0, HALF_C_RANGE.1);
        let weight = if miss > HUBER_C { HUBER_C / miss } else { 1.0 };
        let rest = rise - PRIOR.iter().zip(x).map(|(p, x)| p * x).sum::<f64>();
        for i in 0..FEATURES {
            for j in 0..FEATURES {
                self.a[i][j] += weight * x[i] * x[j];
            }
            self.b[i] += weight * x[i] * rest;
        }
    }

    /// Ends a roast: its observations count from now on, and all observations lose weight before
    /// the next one.
    pub(crate) fn learn(&mut self) {
        if self.resolved == 0 {
            return;
        }
        self.resolved = 0;
        let mut a = self.a;
        for (i, row) in a.iter_mut().enumerate() {
            row[i] += PRIOR_WEIGHT;
        }
        if let Some(delta) = solve(a, self.b) {
            for (beta, (prior, delta)) in self.beta.iter_mut().zip(PRIOR.iter().zip(delta)) {
                *beta = prior + delta;
            }
        }
        let fade = 0.5_f64.powf(1.0 / HALF_LIFE);
        for row in &mut self.a {
            for value in row.iter_mut() {
                *value *= fade;
            }
        }
        for value in &mut self.b {
            *value *= fade;
        }
    }
}

/// Solves a symmetric positive definite system by Cholesky's method; `None` if it is not one.
#[allow(clippy::needless_range_loop)] // a factorisation is written in rows and columns
fn solve(mut a: [Vector; FEATURES], mut b: Vector) -> Option<Vector> {
    for i in 0..FEATURES {
        for j in 0..=i {
            let mut sum = a[i][j];
            for k in 0..j {
                sum -= a[i][k] * a[j][k];
            }
            if i == j {
                if sum <= 0.0 || !sum.is_finite() {
                    return None;
                }
                a[i][i] = sum.sqrt();
            } else {
                a[i][j] = sum / a[j][j];
            }
        }
    }
    for i in 0..FEATURES {
        for k in 0..i {
            b[i] -= a[i][k] * b[k];
        }
        b[i] /= a[i][i];
    }
    for i in (0..FEATURES).rev() {
        for k in (i..FEATURES).skip(1) {
            b[i] -= a[k][i] * b[k];
        }
        b[i] /= a[i][i];
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_with_fewer_features_is_read() {
        let mut stored = serde_json::to_value(RiseModel::default()).unwrap();
        for name in ["b", "beta"] {
            stored[name].as_array_mut().unwrap().pop();
        }
        let rows = stored["a"].as_array_mut().unwrap();
        rows.pop();
        for row in rows {
            row.as_array_mut().unwrap().pop();
        }
        assert_eq!(serde_json::from_value::<RiseModel>(stored).unwrap(), RiseModel::default());
    }
}
