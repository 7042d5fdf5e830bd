//! Receipts that wait for their frames, by organisation: one with many does not delay the others.

use ::database::sqlx::{AssertSqlSafe, query_as, query_scalar};
use ::database::{StoreError, on};

use super::{IngestStore, OpenReceipt};

/// Selects the open receipts of an organisation.
const SELECT_OPEN: &str = "\
SELECT s.org_id, s.session_id, s.chain_no, s.completeness, s.receipt, c.next_number, c.gaps, \
       c.last_digest, s.started_ms FROM sessions s JOIN chains c ON c.chain_no = s.chain_no \
WHERE s.org_id = $1 AND s.completeness <> 'complete' AND s.receipt IS NOT NULL ";

impl IngestStore {
    /// Returns the organisations that have open receipts, with one look into an index for each.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn orgs_with_open_receipts(&self) -> Result<Vec<String>, StoreError> {
        let sql = "WITH RECURSIVE o (org_id) AS ( \
             SELECT MIN(org_id) FROM sessions \
             WHERE completeness <> 'complete' AND receipt IS NOT NULL \
             UNION ALL \
             SELECT (SELECT MIN(n.org_id) FROM sessions n WHERE n.completeness <> 'complete' \
                     AND n.receipt IS NOT NULL AND n.org_id > o.org_id) \
             FROM o WHERE o.org_id IS NOT NULL) \
             SELECT org_id FROM o WHERE org_id IS NOT NULL";
        on!(self.database, pool => query_scalar(sql).fetch_all(pool).await)
            .map_err(StoreError::query("listing the organisations with open receipts"))
    }

    /// Returns open receipts of an organisation, the oldest first, after the position `after` in
    /// that order.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open_receipts_of(
        &self,
        org: &str,
        (started_ms, session): (i64, &str),
        limit: i64,
    ) -> Result<Vec<OpenReceipt>, StoreError> {
        let sql = format!(
            "{SELECT_OPEN} AND (s.started_ms > $2 OR (s.started_ms = $2 AND s.session_id > $3)) \
             ORDER BY s.started_ms, s.session_id LIMIT $4"
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org).bind(started_ms).bind(session).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query("listing open receipts"))
    }

    /// Returns the newest open receipts of an organisation, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_open_receipts_of(
        &self,
        org: &str,
        limit: i64,
    ) -> Result<Vec<OpenReceipt>, StoreError> {
        let sql = format!("{SELECT_OPEN} ORDER BY s.started_ms DESC, s.session_id DESC LIMIT $2");
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query("listing the newest open receipts"))
    }
}
