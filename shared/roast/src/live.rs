//! Live tracking of one machine, roast after roast: marks, forecasts, and learning from people's
//! marks.
//!
//! Marks that people make during a roast are learned when it ends, so that a roast is never judged
//! with its own marks.

use contract::EventKind;
use serde::{Deserialize, Serialize};

use crate::event::{MarkChange, Tracker};
use crate::forecast::{Forecast, Forecaster};
use crate::live_offsets::OffsetLearner;
use crate::machine_model::MachineModel;
use crate::sample::Sample;

/// Marks of one roast that are remembered for learning.
const REPORTED_MARKS_MAX: usize = 32;

/// Tracks one machine from roast to roast.
#[derive(Debug, Clone)]
pub struct LiveRoast {
    learned: MachineModel,
    infer_ends: bool,
    tracker: Tracker,
    forecaster: Forecaster,
    reported: Vec<ReportedMark>,
    offsets: Option<OffsetLearner>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct ReportedMark {
    kind: EventKind,
    at_ms: i64,
    bt_c: f64,
}

impl LiveRoast {
    /// Creates the tracking of a machine with the model `learned` from its earlier roasts.
    /// `infer_ends` is false for a machine that reports CHARGE and DROP itself.
    #[must_use]
    pub fn new(learned: MachineModel, infer_ends: bool) -> Self {
        let tracker = Tracker::new(learned.clone());
        Self {
            tracker: if infer_ends { tracker } else { tracker.without_end_detection() },
            forecaster: Forecaster::new(learned.ahead.clone()),
            learned,
            infer_ends,
            reported: Vec::new(),
            offsets: None,
        }
    }

    /// Also learns how far the reported CHARGE and DROP are from the curve, on a machine that does
    /// not report them itself. This tracks every sample twice.
    #[must_use]
    pub fn with_offset_learning(mut self) -> Self {
        self.offsets = self.infer_ends.then(|| OffsetLearner::new(self.learned.clone()));
        self
    }

    /// Resumes a running roast that was charged at `charge_ms` and has these marks.
    pub fn resume(&mut self, charge_ms: i64, marked: &[EventKind]) {
        self.restart();
        self.tracker.resume(charge_ms, marked);
    }

    /// Forgets the running roast, and keeps what was learned.
    pub fn restart(&mut self) {
        let offsets = self.offsets.take();
        *self = Self::new(std::mem::take(&mut self.learned), self.infer_ends);
        self.offsets = offsets;
    }

    /// Returns the learned model of the machine. Store it after each roast.
    #[must_use]
    pub const fn learned(&self) -> &MachineModel {
        &self.learned
    }

    /// Replaces the learned model, from the next sample on. The running roast keeps its marks.
    pub fn set_learned(&mut self, learned: MachineModel) {
        self.tracker.set_model(learned.clone());
        self.forecaster = Forecaster::new(learned.ahead.clone());
        self.learned = learned;
    }

    /// Returns the rate of rise at the newest sample: (ms, °C/min).
    #[must_use]
    pub fn ror(&self) -> Option<(i64, f64)> {
        self.tracker.rise().map(|(t_ms, ror, _)| (t_ms, ror))
    }

    /// Returns the estimated CHARGE, ms, of a roast that seems to have begun before tracking did; see
    /// [`Tracker::begun_before_ms`].
    #[must_use]
    pub fn begun_before_ms(&self) -> Option<i64> {
        self.tracker.begun_before_ms()
    }

    /// Returns the forecast at the newest sample; `None` if there is none, see
    /// [`Forecaster::forecast`].
    #[must_use]
    pub fn forecast(&self) -> Option<Forecast> {
        self.forecaster.forecast(&self.tracker, &self.learned)
    }

    /// Processes the next sample, in event time, and returns the changes that it caused.
    pub fn push(&mut self, sample: &Sample) -> Vec<MarkChange> {
        let charge = self.tracker.charge_ms();
        let changes = self.tracker.push(sample);
        self.forecaster.push(sample, &self.tracker);
        if !self.tracker.is_roasting() {
            self.finish_roast(charge);
        }
        if let Some(offsets) = &mut self.offsets
            && offsets.push(sample, &mut self.learned)
        {
            self.tracker.set_model(self.learned.clone());
        }
        changes
    }

    /// Records an event that a machine or a person reports. Returns `false` if it was ignored.
    pub fn report_event(&mut self, kind: EventKind, at_ms: i64, bt_c: Option<f64>) -> bool {
        if let Some(offsets) = &mut self.offsets {
            offsets.report(kind, at_ms);
        }
        let charge = self.tracker.charge_ms();
        if !self.tracker.report_event(kind, at_ms, bt_c) {
            return false;
        }
        if let Some(bt_c) = bt_c
            && self.reported.len() < REPORTED_MARKS_MAX
        {
            self.reported.push(ReportedMark { kind, at_ms, bt_c });
        }
        if kind == EventKind::Drop {
            self.finish_roast(charge);
        }
        true
    }

    /// Ends the roast and learns from its marks.
    fn finish_roast(&mut self, charge: Option<i64>) {
        let reported = std::mem::take(&mut self.reported);
        let Some(charge) = charge else { return };
        let learned = &mut self.learned;
        learned.roasts = learned.roasts.saturating_add(1);
        let at_s = |kind| {
            let mark = reported.iter().find(|mark| mark.kind == kind)?;
            Some(mark.at_ms as f64 / 1000.0)
        };
        if let Some((fc, dropped)) = at_s(EventKind::Fc).zip(at_s(EventKind::Drop)) {
            learned.development.learn(charge as f64 / 1000.0, fc, dropped);
        }
        for mark in reported {
            let line = match mark.kind {
                EventKind::DryEnd => &mut learned.dry_end,
                EventKind::Fc => &mut learned.first_crack,
                EventKind::Sc => &mut learned.second_crack,
                EventKind::Drop => &mut learned.drop,
                _ => continue,
            };
            line.learn(mark.at_ms.saturating_sub(charge) as f64 / 1000.0, mark.bt_c);
        }
        let forecaster = Forecaster::new(learned.ahead.clone());
        learned.ahead = std::mem::replace(&mut self.forecaster, forecaster).finish();
        self.forecaster = Forecaster::new(learned.ahead.clone());
        self.tracker.set_model(learned.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twin::{PRESETS, Twin};

    #[test]
    fn first_crack_is_found_once_people_have_marked_it() {
        let mut live = LiveRoast::new(MachineModel::default(), false);
        let mut twin = Twin::new(PRESETS[0], 3, 30_000);
        let (mut roasts, mut off, mut heard) = (0, Vec::new(), None);
        let mut guessed = None;
        let mut seen = false;
        for s in 0..9_000_i64 {
            let told = twin.advance(1_000);
            let r = twin.reading();
            let sample = Sample { et_c: Some(r.et_c), ..Sample::bean(s * 1000, Some(r.bt_c)) };
            for change in live.push(&sample) {
                if let MarkChange::Detected(mark) = change
                    && mark.kind == EventKind::Fc
                {
                    guessed = Some(mark.at_ms);
                }
            }
            seen |=
                live.forecast().is_some_and(|o| o.expected.iter().any(|e| e.kind == EventKind::Fc));
            for kind in told {
                live.report_event(kind, sample.t_ms, sample.bt_c);
                match kind {
                    EventKind::Fc => heard = Some(sample.t_ms),
                    EventKind::Drop => {
                        off.push(guessed.take().zip(heard.take()).map(|(g, h)| (g - h) / 1000));
                        roasts += 1;
                    }
                    _ => {}
                }
            }
        }
        assert!(roasts >= 5 && live.learned().roasts == roasts, "{roasts} {off:?}");
        assert!(seen, "first crack was never expected");
        // A person's mark comes first where the guess is late; an early one is near by then.
        assert!(off[4..].iter().flatten().all(|s| s.abs() <= 30), "{off:?}");
        let kept = serde_json::to_string(live.learned()).unwrap();
        assert!(kept.len() < 8_192, "{} bytes to keep", kept.len());
        assert_eq!(serde_json::from_str::<MachineModel>(&kept).unwrap().roasts, roasts);
    }

    /// Returns what was learned from roasts whose CHARGE and DROP a person reported `late_s` after
    /// they happened.
    fn learned_from_marks(late_s: i64) -> MachineModel {
        let mut live = LiveRoast::new(MachineModel::default(), true).with_offset_learning();
        let mut twin = Twin::new(PRESETS[0], 3, 30_000);
        let mut to_report: Vec<(EventKind, i64)> = Vec::new();
        for s in 0..7_000_i64 {
            let happened = twin.advance(1_000).into_iter();
            let ends = happened.filter(|k| matches!(k, EventKind::Charge | EventKind::Drop));
            to_report.extend(ends.map(|kind| (kind, s + late_s)));
            let r = twin.reading();
            let sample = Sample { et_c: Some(r.et_c), ..Sample::bean(s * 1000, Some(r.bt_c)) };
            live.push(&sample);
            for (kind, _) in to_report.extract_if(.., |(_, at_s)| *at_s <= s) {
                live.report_event(kind, sample.t_ms, sample.bt_c);
            }
        }
        live.learned().clone()
    }

    #[test]
    fn marks_reported_late_teach_how_late_they_are() {
        let (prompt, late) = (learned_from_marks(0), learned_from_marks(20));
        let offsets =
            |m: &MachineModel| [m.charge_offset.correction_ms(), m.drop_offset.correction_ms()];
        for (prompt, late) in offsets(&prompt).into_iter().zip(offsets(&late)) {
            assert!((5_000..=30_000).contains(&(late - prompt)), "{prompt} {late}");
        }
    }
}
