//! Makes an index of each partition of `frames` before the migration that makes the index of the
//! whole table. PostgreSQL cannot make that one concurrently: it would block all frames that arrive
//! until it has read the table. With an index of every partition it only joins them.

use sqlx::{AssertSqlSafe, PgConnection, query, query_as, query_scalar};

use crate::StoreError;

const DOING: &str = "making the indexes of partitions";

/// The migration that makes the index of the whole table.
pub(crate) const VERSION: i64 = 25;

/// Makes the indexes that do not exist yet. An attempt that was interrupted leaves an unusable one,
/// which is made again.
pub(crate) async fn make(connection: &mut PgConnection) -> Result<(), StoreError> {
    let partitions: Vec<(String, String)> = query_as(
        "SELECT quote_ident(c.relname::text), quote_ident(left(c.relname::text, 50) || '_of_org') \
         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = to_regclass('frames') AND c.relkind = 'r' ORDER BY c.relname",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(StoreError::query(DOING))?;
    for (partition, index) in partitions {
        let is_valid: Option<bool> =
            query_scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)")
                .bind(&index)
                .fetch_optional(&mut *connection)
                .await
                .map_err(StoreError::query(DOING))?;
        // Safe in SQL: the server has quoted the names.
        if is_valid == Some(false) {
            query(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY {index}")))
                .execute(&mut *connection)
                .await
                .map_err(StoreError::query(DOING))?;
        }
        if is_valid != Some(true) {
            let sql = format!("CREATE INDEX CONCURRENTLY {index} ON {partition} (org_id, arrival)");
            query(AssertSqlSafe(sql))
                .execute(&mut *connection)
                .await
                .map_err(StoreError::query(DOING))?;
        }
    }
    Ok(())
}
