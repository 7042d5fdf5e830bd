//! Secondary sensors: the exhaust probe and a scale. They must never cause a mark, because exhaust
//! bends at every change of the air and people lean on scales. But after the bean curve has shown
//! CHARGE or DROP, a scale gives its time to the second, and on some drums the exhaust reacts
//! before the bean probe.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{BtPoint, PAST_MS, POINT_EVERY_MS, charge};
use crate::clean::Cleaner;
use crate::sample::Sample;

/// Exhaust bends by at least this much, °C/s, when a drum is emptied.
const ET_BEND_C_PER_S: f64 = 0.12;
/// The exhaust's moment is looked for so long before the beans'.
const ET_BEFORE_MS: i64 = 45_000;
/// A scale's step lies within this of the curve's moment, is at least so large, and so large a part
/// of what lies on it.
const SCALE_NEAR_MS: u64 = 40_000;
const SCALE_STEP_G: f64 = 20.0;
const SCALE_STEP_SHARE: f64 = 0.3;
/// A batch falls within this.
const SCALE_SPAN_MS: i64 = 5_000;

/// The last minute and a half of what is not the beans' own temperature.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SecondarySensors {
    et: Cleaner,
    et_past: VecDeque<BtPoint>,
    scale: VecDeque<(i64, f64)>,
}

impl SecondarySensors {
    pub(crate) fn push(&mut self, sample: &Sample) {
        let t_ms = sample.t_ms;
        if let Some(c) = self.et.push(t_ms, sample.et_c).value
            && self
                .et_past
                .back()
                .is_none_or(|last| t_ms.saturating_sub(last.t_ms) >= POINT_EVERY_MS)
        {
            self.et_past.push_back(BtPoint { t_ms, bt_c: c });
        }
        if let Some(grams) = sample.weight_g.filter(|g| g.is_finite())
            && self
                .scale
                .back()
                .is_none_or(|(last, _)| t_ms.saturating_sub(*last) >= POINT_EVERY_MS)
        {
            self.scale.push_back((t_ms, grams));
        }
        while self.et_past.front().is_some_and(|p| t_ms.saturating_sub(p.t_ms) > PAST_MS) {
            self.et_past.pop_front();
        }
        while self.scale.front().is_some_and(|(t, _)| t_ms.saturating_sub(*t) > PAST_MS) {
            self.scale.pop_front();
        }
    }

    /// Returns the time, ms, when the exhaust temperature bends down the most, between 45 s before
    /// `curve_ms` and 3 s before `now_ms`; `None` if it does not bend enough.
    pub(crate) fn exhaust_bend_ms(&self, curve_ms: i64, now_ms: i64) -> Option<i64> {
        let from_ms = curve_ms.saturating_sub(ET_BEFORE_MS);
        let found = charge::knee(&self.et_past, from_ms, now_ms.saturating_sub(3_000));
        let (_, at) = found.filter(|(bend, _)| *bend >= ET_BEND_C_PER_S)?;
        Some(at.t_ms)
    }

    /// Returns the time, ms, when the weight changed by a batch near `curve_ms`; `None` if it did
    /// not.
    pub(crate) fn weight_step_ms(&self, curve_ms: i64) -> Option<i64> {
        let near = |t: i64| t.abs_diff(curve_ms) <= SCALE_NEAR_MS;
        let mean = |from: i64, to: i64| {
            let within = self.scale.iter().filter(|(t, _)| (from..to).contains(t));
            let (sum, n) = within.fold((0.0, 0.0), |(sum, n), (_, g)| (sum + g, n + 1.0));
            (n > 0.0).then(|| sum / n)
        };
        let most = self.scale.iter().map(|(_, g)| g.abs()).fold(0.0, f64::max);
        let mut best: Option<(f64, i64)> = None;
        for (t_ms, _) in self.scale.iter().filter(|(t, _)| near(*t)) {
            let before = mean(t_ms.saturating_sub(SCALE_SPAN_MS), *t_ms);
            let after = mean(*t_ms, t_ms.saturating_add(SCALE_SPAN_MS));
            let Some((before, after)) = before.zip(after) else {
                continue;
            };
            let step = (after - before).abs();
            if best.is_none_or(|(largest, _)| step > largest) {
                best = Some((step, *t_ms));
            }
        }
        let (step, at_ms) = best?;
        (step >= SCALE_STEP_G.max(SCALE_STEP_SHARE * most)).then_some(at_ms)
    }
}
