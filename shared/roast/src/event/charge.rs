//! Detection of CHARGE: cold beans make a hot probe fall at once and fast, then slower until it
//! turns.
//!
//! CHARGE is a fall of [`FALL_C`] within [`WITHIN_MS`] (the rule that Cropster documents) from a
//! reading that was not falling before. Its time is where the curve left the old level, not where
//! the fall was detected. A false detection (a fan, an open door, the last batch leaving) becomes
//! visible later: a stronger break follows, or the fall never turns.

use super::{BtPoint, Method, RoastInProgress};
use std::collections::VecDeque;

const FALL_C: f64 = 7.0;
const WITHIN_MS: i64 = 32_000;
/// The lowest temperature at which a drum is charged, °C.
const FROM_C: f64 = 70.0;
/// The fall is steeper than this at its steepest, °C/s: a fan cools a drum more slowly.
const STEEP_C_PER_S: f64 = 0.28;
/// The curve bends by this much at once, °C/s: a drum that is cooled by air bends slowly.
const BEND_C_PER_S: f64 = 0.4;
/// …and by at least this multiple of its fall before.
const BEND_OF_FALL: f64 = 2.0;
/// A reading this far below the top has left it, °C.
const LEFT_C: f64 = 0.35;
/// A drum that has warmed up by this much is ready for the next batch, °C.
pub(super) const RECOVERED_C: f64 = 3.0;
/// The confidence in a break from a recorded level.
pub(super) const SURE: f64 = 0.97;
/// If the curve has not turned after this time, the drum has no beans. The limit is shorter for a
/// fall with which the recording began, because a drum that cools between batches falls for
/// minutes.
const HOPELESS_AFTER_S: f64 = 300.0;
const DOUBTFUL_AFTER_S: f64 = 170.0;
/// The time after CHARGE until which a second break may replace it.
const MISTAKEN_WITHIN_S: f64 = 900.0;
const MISTAKEN_BELOW_C: f64 = 140.0;

/// A downward break of the curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ChargeBreak {
    pub at_ms: i64,
    pub bt_c: f64,
    pub confidence: f64,
}

pub(super) fn find_break(past: &VecDeque<BtPoint>, now: BtPoint) -> Option<ChargeBreak> {
    let window = past.iter().rev().take_while(|p| now.t_ms.saturating_sub(p.t_ms) <= WITHIN_MS);
    let top_c = window.clone().map(|p| p.bt_c).fold(f64::MIN, f64::max);
    if top_c < FROM_C || top_c - now.bt_c < FALL_C {
        return None;
    }
    // The newest reading that was still on the old level.
    let top = *window.clone().find(|p| p.bt_c >= top_c - LEFT_C)?;
    let mut steepest = 0.0_f64;
    let mut later = now;
    for point in window.take_while(|p| p.t_ms >= top.t_ms) {
        let seconds = later.t_ms.saturating_sub(point.t_ms) as f64 / 1000.0;
        if seconds >= 4.0 {
            steepest = steepest.max((point.bt_c - later.bt_c) / seconds);
            later = *point;
        }
    }
    if steepest < STEEP_C_PER_S {
        return None;
    }
    let before = slope_before(past, top.t_ms);
    let falling = before.map_or(0.0, |slope| (-slope).max(0.0));
    // A recording that begins with the fall may lack the level before it.
    let confidence = if before.is_some() { SURE } else { 0.7 };
    let (bend, left) = knee(past, top.t_ms.saturating_sub(2_000), now.t_ms.saturating_sub(4_000))?;
    (bend >= BEND_C_PER_S.max(BEND_OF_FALL * falling)).then_some(ChargeBreak {
        at_ms: left.t_ms,
        bt_c: left.bt_c,
        confidence,
    })
}

/// Returns where the curve bends down the most between two times, and by how much, °C/s: the slope
/// over the 8.5 s before minus the slope over the 8.5 s after.
pub(super) fn knee(past: &VecDeque<BtPoint>, from_ms: i64, to_ms: i64) -> Option<(f64, BtPoint)> {
    const SPAN_MS: i64 = 8_500;
    let slope = |from: i64, to: i64| {
        let (mut n, mut st, mut sv, mut stt, mut stv) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for p in past.iter().filter(|p| (from..=to).contains(&p.t_ms)) {
            let (t, v) = (p.t_ms.saturating_sub(from) as f64 / 1000.0, p.bt_c);
            n += 1.0;
            st += t;
            sv += v;
            stt += t * t;
            stv += t * v;
        }
        let under = stt - st * st / f64::max(n, 1.0);
        (n >= 2.0 && under > 0.0).then(|| (stv - st * sv / n) / under)
    };
    let mut best: Option<(f64, BtPoint)> = None;
    for point in past.iter().filter(|p| (from_ms..=to_ms).contains(&p.t_ms)) {
        // Assume a level curve before the start of the recording.
        let before = slope(point.t_ms.saturating_sub(SPAN_MS), point.t_ms).unwrap_or(0.0);
        let Some(after) = slope(point.t_ms, point.t_ms.saturating_add(SPAN_MS)) else { continue };
        let bend = before - after;
        if best.is_none_or(|(most, _)| bend > most) {
            best = Some((bend, *point));
        }
    }
    best
}

/// Returns the slope over the 12 s before a time, °C/s.
fn slope_before(past: &VecDeque<BtPoint>, t_ms: i64) -> Option<f64> {
    let from_ms = t_ms.saturating_sub(12_000);
    let mut span = past.iter().filter(|p| (from_ms..=t_ms).contains(&p.t_ms));
    let first = span.next()?;
    let last = span.next_back()?;
    let seconds = last.t_ms.saturating_sub(first.t_ms) as f64 / 1000.0;
    (seconds >= 3.0).then(|| (last.bt_c - first.bt_c) / seconds)
}

impl RoastInProgress {
    /// Returns true if the curve should have turned by now: the drum is only cooling down.
    pub(super) fn never_turned(&self, now: BtPoint) -> bool {
        let limit = if self.is_doubtful() { DOUBTFUL_AFTER_S } else { HOPELESS_AFTER_S };
        !self.turning.is_sure() && self.seconds(now.t_ms) > limit
    }

    /// Returns true if the recording began with the fall, which may be the last batch leaving.
    pub(super) fn is_doubtful(&self) -> bool {
        let charge = self.mark(contract::EventKind::Charge);
        charge.is_some_and(|c| c.method == Method::Break && c.confidence < SURE)
    }

    /// Returns true if a doubtful CHARGE was the last batch leaving. Beans are never dropped colder
    /// than they were charged, so a break from below a doubtful CHARGE is the next batch.
    pub(super) fn was_between_batches(&self, top_c: f64) -> bool {
        self.is_doubtful() && top_c < self.charge_c
    }

    /// Returns true if the detected roast may be pre-heating, because the beans cannot be dry yet.
    pub(super) fn may_be_preheating(&self, now: BtPoint) -> bool {
        let early = self.seconds(now.t_ms) < MISTAKEN_WITHIN_S
            && (now.bt_c < MISTAKEN_BELOW_C || !self.turning.is_sure());
        early || self.was_between_batches(now.bt_c)
    }
}
