//! A list's query, with each condition there only when it is asked for, so that each has its index.

use std::fmt::Write as _;

/// A `SELECT` of one organisation's rows. Values are bound in order, the organisation first; only our
/// own words and numbers stand in the text.
pub(super) struct Select {
    sql: String,
    values: Vec<String>,
}

impl Select {
    pub fn of(columns: &str, table: &str, org: &str) -> Self {
        let sql = format!("SELECT {columns} FROM {table} WHERE org_id = $1");
        Self { sql, values: vec![org.to_owned()] }
    }

    /// Binds a value; answers its place.
    pub fn bind(&mut self, value: &str) -> usize {
        self.values.push(value.to_owned());
        self.values.len()
    }

    pub fn equal(mut self, column: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            let place = self.bind(value);
            let _ = write!(self.sql, " AND {column} = ${place}");
        }
        self
    }

    /// Any condition of our own words.
    pub fn and(mut self, condition: &str) -> Self {
        let _ = write!(self.sql, " AND {condition}");
        self
    }

    /// The newest first, by time and id, of which `condition` holds; only the newest `looked_at` are
    /// looked at, since no index can tell.
    pub fn newest_where(
        self,
        columns: &str,
        condition: &str,
        (time, id): (&str, &str),
        (looked_at, limit): (i64, i64),
    ) -> (String, Vec<String>) {
        let (sql, values) = self.newest((time, id), looked_at);
        let sql = format!(
            "SELECT {columns} FROM ({sql}) AS newest WHERE {condition} \
             ORDER BY {time} DESC, {id} DESC LIMIT {limit}"
        );
        (sql, values)
    }

    /// The newest first, by time and id.
    pub fn newest(mut self, (time, id): (&str, &str), limit: i64) -> (String, Vec<String>) {
        let _ = write!(self.sql, " ORDER BY {time} DESC, {id} DESC LIMIT {limit}");
        (self.sql, self.values)
    }
}
