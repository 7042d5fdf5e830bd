//! The offset between people's marks and the moments that the curve shows.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::calibration::Errors;

/// The offset between the moment that a person marks and the moment that the curve shows: a door is
/// opened before the probe reacts to air, and a key is pressed after the beans have fallen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MarkOffset {
    /// Time of the mark minus time of the curve, ms; the newest is last.
    seen: VecDeque<i64>,
    /// How far each mark was from where the earlier ones had placed it, ms; the newest is last.
    #[serde(default)]
    errors: Errors,
}

const OFFSETS_MAX: usize = 12;
/// With fewer marks than this their spread is not known.
const OFFSETS_MIN: usize = 3;
/// A mark with a larger offset than this, in ms, was set for another reason and is ignored.
const OFFSET_MS_MAX: u64 = 90_000;
/// The spread that is assumed before any mark, and the number of marks that it represents.
const SPREAD_MS: i64 = 6_000;
const SPREAD_MARKS: i64 = 2;
/// The half width of the 90 % interval is at least this, ms: about one sample.
const HALF_MS_MIN: i64 = 2_000;

impl MarkOffset {
    /// Learns the offset of a mark from the curve's moment, ms.
    pub fn learn(&mut self, ms: i64) {
        if ms.unsigned_abs() > OFFSET_MS_MAX {
            return;
        }
        self.errors.learn(ms.saturating_sub(self.correction_ms()) as f64);
        if self.seen.len() >= OFFSETS_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(ms);
    }

    /// Returns what to add to the curve's moment, ms: the median of the newest offsets, drawn towards
    /// 0 as if one more mark had been at the curve's moment.
    #[must_use]
    pub fn correction_ms(&self) -> i64 {
        let n = i64::try_from(self.seen.len()).unwrap_or(0);
        median(&self.seen).saturating_mul(n).checked_div(n.saturating_add(1)).unwrap_or(0)
    }

    /// Returns the median distance of the marks from their median, ms, drawn towards a usual one
    /// while the marks are few; `None` until there are enough.
    #[must_use]
    pub fn spread_ms(&self) -> Option<i64> {
        if self.seen.len() < OFFSETS_MIN {
            return None;
        }
        let middle = median(&self.seen);
        let off: VecDeque<i64> =
            self.seen.iter().map(|ms| ms.saturating_sub(middle).saturating_abs()).collect();
        let n = i64::try_from(off.len()).unwrap_or(0);
        let sum = median(&off).saturating_mul(n).saturating_add(SPREAD_MS * SPREAD_MARKS);
        sum.checked_div(n.saturating_add(SPREAD_MARKS))
    }

    /// Returns the half width of the 90 % interval of the next mark, ms, from the errors so far and
    /// the half width before any mark.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // below the largest offset, ms
    pub fn half_ms(&self, prior_ms: i64) -> i64 {
        (self.errors.half_width(prior_ms as f64) as i64).max(HALF_MS_MIN)
    }
}

fn median(values: &VecDeque<i64>) -> i64 {
    let mut sorted: Vec<i64> = values.iter().copied().collect();
    sorted.sort_unstable();
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2);
    let upper = sorted.get(sorted.len() / 2);
    lower.zip(upper).map_or(0, |(lower, upper)| i64::midpoint(*lower, *upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_drawn_towards_the_curve_while_marks_are_few_and_ignores_what_is_no_mark() {
        let mut offset = MarkOffset::default();
        offset.learn(-14_000);
        offset.learn(-13_000);
        assert_eq!((offset.correction_ms(), offset.spread_ms()), (-9_000, None));
        offset.learn(600_000);
        offset.learn(-16_000);
        assert_eq!((offset.correction_ms(), offset.spread_ms()), (-10_500, Some(3_000)));
    }

    #[test]
    fn an_offset_at_the_limit_of_a_number_is_ignored() {
        let mut offset = MarkOffset::default();
        offset.learn(i64::MIN);
        offset.learn(i64::MAX);
        assert_eq!(offset, MarkOffset::default());
    }
}
