//! The content of the drum (beans and batch size), and its effect on the temperature of first crack
//! on one machine.
//!
//! All batches of a machine share its line ([`MarkLine`](crate::machine_model::MarkLine)). Each kind of
//! beans and each batch size has its own offset from the line: the mean residual of its marks,
//! shrunk towards 0 as if `PRIOR_MARKS` further marks had lain on the line (partial pooling; Gelman &
//! Hill 2007, ch. 12). So a bean that was marked once has a small offset, and the predictions stay
//! the same on a machine whose marks do not depend on the bean.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::recording::Recording;

/// The number of assumed marks on the line with which every offset starts.
const PRIOR_MARKS: f64 = 4.0;
/// An offset is the mean of about this many recent marks, so that it follows a new harvest.
const MARKS_MAX: f64 = 12.0;
/// The maximum number of stored beans and sizes. A new one replaces the least recently used.
const HABITS_MAX: usize = 64;
/// The maximum residual of one mark, °C. A larger one is clamped to it.
const FAR_C: f64 = 8.0;
const NAME_CHARS_MAX: usize = 48;

/// The known content of the drum.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// The description of the beans; empty if unknown.
    pub beans: String,
    /// The weight of the green beans, g.
    pub weight_g: Option<f64>,
}

impl Batch {
    /// Returns the batch that a recording names.
    #[must_use]
    pub fn of(recording: &Recording) -> Self {
        Self { beans: recording.beans.clone(), weight_g: recording.weight_in_g }
    }

    /// Returns the keys of this batch's offsets: the first non-empty line of the beans' text, and
    /// the batch size in half octaves (91–128 g, 128–181 g, …).
    fn keys(&self) -> impl Iterator<Item = String> {
        let line = self.beans.lines().map(str::trim).find(|line| !line.is_empty());
        let beans = line.map(|line| {
            let words = line.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>();
            let name: String = words.join(" ").chars().take(NAME_CHARS_MAX).collect();
            format!("beans {name}")
        });
        let size = self.weight_g.filter(|g| (1.0..=1e6).contains(g));
        let size = size.map(|grams| format!("size {:.0}", (grams.log2() * 2.0).floor()));
        beans.into_iter().chain(size)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct BatchOffset {
    /// Sum of the residuals of `marks` marks from the machine's line, °C.
    sum_c: f64,
    marks: f64,
    /// The machine's mark count when this offset was last updated.
    seen: u32,
}

impl BatchOffset {
    fn shrunk_offset_c(self) -> f64 {
        self.sum_c / (self.marks + PRIOR_MARKS)
    }
}

/// The offsets of beans and batch sizes from a machine's line, °C.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BatchOffsets {
    by: BTreeMap<String, BatchOffset>,
    marks: u32,
}

impl BatchOffsets {
    /// Returns the expected offset of this batch's first crack from the machine's line, °C.
    #[must_use]
    pub fn offset_c(&self, batch: &Batch) -> f64 {
        batch.keys().filter_map(|key| self.by.get(&key)).map(|habit| habit.shrunk_offset_c()).sum()
    }

    /// Learns from a mark whose residual from the machine's line was `off_c`, °C.
    pub fn learn(&mut self, batch: &Batch, off_c: f64) {
        self.marks = self.marks.saturating_add(1);
        let together = self.offset_c(batch);
        for key in batch.keys() {
            if !self.by.contains_key(&key) && self.by.len() >= HABITS_MAX {
                self.forget_oldest();
            }
            let habit = self.by.entry(key).or_default();
            // The part of the residual that the batch's other offset does not explain.
            let own = (off_c - (together - habit.shrunk_offset_c())).clamp(-FAR_C, FAR_C);
            let decay = if habit.marks < MARKS_MAX { 1.0 } else { 1.0 - 1.0 / MARKS_MAX };
            habit.sum_c = habit.sum_c * decay + own;
            habit.marks = habit.marks * decay + 1.0;
            habit.seen = self.marks;
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.by.iter().min_by_key(|(_, habit)| habit.seen).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.by.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(beans: &str, weight_g: f64) -> Batch {
        Batch { beans: beans.to_owned(), weight_g: Some(weight_g) }
    }

    #[test]
    fn a_bean_that_cracks_later_is_learned_beside_the_others() {
        let mut habits = BatchOffsets::default();
        for i in 0..40 {
            let (beans, off) = if i % 2 == 0 { ("Kenya AA\nfirst", 4.0) } else { ("Brazil", -4.0) };
            habits.learn(&batch(beans, 150.0), off);
        }
        let kenya = habits.offset_c(&batch("  kenya  aa ", 150.0));
        assert!((2.5..=4.5).contains(&kenya), "{kenya}");
        assert!(habits.offset_c(&batch("Brazil", 150.0)) < -2.0);
        assert!(
            habits.offset_c(&batch("Peru", 150.0)).abs() < 1.0,
            "an unknown bean is on the line"
        );
    }

    #[test]
    fn one_mark_moves_little_and_the_memory_is_bounded() {
        let mut habits = BatchOffsets::default();
        habits.learn(&batch("Kenya", 150.0), 50.0);
        assert!(habits.offset_c(&batch("Kenya", 150.0)) < 3.3);
        for i in 0..1_000 {
            habits.learn(&batch(&format!("bean {i}"), 150.0), 1.0);
        }
        assert!(habits.by.len() <= HABITS_MAX);
    }
}
