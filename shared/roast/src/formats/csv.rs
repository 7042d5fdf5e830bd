//! Parser of tables of samples.
//!
//! The separator is a comma, semicolon or tab. A header line names the columns, and each row is one
//! sample. A row may have fewer or more cells than the header. Times are seconds, `mm:ss`, or ISO
//! dates.

use ::csv::{Reader, ReaderBuilder, StringRecord, Terminator};
use contract::EventKind;

use crate::recording::{FILE_BYTES_MAX, Recording};
use crate::sample::Sample;

/// The number of lines in which the header is searched.
const HEADER_LINES_MAX: usize = 50;

/// The reason why a text is not a table of samples.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CsvError {
    /// The text is larger than [`FILE_BYTES_MAX`].
    #[error("larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// No line names a time and a bean temperature as columns.
    #[error("no line names a time and a bean temperature (such as: elapsed_seconds,bean_temp_c)")]
    Header,
}

/// The meaning of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Time,
    Bt { fahrenheit: bool },
    Et { fahrenheit: bool },
    Gas,
    Fan,
    Drum,
    Door,
    Cracks,
    Weight,
    Event,
}

/// Returns the meaning of a column name, as Artisan and other programs use it. Ignores case, spaces
/// and punctuation.
fn column(name: &str) -> Option<Column> {
    let name = content(name).to_ascii_lowercase();
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let fahrenheit = plain.ends_with("tempf") || matches!(plain.as_str(), "btf" | "etf");
    match plain.as_str() {
        "timestamputc" | "timestamp" | "time" | "time1" | "seconds" | "elapsed" | "times"
        | "elapsedseconds" => Some(Column::Time),
        "bt" | "btc" | "btf" | "beantemp" | "beantempc" | "beantempf" | "bean"
        | "beantemperature" => Some(Column::Bt { fahrenheit }),
        "et" | "etc" | "etf" | "envtemp" | "envtempc" | "envtempf" | "environment"
        | "environmenttemp" => Some(Column::Et { fahrenheit }),
        "gas" | "gaspct" | "burner" | "heat" | "heatlevelpercent" | "heater" => Some(Column::Gas),
        "fan" | "fanpct" | "air" | "airflow" | "fanlevelpercent" => Some(Column::Fan),
        "drum" | "drumpct" | "drumspeed" => Some(Column::Drum),
        "door" | "dooropen" | "dropdoor" | "discharge" => Some(Column::Door),
        "cracks" | "crackcount" => Some(Column::Cracks),
        "weight" | "weightg" | "scale" => Some(Column::Weight),
        "event" | "mark" => Some(Column::Event),
        _ => None,
    }
}

/// Parses a table. Drops rows whose time does not ascend.
///
/// # Errors
/// If no line names the columns, or the text is too large.
pub fn read(text: &str) -> Result<Recording, CsvError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(CsvError::TooLarge);
    }
    let text = text.trim_start_matches('\u{feff}');
    // Artisan writes the unit of all temperatures in the line before the header.
    let mut all_fahrenheit = false;
    let mut rows_start = 0;
    let found = text.split_inclusive('\n').take(HEADER_LINES_MAX).find_map(|line| {
        rows_start += line.len();
        all_fahrenheit |= line.split(['\t', ',', ';']).any(|cell| cell.trim() == "Unit:F");
        header(line)
    });
    let (separator, columns) = found.ok_or(CsvError::Header)?;
    let named_fahrenheit = columns
        .iter()
        .flatten()
        .any(|c| matches!(c, Column::Bt { fahrenheit: true } | Column::Et { fahrenheit: true }));
    let fahrenheit = all_fahrenheit || named_fahrenheit;
    let mut recording = Recording { fahrenheit, ..Recording::default() };
    let mut start_ms = None;
    let mut rows = reader(&text[rows_start..], separator);
    let mut row = StringRecord::new();
    while rows.read_record(&mut row).unwrap_or(false) {
        let cell = |is_column: fn(Column) -> bool| {
            let i = columns.iter().position(|c| c.is_some_and(is_column))?;
            row.get(i).map(content).filter(|text| !text.is_empty())
        };
        let number = |is_column| cell(is_column)?.parse::<f64>().ok().filter(|v| v.is_finite());
        let Some(time_ms) = cell(|c| c == Column::Time).and_then(time) else { continue };
        let t_ms = time_ms - *start_ms.get_or_insert(time_ms);
        if recording.samples.last().is_some_and(|last: &Sample| t_ms <= last.t_ms) {
            continue;
        }
        let temperature = |value: Option<f64>, unit: Option<&Column>| {
            let fahrenheit = matches!(
                unit,
                Some(Column::Bt { fahrenheit: true } | Column::Et { fahrenheit: true })
            );
            let convert = fahrenheit || all_fahrenheit;
            value.map(|v| if convert { (v - 32.0) / 1.8 } else { v })
        };
        let column =
            |is_column: fn(Column) -> bool| columns.iter().flatten().find(|c| is_column(**c));
        recording.samples.push(Sample {
            t_ms,
            bt_c: temperature(number(is_bt), column(is_bt)),
            et_c: temperature(number(is_et), column(is_et)),
            gas_pct: number(|c| c == Column::Gas),
            fan_pct: number(|c| c == Column::Fan),
            drum_pct: number(|c| c == Column::Drum),
            door_open: cell(|c| c == Column::Door).and_then(open),
            cracks: number(|c| c == Column::Cracks),
            weight_g: number(|c| c == Column::Weight),
        });
        if let Some(kind) = cell(|c| c == Column::Event).and_then(mark)
            && !recording.marks.iter().any(|(known, _)| *known == kind)
        {
            recording.marks.push((kind, recording.samples.len() - 1));
        }
    }
    Ok(recording)
}

fn open(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "open" | "opened" => Some(true),
        "0" | "false" | "closed" | "shut" => Some(false),
        _ => None,
    }
}

/// Parses a header line, which names at least a time and a bean temperature.
fn header(line: &str) -> Option<(u8, Vec<Option<Column>>)> {
    [b',', b';', b'\t'].into_iter().find_map(|separator| {
        let mut names = StringRecord::new();
        reader(line, separator).read_record(&mut names).ok()?;
        let columns: Vec<_> = names.iter().map(column).collect();
        let has = |is_column: fn(Column) -> bool| columns.iter().flatten().any(|c| is_column(*c));
        let complete = has(|c| c == Column::Time) && has(is_bt);
        complete.then_some((separator, columns))
    })
}

/// Returns a reader of rows. A row ends with a line feed, as the header does; a carriage return
/// before it is white space.
fn reader(text: &str, separator: u8) -> Reader<&[u8]> {
    ReaderBuilder::new()
        .delimiter(separator)
        .has_headers(false)
        .flexible(true)
        .terminator(Terminator::Any(b'\n'))
        .from_reader(text.as_bytes())
}

/// Returns the content of a cell. A quote that follows a space does not quote the cell, so it is
/// still there.
fn content(cell: &str) -> &str {
    cell.trim().trim_matches('"')
}

const fn is_bt(column: Column) -> bool {
    matches!(column, Column::Bt { .. })
}

const fn is_et(column: Column) -> bool {
    matches!(column, Column::Et { .. })
}

/// Parses seconds, `mm:ss` or an ISO date to ms.
#[allow(clippy::cast_possible_truncation)] // checked against its bounds
fn time(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds.abs() < 1e12).then(|| (seconds * 1000.0).round() as i64);
    }
    if text.contains('T') || text.contains('-') {
        return contract::EpochMs::parse_iso(&text.replace(' ', "T")).map(|at| at.0);
    }
    let (minutes, seconds) = text.split_once(':')?;
    let (minutes, seconds) = (minutes.parse::<i64>().ok()?, seconds.parse::<f64>().ok()?);
    let bounded = minutes.abs() < 100_000 && seconds.abs() < 1e9;
    bounded.then(|| minutes * 60_000 + (seconds * 1000.0).round() as i64)
}

fn mark(text: &str) -> Option<EventKind> {
    let plain: String =
        text.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    match plain.as_str() {
        "charge" | "beansadded" => Some(EventKind::Charge),
        "tp" | "turningpoint" => Some(EventKind::Tp),
        "dry" | "dryend" => Some(EventKind::DryEnd),
        "fc" | "fcs" | "firstcrack" | "firstcrackdetected" | "fcstart" => Some(EventKind::Fc),
        "fce" | "fcend" => Some(EventKind::FcEnd),
        "sc" | "scs" | "secondcrack" | "scstart" => Some(EventKind::Sc),
        "sce" | "scend" => Some(EventKind::ScEnd),
        "drop" | "beansdropped" => Some(EventKind::Drop),
        "cool" | "coolend" | "coolingstopped" => Some(EventKind::CoolEnd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_several_makers_are_read() {
        let iso = "timestamp_utc,bean_temp_c,env_temp_c,heat_level_percent,event\n\
            2026-06-07T12:00:00.500+00:00,180.5,,100,\n2026-06-07T12:00:02+00:00,170,220,90,beans_added\n";
        let r = read(iso).unwrap();
        assert_eq!(r.samples.len(), 2);
        assert_eq!((r.samples[1].t_ms, r.samples[0].et_c), (1_500, None));
        assert_eq!(r.mark_ms(EventKind::Charge), Some(1_500));
        let tabs = "Date:01.01.2026\tUnit:C\nTime1\tTime2\tET\tBT\tEvent\n00:00\t\t200\t180.1\tCharge\n00:02\t\t199\t170\t\n00:02\t\t1\t1\t\n";
        let r = read(tabs).unwrap();
        assert_eq!(
            (r.samples.len(), r.samples[1].t_ms, r.samples[1].bt_c),
            (2, 2_000, Some(170.0))
        );
        for fahrenheit in ["Date:1\tUnit:F\nTime1\tET\tBT\n0\t500\t392\n", "time,BT (°F)\n0,392\n"]
        {
            let r = read(fahrenheit).unwrap();
            assert_eq!((r.fahrenheit, r.samples[0].bt_c), (true, Some(200.0)), "{fahrenheit}");
        }
        for unnamed in ["a,b\n1,2\n", "time,BT\r0,180\r", ""] {
            assert_eq!(read(unnamed), Err(CsvError::Header));
        }
    }

    #[test]
    fn a_quoted_cell_may_contain_separators_quotes_and_line_breaks() {
        let text = "time,\"note, free\",BT,event\n0,\"a, b\",180,\n1,\"say \"\"c,d\"\"\",170,\"\"\"Charge\"\"\"\n\
                    2,\"x\ny,z\",165,\n\"3\", \"e\" , \"160\",\"DROP\"\r\n";
        for separator in [",", ";", "\t"] {
            let r = read(&text.replace(',', separator)).unwrap();
            let read: Vec<_> = r.samples.iter().map(|s| (s.t_ms, s.bt_c)).collect();
            let expected = [(0, 180.0), (1_000, 170.0), (2_000, 165.0), (3_000, 160.0)];
            assert_eq!(read, expected.map(|(t_ms, bt_c)| (t_ms, Some(bt_c))));
            assert_eq!(r.marks, [(EventKind::Charge, 1), (EventKind::Drop, 3)]);
        }
        // A quote that is never closed takes the rest of the text into its cell.
        let r = read("time,BT\n0,180\n1,\"170\n2,165\n").unwrap();
        assert_eq!((r.samples.len(), r.samples[1].bt_c), (2, None));
    }

    #[test]
    fn a_row_of_another_length_is_read_as_far_as_it_goes() {
        let text =
            "time,BT,ET\n0,180\n1,170,200,9,9\n\n,\n,1,1\n2\n3,\u{0},210\n4\u{0},1,1\n5,160,\n";
        let read: Vec<_> =
            read(text).unwrap().samples.iter().map(|s| (s.t_ms, s.bt_c, s.et_c)).collect();
        let expected = [
            (0, Some(180.0), None),
            (1_000, Some(170.0), Some(200.0)),
            (2_000, None, None),
            (3_000, None, Some(210.0)),
            (5_000, Some(160.0), None),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn a_time_out_of_bounds_is_no_time() {
        for text in ["1:1e300", "1:nan", "100000:00", "1e12", "inf", "::"] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!((time("1:30.5"), time("90")), (Some(90_500), Some(90_000)));
    }
}
