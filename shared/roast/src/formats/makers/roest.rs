//! Reads files of ROEST's portal: a byte order mark, time in ms, temperatures in °C or °F as the
//! columns name them. The file begins with CHARGE and ends with DROP.

use contract::EventKind;

use super::{MakerError, RecordingBuilder, Row, Table, celsius, number, percent};
use crate::recording::Recording;
use crate::sample::Sample;

const BEANS: &str = "Bean temp";
const AIR: &str = "Air temp";

#[allow(clippy::cast_possible_truncation)] // checked against its bounds
/// Reads a file; `None` if it is not ROEST's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let table = Table::find(text, |names| {
        let has_beans = names.iter().any(|name| is_temperature(name, BEANS));
        has_beans && names.contains(&"Time") && names.contains(&"Event")
    })?;
    let (beans, air) = (Temperature::find(&table, BEANS)?, Temperature::find(&table, AIR));
    let mut rows = RecordingBuilder::default();
    rows.recording.fahrenheit = beans.fahrenheit;
    for row in table.rows() {
        let Some(ms) = row.number("Time").filter(|ms| ms.abs() < 1e9) else { continue };
        let added = rows.push(Sample {
            t_ms: ms.round() as i64,
            bt_c: beans.celsius(row),
            et_c: air.and_then(|air| air.celsius(row)),
            gas_pct: row.number("Power (%)").and_then(percent),
            fan_pct: row.number("Fan (%)").and_then(percent),
            ..Sample::default()
        });
        match row.text("Event").filter(|_| added) {
            Some("Yellowing") => rows.mark(EventKind::DryEnd),
            Some("Firstcrack") => rows.mark(EventKind::Fc),
            _ => {}
        }
    }
    rows.mark_file_ends();
    Some(rows.finish_table("ROEST", &table))
}

/// A column of temperatures.
#[derive(Clone, Copy)]
struct Temperature {
    at: usize,
    fahrenheit: bool,
}

impl Temperature {
    fn find(table: &Table, name: &str) -> Option<Self> {
        let at = table.header().iter().position(|column| is_temperature(column, name))?;
        Some(Self { at, fahrenheit: table.header()[at].ends_with("F)") })
    }

    fn celsius(self, row: Row<'_>) -> Option<f64> {
        celsius(number(row.cell(self.at)?)?, self.fahrenheit)
    }
}

/// Returns true for `Bean temp (°C)` and its like. The sign of the degree is not compared, because
/// programs that save the file in another encoding damage it.
fn is_temperature(column: &str, name: &str) -> bool {
    let unit = column.strip_prefix(name).and_then(|rest| rest.strip_prefix(" ("));
    unit.is_some_and(|unit| unit.ends_with("C)") || unit.ends_with("F)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_milliseconds_are_read_after_a_byte_order_mark() {
        let text = "\u{feff}Time,Air temp (°C),Bean temp (°C),Power (%),Fan (%),RPM (RPM),Event\n\
                    0,190,170,80,50,60,\n500,191,165.5,80,50,60,\n1000,192,150,80,50,60,Yellowing\n\
                    1500,195,196,20,90,60,Firstcrack\n2000,195,205,20,90,60,\n";
        let r = read(text).unwrap().unwrap();
        assert_eq!((r.samples.len(), r.samples[4].t_ms), (5, 2000));
        let marks = [EventKind::Charge, EventKind::DryEnd, EventKind::Fc, EventKind::Drop];
        assert_eq!(marks.map(|kind| r.mark_ms(kind)), [0, 1000, 1500, 2000].map(Some));
    }

    #[test]
    fn degrees_fahrenheit_and_a_damaged_degree_sign_are_read() {
        for sign in ["°", "\u{fffd}"] {
            let text = format!(
                "Time;Air temp ({sign}F);Bean temp ({sign}F);Power (%);Event\n\
                 0;410;374,0;80;\n1000;410;356,0;80;\n"
            );
            let r = read(&text).unwrap().unwrap();
            assert_eq!((r.fahrenheit, r.samples[1].t_ms), (true, 1000));
            assert!((r.samples[1].bt_c.unwrap() - 180.0).abs() < 1e-9);
            assert!((r.samples[0].et_c.unwrap() - 210.0).abs() < 1e-9);
        }
    }
}
