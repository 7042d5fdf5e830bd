//! What a salvage found, and its text for people.

use std::fmt;
use std::ops::Range;

use contract::{ChainId, Frame};

/// How many missing ranges a report lists.
const RANGES_MAX: usize = 100;

/// Frames of a chain that are not in the salvaged journal. They are in the damaged part, or were
/// deleted for the quota before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRange {
    pub chain: ChainId,
    pub first_frame: u64,
    pub last_frame: u64,
    /// The first and the last missing sample; `None` if the frames had none, or if a frame before or
    /// after the range is missing too.
    pub samples: Option<(u64, u64)>,
}

impl fmt::Display for MissingRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {}, frames {}-{}", self.chain, self.first_frame, self.last_frame)?;
        match self.samples {
            Some((first, last)) => write!(f, " (samples {first}-{last})"),
            None => Ok(()),
        }
    }
}

/// What a salvage found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SalvageReport {
    /// The frames that were saved.
    pub saved: u64,
    /// The saved frames that the cloud has not acknowledged.
    pub unsent: u64,
    /// The frames that were found, and whose content is damaged.
    pub damaged: u64,
    /// The saved frames that do not link to the saved frame before them.
    pub unlinked: u64,
    pub roasts: u64,
    /// The first missing ranges, at most 100.
    pub missing: Vec<MissingRange>,
    /// How many ranges are missing in all.
    pub missing_ranges: u64,
}

impl fmt::Display for SalvageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { saved, unsent, damaged, unlinked, roasts, .. } = self;
        writeln!(f, "{saved} frames saved, {unsent} of them not sent yet; {roasts} roasts saved")?;
        if *damaged > 0 {
            writeln!(f, "{damaged} frames found damaged and not saved")?;
        }
        if *unlinked > 0 {
            writeln!(f, "{unlinked} saved frames do not link to the frame before them")?;
        }
        if self.missing.is_empty() {
            return write!(f, "no frame is missing");
        }
        write!(f, "missing, or deleted for the quota before:")?;
        for range in &self.missing {
            write!(f, "\n  {range}")?;
        }
        let more = self.missing_ranges.saturating_sub(self.missing.len() as u64);
        if more > 0 { write!(f, "\n  and {more} more ranges") } else { Ok(()) }
    }
}

impl SalvageReport {
    /// Adds the frames `numbers` of a chain, if there are any, without their samples.
    pub(super) fn add_missing(&mut self, chain: ChainId, numbers: Range<u64>) {
        if let Some(last_frame) = numbers.end.checked_sub(1)
            && numbers.start <= last_frame
        {
            let first_frame = numbers.start;
            self.add_range(MissingRange { chain, first_frame, last_frame, samples: None });
        }
    }

    /// Adds the frames between two frames of a chain that do not follow each other.
    pub(super) fn add_missing_between(&mut self, before: &Frame, after: &Frame) {
        let (first, next) = (after_frame(before), after.first_seq);
        self.add_range(MissingRange {
            chain: after.chain,
            first_frame: before.number.saturating_add(1),
            last_frame: after.number.saturating_sub(1),
            samples: (first < next).then(|| (first, next.saturating_sub(1))),
        });
    }

    fn add_range(&mut self, range: MissingRange) {
        self.missing_ranges = self.missing_ranges.saturating_add(1);
        if self.missing.len() < RANGES_MAX {
            self.missing.push(range);
        }
    }
}

/// Returns the number of the sample that follows a frame.
pub(super) fn after_frame(frame: &Frame) -> u64 {
    frame.first_seq.saturating_add(frame.sample_count() as u64)
}
