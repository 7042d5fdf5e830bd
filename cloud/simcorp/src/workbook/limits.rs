//! The bounds on what a workbook may take, whatever the size of its file.

/// The most sheets that are read. A Cropster export has two, and one for each curve.
pub const SHEETS_MAX: usize = 64;
/// The most cells of all sheets, empty ones included: those between the first and the last cell of a
/// sheet take memory. A recording of an hour at 10 Hz with 50 columns has fewer.
pub const CELLS_MAX: u64 = 2_000_000;
/// The most bytes of text in cells. Cells share texts in the file, and have copies in memory.
const TEXT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The most bytes of formulas in an `.xls`: each becomes a text up to a hundred times as long. An
/// export has no formulas.
const FORMULA_BYTES_MAX: u64 = 1024 * 1024;
/// The largest `.xls`, in bytes: nearly a million numbers.
pub const XLS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a workbook is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkbookLimit {
    #[error("the workbook is larger than {XLS_BYTES_MAX} bytes")]
    Bytes,
    #[error("the workbook has more than {SHEETS_MAX} sheets")]
    Sheets,
    #[error("the sheets up to {sheet} have more than {CELLS_MAX} cells")]
    Cells {
        /// The name of a sheet, or its number.
        sheet: String,
    },
    #[error("the cells of the workbook have more than {TEXT_BYTES_MAX} bytes of text")]
    Text,
    #[error("the workbook has more than {FORMULA_BYTES_MAX} bytes of formulas")]
    Formulas,
    #[error("the workbook is damaged: {0}")]
    Damaged(&'static str),
}

/// What the sheets of a workbook take together.
#[derive(Debug, Default)]
pub struct WorkbookTotals {
    cells: u64,
    text_bytes: u64,
    formula_bytes: u64,
}

impl WorkbookTotals {
    /// Adds the text of a cell.
    ///
    /// # Errors
    /// [`WorkbookLimit::Text`]
    pub fn add_text(&mut self, bytes: u64) -> Result<(), WorkbookLimit> {
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        if self.text_bytes > TEXT_BYTES_MAX { Err(WorkbookLimit::Text) } else { Ok(()) }
    }

    /// Adds the formula of a cell.
    ///
    /// # Errors
    /// [`WorkbookLimit::Formulas`]
    pub fn add_formula(&mut self, bytes: u64) -> Result<(), WorkbookLimit> {
        self.formula_bytes = self.formula_bytes.saturating_add(bytes);
        if self.formula_bytes > FORMULA_BYTES_MAX { Err(WorkbookLimit::Formulas) } else { Ok(()) }
    }

    /// Checks that there is room for a sheet of `cells` cells.
    ///
    /// # Errors
    /// [`WorkbookLimit::Cells`]
    pub fn check(&self, cells: u64, sheet: &str) -> Result<(), WorkbookLimit> {
        if self.cells.saturating_add(cells) > CELLS_MAX {
            return Err(WorkbookLimit::Cells { sheet: sheet.to_owned() });
        }
        Ok(())
    }

    /// Adds a sheet that has been checked.
    pub fn add_sheet(&mut self, extent: &Extent) {
        self.cells = self.cells.saturating_add(extent.cells());
    }
}

/// The cells of a sheet, from its first row and column to its last.
#[derive(Debug, Default)]
pub struct Extent {
    /// The cells in the file: one may be there several times.
    count: u64,
    /// The first and the last (row, column).
    bounds: Option<((u32, u32), (u32, u32))>,
}

impl Extent {
    /// Adds a cell.
    pub fn add(&mut self, row: u32, column: u32) {
        self.count = self.count.saturating_add(1);
        let (first, last) = self.bounds.unwrap_or(((row, column), (row, column)));
        self.bounds =
            Some(((first.0.min(row), first.1.min(column)), (last.0.max(row), last.1.max(column))));
    }

    /// Adds a cell without content, which takes memory only while the sheet is read.
    pub const fn add_empty(&mut self) {
        self.count = self.count.saturating_add(1);
    }

    /// Returns how many cells the sheet takes, empty ones included.
    pub fn cells(&self) -> u64 {
        let Some((first, last)) = self.bounds else { return self.count };
        let side = |from: u32, to: u32| u64::from(to.saturating_sub(from)).saturating_add(1);
        let area = side(first.0, last.0).saturating_mul(side(first.1, last.1));
        area.max(self.count)
    }
}
