//! Any source of text lines: one JSON object per line, or comma-separated values below a line of
//! names. Upstream's `tcp-line` driver reads the same formats.

/// The numbers of one line and their names.
pub type Values = Vec<(String, f64)>;

/// The most fields read from one line; no source sends as many.
const FIELDS_MAX: usize = 64;

/// Reads the numbers of one JSON object. Ignores nested objects and fields that are not numbers.
/// Returns `None` when the line is not an object.
#[must_use]
pub fn parse_json(line: &str) -> Option<Values> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    let numbers = object.into_iter().take(FIELDS_MAX);
    Some(numbers.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect())
}

/// A comma-separated table whose first line names the columns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Csv {
    names: Vec<String>,
}

impl Csv {
    /// Reads a line. Returns `None` for the line of names, and for a line with another number of
    /// fields.
    pub fn parse(&mut self, line: &str) -> Option<Values> {
        let fields: Vec<&str> =
            line.trim().split(',').map(str::trim).take(FIELDS_MAX + 1).collect();
        if fields.len() > FIELDS_MAX {
            return None;
        }
        // A source that restarts sends its names again. A row in which all values are error texts
        // has other words than the names.
        let texts = fields.iter().all(|w| !w.is_empty() && w.parse::<f64>().is_err());
        let known =
            self.names.is_empty() || fields.iter().any(|w| self.names.iter().any(|n| n == w));
        if texts && known {
            self.names = fields.into_iter().map(|w| w.trim_matches('"').to_owned()).collect();
            return None;
        }
        if fields.len() != self.names.len() {
            return None;
        }
        let pairs = self.names.iter().zip(fields);
        let number = |w: &str| w.parse().ok().filter(|v: &f64| v.is_finite());
        Some(pairs.filter_map(|(name, field)| Some((name.clone(), number(field)?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_json_and_csv_lines_are_read_by_name() {
        let json = parse_json(r#"{"btC": 180.5, "unit": "C", "etC": null, "fanPct": 40}"#).unwrap();
        assert_eq!(json, [("btC".to_owned(), 180.5), ("fanPct".to_owned(), 40.0)]);
        assert_eq!(parse_json("[1,2]"), None);
        let mut csv = Csv::default();
        assert_eq!(csv.parse("180,200"), None, "no names yet");
        assert_eq!(csv.parse("btC,etC\r\n"), None);
        assert_eq!(csv.parse("180.5,"), Some(vec![("btC".to_owned(), 180.5)]));
        assert_eq!(csv.parse("180.5"), None, "an incomplete line");
        assert_eq!(
            csv.parse("ERR,ERR"),
            Some(vec![]),
            "both probes are open; not a new line of names"
        );
        assert_eq!(csv.parse("181,200").map(|v| v.len()), Some(2));
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_parsers_panic(first: String, second: String) {
            let mut csv = Csv::default();
            let _ = (csv.parse(&first), csv.parse(&second), parse_json(&first));
        }
    }
}
