//! What the publishers of upstream Sim-Corp say beyond what a frame can hold: stored beside their
//! samples and events, and returned as it came.

use std::collections::BTreeMap;

use contract::point::ExtraValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The name under which a point or event that was stored with the time of its arrival is marked.
pub const TIME_SOURCE: &str = "timeSource";
/// The value of that mark.
pub const FROM_ARRIVAL: &str = "arrival";

/// What a publisher says that is the same for most samples of a roast.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SampleContext {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<String>,
    /// The key that signed the messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The session to which the samples belonged when they arrived, also those after its DROP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The samples' own times could not be right: they have times of their arrival.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restamped: bool,
    /// By how much their times were moved; absent if their own times could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_ms: Option<i64>,
    /// Their own time, if it stood still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_ms: Option<i64>,
}

/// The first of the samples in a row that a publisher gave the same time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstOfTime {
    /// When it arrived.
    pub received_ms: i64,
    /// The elapsed seconds, as its publisher said them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_s: Option<f64>,
}

/// What publishers said about the samples of a frame or a curve.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublishedSamples {
    /// The elapsed seconds of each sample; `None` if the publisher did not say them.
    pub elapsed_s: Vec<Option<f64>>,
    /// The first sample of each run of samples with the same context, ascending.
    pub contexts: Vec<(usize, SampleContext)>,
    /// Of a frame's sample that has the own time of the sample before: the first sample with that
    /// time. A curve does not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_of_time: Option<FirstOfTime>,
}

impl PublishedSamples {
    /// Returns what was said about a single sample.
    #[must_use]
    pub fn of_one(elapsed_s: Option<f64>, context: SampleContext) -> Self {
        Self { elapsed_s: vec![elapsed_s], contexts: vec![(0, context)], first_of_time: None }
    }

    /// Parses the text of a row; `None` if there is none, or if it was not written by this module.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Option<Self> {
        text.and_then(|text| serde_json::from_str(text).ok())
    }

    /// Returns the elapsed seconds of sample `i`, as its publisher said them.
    #[must_use]
    pub fn elapsed_s(&self, i: usize) -> Option<f64> {
        self.elapsed_s.get(i).copied().flatten()
    }

    /// Returns the context of sample `i`.
    #[must_use]
    pub fn context(&self, i: usize) -> Option<&SampleContext> {
        let after = self.contexts.partition_point(|(first, _)| *first <= i);
        self.contexts.get(after.checked_sub(1)?).map(|(_, context)| context)
    }

    /// Returns the same, as samples of another session.
    #[must_use]
    pub fn in_session(mut self, session: &str) -> Self {
        for (_, context) in &mut self.contexts {
            context.session_id = Some(session.to_owned());
        }
        self
    }

    /// Returns the names of the keys that signed samples.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.contexts.iter().filter_map(|(_, context)| context.kid.as_deref())
    }

    /// Returns about how many bytes of memory it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        const CONTEXT: usize = 250;
        let elapsed = self.elapsed_s.len().saturating_mul(size_of::<Option<f64>>());
        elapsed.saturating_add(self.contexts.len().saturating_mul(CONTEXT))
    }

    /// Subtracts `shift_s` from all elapsed seconds; none becomes negative.
    pub fn shift_elapsed(&mut self, shift_s: f64) {
        for elapsed_s in self.elapsed_s.iter_mut().flatten() {
            *elapsed_s = (*elapsed_s - shift_s).max(0.0);
        }
    }

    /// Appends the samples `from..=to` of a frame to the `len` samples of a curve. Of contexts beyond
    /// `contexts_max` it keeps none; returns the number of samples that lose theirs.
    pub fn append(
        &mut self,
        len: usize,
        frame: Option<&Self>,
        (from, to): (usize, usize),
        contexts_max: usize,
    ) -> u64 {
        self.elapsed_s.resize(len, None);
        self.elapsed_s.extend((from..=to).map(|i| frame.and_then(|frame| frame.elapsed_s(i))));
        let nothing = SampleContext::default();
        let mut lost = 0_u64;
        for i in from..=to {
            let context = frame.and_then(|frame| frame.context(i)).unwrap_or(&nothing);
            let last = self.contexts.last().map(|(_, last)| last);
            if last == Some(context) {
                continue;
            }
            let first = len.saturating_add(i.saturating_sub(from));
            // The last place is for all samples whose contexts are lost.
            if self.contexts.len().saturating_add(1) < contexts_max {
                self.contexts.push((first, context.clone()));
                continue;
            }
            lost = lost.saturating_add(u64::from(*context != nothing));
            if last != Some(&nothing) {
                self.contexts.push((first, SampleContext::default()));
            }
        }
        lost
    }
}

/// What a publisher said about an event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublishedEvent {
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub payload: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
}

impl PublishedEvent {
    /// Parses the text of a row; nothing if it has none, or if it was not written by this module.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

/// What one message says beyond what a frame can hold.
#[derive(Debug, Clone, PartialEq)]
pub enum PublishedMessage {
    /// A sample, with the extra values by their names.
    Sample(PublishedSamples, BTreeMap<String, ExtraValue>),
    Event(PublishedEvent),
}

impl PublishedMessage {
    /// Returns the text that a frame's row stores.
    #[must_use]
    pub fn of_samples(&self) -> Option<String> {
        match self {
            Self::Sample(samples, _) => serde_json::to_string(samples).ok(),
            Self::Event(_) => None,
        }
    }

    /// Returns the text that an event's row stores.
    #[must_use]
    pub fn of_event(&self) -> Option<String> {
        match self {
            Self::Event(event) => serde_json::to_string(event).ok(),
            Self::Sample(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_keeps_what_was_said_about_each_of_its_samples() {
        let batch = |name: &str| SampleContext {
            batch_id: Some(name.to_owned()),
            ..SampleContext::default()
        };
        let mut curve = PublishedSamples::default();
        let samples = [("a", 0.0), ("a", 10.0), ("b", 20.5)];
        for (i, (name, elapsed)) in samples.into_iter().enumerate() {
            let one = PublishedSamples::of_one(Some(elapsed), batch(name));
            assert_eq!(curve.append(i, Some(&one), (0, 0), 9), 0);
        }
        assert_eq!(curve.append(3, None, (2, 3), 9), 0);
        assert_eq!(curve.elapsed_s, [Some(0.0), Some(10.0), Some(20.5), None, None]);
        assert_eq!(curve.contexts.len(), 3, "one entry a run");
        let batches: Vec<_> =
            (0..5).map(|i| curve.context(i).and_then(|o| o.batch_id.as_deref())).collect();
        assert_eq!(batches, [Some("a"), Some("a"), Some("b"), None, None]);
        let text = serde_json::to_string(&curve).unwrap();
        assert_eq!(PublishedSamples::parse(Some(&text)), Some(curve));
    }

    #[test]
    fn a_publisher_that_changes_its_batch_with_each_sample_cannot_make_a_curve_large() {
        let mut curve = PublishedSamples::default();
        let mut lost = 0;
        for i in 0..100 {
            let batch_id = Some(format!("batch-{i}"));
            let one = PublishedSamples::of_one(
                Some(1.0),
                SampleContext { batch_id, ..SampleContext::default() },
            );
            lost += curve.append(i, Some(&one), (0, 0), 10);
        }
        assert_eq!((curve.contexts.len(), lost, curve.elapsed_s.len()), (10, 91, 100));
        let batch = |i| curve.context(i).and_then(|context| context.batch_id.as_deref());
        assert_eq!((batch(0), batch(8)), (Some("batch-0"), Some("batch-8")));
        assert_eq!((batch(9), batch(99)), (None, None), "none gets the batch of another sample");
    }
}
