//! Rate of rise: the slope of a temperature, °C/min.
//!
//! A least-squares line is fitted to the last [`SPAN_MS`] of event time, in the same way live and
//! afterwards. The span is a time and not a number of samples, so the poll rate changes the noise
//! and never the meaning. The slope belongs to the middle of the fitted span: the lag is half of
//! the span. The width of its interval follows from the residuals of the line. Without enough
//! recent readings the result is `None`, never an old value.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The span of the fit, ms.
pub const SPAN_MS: i64 = 20_000;
const READINGS_MIN: usize = 4;
/// After a gap longer than this, in ms, the curve starts anew: only the later readings are fitted.
const GAP_MS_MAX: i64 = 10_000;
/// The largest number of readings held: 20 s at 100 Hz.
const READINGS_MAX: usize = 2_000;
/// The normal distribution's quantile, in standard deviations: 90 % lie within ± this.
const Z90: f64 = 1.645;
/// The least noise assumed of a thermometer, °C: even a perfectly fitting line is not certain.
const NOISE_C: f64 = 0.02;

/// A rate of rise and its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RiseEstimate {
    /// The slope of the line through the readings, °C/min.
    pub c_per_min: f64,
    /// Half the width of the 90 % interval of the span's true slope, °C/min.
    pub band_c_per_min: f64,
    /// The length of the fitted span, ms. The slope belongs to its middle, half a span ago.
    pub span_ms: i64,
    /// The line's value at the newest reading, °C: the temperature without its noise.
    pub now_c: f64,
}

/// Estimates the rate of rise from the readings of one probe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RateOfRise {
    span_ms: i64,
    readings: VecDeque<(i64, f64)>,
}

impl Default for RateOfRise {
    fn default() -> Self {
        Self::with_span(SPAN_MS)
    }
}

impl RateOfRise {
    /// Creates an estimator with another span than [`SPAN_MS`].
    #[must_use]
    pub const fn with_span(span_ms: i64) -> Self {
        Self { span_ms, readings: VecDeque::new() }
    }

    /// Adds one sample (`t_ms` in event time, ascending) and returns the rate of rise at that time.
    pub fn push(&mut self, t_ms: i64, value_c: Option<f64>) -> Option<RiseEstimate> {
        if self.add(t_ms, value_c?) { self.estimate(self.span_ms) } else { None }
    }

    /// Adds one sample without a fit. Returns `false` if its time is not after the newest sample's;
    /// the sample is then ignored.
    pub fn add(&mut self, t_ms: i64, value_c: f64) -> bool {
        if let Some((last, _)) = self.readings.back() {
            if t_ms <= *last {
                return false;
            }
            if t_ms.saturating_sub(*last) > GAP_MS_MAX {
                self.readings.clear();
            }
        }
        self.readings.push_back((t_ms, value_c));
        while self.readings.front().is_some_and(|(t, _)| t_ms.saturating_sub(*t) > self.span_ms)
            || self.readings.len() > READINGS_MAX
        {
            self.readings.pop_front();
        }
        true
    }

    /// Discards all readings, for a new curve.
    pub fn restart(&mut self) {
        self.readings.clear();
    }

    /// Returns the rate of rise over the newest `span_ms` of the readings held.
    #[must_use]
    pub fn estimate(&self, span_ms: i64) -> Option<RiseEstimate> {
        let (now_ms, _) = *self.readings.back()?;
        let from = self.readings.partition_point(|(t, _)| now_ms.saturating_sub(*t) > span_ms);
        let (first, base) = *self.readings.get(from)?;
        let count = self.readings.len().saturating_sub(from);
        let covered_ms = now_ms.saturating_sub(first);
        if covered_ms < span_ms / 2 || count < READINGS_MIN {
            return None;
        }
        let n = count as f64;
        // Values count from the first reading and times from now: sums of small numbers stay exact
        // enough.
        let (mut st, mut sv, mut stt, mut stv, mut svv) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (t, value) in self.readings.range(from..) {
            let (t, v) = (t.saturating_sub(now_ms) as f64 / 60_000.0, value - base);
            st += t;
            sv += v;
            stt += t * t;
            stv += t * v;
            svv += v * v;
        }
        let under = stt - st * st / n;
        if under <= 0.0 {
            return None;
        }
        let slope = (stv - st * sv / n) / under;
        let rest = (svv - sv * sv / n - slope * slope * under).max(0.0);
        let variance = (rest / (n - 2.0)).max(NOISE_C * NOISE_C);
        Some(RiseEstimate {
            c_per_min: slope,
            band_c_per_min: Z90 * (variance / under).sqrt(),
            span_ms: covered_ms,
            now_c: base + sv / n - slope * st / n,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(period_ms: i64, f: impl Fn(f64) -> Option<f64>) -> Option<RiseEstimate> {
        let mut ror = RateOfRise::default();
        (0..=60_000 / period_ms)
            .map(|i| ror.push(i * period_ms, f((i * period_ms) as f64)))
            .last()?
    }

    #[test]
    fn a_straight_line_has_its_slope_at_any_poll_rate() {
        for period_ms in [100, 1_000, 1_500, 3_000] {
            let rise = last(period_ms, |ms| Some(150.0 + ms / 60_000.0 * 9.5)).unwrap();
            assert!((rise.c_per_min - 9.5).abs() < 1e-9, "{rise:?} at {period_ms} ms");
            assert!((rise.now_c - 159.5).abs() < 0.5 && rise.band_c_per_min < 0.5, "{rise:?}");
        }
    }

    #[test]
    fn noise_widens_the_band_and_the_band_holds() {
        let mut outside = 0;
        let mut twin = crate::noise::Noise::new(42, 1);
        for _ in 0..400 {
            let rise = {
                let mut ror = RateOfRise::default();
                (0..=20)
                    .filter_map(|i| {
                        let value = 150.0 + f64::from(i) / 6.0 + 0.2 * twin.normal();
                        ror.push(i64::from(i) * 1_000, Some(value))
                    })
                    .last()
                    .unwrap()
            };
            outside += i32::from((rise.c_per_min - 10.0).abs() > rise.band_c_per_min);
        }
        assert!((20..=68).contains(&outside), "{outside} of 400 outside a 90 % band");
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        assert_eq!(last(1_000, |ms| (ms < 30_000.0).then_some(150.0)), None, "readings stopped");
        let mut ror = RateOfRise::default();
        for i in 0..60 {
            ror.push(i * 1_000, Some(150.0));
        }
        assert_eq!(ror.push(120_000, Some(190.0)), None, "a gap is not a slope");
        assert_eq!(ror.push(119_000, Some(190.0)), None, "time that runs back is not a slope");
    }
}
