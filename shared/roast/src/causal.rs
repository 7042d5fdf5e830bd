//! A recording walked as it would have happened: sample by sample, nothing known ahead.

use contract::EventKind;

use crate::batch::Batch;
use crate::clean::{self, Clean};
use crate::event::witness::Witness;
use crate::event::{Change, Inference, Tracker};
use crate::forecast::{Ahead, Forecaster, Outlook};
use crate::learn::Learned;
use crate::recording::Recording;

/// One roast found in a recording.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FoundRoast {
    /// The best answer about each mark, in the order of time.
    pub marks: Vec<Inference>,
}

impl FoundRoast {
    #[must_use]
    pub fn mark(&self, kind: EventKind) -> Option<&Inference> {
        self.marks.iter().find(|mark| mark.kind == kind)
    }

    fn length_ms(&self) -> i64 {
        let ends = [EventKind::Charge, EventKind::Drop].map(|kind| self.mark(kind));
        match ends {
            [Some(charge), Some(drop)] => drop.at_ms - charge.at_ms,
            _ => 0,
        }
    }
}

/// What walking a recording found.
#[derive(Debug, Clone, Default)]
pub struct Walk {
    /// Everything that became known, as it did.
    pub changes: Vec<Change>,
    /// The roasts, in order.
    pub roasts: Vec<FoundRoast>,
    /// The bean temperature's clean view, dropouts bridged.
    pub bt: Vec<Clean>,
    /// Forecasts made on the way, one a step of [`FORECAST_EVERY_MS`].
    pub outlooks: Vec<Outlook>,
    /// What the machine has taught about the next minute, this recording included.
    pub ahead: [Ahead; 2],
}

/// How often a forecast is kept.
pub const FORECAST_EVERY_MS: i64 = 5_000;

/// Walks a recording with what earlier roasts of its machine have taught. The file's own marks are
/// not looked at.
#[must_use]
pub fn walk(recording: &Recording, learned: &Learned) -> Walk {
    let learned = &learned.of_batch(&Batch::of(recording));
    let mut tracker = Tracker::new(learned.clone());
    let mut forecaster = Forecaster::new(learned.ahead.clone());
    let mut walk = Walk::default();
    let mut due_ms = i64::MIN;
    for sample in &recording.samples {
        for change in tracker.push(sample) {
            walk.note(change);
        }
        forecaster.push(sample, &tracker);
        if sample.t_ms >= due_ms
            && let Some(outlook) = forecaster.outlook(&tracker, learned)
        {
            due_ms = sample.t_ms + FORECAST_EVERY_MS;
            walk.outlooks.push(outlook);
        }
    }
    walk.ahead = forecaster.finish();
    walk.bt = clean::view(recording.samples.iter().map(|s| (s.t_ms, s.bt_c)));
    for roast in &mut walk.roasts {
        roast.marks.sort_by_key(|mark| mark.at_ms);
    }
    walk
}

impl Walk {
    fn note(&mut self, change: Change) {
        self.changes.push(change);
        match change {
            Change::Known(mark) if mark.kind == EventKind::Charge => {
                // A revised CHARGE takes the place of the mistaken one, with all that followed it.
                if mark.revision > 0 {
                    self.roasts.pop();
                }
                self.roasts.push(FoundRoast { marks: vec![mark] });
            }
            Change::Known(mark) => {
                if self.roasts.is_empty() {
                    self.roasts.push(FoundRoast::default());
                }
                if let Some(roast) = self.roasts.last_mut() {
                    roast.marks.retain(|known| known.kind != mark.kind);
                    roast.marks.push(mark);
                }
            }
            Change::Withdrawn(EventKind::Charge) => {
                self.roasts.pop();
            }
            Change::Withdrawn(kind) => {
                if let Some(roast) = self.roasts.last_mut() {
                    roast.marks.retain(|known| known.kind != kind);
                }
            }
        }
    }

    /// The recording's roast: of several the longest, since what is beside it is pre-heating or the
    /// batch after.
    #[must_use]
    pub fn roast(&self) -> Option<&FoundRoast> {
        let mut best: Option<&FoundRoast> = None;
        for roast in &self.roasts {
            if best.is_none_or(|known| roast.length_ms() > known.length_ms()) {
                best = Some(roast);
            }
        }
        best
    }

    /// The clean bean temperature at a moment, °C.
    #[must_use]
    pub fn bt_at(&self, t_ms: i64) -> Option<f64> {
        value_at(&self.bt, t_ms)
    }
}

/// The value at a moment, between the known ones beside it if they are near, °C.
#[must_use]
pub fn value_at(view: &[Clean], t_ms: i64) -> Option<f64> {
    const NEAR_MS: i64 = 10_000;
    let after = view.partition_point(|c| c.t_ms < t_ms);
    let near = |c: &&Clean| (c.t_ms - t_ms).abs() <= NEAR_MS;
    let next = view[after..].iter().take_while(near).find(|c| c.value.is_some());
    let before = view[..after].iter().rev().take_while(near).find(|c| c.value.is_some());
    match (before, next) {
        (Some(a), Some(b)) => {
            let (va, vb) = (a.value?, b.value?);
            let share = (t_ms - a.t_ms) as f64 / ((b.t_ms - a.t_ms).max(1)) as f64;
            Some(va + (vb - va) * share)
        }
        (a, b) => a.or(b)?.value,
    }
}

impl Learned {
    /// Learns from a walked recording and the marks a person left in it.
    pub fn study(&mut self, recording: &Recording, walk: &Walk) {
        let found = walk.roast();
        let curve = |kind| found.and_then(|roast| roast.mark(kind)).map(|mark| mark.curve_ms);
        let charge = recording.mark_ms(EventKind::Charge);
        if let Some((mark, curve)) = charge.zip(curve(EventKind::Charge)) {
            self.charge_offset.learn(mark - curve);
        }
        if let Some((mark, curve)) = recording.mark_ms(EventKind::Tp).zip(curve(EventKind::Tp)) {
            self.tp_offset.learn(mark - curve);
        }
        let dropped = recording.mark_ms(EventKind::Drop);
        if let Some((mark, curve)) = dropped.zip(curve(EventKind::Drop)) {
            self.drop_offset.learn(mark - curve);
        }
        if let Some((mark, burner)) =
            dropped.and_then(|mark| Some((mark, burner_out(recording, mark)?)))
        {
            self.burner_offset.learn(mark - burner);
        }
        let exhaust = found.and_then(|r| exhaust_bent(recording, r.mark(EventKind::Drop)?));
        if let Some((mark, exhaust)) = dropped.zip(exhaust) {
            self.exhaust_offset.learn(mark - exhaust);
        }
        let delays = [
            (EventKind::Fc, EventKind::FcEnd, &mut self.first_crack_lasts),
            (EventKind::Sc, EventKind::ScEnd, &mut self.second_crack_lasts),
            (EventKind::Drop, EventKind::CoolEnd, &mut self.cooling_lasts),
        ];
        for (begin, end, delay) in delays {
            let pair = recording.mark_ms(begin).zip(recording.mark_ms(end));
            if let Some((begin, end)) = pair.filter(|(begin, end)| end > begin) {
                delay.learn((end - begin) as f64 / 1000.0);
            }
        }
        // Lines are learned in the time that the tracker will see: from its own CHARGE.
        let Some(start) = curve(EventKind::Charge)
            .map(|ms| ms + self.charge_offset.ms())
            .filter(|start| charge.is_none_or(|mark| (mark - start).abs() < 60_000))
            .or(charge)
        else {
            return;
        };
        self.roasts += 1;
        let fc = recording.mark_ms(EventKind::Fc);
        if let Some((mark, bt_c)) = fc.and_then(|mark| Some((mark, value_at(&walk.bt, mark)?))) {
            let seconds = (mark - start) as f64 / 1000.0;
            self.learn_first_crack(&Batch::of(recording), seconds, bt_c);
        }
        let lines = [
            (EventKind::DryEnd, &mut self.dry_end),
            (EventKind::Sc, &mut self.second_crack),
            (EventKind::Drop, &mut self.drop),
        ];
        for (kind, line) in lines {
            let Some(mark) = recording.mark_ms(kind) else { continue };
            if let Some(bt_c) = value_at(&walk.bt, mark) {
                line.learn((mark - start) as f64 / 1000.0, bt_c);
            }
        }
    }
}

/// Where the exhaust bent at a DROP that was found, as it was known then.
fn exhaust_bent(recording: &Recording, dropped: &Inference) -> Option<i64> {
    let mut witness = Witness::default();
    let until = recording.samples.iter().take_while(|s| s.t_ms <= dropped.known_ms);
    until.for_each(|sample| witness.push(sample));
    witness.exhaust_ms(dropped.curve_ms, dropped.known_ms)
}

/// When the burner went out, with full air, in the minute and a half before a moment.
fn burner_out(recording: &Recording, t_ms: i64) -> Option<i64> {
    let mut since = None;
    for sample in recording.samples.iter().take_while(|s| s.t_ms <= t_ms + 20_000) {
        let Some((gas, fan)) = sample.gas_pct.zip(sample.fan_pct) else { continue };
        if gas > 0.0 {
            since = None;
        } else if fan >= 90.0 {
            since.get_or_insert(sample.t_ms);
        }
    }
    since.filter(|since| (t_ms - since).abs() <= 90_000)
}
