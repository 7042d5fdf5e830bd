//! Detection of a roast's marks in event time, while the roast is running.
//!
//! [`Tracker`] receives one machine's samples in order and returns the changes after each: a mark
//! with its time, its interval, a confidence, the method, and a revision, because later samples
//! may give a better estimate. A mark that a machine or a person reports is stored unchanged.
//!
//! Silence must never cause a mark: time without a sample changes nothing.

mod begun_before;
mod between_roasts;
mod charge;
mod crossing;
mod drop;
mod end_marks;
mod mark;
mod reorder_buffer;
mod revision;
mod roast_in_progress;
pub(crate) mod secondary_sensors;
mod turning_point;

use std::collections::VecDeque;

use contract::EventKind;
use serde::{Deserialize, Serialize};

use crate::clean::{Cleaner, ValueQuality};
use crate::machine_model::MachineModel;
use crate::ror::{RateOfRise, RiseEstimate};
use crate::sample::Sample;

use begun_before::BegunBefore;
pub use mark::{DetectedMark, MarkChange, Method};
pub use reorder_buffer::{LateSample, ReorderBuffer};
use roast_in_progress::RoastInProgress;

/// The length of the past that the detectors use, and the minimum time between its points, ms.
const PAST_MS: i64 = 100_000;
const POINT_EVERY_MS: i64 = 200;
/// The half width of the 90 % interval of a CHARGE before any mark, and of a mark by a scale, ms.
const CHARGE_HALF_MS: i64 = 10_000;
const SCALE_HALF_MS: i64 = 4_500;

/// A clean reading of the past.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct BtPoint {
    t_ms: i64,
    bt_c: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Stage {
    /// Waiting for beans.
    Empty,
    Roasting(Box<RoastInProgress>),
    /// The last batch has left: a fall belongs to it until the drum has recovered from `low_c`.
    Emptied {
        low_c: f64,
        /// The time of DROP, ms; `None` after the end of cooling is known.
        dropped_ms: Option<i64>,
        /// The next batch, if it was charged before the drum had recovered.
        #[serde(default)]
        charged: Option<Box<RoastInProgress>>,
    },
}

impl Stage {
    const fn emptied(low_c: f64, dropped_ms: Option<i64>) -> Self {
        Self::Emptied { low_c, dropped_ms, charged: None }
    }
}

/// Tracks one machine from roast to roast. A serialized tracker can be resumed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tracker {
    /// False for machines that report CHARGE and DROP themselves.
    infer_ends: bool,
    learned: MachineModel,
    bt: Cleaner,
    ror: RateOfRise,
    rise: Option<(i64, f64, f64)>,
    /// The two newest readings. The detectors receive the median of three, one reading late, so
    /// that no single reading causes a mark.
    newest: VecDeque<BtPoint>,
    past: VecDeque<BtPoint>,
    #[serde(default)]
    witness: secondary_sensors::SecondarySensors,
    stage: Stage,
    /// True until the drum is known to be empty or in use.
    #[serde(default)]
    starting: bool,
    /// The roast that may have begun before tracking did.
    #[serde(default)]
    begun_before: Option<Box<BegunBefore>>,
}

impl Tracker {
    /// Returns a tracker for a machine with the model `learned`.
    #[must_use]
    pub fn new(learned: MachineModel) -> Self {
        Self {
            infer_ends: true,
            learned,
            bt: Cleaner::default(),
            ror: RateOfRise::default(),
            rise: None,
            newest: VecDeque::new(),
            past: VecDeque::new(),
            witness: secondary_sensors::SecondarySensors::default(),
            stage: Stage::Empty,
            starting: true,
            begun_before: None,
        }
    }

    /// Disables the inference of CHARGE and DROP, for machines that report both themselves.
    #[must_use]
    pub const fn without_end_detection(mut self) -> Self {
        self.infer_ends = false;
        self
    }

    /// Replaces the machine's model for all later samples.
    pub fn set_model(&mut self, learned: MachineModel) {
        self.learned = learned;
    }

    /// Returns true while beans are in the drum.
    #[must_use]
    pub const fn is_roasting(&self) -> bool {
        matches!(self.stage, Stage::Roasting(_))
    }

    /// Returns the time of CHARGE of the running roast, ms.
    #[must_use]
    pub const fn charge_ms(&self) -> Option<i64> {
        match &self.stage {
            Stage::Roasting(roast) => Some(roast.charge_ms),
            _ => None,
        }
    }

    /// Returns the estimated CHARGE, ms, of a roast that seems to have begun before tracking did and
    /// that no mark confirms yet.
    #[must_use]
    pub fn begun_before_ms(&self) -> Option<i64> {
        match self.stage {
            Stage::Empty => {
                let begun = self.begun_before.as_ref()?;
                if self.infer_ends { begun.charge_ms() } else { begun.charge_until_decided_ms() }
            }
            Stage::Roasting(_) | Stage::Emptied { .. } => None,
        }
    }

    /// Returns when the running roast's curve turned, ms.
    #[must_use]
    pub fn turned_ms(&self) -> Option<i64> {
        match &self.stage {
            Stage::Roasting(roast) => roast.turning.turned_ms(),
            _ => None,
        }
    }

    /// Returns rate of rise and smoothed bean temperature at the newest sample: (ms, °C/min, °C).
    #[must_use]
    pub const fn rise(&self) -> Option<(i64, f64, f64)> {
        self.rise
    }

    /// Returns the known marks of the running roast.
    #[must_use]
    pub fn marks(&self) -> &[DetectedMark] {
        match &self.stage {
            Stage::Roasting(roast) => &roast.marks,
            _ => &[],
        }
    }

    /// Records an event that a machine or a person reports for `at_ms`. Returns `false` and changes
    /// nothing for a CHARGE during a roast, and for any other event without a roast.
    pub fn report_event(&mut self, kind: EventKind, at_ms: i64, bt_c: Option<f64>) -> bool {
        match (kind, &mut self.stage) {
            (EventKind::Charge, Stage::Roasting(_)) => return false,
            (EventKind::Charge, _) => {
                let charge_c = bt_c.or_else(|| self.bt_at(at_ms)).unwrap_or(0.0);
                let marks = vec![DetectedMark::reported(kind, at_ms, bt_c)];
                let roast = RoastInProgress {
                    charge_ms: at_ms,
                    charge_c,
                    marks,
                    ..RoastInProgress::default()
                };
                self.begun_before = None;
                self.stage = Stage::Roasting(Box::new(roast));
            }
            (_, Stage::Empty | Stage::Emptied { .. }) => return false,
            (EventKind::Drop, Stage::Roasting(_)) => {
                self.stage = Stage::emptied(f64::MAX, Some(at_ms));
            }
            (EventKind::Note, _) => {}
            (_, Stage::Roasting(roast)) => {
                // A reported mark disables its detection. It does not replace a detected one.
                if roast.mark(kind).is_none() {
                    roast.replace_mark(DetectedMark::reported(kind, at_ms, bt_c));
                }
            }
        }
        true
    }

    /// Resumes a running roast that was charged at `charge_ms` and already has the marks `marked`.
    /// Used after a restart without a snapshot.
    pub fn resume(&mut self, charge_ms: i64, marked: &[EventKind]) {
        let mut roast = RoastInProgress {
            charge_ms,
            marks: marked
                .iter()
                .map(|kind| DetectedMark::reported(*kind, charge_ms, None))
                .collect(),
            ..RoastInProgress::default()
        };
        if marked.contains(&EventKind::Tp) {
            roast.turning = turning_point::TurningPoint::before_tracking(charge_ms);
        }
        self.begun_before = None;
        self.stage = Stage::Roasting(Box::new(roast));
    }

    /// Processes the next sample, in event time, and returns the changes that it caused.
    pub fn push(&mut self, sample: &Sample) -> Vec<MarkChange> {
        let mut changes = Vec::new();
        let clean = self.bt.push(sample.t_ms, sample.bt_c);
        self.witness.push(sample);
        if let Stage::Roasting(roast) = &mut self.stage {
            roast.update_controls(sample);
        }
        let Some(bt_c) = clean.value else { return changes };
        let read = BtPoint { t_ms: sample.t_ms, bt_c };
        let silence = self.newest.back().map_or(0, |last| read.t_ms.saturating_sub(last.t_ms));
        if clean.quality == ValueQuality::Step && silence <= drop::SILENT_MS {
            // A bean temperature cannot jump: the past does not predict the new values.
            self.past.clear();
            self.newest.clear();
            self.ror.restart();
        }
        let rise = self.ror.push(sample.t_ms, Some(bt_c));
        self.rise = rise.map(|rise| (sample.t_ms, rise.c_per_min, rise.now_c));
        let Some(now) = self.median(read) else { return changes };
        let before = self.past.back().copied();
        self.remember(now);
        match &self.stage {
            Stage::Empty => self.follow_unknown(sample, now, before, rise, &mut changes),
            Stage::Emptied { .. } => self.follow_emptied(now, &mut changes),
            Stage::Roasting(_) => self.follow_roast(sample, now, before, rise, &mut changes),
        }
        for change in &mut changes {
            if let MarkChange::Detected(mark) = change {
                mark.known_ms = sample.t_ms;
            }
        }
        changes
    }

    /// Returns the reading before this one as the median of it and its neighbours.
    fn median(&mut self, read: BtPoint) -> Option<BtPoint> {
        if self
            .newest
            .back()
            .is_some_and(|last| read.t_ms.saturating_sub(last.t_ms) < POINT_EVERY_MS)
        {
            return None;
        }
        self.newest.push_back(read);
        if self.newest.len() < 3 {
            return None;
        }
        let before = self.newest.pop_front()?;
        let middle = *self.newest.front()?;
        let mut values = [before.bt_c, middle.bt_c, read.bt_c];
        values.sort_by(f64::total_cmp);
        Some(BtPoint { t_ms: middle.t_ms, bt_c: values[1] })
    }

    fn remember(&mut self, now: BtPoint) {
        self.past.push_back(now);
        while self.past.front().is_some_and(|p| now.t_ms.saturating_sub(p.t_ms) > PAST_MS) {
            self.past.pop_front();
        }
    }

    fn forget_before(&mut self, t_ms: i64) {
        self.past.retain(|point| point.t_ms >= t_ms);
    }

    /// Returns the clean bean temperature of the last 100 s that is nearest to a time.
    fn bt_at(&self, t_ms: i64) -> Option<f64> {
        let nearest = self.past.iter().min_by_key(|point| point.t_ms.abs_diff(t_ms));
        nearest.map(|point| point.bt_c)
    }

    fn charge_mark(&self, found: charge::ChargeBreak, now: BtPoint, revision: u32) -> DetectedMark {
        let scale = self.witness.weight_step_ms(found.at_ms);
        let offset = &self.learned.charge_offset;
        let (at_ms, half_ms, method) = match scale {
            Some(scale) => (scale, SCALE_HALF_MS, Method::Scale),
            None => (
                found.at_ms.saturating_add(offset.correction_ms()),
                offset.half_ms(CHARGE_HALF_MS),
                Method::Break,
            ),
        };
        // A recording that begins with the fall: CHARGE was as long before as a curve falls.
        let before_ms = if found.confidence < charge::SURE {
            crossing::seconds_to_ms(self.learned.course.turning.mean())
        } else {
            half_ms
        };
        DetectedMark {
            kind: EventKind::Charge,
            at_ms,
            from_ms: at_ms.saturating_sub(before_ms.max(half_ms)),
            to_ms: at_ms.saturating_add(half_ms),
            known_ms: now.t_ms,
            bt_c: Some(found.bt_c),
            confidence: found.confidence,
            method,
            revision,
            curve_ms: found.at_ms,
        }
    }

    fn follow_roast(
        &mut self,
        sample: &Sample,
        now: BtPoint,
        before: Option<BtPoint>,
        rise: Option<RiseEstimate>,
        changes: &mut Vec<MarkChange>,
    ) {
        if self.infer_ends && self.revise_charge(now, changes) {
            return;
        }
        let Stage::Roasting(roast) = &mut self.stage else { return };
        if let Some(turned) = roast.detect_turning_point(now, &self.learned) {
            changes.push(MarkChange::Detected(turned));
        }
        for crossed in
            roast.detect_crossings(sample, now, before, rise, &self.learned).into_iter().flatten()
        {
            roast.replace_mark(crossed);
            changes.push(MarkChange::Detected(crossed));
        }
        for ended in roast.detect_ends(now, &self.learned).into_iter().flatten() {
            roast.replace_mark(ended);
            changes.push(MarkChange::Detected(ended));
        }
        if !self.infer_ends {
            return;
        }
        let dropped = drop::find_drop(
            roast,
            (&self.past, &self.witness),
            (now, before),
            drop::SLOW_FALL_C,
            &self.learned,
        );
        if let Some(dropped) = dropped {
            self.end_roast(dropped, now, changes);
        }
    }

    /// Replaces CHARGE if the curve breaks a second time before the beans have dried, because then
    /// the first break was not CHARGE. Withdraws it if the curve does not turn. Returns true in
    /// both cases.
    fn revise_charge(&mut self, now: BtPoint, changes: &mut Vec<MarkChange>) -> bool {
        let Stage::Roasting(roast) = &self.stage else { return false };
        let revision = roast.marks.first().map_or(0, |charge| charge.revision.saturating_add(1));
        if roast.never_turned(now) {
            changes.push(MarkChange::Withdrawn(EventKind::Charge));
            self.stage = Stage::emptied(now.bt_c, None);
            return true;
        }
        if !roast.may_be_preheating(now) {
            return false;
        }
        let after_ms = roast.charge_ms.saturating_add(20_000);
        let Some(found) =
            charge::find_break(&self.past, now).filter(|found| found.at_ms > after_ms)
        else {
            return false;
        };
        let charge = self.charge_mark(found, now, revision);
        self.stage = Stage::Roasting(Box::new(RoastInProgress::from_charge(charge, found)));
        changes.push(MarkChange::Detected(charge));
        true
    }
}
