//! Cleaning: a derived view of one channel.
//!
//! The raw value is never changed. The clean value has the reason why it differs from the raw value
//! or why there is none.
//!
//! A value is compared with the value that the channel's recent slope predicts. If the difference
//! exceeds `JUMP_C` plus the allowance for the elapsed time, the value is withheld until the next
//! values show what it was: a spike (they return), a unit flip (they stay, and fit in the other
//! unit), or a true step (they stay, and do not fit).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The range of any bean, flame or exhaust temperature in a roaster, °C.
const RANGE_C: std::ops::RangeInclusive<f64> = -40.0..=600.0;
/// The allowed difference from the predicted value, °C, plus [`JUMP_C_PER_S`] for each second since
/// the last good value: beans that hit a hot probe make it fall by up to 4 °C/s.
const JUMP_C: f64 = 7.0;
const JUMP_C_PER_S: f64 = 4.0;
/// The minimum change of a roasting temperature by a unit flip, °C.
const FLIP_C: f64 = 30.0;
/// This many values that agree with each other over this time are accepted.
const AGREE: usize = 3;
const AGREE_MS: i64 = 2_000;
/// The longest silence after which a unit flip can be distinguished from a true change.
const FLIP_WITHIN_MS: i64 = 20_000;
/// The span of the slope.
const SLOPE_MS: i64 = 15_000;
/// After a longer silence any value that is not a flip is accepted.
const FORGET_MS: i64 = 60_000;
/// A curve is stuck if it moved at this rate, °C/s, and then shows one value for [`STUCK_MS`].
const MOVING_C_PER_S: f64 = 0.08;
const STUCK_MS: i64 = 30_000;
/// The longest dropout that is bridged, in samples and in ms. Live values are never bridged.
const BRIDGE_SAMPLES: usize = 3;
const BRIDGE_MS: i64 = 6_500;

/// The reason for a clean value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueQuality {
    /// Equal to the probe's value.
    Good,
    /// The probe returned no value.
    Missing,
    /// Outside the channel's range.
    Range,
    /// Far from its neighbours: withheld until later values show what it was.
    Spike,
    /// The same value for too long on a curve that was moving.
    Stuck,
    /// The first of several values that agree with each other and not with the values before: the
    /// channel jumped, which a bean temperature cannot do.
    Step,
    /// Received in the other unit (°C or °F) and converted.
    UnitFlip,
    /// The same value several times, then a step: the probe is polled faster than it measures, or
    /// shows whole degrees.
    Staircase,
    /// Interpolated between the good neighbours of a short dropout. Never in live values.
    Bridged,
}

/// One value of the clean view.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CleanValue {
    /// Event time, ms.
    pub t_ms: i64,
    /// The probe's value, °C; `None` if it returned none.
    pub raw: Option<f64>,
    /// The clean value, °C; `None` if it is unknown.
    pub value: Option<f64>,
    /// Why `value` is what it is.
    pub quality: ValueQuality,
}

/// Cleans one channel, sample by sample, without look-ahead.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cleaner {
    good: VecDeque<(i64, f64)>,
    withheld: Vec<(i64, f64)>,
    /// True while the probe reports °F.
    flipped: bool,
    /// The time since when the value has not changed, and its slope before, °C/s.
    same_since: Option<(i64, f64)>,
    /// The number of accepted values, and of values that changed after several equal ones.
    taken: u32,
    stairs: u32,
}

impl Cleaner {
    /// Cleans the next raw value, °C. `t_ms` is event time.
    pub fn push(&mut self, t_ms: i64, raw: Option<f64>) -> CleanValue {
        let (value, why) = self.classify(t_ms, raw);
        CleanValue { t_ms, raw, value, quality: why }
    }

    fn classify(&mut self, t_ms: i64, raw: Option<f64>) -> (Option<f64>, ValueQuality) {
        let Some(raw) = raw else { return (None, ValueQuality::Missing) };
        if !raw.is_finite() || !RANGE_C.contains(&raw) {
            return (None, ValueQuality::Range);
        }
        let read = |flipped: bool| if flipped { celsius(raw) } else { raw };
        let Some((last_ms, _)) = self.good.back().copied() else {
            return self.accept(t_ms, raw);
        };
        if t_ms <= last_ms {
            return (None, ValueQuality::Spike);
        }
        let expected = self.expected(t_ms);
        let passed_ms = t_ms.saturating_sub(last_ms);
        let limit = JUMP_C + JUMP_C_PER_S * passed_ms as f64 / 1000.0;
        if (read(self.flipped) - expected).abs() <= limit.min(FLIP_C) {
            self.withheld.clear();
            return self.accept(t_ms, read(self.flipped));
        }
        // The value is far off: check whether it fits in the other unit.
        let other = if self.flipped { raw } else { celsius(raw) };
        let flip = (other - expected).abs() <= limit.min(FLIP_C) && passed_ms <= FLIP_WITHIN_MS;
        if passed_ms > FORGET_MS && !flip {
            self.restart();
            let (value, _) = self.accept(t_ms, read(self.flipped));
            return (value, ValueQuality::Step);
        }
        if self.withheld.last().is_some_and(|(t, v)| !agree(*t, *v, t_ms, raw)) {
            self.withheld.clear();
        }
        self.withheld.push((t_ms, raw));
        let since = self.withheld.first().map_or(t_ms, |(t, _)| *t);
        if self.withheld.len() < AGREE || t_ms.saturating_sub(since) < AGREE_MS {
            return (None, ValueQuality::Spike);
        }
        if flip {
            self.flipped = !self.flipped;
            self.withheld.clear();
            return self.accept(t_ms, other);
        }
        // Or the past values were in the other unit and this value is in the right one.
        self.restart();
        let (value, _) = self.accept(t_ms, read(self.flipped));
        (value, ValueQuality::Step)
    }

    /// Discards the past after a jump, because it does not predict the channel any more.
    fn restart(&mut self) {
        self.good.clear();
        self.withheld.clear();
        self.same_since = None;
    }

    fn accept(&mut self, t_ms: i64, value: f64) -> (Option<f64>, ValueQuality) {
        let slope = self.slope();
        let same = self.good.back().is_some_and(|(_, last)| same_value(*last, value));
        if same {
            let (since, moving) = *self.same_since.get_or_insert((t_ms, slope));
            if t_ms.saturating_sub(since) >= STUCK_MS && moving.abs() >= MOVING_C_PER_S {
                return (None, ValueQuality::Stuck);
            }
        } else if self.same_since.take().is_some() {
            self.stairs = self.stairs.saturating_add(1);
        }
        self.taken = self.taken.saturating_add(1);
        if self.taken >= 40 {
            (self.taken, self.stairs) = (self.taken / 2, self.stairs / 2);
        }
        self.good.push_back((t_ms, value));
        while self.good.front().is_some_and(|(t, _)| t_ms.saturating_sub(*t) > SLOPE_MS)
            && self.good.len() > 2
        {
            self.good.pop_front();
        }
        let stairs = self.stairs >= 3 && self.stairs.saturating_mul(8) > self.taken;
        let why = match (self.flipped, stairs && slope.abs() > MOVING_C_PER_S / 2.0) {
            (true, _) => ValueQuality::UnitFlip,
            (false, true) => ValueQuality::Staircase,
            (false, false) => ValueQuality::Good,
        };
        (Some(value), why)
    }

    /// Returns the slope over the stored good values, °C/s.
    fn slope(&self) -> f64 {
        match (self.good.front(), self.good.back()) {
            (Some((t0, v0)), Some((t1, v1))) if t1.saturating_sub(*t0) >= 2_000 => {
                (v1 - v0) / (t1.saturating_sub(*t0) as f64 / 1000.0)
            }
            _ => 0.0,
        }
    }

    fn expected(&self, t_ms: i64) -> f64 {
        let Some((last_ms, last)) = self.good.back() else { return 0.0 };
        // Extrapolate a slope for 10 s at most.
        let ahead_s = (t_ms.saturating_sub(*last_ms) as f64 / 1000.0).min(10.0);
        last + self.slope().clamp(-2.0, 2.0) * ahead_s
    }
}

/// Returns true if two readings of one probe are equal to the last bit.
#[allow(clippy::float_cmp)]
fn same_value(a: f64, b: f64) -> bool {
    a == b
}

fn celsius(fahrenheit: f64) -> f64 {
    (fahrenheit - 32.0) / 1.8
}

fn agree(t0: i64, v0: f64, t1: i64, v1: f64) -> bool {
    (v1 - v0).abs() <= JUMP_C + JUMP_C_PER_S * t1.saturating_sub(t0) as f64 / 1000.0
}

/// Returns the clean view of a whole channel: the values of a live [`Cleaner`], with short dropouts
/// bridged.
#[must_use]
pub fn clean_channel(raw: impl IntoIterator<Item = (i64, Option<f64>)>) -> Vec<CleanValue> {
    let mut cleaner = Cleaner::default();
    let mut view: Vec<CleanValue> =
        raw.into_iter().map(|(t, value)| cleaner.push(t, value)).collect();
    bridge(&mut view);
    view
}

/// Fills short dropouts by interpolation between their good neighbours.
fn bridge(view: &mut [CleanValue]) {
    let known = view.iter().enumerate().filter(|(_, reading)| reading.value.is_some());
    let known: Vec<usize> = known.map(|(at, _)| at).collect();
    for (from, to) in known.iter().zip(known.iter().skip(1)) {
        bridge_gap(&mut view[*from..=*to]);
    }
}

/// Interpolates between the first and the last value of a span, if the dropout between is short.
fn bridge_gap(span: &mut [CleanValue]) {
    let [before, gap @ .., after] = span else { return };
    let (Some(v0), Some(v1)) = (before.value, after.value) else { return };
    let span_ms = after.t_ms.saturating_sub(before.t_ms);
    if gap.len() > BRIDGE_SAMPLES || span_ms > BRIDGE_MS {
        return;
    }
    for missing in gap {
        let passed_ms = missing.t_ms.saturating_sub(before.t_ms);
        missing.value = Some(v0 + (v1 - v0) * passed_ms as f64 / span_ms as f64);
        missing.quality = ValueQuality::Bridged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whys(values: &[Option<f64>]) -> Vec<ValueQuality> {
        clean_channel((0..).zip(values.iter()).map(|(i, v)| (i * 1_500, *v)))
            .iter()
            .map(|c| c.quality)
            .collect()
    }

    fn rising(n: usize) -> Vec<Option<f64>> {
        (0..n).map(|i| Some(150.0 + i as f64 * 0.25)).collect()
    }

    #[test]
    fn a_spike_is_withheld_and_bridged() {
        let mut values = rising(30);
        values[20] = Some(250.0);
        values[25] = None;
        let seen = whys(&values);
        assert_eq!((seen[20], seen[25]), (ValueQuality::Bridged, ValueQuality::Bridged));
        let mut live = Cleaner::default();
        let live: Vec<_> = (0..).zip(&values).map(|(i, v)| live.push(i * 1_500, *v)).collect();
        assert_eq!(
            (live[20].value, live[20].quality),
            (None, ValueQuality::Spike),
            "live it is not known yet"
        );
        assert!(seen[..20].iter().all(|why| *why == ValueQuality::Good));
    }

    #[test]
    fn a_flip_to_fahrenheit_is_read_as_what_it_is() {
        let mut values = rising(60);
        for value in &mut values[30..50] {
            *value = value.map(|v| v * 1.8 + 32.0);
        }
        let seen = clean_channel((0..).zip(values.iter()).map(|(i, v)| (i * 1_500, *v)));
        assert_eq!(seen[40].quality, ValueQuality::UnitFlip);
        assert!((seen[40].value.unwrap() - (150.0 + 40.0 * 0.25)).abs() < 1e-9);
        assert_eq!(seen[58].quality, ValueQuality::Good, "and back");
        assert!(seen.iter().filter_map(|c| c.value).all(|v| v < 170.0));
    }

    #[test]
    fn a_real_step_is_accepted_after_three_samples() {
        let mut values = rising(20);
        values.extend((0..10).map(|i| Some(60.0 + f64::from(i) * 0.1)));
        let seen = clean_channel((0..).zip(values.iter()).map(|(i, v)| (i * 1_500, *v)));
        assert_eq!((seen[22].value, seen[22].quality), (Some(60.2), ValueQuality::Step));
        assert_eq!(seen[29].quality, ValueQuality::Good);
    }

    #[test]
    fn a_stuck_probe_is_not_taken_for_fresh() {
        let mut values = rising(30);
        values.extend(std::iter::repeat_n(Some(157.25), 40));
        let seen = clean_channel((0..).zip(values.iter()).map(|(i, v)| (i * 1_500, *v)));
        assert_eq!(seen[60].quality, ValueQuality::Stuck);
        assert_eq!(seen[60].value, None);
    }

    #[test]
    fn whole_degrees_are_a_staircase_and_nothing_worse() {
        let values: Vec<_> =
            (0..200).map(|i| Some((150.0 + f64::from(i) * 0.15).floor())).collect();
        let seen = clean_channel((0..).zip(values.iter()).map(|(i, v)| (i * 1_000, *v)));
        assert!(seen.iter().all(|c| c.value == c.raw));
        assert_eq!(seen[150].quality, ValueQuality::Staircase);
    }

    #[test]
    fn a_charge_is_no_spike() {
        let mut values = vec![Some(190.0); 10];
        values.extend((0..20).map(|i| Some(190.0 - 4.0 * f64::from(i) * 1.5 * 0.8)));
        let seen = whys(&values);
        assert!(seen.iter().all(|why| *why == ValueQuality::Good), "{seen:?}");
    }
}
