//! Parser of Artisan's `.alog` recordings.
//!
//! A file is one Python literal (newer ones: JSON). The parser never evaluates it and limits its
//! size and nesting depth.

use contract::{EpochMs, EventKind};
use serde_json::{Map, Number, Value};

use crate::recording::{FILE_BYTES_MAX, Recording};
use crate::sample::Sample;

const DEPTH_MAX: usize = 32;
/// The kinds of mark in `timeindex`, in its order.
pub(crate) const TIMEINDEX: [EventKind; 8] = [
    EventKind::Charge,
    EventKind::DryEnd,
    EventKind::Fc,
    EventKind::FcEnd,
    EventKind::Sc,
    EventKind::ScEnd,
    EventKind::Drop,
    EventKind::CoolEnd,
];

/// The reason why a text is not an Artisan recording.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AlogError {
    /// The text is larger than [`FILE_BYTES_MAX`].
    #[error("larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// The text is neither a Python nor a JSON literal.
    #[error("not a Python or JSON literal: {problem} at byte {at}")]
    Literal {
        /// The offset of the mistake, in bytes.
        at: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// A required field is absent or of the wrong kind.
    #[error("{field} is missing or of the wrong kind")]
    Field {
        /// The name of the field.
        field: &'static str,
    },
}

/// Parses a recording. Drops times that do not ascend and marks beyond the samples, because
/// Artisan's templates and importers write both.
///
/// # Errors
/// If the text is too large or is not a literal, or has no `timex`, `temp1` and `temp2` of equal
/// length.
pub fn read(text: &str) -> Result<Recording, AlogError> {
    from_map(&parse_literal(text)?)
}

/// Reads the recording in a parsed file.
#[allow(clippy::float_cmp)] // -1 is a sentinel, not a measurement
pub(super) fn from_map(file: &Map<String, Value>) -> Result<Recording, AlogError> {
    let numbers = |field: &'static str| -> Result<Vec<Option<f64>>, AlogError> {
        let list = file.get(field).and_then(Value::as_array).ok_or(AlogError::Field { field })?;
        Ok(list.iter().map(Value::as_f64).collect())
    };
    let (times, et, bt) = (numbers("timex")?, numbers("temp1")?, numbers("temp2")?);
    if et.len() != times.len() || bt.len() != times.len() {
        return Err(AlogError::Field { field: "temp1 and temp2 as long as timex" });
    }
    let fahrenheit = file.get("mode").and_then(Value::as_str) == Some("F");
    // Artisan writes -1 for a missing reading.
    let celsius = |v: Option<f64>| {
        let v = v.filter(|v| *v != -1.0)?;
        Some(if fahrenheit { (v - 32.0) / 1.8 } else { v })
    };
    let controls = Controls::read(file);
    let text = |field: &str| file.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut recording = Recording {
        title: text("title"),
        machine: text("roastertype"),
        beans: text("beans"),
        operator: text("operator"),
        batch: batch(file),
        roast_id: text("roastUUID"),
        started: started(file),
        fahrenheit,
        ..Recording::default()
    };
    (recording.weight_in_g, recording.weight_out_g) = weights(file);
    recording.ambient_c = file
        .get("ambientTemp")
        .and_then(Value::as_f64)
        .filter(|c| *c != 0.0)
        .and_then(|c| celsius(Some(c)));
    let start_s = times.iter().copied().flatten().next().unwrap_or(0.0);
    let mut indices = Vec::with_capacity(times.len());
    for (i, time) in times.iter().enumerate() {
        let before = recording.samples.last().map_or(i64::MIN, |s: &Sample| s.t_ms);
        let seconds = time.filter(|t| t.is_finite() && t.abs() < 1e7);
        #[allow(clippy::cast_possible_truncation)] // checked: at most some months in milliseconds
        let t_ms = seconds.map(|t| ((t - start_s) * 1000.0).round() as i64);
        let Some(t_ms) = t_ms.filter(|t| *t > before) else {
            indices.push(None);
            continue;
        };
        indices.push(Some(recording.samples.len()));
        recording.samples.push(Sample {
            t_ms,
            bt_c: celsius(bt[i]),
            et_c: celsius(et[i]),
            fan_pct: controls.at(0, i),
            drum_pct: controls.at(1, i),
            gas_pct: controls.at(3, i),
            ..Sample::default()
        });
    }
    recording.marks = marks(file, &indices);
    Ok(recording)
}

/// Returns the number of the batch with its prefix; empty if it has none, which is 0 in the file.
fn batch(file: &Map<String, Value>) -> String {
    let prefix = file.get("roastbatchprefix").and_then(Value::as_str).unwrap_or_default();
    let number = file.get("roastbatchnr").and_then(Value::as_u64).filter(|number| *number > 0);
    number.map_or_else(String::new, |number| format!("{prefix}{number}"))
}

/// Returns when the recording began: `roastepoch`, in seconds since 1970; in older files the local
/// date and time with `roasttzoffset`, in seconds west of UTC.
#[allow(clippy::cast_possible_truncation)] // checked against their bounds
fn started(file: &Map<String, Value>) -> Option<EpochMs> {
    let number = |field: &str| file.get(field).and_then(Value::as_f64);
    let text = |field: &str| file.get(field).and_then(Value::as_str);
    if let Some(seconds) = number("roastepoch").filter(|s| *s > 0.0 && *s < 1e12) {
        return Some(EpochMs((seconds * 1000.0) as i64)).filter(|at| at.is_plausible());
    }
    let local = format!("{}T{}Z", text("roastisodate")?, text("roasttime")?);
    let west_s = number("roasttzoffset").filter(|s| s.abs() <= 86_400.0)?;
    EpochMs::parse_iso(&local).map(|local| local.plus_ms((west_s * 1000.0) as i64))
}

/// Returns the weights in and out in grams, from `[in, out, unit]`. 0 means not weighed.
fn weights(file: &Map<String, Value>) -> (Option<f64>, Option<f64>) {
    let list = file.get("weight").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let grams = match list.get(2).and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
        Some("g") => 1.0,
        Some("kg") => 1_000.0,
        Some("lb") => 453.592_37,
        Some("oz") => 28.349_523,
        _ => return (None, None),
    };
    let weight = |i: usize| list.get(i)?.as_f64().filter(|w| *w > 0.0).map(|w| w * grams);
    (weight(0), weight(1))
}

/// Returns the marks of `timeindex` = [CHARGE, DRY, FCs, `FCe`, SCs, `SCe`, DROP, COOL], in the
/// order of their samples. Unset is −1 for CHARGE and 0 for the others.
fn marks(file: &Map<String, Value>, indices: &[Option<usize>]) -> Vec<(EventKind, usize)> {
    let indexes = file.get("timeindex").and_then(Value::as_array);
    let mut marks: Vec<(EventKind, usize)> = TIMEINDEX
        .into_iter()
        .zip(indexes.into_iter().flatten())
        .filter_map(|(kind, index)| {
            let index = usize::try_from(index.as_i64()?).ok()?;
            let set = index > 0 || kind == EventKind::Charge;
            let sample = indices.get(index).copied().flatten()?;
            set.then_some((kind, sample))
        })
        .collect();
    marks.sort_by_key(|(_, sample)| *sample);
    marks
}

/// Artisan's special events by type: (sample index, percent), in the order of the samples. The
/// file's value v means (v−1)·10 %.
struct Controls([Vec<(usize, f64)>; 4]);

impl Controls {
    fn read(file: &Map<String, Value>) -> Self {
        let list = |name| file.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let all = list("specialevents").iter().zip(list("specialeventstype"));
        let mut kinds: [Vec<(usize, f64)>; 4] = Default::default();
        for ((at, kind), value) in all.zip(list("specialeventsvalue")) {
            let kind = kind.as_u64().and_then(|kind| usize::try_from(kind).ok());
            let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
            let slot = kind.and_then(|kind| kinds.get_mut(kind));
            if let (Some(slot), Some(at), Some(value)) = (slot, at, value.as_f64()) {
                slot.push((at, ((value - 1.0) * 10.0).clamp(0.0, 100.0)));
            }
        }
        for moves in &mut kinds {
            moves.sort_by_key(|(at, _)| *at);
        }
        Self(kinds)
    }

    fn at(&self, kind: usize, sample: usize) -> Option<f64> {
        let moves = self.0.get(kind)?;
        let before = moves.partition_point(|(at, _)| *at <= sample).checked_sub(1)?;
        moves.get(before).map(|(_, percent)| *percent)
    }
}

/// Parses a Python dict literal or a JSON object.
pub(super) fn parse_literal(text: &str) -> Result<Map<String, Value>, AlogError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(AlogError::TooLarge);
    }
    let text = text.trim_start_matches('\u{feff}');
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at != text.len() {
        return Err(parser.error("text after the end"));
    }
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(AlogError::Literal { at: 0, problem: "not a dict" }),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    const fn error(&self, problem: &'static str) -> AlogError {
        AlogError::Literal { at: self.at, problem }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn space(&mut self) {
        let left = self.rest().trim_start().len();
        self.at = self.text.len().saturating_sub(left);
    }

    fn peek(&mut self) -> Option<char> {
        self.space();
        self.rest().chars().next()
    }

    fn consume(&mut self, expected: char) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.advance(expected.len_utf8());
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, AlogError> {
        if depth > DEPTH_MAX {
            return Err(self.error("nested too deeply"));
        }
        match self.peek() {
            Some('{') => self.dict(depth),
            Some('[') => self.list(depth, '[', ']'),
            Some('(') => self.list(depth, '(', ')'),
            Some('\'' | '"') => self.string().map(Value::String),
            Some(_) => self.atom(),
            None => Err(self.error("an early end")),
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value, AlogError> {
        self.consume('{');
        let mut map = Map::new();
        loop {
            if self.consume('}') {
                return Ok(Value::Object(map));
            }
            let key = match self.value(depth.saturating_add(1))? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            if !self.consume(':') {
                return Err(self.error("no ':' after a key"));
            }
            let value = self.value(depth.saturating_add(1))?;
            map.insert(key, value);
            if !self.consume(',') && self.peek() != Some('}') {
                return Err(self.error("no ',' between entries"));
            }
        }
    }

    fn list(&mut self, depth: usize, open: char, close: char) -> Result<Value, AlogError> {
        self.consume(open);
        let mut items = Vec::new();
        loop {
            if self.consume(close) {
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth.saturating_add(1))?);
            if !self.consume(',') && self.peek() != Some(close) {
                return Err(self.error("no ',' between items"));
            }
        }
    }

    fn string(&mut self) -> Result<String, AlogError> {
        let quote = self.peek().unwrap_or('"');
        self.advance(quote.len_utf8());
        let mut text = String::new();
        loop {
            let Some(c) = self.rest().chars().next() else {
                return Err(self.error("a text without an end"));
            };
            self.advance(c.len_utf8());
            match c {
                c if c == quote => return Ok(text),
                '\\' => {
                    let Some(escaped) = self.rest().chars().next() else {
                        return Err(self.error("a text without an end"));
                    };
                    self.advance(escaped.len_utf8());
                    match escaped {
                        'n' => text.push('\n'),
                        't' => text.push('\t'),
                        'r' => text.push('\r'),
                        'x' => text.push(self.code_point(2)?),
                        'u' => text.push(self.code_point(4)?),
                        'U' => text.push(self.code_point(8)?),
                        other => text.push(other),
                    }
                }
                c => text.push(c),
            }
        }
    }

    /// Parses the hexadecimal digits of an escape. A lone surrogate (JSON writes an emoji as two)
    /// becomes the replacement character.
    fn code_point(&mut self, digits: usize) -> Result<char, AlogError> {
        let hex = self.rest().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let code = hex.ok_or_else(|| self.error("a bad escape"))?;
        self.advance(digits);
        Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn atom(&mut self) -> Result<Value, AlogError> {
        let length = self
            .rest()
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)))
            .unwrap_or(self.rest().len());
        let token = &self.rest()[..length];
        let value = match token {
            "True" | "true" => Value::Bool(true),
            "False" | "false" => Value::Bool(false),
            "None" | "null" | "nan" | "NaN" | "inf" | "-inf" | "Infinity" | "-Infinity" => {
                Value::Null
            }
            number => match (number.parse::<i64>(), number.parse::<f64>()) {
                (Ok(whole), _) => Value::Number(whole.into()),
                (_, Ok(real)) => Number::from_f64(real).map_or(Value::Null, Value::Number),
                _ => return Err(self.error("an unknown word")),
            },
        };
        self.advance(length);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "{'mode': 'C', 'title': 'Caf\\xe9 \\'n\\'', 'timeindex': [0, 0, 2, 0, 0, 0, 3, 99],\n\
        'timex': [0.0, 1.5, 3.0, 4.5, 4.5], 'temp1': [200, -1, 190.5, 191.0, 0], 'temp2': [180.0, 170.25, -1, 171.0, 0],\n\
        'specialevents': [1], 'specialeventstype': [3], 'specialeventsvalue': [7.5], 'x': (None, True, nan,)}";

    #[test]
    fn a_recording_is_read_with_artisans_meaning() {
        let r = read(FILE).unwrap();
        assert_eq!(r.title, "Café 'n'");
        assert_eq!(r.samples.len(), 4, "time that stands still is dropped");
        assert_eq!((r.samples[1].et_c, r.samples[2].bt_c), (None, None), "-1 is missing");
        assert_eq!((r.samples[0].gas_pct, r.samples[3].gas_pct), (None, Some(65.0)));
        assert_eq!(r.marks, [(EventKind::Charge, 0), (EventKind::Fc, 2), (EventKind::Drop, 3)]);
        let json = r#"{"mode":"F","timex":[0],"temp1":[212],"temp2":[392.0]}"#;
        assert_eq!(read(json).unwrap().samples[0].bt_c, Some(200.0));
    }

    #[test]
    fn the_identity_and_the_date_of_a_roast_are_read() {
        let file = |fields: &str| {
            read(&format!("{{'timex': [0], 'temp1': [1], 'temp2': [1], {fields}}}")).unwrap()
        };
        let r = file(
            "'roastUUID': 'a1', 'roastbatchprefix': 'L', 'roastbatchnr': 7, 'operator': 'Kim', \
             'roastepoch': 1675640520, 'roastisodate': '2023-02-06', 'roasttime': '10:12:00'",
        );
        assert_eq!(
            (r.roast_id.as_str(), r.batch.as_str(), r.operator.as_str()),
            ("a1", "L7", "Kim")
        );
        let adelaide = EpochMs::parse_iso("2023-02-05T23:42:00Z");
        assert_eq!(r.started, adelaide);
        // A file of an older Artisan: half an hour matters in Adelaide.
        let older = file(
            "'roastbatchnr': 0, 'roastisodate': '2023-02-06', 'roasttime': '10:12:00', \
             'roasttzoffset': -37800",
        );
        assert_eq!((older.started, older.batch.as_str()), (adelaide, ""));
        for undated in
            ["", "'roastepoch': 0", "'roastisodate': '2023-02-06'", "'roastepoch': 1e300"]
        {
            assert_eq!(file(undated).started, None, "{undated}");
        }
    }

    #[test]
    fn a_file_that_is_not_a_recording_gives_the_reason() {
        for (text, expected) in [
            ("", "an early end"),
            ("{'a': 1", "no ',' between entries"),
            ("__import__('os')", "an unknown word"),
            ("{'a': open('x')}", "an unknown word"),
            ("{}", "timex is missing"),
            ("{'a': 'b", "without an end"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(read(&deep).unwrap_err().to_string().contains("too deeply"));
    }
}
