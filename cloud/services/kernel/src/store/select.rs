//! Builder of list queries. A condition is included only if it is requested, so that each query has
//! its index.

use std::fmt::Write as _;

/// A `SELECT` of one organisation's rows. Values are bound in order, the organisation first; the
/// SQL text must contain only this program's own words and numbers.
pub(super) struct Select {
    sql: String,
    values: Vec<String>,
}

impl Select {
    pub fn of(columns: &str, table: &str, org: &str) -> Self {
        let sql = format!("SELECT {columns} FROM {table} WHERE org_id = $1");
        Self { sql, values: vec![org.to_owned()] }
    }

    /// Binds a value and returns the number of its placeholder.
    pub fn bind(&mut self, value: &str) -> usize {
        self.values.push(value.to_owned());
        self.values.len()
    }

    pub fn equal(mut self, column: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            let parameter = self.bind(value);
            let _ = write!(self.sql, " AND {column} = ${parameter}");
        }
        self
    }

    /// Adds a condition, whose text must be this program's own.
    pub fn and(mut self, condition: &str) -> Self {
        let _ = write!(self.sql, " AND {condition}");
        self
    }

    /// Returns the query of the rows for which `condition` holds, newest first by time and id. It
    /// examines only the newest `looked_at` rows, because no index covers the condition.
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

    /// Returns the query of the rows, newest first by time and id.
    pub fn newest(mut self, (time, id): (&str, &str), limit: i64) -> (String, Vec<String>) {
        let _ = write!(self.sql, " ORDER BY {time} DESC, {id} DESC LIMIT {limit}");
        (self.sql, self.values)
    }
}
