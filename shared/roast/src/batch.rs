//! What is in the drum, and how first crack differs with it on one machine.
//!
//! The machine's line ([`MarkLine`](crate::learn::MarkLine)) is what all its batches share. Beans
//! and batch sizes that lie off it do so by a habit of their own: the mean of what their marks left
//! unexplained, drawn towards nothing as if [`DOUBT`] marks had lain on the line (partial pooling;
//! Gelman & Hill 2007, ch. 12). So a bean that was marked once moves little, and a machine whose
//! marks do not depend on the bean is judged as before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::recording::Recording;

/// Marks on the line that every habit begins with.
const DOUBT: f64 = 4.0;
/// A habit is the mean of about so many marks, so that a new harvest is learned.
const MARKS_MAX: f64 = 12.0;
/// Beans and sizes remembered; the one unseen for longest makes room.
const HABITS_MAX: usize = 64;
/// A habit's mark counts as no further off than this, °C.
const FAR_C: f64 = 8.0;
const NAME_CHARS_MAX: usize = 48;

/// What is in the drum, as far as it is known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    pub beans: String,
    pub weight_g: Option<f64>,
}

impl Batch {
    #[must_use]
    pub fn of(recording: &Recording) -> Self {
        Self { beans: recording.beans.clone(), weight_g: recording.weight_in_g }
    }

    /// The names under which habits are kept: the beans by the first line of what people wrote, the
    /// size by half octaves (100–140 g, 140–200 g, …).
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
struct Habit {
    /// °C from the machine's line, of `marks` marks.
    sum_c: f64,
    marks: f64,
    /// When it was seen last, in marks of this machine.
    seen: u32,
}

impl Habit {
    fn c(self) -> f64 {
        self.sum_c / (self.marks + DOUBT)
    }
}

/// How far batches lie off a machine's line, °C.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Habits {
    by: BTreeMap<String, Habit>,
    marks: u32,
}

impl Habits {
    /// How far first crack of this batch is expected off the machine's line, °C.
    #[must_use]
    pub fn c(&self, batch: &Batch) -> f64 {
        batch.keys().filter_map(|key| self.by.get(&key)).map(|habit| habit.c()).sum()
    }

    /// Learns a mark that lay `off_c` from the machine's line, °C.
    pub fn learn(&mut self, batch: &Batch, off_c: f64) {
        self.marks += 1;
        let together = self.c(batch);
        for key in batch.keys() {
            if !self.by.contains_key(&key) && self.by.len() >= HABITS_MAX {
                self.forget_oldest();
            }
            let habit = self.by.entry(key).or_default();
            // What the other habit of this batch does not explain.
            let own = (off_c - (together - habit.c())).clamp(-FAR_C, FAR_C);
            let kept = if habit.marks < MARKS_MAX { 1.0 } else { 1.0 - 1.0 / MARKS_MAX };
            habit.sum_c = habit.sum_c * kept + own;
            habit.marks = habit.marks * kept + 1.0;
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
        let mut habits = Habits::default();
        for i in 0..40 {
            let (beans, off) = if i % 2 == 0 { ("Kenya AA\nfirst", 4.0) } else { ("Brazil", -4.0) };
            habits.learn(&batch(beans, 150.0), off);
        }
        let kenya = habits.c(&batch("  kenya  aa ", 150.0));
        assert!((2.5..=4.5).contains(&kenya), "{kenya}");
        assert!(habits.c(&batch("Brazil", 150.0)) < -2.0);
        assert!(habits.c(&batch("Peru", 150.0)).abs() < 1.0, "an unknown bean is on the line");
    }

    #[test]
    fn one_mark_moves_little_and_the_memory_is_bounded() {
        let mut habits = Habits::default();
        habits.learn(&batch("Kenya", 150.0), 50.0);
        assert!(habits.c(&batch("Kenya", 150.0)) < 3.3);
        for i in 0..1_000 {
            habits.learn(&batch(&format!("bean {i}"), 150.0), 1.0);
        }
        assert!(habits.by.len() <= HABITS_MAX);
    }
}
