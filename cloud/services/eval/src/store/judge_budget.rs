//! SQL for the judge's budget.

use ::database::sqlx::{query, query_scalar};
use ::database::{StoreError, on};
use contract::{EpochMs, OrgId};

use super::EvalStore;
use crate::judge::budget::{BudgetDay, BudgetUsedUp};

/// Counts a question, unless the budget $3 is used up. Two instances change the row one after the
/// other, and each checks the count that the other left.
const TAKE: &str = "INSERT INTO judge_questions AS q (org_id, day, asked, refused) \
    VALUES ($1, $2, 1, 0) \
    ON CONFLICT (org_id, day) DO UPDATE SET asked = q.asked + 1 WHERE q.asked < $3 \
    RETURNING asked";

impl EvalStore {
    /// Takes one question from an organisation's budget of `per_day` questions, which is at least
    /// one, or returns that it is used up. All instances of eval share the budget.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take_judge_question(
        &self,
        org: &OrgId,
        now: EpochMs,
        per_day: u32,
    ) -> Result<Option<BudgetUsedUp>, StoreError> {
        const DOING: &str = "counting a question to the judge";
        let day = BudgetDay::of(now);
        let asked: Option<i64> = on!(self.database, pool => query_scalar(TAKE)
            .bind(org.as_str()).bind(day.0).bind(i64::from(per_day)).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        match asked {
            None => {
                let refused: Option<i64> = on!(self.database, pool => query_scalar(
                    "UPDATE judge_questions SET refused = refused + 1 \
                     WHERE org_id = $1 AND day = $2 RETURNING refused")
                    .bind(org.as_str()).bind(day.0).fetch_optional(pool).await)
                .map_err(StoreError::query(DOING))?;
                Ok(Some(BudgetUsedUp { until: day.end(), is_first: refused == Some(1) }))
            }
            // The first question of a day. Yesterday is kept: the clock of another instance may be
            // behind.
            Some(1) => {
                on!(self.database, pool => query(
                    "DELETE FROM judge_questions WHERE org_id = $1 AND day < $2")
                    .bind(org.as_str()).bind(day.0.saturating_sub(1)).execute(pool).await.map(drop))
                .map_err(StoreError::query(DOING))?;
                Ok(None)
            }
            Some(_) => Ok(None),
        }
    }
}
