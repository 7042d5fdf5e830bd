//! Reads files of ROEST's portal: a byte order mark, time in ms, temperatures in °C. The file
//! begins with CHARGE and ends with DROP.

use contract::EventKind;

use super::table::Table;
use super::{RecordingBuilder, celsius, percent};
use crate::recording::Recording;
use crate::sample::Sample;

#[allow(clippy::cast_possible_truncation)] // checked against its bounds
/// Reads a file; `None` if it is not ROEST's.
pub fn read(text: &str) -> Option<Recording> {
    let table = Table::find(text, b',', &["Time", "Bean temp (°C)", "Event"])?;
    let mut rows = RecordingBuilder::default();
    for row in table.rows() {
        let Some(ms) = row.number("Time").filter(|ms| ms.abs() < 1e9) else { continue };
        let added = rows.push(Sample {
            t_ms: ms.round() as i64,
            bt_c: row.number("Bean temp (°C)").and_then(|v| celsius(v, false)),
            et_c: row.number("Air temp (°C)").and_then(|v| celsius(v, false)),
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
    rows.finish("ROEST")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_milliseconds_are_read_after_a_byte_order_mark() {
        let text = "\u{feff}Time,Air temp (°C),Bean temp (°C),Power (%),Fan (%),RPM (RPM),Event\n\
                    0,190,170,80,50,60,\n500,191,165.5,80,50,60,\n1000,192,150,80,50,60,Yellowing\n\
                    1500,195,196,20,90,60,Firstcrack\n2000,195,205,20,90,60,\n";
        let r = read(text).unwrap();
        assert_eq!((r.samples.len(), r.samples[4].t_ms), (5, 2000));
        let marks = [EventKind::Charge, EventKind::DryEnd, EventKind::Fc, EventKind::Drop];
        assert_eq!(marks.map(|kind| r.mark_ms(kind)), [0, 1000, 1500, 2000].map(Some));
    }
}
