//! Parser of tables of samples.
//!
//! A header line names the columns, and each row is one sample. A row may have fewer or more cells
//! than the header. Times are numbers in the unit that the column names, clocks or dates.

use contract::EventKind;

use super::table::{Row, Table, number};
use super::time::{self, Step, TimeUnit, Timeline};
use crate::recording::{FILE_BYTES_MAX, Recording};
use crate::sample::Sample;

/// The number of characters of a cell that an error repeats.
const SHOWN_CHARS: usize = 40;

/// The reason why a text is not a table of samples.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CsvError {
    /// The text is larger than [`FILE_BYTES_MAX`].
    #[error("larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// No line names a time and a bean temperature as columns.
    #[error("no line names a time and a bean temperature (such as: elapsed_seconds,bean_temp_c)")]
    Header,
    /// The header is the last line.
    #[error("no row below the header in line {line}")]
    NoRows {
        /// The number of the header's line, from 1.
        line: u64,
    },
    /// A row shows that the table cannot be read.
    #[error("row in line {line}: {problem}")]
    Row {
        /// The number of the row's line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// The meaning of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Time(TimeUnit),
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
    let plain = plain(name);
    match plain.as_str() {
        "timestamputc" | "timestamp" | "time" | "time1" | "seconds" | "elapsed" | "times"
        | "elapsedseconds" | "elapsedtime" | "elapseds" | "timesec" | "timeseconds" | "sec"
        | "timestamps" | "datetime" | "localtime" | "zeit" | "zeits" => {
            Some(Column::Time(TimeUnit::Seconds))
        }
        "ms"
        | "timems"
        | "time1ms"
        | "elapsedms"
        | "timestampms"
        | "millis"
        | "milliseconds"
        | "timemilliseconds"
        | "elapsedmilliseconds"
        | "zeitms" => Some(Column::Time(TimeUnit::Milliseconds)),
        "minutes" | "timemin" | "timeminutes" | "elapsedmin" | "elapsedminutes" | "zeitmin" => {
            Some(Column::Time(TimeUnit::Minutes))
        }
        "gas" | "gaspct" | "burner" | "heat" | "heatlevelpercent" | "heater" => Some(Column::Gas),
        "fan" | "fanpct" | "air" | "airflow" | "fanlevelpercent" => Some(Column::Fan),
        "drum" | "drumpct" | "drumspeed" => Some(Column::Drum),
        "door" | "dooropen" | "dropdoor" | "discharge" => Some(Column::Door),
        "cracks" | "crackcount" => Some(Column::Cracks),
        "weight" | "weightg" | "scale" => Some(Column::Weight),
        "event" | "mark" => Some(Column::Event),
        name => probe(name),
    }
}

/// Returns the meaning of a temperature's name, which may end with its unit.
fn probe(plain: &str) -> Option<Column> {
    let units = [("fahrenheit", true), ("celsius", false), ("degf", true), ("degc", false)];
    let short = [("f", true), ("c", false), ("", false)];
    units.into_iter().chain(short).find_map(|(unit, fahrenheit)| {
        match plain.strip_suffix(unit)? {
            "bt" | "beantemp" | "bean" | "beantemperature" | "bohnentemp" | "bohnentemperatur" => {
                Some(Column::Bt { fahrenheit })
            }
            "et" | "envtemp" | "environment" | "environmenttemp" | "environmenttemperature" => {
                Some(Column::Et { fahrenheit })
            }
            _ => None,
        }
    })
}

/// Returns the letters and digits of a text, in lower case.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The columns of a table, by their index.
struct Layout {
    time: usize,
    unit: TimeUnit,
    bt: Probe,
    et: Option<Probe>,
    gas: Option<usize>,
    fan: Option<usize>,
    drum: Option<usize>,
    door: Option<usize>,
    cracks: Option<usize>,
    weight: Option<usize>,
    event: Option<usize>,
}

/// A column of temperatures.
#[derive(Clone, Copy)]
struct Probe {
    at: usize,
    fahrenheit: bool,
}

impl Layout {
    /// Returns the layout of a header; `None` if it does not name a time and a bean temperature.
    fn of(names: &[&str]) -> Option<Self> {
        let columns: Vec<Option<Column>> = names.iter().map(|name| column(name)).collect();
        let at = |wanted: Column| columns.iter().position(|found| *found == Some(wanted));
        let found = columns.iter().enumerate();
        let (time, unit) = found.clone().find_map(|(at, column)| match column {
            Some(Column::Time(unit)) => Some((at, *unit)),
            _ => None,
        })?;
        let bt = found.clone().find_map(|(at, column)| match column {
            Some(Column::Bt { fahrenheit }) => Some(Probe { at, fahrenheit: *fahrenheit }),
            _ => None,
        })?;
        let et = found.clone().find_map(|(at, column)| match column {
            Some(Column::Et { fahrenheit }) => Some(Probe { at, fahrenheit: *fahrenheit }),
            _ => None,
        });
        Some(Self {
            time,
            unit,
            bt,
            et,
            gas: at(Column::Gas),
            fan: at(Column::Fan),
            drum: at(Column::Drum),
            door: at(Column::Door),
            cracks: at(Column::Cracks),
            weight: at(Column::Weight),
            event: at(Column::Event),
        })
    }

    /// Sets the unit of all temperatures.
    fn set_fahrenheit(&mut self) {
        self.bt.fahrenheit = true;
        if let Some(et) = &mut self.et {
            et.fahrenheit = true;
        }
    }

    fn has_fahrenheit(&self) -> bool {
        self.bt.fahrenheit || self.et.is_some_and(|et| et.fahrenheit)
    }

    fn sample(&self, row: Row<'_>, t_ms: i64) -> Sample {
        let value = |at: Option<usize>| number(row.cell(at?)?);
        let celsius = |probe: Probe| {
            let degrees = value(Some(probe.at))?;
            Some(if probe.fahrenheit { (degrees - 32.0) / 1.8 } else { degrees })
        };
        Sample {
            t_ms,
            bt_c: celsius(self.bt),
            et_c: self.et.and_then(celsius),
            gas_pct: value(self.gas),
            fan_pct: value(self.fan),
            drum_pct: value(self.drum),
            door_open: self.door.and_then(|at| row.cell(at)).and_then(open),
            cracks: value(self.cracks),
            weight_g: value(self.weight),
        }
    }
}

/// Parses a table. Drops rows without a time, and rows that repeat the time of the row before or
/// go back.
///
/// # Errors
/// If no line names the columns, the text is too large, or no row, or less than half of the rows,
/// can be read: then with the first such row and the reason.
pub fn read(text: &str) -> Result<Recording, CsvError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(CsvError::TooLarge);
    }
    let table = Table::find(text, |names| Layout::of(names).is_some()).ok_or(CsvError::Header)?;
    let names: Vec<&str> = table.header().iter().map(String::as_str).collect();
    let mut layout = Layout::of(&names).ok_or(CsvError::Header)?;
    if is_all_fahrenheit(text, table.header_line()) {
        layout.set_fahrenheit();
    }
    check_widths(&table)?;
    let mut rows = Rows { layout, timeline: Timeline::default(), unusable: Unusable::default() };
    let recording = rows.read(&table);
    rows.check(&table, &recording)?;
    Ok(recording)
}

/// Artisan writes the unit of all temperatures in a line above the header.
fn is_all_fahrenheit(text: &str, header_line: u64) -> bool {
    let above = usize::try_from(header_line).unwrap_or(0);
    let mut lines = text.split_inclusive('\n').take(above);
    lines.any(|line| line.split(['\t', ',', ';']).any(|cell| cell.trim() == "Unit:F"))
}

/// Checks that a decimal comma has not split the numbers of a table whose separator is a comma.
fn check_widths(table: &Table) -> Result<(), CsvError> {
    let columns = table.header().len();
    let mut rows = table.rows();
    let Some(first) = rows.next().filter(|row| table.separator() == b',' && row.width() > columns)
    else {
        return Ok(());
    };
    if rows.any(|row| row.width() <= columns) {
        return Ok(());
    }
    let problem = format!(
        "{} cells, but the header names {columns} columns: numbers with a decimal comma need \
         quotes, or another separator",
        first.width()
    );
    Err(CsvError::Row { line: first.line(), problem })
}

/// The rows that could not be read.
#[derive(Default)]
struct Unusable {
    rows: usize,
    first: Option<CsvError>,
}

impl Unusable {
    fn add(&mut self, row: Row<'_>, problem: String) {
        self.rows = self.rows.saturating_add(1);
        self.first.get_or_insert(CsvError::Row { line: row.line(), problem });
    }
}

/// The reader of the rows of one table.
struct Rows {
    layout: Layout,
    timeline: Timeline,
    unusable: Unusable,
}

impl Rows {
    fn read(&mut self, table: &Table) -> Recording {
        let at = self.layout.time;
        let day_first = table.rows().any(|row| row.cell(at).is_some_and(time::is_day_first));
        let mut recording =
            Recording { fahrenheit: self.layout.has_fahrenheit(), ..Recording::default() };
        for row in table.rows() {
            let Some(text) = row.cell(at) else { continue };
            let Some(time) = time::parse(text, self.layout.unit, day_first) else {
                self.unusable.add(row, format!("\"{}\" is not a time", shown(text)));
                continue;
            };
            match self.timeline.advance(time) {
                Step::Repeated => {}
                Step::Back => {
                    let problem = format!("\"{}\" is before the row above", shown(text));
                    self.unusable.add(row, problem);
                }
                Step::To(t_ms) => {
                    if recording.samples.is_empty() {
                        recording.started = time.instant();
                    }
                    recording.samples.push(self.layout.sample(row, t_ms));
                    self.add_mark(row, &mut recording);
                }
            }
        }
        recording
    }

    /// Adds the row's event as a mark at the newest sample. Only the first of a kind counts.
    fn add_mark(&self, row: Row<'_>, recording: &mut Recording) {
        let Some(kind) = self.layout.event.and_then(|at| row.cell(at)).and_then(mark) else {
            return;
        };
        let newest = recording.samples.len().saturating_sub(1);
        if !recording.marks.iter().any(|(known, _)| *known == kind) {
            recording.marks.push((kind, newest));
        }
    }

    /// Checks that the rows are a recording.
    fn check(self, table: &Table, recording: &Recording) -> Result<(), CsvError> {
        if self.unusable.rows > recording.samples.len()
            && let Some(first) = self.unusable.first
        {
            return Err(first);
        }
        if recording.has_bean_temperature() {
            return Ok(());
        }
        let Some(first) = table.rows().next() else {
            return Err(CsvError::NoRows { line: table.header_line() });
        };
        let problem = match (first.cell(self.layout.time), first.cell(self.layout.bt.at)) {
            (None, _) => "no time".to_owned(),
            (_, None) => "no bean temperature, and none in the rows below".to_owned(),
            (_, Some(text)) => {
                format!("\"{}\" is not a temperature, nor is one in the rows below", shown(text))
            }
        };
        Err(CsvError::Row { line: first.line(), problem })
    }
}

/// Returns the beginning of a cell, for an error.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

fn open(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "open" | "opened" => Some(true),
        "0" | "false" | "closed" | "shut" => Some(false),
        _ => None,
    }
}

fn mark(text: &str) -> Option<EventKind> {
    match plain(text).as_str() {
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
    use contract::EpochMs;

    fn curve(text: &str) -> Vec<(i64, Option<f64>)> {
        read(text).unwrap().samples.iter().map(|s| (s.t_ms, s.bt_c)).collect()
    }

    #[test]
    fn tables_of_several_makers_are_read() {
        let iso = "timestamp_utc,bean_temp_c,env_temp_c,heat_level_percent,event\n\
            2026-06-07T12:00:00.500+00:00,180.5,,100,\n2026-06-07T12:00:02+00:00,170,220,90,beans_added\n";
        let r = read(iso).unwrap();
        assert_eq!(r.samples.len(), 2);
        assert_eq!((r.samples[1].t_ms, r.samples[0].et_c), (1_500, None));
        assert_eq!(r.mark_ms(EventKind::Charge), Some(1_500));
        assert_eq!(r.started, EpochMs::parse_iso("2026-06-07T12:00:00.500Z"));
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
        for unnamed in ["a,b\n1,2\n", "time,BT\r0,180\r", "time,ET\n0,200\n", ""] {
            assert_eq!(read(unnamed), Err(CsvError::Header));
        }
    }

    #[test]
    fn one_roast_is_the_same_in_every_form_of_a_table() {
        let expected = [(0, Some(190.1)), (500, Some(189.5)), (1_000, Some(188.0))];
        for text in [
            "Time;BT;ET\r\n0;190.1;210\r\n0.5;189.5;210\r\n1;188;210\r\n",
            "Time;BT;ET\r\n0,0;190,1;210,5\r\n0,5;189,5;210,5\r\n1,0;188,0;210,5\r\n",
            "Time\tBT\n0,0\t190,1\n0,5\t189,5\n1,0\t188,0\n",
            "\"Time\",\"BT\"\n\"0\",\"190,1\"\n\"0,5\",\"189,5\"\n\"1\",\"188,0\"\n",
            "sep=;\nTime;BT\n0;190,1\n0,5;189,5\n1;188\n",
            "time_ms,bt\n1000,190.1\n1500,189.5\n2000,188\n",
            "time (ms),bt\n0,190.1\n500,189.5\n1000,188\n",
            "time,bt\n12:59:59,190.1\n12:59:59.5,189.5\n13:00:00,188\n",
            "time;bt\n25.10.2026 02:59:59;190,1\n25.10.2026 02:59:59,5;189,5\n25.10.2026 02:00:00;188\n",
            "time,bt\n10/25/2026 11:59:59 AM,190.1\n10/25/2026 11:59:59.5 AM,189.5\n10/25/2026 12:00:00 PM,188\n",
            "time,bt\n2026-10-25 02:50:00,190.1\n2026-10-25 02:50:00.5,189.5\n2026-10-25 02:50:01,188\n",
            "timestamp,bt\n1767000000,190.1\n1767000000.5,189.5\n1767000001,188\n",
            "time,BT (F)\n0,374.18\n0.5,373.1\n1,370.4\n",
        ] {
            let rounded = |bt: f64| (bt * 10.0).round() / 10.0;
            let read: Vec<_> =
                curve(text).into_iter().map(|(t_ms, bt)| (t_ms, bt.map(rounded))).collect();
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn a_table_without_a_usable_row_names_the_row_and_the_reason() {
        for (text, expected) in [
            ("x\ntime,bt\n", "no row below the header in line 2"),
            ("time,bt\nsoon,180\nlater,181\n", "row in line 2: \"soon\" is not a time"),
            ("time,bt\n0,\n1,\n", "row in line 2: no bean temperature"),
            ("time,bt\n0,—\n1,—\n", "row in line 2: \"—\" is not a temperature"),
            ("time,bt\n,180\n", "row in line 2: no time"),
            ("time,bt\n3,180\n2,181\n1,182\n", "row in line 3: \"2\" is before the row above"),
            ("time,bt\n0,180\nx,1\ny,2\n", "row in line 3: \"x\" is not a time"),
            ("time,bt\n0,180,1\n1,179,5\n", "3 cells, but the header names 2 columns"),
            ("time,bt\n1767000000000,180\n", "row in line 2: \"1767000000000\" is not a time"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
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
}
