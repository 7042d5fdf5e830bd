//! Reads the workbooks (`.xls`, `.xlsx`) in which Cropster exports roasts.

mod compound_file;
mod limits;
mod xls;

use std::io::Cursor;

use calamine::{Data, DataRef, Reader as _, Sheets, Xls, Xlsx};
use roast::formats::makers::{Cell, Worksheet, cropster};
use roast::recording::Recording;

use self::limits::{Extent, SHEETS_MAX, WorkbookTotals};

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
/// When the workbook is damaged, would take too much memory, or is not a Cropster export.
pub fn read(bytes: &[u8]) -> anyhow::Result<Recording> {
    // No other kind of workbook is tried: a small `.ods` may repeat a cell a billion times.
    let file = Cursor::new(bytes);
    let mut book = if bytes.starts_with(XLSX_MAGIC) {
        Sheets::Xlsx(Xlsx::new(file)?)
    } else {
        xls::check(bytes)?;
        Sheets::Xls(Xls::new(file)?)
    };
    let names: Vec<String> = book.sheet_names().into_iter().take(SHEETS_MAX).collect();
    let mut totals = WorkbookTotals::default();
    let mut sheets = Vec::with_capacity(names.len());
    for name in names {
        if let Sheets::Xlsx(book) = &mut book {
            check_sheet(book, &name, &mut totals)?;
        }
        let range = book.worksheet_range(&name)?;
        let rows = range.rows().map(|row| row.iter().map(cell).collect()).collect();
        sheets.push(Worksheet { name, rows });
    }
    Ok(cropster(&sheets)?)
}

/// Checks that a sheet of an `.xlsx` and those before it keep their bounds.
fn check_sheet(
    book: &mut Xlsx<Cursor<&[u8]>>,
    name: &str,
    totals: &mut WorkbookTotals,
) -> anyhow::Result<()> {
    // What is not a sheet of cells, such as a chart, is read as an empty one.
    let Ok(mut cells) = book.worksheet_cells_reader(name) else { return Ok(()) };
    let mut extent = Extent::default();
    while let Some(cell) = cells.next_cell()? {
        let (row, column) = cell.get_position();
        match cell.get_value() {
            DataRef::Empty => extent.add_empty(),
            value => {
                let text_bytes = match value {
                    DataRef::String(text) => text.len(),
                    DataRef::SharedString(text) => text.len(),
                    _ => 0,
                };
                totals.add_text(text_bytes as u64)?;
                extent.add(row, column);
            }
        }
        totals.check(extent.cells(), name)?;
    }
    totals.add_sheet(&extent);
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
