//! What the tracker does while no roast is known to run: it waits for CHARGE into an empty drum, into
//! a drum that was emptied just before, and follows a roast that may have begun before tracking did.

use super::begun_before::{self, BegunBefore, Sight, Verdict};
use super::{BtPoint, DetectedMark, MarkChange, RoastInProgress, Stage, Tracker};
use super::{charge, drop, end_marks};
use crate::machine_model::LINE_CENTRE_S;
use crate::ror::RiseEstimate;
use crate::sample::Sample;

/// A batch is charged at least this long after the last DROP, ms.
const RECHARGED_AFTER_MS: i64 = 20_000;
/// Cold beans make the drum colder by at least this, °C; a fan or an open door makes it less so.
const RECHARGED_FALL_C: f64 = 30.0;

impl Tracker {
    /// Follows a drum that is empty, or that may hold a roast which began before tracking did.
    pub(super) fn follow_unknown(
        &mut self,
        sample: &Sample,
        now: BtPoint,
        before: Option<BtPoint>,
        rise: Option<RiseEstimate>,
        changes: &mut Vec<MarkChange>,
    ) {
        if self.starting {
            self.starting = false;
            self.begun_before = Some(Box::new(BegunBefore::new(now)));
        }
        let verdict = match self.begun_before.take() {
            None if !self.infer_ends => return,
            None => {
                charge::find_break(&self.past, now).map_or(Verdict::Undecided, Verdict::Charged)
            }
            Some(mut begun) => {
                let (past, witness, learned) = (&self.past, &self.witness, &self.learned);
                let sight = Sight { sample, now, before, rise, past, witness, learned };
                let verdict = begun.follow(&sight, |found| self.charge_mark(found, now, 0));
                if verdict == Verdict::Undecided {
                    self.begun_before = Some(begun);
                }
                verdict
            }
        };
        if self.infer_ends {
            self.apply_verdict(verdict, now, changes);
        } else {
            self.follow_unconfirmed(verdict, now);
        }
    }

    /// Follows the roast of a machine that reports CHARGE and DROP itself, and that was charged before
    /// tracking began. The curve makes no mark of it: an event that the machine reports confirms it.
    fn follow_unconfirmed(&mut self, verdict: Verdict, now: BtPoint) {
        match verdict {
            Verdict::Undecided => {}
            // The machine reported this CHARGE before tracking began. The curve's turn shows when.
            Verdict::Charged(_) => self.begun_before = Some(Box::new(BegunBefore::new(now))),
            Verdict::ChargedBefore(roast) | Verdict::Roasting(roast) => {
                self.begun_before = Some(Box::new(BegunBefore::of_charged(roast, now)));
            }
            Verdict::Dropped(..) | Verdict::Empty => self.begun_before = None,
        }
    }

    fn apply_verdict(&mut self, verdict: Verdict, now: BtPoint, changes: &mut Vec<MarkChange>) {
        let (roast, dropped) = match verdict {
            Verdict::Undecided | Verdict::Empty => return,
            Verdict::Charged(found) => {
                (RoastInProgress::from_charge(self.charge_mark(found, now, 0), found), None)
            }
            Verdict::ChargedBefore(roast) | Verdict::Roasting(roast) => (roast, None),
            Verdict::Dropped(roast, dropped) => (roast, Some(dropped)),
        };
        changes.extend(roast.marks.iter().map(|mark| MarkChange::Detected(*mark)));
        self.stage = Stage::Roasting(Box::new(roast));
        if let Some(dropped) = dropped {
            self.end_roast(dropped, now, changes);
        }
    }

    /// Ends the recording: returns the marks that the last readings show, although not enough of
    /// what followed was recorded to be sure of them live.
    pub fn finish(&mut self) -> Vec<MarkChange> {
        let mut changes = Vec::new();
        let Some(now) = self.past.back().copied().filter(|_| self.infer_ends) else {
            return changes;
        };
        let (past, witness, learned) = (&self.past, &self.witness, &self.learned);
        match &self.stage {
            Stage::Empty => {
                let Some(begun) = self.begun_before.take() else { return changes };
                let sample = &Sample::bean(now.t_ms, Some(now.bt_c));
                let sight = Sight { sample, now, before: None, rise: None, past, witness, learned };
                let verdict = begun.finish(&sight);
                self.apply_verdict(verdict, now, &mut changes);
            }
            Stage::Roasting(roast) => {
                let fall_c = drop::LAST_FALL_C;
                let found = drop::find_drop(roast, (past, witness), (now, None), fall_c, learned);
                if let Some(dropped) = found {
                    self.end_roast(dropped, now, &mut changes);
                }
            }
            Stage::Emptied { .. } => {}
        }
        changes
    }

    /// Ends the running roast with its DROP. Withdraws the marks after it, which were wrong, and
    /// revises first crack.
    pub(super) fn end_roast(
        &mut self,
        dropped: DetectedMark,
        now: BtPoint,
        changes: &mut Vec<MarkChange>,
    ) {
        if let Stage::Roasting(roast) = &self.stage {
            let later = roast.marks.iter().filter(|mark| mark.at_ms > dropped.at_ms);
            changes.extend(later.map(|mark| MarkChange::Withdrawn(mark.kind)));
            changes.extend(roast.revise_first_crack(&dropped, &self.learned));
        }
        changes.push(MarkChange::Detected(dropped));
        self.stage = Stage::emptied(now.bt_c, Some(dropped.at_ms));
    }

    /// Follows a drum whose batch has left, until it recovers. A break of the falling curve that
    /// turns like a roast was CHARGE into the drum that was still cooling.
    pub(super) fn follow_emptied(&mut self, now: BtPoint, changes: &mut Vec<MarkChange>) {
        let broke = if self.infer_ends { charge::find_break(&self.past, now) } else { None };
        let broke = broke.map(|found| (self.charge_mark(found, now, 0), found));
        let Stage::Emptied { low_c, dropped_ms, charged } = &mut self.stage else { return };
        let cooling = &self.learned.cooling_lasts;
        if let Some(cool) =
            dropped_ms.and_then(|from| end_marks::detect_cool_end(from, now, cooling))
        {
            *dropped_ms = None;
            changes.push(MarkChange::Detected(cool));
        }
        *low_c = low_c.min(now.bt_c);
        if let Some(roast) = charged {
            roast.detect_turning_point(now, &self.learned);
        } else {
            let emptied_ms = dropped_ms.unwrap_or(i64::MIN);
            *charged = broke
                .filter(|(_, found)| found.at_ms.saturating_sub(RECHARGED_AFTER_MS) >= emptied_ms)
                .map(|(mark, found)| Box::new(RoastInProgress::from_charge(mark, found)));
        }
        if now.bt_c - *low_c < charge::RECOVERED_C {
            return;
        }
        let dry_c = self.learned.dry_end.expected_c(LINE_CENTRE_S);
        let roast = charged.take().filter(|roast| {
            *low_c < dry_c.min(roast.charge_c - RECHARGED_FALL_C) && roast.turned_gently(now)
        });
        if let Some(roast) = roast {
            changes.extend(roast.marks.iter().map(|mark| MarkChange::Detected(*mark)));
            self.stage = Stage::Roasting(roast);
            return;
        }
        // A machine that reports CHARGE itself has reported each one since tracking began.
        self.starting = self.infer_ends;
        self.stage = Stage::Empty;
        self.forget_before(now.t_ms);
    }
}

impl RoastInProgress {
    /// Returns true if the curve has turned as with beans in the drum: in time, and slowly.
    fn turned_gently(&self, now: BtPoint) -> bool {
        self.turning.turned_ms().is_some_and(|turned_ms| {
            turned_ms.saturating_sub(self.charge_ms) <= begun_before::TURN_MS
                && now.t_ms.saturating_sub(turned_ms) >= begun_before::TURN_GENTLY_MS
        })
    }
}
