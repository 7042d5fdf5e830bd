//! Assembles a session's curve from its frames. Pure.
//!
//! Memory is bounded by values and not by frames: a frame is small when its columns are empty, and
//! each new column name is as long as the whole curve. What does not fit is dropped and counted.

use std::collections::BTreeMap;
use std::ops::Range;

use contract::Channel;
use contract::point::ExtraValue;

use super::row::FrameRow;
use super::sessions::SessionRow;

type Extras = BTreeMap<String, Vec<Option<ExtraValue>>>;
type Remarks = BTreeMap<String, Vec<(usize, u8)>>;

/// The bounds of a curve. Its samples are bounded by its range.
#[derive(Debug, Clone, Copy)]
pub(super) struct CurveBounds {
    /// The maximum number of extra channels.
    pub(super) extras: usize,
    /// The maximum number of values of all extra channels together, missing ones included.
    pub(super) extra_values: usize,
    /// The maximum length of all texts among those values together, in bytes.
    pub(super) text_bytes: usize,
    /// The maximum number of quality remarks.
    pub(super) remarks: usize,
    /// The maximum number of changes of what publishers say about their samples.
    pub(super) contexts: usize,
}

impl CurveBounds {
    /// As many extra channels as a frame has columns, over an hour and a half at 10 Hz with 18.
    pub(super) const DEFAULT: Self = Self {
        extras: contract::frame::COLUMNS_MAX,
        extra_values: 1_000_000,
        text_bytes: 8_000_000,
        remarks: 250_000,
        contexts: 2_000,
    };
}

/// What a curve lacks because of its bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DroppedValues {
    /// Values of extra channels.
    pub(super) values: u64,
    /// Quality remarks.
    pub(super) remarks: u64,
    /// Samples without what their publisher said about them.
    pub(super) contexts: u64,
}

impl DroppedValues {
    /// Returns whether the curve lacks anything.
    pub(super) fn is_any(self) -> bool {
        self != Self::default()
    }
}

/// A curve that is being assembled.
pub(super) struct CurveAssembly<'s> {
    session: &'s SessionRow,
    bounds: CurveBounds,
    /// The next sample, and the last of the range.
    next: i64,
    last: i64,
    row: Option<FrameRow>,
    extras: Extras,
    /// The names of `extras` in the order in which they came.
    names: Vec<String>,
    text_bytes: usize,
    remarks: Remarks,
    remark_count: usize,
    dropped: DroppedValues,
}

impl<'s> CurveAssembly<'s> {
    /// Returns an empty curve for the samples `first..=last` of a session.
    pub(super) fn new(
        session: &'s SessionRow,
        (first, last): (i64, i64),
        bounds: CurveBounds,
    ) -> Self {
        Self {
            session,
            bounds,
            next: first,
            last,
            row: None,
            extras: Extras::new(),
            names: Vec::new(),
            text_bytes: 0,
            remarks: Remarks::new(),
            remark_count: 0,
            dropped: DroppedValues::default(),
        }
    }

    /// Returns the number of samples.
    pub(super) fn len(&self) -> usize {
        self.row.as_ref().map_or(0, FrameRow::len)
    }

    /// Appends the samples of a frame that lie in the range. Frames come in the order of their
    /// first sample; a sample number that has already come is skipped, so that frames which overlap
    /// cannot make a curve longer than its range.
    pub(super) fn append(&mut self, frame: &FrameRow) {
        let index = |seq: i64| usize::try_from(seq.saturating_sub(frame.first_seq).max(0));
        let from = index(self.next).unwrap_or(usize::MAX);
        let end = index(self.last.saturating_add(1)).unwrap_or(usize::MAX).min(frame.len());
        if from >= end {
            return;
        }
        let len = self.len();
        let session = self.session;
        let row = self.row.get_or_insert_with(|| empty_curve(session, frame, from));
        let range = from..end;
        append_columns(row, session, frame, &range);
        if frame.published.is_some() || row.published.is_some() {
            let published = row.published.get_or_insert_default();
            let range = (from, end.saturating_sub(1));
            let dropped =
                published.append(len, frame.published.as_ref(), range, self.bounds.contexts);
            self.dropped.contexts = self.dropped.contexts.saturating_add(dropped);
        }
        self.append_extras(&parse(frame.extras.as_deref()), &range, len);
        self.append_remarks(parse(frame.quality.as_deref()), &range, len);
        self.next = frame.seq_at(end);
    }

    /// Appends the extra channels of a frame to a curve that had `len` samples.
    fn append_extras(&mut self, new: &Extras, range: &Range<usize>, len: usize) {
        let total = len.saturating_add(range.len());
        let fits = |columns: usize, bounds: &CurveBounds| {
            columns <= bounds.extras && columns.saturating_mul(total) <= bounds.extra_values
        };
        while !fits(self.extras.len(), &self.bounds) {
            let Some(newest) = self.names.pop() else { break };
            let values = self.extras.remove(&newest).unwrap_or_default();
            self.dropped.values = self.dropped.values.saturating_add(count(&values));
            let bytes: usize = values.iter().flatten().map(text_bytes).sum();
            self.text_bytes = self.text_bytes.saturating_sub(bytes);
            let remarks = self.remarks.remove(&newest).unwrap_or_default();
            self.remark_count = self.remark_count.saturating_sub(remarks.len());
            self.dropped.remarks = self.dropped.remarks.saturating_add(remarks.len() as u64);
        }
        for (name, values) in new {
            let given = count(values.get(range.clone()).unwrap_or_default());
            // A name without a value needs no column.
            if given == 0 || self.extras.contains_key(name) {
                continue;
            }
            if fits(self.extras.len().saturating_add(1), &self.bounds) {
                self.names.push(name.clone());
                self.extras.insert(name.clone(), vec![None; len]);
            } else {
                self.dropped.values = self.dropped.values.saturating_add(given);
            }
        }
        for (name, all) in &mut self.extras {
            let new = new.get(name);
            all.extend(range.clone().map(|i| {
                let value = new.and_then(|new| new.get(i).cloned().flatten())?;
                let bytes = text_bytes(&value);
                if bytes > self.bounds.text_bytes.saturating_sub(self.text_bytes) {
                    self.dropped.values = self.dropped.values.saturating_add(1);
                    return None;
                }
                self.text_bytes = self.text_bytes.saturating_add(bytes);
                Some(value)
            }));
        }
    }

    /// Appends the quality remarks of a frame to a curve that had `len` samples.
    fn append_remarks(&mut self, new: Remarks, range: &Range<usize>, len: usize) {
        for (name, remarks) in new {
            let known = self.extras.contains_key(&name)
                || Channel::STANDARD.iter().any(|standard| standard.as_str() == name);
            // `None` for a remark on a sample before the range.
            let shift = |i: usize| i.checked_sub(range.start)?.checked_add(len);
            let inside = remarks.into_iter().filter(|(i, _)| range.contains(i));
            let mut shifted: Vec<_> =
                inside.filter_map(|(i, code)| Some((shift(i)?, code))).collect();
            let free =
                if known { self.bounds.remarks.saturating_sub(self.remark_count) } else { 0 };
            let kept = shifted.len().min(free);
            let lost = shifted.len().saturating_sub(kept) as u64;
            self.dropped.remarks = self.dropped.remarks.saturating_add(lost);
            shifted.truncate(kept);
            if kept > 0 {
                self.remark_count = self.remark_count.saturating_add(kept);
                self.remarks.entry(name).or_default().extend(shifted);
            }
        }
    }

    /// Returns the curve in the shape of one frame, `None` if it has no samples, and what it lacks
    /// because of its bounds.
    ///
    /// # Errors
    /// When a column cannot be written as JSON, which does not happen with numbers and texts.
    pub(super) fn finish(self) -> Result<(Option<FrameRow>, DroppedValues), serde_json::Error> {
        let Some(mut row) = self.row else { return Ok((None, self.dropped)) };
        if !self.extras.is_empty() {
            row.extras = Some(serde_json::to_string(&self.extras)?);
        }
        if !self.remarks.is_empty() {
            row.quality = Some(serde_json::to_string(&self.remarks)?);
        }
        Ok((Some(row), self.dropped))
    }
}

/// Returns a curve without samples that begins with sample `from` of `frame`. It is dated with its
/// session, so that no date of a frame can distort it.
fn empty_curve(session: &SessionRow, frame: &FrameRow, from: usize) -> FrameRow {
    let elapsed_ms = session.elapsed_ms(frame, from).max(0);
    FrameRow {
        first_seq: frame.seq_at(from),
        boot: None,
        t0_ms: session.started_ms.saturating_add(elapsed_ms),
        wall_ms: None,
        offsets_ms: Vec::new(),
        values: Default::default(),
        extras: None,
        quality: None,
        published: None,
        ..frame.clone()
    }
}

/// Appends the times and the standard channels of the samples `range` of a frame.
fn append_columns(
    row: &mut FrameRow,
    session: &SessionRow,
    frame: &FrameRow,
    range: &Range<usize>,
) {
    let len = row.len();
    let begins_ms = row.t0_ms.saturating_sub(session.started_ms);
    for i in range.clone() {
        let since = session.elapsed_ms(frame, i).saturating_sub(begins_ms).max(0);
        // A sample with an impossible time keeps its place, at the time of the one before.
        let before = row.offsets_ms.last().copied().unwrap_or(0);
        row.offsets_ms.push(i32::try_from(since).unwrap_or(before));
    }
    for (all, new) in row.values.iter_mut().zip(&frame.values) {
        if all.is_none() && new.is_none() {
            continue;
        }
        let all = all.get_or_insert_with(|| vec![None; len]);
        match new {
            Some(new) => all.extend(range.clone().map(|i| new.get(i).copied().flatten())),
            None => all.extend(std::iter::repeat_n(None, range.len())),
        }
    }
    row.trust = row.trust.max(frame.trust);
}

/// Counts the values that are not missing.
fn count(values: &[Option<ExtraValue>]) -> u64 {
    values.iter().flatten().count() as u64
}

/// Returns the length of a value's text, in bytes.
const fn text_bytes(value: &ExtraValue) -> usize {
    match value {
        ExtraValue::Number(_) => 0,
        ExtraValue::Text(text) => text.len(),
    }
}

/// Parses JSON of a row, which ingestion itself wrote.
fn parse<T: serde::de::DeserializeOwned + Default>(text: Option<&str>) -> T {
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::published::{PublishedSamples, SampleContext};

    const SMALL: CurveBounds =
        CurveBounds { extras: 3, extra_values: 60, text_bytes: 10, remarks: 4, contexts: 3 };
    const STARTED_MS: i64 = 1_760_000_000_000;

    /// Returns a session whose start was at 0 on the monotonic clock of the frames' boot.
    fn session() -> SessionRow {
        SessionRow {
            session_id: "S-1".to_owned(),
            site_id: "main".to_owned(),
            machine_id: "r-1".to_owned(),
            machine_no: 1,
            chain_no: 1,
            kid: String::new(),
            started_ms: STARTED_MS,
            ended_ms: None,
            status: "CLOSED".to_owned(),
            first_seq: Some(0),
            last_seq: None,
            fc_s: None,
            drop_s: None,
            completeness: String::new(),
            points: None,
            verified_points: None,
            unsigned_points: None,
            failed_points: None,
            max_bt_c: None,
            wall_started_ms: Some(STARTED_MS),
            boot: Some(7),
            start_mono_ms: Some(0),
            closed_seen_ms: None,
            start_estimated: 0,
            begun_before: 0,
        }
    }

    /// Returns a frame of `samples` samples from `first_seq`, with these extra channels.
    fn frame(first_seq: i64, samples: usize, extras: &serde_json::Value) -> FrameRow {
        let last = i32::try_from(samples).unwrap();
        FrameRow {
            chain_no: 1,
            number: 1,
            machine_no: 1,
            arrival: 1,
            boot: Some(7),
            mono_ms: first_seq * 100,
            first_seq,
            // The clock of the gateway is set during the roast: no date measures it.
            t0_ms: STARTED_MS + first_seq * 1_000_000,
            wall_ms: None,
            offsets_ms: (0..last).map(|i| i * 100).collect(),
            values: Default::default(),
            extras: Some(extras.to_string()),
            quality: None,
            trust: 0,
            received_ms: 0,
            published: None,
        }
    }

    #[allow(clippy::unnecessary_wraps)] // an element of a column
    const fn number(value: f64) -> Option<ExtraValue> {
        Some(ExtraValue::Number(value))
    }

    fn extras_of(curve: &FrameRow) -> Extras {
        parse(curve.extras.as_deref())
    }

    #[test]
    fn new_names_in_every_frame_cannot_make_a_curve_wider() {
        let session = session();
        let mut curve = CurveAssembly::new(&session, (0, 999), SMALL);
        for k in 0..10_i64 {
            let names: serde_json::Map<_, _> =
                (0..4).map(|n| (format!("name{k}_{n}"), json!([1.0, null]))).collect();
            curve.append(&frame(k * 2, 2, &names.into()));
        }
        let (curve, dropped) = curve.finish().unwrap();
        let curve = curve.unwrap();
        assert_eq!(curve.len(), 20, "every sample is kept");
        let extras = extras_of(&curve);
        assert_eq!(extras.keys().collect::<Vec<_>>(), ["name0_0", "name0_1", "name0_2"]);
        assert!(extras.values().all(|values| values.len() == 20));
        assert_eq!(dropped.values, 37, "what is dropped is counted");
    }

    #[test]
    fn names_without_values_take_no_column() {
        let session = session();
        let mut curve = CurveAssembly::new(&session, (0, 999), SMALL);
        let empty: serde_json::Map<_, _> =
            (0..32).map(|n| (format!("name{n}"), json!([null, null]))).collect();
        curve.append(&frame(0, 2, &empty.into()));
        curve.append(&frame(2, 2, &json!({"inletC": [1.5, 1.6]})));
        let (curve, dropped) = curve.finish().unwrap();
        let expected = vec![None, None, number(1.5), number(1.6)];
        assert_eq!(extras_of(&curve.unwrap()), [("inletC".to_owned(), expected)].into());
        assert_eq!(dropped, DroppedValues::default());
    }

    #[test]
    fn the_newest_names_go_first_when_a_curve_becomes_too_large() {
        let session = session();
        let mut curve = CurveAssembly::new(&session, (0, 999), SMALL);
        curve.append(&frame(0, 10, &json!({"b": vec![1.0; 10]})));
        curve.append(&frame(10, 10, &json!({"a": vec![2.0; 10], "b": vec![1.0; 10]})));
        curve.append(&frame(20, 11, &json!({"a": vec![2.0; 11], "b": vec![1.0; 11]})));
        let (curve, dropped) = curve.finish().unwrap();
        assert_eq!(extras_of(&curve.unwrap()), [("b".to_owned(), vec![number(1.0); 31])].into());
        assert_eq!(dropped.values, 21);
    }

    #[test]
    fn frames_that_overlap_cannot_make_a_curve_longer_than_its_range() {
        let session = session();
        let mut curve = CurveAssembly::new(&session, (5, 24), SMALL);
        for _ in 0..50 {
            curve.append(&frame(0, 20, &json!({})));
        }
        curve.append(&frame(10, 100, &json!({})));
        let (curve, _) = curve.finish().unwrap();
        let curve = curve.unwrap();
        assert_eq!((curve.first_seq, curve.len()), (5, 20));
        assert_eq!(curve.sample_at(19), contract::EpochMs(STARTED_MS + 2_400));
    }

    #[test]
    fn long_texts_are_bounded_and_what_publishers_said_is_kept() {
        let session = session();
        let mut curve = CurveAssembly::new(&session, (0, 999), SMALL);
        for k in 0..3 {
            let mut frame = frame(k, 1, &json!({"stage": ["drying"], "inletC": [1.5]}));
            let said = SampleContext { batch_id: Some("B-1".to_owned()), ..Default::default() };
            frame.published = Some(PublishedSamples::of_one(Some(0.5), said));
            curve.append(&frame);
        }
        let (curve, dropped) = curve.finish().unwrap();
        let curve = curve.unwrap();
        let extras = extras_of(&curve);
        assert_eq!(extras["stage"], [Some(ExtraValue::Text("drying".to_owned())), None, None]);
        assert_eq!(extras["inletC"], vec![number(1.5); 3]);
        assert_eq!(dropped, DroppedValues { values: 2, remarks: 0, contexts: 0 });
        let published = curve.published.unwrap();
        assert_eq!(published.elapsed_s, [Some(0.5); 3]);
        assert_eq!(published.contexts.len(), 1);
    }

    #[test]
    fn remarks_are_bounded_and_counted() {
        let session = session();
        let mut curve = CurveAssembly::new(&session, (0, 999), SMALL);
        for k in 0..3 {
            let mut frame = frame(k * 2, 2, &json!({}));
            frame.quality = Some(json!({"btC": [[0, 2], [1, 2]], "gone": [[0, 1]]}).to_string());
            curve.append(&frame);
        }
        let (curve, dropped) = curve.finish().unwrap();
        let remarks: Remarks = parse(curve.unwrap().quality.as_deref());
        assert_eq!(remarks["btC"], [(0, 2), (1, 2), (2, 2), (3, 2)]);
        assert_eq!((remarks.len(), dropped.remarks), (1, 5));
    }
}
