//! Learns from live roasts how far a person's CHARGE, turning point and DROP are from the moments
//! that the curve shows.
//!
//! A second tracker follows the same samples without any reported mark: a mark that was reported
//! first would hide what the curve shows, and one that is reported after the curve showed it is not
//! an event any more.

use std::collections::VecDeque;

use contract::EventKind;

use crate::event::{MarkChange, Tracker};
use crate::machine_model::{MachineModel, MarkOffset};
use crate::sample::Sample;

/// A reported mark and a moment of the curve further apart than this, ms, do not belong together.
const SAME_MARK_MS: i64 = 90_000;
/// Reported marks that are remembered: those of a few roasts.
const REPORTED_MAX: usize = 16;

/// A mark's kind and time, ms.
type TimedMark = (EventKind, i64);

/// Compares the reported marks of one machine with its curve.
#[derive(Debug, Clone)]
pub(crate) struct OffsetLearner {
    curve: Tracker,
    /// Reported marks, also those of the next roast: its CHARGE may be reported before the marks of
    /// the last roast are learned.
    reported: VecDeque<TimedMark>,
    shown: Vec<TimedMark>,
    /// When the marks of the last roast are learned, ms: a person may still report its DROP.
    due_ms: Option<i64>,
}

impl OffsetLearner {
    pub(crate) fn new(learned: MachineModel) -> Self {
        let curve = Tracker::new(learned);
        Self { curve, reported: VecDeque::new(), shown: Vec::new(), due_ms: None }
    }

    /// Remembers a mark that was reported, whether or not it became an event.
    pub(crate) fn report(&mut self, kind: EventKind, at_ms: i64) {
        if !is_compared(kind) {
            return;
        }
        self.reported.retain(|mark| !is_same_mark(*mark, (kind, at_ms)));
        if self.reported.len() >= REPORTED_MAX {
            self.reported.pop_front();
        }
        self.reported.push_back((kind, at_ms));
    }

    /// Processes the next sample. Returns true if it changed `learned`.
    pub(crate) fn push(&mut self, sample: &Sample, learned: &mut MachineModel) -> bool {
        let mut changed = false;
        if self.due_ms.is_some_and(|due| sample.t_ms >= due) {
            changed = self.learn(learned);
        }
        for change in self.curve.push(sample) {
            match change {
                MarkChange::Detected(mark) if is_compared(mark.kind) => {
                    if mark.kind == EventKind::Charge && self.due_ms.is_some() {
                        changed |= self.learn(learned);
                    }
                    replace(&mut self.shown, (mark.kind, mark.curve_ms));
                    if mark.kind == EventKind::Drop {
                        self.due_ms = Some(mark.curve_ms.saturating_add(SAME_MARK_MS));
                    }
                }
                MarkChange::Detected(_) => {}
                MarkChange::Withdrawn(kind) => self.shown.retain(|(shown, _)| *shown != kind),
            }
        }
        changed
    }

    /// Learns the offsets of one roast, and forgets its marks. Returns true if it had any.
    fn learn(&mut self, learned: &mut MachineModel) -> bool {
        self.due_ms = None;
        let mut changed = false;
        let end_ms = self.shown.iter().map(|(_, at_ms)| *at_ms).max().unwrap_or(i64::MIN);
        for (kind, shown_ms) in std::mem::take(&mut self.shown) {
            let near = self.reported.iter().filter(|mark| is_same_mark(**mark, (kind, shown_ms)));
            let Some((_, at_ms)) = near.min_by_key(|(_, at_ms)| at_ms.abs_diff(shown_ms)) else {
                continue;
            };
            if let Some(offset) = offset_of(learned, kind) {
                offset.learn(at_ms.saturating_sub(shown_ms));
                changed = true;
            }
        }
        // The next roast may have been charged already.
        self.reported.retain(|(kind, at_ms)| *kind == EventKind::Charge && *at_ms > end_ms);
        self.curve.set_model(learned.clone());
        changed
    }
}

const fn is_compared(kind: EventKind) -> bool {
    matches!(kind, EventKind::Charge | EventKind::Tp | EventKind::Drop)
}

/// Returns whether two marks are of one kind, and near enough to be one mark of a roast.
fn is_same_mark(a: TimedMark, b: TimedMark) -> bool {
    a.0 == b.0 && a.1.abs_diff(b.1) <= SAME_MARK_MS.unsigned_abs()
}

const fn offset_of(learned: &mut MachineModel, kind: EventKind) -> Option<&mut MarkOffset> {
    match kind {
        EventKind::Charge => Some(&mut learned.charge_offset),
        EventKind::Tp => Some(&mut learned.tp_offset),
        EventKind::Drop => Some(&mut learned.drop_offset),
        _ => None,
    }
}

/// Stores a mark in place of the one of its kind.
fn replace(marks: &mut Vec<TimedMark>, mark: TimedMark) {
    marks.retain(|(kind, _)| *kind != mark.0);
    marks.push(mark);
}
