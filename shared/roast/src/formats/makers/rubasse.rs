//! Reads files of Rubasse's software: a first line with the title and the seconds of marks, then
//! one row for each second without a header; temperatures in °C, fan, heater and drum in %.

use contract::EventKind;

use super::{MakerError, RecordingBuilder, celsius, number, percent};
use crate::formats::table::records;
use crate::recording::Recording;
use crate::sample::Sample;

/// The columns of a row. The values of a background profile may follow.
const BT: usize = 1;
const FAN: usize = 2;
const HEATER: usize = 3;
const DRUM: usize = 5;
const ET: usize = 7;
const COLUMNS_MIN: usize = 8;
/// The largest number of columns, with a background profile.
const COLUMNS_MAX: usize = 20;
/// The cells of the first line with the second of a mark; 0 is unset.
const MARKS: [(usize, EventKind); 4] =
    [(1, EventKind::Charge), (19, EventKind::Fc), (21, EventKind::Sc), (23, EventKind::Drop)];
/// The shortest first line: up to the mark of the second crack.
const HEADING_MIN: usize = 22;

/// Reads a file; `None` if it is not Rubasse's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let (heading, body) = text.trim_start_matches('\u{feff}').split_once('\n')?;
    let heading = records(heading, b',').into_iter().next()?;
    let first = records(body.split_inclusive('\n').next()?, b',').into_iter().next()?;
    let numbers = |cells: &csv::StringRecord, from: usize| {
        cells.iter().skip(from).all(|cell| cell.trim().is_empty() || number(cell).is_some())
    };
    let fits = heading.len() >= HEADING_MIN
        && heading.len() > first.len()
        && (COLUMNS_MIN..=COLUMNS_MAX).contains(&first.len());
    if !fits || !numbers(&heading, 1) || !numbers(&first, 0) {
        return None;
    }
    let mut rows = RecordingBuilder::default();
    heading.get(0).unwrap_or("").trim().clone_into(&mut rows.recording.title);
    for (second, row) in (0_i64..).zip(records(body, b',')) {
        let value = |at: usize| row.get(at).and_then(number);
        rows.push(Sample {
            t_ms: second.saturating_mul(1000),
            bt_c: value(BT).and_then(|v| celsius(v, false)),
            et_c: value(ET).and_then(|v| celsius(v, false)),
            gas_pct: value(HEATER).and_then(percent),
            fan_pct: value(FAN).and_then(percent),
            drum_pct: value(DRUM).and_then(percent),
            ..Sample::default()
        });
    }
    for (cell, kind) in MARKS {
        let second = heading.get(cell).and_then(|text| text.trim().parse::<usize>().ok());
        let within = second.filter(|at| *at > 0 && *at < rows.recording.samples.len());
        rows.mark_at(kind, within);
    }
    Some(rows.finish("Rubasse", "no row from line 2 on has a bean temperature"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(row: impl Fn(usize) -> String) -> String {
        let heading = format!("Lot A,1{},2,0,0,0,99", ",0".repeat(17));
        let rows: String = (0..4).map(row).collect();
        format!("{heading}\n{rows}")
    }

    #[test]
    fn rows_are_seconds_and_marks_stand_in_the_first_line() {
        let text = file(|i| format!("{i},{}.5,50,80,0,60,40,210,5,0\r\n", 190 - i));
        let r = read(&text).unwrap().unwrap();
        assert_eq!((r.title.as_str(), r.machine.as_str()), ("Lot A", "Rubasse"));
        assert_eq!((r.samples.len(), r.samples[3].t_ms), (4, 3000));
        let first = r.samples[0];
        assert_eq!((first.bt_c, first.et_c, first.gas_pct), (Some(190.5), Some(210.0), Some(80.0)));
        assert_eq!(r.marks, [(EventKind::Charge, 1), (EventKind::Fc, 2)], "99 is after the end");
    }

    #[test]
    fn other_tables_are_not_taken_for_it() {
        for text in ["", "time,bt\n0,190\n", "1,2,3\n4,5,6\n"] {
            assert!(read(text).is_none(), "{text}");
        }
        assert!(read(&file(|_| "0,x,50,80,0,60,40,210,5,0\n".to_owned())).is_none());
        assert!(read(&file(|_| "0,,50,80,0,60,40,210,5,0\n".to_owned())).unwrap().is_err());
    }
}
