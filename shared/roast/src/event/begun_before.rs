//! A roast that may have begun before tracking did: the agent or the recording started in mid-roast,
//! or the probe was cold at CHARGE, so that no fall shows it.
//!
//! A drum that warms up looks like such a roast. So the roast is followed without a mark until the
//! curve shows which of the two it is: a fall that turns was CHARGE into a warm drum, a fall that
//! goes on was DROP.

use std::collections::VecDeque;

use contract::EventKind;
use serde::{Deserialize, Serialize};

use super::charge::{self, ChargeBreak};
use super::crossing::{NEAR_MARK_S, seconds_to_ms};
use super::drop;
use super::secondary_sensors::SecondarySensors;
use super::turning_point::TurningPoint;
use super::{BtPoint, DetectedMark, Method, RoastInProgress};
use crate::machine_model::calibration::normal_share_within;
use crate::machine_model::{LINE_CENTRE_S, MachineModel, Z90};
use crate::ror::RiseEstimate;
use crate::sample::Sample;

/// The temperature rises once it is this far above its lowest, °C.
const RISEN_C: f64 = 3.0;
/// A reading further than this above the lowest has left it, °C.
const LEFT_C: f64 = 1.0;
/// The first readings show the end of the fall after CHARGE if the lowest is this far below the
/// first, °C.
const FALLEN_C: f64 = 0.5;
/// Beans turn within this after CHARGE, ms: a drum that cools for longer, by more than this, °C, is
/// empty.
pub(super) const TURN_MS: i64 = 170_000;
const COOLED_C: f64 = 2.0;
/// A fall has turned once the temperature is this far above its lowest, °C.
const TURNED_C: f64 = 2.0;
/// Beans turn slowly: the rise by [`TURNED_C`] takes at least this, ms. An empty drum whose burner
/// is lit again turns at once.
pub(super) const TURN_GENTLY_MS: i64 = 12_000;
/// At the end of a recording a fall goes on if the temperature fell by this, °C, over this time, ms.
const LAST_FALL_C: f64 = 2.0;
const LAST_MS: i64 = 15_000;
/// A silence longer than this hides the course of a fall, ms.
const GAP_MS: i64 = 60_000;
/// A second break of the curve is at least this long after the first, ms.
const AGAIN_MS: i64 = 30_000;
/// Below this temperature a drum is cold, and CHARGE makes no fall, °C.
const COLD_C: f64 = 60.0;
/// The standard deviation of CHARGE into a cold drum, s.
const COLD_DEVIATION_S: f64 = 10.0;
/// Roasting beans get warmer by at least this, °C/s; an idle drum holds its temperature.
const RISING_C_PER_S: f64 = 2.0 / 60.0;
/// Beans are not dropped colder than this many deviations below the machine's DROP line.
const BELOW_DROP: f64 = 3.0;
/// A recording that ends in mid-roast shows a roast once the beans are warmer by this, °C, and the
/// rate of rise has decreased to this share.
const ROASTED_C: f64 = 60.0;
const SLOWED: f64 = 0.8;

/// The roast that may be running, and what its curve has shown so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BegunBefore {
    roast: RoastInProgress,
    first: BtPoint,
    low: BtPoint,
    /// The newest reading as low.
    low_until_ms: i64,
    /// The newest reading within [`LEFT_C`] of the lowest.
    low_left: BtPoint,
    rising: bool,
    /// The first and the newest rate of rise since the temperature rises, °C/min.
    rates: Option<(f64, f64)>,
    top_c: f64,
    fall: Option<Fall>,
}

/// A fall that is CHARGE if it turns, and DROP if it goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Fall {
    began_ms: i64,
    low: BtPoint,
    charged: Option<RoastInProgress>,
    dropped: Option<DetectedMark>,
}

/// What the newest reading has decided.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Undecided,
    /// The drum was empty; the curve broke at CHARGE just now.
    Charged(ChargeBreak),
    /// The drum was empty; this roast was charged meanwhile.
    ChargedBefore(RoastInProgress),
    /// This roast runs.
    Roasting(RoastInProgress),
    /// This roast has ended.
    Dropped(RoastInProgress, DetectedMark),
    /// The drum is empty.
    Empty,
}

/// The newest readings and the machine's model.
pub(super) struct Sight<'a> {
    pub sample: &'a Sample,
    pub now: BtPoint,
    pub before: Option<BtPoint>,
    pub rise: Option<RiseEstimate>,
    pub past: &'a VecDeque<BtPoint>,
    pub witness: &'a SecondarySensors,
    pub learned: &'a MachineModel,
}

impl BegunBefore {
    pub(super) fn new(first: BtPoint) -> Self {
        Self {
            roast: RoastInProgress::default(),
            first,
            low: first,
            low_until_ms: first.t_ms,
            low_left: first,
            rising: false,
            rates: None,
            top_c: first.bt_c,
            fall: None,
        }
    }

    /// Continues to follow a roast whose CHARGE the curve has shown, and which nothing confirms yet.
    pub(super) fn of_charged(roast: RoastInProgress, now: BtPoint) -> Self {
        let low = BtPoint { bt_c: now.bt_c - TURNED_C, ..now };
        Self { roast, low, rising: true, ..Self::new(now) }
    }

    /// Returns the estimated CHARGE of a roast that may be running, ms.
    pub(super) fn charge_ms(&self) -> Option<i64> {
        self.charge_until_decided_ms().filter(|_| self.fall.is_none())
    }

    /// Returns the estimated CHARGE as [`Self::charge_ms`] does, and also during a fall that may be
    /// DROP: a machine may report its DROP seconds late.
    pub(super) fn charge_until_decided_ms(&self) -> Option<i64> {
        let shown = self.rising && self.top_c >= self.low.bt_c + RISEN_C;
        shown.then_some(self.roast.charge_ms)
    }

    /// Follows the next reading. `charge_mark` makes the mark of a break.
    pub(super) fn follow(
        &mut self,
        sight: &Sight<'_>,
        charge_mark: impl Fn(ChargeBreak) -> DetectedMark,
    ) -> Verdict {
        self.roast.update_controls(sight.sample);
        if self.fall.is_some() {
            return self.follow_fall(sight, charge_mark);
        }
        let broke = charge::find_break(sight.past, sight.now);
        if let Some(found) = broke.filter(|found| !self.may_be_drop(found.bt_c, sight)) {
            return Verdict::Charged(found);
        }
        if let Some(verdict) = self.follow_rise(sight) {
            return verdict;
        }
        let dropped = self.dropped(sight, drop::SLOW_FALL_C);
        if let Some(began_ms) = broke.map(|found| found.at_ms).or(dropped.map(|mark| mark.at_ms)) {
            self.fall = Some(Fall { began_ms, low: sight.now, charged: None, dropped });
            return self.follow_fall(sight, charge_mark);
        }
        Verdict::Undecided
    }

    /// Returns what the recording shows at its end.
    pub(super) fn finish(&self, sight: &Sight<'_>) -> Verdict {
        let recent =
            sight.past.iter().rev().find(|p| sight.now.t_ms.saturating_sub(p.t_ms) >= LAST_MS);
        let ends = recent.is_some_and(|p| p.bt_c - sight.now.bt_c < LAST_FALL_C);
        let charged = self.fall.as_ref().and_then(|fall| fall.charged.clone());
        if let Some(charged) = charged.filter(|_| ends) {
            return Verdict::ChargedBefore(charged);
        }
        let dropped = self.fall.as_ref().and_then(|fall| fall.dropped);
        if let Some(dropped) = dropped.or_else(|| self.dropped(sight, drop::LAST_FALL_C)) {
            return Verdict::Dropped(self.begun(sight.now), dropped);
        }
        let slowed = self.rates.is_some_and(|(first, last)| last <= SLOWED * first);
        let hot = Self::is_hot_enough(self.top_c, sight.learned);
        let roasted = self.rising && self.top_c >= self.low.bt_c + ROASTED_C;
        if self.fall.is_none() && roasted && hot && slowed {
            return Verdict::Roasting(self.begun(sight.now));
        }
        Verdict::Undecided
    }

    /// Follows the temperature until it falls. Returns a verdict if the drum is empty.
    fn follow_rise(&mut self, sight: &Sight<'_>) -> Option<Verdict> {
        let now = sight.now;
        if now.bt_c < self.low.bt_c {
            if self.rising && now.bt_c < self.low.bt_c - RISEN_C {
                *self = Self::new(now);
                return None;
            }
            self.low = now;
        }
        if now.bt_c <= self.low.bt_c {
            self.low_until_ms = now.t_ms;
        }
        if now.bt_c <= self.low.bt_c + LEFT_C {
            self.low_left = now;
        }
        self.top_c = self.top_c.max(now.bt_c);
        if !self.rising {
            if now.t_ms.saturating_sub(self.first.t_ms) > TURN_MS
                && now.bt_c < self.first.bt_c - COOLED_C
            {
                return Some(Verdict::Empty);
            }
            if now.bt_c - self.low.bt_c < RISEN_C {
                return None;
            }
            self.begin_rise(now, sight.learned);
        }
        if let Some(rate) = sight.rise.map(|rise| rise.c_per_min) {
            let first = self.rates.map_or(rate, |(first, _)| first.max(rate));
            self.rates = Some((first, rate));
        }
        let Sight { sample, before, rise, learned, .. } = *sight;
        let crossed = self.roast.detect_crossings(sample, now, before, rise, learned);
        for mark in crossed.into_iter().flatten() {
            self.roast.replace_mark(mark);
        }
        for ended in self.roast.detect_ends(now, learned).into_iter().flatten() {
            self.roast.replace_mark(ended);
        }
        None
    }

    /// Estimates CHARGE from the turning point, or else from the temperature.
    fn begin_rise(&mut self, now: BtPoint, learned: &MachineModel) {
        self.rising = true;
        let course = &learned.course;
        let fell = self.low.bt_c <= self.first.bt_c - FALLEN_C;
        let since = |t_ms: i64, seconds: f64| t_ms.saturating_sub(seconds_to_ms(seconds));
        self.roast.turning = TurningPoint::before_tracking(self.low.t_ms);
        if self.first.bt_c < COLD_C {
            self.roast.charge_ms = self.cold_charge_ms(now);
            self.roast.charge_deviation_s = COLD_DEVIATION_S;
        } else if fell {
            let charge_ms = since(self.low.t_ms, course.turning.mean());
            self.roast.charge_ms = charge_ms.min(self.first.t_ms);
            self.roast.charge_deviation_s = course.turning.deviation();
        } else {
            let (seconds, deviation_s) = course.reached_s(self.first.bt_c);
            self.roast.charge_ms = since(self.first.t_ms, seconds);
            self.roast.charge_deviation_s = deviation_s;
        }
        if fell || self.first.bt_c < COLD_C {
            // A cold drum is level until CHARGE.
            let t_ms = self.low.t_ms.max(self.roast.charge_ms);
            let (low, until_ms) = (BtPoint { t_ms, ..self.low }, self.low_until_ms.max(t_ms));
            let mark = self.roast.turning_point_mark(low, until_ms, now, learned);
            self.roast.replace_mark(mark);
        }
        let seconds = self.roast.seconds(self.first.t_ms);
        self.roast.skip_crossings_below(self.first.bt_c, seconds, learned);
    }

    /// Returns when the temperature of a cold drum began to rise, ms. It rises with the square of
    /// the time at first.
    #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
    fn cold_charge_ms(&self, now: BtPoint) -> i64 {
        let ratio = ((now.bt_c - self.low.bt_c) / LEFT_C).sqrt();
        let left = self.low_left.t_ms;
        let before = now.t_ms.saturating_sub(left) as f64 / (ratio - 1.0).max(0.5);
        left.saturating_sub(before as i64).max(self.low.t_ms)
    }

    fn follow_fall(
        &mut self,
        sight: &Sight<'_>,
        charge_mark: impl Fn(ChargeBreak) -> DetectedMark,
    ) -> Verdict {
        let now = sight.now;
        // A fall whose course is not known is CHARGE, as without any history.
        if sight.before.is_some_and(|before| now.t_ms.saturating_sub(before.t_ms) > GAP_MS) {
            let charged = self.fall.take().and_then(|fall| fall.charged);
            return charged.map_or(Verdict::Empty, Verdict::ChargedBefore);
        }
        let broke = charge::find_break(sight.past, now);
        let dropped = match self.fall.as_ref().and_then(|fall| fall.dropped) {
            None => self.dropped(sight, drop::SLOW_FALL_C),
            known => known,
        };
        let Some(fall) = &mut self.fall else { return Verdict::Undecided };
        fall.dropped = dropped;
        if now.bt_c < fall.low.bt_c {
            fall.low = now;
        }
        let again_ms = fall.began_ms.saturating_add(AGAIN_MS);
        let again = broke.is_some_and(|found| found.at_ms > again_ms);
        match &mut fall.charged {
            Some(charged) => {
                charged.detect_turning_point(now, sight.learned);
            }
            None if again => {}
            None => {
                let charged = |found| RoastInProgress::from_charge(charge_mark(found), found);
                fall.charged = broke.map(charged);
            }
        }
        if now.bt_c - fall.low.bt_c >= TURNED_C {
            let gently = now.t_ms.saturating_sub(fall.low.t_ms) >= TURN_GENTLY_MS;
            // Fresh beans turn colder than dried ones.
            let dry = &sight.learned.dry_end;
            let dry_c = dry.expected_c(LINE_CENTRE_S) + Z90 * dry.deviation_c(LINE_CENTRE_S);
            let fresh = gently && fall.low.bt_c < dry_c;
            return match (fall.charged.take(), dropped) {
                (Some(charged), _) if fresh => Verdict::ChargedBefore(charged),
                (_, Some(dropped)) if !fresh => Verdict::Dropped(self.begun(now), dropped),
                _ => {
                    self.fall = None;
                    Verdict::Undecided
                }
            };
        }
        // A second break before the first fall has turned is CHARGE into an emptied drum.
        if now.t_ms.saturating_sub(fall.began_ms) < TURN_MS && !(again && dropped.is_some()) {
            return Verdict::Undecided;
        }
        match dropped {
            Some(dropped) => Verdict::Dropped(self.begun(now), dropped),
            None => Verdict::Empty,
        }
    }

    fn dropped(&self, sight: &Sight<'_>, slow_fall_c: f64) -> Option<DetectedMark> {
        let from = (sight.past, sight.witness);
        let dropped = drop::find_drop(
            &self.roast,
            from,
            (sight.now, sight.before),
            slow_fall_c,
            sight.learned,
        );
        dropped.filter(|mark| mark.bt_c.is_some_and(|top_c| self.may_be_drop(top_c, sight)))
    }

    /// Returns true if a fall from this temperature may be a DROP: beans were getting warmer.
    fn may_be_drop(&self, top_c: f64, sight: &Sight<'_>) -> bool {
        self.rising && self.is_rising_fast(sight.now) && Self::is_hot_enough(top_c, sight.learned)
    }

    /// Returns true if beans may be dropped at this temperature on this machine.
    fn is_hot_enough(top_c: f64, learned: &MachineModel) -> bool {
        let line = &learned.drop;
        let least = line.expected_c(LINE_CENTRE_S) - BELOW_DROP * line.deviation_c(LINE_CENTRE_S);
        top_c >= least.max(drop::FROM_C)
    }

    /// Returns true if the temperature has risen as in a roast since its lowest.
    fn is_rising_fast(&self, now: BtPoint) -> bool {
        let seconds = now.t_ms.saturating_sub(self.low.t_ms) as f64 / 1000.0;
        self.top_c - self.low.bt_c >= RISING_C_PER_S * seconds
    }

    /// Returns the roast with its estimated CHARGE.
    fn begun(&self, now: BtPoint) -> RoastInProgress {
        let mut roast = self.roast.clone();
        let half_ms = seconds_to_ms(Z90 * self.roast.charge_deviation_s);
        let at_ms = roast.charge_ms;
        let latest_ms = self.low.t_ms.max(self.first.t_ms);
        let charge = DetectedMark {
            kind: EventKind::Charge,
            at_ms,
            from_ms: at_ms.saturating_sub(half_ms),
            to_ms: at_ms.saturating_add(half_ms).min(latest_ms).max(at_ms),
            known_ms: now.t_ms,
            bt_c: None,
            confidence: normal_share_within(NEAR_MARK_S / self.roast.charge_deviation_s.max(1.0)),
            method: Method::BegunBefore,
            revision: 0,
            curve_ms: at_ms,
        };
        roast.marks.insert(0, charge);
        roast
    }
}
