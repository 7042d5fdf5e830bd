//! Detection of DROP: the drum is emptied, and the probe that was in beans is in air.
//!
//! A fall from the roast's top that goes on: [`FALL_C`] within [`WITHIN_MS`], or [`SLOW_FALL_C`]
//! within [`SLOW_WITHIN_MS`]. The moment is where the curve bends down the most, corrected by what
//! this machine's marks have taught: on some drums the probe reacts 15 s late. `slow_fall_c` is
//! [`SLOW_FALL_C`], or [`LAST_FALL_C`] at the end of a recording.
//! A burner that goes out is not a DROP by itself, and silence must never be one.

use std::collections::VecDeque;

use contract::EventKind;

use super::secondary_sensors::SecondarySensors;
use super::{BtPoint, DetectedMark, Method, RoastInProgress, SCALE_HALF_MS};
use crate::machine_model::MachineModel;

const FALL_C: f64 = 4.0;
const WITHIN_MS: i64 = 14_000;
/// A slower fall must go on for longer: a drum whose burner is off cools slowly with the beans in it.
pub(super) const SLOW_FALL_C: f64 = 8.0;
const SLOW_WITHIN_MS: i64 = 90_000;
/// A smaller fall is enough with the door open, and at the end of a recording.
const BACKED_FALL_C: f64 = 2.0;
pub(super) const LAST_FALL_C: f64 = 2.0;
/// A DROP is not possible earlier than this after CHARGE, or from a lower temperature.
const AFTER_S: f64 = 140.0;
pub(super) const FROM_C: f64 = 135.0;
/// A reading this far below the top no longer belongs to it.
const LEFT_C: f64 = 0.3;
/// A gap longer than this may contain the DROP.
pub(super) const SILENT_MS: i64 = 10_000;
/// After a silence: how much colder the probe must be for the batch to have left meanwhile.
const GAP_FALL_C: f64 = 15.0;
/// One source of the time scatters less than another only if the difference exceeds this.
const CLEARLY_MS: i64 = 1_000;
/// The burner goes out, or the door opens, at most this long before the curve's moment.
const BURNER_MS: i64 = 90_000;
/// The half widths of the 90 % interval, ms: of the door, and of the curve before any mark.
const DOOR_HALF_MS: i64 = 9_000;
const HALF_MS: i64 = 15_000;

pub(super) fn find_drop(
    roast: &RoastInProgress,
    (past, witness): (&VecDeque<BtPoint>, &SecondarySensors),
    (now, before): (BtPoint, Option<BtPoint>),
    slow_fall_c: f64,
    learned: &MachineModel,
) -> Option<DetectedMark> {
    if !roast.turning.is_sure() || roast.seconds(now.t_ms) < AFTER_S {
        return None;
    }
    if let Some(before) = before.filter(|before| now.t_ms.saturating_sub(before.t_ms) > SILENT_MS) {
        return drop_in_gap(before, now);
    }
    let ago_ms = |point: &BtPoint| now.t_ms.saturating_sub(point.t_ms);
    let window = past.iter().rev().take_while(|p| ago_ms(p) <= SLOW_WITHIN_MS);
    let top_c = window.clone().map(|p| p.bt_c).fold(f64::MIN, f64::max);
    let fell = top_c - now.bt_c;
    if top_c < FROM_C || fell < BACKED_FALL_C || roast.was_between_batches(top_c) {
        return None;
    }
    let left = *window.clone().find(|p| p.bt_c >= top_c - LEFT_C)?;
    // Rises again: a gust, not an empty drum.
    let lowest = window.clone().take_while(|p| p.t_ms > left.t_ms).map(|p| p.bt_c);
    if lowest.fold(f64::MAX, f64::min) < now.bt_c - 0.5 {
        return None;
    }
    let recent = window.clone().find(|p| ago_ms(p) >= WITHIN_MS);
    let fast = window
        .clone()
        .take_while(|p| ago_ms(p) <= WITHIN_MS)
        .map(|p| p.bt_c)
        .fold(f64::MIN, f64::max)
        - now.bt_c;
    let slow_rate = recent.is_some_and(|p| p.bt_c - now.bt_c > 1.0);
    let slow_fall_c = if roast.door_ms.is_some() { BACKED_FALL_C } else { slow_fall_c };
    let found = fast >= FALL_C || (slow_rate && fell >= slow_fall_c);
    if !found || roast.seconds(left.t_ms) < AFTER_S - 20.0 {
        return None;
    }
    let (from_ms, to_ms) = (left.t_ms.saturating_sub(12_000), now.t_ms.saturating_sub(3_000));
    let bent = super::charge::knee(past, from_ms, to_ms);
    let knee = bent.map_or(left, |(_, knee)| knee);
    Some(choose_drop_time(roast, witness, knee, now, learned))
}

/// Returns the DROP for a detected fall, with its time from the best available source.
fn choose_drop_time(
    roast: &RoastInProgress,
    witness: &SecondarySensors,
    left: BtPoint,
    now: BtPoint,
    learned: &MachineModel,
) -> DetectedMark {
    let curve_ms = left.t_ms;
    let near = |t: &i64| (0..=BURNER_MS).contains(&curve_ms.saturating_sub(*t));
    let (door, burner) = (roast.door_ms.filter(near), roast.burner_out_ms.filter(near));
    let exhaust = witness.exhaust_bend_ms(curve_ms, now.t_ms);
    let curve = (curve_ms, &learned.drop_offset, Method::Break);
    // The burner and the exhaust give the time only where people's marks here are clearly nearer to
    // them than to the curve: many roasters turn the burner off long before they drop.
    let mut best = curve;
    for (at, offset, method) in [
        (burner, &learned.burner_offset, Method::Burner),
        (exhaust, &learned.exhaust_offset, Method::Exhaust),
    ] {
        let (Some(at), Some(spread), Some(least)) = (at, offset.spread_ms(), best.1.spread_ms())
        else {
            continue;
        };
        if spread.saturating_add(CLEARLY_MS) < least {
            best = (at, offset, method);
        }
    }
    let (at_ms, half_ms, method) = match (door, witness.weight_step_ms(curve_ms)) {
        (Some(door), _) => (door, DOOR_HALF_MS, Method::Door),
        (_, Some(scale)) => (scale, SCALE_HALF_MS, Method::Scale),
        _ => {
            let (at, offset, method) = best;
            (at.saturating_add(offset.correction_ms()), offset.half_ms(HALF_MS), method)
        }
    };
    // Until this machine's marks have shown which of the two they follow, both are possible.
    let unknown = method == Method::Break && learned.drop_offset.spread_ms().is_none();
    let from_ms =
        burner.filter(|_| unknown).map_or(i64::MAX, |burner| burner.saturating_sub(2_000));
    DetectedMark {
        kind: EventKind::Drop,
        at_ms,
        from_ms: from_ms.min(at_ms.saturating_sub(half_ms)),
        to_ms: at_ms.saturating_add(half_ms),
        known_ms: now.t_ms,
        bt_c: Some(left.bt_c),
        confidence: 0.95,
        method,
        revision: 0,
        curve_ms,
    }
}

/// Returns a DROP inside a gap in the data, if the drum is empty when the data come back.
fn drop_in_gap(before: BtPoint, now: BtPoint) -> Option<DetectedMark> {
    let silence_ms = now.t_ms.saturating_sub(before.t_ms);
    if before.bt_c < FROM_C || before.bt_c - now.bt_c < GAP_FALL_C {
        return None;
    }
    // An emptied drum cools by about a degree a second at first.
    #[allow(clippy::cast_possible_truncation)] // seconds of a silence
    let ago_ms = (((before.bt_c - now.bt_c) * 1_000.0) as i64).min(silence_ms);
    let at_ms = now.t_ms.saturating_sub(ago_ms);
    Some(DetectedMark {
        kind: EventKind::Drop,
        at_ms,
        from_ms: before.t_ms,
        to_ms: now.t_ms,
        known_ms: now.t_ms,
        bt_c: Some(before.bt_c),
        confidence: 0.5,
        method: Method::Gap,
        revision: 0,
        curve_ms: at_ms,
    })
}
