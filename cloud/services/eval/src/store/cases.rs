//! SQL for golden cases.

use ::database::sqlx::{AssertSqlSafe, query, query_as};
use ::database::{StoreError, on, on_tx};
use contract::OrgId;
use serde_json::json;

use super::{ChangedBy, EvalStore, read, text};
use crate::golden::GoldenCase;

/// Which cases to list.
#[derive(Debug, Clone, Default)]
pub struct CaseFilter {
    pub machine: Option<String>,
    pub archived: bool,
    /// The page begins after the case with this creation time (ms) and id.
    pub after: Option<(i64, String)>,
    pub limit: i64,
}

impl EvalStore {
    /// Stores a new case and its audit entry.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_case(
        &self,
        org: &OrgId,
        case: &GoldenCase,
        by: ChangedBy<'_>,
    ) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        on_tx!(&mut tx, c => query(
            "INSERT INTO golden_cases (org_id, case_id, machine_id, archived, created_ms, body) \
             VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(org.as_str()).bind(&case.id).bind(&case.case.machine_id)
            .bind(i64::from(case.case.archived)).bind(case.created_at.0).bind(text(case)?)
            .execute(c).await.map(drop))
        .map_err(StoreError::query("storing a golden case"))?;
        let details = json!({"case": case});
        Self::audit(&mut tx, org, by, ("golden-case.create", &case.id, details)).await?;
        tx.commit().await
    }

    /// Returns a case and its version.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn case(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<(i64, GoldenCase)>, StoreError> {
        const DOING: &str = "reading a golden case";
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT version, body FROM golden_cases WHERE org_id = $1 AND case_id = $2")
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|(version, body)| Ok((version, read(DOING, &body)?))).transpose()
    }

    /// Replaces version `before` of the case with `case`. Returns `false`, and changes nothing, if
    /// there is a newer version.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn change_case(
        &self,
        org: &OrgId,
        before: i64,
        case: &GoldenCase,
        by: ChangedBy<'_>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.database.begin().await?;
        let changed = on_tx!(&mut tx, c => query(
            "UPDATE golden_cases SET machine_id = $4, archived = $5, body = $6, version = version + 1 \
             WHERE org_id = $1 AND case_id = $2 AND version = $3")
            .bind(org.as_str()).bind(&case.id).bind(before).bind(&case.case.machine_id)
            .bind(i64::from(case.case.archived)).bind(text(case)?)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("changing a golden case"))?;
        if changed {
            let details = json!({"version": before.saturating_add(1), "case": case});
            Self::audit(&mut tx, org, by, ("golden-case.change", &case.id, details)).await?;
            tx.commit().await?;
        }
        Ok(changed)
    }

    /// Lists cases, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cases(
        &self,
        org: &OrgId,
        filter: &CaseFilter,
    ) -> Result<Vec<GoldenCase>, StoreError> {
        const DOING: &str = "listing golden cases";
        // A machine has the cases of all its ids.
        let ids = match &filter.machine {
            Some(machine) => self.database.ids_of_machine(org, machine).await?,
            None => Vec::new(),
        };
        let named: Vec<String> = (5..).zip(&ids).map(|(n, _)| format!("${n}")).collect();
        let machine = if named.is_empty() {
            String::new()
        } else {
            format!("AND machine_id IN ({})", named.join(", "))
        };
        let sql = format!(
            "SELECT body FROM golden_cases WHERE org_id = $1 AND archived = $2 \
             AND (created_ms, case_id) < ($3, $4) {machine} \
             ORDER BY created_ms DESC, case_id DESC LIMIT {}",
            filter.limit
        );
        let (time, id) = filter.after.clone().unwrap_or((i64::MAX, String::new()));
        let rows: Vec<(String,)> = on!(self.database, pool => {
            let q = query_as(AssertSqlSafe(sql)).bind(org.as_str()).bind(i64::from(filter.archived))
                .bind(time).bind(id);
            ids.iter().fold(q, ::database::sqlx::query::QueryAs::bind).fetch_all(pool).await
        })
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|(body,)| read(DOING, body)).collect()
    }
}
