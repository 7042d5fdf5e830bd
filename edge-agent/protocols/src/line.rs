//! Any source of text lines: one JSON object per line, or a table whose first line names the
//! columns. Upstream's `tcp-line` driver reads the same formats.
//!
//! Sources send `nan` for an open probe, numbers as text, decimal commas and quotes. A field that
//! is not a number is left out; the other fields of its line are read.

mod csv;
mod json;

pub use self::csv::Csv;
pub use self::json::parse_json;

/// The numbers of one line and their names.
pub type Values = Vec<(String, f64)>;

/// The most fields read from one line; no source sends as many.
const FIELDS_MAX: usize = 256;

/// What firmware sends in place of a number, in small letters and without a sign.
const NO_READING: [&str; 10] =
    ["", "nan", "inf", "infinity", "ovf", "err", "error", "open", "null", "n/a"];

/// Returns the number that a field contains, with a decimal point or comma, perhaps in quotes.
/// Returns `None` for any other text, `nan` and `inf` included. A number with both a comma and a
/// point is not guessed at.
#[must_use]
pub fn number(field: &str) -> Option<f64> {
    let text = field.trim().trim_matches('"').trim();
    if text.contains(',') && text.contains('.') {
        return None;
    }
    text.replacen(',', ".", 1).parse().ok().filter(|number: &f64| number.is_finite())
}

/// Returns whether a field says that there is no reading, such as `nan` or `inf`.
pub(crate) fn is_no_reading(field: &str) -> bool {
    let text = field.trim().trim_start_matches(['+', '-']);
    NO_READING.iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_a_decimal_point_or_comma_and_may_be_in_quotes() {
        for text in ["183.2", " 183.2\r", "183,2", "\"183.2\"", "\"183,2\"", "+183.2", "1832e-1"] {
            assert_eq!(number(text), Some(183.2), "{text:?}");
        }
        for text in
            ["nan", "-NaN", "inf", "Infinity", "1e999", "", "-", "1.832,0", "1,8,3", "183 C"]
        {
            assert_eq!(number(text), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_parsers_panic(first: String, second: String) {
            let mut csv = Csv::default();
            let _ = (csv.parse(&first), csv.parse(&second), parse_json(&first), number(&second));
        }

        #[test]
        fn a_number_is_finite(field in "[-+0-9.,eEinfa\" ]{0,12}") {
            proptest::prop_assert!(number(&field).is_none_or(f64::is_finite));
        }
    }
}
