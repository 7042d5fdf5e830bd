//! Reads Kaffelogic's `.klog` files: lines of `key:value`, then a table with tabs whose time counts
//! in seconds from CHARGE, with lines of `!event:seconds` between its rows; temperatures in °C. The
//! names of columns may begin with `#`, `=` and `^`, which say how Kaffelogic draws them.

use std::collections::BTreeMap;

use contract::EventKind;

use super::{MakerError, RecordingBuilder, Table, celsius, number};
use crate::recording::Recording;
use crate::sample::Sample;

const EVENTS: [(&str, EventKind); 7] = [
    ("colour_change", EventKind::DryEnd),
    ("color_change", EventKind::DryEnd),
    ("first_crack", EventKind::Fc),
    ("first_crack_end", EventKind::FcEnd),
    ("second_crack", EventKind::Sc),
    ("second_crack_end", EventKind::ScEnd),
    ("roast_end", EventKind::Drop),
];

/// Reads a file; `None` if it is not Kaffelogic's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let log = Log::split(text)?;
    let table = Table::find(&log.table, |names| {
        let has = |wanted: &str| names.iter().any(|name| channel(name) == wanted);
        has("time") && has("temp") && has("mean_temp")
    })?;
    let column = |wanted: &str| table.header().iter().position(|name| channel(name) == wanted);
    let (time, temp) = (column("time")?, column("temp")?);
    let mut rows = RecordingBuilder::default();
    let mut first_ms = None;
    for row in table.rows() {
        let Some(t_ms) = row.cell(time).and_then(ms) else { continue };
        first_ms.get_or_insert(t_ms);
        let bt_c = row.cell(temp).and_then(number).and_then(|v| celsius(v, false));
        rows.push(Sample { t_ms, bt_c, ..Sample::default() });
    }
    let first_ms = first_ms.unwrap_or(0);
    let charge = rows.nearest(first_ms.saturating_neg());
    rows.mark_at(EventKind::Charge, charge);
    for (name, at_ms) in &log.events {
        if let Some((_, kind)) = EVENTS.iter().find(|(known, _)| known == name) {
            let at = rows.nearest(at_ms.saturating_sub(first_ms));
            rows.mark_at(*kind, at);
        }
    }
    log.describe(&mut rows.recording);
    Some(rows.finish("Kaffelogic", "no row below \"time\" has a temperature in \"temp\""))
}

/// The parts of a file.
struct Log<'t> {
    keys: BTreeMap<&'t str, &'t str>,
    table: String,
    events: Vec<(&'t str, i64)>,
}

impl<'t> Log<'t> {
    /// Splits a file into its parts; `None` if it has no keys or no table.
    fn split(text: &'t str) -> Option<Self> {
        let mut log = Self { keys: BTreeMap::new(), table: String::new(), events: Vec::new() };
        for line in text.trim_start_matches('\u{feff}').lines() {
            if let Some(event) = line.strip_prefix('!') {
                let at = event.split_once(':').and_then(|(name, at)| Some((name.trim(), ms(at)?)));
                log.events.extend(at);
            } else if !log.table.is_empty() || line.starts_with("time\t") {
                log.table.push_str(line);
                log.table.push('\n');
            } else if let Some((key, value)) = line.split_once(':') {
                log.keys.insert(key.trim(), value.trim());
            }
        }
        (!log.keys.is_empty() && !log.table.is_empty()).then_some(log)
    }

    /// Sets what the keys say of the roast.
    fn describe(&self, recording: &mut Recording) {
        let text = |key: &str| self.keys.get(key).copied().filter(|value| !value.is_empty());
        let value = |key: &str| text(key).and_then(number);
        let title = text("profile_short_name").or_else(|| text("profile_file_name"));
        title.unwrap_or("").clone_into(&mut recording.title);
        // `reference_load_size` is what the profile was made for, not what was weighed.
        recording.weight_in_g = value("boost_load_size").filter(|grams| *grams > 0.0);
        recording.ambient_c = value("ambient_temperature").and_then(|v| celsius(v, false));
    }
}

/// Returns the name of a column without the signs before it.
fn channel(name: &str) -> &str {
    name.trim_start_matches(['#', '=', '^'])
}

#[allow(clippy::cast_possible_truncation)] // checked against its bounds
fn ms(seconds: &str) -> Option<i64> {
    number(seconds).filter(|s| s.abs() < 1e6).map(|s| (s * 1000.0).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "profile_short_name:Lot A\nreference_load_size:100\nambient_temperature:22\n\
        offsets\t0\t0\ntime\t#=temp\t=mean_temp\t^power_kW\n-1\t190\t189\t0.8\n0\t188.5\t188\t0.8\n\
        1\t180\t181\t0.8\n!first_crack: 2\n2\t196\t195\t0.8\n!roast_end:3\n3\t205\t204\t0\n4\t190\t195\t0\n";

    #[test]
    fn keys_rows_and_events_are_read() {
        let r = read(FILE).unwrap().unwrap();
        assert_eq!((r.title.as_str(), r.machine.as_str()), ("Lot A", "Kaffelogic"));
        assert_eq!((r.ambient_c, r.weight_in_g), (Some(22.0), None));
        assert_eq!((r.samples.len(), r.samples[1].bt_c), (6, Some(188.5)));
        let expected = [(EventKind::Charge, 1), (EventKind::Fc, 3), (EventKind::Drop, 4)];
        assert_eq!(r.marks, expected);
    }

    #[test]
    fn a_file_without_readings_gives_the_reason() {
        let empty = FILE.split_inclusive("kW\n").next().unwrap();
        let error = read(empty).unwrap().unwrap_err().to_string();
        assert!(error.contains("Kaffelogic: no row below"), "{error}");
        for other in ["", "time\tbt\n0\t190\n", "a:b\ntime\ttemp\n0\t190\n"] {
            assert!(read(other).is_none(), "{other}");
        }
    }
}
