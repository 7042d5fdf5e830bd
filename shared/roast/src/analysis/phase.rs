//! The phases of a roast between its marks: drying (CHARGE → dry end), Maillard (→ first crack) and
//! development (→ DROP), as Artisan defines them.

use serde::Serialize;

use super::{Curve, fit_line, tenths, thousandths};

/// The phases, with the names of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Phase {
    /// From CHARGE to dry end.
    Drying,
    /// From dry end to first crack.
    Maillard,
    /// From first crack to DROP.
    Development,
}

/// The start and end of a phase, in seconds from CHARGE.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PhaseSpan {
    /// The phase.
    pub phase: Phase,
    /// Its start, s.
    pub start_seconds: f64,
    /// Its end, s.
    pub end_seconds: f64,
}

/// The statistics of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PhaseStats {
    /// The phase.
    pub phase: Phase,
    /// Its duration, s.
    pub duration_seconds: f64,
    /// The phase's share of the whole roast, 0..1.
    pub share: f64,
    /// Rise of the bean temperature. In drying it counts from the turning point.
    pub bt_delta_c: Option<f64>,
    /// That rise divided by its time.
    pub avg_ror_c_per_min: Option<f64>,
    /// Slope of the rate of rise, °C/min².
    pub ror_slope_c_per_min2: Option<f64>,
    /// 1: the rate of rise lies on a line. 0: it deviates from the line by its own mean or more.
    pub ror_smoothness_score: Option<f64>,
}

/// The times that separate the phases, in ms of the recording.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PhaseLimits {
    /// CHARGE.
    pub charge: i64,
    /// The turning point.
    pub turned: Option<i64>,
    /// Dry end.
    pub dried: Option<i64>,
    /// First crack.
    pub cracked: Option<i64>,
    /// DROP, or the newest sample while the roast is running.
    pub until: i64,
}

impl PhaseLimits {
    /// Returns the known phases as (phase, start, end). Without a dry end, drying and Maillard
    /// cannot be separated: both count as drying until first crack is known, and as Maillard from
    /// then on.
    fn parts(&self) -> Vec<(Phase, i64, i64)> {
        let mut parts = Vec::with_capacity(3);
        let mut from = self.charge;
        for (phase, limit) in [(Phase::Drying, self.dried), (Phase::Maillard, self.cracked)] {
            match limit {
                Some(limit) => {
                    parts.push((phase, from, limit));
                    from = limit;
                }
                None if phase == Phase::Drying && self.cracked.is_some() => {}
                None => {
                    parts.push((phase, from, self.until));
                    return parts;
                }
            }
        }
        parts.push((Phase::Development, from, self.until));
        parts
    }

    fn seconds(&self, t: i64) -> f64 {
        tenths(t.saturating_sub(self.charge) as f64 / 1000.0)
    }

    /// Returns the start and end of each known phase, in order.
    #[must_use]
    pub fn spans(&self) -> Vec<PhaseSpan> {
        let span = |(phase, from, to)| PhaseSpan {
            phase,
            start_seconds: self.seconds(from),
            end_seconds: self.seconds(to),
        };
        self.parts().into_iter().map(span).collect()
    }

    /// Returns the statistics of each known phase, in order.
    #[must_use]
    pub fn stats(&self, curve: &Curve) -> Vec<PhaseStats> {
        let whole = self.until.saturating_sub(self.charge).max(1) as f64;
        let stats = |(phase, from, to): (Phase, i64, i64)| {
            let rising = match phase {
                Phase::Drying => self.turned.unwrap_or(from).clamp(from, to),
                _ => from,
            };
            let ends = curve.bt_at(rising).zip(curve.bt_at(to));
            let minutes = to.saturating_sub(rising) as f64 / 60_000.0;
            let rise = ends.map(|(a, b)| b - a).filter(|_| minutes > 0.0);
            let rates: Vec<(f64, f64)> = curve
                .ror_between(rising, to)
                .map(|(t, ror)| (t.saturating_sub(rising) as f64 / 60_000.0, ror))
                .collect();
            let fit = fit_line(&rates);
            let mean =
                rates.iter().map(|(_, ror)| ror.abs()).sum::<f64>() / rates.len().max(1) as f64;
            PhaseStats {
                phase,
                duration_seconds: tenths(to.saturating_sub(from) as f64 / 1000.0),
                share: thousandths(to.saturating_sub(from) as f64 / whole),
                bt_delta_c: rise.map(tenths),
                avg_ror_c_per_min: rise.map(|rise| tenths(rise / minutes)),
                ror_slope_c_per_min2: fit.map(|(slope, ..)| thousandths(slope)),
                ror_smoothness_score: fit
                    .filter(|_| mean > 0.1)
                    .map(|(_, _, deviation)| thousandths((1.0 - deviation / mean).clamp(0.0, 1.0))),
            }
        };
        self.parts().into_iter().map(stats).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_begin_at_their_marks() {
        let mut limits =
            PhaseLimits { charge: 0, turned: None, dried: None, cracked: None, until: 42_000 };
        let names = |limits: &PhaseLimits| {
            limits.spans().iter().map(|s| (s.phase, s.end_seconds)).collect::<Vec<_>>()
        };
        assert_eq!(names(&limits), [(Phase::Drying, 42.0)]);
        limits.until = 600_000;
        limits.dried = Some(300_000);
        limits.cracked = Some(480_000);
        assert_eq!(
            names(&limits),
            [(Phase::Drying, 300.0), (Phase::Maillard, 480.0), (Phase::Development, 600.0)]
        );
        limits.dried = None;
        assert_eq!(names(&limits), [(Phase::Maillard, 480.0), (Phase::Development, 600.0)]);
    }
}
