//! Detection of dry end, first crack and second crack: the bean temperature crosses the line on
//! which this machine's marks lie ([`MarkLine`]). A crack sensor can also detect first crack.
//!
//! The interval is where the temperature crosses the line's 90 % limits. The lower crossing is
//! measured; the upper one is predicted from the rate of rise.

use contract::EventKind;

use super::drop::SILENT_MS;
use super::{BtPoint, DetectedMark, Method, RoastInProgress};
use crate::machine_model::calibration::normal_share_within;
use crate::machine_model::{MachineModel, MarkLine, Z90};
use crate::ror::RiseEstimate;
use crate::sample::Sample;

/// The earliest time after CHARGE of dry end, first crack and second crack, s.
const AFTER_S: [f64; 3] = [45.0, 90.0, 150.0];
/// The assumed minimum rate of the temperature relative to its line, °C/s.
const RATE_MIN: f64 = 0.03;
/// The number of cracks that make a first crack, and the span in which they occur, ms.
const CRACKS: f64 = 3.0;
const CRACKS_MS: i64 = 20_000;
/// The confidence of a mark is the probability that it lies within this, s.
pub(super) const NEAR_MARK_S: f64 = 30.0;

const KINDS: [EventKind; 3] = [EventKind::DryEnd, EventKind::Fc, EventKind::Sc];

impl RoastInProgress {
    pub(super) fn detect_crossings(
        &mut self,
        sample: &Sample,
        now: BtPoint,
        before: Option<BtPoint>,
        rise: Option<RiseEstimate>,
        learned: &MachineModel,
    ) -> [Option<DetectedMark>; 4] {
        let mut crossed = [None; 4];
        crossed[3] = self.detect_cracks(sample, now);
        if !self.turning.is_sure() {
            return crossed;
        }
        self.keep_reading(now, learned);
        let seconds = self.seconds(now.t_ms);
        let lines = [&learned.dry_end, &learned.first_crack, &learned.second_crack];
        for (i, (kind, line)) in KINDS.into_iter().zip(lines).enumerate() {
            if self.mark(kind).is_some() || self.skipped[i] || seconds < AFTER_S[i] {
                continue;
            }
            let half = line.half_c(seconds);
            let above = now.bt_c - line.expected_c(seconds);
            if above >= -half {
                self.below[i].get_or_insert(now.t_ms);
            }
            // Infer second crack only on machines where people have marked it.
            let allowed = kind != EventKind::Sc
                || (line.mark_count() > 0 && self.mark(EventKind::Fc).is_some());
            if above >= 0.0 && allowed {
                let found = self.crossing_mark(kind, now, rise, line, i);
                crossed[i] =
                    Some(match before.filter(|b| now.t_ms.saturating_sub(b.t_ms) > SILENT_MS) {
                        Some(before) => self.crossing_in_gap(found, before, now, line),
                        None => found,
                    });
            }
        }
        crossed
    }

    /// Skips the crossings that the temperature had passed when tracking began.
    pub(super) fn skip_crossings_below(&mut self, bt_c: f64, seconds: f64, learned: &MachineModel) {
        let lines = [&learned.dry_end, &learned.first_crack, &learned.second_crack];
        for (skipped, line) in self.skipped.iter_mut().zip(lines) {
            *skipped = bt_c >= line.expected_c(seconds);
        }
    }

    fn crossing_mark(
        &self,
        kind: EventKind,
        now: BtPoint,
        rise: Option<RiseEstimate>,
        line: &MarkLine,
        i: usize,
    ) -> DetectedMark {
        let seconds = self.seconds(now.t_ms);
        let rate = rise
            .map_or(RATE_MIN, |r| r.c_per_min / 60.0 - line.slope_c_per_s(seconds))
            .max(RATE_MIN);
        // A wrong CHARGE moves the line along the curve.
        let by_charge_s = self.charge_deviation_s * line.slope_c_per_s(seconds).abs() / rate;
        let deviation_s = (line.deviation_c(seconds) / rate).hypot(by_charge_s);
        let half_c = line.half_c(seconds);
        let below_ms = self.below[i].filter(|below| *below < now.t_ms);
        // The rate decreases as it did since the lower limit.
        let before =
            below_ms.map_or(rate, |below| half_c * 1000.0 / now.t_ms.saturating_sub(below) as f64);
        let next = (2.0 * rate - before).clamp(rate / 2.0, rate);
        let half_ms = seconds_to_ms(half_c / rate);
        let usual_ms = now.t_ms.saturating_sub(half_ms);
        let from_ms = below_ms.unwrap_or(usual_ms).max(usual_ms.saturating_sub(half_ms));
        let seconds_with = |half_s: f64| half_s.hypot(Z90 * by_charge_s);
        let before_s = seconds_with(now.t_ms.saturating_sub(from_ms) as f64 / 1000.0);
        let after_s = seconds_with(half_c / next);
        DetectedMark {
            kind,
            at_ms: now.t_ms,
            from_ms: now.t_ms.saturating_sub(seconds_to_ms(before_s)),
            to_ms: now.t_ms.saturating_add(seconds_to_ms(after_s)),
            known_ms: now.t_ms,
            bt_c: Some(now.bt_c),
            confidence: normal_share_within(NEAR_MARK_S / deviation_s),
            method: if line.mark_count() > 0 { Method::Learned } else { Method::Prior },
            revision: 0,
            curve_ms: now.t_ms,
        }
    }

    /// Places a crossing inside a gap in the data: at the point where a straight line between the
    /// readings around the gap crosses, with an interval that covers the whole gap.
    #[allow(clippy::cast_possible_truncation)] // a part of a gap, ms
    fn crossing_in_gap(
        &self,
        found: DetectedMark,
        before: BtPoint,
        now: BtPoint,
        line: &MarkLine,
    ) -> DetectedMark {
        let over = |p: BtPoint| p.bt_c - line.expected_c(self.seconds(p.t_ms));
        let (a, b) = (over(before), over(now));
        let share = if b > a { (-a / (b - a)).clamp(0.0, 1.0) } else { 1.0 };
        let gap_ms = now.t_ms.saturating_sub(before.t_ms);
        let at_ms = before.t_ms.saturating_add((gap_ms as f64 * share) as i64);
        DetectedMark {
            at_ms,
            curve_ms: at_ms,
            from_ms: found.from_ms.min(before.t_ms),
            method: Method::Gap,
            ..found
        }
    }

    /// Detects first crack from several cracks in a short time, at any temperature.
    fn detect_cracks(&mut self, sample: &Sample, now: BtPoint) -> Option<DetectedMark> {
        let count = sample.cracks?;
        self.cracks.push_back((now.t_ms, count));
        while self.cracks.front().is_some_and(|(t, _)| now.t_ms.saturating_sub(*t) > CRACKS_MS) {
            self.cracks.pop_front();
        }
        let (_, before) = *self.cracks.front()?;
        let known = self.mark(EventKind::Fc);
        if count - before < CRACKS || known.is_some_and(|mark| mark.method == Method::Acoustic) {
            return None;
        }
        // First crack begins with the first of them.
        let at_ms = self.cracks.iter().find(|(_, n)| *n > before).map_or(now.t_ms, |(t, _)| *t);
        Some(DetectedMark {
            kind: EventKind::Fc,
            at_ms,
            from_ms: at_ms.saturating_sub(CRACKS_MS),
            to_ms: at_ms.saturating_add(CRACKS_MS / 2),
            known_ms: now.t_ms,
            bt_c: Some(now.bt_c),
            confidence: 0.95,
            method: Method::Acoustic,
            revision: known.map_or(0, |mark| mark.revision.saturating_add(1)),
            curve_ms: at_ms,
        })
    }
}

#[allow(clippy::cast_possible_truncation)] // seconds of a roast, as milliseconds; far off saturates
pub(super) fn seconds_to_ms(seconds: f64) -> i64 {
    (seconds.min(1e6) * 1000.0) as i64
}
