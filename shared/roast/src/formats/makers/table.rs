//! Reads tables with a header line, as makers' programs write them.

/// A table of text cells. Cells are trimmed.
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A row, whose cells are found by the names of their columns.
pub struct Row<'t> {
    header: &'t [String],
    cells: &'t [String],
}

impl Table {
    /// Reads `text` from its header on: the first line, among the first ten, that has all of
    /// `required` as columns. Returns `None` if there is no such line.
    pub fn find(text: &str, separator: u8, required: &[&str]) -> Option<Self> {
        let text = text.trim_start_matches('\u{feff}');
        let mut start = 0;
        for line in text.split_inclusive('\n').take(10) {
            let cells: Vec<&str> = line
                .split(char::from(separator))
                .map(|cell| cell.trim().trim_matches('"').trim())
                .collect();
            if required.iter().all(|name| cells.contains(name)) {
                return Self::read(&text[start..], separator);
            }
            start += line.len();
        }
        None
    }

    fn read(text: &str, separator: u8) -> Option<Self> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(separator)
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes());
        let owned = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect();
        let header: Vec<String> = owned(reader.headers().ok()?);
        let rows = reader.records().take(super::ROWS_MAX).filter_map(Result::ok);
        let rows = rows.map(|record| owned(&record)).collect();
        Some(Self { header, rows })
    }

    /// Returns the rows below the header.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|cells| Row { header: &self.header, cells })
    }
}

impl Row<'_> {
    /// Returns the text of a column; `None` if the cell is empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        let at = self.header.iter().position(|column| column == name)?;
        self.cells.get(at).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// Returns the number in a column. The decimal separator may be a comma.
    pub fn number(&self, name: &str) -> Option<f64> {
        let text = self.text(name)?;
        let number = text.parse::<f64>().or_else(|_| text.replace(',', ".").parse());
        number.ok().filter(|value| value.is_finite())
    }

    /// Returns the number in the first of several columns that has one.
    pub fn first(&self, names: &[&str]) -> Option<f64> {
        names.iter().find_map(|name| self.number(name))
    }
}
