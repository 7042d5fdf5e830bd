//! The accuracy of the inferences on recordings that begin late: at CHARGE, minutes after it, or
//! during development.
//!
//! Each recording is cut at each place and replayed with the same model as the whole recording. Every
//! mark that the whole shows after the cut must be found again at the same time.

use contract::EventKind;
use serde::Serialize;

use crate::event::{DetectedMark, Method};
use crate::machine_model::MachineModel;
use crate::recording::Recording;
use crate::replay;

/// The kinds that are compared.
pub const CUT_KINDS: [EventKind; 3] = [EventKind::Tp, EventKind::Fc, EventKind::Drop];
/// Marks are compared from this long after a cut, ms.
const AFTER_CUT_MS: i64 = 10_000;
/// A recording whose CHARGE is found further from its mark has no certain CHARGE to cut at, ms.
const CHARGE_OFF_MS_MAX: u64 = 30_000;

/// A place at which recordings are cut: the samples before it are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// This many seconds after CHARGE.
    AfterCharge(i64),
    /// Half-way between first crack and DROP.
    Development,
}

/// The places of the tables.
pub const CUTS: [Cut; 7] = [
    Cut::AfterCharge(-5),
    Cut::AfterCharge(0),
    Cut::AfterCharge(5),
    Cut::AfterCharge(30),
    Cut::AfterCharge(120),
    Cut::AfterCharge(300),
    Cut::Development,
];

impl Cut {
    /// Returns the name of the place.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::AfterCharge(seconds) => format!("CHARGE{seconds:+} s"),
            Self::Development => "development".to_owned(),
        }
    }

    /// Returns the time of the place, ms; `None` if the recording lacks its marks.
    #[must_use]
    pub fn at_ms(self, recording: &Recording) -> Option<i64> {
        match self {
            Self::AfterCharge(seconds) => {
                let charged = recording.mark_ms(EventKind::Charge)?;
                Some(charged.saturating_add(seconds.saturating_mul(1000)))
            }
            Self::Development => {
                let (cracked, dropped) =
                    (recording.mark_ms(EventKind::Fc)?, recording.mark_ms(EventKind::Drop)?);
                Some(i64::midpoint(cracked, dropped))
            }
        }
    }
}

/// The marks of one kind after one cut, compared with those of the whole recordings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CutTable {
    /// The place of the cut.
    pub cut: String,
    /// The kind of the marks.
    pub kind: &'static str,
    /// The number of marks that the whole recordings show after the cut.
    pub marks: usize,
    /// How many were found again within 10 s.
    pub within_10_s: usize,
    /// How many were found again within 30 s.
    pub within_30_s: usize,
    /// How many were not found again.
    pub missed: usize,
}

/// One mark of a whole recording, and how it was found again after a cut.
#[derive(Debug, Clone, PartialEq)]
pub struct CutComparison {
    /// The name of the recording.
    pub recording: String,
    /// The place of the cut.
    pub cut: Cut,
    /// The kind of the mark.
    pub kind: EventKind,
    /// Found in the cut minus found in the whole, s; `None` if it was not found again.
    pub error_s: Option<f64>,
}

/// The comparisons over some machines, from which the tables are computed.
#[derive(Debug, Clone, Default)]
pub struct CutSheet {
    /// All comparisons.
    pub comparisons: Vec<CutComparison>,
}

impl CutSheet {
    /// Replays one machine's recordings in order, whole and cut, each with the model learned from
    /// the earlier whole ones.
    pub fn add_machine<'r>(
        &mut self,
        recordings: impl IntoIterator<Item = (&'r str, &'r Recording)>,
    ) {
        let mut learned = MachineModel::default();
        for (name, recording) in recordings {
            let whole = replay::replay(recording, &learned);
            if let Some(roast) = whole.roast() {
                self.compare(name, recording, &roast.marks, &learned);
            }
            learned.ahead.clone_from(&whole.ahead);
            learned.learn_from_recording(recording, &whole);
        }
    }

    fn compare(
        &mut self,
        name: &str,
        recording: &Recording,
        whole: &[DetectedMark],
        learned: &MachineModel,
    ) {
        let find = |marks: &[DetectedMark], kind| marks.iter().find(|m| m.kind == kind).copied();
        let charged = find(whole, EventKind::Charge).zip(recording.mark_ms(EventKind::Charge));
        let certain = charged.is_some_and(|(found, marked)| {
            found.method != Method::BegunBefore && found.at_ms.abs_diff(marked) <= CHARGE_OFF_MS_MAX
        });
        if !certain {
            return;
        }
        for cut in CUTS {
            let Some(at_ms) = cut.at_ms(recording) else { continue };
            let walk = replay::replay(&recording.since(at_ms), learned);
            let again = walk.roast().map(|roast| roast.marks.as_slice()).unwrap_or_default();
            let from_ms = at_ms.saturating_add(AFTER_CUT_MS);
            for kind in CUT_KINDS {
                let Some(mark) = find(whole, kind).filter(|m| m.at_ms >= from_ms) else {
                    continue;
                };
                let error_s = find(again, kind)
                    .map(|found| found.at_ms.saturating_sub(mark.at_ms) as f64 / 1000.0);
                let recording = name.to_owned();
                self.comparisons.push(CutComparison { recording, cut, kind, error_s });
            }
        }
    }

    /// Adds another machine's sheet.
    pub fn add(&mut self, other: &Self) {
        self.comparisons.extend(other.comparisons.iter().cloned());
    }

    /// Returns the tables of the places and kinds that have marks.
    #[must_use]
    pub fn tables(&self) -> Vec<CutTable> {
        let places = CUTS.into_iter().flat_map(|cut| CUT_KINDS.map(|kind| (cut, kind)));
        let tables = places.map(|(cut, kind)| {
            let of = self.comparisons.iter().filter(|c| c.cut == cut && c.kind == kind);
            let within = |s: f64| {
                of.clone().filter(|c| c.error_s.is_some_and(|error| error.abs() <= s)).count()
            };
            CutTable {
                cut: cut.name(),
                kind: kind.as_str(),
                marks: of.clone().count(),
                within_10_s: within(10.0),
                within_30_s: within(30.0),
                missed: of.clone().filter(|c| c.error_s.is_none()).count(),
            }
        });
        tables.filter(|table| table.marks > 0).collect()
    }
}
