//! The protocol of TC4 shields and of Arduinos with `aArtisanQ_PID` firmware: lines of numbers at
//! 115,200 baud.

use crate::line::{is_no_reading, number};

/// The lines to send before the first `READ`: the order of the probes, °C, and a little smoothing.
pub const HANDSHAKE: [&str; 3] = ["CHAN;1200\n", "UNITS;C\n", "FILT;70;70;70;70\n"];
pub const READ: &str = "READ\n";

/// One answer to `READ`: ambient, ET, BT, then the values that the firmware adds.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    values: Vec<Option<f64>>,
}

/// Reads an answer. A value for which the firmware sends `nan` or the like is missing; the others
/// are read. Returns `None` for a comment, an acknowledgement or garbage, since some firmware sends
/// other lines too.
#[must_use]
pub fn parse(line: &str) -> Option<Reading> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let separator = if line.contains(';') { ';' } else { ',' };
    let fields: Vec<&str> = line.split(separator).take(9).collect();
    let values: Vec<Option<f64>> = fields.iter().map(|field| number(field)).collect();
    let is_garbage =
        |(field, value): (&&str, &Option<f64>)| value.is_none() && !is_no_reading(field);
    // `CHAN;1200` requests two probes. The answer has ambient and both probes, and, with the PID
    // on, heater, fan and set value.
    let is_answer = matches!(values.len(), 3 | 6)
        && values.iter().any(Option::is_some)
        && !fields.iter().zip(&values).any(is_garbage);
    is_answer.then_some(Reading { values })
}

impl Reading {
    /// Returns a value by its name. The three values after the probes, if present, are heater, fan
    /// and set value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        let all = &self.values;
        let (probes, tail) = match all.len() {
            6 => all.split_at(3),
            _ => (all.as_slice(), &[][..]),
        };
        match name {
            "ambient" => probes.first(),
            "ch1" => probes.get(1),
            "ch2" => probes.get(2),
            "heater" => tail.first(),
            "fan" => tail.get(1),
            "sv" => tail.get(2),
            _ => None,
        }
        .copied()
        .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_an_answer_decides_which_values_it_has() {
        let get = |line: &str, name: &str| parse(line).and_then(|r| r.get(name));
        assert_eq!(get("24.1,201.5,187.25\r\n", "ch2"), Some(187.25));
        assert_eq!(get("24.1,201.5,187.25", "heater"), None);
        assert_eq!(get("24.1,201.5,187.25,80,45,0", "heater"), Some(80.0));
        assert_eq!(parse("1.5,187.25,80,45,0"), None, "the end of a longer answer");
        assert_eq!(parse("# Active channels set to 1200"), None);
        assert_eq!(parse("24.1,20"), None, "an incomplete line");
    }

    #[test]
    fn a_value_that_is_no_number_costs_only_itself() {
        for open in ["nan", "-NAN", "inf", "ovf", "", "ERR"] {
            let reading = parse(&format!("24.1,{open},187.25")).unwrap();
            let values = ["ambient", "ch1", "ch2"].map(|name| reading.get(name));
            assert_eq!(values, [Some(24.1), None, Some(187.25)], "{open:?}");
        }
        assert_eq!(parse("24,1;201,5;187,25").and_then(|r| r.get("ch2")), Some(187.25));
        assert_eq!(parse("CHAN,1200,ok"), None, "words are no answer");
        assert_eq!(parse("nan,nan,nan"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line: String) {
            let _ = parse(&line).map(|r| r.get("ch2"));
        }
    }
}
