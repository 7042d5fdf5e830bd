//! Comparison of roasts: the deviation from a reference roast (aligned on a mark), the similarity,
//! and the consistency of a set of roasts.

use contract::EventKind;
use serde::Serialize;

use super::{Analysis, Curve, Marks, tenths, thousandths};
use crate::replay::interpolate_at;

/// The step between two compared points, ms.
const STEP_MS: usize = 1_000;
/// The longest time that is compared, ms: a file whose clock jumped may claim years.
const COMPARED_MS_MAX: i64 = 24 * 3_600_000;

/// The deviation of one roast from another.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Comparison {
    /// The mark that has the same time in both roasts.
    pub aligned_on: EventKind,
    /// The time that both roasts have in common, s.
    pub seconds_compared: i64,
    /// The root mean square of (this − reference), °C.
    pub bt_rmse_c: f64,
    /// The mean of (this − reference), °C.
    pub bt_mean_c: f64,
    /// The largest deviation (this − reference), °C.
    pub bt_largest_c: f64,
    /// The time of the largest deviation, s after `aligned_on`.
    pub bt_largest_at_seconds: f64,
    /// Root mean square of the difference of the rates of rise, °C/min.
    pub ror_rmse_c_per_min: Option<f64>,
    /// Coefficient of determination: the explained share of the reference roast's variance. 1 means
    /// the same curve.
    pub r2: f64,
    /// 0..100: 100 for the same curve, about 78 for 1 °C and 37 for 4 °C of deviation.
    pub similarity: f64,
}

/// Compares two roasts. Returns `None` if one of them lacks the mark, CHARGE or DROP, or if they
/// share fewer than 10 points.
#[must_use]
pub fn compare(
    this: (&Curve, &Marks),
    reference: (&Curve, &Marks),
    aligned_on: EventKind,
) -> Option<Comparison> {
    let (at, at_reference) = (this.1.ms(aligned_on)?, reference.1.ms(aligned_on)?);
    let span = |marks: &Marks, zero: i64| {
        let since = |kind| Some(marks.ms(kind)?.saturating_sub(zero));
        Some((since(EventKind::Charge)?, since(EventKind::Drop)?))
    };
    let ((a0, a1), (b0, b1)) = (span(this.1, at)?, span(reference.1, at_reference)?);
    let from = a0.max(b0);
    let to = a1.min(b1).min(from.saturating_add(COMPARED_MS_MAX));
    let values_at = |t: i64| {
        let this = interpolate_at(&this.0.bt, at.saturating_add(t))?;
        let reference = interpolate_at(&reference.0.bt, at_reference.saturating_add(t))?;
        Some((t, this, reference))
    };
    let pairs: Vec<(i64, f64, f64)> = (from..=to).step_by(STEP_MS).filter_map(values_at).collect();
    let n = pairs.len() as f64;
    if pairs.len() < 10 {
        return None;
    }
    let mean = pairs.iter().map(|(_, a, b)| a - b).sum::<f64>() / n;
    let square: f64 = pairs.iter().map(|(_, a, b)| (a - b).powi(2)).sum();
    let level = pairs.iter().map(|(.., b)| b).sum::<f64>() / n;
    let variation: f64 = pairs.iter().map(|(.., b)| (b - level).powi(2)).sum();
    let largest = pairs
        .iter()
        .copied()
        .reduce(|x, y| if (y.1 - y.2).abs() > (x.1 - x.2).abs() { y } else { x })?;
    let rmse = (square / n).sqrt();
    Some(Comparison {
        aligned_on,
        seconds_compared: to.saturating_sub(from) / 1000,
        bt_rmse_c: thousandths(rmse),
        bt_mean_c: thousandths(mean),
        bt_largest_c: tenths(largest.1 - largest.2),
        bt_largest_at_seconds: tenths(largest.0 as f64 / 1000.0),
        ror_rmse_c_per_min: ror_rmse(this.0, reference.0, at, at_reference, from..=to),
        r2: thousandths(if variation > 0.0 { 1.0 - square / variation } else { 0.0 }),
        similarity: tenths(100.0 * (-rmse / 4.0).exp()),
    })
}

fn ror_rmse(
    this: &Curve,
    reference: &Curve,
    at: i64,
    at_reference: i64,
    span: std::ops::RangeInclusive<i64>,
) -> Option<f64> {
    let mut square = 0.0;
    let mut n = 0.0;
    let [from_ms, to_ms] = [span.start(), span.end()].map(|t| at.saturating_add(*t));
    for (t, ror) in this.ror_between(from_ms, to_ms) {
        let target_ms = t.saturating_sub(at).saturating_add(at_reference);
        let i = reference.ror.partition_point(|(t, _)| *t < target_ms);
        let near = reference.ror.get(i).filter(|(t, _)| t.saturating_sub(target_ms) <= 3_000);
        if let Some((_, other)) = near {
            square += (ror - other).powi(2);
            n += 1.0;
        }
    }
    (n >= 10.0).then(|| thousandths(f64::sqrt(square / n)))
}

/// The statistics of one figure over a set of roasts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Spread {
    /// The number of roasts that have the figure.
    pub roasts: usize,
    /// The mean, in the figure's unit.
    pub mean: f64,
    /// The standard deviation, in the figure's unit.
    pub deviation: f64,
    /// The smallest value.
    pub least: f64,
    /// The largest value.
    pub most: f64,
}

/// The spread of the main figures over a set of roasts.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Consistency {
    /// The time of the turning point, s from CHARGE.
    pub tp_seconds: Option<Spread>,
    /// The time of first crack, s from CHARGE.
    pub fc_seconds: Option<Spread>,
    /// The time of DROP, s from CHARGE.
    pub drop_seconds: Option<Spread>,
    /// The bean temperature at DROP, °C.
    pub drop_bt_c: Option<Spread>,
    /// The share of the development phase in the whole roast, 0..1.
    pub development_ratio: Option<Spread>,
    /// The weight loss, %.
    pub weight_loss_pct: Option<Spread>,
}

/// Returns the spread of each figure that at least two of the roasts have.
#[must_use]
pub fn consistency(roasts: &[Analysis]) -> Consistency {
    let spread = |value: fn(&Analysis) -> Option<f64>| {
        let values: Vec<f64> = roasts.iter().filter_map(value).collect();
        let n = values.len() as f64;
        if values.len() < 2 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let square: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Spread {
            roasts: values.len(),
            mean: thousandths(mean),
            deviation: thousandths((square / (n - 1.0)).sqrt()),
            least: values.iter().copied().fold(f64::MAX, f64::min),
            most: values.iter().copied().fold(f64::MIN, f64::max),
        })
    };
    Consistency {
        tp_seconds: spread(|a| a.tp_seconds),
        fc_seconds: spread(|a| a.fc_seconds),
        drop_seconds: spread(|a| a.drop_seconds),
        drop_bt_c: spread(|a| a.drop_bt_c),
        development_ratio: spread(|a| a.development_ratio),
        weight_loss_pct: spread(|a| a.weight_loss_pct),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_curves_have_no_difference_and_a_shifted_one_only_a_shift() {
        let recording = super::super::tests::recording();
        let (curve, marks) = (Curve::of(&recording), Marks::of(&recording, &[]));
        let same = compare((&curve, &marks), (&curve, &marks), EventKind::Charge).unwrap();
        assert_eq!((same.bt_rmse_c, same.similarity, same.r2), (0.0, 100.0, 1.0));
        let mut warmer = recording.clone();
        for sample in &mut warmer.samples {
            sample.bt_c = sample.bt_c.map(|bt| bt + 2.0);
        }
        let warmer = Curve::of(&warmer);
        let other = compare((&warmer, &marks), (&curve, &marks), EventKind::Fc).unwrap();
        assert_eq!((other.bt_rmse_c, other.bt_mean_c), (2.0, 2.0));
        assert_eq!(compare((&curve, &marks), (&curve, &marks), EventKind::Sc), None);
    }

    #[test]
    fn of_roasts_that_claim_a_month_only_a_day_is_compared() {
        let mut recording = super::super::tests::recording();
        recording.samples.last_mut().unwrap().t_ms = 30 * 86_400_000;
        let (curve, marks) = (Curve::of(&recording), Marks::of(&recording, &[]));
        let same = compare((&curve, &marks), (&curve, &marks), EventKind::Charge).unwrap();
        assert_eq!((same.seconds_compared, same.similarity), (86_400, 100.0));
    }
}
