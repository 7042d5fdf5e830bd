//! Finds a machine under its present id and its earlier ones (`machine_names`). Rows keep the id
//! under which their machine sent them; ingestion writes the table.

use contract::OrgId;
use sqlx::query_scalar;

use crate::{Database, StoreError, on};

/// Pairs each id with the ids of the same machine, its own among them.
const SAME: &str = "FROM machine_names asked JOIN machine_names other \
    ON other.org_id = asked.org_id AND other.site_id = asked.site_id \
    AND COALESCE(other.current_id, other.machine_id) = COALESCE(asked.current_id, asked.machine_id)";

/// Returns the SQL condition that `site` and `machine` (columns) name the machine with the id in
/// the parameter `id`, of the organisation in the parameter `org`. Every id of an alias finds the
/// rows of all its ids, at the site of the alias.
#[must_use]
pub fn is_machine((site, machine): (&str, &str), org: &str, id: &str) -> String {
    format!(
        "({machine} = {id} OR ({site}, {machine}) IN \
         (SELECT other.site_id, other.machine_id {SAME} WHERE asked.org_id = {org} \
         AND asked.machine_id = {id}))"
    )
}

impl Database {
    /// Returns the ids of the machine with the id `id`, whatever their sites: this one first, then
    /// those of its aliases.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ids_of_machine(&self, org: &OrgId, id: &str) -> Result<Vec<String>, StoreError> {
        let sql = format!(
            "SELECT DISTINCT other.machine_id {SAME} \
             WHERE asked.org_id = $1 AND asked.machine_id = $2 AND other.machine_id <> $2 \
             ORDER BY other.machine_id"
        );
        let others: Vec<String> = on!(self, pool => query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(org.as_str()).bind(id).fetch_all(pool).await)
        .map_err(StoreError::query("looking for the other ids of a machine"))?;
        Ok(std::iter::once(id.to_owned()).chain(others).collect())
    }
}
