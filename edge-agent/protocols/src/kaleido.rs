//! Kaleido's brace protocol: the machine answers the request `{[RD A0]}` with
//! `{0,BT:182.4,ET:210.0,…}`.

use crate::line::number;

/// The messages of a session: the handshake ([`HANDSHAKE`]: ping, °C, start guard), the poll
/// ([`READ`]) and the end ([`CLOSE`]).
pub const HANDSHAKE: [&str; 3] = ["{[PI]}\n", "{[TU C]}\n", "{[SC AR]}\n"];
pub const READ: &str = "{[RD A0]}\n";
pub const CLOSE: &str = "{[CL AR]}\n";

/// The most variables read from one answer; no machine sends as many.
const VARIABLES_MAX: usize = 64;

/// Returns the variables of one answer, `None` for a value that is not a number; empty when the line
/// is not an answer.
#[must_use]
pub fn parse(line: &str) -> Vec<(&str, Option<f64>)> {
    let inner = line.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let Some(inner) = inner else { return Vec::new() };
    let pairs = inner.split(',').filter_map(|part| part.split_once(':')).take(VARIABLES_MAX);
    pairs.map(|(name, value)| (name.trim(), number(value))).collect()
}

/// Returns the line that sets a control to a whole number, such as `{[HP 80]}`.
#[must_use]
pub fn write(tag: &str, value: f64) -> String {
    format!("{{[{tag} {value:.0}]}}\n")
}

/// Decodes a request on the machine's side: the tag and value of `{[HP 80]}`.
#[must_use]
pub fn parse_request(line: &str) -> Option<(&str, Option<&str>)> {
    let inner = line.trim().strip_prefix("{[")?.strip_suffix("]}")?;
    Some(match inner.split_once(' ') {
        Some((tag, value)) => (tag, Some(value)),
        None => (inner, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_decoded_and_garbage_is_ignored() {
        assert_eq!(
            parse("{0,BT:182.4,ET:210,HP:80}\n"),
            [("BT", Some(182.4)), ("ET", Some(210.0)), ("HP", Some(80.0))]
        );
        assert_eq!(parse("{0,BT:nan,SN:K6,ET:1}"), [("BT", None), ("SN", None), ("ET", Some(1.0))]);
        assert!(parse("BT:182.4").is_empty());
        assert_eq!(parse_request("{[HP 80]}"), Some(("HP", Some("80"))));
        assert_eq!(parse_request("{[PI]}"), Some(("PI", None)));
        assert_eq!(parse_request(&write("FC", 45.0)), Some(("FC", Some("45"))));
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_parsers_panic(line: String) {
            let _ = (parse(&line), parse_request(&line));
        }
    }
}
