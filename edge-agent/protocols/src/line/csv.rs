//! Lines of a table. The first one names the columns.

use super::{FIELDS_MAX, Values, number};

/// The separators of columns, the usual one last.
const SEPARATORS: [char; 3] = [';', '\t', ','];

/// A table whose first line names the columns, separated by commas, semicolons or tabs.
#[derive(Debug, Clone, PartialEq)]
pub struct Csv {
    names: Vec<String>,
    /// The separator of the line of names, and of the rows below it.
    separator: char,
    /// Whether a row has fitted the names.
    has_rows: bool,
}

impl Default for Csv {
    fn default() -> Self {
        Self { names: Vec::new(), separator: ',', has_rows: false }
    }
}

impl Csv {
    /// Reads a line. Returns `None` for the line of names, and for a line with another number of
    /// fields.
    pub fn parse(&mut self, line: &str) -> Option<Values> {
        let line = line.trim_start_matches('\u{feff}').trim_matches(['\r', '\n', ' ']);
        if let Some((names, separator)) = self.names_in(line) {
            *self = Self { names, separator, has_rows: false };
            return None;
        }
        let mut fields = split(line, self.separator);
        // A separator may also end a row.
        while fields.len() > self.names.len() && fields.last().is_some_and(String::is_empty) {
            fields.pop();
        }
        if self.names.is_empty() || fields.len() != self.names.len() {
            return None;
        }
        self.has_rows = true;
        let pairs = self.names.iter().zip(fields);
        Some(pairs.filter_map(|(name, field)| Some((name.clone(), number(&field)?))).collect())
    }

    /// Returns the names in a line of names, and their separator; `None` for any other line.
    fn names_in(&self, line: &str) -> Option<(Vec<String>, char)> {
        let separator = SEPARATORS.into_iter().max_by_key(|s| split(line, *s).len())?;
        let mut names = split(line, separator);
        while names.last().is_some_and(String::is_empty) {
            names.pop();
        }
        let is_text = |name: &String| number(name).is_none() && name.parse::<f64>().is_err();
        if !(1..=FIELDS_MAX).contains(&names.len()) || !names.iter().all(is_text) {
            return None;
        }
        // A source that restarts sends its names again. A row in which all values are error texts
        // has other words than the names. A greeting before the names has no rows below it.
        let repeats = names.iter().any(|name| !name.is_empty() && self.names.contains(name));
        let replaces = !self.has_rows && names.len() > 1 && names.len() != self.names.len();
        (self.names.is_empty() || repeats || replaces).then_some((names, separator))
    }
}

/// Splits a line into trimmed fields. A separator between quotes belongs to its field; quotes may
/// follow a space, which they do not in a strict table.
fn split(line: &str, separator: char) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' if quoted || field.trim().is_empty() => quoted = !quoted,
            _ if c == separator && !quoted => {
                fields.push(field.trim().to_owned());
                field.clear();
            }
            _ => field.push(c),
        }
    }
    fields.push(field.trim().to_owned());
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads lines and returns the values of each.
    fn read(lines: &[&str]) -> Vec<Option<Values>> {
        let mut csv = Csv::default();
        lines.iter().map(|line| csv.parse(line)).collect()
    }

    #[allow(clippy::unnecessary_wraps)] // compared with what `parse` returns
    fn values(values: &[(&str, f64)]) -> Option<Values> {
        Some(values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    }

    #[test]
    fn rows_are_read_by_the_names_above_them() {
        let mut csv = Csv::default();
        assert_eq!(csv.parse("180,200"), None, "no names yet");
        assert_eq!(csv.parse("btC,etC\r\n"), None);
        assert_eq!(csv.parse("180.5,"), values(&[("btC", 180.5)]));
        assert_eq!(csv.parse("180.5"), None, "an incomplete line");
        assert_eq!(csv.parse("ERR,ERR"), values(&[]), "both probes are open; no line of names");
        assert_eq!(csv.parse("181,200"), values(&[("btC", 181.0), ("etC", 200.0)]));
    }

    #[test]
    fn semicolons_decimal_commas_and_quotes_cost_no_value() {
        let both = values(&[("btC", 183.2), ("etC", 201.5)]);
        for lines in [
            ["btC;etC", "183,2;201,5"],
            ["btC; etC;", "183.2; 201.5;"],
            ["btC\tetC", "183,2\t201.5"],
            ["\"btC\",\"etC\"", "\"183.2\",\"201.5\""],
            ["\"btC\", \"etC\"", "\"183,2\", \"201,5\""],
            ["\u{feff}btC,etC", "183.2,201.5"],
            ["btC,\"etC\"", "183.2,201.5,"],
        ] {
            assert_eq!(read(&lines), [None, both.clone()], "{lines:?}");
        }
    }

    #[test]
    fn a_field_that_is_no_number_costs_only_itself() {
        for field in ["nan", "inf", "-inf", "ERR", "\"\"", "", "1.234,5", "--"] {
            let row = format!("{field};201,5;60");
            let expected = values(&[("etC", 201.5), ("gasPct", 60.0)]);
            assert_eq!(read(&["btC;etC;gasPct", &row]), [None, expected], "{field:?}");
        }
        assert_eq!(read(&["btC,,etC", "183.2,ok,201.5"])[1].as_ref().map(Vec::len), Some(2));
    }

    #[test]
    fn a_greeting_before_the_names_costs_no_row() {
        let row = values(&[("btC", 183.2), ("etC", 201.5)]);
        let mut table = read(&["Welcome", "btC;etC", "ERR;ERR", "183,2;201,5", "bye;now;all"]);
        assert_eq!(table.pop(), Some(None), "rows have fitted the names");
        assert_eq!(table, [None, None, values(&[]), row]);
    }
}
