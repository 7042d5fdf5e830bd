//! Reads files of Giesen's software: one row for each second, without a time column; temperatures
//! in °C, burner and drum in %.

use super::{MakerError, RecordingBuilder, Table, celsius, percent};
use crate::recording::Recording;
use crate::sample::Sample;

/// Reads a file; `None` if it is not Giesen's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let table = Table::with_columns(text, &["beans", "air"])?;
    let mut rows = RecordingBuilder::default();
    for (second, row) in (0_i64..).zip(table.rows()) {
        rows.push(Sample {
            t_ms: second.saturating_mul(1000),
            bt_c: row.number("beans").and_then(|v| celsius(v, false)),
            et_c: row.number("air").and_then(|v| celsius(v, false)),
            gas_pct: row.number("power").and_then(percent),
            drum_pct: row.number("speed").and_then(percent),
            ..Sample::default()
        });
    }
    rows.mark_file_ends();
    Some(rows.finish_table("Giesen", &table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::EventKind;

    #[test]
    fn each_row_is_one_second() {
        let text = "beans,air,ror,power,speed,pressure\n200.5,210,0,80,60,1\n190,205,-20,80,60,1\n\
                    broken,204,,101,60,\n180,203,3,70,60,1\n";
        let r = read(text).unwrap().unwrap();
        let times: Vec<i64> = r.samples.iter().map(|s| s.t_ms).collect();
        assert_eq!(times, [0, 1000, 2000, 3000]);
        assert_eq!((r.samples[0].bt_c, r.samples[0].gas_pct), (Some(200.5), Some(80.0)));
        assert_eq!((r.samples[2].bt_c, r.samples[2].gas_pct), (None, None));
        assert_eq!(r.mark_ms(EventKind::Drop), Some(3000));
        assert!(read("time,bt\n1,2\n").is_none());
        let error = read("beans,air\n,210\n").unwrap().unwrap_err().to_string();
        assert_eq!(error, "Giesen: no row from line 2 on has a bean temperature");
    }
}
