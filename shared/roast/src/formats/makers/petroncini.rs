//! Reads files of Petroncini's software: a path above the header, semicolons as separators, decimal
//! commas in one column, and a date in six columns, in which a second may occur twice; temperatures
//! in °C, burner in %.

use super::{MakerError, RecordingBuilder, Row, Table, celsius, percent};
use crate::recording::Recording;
use crate::sample::Sample;

/// Reads a file; `None` if it is not Petroncini's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let table = Table::with_columns(text, &["Beans Temperature", "Outlet Temperature"])?;
    let mut rows = RecordingBuilder::default();
    // Of two rows with the same second only the first counts. In a file without dates each row is
    // one second.
    let dated = table.rows().next().is_some_and(|row| date_ms(&row).is_some());
    for (second, row) in (0_i64..).zip(table.rows()) {
        let time = if dated { date_ms(&row) } else { Some(second.saturating_mul(1000)) };
        let Some(t_ms) = time else { continue };
        rows.push(Sample {
            t_ms,
            bt_c: row.number("Beans Temperature").and_then(|v| celsius(v, false)),
            et_c: row.number("Outlet Temperature").and_then(|v| celsius(v, false)),
            gas_pct: row.number("Burner Percentage").and_then(percent),
            ..Sample::default()
        });
    }
    rows.mark_file_ends();
    Some(rows.finish_table("Petroncini", &table))
}

fn date_ms(row: &Row<'_>) -> Option<i64> {
    let part = |name: &str| row.text(name)?.parse::<u32>().ok();
    let [year, month, day] = [part("Year")?, part("Month")?, part("Day")?];
    let [hour, minute, second] = [part("Hour")?, part("Minute")?, part("Second")?];
    let iso = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
    contract::EpochMs::parse_iso(&iso).map(|at| at.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_seconds_are_merged() {
        let row = |second, bt| format!("2025;3;7;10;59;{second};{bt};210;230;70\n");
        let text = format!(
            "Export path\nC:\\roasts\\2025_3_7.csv\nYear;Month;Day;Hour;Minute;Second;\
             Beans Temperature;Outlet Temperature;Inlet Temperature;Burner Percentage\n{}{}{}{}",
            row(58, "200,5"),
            row(58, "199"),
            row(59, "190,25"),
            "2025;3;7;11;0;1;180;205;230;0\n"
        );
        let r = read(&text).unwrap().unwrap();
        let times: Vec<i64> = r.samples.iter().map(|s| s.t_ms).collect();
        assert_eq!(times, [0, 1000, 3000]);
        assert_eq!((r.samples[0].bt_c, r.samples[1].bt_c), (Some(200.5), Some(190.25)));
    }
}
