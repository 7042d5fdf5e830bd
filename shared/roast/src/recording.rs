//! A recorded roast, independent of the program that wrote it.

use contract::{EpochMs, EventKind};

use crate::sample::Sample;

/// The largest file, in bytes: a day at 1 Hz with every extra channel is smaller.
pub const FILE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A recorded roast. Times count from its first sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recording {
    /// The title in the file; empty if the file has none.
    pub title: String,
    /// The roaster's name as in the file; empty if the file has none.
    pub machine: String,
    /// The description of the beans; empty if the file has none.
    pub beans: String,
    /// The number or name of the batch; empty if the file has none.
    pub batch: String,
    /// The name of the person who roasted; empty if the file has none.
    pub operator: String,
    /// The identity of the roast, which stays when its program saves the file again; empty if the
    /// file has none.
    pub roast_id: String,
    /// When the first sample was taken; `None` if the file has no date, or no time zone with it.
    pub started: Option<EpochMs>,
    /// The weight of the green beans, g.
    pub weight_in_g: Option<f64>,
    /// The weight of the roasted beans, g.
    pub weight_out_g: Option<f64>,
    /// The room temperature, °C.
    pub ambient_c: Option<f64>,
    /// True if the file is in °F. The samples here are in °C.
    pub fahrenheit: bool,
    /// The samples, in the order of time.
    pub samples: Vec<Sample>,
    /// The file's marks, each with the index of its sample, in the order of the samples.
    pub marks: Vec<(EventKind, usize)>,
}

impl Recording {
    /// Returns true if a sample has a bean temperature: without one there is nothing to analyze.
    #[must_use]
    pub fn has_bean_temperature(&self) -> bool {
        self.samples.iter().any(|sample| sample.bt_c.is_some())
    }

    /// Returns the time of a mark, ms.
    #[must_use]
    pub fn mark_ms(&self, kind: EventKind) -> Option<i64> {
        let (_, at) = self.marks.iter().find(|(marked, _)| *marked == kind)?;
        self.samples.get(*at).map(|sample| sample.t_ms)
    }

    /// Returns the recording without the samples and marks before a time, ms.
    #[must_use]
    pub fn since(&self, from_ms: i64) -> Self {
        let left_out = self.samples.partition_point(|sample| sample.t_ms < from_ms);
        let marks = self.marks.iter().filter_map(|(kind, at)| {
            let at = at.checked_sub(left_out)?;
            Some((*kind, at))
        });
        Self { samples: self.samples[left_out..].to_vec(), marks: marks.collect(), ..self.clone() }
    }
}
