//! The accuracy of the inferences: prequential tables over recordings with marks.
//!
//! The recordings of one machine are replayed in order, each with the model learned from the
//! earlier ones. The detected marks are compared with the file's own marks, which are learned only
//! afterwards. An unmarked turning point is the lowest clean reading between CHARGE and first crack
//! (or DROP).

use contract::EventKind;
use serde::Serialize;

use crate::event::{MarkChange, Method};
use crate::forecast::HORIZON_MS;
use crate::machine_model::MachineModel;
use crate::recording::Recording;
use crate::replay::{self, RecordingReplay};

/// The kinds that are scored, in the order of a roast.
pub const KINDS: [EventKind; 5] =
    [EventKind::Charge, EventKind::Tp, EventKind::DryEnd, EventKind::Fc, EventKind::Drop];
/// The number of first roasts of a machine that are only learned from and not scored: as many as
/// the baselines had.
const ROASTS_BEFORE: u32 = 3;
/// Forecasts are scored from this long after the turning point.
const FORECAST_AFTER_MS: i64 = 90_000;

/// The accuracy of one kind of mark, over all recordings that have it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct MarkTable {
    /// The number of marks that people set.
    pub marks: usize,
    /// How many were detected within 10 s of the mark.
    pub within_10_s: usize,
    /// How many were detected within 30 s of the mark.
    pub within_30_s: usize,
    /// How many were not detected.
    pub missed: usize,
    /// The median of detected minus marked, s.
    pub median_s: f64,
    /// The tenth percentile of detected minus marked, s.
    pub p10_s: f64,
    /// The ninetieth percentile of detected minus marked, s.
    pub p90_s: f64,
    /// How many marks lie in their 90 % interval.
    pub covered: usize,
    /// The intervals of each method that detected marks.
    pub methods: std::collections::BTreeMap<&'static str, MethodTable>,
}

/// The intervals of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MethodTable {
    /// The number of marks that the method detected.
    pub marks: usize,
    /// How many marks lie in their 90 % interval.
    pub covered: usize,
}

/// The accuracy of the forecasts of the bean temperature a minute ahead.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ForecastTable {
    /// The number of forecasts.
    pub points: usize,
    /// The mean of the absolute errors, °C.
    pub mae_c: f64,
    /// The ninetieth percentile of the absolute errors, °C.
    pub p90_c: f64,
    /// How many outcomes lie in their 90 % interval.
    pub covered: usize,
    /// The mean half width of the 90 % interval, °C.
    pub half_c: f64,
}

/// The accuracy over the recordings of one or several machines.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Score {
    /// The number of recordings.
    pub recordings: usize,
    /// By the mark's name.
    pub marks: std::collections::BTreeMap<&'static str, MarkTable>,
    /// The forecasts of the bean temperature.
    pub forecast: ForecastTable,
    /// How many times a CHARGE was detected more than 60 s before its mark.
    pub false_charges: usize,
    /// Recordings without a DROP mark in which one was detected.
    pub phantom_drops: usize,
}

/// The comparison of one mark with the detected one.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkComparison {
    /// The name of the recording.
    pub recording: String,
    /// The kind of the mark.
    pub kind: EventKind,
    /// Detected minus marked, s; `None` if it was not detected.
    pub error_s: Option<f64>,
    /// The method that detected it.
    pub method: Option<Method>,
    /// Whether the mark lies in the 90 % interval of the detected one.
    pub covered: bool,
}

/// The comparisons over some machines, from which the tables are computed.
#[derive(Debug, Clone, Default)]
pub struct ScoreSheet {
    /// All comparisons, in the order of the recordings.
    pub comparisons: Vec<MarkComparison>,
    /// (error, half width) of each forecast, °C.
    pub forecasts: Vec<(f64, f64)>,
    recordings: usize,
    false_charges: usize,
    phantom_drops: usize,
}

impl ScoreSheet {
    /// Replays one machine's recordings in order and compares each.
    pub fn add_machine<'r>(
        &mut self,
        recordings: impl IntoIterator<Item = (&'r str, &'r Recording)>,
    ) {
        let mut learned = MachineModel::default();
        for (name, recording) in recordings {
            let walk = replay::replay(recording, &learned);
            self.compare(name, recording, &walk, &learned);
            learned.ahead.clone_from(&walk.ahead);
            learned.learn_from_recording(recording, &walk);
            self.recordings = self.recordings.saturating_add(1);
        }
    }

    fn compare(
        &mut self,
        name: &str,
        recording: &Recording,
        walk: &RecordingReplay,
        learned: &MachineModel,
    ) {
        let found = walk.roast();
        for kind in KINDS {
            let marked = recording.mark_ms(kind).or_else(|| match kind {
                EventKind::Tp => lowest(recording, walk),
                _ => None,
            });
            let Some(marked) = marked else { continue };
            if kind == EventKind::Drop && replay::is_unseen_drop(recording, marked) {
                continue; // the curve ends before it can show the DROP
            }
            if kind == EventKind::Fc && learned.first_crack.mark_count() < ROASTS_BEFORE {
                continue;
            }
            let mark = found.and_then(|roast| roast.mark(kind));
            self.comparisons.push(MarkComparison {
                recording: name.to_owned(),
                kind,
                error_s: mark.map(|mark| mark.at_ms.saturating_sub(marked) as f64 / 1000.0),
                method: mark.map(|mark| mark.method),
                covered: mark.is_some_and(|m| (m.from_ms..=m.to_ms).contains(&marked)),
            });
        }
        if recording.mark_ms(EventKind::Drop).is_none()
            && found.is_some_and(|roast| roast.mark(EventKind::Drop).is_some())
        {
            self.phantom_drops = self.phantom_drops.saturating_add(1);
        }
        if let Some(charge) = recording.mark_ms(EventKind::Charge) {
            let early_ms = charge.saturating_sub(60_000);
            // Counted as they were told, though withdrawn or revised later.
            let early = walk.changes.iter().filter(|change| {
                matches!(change, MarkChange::Detected(m) if m.kind == EventKind::Charge
                    && m.at_ms < early_ms)
            });
            self.false_charges = self.false_charges.saturating_add(early.count());
        }
        if learned.roasts >= ROASTS_BEFORE {
            self.score_forecasts(recording, walk);
        }
    }

    fn score_forecasts(&mut self, recording: &Recording, walk: &RecordingReplay) {
        let (Some(_), Some(dropped)) =
            (recording.mark_ms(EventKind::Charge), recording.mark_ms(EventKind::Drop))
        else {
            return;
        };
        let Some(turned) = walk.roast().and_then(|r| r.mark(EventKind::Tp)) else { return };
        let from_ms = turned.at_ms.saturating_add(FORECAST_AFTER_MS);
        for outlook in &walk.forecasts {
            let due = outlook.t_ms.saturating_add(HORIZON_MS);
            if outlook.t_ms < from_ms || due > dropped {
                continue;
            }
            if let Some(actual) = walk.bt_at(due) {
                self.forecasts.push((outlook.bt.c - actual, outlook.bt.half_c));
            }
        }
    }

    /// Adds another machine's sheet.
    pub fn add(&mut self, other: &Self) {
        self.comparisons.extend(other.comparisons.iter().cloned());
        self.forecasts.extend(&other.forecasts);
        self.recordings = self.recordings.saturating_add(other.recordings);
        self.false_charges = self.false_charges.saturating_add(other.false_charges);
        self.phantom_drops = self.phantom_drops.saturating_add(other.phantom_drops);
    }

    /// Returns the tables over everything that was added.
    #[must_use]
    pub fn score(&self) -> Score {
        let marks = KINDS.map(|kind| (kind.as_str(), self.marks(kind)));
        Score {
            recordings: self.recordings,
            marks: marks.into_iter().collect(),
            forecast: self.forecast(),
            false_charges: self.false_charges,
            phantom_drops: self.phantom_drops,
        }
    }

    fn marks(&self, kind: EventKind) -> MarkTable {
        let of: Vec<&MarkComparison> =
            self.comparisons.iter().filter(|miss| miss.kind == kind).collect();
        let mut errors: Vec<f64> = of.iter().filter_map(|miss| miss.error_s).collect();
        errors.sort_by(f64::total_cmp);
        let within = |s: f64| errors.iter().filter(|e| e.abs() <= s).count();
        let mut methods = std::collections::BTreeMap::<_, MethodTable>::new();
        for (method, covered) in of.iter().filter_map(|miss| Some((miss.method?, miss.covered))) {
            let table = methods.entry(method.as_str()).or_default();
            table.marks = table.marks.saturating_add(1);
            table.covered = table.covered.saturating_add(usize::from(covered));
        }
        MarkTable {
            marks: of.len(),
            within_10_s: within(10.0),
            within_30_s: within(30.0),
            missed: of.len().saturating_sub(errors.len()),
            median_s: quantile(&errors, 0.5),
            p10_s: quantile(&errors, 0.1),
            p90_s: quantile(&errors, 0.9),
            covered: of.iter().filter(|miss| miss.covered).count(),
            methods,
        }
    }

    fn forecast(&self) -> ForecastTable {
        let mut errors: Vec<f64> = self.forecasts.iter().map(|(error, _)| error.abs()).collect();
        errors.sort_by(f64::total_cmp);
        let n = errors.len().max(1) as f64;
        ForecastTable {
            points: errors.len(),
            mae_c: hundredths(errors.iter().sum::<f64>() / n),
            p90_c: quantile(&errors, 0.9),
            covered: self.forecasts.iter().filter(|(error, half)| error.abs() <= *half).count(),
            half_c: hundredths(self.forecasts.iter().map(|(_, half)| half).sum::<f64>() / n),
        }
    }
}

/// Returns the time, ms, of the lowest clean reading between the CHARGE mark and first
/// crack, or DROP if first crack has no mark.
fn lowest(recording: &Recording, walk: &RecordingReplay) -> Option<i64> {
    let charge = recording.mark_ms(EventKind::Charge)?;
    let end = recording.mark_ms(EventKind::Fc).or_else(|| recording.mark_ms(EventKind::Drop))?;
    let span = walk.bt.iter().filter(|c| (charge..end).contains(&c.t_ms));
    let mut low: Option<(i64, f64)> = None;
    for (t_ms, value) in span.filter_map(|c| Some((c.t_ms, c.value?))) {
        if low.is_none_or(|(_, least)| value < least) {
            low = Some((t_ms, value));
        }
    }
    low.map(|(t_ms, _)| t_ms)
}

/// Returns a quantile of sorted values, interpolated between neighbours; 0 without values.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // an index into a slice
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    hundredths(low + (high - low) * at.fract())
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
