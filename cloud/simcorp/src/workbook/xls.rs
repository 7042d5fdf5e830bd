//! Checks an `.xls` before calamine reads it. calamine reserves memory for the cells that a sheet
//! declares and for all between its first and its last cell, and copies a text into each cell that
//! refers to it: a file of a few kilobytes would take all memory.

use super::compound_file::{self, u16_at, u32_at};
use super::limits::{Extent, SHEETS_MAX, WorkbookLimit, WorkbookTotals, XLS_BYTES_MAX};

// Kinds of records (MS-XLS 2.3).
const FORMULA: u16 = 0x0006;
const END: u16 = 0x000a;
const CONTINUE: u16 = 0x003c;
const SHEET: u16 = 0x0085;
const NUMBERS: u16 = 0x00bd;
const RICH_LABEL: u16 = 0x00d6;
const SHARED_TEXTS: u16 = 0x00fc;
const SHARED_LABEL: u16 = 0x00fd;
const DIMENSIONS: u16 = 0x0200;
const NUMBER: u16 = 0x0203;
const LABEL: u16 = 0x0204;
const BOOLEAN: u16 = 0x0205;
const FORMULA_TEXT: u16 = 0x0207;
const SHORT_NUMBER: u16 = 0x027e;
const BEGIN: u16 = 0x0809;

/// The most parts of one record; calamine's time grows with their square.
const PARTS_MAX: usize = 8_192;
/// The most bytes that a character takes in UTF-8.
const CHARACTER_BYTES: u64 = 3;

const CUT_OFF: WorkbookLimit = WorkbookLimit::Damaged("a record is cut off");

/// Checks that a workbook keeps its bounds.
///
/// # Errors
/// When it does not, or when it is damaged.
pub fn check(file: &[u8]) -> Result<(), WorkbookLimit> {
    if file.len() > XLS_BYTES_MAX {
        return Err(WorkbookLimit::Bytes);
    }
    let stream = compound_file::workbook_stream(file)?;
    let (mut sheets, mut texts) = (Vec::new(), Vec::new());
    let mut records = Records { rest: &stream };
    while let Some(record) = records.read_next()? {
        match record.kind {
            SHEET => {
                let start = u32_at(record.data, 0).and_then(|start| usize::try_from(start).ok());
                let content = start.and_then(|start| stream.get(start..));
                let content = content.filter(|_| record.data.len() >= 8);
                sheets.push(content.ok_or(WorkbookLimit::Damaged("a sheet lies outside"))?);
            }
            SHARED_TEXTS => texts = SharedTexts::of(&record).lengths()?,
            END => break,
            _ => {}
        }
    }
    if sheets.len() > SHEETS_MAX {
        return Err(WorkbookLimit::Sheets);
    }
    let mut totals = WorkbookTotals::default();
    for (number, content) in (1..).zip(sheets) {
        let sheet = Sheet { texts: &texts, name: format!("no. {number}") };
        sheet.check(content, &mut totals)?;
    }
    Ok(())
}

/// A sheet that is checked.
struct Sheet<'t> {
    /// The numbers of characters of the shared texts.
    texts: &'t [u16],
    name: String,
}

impl Sheet<'_> {
    fn check(&self, content: &[u8], totals: &mut WorkbookTotals) -> Result<(), WorkbookLimit> {
        let mut records = Records { rest: content };
        let mut extent = Extent::default();
        let (mut begun, mut depth) = (false, 0_usize);
        let mut formula_at = (0, 0);
        while let Some(record) = records.read_next()? {
            match record.kind {
                // A chart in the sheet: its records are not the sheet's.
                BEGIN if begun => depth = depth.saturating_add(1),
                BEGIN => begun = true,
                END if depth == 0 => break,
                END => depth = depth.saturating_sub(1),
                _ if depth > 0 => {}
                DIMENSIONS => totals.check(declared_cells(record.data)?, &self.name)?,
                FORMULA_TEXT => extent.add(formula_at.0, formula_at.1),
                NUMBER | LABEL | RICH_LABEL | BOOLEAN | SHORT_NUMBER | SHARED_LABEL | FORMULA
                | NUMBERS => {
                    let (row, column) = position(record.data).ok_or(CUT_OFF)?;
                    extent.add(row, column);
                    match record.kind {
                        FORMULA => {
                            formula_at = (row, column);
                            totals.add_formula(record.data.len() as u64)?;
                        }
                        SHARED_LABEL => totals.add_text(self.text_bytes(record.data))?,
                        NUMBERS => {
                            let more = record.data.len().saturating_sub(6) / 6;
                            for column in (column..).take(more) {
                                extent.add(row, column);
                            }
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        totals.check(extent.cells(), &self.name)?;
        totals.add_sheet(&extent);
        Ok(())
    }

    /// Returns how many bytes the text of a cell may take.
    fn text_bytes(&self, data: &[u8]) -> u64 {
        let text = u32_at(data, 6).and_then(|text| usize::try_from(text).ok());
        let characters = text.and_then(|text| self.texts.get(text)).copied().unwrap_or(0);
        u64::from(characters).saturating_mul(CHARACTER_BYTES)
    }
}

/// Returns the row and the column of a cell.
fn position(data: &[u8]) -> Option<(u32, u32)> {
    Some((u32::from(u16_at(data, 0)?), u32::from(u16_at(data, 2)?)))
}

/// Returns how many cells a sheet declares, as calamine computes it.
fn declared_cells(data: &[u8]) -> Result<u64, WorkbookLimit> {
    let short = |at: usize| u16_at(data, at).map(u32::from);
    let declared = match data.len() {
        10 => (short(0), short(2), short(4), short(6)),
        14 | 16 => (u32_at(data, 0), u32_at(data, 4), short(8), short(10)),
        _ => return Err(WorkbookLimit::Damaged("the dimensions of a sheet")),
    };
    let (Some(first_row), Some(past_row), Some(first_column), Some(past_column)) = declared else {
        return Err(CUT_OFF);
    };
    if past_row == 0 || past_column == 0 {
        return Ok(1);
    }
    let wrong = first_column > 0xff || first_column > past_column;
    let first_column = if wrong { 0 } else { first_column };
    if first_row > past_row {
        return Err(WorkbookLimit::Damaged("the dimensions of a sheet"));
    }
    let rows = u64::from(past_row.saturating_sub(first_row));
    Ok(rows.saturating_mul(u64::from(past_column.saturating_sub(first_column))))
}

/// A record with the parts that continue it.
struct Record<'s> {
    kind: u16,
    data: &'s [u8],
    continued: Vec<&'s [u8]>,
}

/// The records of a stream, in the order in which calamine reads them.
struct Records<'s> {
    rest: &'s [u8],
}

impl<'s> Records<'s> {
    /// Returns the next record; `None` at the end of the stream.
    fn read_next(&mut self) -> Result<Option<Record<'s>>, WorkbookLimit> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (kind, data) = self.part()?;
        let mut continued = Vec::new();
        while self.rest.len() > 4 && u16_at(self.rest, 0) == Some(CONTINUE) {
            if continued.len() >= PARTS_MAX {
                return Err(WorkbookLimit::Damaged("a record has too many parts"));
            }
            continued.push(self.part()?.1);
        }
        Ok(Some(Record { kind, data, continued }))
    }

    /// Takes one part: its kind, its length and as many bytes.
    fn part(&mut self) -> Result<(u16, &'s [u8]), WorkbookLimit> {
        let kind = u16_at(self.rest, 0).ok_or(CUT_OFF)?;
        let len = usize::from(u16_at(self.rest, 2).ok_or(CUT_OFF)?);
        let (_, content) = self.rest.split_at_checked(4).ok_or(CUT_OFF)?;
        let (data, rest) = content.split_at_checked(len).ok_or(CUT_OFF)?;
        self.rest = rest;
        Ok((kind, data))
    }
}

/// The texts that cells refer to. A text may go on in the next part of the record.
struct SharedTexts<'r, 's> {
    data: &'s [u8],
    parts: std::slice::Iter<'r, &'s [u8]>,
}

impl<'r, 's> SharedTexts<'r, 's> {
    fn of(record: &'r Record<'s>) -> Self {
        Self { data: record.data, parts: record.continued.iter() }
    }

    /// Returns the number of characters of each text.
    fn lengths(mut self) -> Result<Vec<u16>, WorkbookLimit> {
        let mut lengths = Vec::new();
        self.take(8)?; // how many there are
        while !self.data.is_empty() || self.next_part() {
            lengths.push(if self.data.is_empty() { 0 } else { self.text()? });
        }
        Ok(lengths)
    }

    /// Skips a text, and returns its number of characters.
    fn text(&mut self) -> Result<u16, WorkbookLimit> {
        let heading = self.take(3)?;
        let characters = u16_at(heading, 0).ok_or(CUT_OFF)?;
        let flags = heading.get(2).copied().ok_or(CUT_OFF)?;
        let formats = if flags & 8 == 0 { 0 } else { u16_at(self.take(2)?, 0).ok_or(CUT_OFF)? };
        let extra = if flags & 4 == 0 { 0 } else { u32_at(self.take(4)?, 0).ok_or(CUT_OFF)? };
        let (mut left, mut wide) = (usize::from(characters), flags & 1 != 0);
        while left > 0 {
            let (width, fitting) =
                if wide { (2, self.data.len() / 2) } else { (1, self.data.len()) };
            let here = left.min(fitting);
            self.take(here.saturating_mul(width))?;
            left = left.saturating_sub(here);
            if left > 0 {
                if !self.next_part() {
                    return Err(CUT_OFF);
                }
                wide = self.take(1)?.first().is_some_and(|flags| flags & 1 != 0);
            }
        }
        self.skip(usize::from(formats).saturating_mul(4))?;
        self.skip(usize::try_from(extra).map_err(|_| CUT_OFF)?)?;
        Ok(characters)
    }

    /// Takes bytes of the current part.
    fn take(&mut self, len: usize) -> Result<&'s [u8], WorkbookLimit> {
        let (taken, rest) = self.data.split_at_checked(len).ok_or(CUT_OFF)?;
        self.data = rest;
        Ok(taken)
    }

    /// Skips bytes of this part and those after it.
    fn skip(&mut self, mut len: usize) -> Result<(), WorkbookLimit> {
        while len > 0 {
            if self.data.is_empty() && !self.next_part() {
                return Err(CUT_OFF);
            }
            let here = len.min(self.data.len());
            self.take(here)?;
            len = len.saturating_sub(here);
        }
        Ok(())
    }

    fn next_part(&mut self) -> bool {
        let part = self.parts.next();
        self.data = part.copied().unwrap_or(self.data);
        part.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use calamine::{Data, Reader as _, Xls};

    use super::*;

    const SECTOR: usize = 512;
    const END_OF_CHAIN: u32 = 0xffff_fffe;

    fn record(kind: u16, data: &[u8]) -> Vec<u8> {
        let len = u16::try_from(data.len()).unwrap();
        [&kind.to_le_bytes()[..], &len.to_le_bytes(), data].concat()
    }

    fn begin() -> Vec<u8> {
        record(BEGIN, &[0, 6, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    fn number(row: u16, column: u16) -> Vec<u8> {
        let value = 1.5_f64.to_le_bytes();
        let cell = [row.to_le_bytes(), column.to_le_bytes(), [0, 0]].concat();
        record(NUMBER, &[&cell[..], &value].concat())
    }

    fn dimensions(rows: u32, columns: u16) -> Vec<u8> {
        let (rows, columns) = (rows.to_le_bytes(), columns.to_le_bytes());
        record(DIMENSIONS, &[&[0; 4][..], &rows, &[0; 2], &columns, &[0; 2]].concat())
    }

    /// Returns the stream of a workbook whose `sheets` sheets have the same records.
    fn stream(globals: &[u8], sheets: usize, records: &[Vec<u8>]) -> Vec<u8> {
        let listed = record(SHEET, &[0, 0, 0, 0, 0, 0, 1, 0, b'a']).len();
        let start = begin().len() + listed * sheets + globals.len() + 4;
        let start = u32::try_from(start).unwrap().to_le_bytes();
        let mut stream = begin();
        for n in 0..sheets {
            let name = b'0' + u8::try_from(n).unwrap();
            stream.extend(record(SHEET, &[&start[..], &[0, 0, 1, 0, name]].concat()));
        }
        stream.extend_from_slice(globals);
        stream.extend(record(END, &[]));
        stream.extend(begin());
        stream.extend(records.concat());
        stream.extend(record(END, &[]));
        stream
    }

    /// Returns a compound file with a stream of at most 126 sectors. `table` changes which sector
    /// follows which: 0 is the table, 1 the directory.
    fn file(mut stream: Vec<u8>, table: impl Fn(&mut [u32])) -> Vec<u8> {
        stream.resize(stream.len().next_multiple_of(SECTOR).max(4096), 0);
        let sectors = stream.len() / SECTOR;
        let mut next = [u32::MAX; SECTOR / 4];
        (next[0], next[1]) = (0xffff_fffd, END_OF_CHAIN);
        for (sector, after) in (3..).zip(&mut next[2..2 + sectors]) {
            *after = sector;
        }
        next[1 + sectors] = END_OF_CHAIN;
        table(&mut next);
        let mut header = [0xff_u8; SECTOR];
        header[..76].fill(0);
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1");
        put(24, &[0x3e, 0, 3, 0, 0xfe, 0xff, 9, 0, 6, 0]);
        put(44, &1_u32.to_le_bytes());
        put(48, &1_u32.to_le_bytes());
        put(60, &END_OF_CHAIN.to_le_bytes());
        put(68, &END_OF_CHAIN.to_le_bytes());
        put(76, &0_u32.to_le_bytes());
        let mut directory = [0_u8; SECTOR];
        let len = u32::try_from(stream.len()).unwrap();
        for (at, name, start, len) in [(0, "Root", END_OF_CHAIN, 0), (128, "Workbook", 2, len)] {
            for (unit, bytes) in name.encode_utf16().zip(directory[at..].chunks_exact_mut(2)) {
                bytes.copy_from_slice(&unit.to_le_bytes());
            }
            directory[at + 116..at + 120].copy_from_slice(&start.to_le_bytes());
            directory[at + 120..at + 124].copy_from_slice(&len.to_le_bytes());
        }
        let next = next.map(u32::to_le_bytes).concat();
        [&header[..], &next, &directory, &stream].concat()
    }

    fn refused(globals: &[u8], sheets: usize, records: &[Vec<u8>]) -> WorkbookLimit {
        let file = file(stream(globals, sheets, records), |_| ());
        check(&file).unwrap_err()
    }

    #[test]
    fn a_small_workbook_is_read() {
        let records = [dimensions(2, 2), number(0, 0), number(1, 1)];
        let bytes = file(stream(&[], 2, &records), |_| ());
        assert_eq!(check(&bytes), Ok(()));
        let mut book: Xls<_> = Xls::new(Cursor::new(&bytes[..])).unwrap();
        let range = book.worksheet_range("1").unwrap();
        assert_eq!(range.get_value((1, 1)), Some(&Data::Float(1.5)));
    }

    #[test]
    fn a_small_file_that_declares_many_cells_is_refused() {
        let many = WorkbookLimit::Cells { sheet: "no. 1".to_owned() };
        for (rows, columns) in [(u32::MAX, u16::MAX), (2_000_001, 1), (65_536, 256)] {
            let records = [dimensions(rows, columns), number(0, 0)];
            assert_eq!(refused(&[], 1, &records), many, "{rows} x {columns}");
        }
        let bytes = file(stream(&[], 1, &[dimensions(u32::MAX, u16::MAX)]), |_| ());
        let error = super::super::read(&bytes).unwrap_err();
        assert_eq!(error.downcast_ref::<WorkbookLimit>(), Some(&many));
        assert_eq!(error.to_string(), "the sheets up to no. 1 have more than 2000000 cells");
    }

    #[test]
    fn cells_far_apart_and_sheets_that_share_their_cells_are_counted() {
        let far = [number(0, 0), number(u16::MAX, u16::MAX)];
        let many = |n: u8| WorkbookLimit::Cells { sheet: format!("no. {n}") };
        assert_eq!(refused(&[], 1, &far), many(1));
        let half = [number(0, 0), number(9_999, 99)];
        assert_eq!(refused(&[], 3, &half), many(3));
        assert_eq!(refused(&[], 65, &half[..1]), WorkbookLimit::Sheets);
    }

    #[test]
    fn a_text_that_many_cells_share_is_counted_for_each() {
        // 20 000 characters, half of them in the next part of the record.
        let half = [b'x'; 10_000];
        let heading = [&[0; 8][..], &20_000_u16.to_le_bytes(), &[0]].concat();
        let first = record(SHARED_TEXTS, &[&heading[..], &half].concat());
        let second = record(CONTINUE, &[&[0][..], &half].concat());
        let globals = [first, second].concat();
        let label = record(SHARED_LABEL, &[0; 10]);
        let bytes = file(stream(&globals, 1, &vec![label.clone(); 500]), |_| ());
        assert_eq!(check(&bytes), Ok(()));
        assert_eq!(refused(&globals, 1, &vec![label; 600]), WorkbookLimit::Text);
    }

    #[test]
    fn chains_without_an_end_and_outside_the_file_are_refused() {
        let records = [number(0, 0)];
        for (at, next) in [(1, 1), (2, 900), (2, u32::MAX)] {
            let bytes = file(stream(&[], 1, &records), |table| table[at] = next);
            let error = check(&bytes).unwrap_err();
            assert!(matches!(error, WorkbookLimit::Damaged(_)), "{at} to {next}: {error}");
        }
        let bytes = file(stream(&[], 1, &records), |_| ());
        for len in 0..bytes.len() {
            let _ = check(&bytes[..len]); // does not panic
        }
    }

    #[test]
    fn no_bytes_of_a_record_make_the_check_panic() {
        let records = [dimensions(2, 2), number(0, 0), record(NUMBERS, &[0; 12])];
        let texts = record(SHARED_TEXTS, &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, b'a', b'b']);
        let stream = stream(&texts, 1, &records);
        for at in 0..stream.len() {
            for byte in [0, 1, 0x3c, 0xff] {
                let mut damaged = stream.clone();
                damaged[at] = byte;
                let _ = check(&file(damaged, |_| ()));
            }
        }
    }
}
