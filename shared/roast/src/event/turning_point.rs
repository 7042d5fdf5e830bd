//! The turning point: the lowest reading after CHARGE.
//!
//! On a probe with few digits the lowest value stands for a while: some programs call the first of
//! these readings the turning point, some the last. This module reports their middle.

use contract::EventKind;
use serde::{Deserialize, Serialize};

use super::crossing::seconds_to_ms;
use super::{BtPoint, DetectedMark, Method, RoastInProgress};
use crate::machine_model::MachineModel;

/// The curve has turned once it has risen by this much…
const RISEN_C: f64 = 1.0;
/// …and the lowest reading lies this long after CHARGE.
const AFTER_S: f64 = 15.0;
/// The curve has turned by then, s after CHARGE.
const LATEST_S: f64 = 180.0;
/// The half width of the interval before any mark, ms.
const HALF_MS: i64 = 8_000;

/// The lowest readings so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct TurningPoint {
    /// The first reading that was followed.
    #[serde(default)]
    first: Option<BtPoint>,
    low: Option<BtPoint>,
    /// The newest reading as low.
    until_ms: i64,
    sure: Option<BtPoint>,
    /// The number of turning points returned so far; the next one gets this revision.
    #[serde(rename = "told")]
    revisions: u32,
}

impl TurningPoint {
    /// Returns a turning point that happened before tracking started.
    pub(super) const fn before_tracking(t_ms: i64) -> Self {
        let point = BtPoint { t_ms, bt_c: f64::MIN };
        Self { first: None, low: Some(point), until_ms: t_ms, sure: Some(point), revisions: 0 }
    }

    pub(super) const fn is_sure(&self) -> bool {
        self.sure.is_some()
    }

    /// Returns when the curve turned, ms; the start of tracking if it had turned before.
    pub(super) fn turned_ms(&self) -> Option<i64> {
        self.sure.map(|low| low.t_ms)
    }
}

impl RoastInProgress {
    /// Follows the lowest reading; returns the turning point when it is new or lower.
    pub(super) fn detect_turning_point(
        &mut self,
        now: BtPoint,
        learned: &MachineModel,
    ) -> Option<DetectedMark> {
        // Past drying no lower reading is the turning point's.
        if self.mark(EventKind::DryEnd).is_some()
            || self.seconds(now.t_ms) > 400.0 && self.turning.is_sure()
        {
            return None;
        }
        let seconds = self.seconds(now.t_ms);
        if seconds < 0.0 {
            return None;
        }
        let after_min_s = if self.is_doubtful() { 0.0 } else { AFTER_S };
        let turning = &mut self.turning;
        turning.first.get_or_insert(now);
        match turning.low {
            Some(low) if now.bt_c > low.bt_c => {}
            Some(low) if now.bt_c >= low.bt_c => turning.until_ms = now.t_ms,
            _ => {
                turning.low = Some(now);
                turning.until_ms = now.t_ms;
            }
        }
        let low = turning.low?;
        let known = turning.sure.is_some_and(|sure| sure.t_ms == low.t_ms);
        let after_s = low.t_ms.saturating_sub(self.charge_ms) as f64 / 1000.0;
        if known || now.bt_c - low.bt_c < RISEN_C || after_s < after_min_s {
            return None;
        }
        turning.sure = Some(low);
        // Tracking was resumed later than any curve turns, and the temperature only rose since.
        if turning.first == Some(low) && after_s > LATEST_S {
            return None;
        }
        let until_ms = turning.until_ms;
        let mark = self.turning_point_mark(low, until_ms, now, learned);
        // A recording that begins with the fall: the turning point shows how long ago CHARGE was.
        if self.is_doubtful() {
            let usual_s = learned.course.turning.mean();
            let usual_ms = mark.curve_ms.saturating_sub(seconds_to_ms(usual_s));
            self.charge_ms = self.charge_ms.min(usual_ms);
        }
        self.replace_mark(mark);
        Some(mark)
    }

    /// Returns the mark of a turning point in the middle of the lowest readings.
    pub(super) fn turning_point_mark(
        &mut self,
        low: BtPoint,
        until_ms: i64,
        now: BtPoint,
        learned: &MachineModel,
    ) -> DetectedMark {
        let revision = self.turning.revisions;
        self.turning.revisions = revision.saturating_add(1);
        let lasted_ms = until_ms.saturating_sub(low.t_ms);
        let curve_ms = low.t_ms.saturating_add(lasted_ms / 2);
        let at_ms = curve_ms.saturating_add(learned.tp_offset.correction_ms());
        let half = lasted_ms.max(learned.tp_offset.half_ms(HALF_MS));
        DetectedMark {
            kind: EventKind::Tp,
            at_ms,
            from_ms: at_ms.saturating_sub(half),
            to_ms: at_ms.saturating_add(half),
            known_ms: now.t_ms,
            bt_c: Some(low.bt_c),
            confidence: 0.95,
            method: Method::Lowest,
            revision,
            curve_ms,
        }
    }
}
