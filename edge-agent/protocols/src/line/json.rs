//! Lines of JSON, one object each.

use serde_json::{Map, Value};

use super::{FIELDS_MAX, Values, number};

/// The longest path of a value, in bytes. A profile's address is not longer.
const PATH_BYTES_MAX: usize = 64;

/// Reads the numbers of one JSON object, also those in quotes. A number in a nested object or array
/// has a path, such as `MAX31855.btC` or `probes.0`. Returns `None` when the line is not an object.
#[must_use]
pub fn parse_json(line: &str) -> Option<Values> {
    let line = line.trim_start_matches('\u{feff}');
    let object: Map<String, Value> =
        serde_json::from_str(line).or_else(|_| serde_json::from_str(&mend(line))).ok()?;
    let mut values = Values::new();
    for (name, value) in &object {
        collect(name, value, &mut values);
    }
    Some(values)
}

/// Adds the numbers of `value`, which is at `path`. The parser bounds the depth.
fn collect(path: &str, value: &Value, values: &mut Values) {
    if path.len() > PATH_BYTES_MAX || values.len() >= FIELDS_MAX {
        return;
    }
    let found = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => number(text),
        Value::Object(fields) => {
            for (name, value) in fields {
                collect(&format!("{path}.{name}"), value, values);
            }
            None
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect(&format!("{path}.{index}"), value, values);
            }
            None
        }
        Value::Null | Value::Bool(_) => None,
    };
    values.extend(found.map(|number| (path.to_owned(), number)));
}

/// Makes JSON of a line that is nearly JSON: writes numbers such as `+5` and `05` as JSON does,
/// `null` for any other bare word, such as `nan`, and for a value that is not there, an empty text
/// for a malformed one, and removes a comma before a bracket that closes.
fn mend(line: &str) -> String {
    let mut mended = String::with_capacity(line.len());
    let (mut rest, mut previous, mut comma_at) = (line, ' ', 0);
    while let Some(first) = rest.chars().next() {
        let is_mark = |c: char| matches!(c, '{' | '}' | '[' | ']' | ',' | ':') || c.is_whitespace();
        let length = match first {
            '"' => string_bytes(rest),
            _ if is_mark(first) => first.len_utf8(),
            _ => rest.find(|c| c == '"' || is_mark(c)).unwrap_or(rest.len()),
        };
        let (token, tail) = rest.split_at(length);
        rest = tail;
        match first {
            '"' if serde_json::from_str::<String>(token).is_ok() => mended.push_str(token),
            '"' => mended.push_str("\"\""),
            _ if first.is_whitespace() => {
                mended.push(' ');
                continue;
            }
            ',' | '}' | ']' => {
                if previous == ':' {
                    mended.push_str("null");
                } else if previous == ',' && first != ',' {
                    mended.truncate(comma_at);
                }
                comma_at = mended.len();
                mended.push(first);
            }
            '{' | '[' | ':' => mended.push(first),
            _ if matches!(token, "true" | "false") => mended.push_str(token),
            _ => match number(token) {
                Some(number) => mended.push_str(&number.to_string()),
                None => mended.push_str("null"),
            },
        }
        previous = first;
    }
    mended
}

/// Returns the length of the text at the beginning, with its quotes, in bytes.
fn string_bytes(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at.saturating_add(1),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: &[(&str, f64)]) {
        let expected: Values =
            expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        assert_eq!(parse_json(line), Some(expected), "{line}");
    }

    #[test]
    fn numbers_are_read_by_name_and_others_are_ignored() {
        check(
            r#"{"btC": 180.5, "unit": "C", "etC": null, "fanPct": 40}"#,
            &[("btC", 180.5), ("fanPct", 40.0)],
        );
        assert_eq!(parse_json("[1,2]"), None);
        assert_eq!(parse_json(r#"{"btC": 180.5, "etC": 2"#), None, "an incomplete line");
    }

    #[test]
    fn a_value_that_json_does_not_have_costs_only_itself() {
        for value in
            ["nan", "NaN", "-nan", "inf", "-Infinity", "1e999", "ERR", "-", "", "\"\\x\"", "1.2.3"]
        {
            let line = format!(r#"{{"btC": 180.5, "etC": {value}, "gasPct": 60}}"#);
            check(&line, &[("btC", 180.5), ("gasPct", 60.0)]);
            let last = format!(r#"{{"btC":180.5,"probes":{{"etC":{value}}}}}"#);
            check(&last, &[("btC", 180.5)]);
        }
        check(r#"{"btC": +180.5, "etC": 0201, "on": true,}"#, &[("btC", 180.5), ("etC", 201.0)]);
        check(r#"{"note": "nan, \"inf\"", "btC": 180.5, "etC": NaN}"#, &[("btC", 180.5)]);
    }

    #[test]
    fn numbers_as_text_are_read() {
        check(
            r#"{"btC": "183.2", "etC": "201,5", "gasPct": " 60 ", "airC": "nan"}"#,
            &[("btC", 183.2), ("etC", 201.5), ("gasPct", 60.0)],
        );
    }

    #[test]
    fn nested_numbers_have_a_path() {
        check(
            r#"{"Time":"2026-06-01T10:00:00","MAX31855":{"btC":183.2},"probes":[201.5,nan],"TempUnit":"C"}"#,
            &[("MAX31855.btC", 183.2), ("probes.0", 201.5)],
        );
        let deep = format!("{}1{}", "{\"a\":".repeat(60), "}".repeat(60));
        check(&deep, &[]);
    }
}
