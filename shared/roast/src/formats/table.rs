//! Reads tables with a header line. This is the only CSV reader of recordings: it recognises the
//! separator, quotes, and decimal commas for every format.

use csv::{Position, Reader, ReaderBuilder, StringRecord, Terminator};

/// The largest number of rows that is read: a day at 10 Hz.
pub const ROWS_MAX: usize = 864_000;
/// The number of lines in which the header is searched.
const HEADER_LINES_MAX: u64 = 50;
/// A longer line is not a header.
const HEADER_BYTES_MAX: usize = 64 * 1024;
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// A table of text cells.
pub struct Table {
    header: Vec<String>,
    header_line: u64,
    separator: u8,
    rows: Vec<StringRecord>,
}

/// A row, whose cells are found by the names of their columns.
#[derive(Clone, Copy)]
pub struct Row<'t> {
    table: &'t Table,
    cells: &'t StringRecord,
}

impl Table {
    /// Reads `text` from its header on: the first of its first lines whose names `is_header`
    /// accepts, with any of the separators. Returns `None` if there is no such line.
    pub fn find(text: &str, is_header: impl Fn(&[&str]) -> bool) -> Option<Self> {
        let mut rest = text.trim_start_matches('\u{feff}');
        for header_line in 1..=HEADER_LINES_MAX {
            let line = rest.split_inclusive('\n').next()?;
            rest = &rest[line.len()..];
            if let Some((separator, header)) = header(line, &is_header) {
                let rows = records(rest, separator);
                return Some(Self { header, header_line, separator, rows });
            }
        }
        None
    }

    /// Reads a table whose header has all of `required` as columns.
    pub fn with_columns(text: &str, required: &[&str]) -> Option<Self> {
        Self::find(text, |names| required.iter().all(|name| names.contains(name)))
    }

    /// Returns the names of the columns.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// Returns the number of the header's line in the file, from 1.
    pub const fn header_line(&self) -> u64 {
        self.header_line
    }

    /// Returns the character between cells.
    pub const fn separator(&self) -> u8 {
        self.separator
    }

    /// Returns the rows below the header.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|cells| Row { table: self, cells })
    }
}

impl<'t> Row<'t> {
    /// Returns the number of the row's line in the file, from 1.
    pub fn line(&self) -> u64 {
        let below = self.cells.position().map_or(1, Position::line);
        self.table.header_line.saturating_add(below)
    }

    /// Returns the number of cells up to the last one that is not empty.
    pub fn width(&self) -> usize {
        let last = (0..self.cells.len()).rev().find(|at| self.cell(*at).is_some());
        last.map_or(0, |at| at.saturating_add(1))
    }

    /// Returns the text of the cell at an index; `None` if it is empty.
    pub fn cell(&self, at: usize) -> Option<&'t str> {
        self.cells.get(at).map(content).filter(|text| !text.is_empty())
    }

    /// Returns the text of a column; `None` if the cell is empty.
    pub fn text(&self, name: &str) -> Option<&'t str> {
        let at = self.table.header.iter().position(|column| column == name)?;
        self.cell(at)
    }

    /// Returns the number in a column. The decimal separator may be a comma.
    pub fn number(&self, name: &str) -> Option<f64> {
        number(self.text(name)?)
    }

    /// Returns the number in the first of several columns that has one.
    pub fn first(&self, names: &[&str]) -> Option<f64> {
        names.iter().find_map(|name| self.number(name))
    }
}

/// Reads the rows of a text without a header.
pub fn records(text: &str, separator: u8) -> Vec<StringRecord> {
    let records = reader(text, separator).into_records();
    records.take(ROWS_MAX).filter_map(Result::ok).collect()
}

/// Parses a number whose decimal separator is a point or a comma. If it has both, the last one is
/// the decimal separator and the other separates groups of digits, as spaces and apostrophes may.
pub fn number(text: &str) -> Option<f64> {
    let grouping = |c: char| matches!(c, '\u{a0}' | '\u{2009}' | '\u{202f}' | '\'' | '’');
    let plain: String = text.trim().chars().filter(|c| !grouping(*c)).collect();
    let plain = match (plain.rfind(','), plain.rfind('.')) {
        (Some(comma), Some(point)) if comma < point => plain.replace(',', ""),
        (Some(_), Some(_)) => plain.replace('.', "").replace(',', "."),
        (Some(_), None) => plain.replace(',', "."),
        (None, _) => plain,
    };
    plain.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Parses a header line; `None` if `is_header` refuses its names.
fn header(line: &str, is_header: &impl Fn(&[&str]) -> bool) -> Option<(u8, Vec<String>)> {
    if line.len() > HEADER_BYTES_MAX {
        return None;
    }
    SEPARATORS.into_iter().find_map(|separator| {
        let mut record = StringRecord::new();
        reader(line, separator).read_record(&mut record).ok()?;
        let names: Vec<&str> = record.iter().map(content).collect();
        if !is_header(&names) {
            return None;
        }
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        Some((separator, names))
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
    cell.trim().trim_matches('"').trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_found_with_any_separator_below_other_lines() {
        for separator in [",", ";", "\t"] {
            let text = "\u{feff}Export of 1 June\r\n\r\n\"time\",bt , note\r\n1,\"2\",\"a \n b\"\r\n3,4\r\n";
            let table =
                Table::with_columns(&text.replace(',', separator), &["bt", "time"]).unwrap();
            assert_eq!((table.header_line(), table.header()[2].as_str()), (3, "note"));
            assert_eq!(char::from(table.separator()).to_string(), separator);
            let rows: Vec<_> = table.rows().collect();
            assert_eq!((rows[0].line(), rows[0].number("bt")), (4, Some(2.0)));
            assert_eq!((rows[1].text("note"), rows[1].first(&["note", "time"])), (None, Some(3.0)));
            assert_eq!((rows[0].width(), rows[1].width()), (3, 2));
        }
        assert!(Table::with_columns("time,bt\n", &["et"]).is_none());
        assert!(Table::with_columns(&"x\n".repeat(60), &["x", "y"]).is_none());
    }

    #[test]
    fn numbers_have_a_decimal_point_or_comma() {
        for (text, expected) in [
            ("190.1", Some(190.1)),
            ("190,1", Some(190.1)),
            ("-0,5", Some(-0.5)),
            ("1.234,5", Some(1234.5)),
            ("1,234.5", Some(1234.5)),
            ("1'234.5", Some(1234.5)),
            ("1\u{202f}234,5", Some(1234.5)),
            ("1e3", Some(1000.0)),
            ("1,2,3", None),
            ("12 5", None),
            ("nan", None),
            ("inf", None),
            ("", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
