//! Any source of text lines: a JSON object a line, or comma-separated values under a line of names,
//! as upstream's `tcp-line` driver reads them.

/// Numbers of one line by their names.
pub type Values = Vec<(String, f64)>;

/// More fields than any source has.
const FIELDS_MAX: usize = 64;

/// Reads a line of JSON: an object whose numbers count. Objects inside it are not looked into.
/// `None` when it is no object.
#[must_use]
pub fn parse_json(line: &str) -> Option<Values> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    let numbers = object.into_iter().take(FIELDS_MAX);
    Some(numbers.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect())
}

/// A table whose first line names the columns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Csv {
    names: Vec<String>,
}

impl Csv {
    /// Reads a line; `None` for the line of names, and for one of another length.
    pub fn parse(&mut self, line: &str) -> Option<Values> {
        let words: Vec<&str> = line.trim().split(',').map(str::trim).take(FIELDS_MAX + 1).collect();
        if words.len() > FIELDS_MAX {
            return None;
        }
        // A source that begins anew says its names again; a row of errors has other words.
        let texts = words.iter().all(|w| !w.is_empty() && w.parse::<f64>().is_err());
        let known =
            self.names.is_empty() || words.iter().any(|w| self.names.iter().any(|n| n == w));
        if texts && known {
            self.names = words.into_iter().map(|w| w.trim_matches('"').to_owned()).collect();
            return None;
        }
        if words.len() != self.names.len() {
            return None;
        }
        let pairs = self.names.iter().zip(words);
        let number = |w: &str| w.parse().ok().filter(|v: &f64| v.is_finite());
        Some(pairs.filter_map(|(name, word)| Some((name.clone(), number(word)?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_by_their_names() {
        let json = parse_json(r#"{"btC": 180.5, "unit": "C", "etC": null, "fanPct": 40}"#).unwrap();
        assert_eq!(json, [("btC".to_owned(), 180.5), ("fanPct".to_owned(), 40.0)]);
        assert_eq!(parse_json("[1,2]"), None);
        let mut csv = Csv::default();
        assert_eq!(csv.parse("180,200"), None, "no names yet");
        assert_eq!(csv.parse("btC,etC\r\n"), None);
        assert_eq!(csv.parse("180.5,"), Some(vec![("btC".to_owned(), 180.5)]));
        assert_eq!(csv.parse("180.5"), None, "half a line");
        assert_eq!(csv.parse("ERR,ERR"), Some(vec![]), "both probes are open for a moment");
        assert_eq!(csv.parse("181,200").map(|v| v.len()), Some(2));
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_read_or_not(first: String, second: String) {
            let mut csv = Csv::default();
            let _ = (csv.parse(&first), csv.parse(&second), parse_json(&first));
        }
    }
}
