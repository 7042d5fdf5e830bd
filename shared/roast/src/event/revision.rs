//! Revision of first crack once DROP is known.
//!
//! The temperature at which beans crack varies, and a small rate of rise turns a degree into many
//! seconds. People drop a usual share of the roast after the first crack that they heard. The
//! revised time is the mean of both estimates, each weighted by the inverse of its variance, as
//! learned on this machine. A first crack that a sensor counted or a person reported is not revised,
//! and none on a machine that has no marks yet.

use contract::EventKind;

use super::crossing::{NEAR_MARK_S, seconds_to_ms};
use super::{BtPoint, DetectedMark, MarkChange, Method, RoastInProgress};
use crate::machine_model::calibration::normal_share_within;
use crate::machine_model::{MachineModel, Z90};

/// The readings that are kept for the temperature of a revised mark: one in this time, ms, from so
/// far below the line of first crack, °C, and at most so many.
const READING_EVERY_MS: i64 = 5_000;
const READING_FROM_C: f64 = 25.0;
const READINGS_MAX: usize = 240;
/// A first crack below the line is only inferred after so many marks, and with at most this
/// confidence: too little for advice.
const MISSED_MARKS_MIN: u32 = 3;
const MISSED_CONFIDENCE: f64 = 0.45;

impl RoastInProgress {
    /// Keeps a reading near first crack or after it.
    pub(super) fn keep_reading(&mut self, now: BtPoint, learned: &MachineModel) {
        let from_c = learned.first_crack.expected_c(self.seconds(now.t_ms)) - READING_FROM_C;
        let due = self
            .readings
            .back()
            .is_none_or(|last| now.t_ms.saturating_sub(last.t_ms) >= READING_EVERY_MS);
        if now.bt_c < from_c || !due {
            return;
        }
        if self.readings.len() >= READINGS_MAX {
            self.readings.pop_front();
        }
        self.readings.push_back(now);
    }

    /// Returns the changes of first crack and of its end that DROP causes.
    pub(super) fn revise_first_crack(
        &self,
        dropped: &DetectedMark,
        learned: &MachineModel,
    ) -> Vec<MarkChange> {
        let Some(revised) = self.revised_first_crack(dropped, learned) else {
            let missed = self.missed_first_crack(dropped, learned);
            return missed.map(MarkChange::Detected).into_iter().collect();
        };
        let mut changes = vec![MarkChange::Detected(revised)];
        let moved_ms =
            self.mark(EventKind::Fc).map_or(0, |mark| revised.at_ms.saturating_sub(mark.at_ms));
        let end = self.mark(EventKind::FcEnd).filter(|end| end.method == Method::Lasting);
        if let Some(end) = end.filter(|end| end.at_ms <= dropped.at_ms) {
            let moved = DetectedMark {
                at_ms: end.at_ms.saturating_add(moved_ms),
                from_ms: end.from_ms.saturating_add(moved_ms),
                to_ms: end.to_ms.saturating_add(moved_ms),
                revision: end.revision.saturating_add(1),
                ..*end
            };
            changes.push(if moved.at_ms <= dropped.at_ms {
                MarkChange::Detected(moved)
            } else {
                MarkChange::Withdrawn(EventKind::FcEnd)
            });
        }
        changes
    }

    fn revised_first_crack(
        &self,
        dropped: &DetectedMark,
        learned: &MachineModel,
    ) -> Option<DetectedMark> {
        if learned.first_crack.mark_count() == 0 {
            return None;
        }
        let (share, share_deviation) = learned.development.expected();
        let known = self.mark(EventKind::Fc).filter(|mark| is_from_line(mark))?;
        let whole_s = self.seconds(dropped.at_ms);
        let known_s = self.seconds(known.at_ms);
        if known_s >= whole_s {
            return None;
        }
        // Both estimates depend on CHARGE in about the same way: its variance is common to them.
        let common = (share * self.charge_deviation_s).powi(2);
        let by_line = (variance(known) - common).max(0.0);
        let by_drop =
            (whole_s * share_deviation).powi(2) + (1.0 - share).powi(2) * variance(dropped);
        let weight = by_line / (by_line + by_drop);
        let revised_s = known_s + weight * (whole_s * (1.0 - share) - known_s);
        let deviation_s = (weight * by_drop + common).sqrt();
        let at_ms = self.charge_ms.saturating_add(seconds_to_ms(revised_s));
        if self.mark(EventKind::DryEnd).is_some_and(|dried| dried.at_ms >= at_ms) {
            return None;
        }
        let half_ms = seconds_to_ms(learned.development.half_deviations() * deviation_s);
        Some(DetectedMark {
            at_ms,
            from_ms: at_ms.saturating_sub(half_ms),
            to_ms: at_ms.saturating_add(half_ms),
            bt_c: self.reading_at(at_ms).or(known.bt_c),
            confidence: normal_share_within(NEAR_MARK_S / deviation_s),
            revision: known.revision.saturating_add(1),
            ..*known
        })
    }

    /// Returns the first crack of a roast that was dropped a little below the machine's line, where
    /// people mark one: it follows from DROP alone, and is never certain.
    fn missed_first_crack(
        &self,
        dropped: &DetectedMark,
        learned: &MachineModel,
    ) -> Option<DetectedMark> {
        const LINE: usize = 1;
        let reached_ms = self.below[LINE].filter(|_| !self.skipped[LINE])?;
        let known = self.mark(EventKind::Fc).is_some();
        if known || learned.first_crack.mark_count() < MISSED_MARKS_MIN {
            return None;
        }
        let (share, share_deviation) = learned.development.expected();
        let whole_s = self.seconds(dropped.at_ms);
        let expected_s = whole_s * (1.0 - share);
        let expected_ms = self.charge_ms.saturating_add(seconds_to_ms(expected_s));
        let at_ms = expected_ms.max(reached_ms);
        let deviation_s = (whole_s * share_deviation).hypot(variance(dropped).sqrt());
        let half_ms = seconds_to_ms(learned.development.half_deviations() * deviation_s);
        (at_ms < dropped.at_ms).then(|| DetectedMark {
            kind: EventKind::Fc,
            at_ms,
            from_ms: at_ms.saturating_sub(half_ms),
            to_ms: at_ms.saturating_add(half_ms).min(dropped.at_ms),
            known_ms: dropped.known_ms,
            bt_c: self.reading_at(at_ms),
            confidence: normal_share_within(NEAR_MARK_S / deviation_s).min(MISSED_CONFIDENCE),
            method: Method::Learned,
            revision: 0,
            curve_ms: at_ms,
        })
    }

    /// Returns the kept temperature at a time, °C, interpolated between its neighbours.
    fn reading_at(&self, t_ms: i64) -> Option<f64> {
        let after = self.readings.partition_point(|reading| reading.t_ms < t_ms);
        let next = self.readings.get(after)?;
        let Some(last) = after.checked_sub(1).and_then(|i| self.readings.get(i)) else {
            return Some(next.bt_c);
        };
        let span_ms = next.t_ms.saturating_sub(last.t_ms).max(1);
        let share = t_ms.saturating_sub(last.t_ms) as f64 / span_ms as f64;
        Some(last.bt_c + (next.bt_c - last.bt_c) * share)
    }
}

/// Returns true if the mark is where the temperature crossed the learned line.
fn is_from_line(mark: &DetectedMark) -> bool {
    matches!(mark.method, Method::Learned | Method::Gap)
}

/// Returns the variance of a mark's time, s², from its 90 % interval.
fn variance(mark: &DetectedMark) -> f64 {
    let half_s = mark.to_ms.saturating_sub(mark.from_ms) as f64 / 2_000.0;
    (half_s / Z90).powi(2)
}
