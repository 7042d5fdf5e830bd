//! How commands print results: as a table for people, or as JSON for programs, one object per line.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// A table with a header
    #[default]
    Table,
    /// One JSON object per line
    Json,
}

impl Output {
    #[must_use]
    pub fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Prints rows: as a table with the headings `heads` and the `cells` of each row, or each row
    /// as JSON.
    pub fn rows<T: Serialize>(
        self,
        heads: &[&str],
        rows: &[T],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> anyhow::Result<()> {
        if self.is_json() {
            for row in rows {
                println!("{}", serde_json::to_string(row)?);
            }
            return Ok(());
        }
        let table: Vec<Vec<String>> = rows.iter().map(cells).collect();
        let width = |column: usize| {
            let all = table.iter().filter_map(|row| row.get(column));
            let widest = all.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(heads.get(column).map_or(0, |head| head.len()))
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        if !table.is_empty() {
            let heads: Vec<String> = heads.iter().map(|head| head.to_uppercase()).collect();
            println!("{}", line(&heads));
        }
        for row in &table {
            println!("{}", line(row));
        }
        Ok(())
    }

    /// Prints the result of an action: `sentence`, or `thing` as JSON.
    pub fn done<T: Serialize>(self, thing: &T, sentence: &str) -> anyhow::Result<()> {
        if self.is_json() {
            println!("{}", serde_json::to_string(thing)?);
        } else {
            println!("{sentence}");
        }
        Ok(())
    }
}
