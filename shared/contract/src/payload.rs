//! Reads the payload of an upstream Sim-Corp envelope field by field: a field that cannot be read
//! costs only itself.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::envelope::{EnvelopeError, Payload, field_error};
use crate::event::{ELAPSED_S, EventKind};
use crate::frame::COLUMNS_MAX;
use crate::point::{
    BATCH_BYTES_MAX, EVENT_PAYLOAD_BYTES_MAX, EXTRA_NAME_BYTES_MAX, EXTRA_TEXT_BYTES_MAX,
    ExtraValue, FieldError, RoastEvent, TelemetryPoint,
};
use crate::{EpochMs, MachineId, upstream_id};

/// The words that some JSON libraries write for values that no JSON number can hold.
const NON_NUMBERS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
/// The possible values of a measurement: far more than any machine measures, and representable in
/// single precision.
const MEASURED: RangeInclusive<f64> = -1e6..=1e6;
const PERCENT: RangeInclusive<f64> = 0.0..=100.0;
/// The most problems of one message that are reported.
const PROBLEMS_MAX: usize = 8;

/// A payload as far as it could be read.
pub(crate) struct ReadPayload {
    pub(crate) payload: Payload,
    pub(crate) problems: Vec<FieldError>,
    pub(crate) ts_known: bool,
    pub(crate) elapsed_known: bool,
}

/// Reads a sample.
///
/// # Errors
/// When the machine is missing or is not an identity.
pub(crate) fn read_point(fields: &Map<String, Value>) -> Result<ReadPayload, EnvelopeError> {
    let mut reader = FieldReader { fields, problems: Vec::new() };
    let machine_id = reader.machine()?;
    let ts = reader.time();
    let elapsed = reader.number("elapsedSeconds", &ELAPSED_S);
    if fields.get("elapsedSeconds").is_none_or(Value::is_null) {
        reader.report("elapsedSeconds", "missing");
    }
    let point = TelemetryPoint {
        ts: ts.unwrap_or_default(),
        machine_id,
        batch_id: reader.batch(),
        elapsed_seconds: elapsed.unwrap_or_default(),
        bt_c: reader.number("btC", &MEASURED),
        et_c: reader.number("etC", &MEASURED),
        ror_c_per_min: reader.number("rorCPerMin", &MEASURED),
        gas_pct: reader.number("gasPct", &PERCENT),
        fan_pct: reader.number("fanPct", &PERCENT),
        drum_rpm: reader.number("drumRpm", &MEASURED),
        ambient_c: reader.number("ambientC", &MEASURED),
        extras: reader.extras(),
    };
    Ok(ReadPayload {
        payload: Payload::Telemetry(point),
        problems: reader.problems,
        ts_known: ts.is_some(),
        elapsed_known: elapsed.is_some(),
    })
}

/// Reads an event.
///
/// # Errors
/// When the machine or the kind of the event is missing or unknown.
pub(crate) fn read_event(fields: &Map<String, Value>) -> Result<ReadPayload, EnvelopeError> {
    let mut reader = FieldReader { fields, problems: Vec::new() };
    let machine_id = reader.machine()?;
    let kind = match fields.get("type") {
        Some(Value::String(name)) => EventKind::parse(name)
            .ok_or_else(|| field_error("type", format!("unknown type {name:.32?}")))?,
        Some(_) => return Err(field_error("type", "not a string")),
        None => return Err(field_error("type", "missing field `type`")),
    };
    let ts = reader.time();
    let event = RoastEvent {
        ts: ts.unwrap_or_default(),
        machine_id,
        batch_id: reader.batch(),
        kind,
        payload: reader.event_payload(),
    };
    let elapsed_known = event.elapsed_seconds().is_some();
    Ok(ReadPayload {
        payload: Payload::Event(event),
        problems: reader.problems,
        ts_known: ts.is_some(),
        elapsed_known,
    })
}

/// Reads the fields of one object, and collects what is wrong with them.
struct FieldReader<'v> {
    fields: &'v Map<String, Value>,
    problems: Vec<FieldError>,
}

impl FieldReader<'_> {
    fn report(&mut self, field: &str, problem: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(FieldError { field: field.to_owned(), problem: problem.into() });
        }
    }

    /// Returns the machine, without which a message has no meaning.
    fn machine(&self) -> Result<MachineId, EnvelopeError> {
        const NAME: &str = "machineId";
        match self.fields.get(NAME) {
            Some(Value::String(text)) => {
                upstream_id::identity(text).map_err(|error| field_error(NAME, error.to_string()))
            }
            Some(_) => Err(field_error(NAME, "not a string")),
            None => Err(field_error(NAME, "missing field `machineId`")),
        }
    }

    /// Returns the time; `None` if it is missing or cannot be read. A number is not read: whether it
    /// counts seconds or milliseconds could only be guessed.
    fn time(&mut self) -> Option<EpochMs> {
        let problem = match self.fields.get("ts") {
            None => "missing".to_owned(),
            Some(Value::String(text)) => match EpochMs::parse_iso(text) {
                Some(ts) if ts.is_plausible() => return Some(ts),
                Some(_) => "not between 1970 and 9999".to_owned(),
                None => format!(
                    "{text:.40?} is not a full ISO 8601 date-time with seconds and Z or an offset"
                ),
            },
            Some(other) => format!("{} is not an ISO 8601 text", shortened(other)),
        };
        self.report("ts", problem);
        None
    }

    /// Returns a number; `None` if it is missing, `null`, not a number or out of bounds.
    fn number(&mut self, name: &str, range: &RangeInclusive<f64>) -> Option<f64> {
        let problem = match self.fields.get(name) {
            None | Some(Value::Null) => return None,
            Some(value) => match value.as_f64() {
                Some(number) if range.contains(&number) => return Some(number),
                Some(number) => {
                    format!("{number} is not between {} and {}", range.start(), range.end())
                }
                None => format!("{} is not a number", shortened(value)),
            },
        };
        self.report(name, problem);
        None
    }

    fn batch(&mut self) -> Option<String> {
        let problem = match self.fields.get("batchId") {
            None | Some(Value::Null) => return None,
            Some(Value::String(text)) if text.len() <= BATCH_BYTES_MAX => {
                return Some(text.clone());
            }
            Some(Value::String(_)) => format!("longer than {BATCH_BYTES_MAX} bytes"),
            Some(_) => "not a string".to_owned(),
        };
        self.report("batchId", problem);
        None
    }

    fn extras(&mut self) -> BTreeMap<String, ExtraValue> {
        let mut extras = BTreeMap::new();
        let fields = self.fields; // a copy of the reference, so that problems can be reported
        let found = match fields.get("extras") {
            None | Some(Value::Null) => return extras,
            Some(Value::Object(found)) => found,
            Some(_) => {
                self.report("extras", "not an object");
                return extras;
            }
        };
        for (name, value) in found {
            let shown = name.chars().take(EXTRA_NAME_BYTES_MAX).flat_map(char::escape_debug);
            let field = format!("extras.{}", shown.collect::<String>());
            if name.len() > EXTRA_NAME_BYTES_MAX {
                self.report(&field, format!("a name longer than {EXTRA_NAME_BYTES_MAX} bytes"));
                continue;
            }
            if extras.len() >= COLUMNS_MAX {
                self.report("extras", format!("more than {COLUMNS_MAX} entries"));
                break;
            }
            match value {
                Value::Null => {}
                Value::Number(number) => {
                    extras.extend(number.as_f64().map(|n| (name.clone(), ExtraValue::Number(n))));
                }
                Value::String(text) if text.len() <= EXTRA_TEXT_BYTES_MAX => {
                    extras.insert(name.clone(), ExtraValue::Text(text.clone()));
                }
                Value::String(_) => {
                    self.report(&field, format!("longer than {EXTRA_TEXT_BYTES_MAX} bytes"));
                }
                Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                    self.report(&field, "neither a number nor a text");
                }
            }
        }
        extras
    }

    /// Returns an event's free-form payload. Of one that is too large only the values that have a
    /// meaning here are kept.
    fn event_payload(&mut self) -> Option<Map<String, Value>> {
        let mut payload = match self.fields.get("payload") {
            None | Some(Value::Null) => return None,
            Some(Value::Object(payload)) => payload.clone(),
            Some(_) => {
                self.report("payload", "not an object");
                return None;
            }
        };
        for (name, range) in [("elapsedSeconds", &ELAPSED_S), ("btC", &MEASURED)] {
            if payload.get(name).is_some_and(Value::is_null) {
                payload.remove(name); // a missing value
            }
            let value = payload.get(name);
            if value.is_some_and(|v| !v.as_f64().is_some_and(|number| range.contains(&number))) {
                let (start, end) = (range.start(), range.end());
                let problem = format!("not a number between {start} and {end}");
                self.report(&format!("payload.{name}"), problem);
                payload.remove(name);
            }
        }
        let size = serde_json::to_string(&payload).map_or(usize::MAX, |text| text.len());
        if size > EVENT_PAYLOAD_BYTES_MAX {
            self.report("payload", format!("longer than {EVENT_PAYLOAD_BYTES_MAX} bytes"));
            payload.retain(|name, _| matches!(name.as_str(), "elapsedSeconds" | "btC"));
        }
        Some(payload)
    }
}

/// Returns the beginning of a value's JSON, for messages.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

/// Returns a message in which `NaN` and the infinities are texts; `None` if it has none.
pub(crate) fn quote_non_numbers(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut quoted = Vec::with_capacity(bytes.len());
    let (mut in_text, mut escaped, mut found) = (false, false, false);
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        if in_text {
            in_text = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else if let Some(word) = NON_NUMBERS.into_iter().find(|word| rest.starts_with(word)) {
            quoted.push(b'"');
            quoted.extend_from_slice(word);
            quoted.push(b'"');
            rest = rest.strip_prefix(word).unwrap_or_default();
            found = true;
            continue;
        } else {
            in_text = *byte == b'"';
        }
        quoted.push(*byte);
        rest = after;
    }
    found.then_some(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_non_numbers_are_quoted() {
        let check = |input: &str, expected: Option<&str>| {
            let quoted = quote_non_numbers(input.as_bytes());
            let quoted = quoted.as_deref().map(|bytes| std::str::from_utf8(bytes).unwrap());
            assert_eq!(quoted, expected, "{input}");
        };
        check(
            r#"{"a":NaN,"b":[-Infinity,Infinity]}"#,
            Some(r#"{"a":"NaN","b":["-Infinity","Infinity"]}"#),
        );
        check(r#"{"a":"NaN","\"NaN":1,"\\":NaN}"#, Some(r#"{"a":"NaN","\"NaN":1,"\\":"NaN"}"#));
        check(r#"{"a":"NaN","b":1}"#, None);
        check("", None);
    }
}
