//! Reads the workbooks (`.xls`, `.xlsx`) in which Cropster exports roasts.

use std::io::Cursor;

use calamine::{Data, Reader as _, open_workbook_auto_from_rs};
use roast::formats::makers::{Cell, Worksheet, cropster};
use roast::recording::Recording;

/// The most sheets that are read. A Cropster export has two, and one for each curve.
const SHEETS_MAX: usize = 64;
/// The first bytes of a workbook: an `.xls` is a compound file, an `.xlsx` a zip archive.
const MAGIC: [&[u8]; 2] = [b"\xd0\xcf\x11\xe0", b"PK\x03\x04"];

/// Returns true if the file is a workbook.
pub fn is_workbook(bytes: &[u8]) -> bool {
    MAGIC.iter().any(|magic| bytes.starts_with(magic))
}

/// Reads a recording from a Cropster workbook.
///
/// # Errors
/// When the workbook is damaged, or is not a Cropster export.
pub fn read(bytes: &[u8]) -> anyhow::Result<Recording> {
    let mut book = open_workbook_auto_from_rs(Cursor::new(bytes))?;
    let names: Vec<String> = book.sheet_names().into_iter().take(SHEETS_MAX).collect();
    let mut sheets = Vec::with_capacity(names.len());
    for name in names {
        let range = book.worksheet_range(&name)?;
        let rows = range.rows().map(|row| row.iter().map(cell).collect()).collect();
        sheets.push(Worksheet { name, rows });
    }
    Ok(cropster(&sheets)?)
}

fn cell(data: &Data) -> Cell {
    match data {
        Data::Int(value) => Cell::Number(*value as f64),
        Data::Float(value) => Cell::Number(*value),
        Data::String(text) => Cell::Text(text.clone()),
        Data::Bool(_) | Data::Empty | Data::Error(_) => Cell::Empty,
        other => Cell::Text(other.to_string()),
    }
}
