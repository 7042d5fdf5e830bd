//! Missions that wait for eval's decision about their roast. Eval is queried until it decides.

use ::database::sqlx::{AssertSqlSafe, query, query_as};
use ::database::{StoreError, on};
use contract::mission::{Action, GovernanceDecision, MissionRecord};
use contract::{EpochMs, OrgId};

use super::KernelStore;
use super::lane::{AWAITING_EVAL, EVAL_POLL_MS, PENDING};
use super::mission_row::{MissionRow, columns, to_json};

impl KernelStore {
    /// Returns missions about which eval must be queried now, at most `limit` of each urgency, the
    /// organisations in turn. Other instances do not receive them for 15 s.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn waiting_for_eval(
        &self,
        now: EpochMs,
        limit: i64,
    ) -> Result<Vec<(OrgId, MissionRecord)>, StoreError> {
        const DOING: &str = "listing missions that wait for eval";
        let mut missions = Vec::new();
        for urgency in 0..3 {
            let sql = format!(
                "UPDATE missions SET due_ms = $2 WHERE (org_id, mission_id) IN \
                 (SELECT org_id, mission_id FROM (SELECT org_id, mission_id, due_ms, \
                    ROW_NUMBER() OVER (PARTITION BY org_id ORDER BY due_ms) AS turn \
                    FROM missions WHERE urgency = {urgency} AND lane = {AWAITING_EVAL} \
                    AND due_ms <= $1) AS due ORDER BY turn, due_ms LIMIT $3) \
                 AND lane = {AWAITING_EVAL} AND due_ms <= $1 RETURNING {}",
                columns!()
            );
            let rows: Vec<MissionRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
                .bind(now.0).bind(now.plus_ms(EVAL_POLL_MS).0).bind(limit).fetch_all(pool).await)
            .map_err(StoreError::query(DOING))?;
            for row in rows {
                match with_org(row) {
                    Ok(mission) => missions.push(mission),
                    // It does not block the others.
                    Err(error) => tracing::warn!(%error, "skipped a mission that waits for eval"),
                }
            }
        }
        Ok(missions)
    }

    /// Stores eval's decision: the mission may run, or waits for a person's approval.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn record_eval_decision(
        &self,
        org: &OrgId,
        id: &str,
        decision: &GovernanceDecision,
        now: EpochMs,
    ) -> Result<(), StoreError> {
        let allowed = decision.action == Action::Allow;
        let status = if allowed { "PENDING" } else { "QUARANTINED" };
        let lane = allowed.then_some(PENDING);
        on!(self.database, pool => query(
            "UPDATE missions SET status = $3, lane = $4, due_ms = $5, updated_ms = $5, \
             governance = $6 WHERE org_id = $1 AND mission_id = $2 AND lane = $7")
            .bind(org.as_str()).bind(id).bind(status).bind(lane).bind(now.0).bind(to_json(decision)?)
            .bind(AWAITING_EVAL).execute(pool).await.map(drop))
        .map_err(StoreError::query("storing eval's decision"))
    }
}

/// Reads a mission and its organisation.
fn with_org(row: MissionRow) -> Result<(OrgId, MissionRecord), StoreError> {
    let mission = row.record()?;
    let org = mission.context.get("orgId").and_then(serde_json::Value::as_str);
    let org = OrgId::new(org.unwrap_or_default());
    Ok((org.map_err(|error| StoreError::row("reading a mission", error))?, mission))
}
