//! Sorts samples that arrive late, twice or out of order, before the tracker processes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::sample::Sample;

/// The maximum number of held samples. Above it the oldest are released early.
const BUFFERED_MAX: usize = 4_096;

/// A sample that arrived after its time had been processed, or a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateSample;

/// Holds samples back for `wait_ms` of event time, so that stragglers find their place. The
/// watermark is event time too: a machine that falls silent judges nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReorderBuffer {
    wait_ms: i64,
    held: BTreeMap<i64, Sample>,
    /// Everything up to here has been let through.
    watermark_ms: i64,
}

impl ReorderBuffer {
    /// Creates a buffer that holds samples back for `wait_ms` of event time.
    #[must_use]
    pub const fn new(wait_ms: i64) -> Self {
        Self { wait_ms, held: BTreeMap::new(), watermark_ms: i64::MIN }
    }

    /// Stores a sample and returns the samples that are now due, in order.
    ///
    /// # Errors
    /// [`LateSample`] when its time has been judged already, or is held: it changes nothing.
    pub fn push(&mut self, sample: Sample) -> Result<Vec<Sample>, LateSample> {
        if sample.t_ms <= self.watermark_ms || self.held.contains_key(&sample.t_ms) {
            return Err(LateSample);
        }
        self.held.insert(sample.t_ms, sample);
        let newest = self.held.last_key_value().map_or(i64::MIN, |(t, _)| *t);
        let mut due = Vec::new();
        while let Some((t_ms, first)) = self.held.first_key_value()
            && (newest.saturating_sub(*t_ms) >= self.wait_ms || self.held.len() > BUFFERED_MAX)
        {
            let (t_ms, first) = (*t_ms, *first);
            self.watermark_ms = t_ms;
            self.held.remove(&t_ms);
            due.push(first);
        }
        Ok(due)
    }

    /// Releases everything that is held, in order, and takes its times as processed.
    pub fn finish(&mut self) -> Vec<Sample> {
        let rest = std::mem::take(&mut self.held);
        if let Some((last, _)) = rest.last_key_value() {
            self.watermark_ms = *last;
        }
        rest.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(samples: &[Sample]) -> Vec<i64> {
        samples.iter().map(|s| s.t_ms).collect()
    }

    #[test]
    fn late_samples_are_sorted_in_and_duplicates_are_dropped() {
        let mut order = ReorderBuffer::new(5_000);
        let mut out = Vec::new();
        for t in [0, 1_000, 3_000, 2_000, 2_000, 9_000, 8_000, 2_900] {
            if let Ok(due) = order.push(Sample::bean(t, Some(1.0))) {
                out.extend(due);
            }
        }
        assert_eq!(times(&out), [0, 1_000, 2_000, 3_000]);
        assert_eq!(
            order.push(Sample::bean(2_500, None)),
            Err(LateSample),
            "its time has been judged"
        );
        assert_eq!(times(&order.finish()), [8_000, 9_000], "2 900 came too late");
    }

    #[test]
    fn times_at_the_limits_of_a_number_are_sorted() {
        let (first, last) = (i64::MIN + 1, i64::MAX);
        let mut order = ReorderBuffer::new(5_000);
        assert_eq!(order.push(Sample::bean(first, None)), Ok(Vec::new()));
        assert_eq!(times(&order.push(Sample::bean(last, None)).unwrap()), [first]);
        assert_eq!(times(&order.finish()), [last]);
    }
}
