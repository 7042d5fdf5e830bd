//! Ends that no curve shows: the end of first crack, of second crack and of cooling. Each follows
//! its start after the delay learned from people's marks on this machine.

use contract::EventKind;

use super::crossing::{NEAR_MARK_S, seconds_to_ms};
use super::{BtPoint, DetectedMark, Method, RoastInProgress};
use crate::machine_model::calibration::normal_share_within;
use crate::machine_model::{LearnedMean, MachineModel, Z90};

impl RoastInProgress {
    /// Returns the ends that are due with this sample.
    pub(super) fn detect_ends(
        &self,
        now: BtPoint,
        learned: &MachineModel,
    ) -> [Option<DetectedMark>; 2] {
        let pairs = [
            (EventKind::Fc, EventKind::FcEnd, &learned.first_crack_lasts, 0),
            // DROP often cuts second crack short: infer its end only if people have marked one.
            (EventKind::Sc, EventKind::ScEnd, &learned.second_crack_lasts, 1),
        ];
        pairs.map(|(begin, end, delay, marks_min)| {
            if self.mark(end).is_some() || delay.mark_count() < marks_min {
                return None;
            }
            let begun = self.mark(begin)?;
            let found = mark_after_delay(begun.at_ms, end, now, delay)?;
            Some(DetectedMark { confidence: found.confidence * begun.confidence, ..found })
        })
    }
}

/// Returns the end of cooling of a batch dropped at `from_ms`; never without people's marks of it.
pub(super) fn detect_cool_end(
    from_ms: i64,
    now: BtPoint,
    delay: &LearnedMean,
) -> Option<DetectedMark> {
    if delay.mark_count() == 0 {
        None
    } else {
        mark_after_delay(from_ms, EventKind::CoolEnd, now, delay)
    }
}

fn mark_after_delay(
    from_ms: i64,
    kind: EventKind,
    now: BtPoint,
    delay: &LearnedMean,
) -> Option<DetectedMark> {
    let at_ms = from_ms.saturating_add(seconds_to_ms(delay.mean()));
    if now.t_ms < at_ms {
        return None;
    }
    let half = seconds_to_ms(Z90 * delay.deviation());
    Some(DetectedMark {
        kind,
        at_ms,
        from_ms: at_ms.saturating_sub(half),
        to_ms: at_ms.saturating_add(half),
        known_ms: now.t_ms,
        bt_c: Some(now.bt_c),
        confidence: normal_share_within(NEAR_MARK_S / delay.deviation()),
        method: Method::Lasting,
        revision: 0,
        curve_ms: at_ms,
    })
}
