//! Import of recordings from other makers' programs. Each format has its own module.
//!
//! An error in a row discards that row or that value, never the roast. A file's rate of rise is
//! never imported: some makers give it per minute and some per half minute; it is always computed
//! here, from the temperatures.

mod cropster;
mod cropster_names;
mod giesen;
mod ikawa;
mod kaffelogic;
mod kaleido;
mod loring;
mod petroncini;
pub(super) mod roastime;
mod roest;
mod rubasse;

use contract::EventKind;

use super::table::{ROWS_MAX, Row, Table, number};
use crate::recording::Recording;
use crate::sample::Sample;

pub use cropster::{Cell, CropsterError, Worksheet, cropster};

/// Why a file in a maker's format is not a roast.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{maker}: {problem}")]
pub struct MakerError {
    /// The maker whose format the file has.
    pub maker: &'static str,
    /// What is wrong with the file.
    pub problem: String,
}

/// A reader of one maker's format. It returns `None` for a text in another format.
type Reader = fn(&str) -> Option<Result<Recording, MakerError>>;

const READERS: [Reader; 8] = [
    petroncini::read,
    loring::read,
    roest::read,
    ikawa::read,
    giesen::read,
    kaleido::read,
    kaffelogic::read,
    rubasse::read,
];

/// Reads a recording in a maker's format, which is recognised by its first lines. Returns `None` if
/// the text is in none of these formats.
///
/// # Errors
/// When the text is in a maker's format and has no row with a bean temperature.
#[must_use]
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    READERS.into_iter().find_map(|read| read(text))
}

/// Gathers rows into a recording; times must ascend.
#[derive(Default)]
struct RecordingBuilder {
    recording: Recording,
    start_ms: Option<i64>,
}

impl RecordingBuilder {
    /// Adds a sample, whose time may have any origin. A sample whose time does not ascend is left
    /// out, and so is one beyond [`ROWS_MAX`]. Returns whether the sample was added.
    fn push(&mut self, mut sample: Sample) -> bool {
        let start = *self.start_ms.get_or_insert(sample.t_ms);
        sample.t_ms = sample.t_ms.saturating_sub(start);
        let samples = &mut self.recording.samples;
        let later = samples.last().is_none_or(|last| sample.t_ms > last.t_ms);
        let added = later && samples.len() < ROWS_MAX;
        if added {
            samples.push(sample);
        }
        added
    }

    /// Adds a mark at the newest sample. Only the first mark of a kind counts.
    fn mark(&mut self, kind: EventKind) {
        let newest = self.recording.samples.len().checked_sub(1);
        self.mark_at(kind, newest);
    }

    fn mark_at(&mut self, kind: EventKind, at: Option<usize>) {
        let marks = &mut self.recording.marks;
        if let Some(at) = at
            && !marks.iter().any(|(known, _)| *known == kind)
        {
            marks.push((kind, at));
        }
    }

    /// Returns the index of the sample nearest to a time, in ms from the first sample.
    fn nearest(&self, t_ms: i64) -> Option<usize> {
        let samples = &self.recording.samples;
        let after = samples.partition_point(|sample| sample.t_ms < t_ms);
        let before = after.checked_sub(1);
        let distance = |at: usize| samples.get(at).map(|s| s.t_ms.abs_diff(t_ms));
        [before, Some(after)]
            .into_iter()
            .flatten()
            .filter(|at| *at < samples.len())
            .min_by_key(|at| distance(*at))
    }

    /// Adds CHARGE at the first row and DROP at the last, for files that contain exactly the roast.
    fn mark_file_ends(&mut self) {
        self.mark_at(EventKind::Charge, self.recording.samples.first().map(|_| 0));
        self.mark(EventKind::Drop);
    }

    /// Returns the recording, with its marks in the order of their samples; an error with `problem`
    /// if no sample has a bean temperature.
    fn finish(mut self, maker: &'static str, problem: &str) -> Result<Recording, MakerError> {
        self.recording.marks.sort_by_key(|(_, at)| *at);
        maker.clone_into(&mut self.recording.machine);
        if self.recording.has_bean_temperature() {
            Ok(self.recording)
        } else {
            Err(MakerError { maker, problem: problem.to_owned() })
        }
    }

    /// Returns the recording of a table.
    fn finish_table(self, maker: &'static str, table: &Table) -> Result<Recording, MakerError> {
        let first = table.header_line().saturating_add(1);
        self.finish(maker, &format!("no row from line {first} on has a bean temperature"))
    }
}

/// Returns the temperature in °C if a probe in a roaster can measure it. Any other value is a
/// sentinel or comes from a broken wire.
fn plausible(c: f64) -> Option<f64> {
    (-60.0..=900.0).contains(&c).then_some(c)
}

fn celsius(value: f64, fahrenheit: bool) -> Option<f64> {
    plausible(if fahrenheit { (value - 32.0) / 1.8 } else { value })
}

/// Returns the value if it is in 0 to 100. A value outside has another meaning than a percentage.
fn percent(value: f64) -> Option<f64> {
    (0.0..=100.0).contains(&value).then_some(value)
}
