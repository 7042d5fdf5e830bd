//! Rate of rise: the slope of bean temperature, °C/min.
//!
//! A least-squares line over the last [`SPAN_MS`] of event time (not of samples, so the poll rate
//! changes the noise and never the meaning). The slope belongs to the middle of the span: the lag
//! is half of it. Without enough fresh readings the answer is `None`, never an old value.

use std::collections::VecDeque;

/// The span of the fit.
pub const SPAN_MS: i64 = 20_000;
/// Below this the line is mostly noise.
const COVERED_MS_MIN: i64 = SPAN_MS / 2;
const READINGS_MIN: usize = 4;
/// A silence this long breaks the curve: what comes after is fitted alone.
const GAP_MS_MAX: i64 = 10_000;
/// At most this many readings are held: 20 s at 100 Hz.
const READINGS_MAX: usize = 2_000;

/// The estimator, live and after the fact alike.
#[derive(Debug, Clone, Default)]
pub struct RateOfRise {
    readings: VecDeque<(i64, f64)>,
}

impl RateOfRise {
    /// Takes one sample (`t_ms` in event time, ascending) and answers the rate of rise there.
    pub fn push(&mut self, t_ms: i64, bt_c: Option<f64>) -> Option<f64> {
        let bt_c = bt_c?;
        if let Some((last, _)) = self.readings.back() {
            if t_ms <= *last {
                return None;
            }
            if t_ms - last > GAP_MS_MAX {
                self.readings.clear();
            }
        }
        self.readings.push_back((t_ms, bt_c));
        while self.readings.front().is_some_and(|(t, _)| t_ms - t > SPAN_MS)
            || self.readings.len() > READINGS_MAX
        {
            self.readings.pop_front();
        }
        self.slope_per_min(t_ms)
    }

    fn slope_per_min(&self, now_ms: i64) -> Option<f64> {
        let (first, _) = *self.readings.front()?;
        if now_ms - first < COVERED_MS_MIN || self.readings.len() < READINGS_MIN {
            return None;
        }
        let n = self.readings.len() as f64;
        let minutes = |t: i64| (t - now_ms) as f64 / 60_000.0;
        let mean_t = self.readings.iter().map(|(t, _)| minutes(*t)).sum::<f64>() / n;
        let mean_bt = self.readings.iter().map(|(_, bt)| bt).sum::<f64>() / n;
        let (mut over, mut under) = (0.0, 0.0);
        for (t, bt) in &self.readings {
            let dt = minutes(*t) - mean_t;
            over += dt * (bt - mean_bt);
            under += dt * dt;
        }
        (under > 0.0).then(|| over / under)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(period_ms: i64, f: impl Fn(f64) -> Option<f64>) -> Option<f64> {
        let mut ror = RateOfRise::default();
        (0..=60_000 / period_ms)
            .map(|i| ror.push(i * period_ms, f((i * period_ms) as f64)))
            .last()?
    }

    #[test]
    fn a_straight_line_has_its_slope_at_any_poll_rate() {
        for period_ms in [100, 1_000, 1_500, 3_000] {
            let slope = last(period_ms, |ms| Some(150.0 + ms / 60_000.0 * 9.5)).unwrap();
            assert!((slope - 9.5).abs() < 1e-9, "{slope} at {period_ms} ms");
        }
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
