//! The state of the roast that detection follows.

use std::collections::VecDeque;

use contract::EventKind;
use serde::{Deserialize, Serialize};

use super::charge::ChargeBreak;
use super::turning_point::TurningPoint;
use super::{BtPoint, DetectedMark};
use crate::sample::Sample;

/// A roast in progress.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct RoastInProgress {
    pub(super) charge_ms: i64,
    pub(super) charge_c: f64,
    /// The standard deviation of an estimated CHARGE, s; 0 for one that the curve shows.
    #[serde(default)]
    pub(super) charge_deviation_s: f64,
    /// The lowest readings since CHARGE.
    pub(super) turning: TurningPoint,
    pub(super) marks: Vec<DetectedMark>,
    /// The time when the burner went out with full air; `None` once it burns again.
    pub(super) burner_out_ms: Option<i64>,
    pub(super) door_ms: Option<i64>,
    /// Recent crack counts: (ms, count since the recording began).
    pub(super) cracks: VecDeque<(i64, f64)>,
    /// The time when the temperature reached the lower 90 % limit of each crossing's line.
    pub(super) below: [Option<i64>; 3],
    /// The crossings that the temperature had passed when tracking began.
    #[serde(default)]
    pub(super) skipped: [bool; 3],
    /// Readings near first crack and after it.
    #[serde(default)]
    pub(super) readings: VecDeque<BtPoint>,
}

impl RoastInProgress {
    pub(super) fn from_charge(charge: DetectedMark, found: ChargeBreak) -> Self {
        Self {
            charge_ms: charge.at_ms,
            charge_c: found.bt_c,
            marks: vec![charge],
            ..Self::default()
        }
    }

    pub(super) fn mark(&self, kind: EventKind) -> Option<&DetectedMark> {
        self.marks.iter().find(|mark| mark.kind == kind)
    }

    /// Stores a mark in place of its older revision.
    pub(super) fn replace_mark(&mut self, mark: DetectedMark) {
        self.marks.retain(|known| known.kind != mark.kind);
        self.marks.push(mark);
    }

    pub(super) fn seconds(&self, t_ms: i64) -> f64 {
        t_ms.saturating_sub(self.charge_ms) as f64 / 1000.0
    }

    pub(super) fn update_controls(&mut self, sample: &Sample) {
        let out = sample.gas_pct.zip(sample.fan_pct).map(|(gas, fan)| gas <= 0.0 && fan >= 90.0);
        if out == Some(true) {
            self.burner_out_ms.get_or_insert(sample.t_ms);
        } else if sample.gas_pct.is_some_and(|gas| gas > 0.0) {
            self.burner_out_ms = None;
        }
        match sample.door_open {
            Some(true) => {
                self.door_ms.get_or_insert(sample.t_ms);
            }
            Some(false) => self.door_ms = None,
            None => {}
        }
    }
}
