//! Replay of a recording in order, sample by sample, without knowledge of later samples.

use contract::EventKind;

use crate::batch::Batch;
use crate::clean::{self, CleanValue};
use crate::event::secondary_sensors::SecondarySensors;
use crate::event::{DetectedMark, MarkChange, Method, Tracker};
use crate::forecast::{Forecast, Forecaster};
use crate::machine_model::MachineModel;
use crate::recording::Recording;
use crate::rise_model::RiseModel;
use crate::roast_course::COURSE_C;

/// One roast detected in a recording.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DetectedRoast {
    /// The latest revision of each mark, in the order of time.
    pub marks: Vec<DetectedMark>,
}

impl DetectedRoast {
    /// Returns the mark of a kind, if it was detected.
    #[must_use]
    pub fn mark(&self, kind: EventKind) -> Option<&DetectedMark> {
        self.marks.iter().find(|mark| mark.kind == kind)
    }

    fn length_ms(&self) -> i64 {
        let ends = [EventKind::Charge, EventKind::Drop].map(|kind| self.mark(kind));
        match ends {
            [Some(charge), Some(drop)] => drop.at_ms.saturating_sub(charge.at_ms),
            _ => 0,
        }
    }
}

/// The result of the replay of a recording.
#[derive(Debug, Clone, Default)]
pub struct RecordingReplay {
    /// Every change, in the order in which it became known.
    pub changes: Vec<MarkChange>,
    /// The roasts, in order.
    pub roasts: Vec<DetectedRoast>,
    /// The clean view of the bean temperature, with short dropouts bridged.
    pub bt: Vec<CleanValue>,
    /// The forecasts during the replay, one per [`FORECAST_EVERY_MS`].
    pub forecasts: Vec<Forecast>,
    /// The machine's forecast models (BT, ET) after this recording.
    pub ahead: [RiseModel; 2],
}

/// The time between two stored forecasts, ms.
pub const FORECAST_EVERY_MS: i64 = 5_000;

/// A curve that ends within this of its DROP does not show it, ms.
const UNSEEN_DROP_MS: i64 = 10_000;

/// Returns true if the curve ends too soon after a DROP to show it.
pub(crate) fn is_unseen_drop(recording: &Recording, dropped_ms: i64) -> bool {
    recording
        .samples
        .last()
        .is_some_and(|last| last.t_ms.saturating_sub(dropped_ms) <= UNSEEN_DROP_MS)
}

/// Replays a recording with the model learned from earlier roasts of its machine. Ignores the marks
/// of the file.
#[must_use]
pub fn replay(recording: &Recording, learned: &MachineModel) -> RecordingReplay {
    let learned = &learned.for_batch(&Batch::of(recording));
    let mut tracker = Tracker::new(learned.clone());
    let mut forecaster = Forecaster::new(learned.ahead.clone());
    let mut walk = RecordingReplay::default();
    let mut due_ms = i64::MIN;
    for sample in &recording.samples {
        for change in tracker.push(sample) {
            walk.apply_change(change);
        }
        forecaster.push(sample, &tracker);
        if sample.t_ms >= due_ms
            && let Some(outlook) = forecaster.forecast(&tracker, learned)
        {
            due_ms = sample.t_ms.saturating_add(FORECAST_EVERY_MS);
            walk.forecasts.push(outlook);
        }
    }
    for change in tracker.finish() {
        walk.apply_change(change);
    }
    walk.ahead = forecaster.finish();
    walk.bt = clean::clean_channel(recording.samples.iter().map(|s| (s.t_ms, s.bt_c)));
    for roast in &mut walk.roasts {
        roast.marks.sort_by_key(|mark| mark.at_ms);
    }
    walk
}

impl RecordingReplay {
    fn apply_change(&mut self, change: MarkChange) {
        self.changes.push(change);
        match change {
            MarkChange::Detected(mark) if mark.kind == EventKind::Charge => {
                // A revised CHARGE replaces the wrong one and every mark after it.
                if mark.revision > 0 {
                    self.roasts.pop();
                }
                self.roasts.push(DetectedRoast { marks: vec![mark] });
            }
            MarkChange::Detected(mark) => {
                if self.roasts.is_empty() {
                    self.roasts.push(DetectedRoast::default());
                }
                if let Some(roast) = self.roasts.last_mut() {
                    roast.marks.retain(|known| known.kind != mark.kind);
                    roast.marks.push(mark);
                }
            }
            MarkChange::Withdrawn(EventKind::Charge) => {
                self.roasts.pop();
            }
            MarkChange::Withdrawn(kind) => {
                if let Some(roast) = self.roasts.last_mut() {
                    roast.marks.retain(|known| known.kind != kind);
                }
            }
        }
    }

    /// Returns the recording's roast. Of several roasts it returns the longest, because the others
    /// are pre-heating or the next batch.
    #[must_use]
    pub fn roast(&self) -> Option<&DetectedRoast> {
        let mut best: Option<&DetectedRoast> = None;
        for roast in &self.roasts {
            if best.is_none_or(|longest| roast.length_ms() > longest.length_ms()) {
                best = Some(roast);
            }
        }
        best
    }

    /// Returns the marks of the recording's roast. If the curve ends too soon after the file's DROP
    /// to show it, the DROP is the file's.
    #[must_use]
    pub fn marks_of(&self, recording: &Recording) -> Vec<DetectedMark> {
        let mut marks = self.roast().map(|roast| roast.marks.clone()).unwrap_or_default();
        let dropped = recording.mark_ms(EventKind::Drop);
        let unseen = dropped.filter(|dropped| is_unseen_drop(recording, *dropped));
        if let Some(dropped) = unseen.filter(|_| !marks.is_empty()) {
            marks.retain(|mark| mark.kind != EventKind::Drop && mark.at_ms <= dropped);
            let bt_c = self.bt_at(dropped);
            marks.push(DetectedMark::reported(EventKind::Drop, dropped, bt_c));
        }
        marks
    }

    /// Returns the clean bean temperature at a time, °C.
    #[must_use]
    pub fn bt_at(&self, t_ms: i64) -> Option<f64> {
        interpolate_at(&self.bt, t_ms)
    }
}

/// Returns the value at a time, °C, interpolated between the known values within 10 s. With a known
/// value on one side only, returns that value.
#[must_use]
pub fn interpolate_at(view: &[CleanValue], t_ms: i64) -> Option<f64> {
    const NEAR_MS: u64 = 10_000;
    let after = view.partition_point(|c| c.t_ms < t_ms);
    let near = |c: &&CleanValue| c.t_ms.abs_diff(t_ms) <= NEAR_MS;
    let next = view[after..].iter().take_while(near).find(|c| c.value.is_some());
    let before = view[..after].iter().rev().take_while(near).find(|c| c.value.is_some());
    match (before, next) {
        (Some(a), Some(b)) => {
            let (va, vb) = (a.value?, b.value?);
            let span_ms = b.t_ms.saturating_sub(a.t_ms).max(1);
            let share = t_ms.saturating_sub(a.t_ms) as f64 / span_ms as f64;
            Some(va + (vb - va) * share)
        }
        (a, b) => a.or(b)?.value,
    }
}

impl MachineModel {
    /// Learns from a replayed recording and the marks that a person made in it.
    pub fn learn_from_recording(&mut self, recording: &Recording, walk: &RecordingReplay) {
        let found = walk.roast();
        let mark = |kind| found.and_then(|roast| roast.mark(kind));
        let begun_ms = mark(EventKind::Charge)
            .filter(|charge| charge.method == Method::BegunBefore)
            .map(|charge| charge.at_ms);
        let curve = |kind| mark(kind).map(|mark| mark.curve_ms).filter(|ms| Some(*ms) != begun_ms);
        let charge = recording.mark_ms(EventKind::Charge);
        if let Some((mark, curve)) = charge.zip(curve(EventKind::Charge)) {
            self.charge_offset.learn(mark.saturating_sub(curve));
        }
        if let Some((mark, curve)) = recording.mark_ms(EventKind::Tp).zip(curve(EventKind::Tp)) {
            self.tp_offset.learn(mark.saturating_sub(curve));
        }
        let dropped = recording.mark_ms(EventKind::Drop);
        if let Some((mark, curve)) = dropped.zip(curve(EventKind::Drop)) {
            self.drop_offset.learn(mark.saturating_sub(curve));
        }
        if let Some((mark, burner)) =
            dropped.and_then(|mark| Some((mark, burner_out_ms(recording, mark)?)))
        {
            self.burner_offset.learn(mark.saturating_sub(burner));
        }
        let exhaust = found.and_then(|r| exhaust_bend_ms(recording, r.mark(EventKind::Drop)?));
        if let Some((mark, exhaust)) = dropped.zip(exhaust) {
            self.exhaust_offset.learn(mark.saturating_sub(exhaust));
        }
        let delays = [
            (EventKind::Fc, EventKind::FcEnd, &mut self.first_crack_lasts),
            (EventKind::Sc, EventKind::ScEnd, &mut self.second_crack_lasts),
            (EventKind::Drop, EventKind::CoolEnd, &mut self.cooling_lasts),
        ];
        for (begin, end, delay) in delays {
            let pair = recording.mark_ms(begin).zip(recording.mark_ms(end));
            if let Some((begin, end)) = pair.filter(|(begin, end)| end > begin) {
                delay.learn(end.saturating_sub(begin) as f64 / 1000.0);
            }
        }
        // Lines are learned on the tracker's time axis, which starts at the CHARGE it detects.
        let Some(start) = curve(EventKind::Charge)
            .map(|ms| ms.saturating_add(self.charge_offset.correction_ms()))
            .filter(|start| charge.is_none_or(|mark| mark.abs_diff(*start) < 60_000))
            .or(charge)
            .or(begun_ms)
        else {
            return;
        };
        self.roasts = self.roasts.saturating_add(1);
        if Some(start) != begun_ms {
            self.learn_course(walk, start, curve(EventKind::Tp));
        }
        let fc = recording.mark_ms(EventKind::Fc);
        if let Some((fc, dropped)) = fc.zip(dropped) {
            self.learn_development(start, fc, dropped, mark(EventKind::Fc));
        }
        if let Some((mark, bt_c)) =
            fc.and_then(|mark| Some((mark, interpolate_at(&walk.bt, mark)?)))
        {
            let seconds = mark.saturating_sub(start) as f64 / 1000.0;
            self.learn_first_crack(&Batch::of(recording), seconds, bt_c);
        }
        let lines = [
            (EventKind::DryEnd, &mut self.dry_end),
            (EventKind::Sc, &mut self.second_crack),
            (EventKind::Drop, &mut self.drop),
        ];
        for (kind, line) in lines {
            let Some(mark) = recording.mark_ms(kind) else { continue };
            if let Some(bt_c) = interpolate_at(&walk.bt, mark) {
                line.learn(mark.saturating_sub(start) as f64 / 1000.0, bt_c);
            }
        }
    }
}

impl MachineModel {
    /// Learns the share of development, and how far first crack was from its mark if DROP had
    /// revised it.
    fn learn_development(
        &mut self,
        start: i64,
        fc: i64,
        dropped: i64,
        found: Option<&DetectedMark>,
    ) {
        if let Some(found) = found.filter(|m| m.method != Method::Acoustic && m.revision > 0) {
            let half_ms = found.to_ms.saturating_sub(found.from_ms).max(1) as f64 / 2.0;
            self.development.learn_error(fc.saturating_sub(found.at_ms) as f64 / half_ms);
        }
        let [start, fc, dropped] = [start, fc, dropped].map(|ms| ms as f64 / 1000.0);
        self.development.learn(start, fc, dropped);
    }

    /// Learns how warm the drum was at CHARGE, and when the beans turned and got warm.
    fn learn_course(&mut self, walk: &RecordingReplay, start: i64, turned: Option<i64>) {
        let Some(turned) = turned else { return };
        let seconds = |t_ms: i64| t_ms.saturating_sub(start) as f64 / 1000.0;
        if let Some(bt_c) = walk.bt_at(start) {
            self.course.learn_charge(bt_c);
        }
        self.course.turning.learn(seconds(turned));
        let after = walk.bt.partition_point(|c| c.t_ms < turned);
        for (i, warm_c) in COURSE_C.into_iter().enumerate() {
            let mut rising = walk.bt[after..].iter().skip_while(|c| c.value.is_none());
            // A curve that turned above it never passed it.
            if rising.clone().next().and_then(|c| c.value).is_some_and(|low| low < warm_c)
                && let Some(reached) = rising.find(|c| c.value.is_some_and(|v| v >= warm_c))
            {
                self.course.learn_reached(i, seconds(reached.t_ms));
            }
        }
    }
}

/// Returns the time of the exhaust's bend at a detected DROP, from the samples known at that time.
fn exhaust_bend_ms(recording: &Recording, dropped: &DetectedMark) -> Option<i64> {
    let mut witness = SecondarySensors::default();
    let until = recording.samples.iter().take_while(|s| s.t_ms <= dropped.known_ms);
    until.for_each(|sample| witness.push(sample));
    witness.exhaust_bend_ms(dropped.curve_ms, dropped.known_ms)
}

/// Returns when the burner went out with full air, within 90 s of a time.
fn burner_out_ms(recording: &Recording, t_ms: i64) -> Option<i64> {
    let mut since = None;
    let until_ms = t_ms.saturating_add(20_000);
    for sample in recording.samples.iter().take_while(|s| s.t_ms <= until_ms) {
        let Some((gas, fan)) = sample.gas_pct.zip(sample.fan_pct) else { continue };
        if gas > 0.0 {
            since = None;
        } else if fan >= 90.0 {
            since.get_or_insert(sample.t_ms);
        }
    }
    since.filter(|since| t_ms.abs_diff(*since) <= 90_000)
}
