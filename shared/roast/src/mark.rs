//! Marks of a roast found while it runs, in event time.
//!
//! CHARGE and DROP come from the machine where it tells them, from a person's key, or — where
//! neither does — from the bean temperature: cold beans around the probe make it fall without a
//! pause, by at least [`CHARGE_FALL_C`] within 30 s (the rule Cropster documents); an emptied drum
//! by [`DROP_FALL_C`] within 10 s. The turning point is the lowest reading after CHARGE once the
//! curve has risen again; dry end is 150 °C on the way up, Artisan's default. First crack is heard,
//! not computed: it comes from a person or a machine.
//!
//! Silence is never a mark: nothing in here happens because time passed without a sample.

use contract::{EventKind, EventSource};

const CHARGE_FALL_C: f64 = 7.0;
const CHARGE_WITHIN_MS: i64 = 30_000;
const CHARGE_FROM_C: f64 = 77.0;
const DROP_FALL_C: f64 = 4.0;
const DROP_WITHIN_MS: i64 = 10_000;
const DROP_FROM_C: f64 = 140.0;
/// No batch is done sooner.
const DROP_AFTER_MS: i64 = 150_000;
const DRY_END_C: f64 = 150.0;
const RECOVERED_C: f64 = 2.0;
const TP_RISE_C: f64 = 1.5;
const TP_AFTER_MS: i64 = 20_000;
/// A reading further than this from the one before, within two seconds, is not bean mass.
const JUMP_C: f64 = 25.0;

/// One sample as the tracker sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub seq: u64,
    /// Event time, ms, ascending.
    pub t_ms: i64,
    pub bt_c: Option<f64>,
}

/// A mark, at the reading where it happened (which may lie a few seconds back).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    pub kind: EventKind,
    pub source: EventSource,
    pub at: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Roast {
    charge: Reading,
    /// The lowest reading since CHARGE, until the turning point is sure.
    lowest: Option<Reading>,
    turned: bool,
    dried: bool,
}

/// Follows one machine from roast to roast.
#[derive(Debug, Clone)]
pub struct MarkTracker {
    /// False for machines that tell CHARGE and DROP themselves.
    infer: bool,
    roast: Option<Roast>,
    /// The highest reading of the running fall.
    peak: Option<Reading>,
    /// The lowest reading since the last DROP; until the drum has recovered from it, a fall is the
    /// old batch leaving and not a new one arriving.
    emptied: Option<Reading>,
    last: Option<Reading>,
}

impl MarkTracker {
    #[must_use]
    pub const fn new(infer: bool) -> Self {
        Self { infer, roast: None, peak: None, emptied: None, last: None }
    }

    /// A tracker in the middle of a roast that was charged at `charge`: after a restart.
    #[must_use]
    pub const fn resume(infer: bool, charge: Reading, marked: &[EventKind]) -> Self {
        let mut tracker = Self::new(infer);
        let (mut turned, mut dried) = (false, false);
        let mut i = 0;
        while i < marked.len() {
            turned |= matches!(marked[i], EventKind::Tp);
            dried |= matches!(marked[i], EventKind::DryEnd);
            i += 1;
        }
        tracker.roast = Some(Roast { charge, lowest: None, turned, dried });
        tracker
    }

    #[must_use]
    pub const fn is_roasting(&self) -> bool {
        self.roast.is_some()
    }

    #[must_use]
    pub fn charge(&self) -> Option<Reading> {
        self.roast.map(|roast| roast.charge)
    }

    /// Takes what a machine or a person says happened at `at`. A CHARGE in mid-roast and a DROP
    /// without one change nothing.
    pub fn told(&mut self, kind: EventKind, source: EventSource, at: Reading) -> Option<Mark> {
        match (kind, &mut self.roast) {
            (EventKind::Charge, None) => self.begin(at),
            (EventKind::Charge, Some(_)) | (_, None) => return None,
            (EventKind::Drop, Some(_)) => self.end(at),
            (EventKind::Tp, Some(roast)) => roast.turned = true,
            (EventKind::DryEnd, Some(roast)) => roast.dried = true,
            _ => {}
        }
        Some(Mark { kind, source, at })
    }

    /// Takes the next sample and answers the marks that became sure with it.
    pub fn push(&mut self, reading: Reading) -> Vec<Mark> {
        let mut marks = Vec::new();
        let Some(bt_c) = reading.bt_c else { return marks };
        if let Some(last) = self.last {
            let jump = last.bt_c.is_some_and(|before| (before - bt_c).abs() > JUMP_C);
            if reading.t_ms <= last.t_ms || (jump && reading.t_ms - last.t_ms < 2_000) {
                self.last = Some(reading);
                self.peak = None;
                return marks;
            }
        }
        self.last = Some(reading);
        self.follow_fall(reading, bt_c);
        self.follow_recovery(reading, bt_c);
        if self.infer {
            marks.extend(self.infer_ends(reading, bt_c));
        }
        if let Some(roast) = &mut self.roast {
            marks.extend(roast.infer_middle(reading, bt_c));
        }
        marks
    }

    /// Keeps the top of a fall without a pause; a rise by more than noise begins a new one.
    fn follow_fall(&mut self, reading: Reading, bt_c: f64) {
        let peak = self.peak.and_then(|peak| peak.bt_c);
        let began = self.peak.map_or(i64::MIN, |peak| peak.t_ms);
        let stale = reading.t_ms.saturating_sub(began) > CHARGE_WITHIN_MS;
        if stale || peak.is_none_or(|peak| bt_c >= peak) {
            self.peak = Some(reading);
        }
    }

    fn infer_ends(&mut self, reading: Reading, bt_c: f64) -> Option<Mark> {
        let peak = self.peak?;
        let (from_c, took_ms) = (peak.bt_c?, reading.t_ms - peak.t_ms);
        let fell = from_c - bt_c;
        let source = EventSource::Inferred;
        match self.roast {
            None if self.emptied.is_none()
                && fell >= CHARGE_FALL_C
                && took_ms <= CHARGE_WITHIN_MS
                && from_c >= CHARGE_FROM_C =>
            {
                self.begin(peak);
                Some(Mark { kind: EventKind::Charge, source, at: peak })
            }
            Some(roast)
                if fell >= DROP_FALL_C
                    && took_ms <= DROP_WITHIN_MS
                    && from_c >= DROP_FROM_C
                    && peak.t_ms - roast.charge.t_ms >= DROP_AFTER_MS =>
            {
                self.end(reading);
                Some(Mark { kind: EventKind::Drop, source, at: peak })
            }
            _ => None,
        }
    }

    const fn begin(&mut self, charge: Reading) {
        self.roast = Some(Roast { charge, lowest: None, turned: false, dried: false });
        self.peak = None;
    }

    const fn end(&mut self, now: Reading) {
        self.roast = None;
        self.emptied = Some(now);
        self.peak = None;
    }

    fn follow_recovery(&mut self, reading: Reading, bt_c: f64) {
        let Some(low) = self.emptied else { return };
        let low_c = low.bt_c.unwrap_or(bt_c);
        if bt_c - low_c >= RECOVERED_C {
            self.emptied = None;
            self.peak = Some(reading);
        } else if bt_c <= low_c {
            self.emptied = Some(reading);
        }
    }
}

impl Roast {
    fn infer_middle(&mut self, reading: Reading, bt_c: f64) -> Option<Mark> {
        let source = EventSource::Inferred;
        if !self.turned {
            let lowest = self.lowest.filter(|lowest| lowest.bt_c.is_some_and(|low| low <= bt_c));
            let lowest = lowest.unwrap_or(reading);
            self.lowest = Some(lowest);
            let risen = lowest.bt_c.is_some_and(|low| bt_c - low >= TP_RISE_C);
            if risen && lowest.t_ms - self.charge.t_ms >= TP_AFTER_MS {
                self.turned = true;
                return Some(Mark { kind: EventKind::Tp, source, at: lowest });
            }
        } else if !self.dried && bt_c >= DRY_END_C {
            self.dried = true;
            return Some(Mark { kind: EventKind::DryEnd, source, at: reading });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        infer: bool,
        samples: impl Iterator<Item = (i64, Option<f64>)>,
    ) -> Vec<(EventKind, i64)> {
        let mut tracker = MarkTracker::new(infer);
        let readings = samples.zip(0..).map(|((t_ms, bt_c), seq)| Reading { seq, t_ms, bt_c });
        readings.flat_map(|r| tracker.push(r)).map(|m| (m.kind, m.at.t_ms / 1000)).collect()
    }

    /// 60 s at 190 °C, beans in, turning at about 60 s after, up to 210 °C, and out.
    fn curve(s: i64) -> f64 {
        let t = (s - 60) as f64;
        match s {
            ..=60 => 190.0,
            61..=660 => 230.0 - 205.0 * (-t / 230.0).exp() + 165.0 * (-t / 18.0).exp(),
            _ => (curve(660) - (s - 660) as f64 * 1.5).max(60.0),
        }
    }

    #[test]
    fn a_whole_roast_is_marked_once_each() {
        let marks = run(true, (0..900).map(|s| (s * 1000, Some(curve(s)))));
        let kinds: Vec<_> = marks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [EventKind::Charge, EventKind::Tp, EventKind::DryEnd, EventKind::Drop]);
        assert!((marks[0].1 - 60).abs() <= 2, "{marks:?}");
        assert!((marks[3].1 - 660).abs() <= 2, "{marks:?}");
    }

    #[test]
    fn silence_marks_nothing() {
        for gap_s in [10, 60, 600] {
            let cut = 300..300 + gap_s;
            let samples = (0..300 + gap_s).filter(|s| !cut.contains(s));
            let marks = run(true, samples.map(|s| (s * 1000, Some(curve(s)))));
            assert!(
                !marks.iter().any(|(kind, _)| *kind == EventKind::Drop),
                "{gap_s} s: {marks:?}"
            );
        }
    }

    #[test]
    fn a_jump_to_fahrenheit_and_back_marks_nothing() {
        let flip = |s: i64| if (300..330).contains(&s) { curve(s) * 1.8 + 32.0 } else { curve(s) };
        let marks = run(true, (0..600).map(|s| (s * 1000, Some(flip(s)))));
        assert!(!marks.iter().any(|(kind, _)| *kind == EventKind::Drop), "{marks:?}");
    }

    #[test]
    fn a_machine_that_tells_is_believed_and_not_second_guessed() {
        let mut tracker = MarkTracker::new(false);
        let at = Reading { seq: 5, t_ms: 5_000, bt_c: Some(190.0) };
        assert!(tracker.told(EventKind::Drop, EventSource::Machine, at).is_none(), "no roast yet");
        assert!(tracker.told(EventKind::Charge, EventSource::Machine, at).is_some());
        assert!(
            tracker.told(EventKind::Charge, EventSource::Person, at).is_none(),
            "charged already"
        );
        assert!(tracker.told(EventKind::Drop, EventSource::Machine, at).is_some());
        assert!(!tracker.is_roasting());
    }
}
