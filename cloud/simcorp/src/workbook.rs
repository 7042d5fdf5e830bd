//! Reads the workbooks (`.xls`, `.xlsx`) in which Cropster exports roasts.

use std::io::Cursor;

use anyhow::ensure;
use calamine::{Data, DataRef, Reader as _, Sheets, Xls, Xlsx};
use roast::formats::makers::{Cell, Worksheet, cropster};
use roast::recording::Recording;

/// The most sheets that are read. A Cropster export has two, and one for each curve.
const SHEETS_MAX: usize = 64;
/// The most cells of a sheet, empty ones included: those between the first and the last cell take
/// memory, whatever the file's size. A recording of an hour at 10 Hz with 50 columns has fewer.
const CELLS_MAX: u64 = 2_000_000;
/// The first bytes of an `.xls`, which is a compound file.
const XLS_MAGIC: &[u8] = b"\xd0\xcf\x11\xe0";
/// The first bytes of an `.xlsx`, which is a zip archive.
const XLSX_MAGIC: &[u8] = b"PK\x03\x04";

/// Returns true if the file is a workbook.
pub fn is_workbook(bytes: &[u8]) -> bool {
    [XLS_MAGIC, XLSX_MAGIC].iter().any(|magic| bytes.starts_with(magic))
}

/// Reads a recording from a Cropster workbook.
///
/// # Errors
/// When the workbook is damaged, or is not a Cropster export.
pub fn read(bytes: &[u8]) -> anyhow::Result<Recording> {
    // No other kind of workbook is tried: a small `.ods` may repeat a cell a billion times.
    let file = Cursor::new(bytes);
    let mut book = if bytes.starts_with(XLSX_MAGIC) {
        Sheets::Xlsx(Xlsx::new(file)?)
    } else {
        Sheets::Xls(Xls::new(file)?)
    };
    let names: Vec<String> = book.sheet_names().into_iter().take(SHEETS_MAX).collect();
    let mut sheets = Vec::with_capacity(names.len());
    for name in names {
        if let Sheets::Xlsx(book) = &mut book {
            check_extent(book, &name)?;
        }
        let range = book.worksheet_range(&name)?;
        let rows = range.rows().map(|row| row.iter().map(cell).collect()).collect();
        sheets.push(Worksheet { name, rows });
    }
    Ok(cropster(&sheets)?)
}

/// Checks that a sheet has at most [`CELLS_MAX`] cells from its first row and column to its last.
fn check_extent(book: &mut Xlsx<Cursor<&[u8]>>, name: &str) -> anyhow::Result<()> {
    // What is not a sheet of cells, such as a chart, is read as an empty one.
    let Ok(mut cells) = book.worksheet_cells_reader(name) else { return Ok(()) };
    let (mut count, mut first, mut last) = (0_u64, (u32::MAX, u32::MAX), (0, 0));
    while let Some(cell) = cells.next_cell()? {
        count = count.saturating_add(1);
        if !matches!(cell.get_value(), DataRef::Empty) {
            let (row, column) = cell.get_position();
            first = (row.min(first.0), column.min(first.1));
            last = (row.max(last.0), column.max(last.1));
        }
        let rows = u64::from(last.0.saturating_sub(first.0)) + 1;
        let columns = u64::from(last.1.saturating_sub(first.1)) + 1;
        ensure!(
            count.max(rows.saturating_mul(columns)) <= CELLS_MAX,
            "the sheet {name} has more than {CELLS_MAX} cells"
        );
    }
    Ok(())
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
