//! Forecasts of bean and environment temperature, with intervals, and of the time to dry end, first
//! crack and drop.
//!
//! The rise over the next minute is modelled as a linear function of the rates of rise over 20, 45
//! and 90 s, the temperature, the time, and the recent change of the burner, which the rates do not
//! show yet. The model is a ridge regression with Huber weights on
//! the machine's own roasts. The weight of a roast halves every `HALF_LIFE` roasts, and the ridge
//! term pulls the coefficients towards a prior that holds for drum roasters in general. The
//! interval is adaptive conformal (Gibbs & Candès 2021): it is widened at each miss and narrowed at
//! each hit, so that it covers nine out of ten outcomes whatever the machine does.

use std::collections::VecDeque;

use contract::EventKind;

use crate::clean::Cleaner;
use crate::event::Tracker;
use crate::machine_model::{LINE_CENTRE_S, MachineModel, MarkLine};
use crate::rise_model::{RiseModel, Vector};
use crate::ror::RateOfRise;
use crate::sample::Sample;

/// How far ahead temperatures are forecast, ms.
pub const HORIZON_MS: i64 = 60_000;
/// How often a forecast is made for learning, ms; each is compared with the outcome a minute later.
const LEARN_EVERY_MS: i64 = 3_000;
const PENDING_MAX: usize = 64;
/// Forecasts begin this long after the turning point, ms.
const AFTER_TP_MS: i64 = 45_000;

/// A forecast temperature and the half width of its 90 % interval, °C.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ForecastValue {
    /// The forecast temperature, °C.
    pub c: f64,
    /// The half width of the interval, °C.
    pub half_c: f64,
}

/// The time at which a mark is expected, in ms of event time, and its 90 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpectedMark {
    /// The mark.
    pub kind: EventKind,
    /// The expected time, ms.
    pub at_ms: i64,
    /// The start of the interval, ms.
    pub from_ms: i64,
    /// The end of the interval, ms.
    pub to_ms: i64,
}

/// The forecast made at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The time at which the forecast was made, ms of event time.
    pub t_ms: i64,
    /// The bean temperature [`HORIZON_MS`] later.
    pub bt: ForecastValue,
    /// The environment temperature [`HORIZON_MS`] later.
    pub et: Option<ForecastValue>,
    /// Those of dry end, first crack and drop that have no mark yet and are expected within
    /// 20 minutes.
    pub expected: Vec<ExpectedMark>,
}

/// The readings of one channel, as far back as its rates need them.
#[derive(Debug, Clone)]
struct Rates {
    clean: Cleaner,
    past: RateOfRise,
    /// The newest reading: ms, °C.
    now: Option<(i64, f64)>,
}

/// The spans of the three rates, ms.
const SPANS_MS: [i64; 3] = [20_000, 45_000, 90_000];

impl Rates {
    fn new() -> Self {
        Self { clean: Cleaner::default(), past: RateOfRise::with_span(SPANS_MS[2]), now: None }
    }

    fn push(&mut self, t_ms: i64, raw: Option<f64>) {
        let Some(value) = self.clean.push(t_ms, raw).value else { return };
        if self.past.add(t_ms, value) {
            self.now = Some((t_ms, value));
        }
    }

    fn features(&self, since_charge_s: f64, burner: &BurnerChange) -> Option<(i64, f64, Vector)> {
        let (t_ms, c) = self.now?;
        let rate = |span_ms| self.past.estimate(span_ms).map(|rise| rise.c_per_min);
        let short = rate(SPANS_MS[0])?;
        let middle = rate(SPANS_MS[1]).unwrap_or(short);
        let long = rate(SPANS_MS[2]).unwrap_or(middle);
        let warm = (c - 170.0) / 20.0;
        let late = (since_charge_s - 300.0) / 200.0;
        let course = middle * warm / 3.0;
        let x = [short, middle, long, 1.0, warm, warm * warm, late, course, burner.feature()];
        Some((t_ms, c, x))
    }
}

/// The change of the burner's setting: the setting minus its mean over about the last minute.
#[derive(Debug, Clone, Copy, Default)]
struct BurnerChange {
    /// The newest setting, its exponentially weighted mean, %, and the time, ms.
    newest: Option<(f64, f64, i64)>,
}

impl BurnerChange {
    /// The time constant of the mean, s, and the change that counts as 1, %.
    const MEAN_S: f64 = 60.0;
    const UNIT_PCT: f64 = 5.0;

    fn push(&mut self, t_ms: i64, gas_pct: Option<f64>) {
        let Some(gas_pct) = gas_pct.filter(|pct| pct.is_finite()) else { return };
        let mean = self.newest.map_or(gas_pct, |(before, mean, before_ms)| {
            let seconds = (t_ms.saturating_sub(before_ms)).max(0) as f64 / 1000.0;
            before + (mean - before) * (-seconds / Self::MEAN_S).exp()
        });
        self.newest = Some((gas_pct, mean, t_ms));
    }

    /// Returns the change for the model; 0 without a setting.
    fn feature(&self) -> f64 {
        self.newest.map_or(0.0, |(now, mean, _)| (now - mean) / Self::UNIT_PCT)
    }
}

/// A forecast that waits for its outcome.
#[derive(Debug, Clone, Copy)]
struct Pending {
    due_ms: i64,
    from_c: f64,
    rise: f64,
    x: Vector,
}

/// Makes forecasts while a roast runs, and learns from their outcomes.
#[derive(Debug, Clone)]
pub struct Forecaster {
    ahead: [RiseModel; 2],
    rates: [Rates; 2],
    burner: BurnerChange,
    pending: [VecDeque<Pending>; 2],
    /// When the next forecast for learning is made, ms.
    due_ms: i64,
}

impl Forecaster {
    /// Creates a forecaster with a machine's learned models (BT, ET).
    #[must_use]
    pub fn new(ahead: [RiseModel; 2]) -> Self {
        Self {
            ahead,
            rates: [Rates::new(), Rates::new()],
            burner: BurnerChange::default(),
            pending: [VecDeque::new(), VecDeque::new()],
            due_ms: i64::MIN,
        }
    }

    /// Processes a sample. Call it after the tracker has processed the same sample.
    pub fn push(&mut self, sample: &Sample, tracker: &Tracker) {
        for (rates, raw) in self.rates.iter_mut().zip([sample.bt_c, sample.et_c]) {
            rates.push(sample.t_ms, raw);
        }
        self.burner.push(sample.t_ms, sample.gas_pct);
        if sample.t_ms < self.due_ms {
            return;
        }
        self.due_ms = sample.t_ms.saturating_add(LEARN_EVERY_MS);
        let Some(since_s) = sight(tracker, sample.t_ms) else {
            self.pending.iter_mut().for_each(VecDeque::clear);
            return;
        };
        for (i, pending) in self.pending.iter_mut().enumerate() {
            let Some((t_ms, c, x)) = self.rates[i].features(since_s, &self.burner) else {
                continue;
            };
            while let Some(old) = pending.front().copied()
                && old.due_ms <= t_ms
            {
                pending.pop_front();
                if t_ms.saturating_sub(old.due_ms) < 2 * LEARN_EVERY_MS {
                    self.ahead[i].resolve(&old.x, old.rise, c - old.from_c);
                }
            }
            if pending.len() < PENDING_MAX {
                let rise = self.ahead[i].rise(&x);
                let due_ms = t_ms.saturating_add(HORIZON_MS);
                pending.push_back(Pending { due_ms, from_c: c, rise, x });
            }
        }
    }

    /// Returns the forecast made at the newest reading; `None` until 45 s after the turning point,
    /// or while there are too few readings, as after a gap.
    #[must_use]
    pub fn forecast(&self, tracker: &Tracker, learned: &MachineModel) -> Option<Forecast> {
        let (t_ms, ..) = self.rates[0].now?;
        let since_s = sight(tracker, t_ms)?;
        let (_, c, x) = self.rates[0].features(since_s, &self.burner)?;
        let rise = self.ahead[0].rise(&x);
        let bt = ForecastValue { c: c + rise, half_c: self.ahead[0].half_c };
        let et = self.rates[1].features(since_s, &self.burner);
        let et = et.filter(|(t, ..)| t_ms.saturating_sub(*t) < 5_000).map(|(_, c, x)| {
            ForecastValue { c: c + self.ahead[1].rise(&x), half_c: self.ahead[1].half_c }
        });
        let path = Path { t_ms, c, since_s, rate: x[0] / 60.0, rise };
        let lines = [
            (EventKind::DryEnd, &learned.dry_end),
            (EventKind::Fc, &learned.first_crack),
            (EventKind::Drop, &learned.drop),
        ];
        let marked = |kind| tracker.marks().iter().any(|mark| mark.kind == kind);
        let known = |kind, line: &MarkLine| kind != EventKind::Drop || line.mark_count() > 0;
        let expected = lines
            .into_iter()
            .filter(|(kind, line)| !marked(*kind) && known(*kind, line))
            .filter_map(|(kind, line)| path.reaches(kind, line));
        Some(Forecast { t_ms, bt, et, expected: expected.collect() })
    }

    /// Ends the roast and returns the updated models (BT, ET).
    #[must_use]
    pub fn finish(mut self) -> [RiseModel; 2] {
        for ahead in &mut self.ahead {
            ahead.learn();
        }
        self.ahead
    }
}

/// Returns the seconds since CHARGE, from [`AFTER_TP_MS`] after the turning point on.
fn sight(tracker: &Tracker, t_ms: i64) -> Option<f64> {
    let charge = tracker.charge_ms()?;
    let turned_ms = tracker.turned_ms()?;
    let since_s = t_ms.saturating_sub(charge) as f64 / 1000.0;
    (t_ms.saturating_sub(turned_ms) >= AFTER_TP_MS).then_some(since_s)
}

/// The expected course of the temperature: a curve from the present reading at its present rate,
/// through the forecast a minute later.
struct Path {
    t_ms: i64,
    c: f64,
    since_s: f64,
    /// °C/s now, and °C over the next minute.
    rate: f64,
    rise: f64,
}

impl Path {
    /// How far ahead a mark may be expected, s.
    const SIGHT_S: f64 = 1_200.0;

    fn at(&self, s: f64) -> f64 {
        let bend = (self.rise - self.rate * 60.0) / 3_600.0;
        // Beyond a minute and a half the curvature would be a guess, so the course continues
        // straight.
        let bent = s.min(90.0);
        let slope = (self.rate + 2.0 * bend * bent).max(0.02);
        self.c + self.rate * bent + bend * bent * bent + (s - bent) * slope
    }

    #[allow(clippy::cast_possible_truncation)] // seconds within sight, as ms
    fn reaches(&self, kind: EventKind, line: &MarkLine) -> Option<ExpectedMark> {
        let half = line.half_c(self.since_s.max(LINE_CENTRE_S / 2.0));
        let when = |off: f64| {
            let above = |s: f64| self.at(s) >= line.expected_c(self.since_s + s) + off;
            let mut s = 0.0;
            while s < Self::SIGHT_S && !above(s) {
                s += 2.0;
            }
            (s < Self::SIGHT_S).then_some(self.t_ms.saturating_add((s * 1000.0) as i64))
        };
        let at_ms = when(0.0)?;
        // The uncertainty of the course grows with its length.
        let course_ms = (0.15 * at_ms.saturating_sub(self.t_ms) as f64) as i64;
        let from_ms = when(-half).unwrap_or(self.t_ms).saturating_sub(course_ms);
        let as_late_ms = at_ms.saturating_add(at_ms.saturating_sub(from_ms));
        let to_ms = when(half).unwrap_or(as_late_ms).saturating_add(course_ms);
        Some(ExpectedMark { kind, at_ms, from_ms: from_ms.max(self.t_ms), to_ms })
    }
}
