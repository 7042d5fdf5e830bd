//! Storage of missions: insert once, find, list, count.

use std::collections::BTreeMap;

use ::database::machine_alias::is_machine;
use ::database::sqlx::{AssertSqlSafe, query_as};
use ::database::{StoreError, on, on_tx};
use contract::mission::{
    Action, GovernanceDecision, MissionRecord, MissionStatus, NewMission, Priority,
};
use contract::{Actor, EpochMs, OrgId};

use super::KernelStore;
use super::lane::{AWAITING_EVAL, EVAL_POLL_MS, PENDING, RETRY, RUNNING};
use super::mission_row::{MissionRow, columns, to_json};
use super::select::Select;
use crate::governor;

/// The default of `maxAttempts`.
const DEFAULT_MAX_ATTEMPTS: u32 = 5;

/// A mission to be created.
#[derive(Clone, Copy)]
pub struct CreateMission<'a> {
    pub org: &'a OrgId,
    pub mission: &'a NewMission,
    pub id: &'a str,
    /// The idempotency key. Of two creations with the same key, the second returns the mission of
    /// the first.
    pub key: &'a str,
    pub actor: &'a Actor,
    pub now: EpochMs,
}

/// Which missions to list.
#[derive(Debug, Clone, Default)]
pub struct MissionFilter {
    pub statuses: Vec<MissionStatus>,
    pub goal: Option<String>,
    pub claimed_by: Option<String>,
    pub session: Option<String>,
    pub subject: Option<String>,
    pub site: Option<String>,
    pub machine: Option<String>,
    /// The page starts after this mission, in the order of the list: (created, id).
    pub after: Option<(i64, String)>,
    pub limit: i64,
}

impl KernelStore {
    /// Inserts a mission in `tx`. Returns `None` if a mission with this key or id exists.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn insert_mission(
        &self,
        tx: &mut ::database::Tx,
        new: &CreateMission<'_>,
        decision: &GovernanceDecision,
    ) -> Result<Option<MissionRecord>, StoreError> {
        let CreateMission { org, mission, id, key, actor, now } = *new;
        let (status, lane, due) = initial_state(decision, now);
        let part = |name: &str| mission.context.get(name).and_then(serde_json::Value::as_str);
        let session = mission.params.get("sessionId").and_then(serde_json::Value::as_str);
        let urgency = Priority::ALL.iter().position(|p| *p == mission.priority).unwrap_or(1);
        let row: Option<MissionRow> = on_tx!(tx, c => query_as(concat!(
            "INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, lane, \
             due_ms, subject_id, session_id, site_id, machine_id, body, governance, rate_limited, \
             actor, max_attempts, created_ms, updated_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, \
             $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
             ON CONFLICT DO NOTHING RETURNING ", columns!()))
            .bind(org.as_str()).bind(id).bind(key).bind(&mission.goal.title).bind(status.as_str())
            .bind(i64::try_from(urgency).unwrap_or(1)).bind(lane).bind(due)
            .bind(mission.subject_id.as_deref()).bind(session)
            .bind(part("siteId")).bind(part("machineId"))
            .bind(to_json(mission)?).bind(to_json(decision)?)
            .bind(i64::from(decision.action == Action::RetryLater)).bind(to_json(actor)?)
            .bind(i64::from(mission.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS)))
            .bind(mission.created_at.unwrap_or(now).0).bind(now.0)
            .fetch_optional(c).await)
        .map_err(StoreError::query("creating a mission"))?;
        row.map(MissionRow::record).transpose()
    }

    /// Returns a mission by its idempotency key.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mission_by_key(
        &self,
        org: &OrgId,
        key: &str,
    ) -> Result<Option<MissionRecord>, StoreError> {
        let row: Option<MissionRow> =
            on!(self.database, pool => query_as(concat!("SELECT ", columns!(),
            " FROM missions WHERE org_id = $1 AND idempotency_key = $2"))
            .bind(org.as_str()).bind(key).fetch_optional(pool).await)
            .map_err(StoreError::query("looking for a mission by its key"))?;
        row.map(MissionRow::record).transpose()
    }

    /// Returns a mission by its id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mission(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<MissionRecord>, StoreError> {
        let row: Option<MissionRow> =
            on!(self.database, pool => query_as(concat!("SELECT ", columns!(),
            " FROM missions WHERE org_id = $1 AND mission_id = $2"))
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
            .map_err(StoreError::query("reading a mission"))?;
        row.map(MissionRow::record).transpose()
    }

    /// Adds the condition that a mission's machine is `machine`, under any of its ids.
    async fn of_machine(
        &self,
        org: &OrgId,
        mut select: Select,
        machine: &str,
    ) -> Result<Select, StoreError> {
        let ids = self.database.ids_of_machine(org, machine).await?;
        if ids.len() == 1 {
            return Ok(select.equal("machine_id", Some(machine)));
        }
        let named: Vec<String> = ids.iter().map(|id| format!("${}", select.bind(id))).collect();
        // The list has an index; the other condition leaves out these ids at other sites.
        let listed = format!("machine_id IN ({})", named.join(", "));
        let same = is_machine(("site_id", "machine_id"), "$1", &named[0]);
        Ok(select.and(&listed).and(&same))
    }

    /// Returns missions, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn missions(
        &self,
        org: &OrgId,
        filter: &MissionFilter,
    ) -> Result<Vec<MissionRecord>, StoreError> {
        let mut select = Select::of(columns!(), "missions", org.as_str())
            .equal("goal", filter.goal.as_deref())
            .equal("claimed_by", filter.claimed_by.as_deref())
            .equal("session_id", filter.session.as_deref())
            .equal("subject_id", filter.subject.as_deref())
            .equal("site_id", filter.site.as_deref());
        if let Some(machine) = filter.machine.as_deref() {
            select = self.of_machine(org, select, machine).await?;
        }
        if !filter.statuses.is_empty() {
            let parameters: Vec<_> =
                filter.statuses.iter().map(|s| format!("'{}'", s.as_str())).collect();
            select = select.and(&format!("status IN ({})", parameters.join(", ")));
        }
        if let Some((created, id)) = &filter.after {
            let parameter = select.bind(id);
            select = select.and(&format!("(created_ms, mission_id) < ({created}, ${parameter})"));
        }
        let (sql, values) = select.newest(("created_ms", "mission_id"), filter.limit);
        let rows: Vec<MissionRow> = on!(self.database, pool => {
            let mut q = query_as(AssertSqlSafe(sql));
            for value in &values {
                q = q.bind(value);
            }
            q.fetch_all(pool).await
        })
        .map_err(StoreError::query("listing missions"))?;
        rows.into_iter().map(MissionRow::record).collect()
    }

    /// Returns the number of missions in each state, by the state's name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn counts(&self, org: Option<&OrgId>) -> Result<BTreeMap<String, i64>, StoreError> {
        let rows: Vec<(String, i64)> = on!(self.database, pool => query_as(
            "SELECT what, CAST(sum(n) AS BIGINT) FROM mission_counts \
             WHERE CAST($1 AS TEXT) IS NULL OR org_id = $1 GROUP BY what")
            .bind(org.map(OrgId::as_str)).fetch_all(pool).await)
        .map_err(StoreError::query("counting missions"))?;
        Ok(rows.into_iter().collect())
    }

    /// Returns the number of running missions of each of two goals, by the goal. Missions are looked
    /// up in the index of those that may be claimed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn running_of_goals(
        &self,
        goals: &[&str; 2],
    ) -> Result<BTreeMap<String, i64>, StoreError> {
        let sql = format!(
            "SELECT goal, count(*) FROM missions WHERE goal IN ($1, $2) AND urgency IN (0, 1, 2) \
             AND lane = {RUNNING} GROUP BY goal"
        );
        let rows: Vec<(String, i64)> = on!(self.database, pool =>
            query_as(AssertSqlSafe(sql)).bind(goals[0]).bind(goals[1]).fetch_all(pool).await)
        .map_err(StoreError::query("counting running missions"))?;
        Ok(rows.into_iter().collect())
    }
}

/// Returns the status, lane and due time that follow from a decision.
fn initial_state(
    decision: &GovernanceDecision,
    now: EpochMs,
) -> (MissionStatus, Option<i64>, Option<i64>) {
    match decision.action {
        Action::Allow => (MissionStatus::Pending, Some(PENDING), Some(now.0)),
        Action::Quarantine if governor::waits_for_eval(decision) => {
            let due = now.plus_ms(EVAL_POLL_MS);
            (MissionStatus::Quarantined, Some(AWAITING_EVAL), Some(due.0))
        }
        Action::Quarantine => (MissionStatus::Quarantined, None, None),
        Action::Block => (MissionStatus::Blocked, None, None),
        Action::RetryLater => {
            let next = decision.reasons.iter().find_map(|reason| {
                EpochMs::parse_iso(reason.details.get("nextRetryAt")?.as_str()?)
            });
            let due = next.unwrap_or(now).0;
            (MissionStatus::Retry, Some(RETRY), Some(due))
        }
    }
}
