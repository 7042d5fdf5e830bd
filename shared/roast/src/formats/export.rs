//! Export of recordings for other programs: Artisan's `.alog`, and a table.

use std::fmt::Write as _;

use contract::{EpochMs, EventKind};
use serde_json::{Map, Value, json};

use super::alog::TIMEINDEX;
use crate::recording::Recording;
use crate::sample::Sample;

/// The number that Artisan uses for a missing reading.
const MISSING: f64 = -1.0;
/// The numbers of controls in Artisan's special events.
const AIR: u8 = 0;
const DRUM: u8 = 1;
const BURNER: u8 = 3;

/// Returns an Artisan recording in °C. It contains only numbers, texts and lists, so that it is
/// both a Python literal (which every Artisan version reads) and JSON. A mark other than CHARGE at
/// the very first sample cannot be represented: there 0 means "unset".
#[must_use]
pub fn alog(recording: &Recording) -> String {
    let samples = &recording.samples;
    let seconds: Vec<f64> = samples.iter().map(|s| s.t_ms as f64 / 1000.0).collect();
    let readings = |value: fn(&Sample) -> Option<f64>| -> Vec<f64> {
        samples.iter().map(|s| value(s).unwrap_or(MISSING)).collect()
    };
    let index = |kind: EventKind| {
        let unset = if kind == EventKind::Charge { -1 } else { 0 };
        let found = recording.marks.iter().find(|(marked, _)| *marked == kind);
        found.and_then(|(_, at)| i64::try_from(*at).ok()).unwrap_or(unset)
    };
    let moves = moves(samples);
    let grams = |weight: Option<f64>| weight.unwrap_or(0.0);
    let interval = match seconds.as_slice() {
        [first, between @ .., last] => (last - first) / (between.len() as f64 + 1.0),
        _ => 1.0,
    };
    let mut file = json!({
        "version": "3.0.0",
        "mode": "C",
        "title": recording.title,
        "roastertype": recording.machine,
        "beans": recording.beans,
        "operator": recording.operator,
        "weight": [grams(recording.weight_in_g), grams(recording.weight_out_g), "g"],
        "ambientTemp": recording.ambient_c.unwrap_or(0.0),
        "samplinginterval": (interval * 1000.0).round() / 1000.0,
        "timex": seconds,
        "temp1": readings(|s| s.et_c),
        "temp2": readings(|s| s.bt_c),
        "timeindex": TIMEINDEX.map(index),
        "etypes": ["Air", "Drum", "Damper", "Burner", "--"],
        "specialevents": moves.iter().map(|m| m.at).collect::<Vec<_>>(),
        "specialeventstype": moves.iter().map(|m| m.kind).collect::<Vec<_>>(),
        "specialeventsvalue": moves.iter().map(|m| m.percent / 10.0 + 1.0).collect::<Vec<_>>(),
        "specialeventsStrings": vec![""; moves.len()],
        "extradevices": [],
    });
    if let Some(file) = file.as_object_mut() {
        file.extend(identity(recording));
    }
    file.to_string()
}

/// Returns the fields of the roast's identity, date and batch, as far as they are known.
fn identity(recording: &Recording) -> Map<String, Value> {
    let mut fields = Map::new();
    if !recording.roast_id.is_empty() {
        fields.insert("roastUUID".to_owned(), json!(recording.roast_id));
    }
    if let Some((prefix, number)) = split_batch(&recording.batch) {
        fields.insert("roastbatchprefix".to_owned(), json!(prefix));
        fields.insert("roastbatchnr".to_owned(), json!(number));
    }
    if let Some(EpochMs(ms)) = recording.started {
        let text = EpochMs(ms).to_string();
        let (date, time) = text.split_once('T').unwrap_or_default();
        fields.insert("roastepoch".to_owned(), json!(ms.div_euclid(1000)));
        fields.insert("roasttzoffset".to_owned(), json!(0));
        fields.insert("roastisodate".to_owned(), json!(date));
        fields.insert("roasttime".to_owned(), json!(time.get(..8)));
    }
    fields
}

/// Splits a batch into its prefix and the number at its end; `None` if it ends without one.
fn split_batch(batch: &str) -> Option<(&str, u32)> {
    let prefix = batch.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &batch[prefix.len()..];
    let number = digits.trim_start_matches('0');
    let prefix = batch.strip_suffix(number)?;
    Some((prefix, number.parse().ok()?))
}

/// A change of a control's setting.
struct Move {
    at: usize,
    kind: u8,
    percent: f64,
}

fn moves(samples: &[Sample]) -> Vec<Move> {
    let mut moves = Vec::new();
    for kind in [AIR, DRUM, BURNER] {
        let mut last = None;
        for (at, sample) in samples.iter().enumerate() {
            let now = match kind {
                AIR => sample.fan_pct,
                DRUM => sample.drum_pct,
                _ => sample.gas_pct,
            };
            if let Some(percent) = now.filter(|_| now != last) {
                moves.push(Move { at, kind, percent });
                last = now;
            }
        }
    }
    moves.sort_by_key(|m| (m.at, m.kind));
    moves
}

/// Returns a table: a line of column names and a line for each sample, in °C and %, with marks by
/// name.
#[must_use]
pub fn csv(recording: &Recording) -> String {
    let mut text = String::from("time,bt,et,gas,fan,drum,event\n");
    for (i, s) in recording.samples.iter().enumerate() {
        let cell = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
        let mark = recording.marks.iter().find(|(_, at)| *at == i);
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{}",
            s.t_ms as f64 / 1000.0,
            cell(s.bt_c),
            cell(s.et_c),
            cell(s.gas_pct),
            cell(s.fan_pct),
            cell(s.drum_pct),
            mark.map_or("", |(kind, _)| kind.as_str())
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{alog as reader, csv as table};

    fn recording() -> Recording {
        let sample = |i: i64| Sample {
            t_ms: i * 1500,
            bt_c: (i != 3).then_some(180.0 + i as f64 / 8.0),
            et_c: Some(200.5),
            gas_pct: Some(if i < 4 { 80.0 } else { 65.0 }),
            fan_pct: Some(40.0),
            ..Sample::default()
        };
        Recording {
            title: "Huila \"natural\"".to_owned(),
            machine: "Acme Drum 10".to_owned(),
            batch: "PR-007".to_owned(),
            operator: "Kim".to_owned(),
            roast_id: "0a1b".to_owned(),
            started: Some(EpochMs(1_767_000_000_000)),
            weight_in_g: Some(5000.0),
            weight_out_g: Some(4250.0),
            samples: (0..8).map(sample).collect(),
            marks: vec![(EventKind::Charge, 0), (EventKind::Fc, 5), (EventKind::Drop, 7)],
            ..Recording::default()
        }
    }

    #[test]
    fn an_exported_recording_is_read_back_unchanged() {
        let written = alog(&recording());
        for word in ["null", "true", "false"] {
            assert!(!written.contains(word), "{word} is no Python");
        }
        assert_eq!(reader::read(&written).unwrap(), recording());
    }

    #[test]
    fn an_exported_table_is_read_back_unchanged() {
        let read = table::read(&csv(&recording())).unwrap();
        assert_eq!((read.samples, read.marks), (recording().samples, recording().marks));
    }
}
