//! Missions: made once, found again, listed, counted.

use std::collections::BTreeMap;

use ::store::sqlx::{AssertSqlSafe, FromRow, query, query_as, query_scalar};
use ::store::{StoreError, on, on_tx};
use contract::mission::{
    Action, GovernanceDecision, MissionRecord, MissionStatus, NewMission, Priority, Reason,
};
use contract::{Actor, EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::KernelStore;
use super::select::Select;
use crate::governor::{self, GovernorConfig};

/// A bucket that never fills again is looked at once a day.
const LATEST_MS: f64 = 86_400_000.0;
/// Attempts when a creator asks for none.
const ATTEMPTS: u32 = 5;

/// A mission as it is stored.
#[derive(Debug, FromRow)]
pub(super) struct Row {
    mission_id: String,
    idempotency_key: String,
    status: String,
    body: String,
    governance: Option<String>,
    actor: Option<String>,
    attempts: i64,
    max_attempts: i64,
    lane: Option<i64>,
    due_ms: Option<i64>,
    created_ms: i64,
    updated_ms: i64,
    claimed_by: Option<String>,
    claimed_ms: Option<i64>,
    lease_id: Option<String>,
    lease_expires_ms: Option<i64>,
    heartbeat_ms: Option<i64>,
    completed_ms: Option<i64>,
    failed_ms: Option<i64>,
    result: Option<String>,
    last_error: Option<String>,
}

/// What [`Row`] reads, in SQL.
macro_rules! columns {
    () => {
        "mission_id, idempotency_key, status, body, governance, actor, attempts, max_attempts, \
         lane, due_ms, created_ms, updated_ms, claimed_by, claimed_ms, lease_id, \
         lease_expires_ms, heartbeat_ms, completed_ms, failed_ms, result, last_error"
    };
}
pub(super) use columns;

impl Row {
    pub(super) fn record(self) -> Result<MissionRecord, StoreError> {
        const DOING: &str = "reading a mission";
        let count = |n: i64| u32::try_from(n).map_err(|e| StoreError::row(DOING, e));
        let mission: NewMission = json(DOING, &self.body)?;
        let status = MissionStatus::parse(&self.status)
            .ok_or_else(|| StoreError::row(DOING, format!("status {}", self.status)))?;
        let waits = status == MissionStatus::Retry && self.lane.is_some();
        Ok(MissionRecord {
            id: self.mission_id.clone(),
            mission_id: self.mission_id,
            idempotency_key: self.idempotency_key,
            goal: mission.goal,
            status,
            priority: mission.priority,
            attempts: count(self.attempts)?,
            max_attempts: count(self.max_attempts)?,
            subject_id: mission.subject_id,
            params: mission.params,
            context: mission.context,
            constraints: mission.constraints,
            requested_by: mission.requested_by,
            signals: mission.signals,
            governance: optional(DOING, self.governance.as_deref())?,
            created_at: EpochMs(self.created_ms),
            updated_at: EpochMs(self.updated_ms),
            next_retry_at: self.due_ms.filter(|_| waits).map(EpochMs),
            claimed_by: self.claimed_by,
            claimed_at: self.claimed_ms.map(EpochMs),
            lease_id: self.lease_id,
            lease_expires_at: self.lease_expires_ms.map(EpochMs),
            last_heartbeat_at: self.heartbeat_ms.map(EpochMs),
            completed_at: self.completed_ms.map(EpochMs),
            failed_at: self.failed_ms.map(EpochMs),
            result_meta: optional(DOING, self.result.as_deref())?,
            last_error: optional(DOING, self.last_error.as_deref())?,
            actor: optional(DOING, self.actor.as_deref())?,
        })
    }
}

pub(super) fn json<T: DeserializeOwned>(doing: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::row(doing, error))
}

fn optional<T: DeserializeOwned>(
    doing: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, StoreError> {
    text.map(|text| json(doing, text)).transpose()
}

pub(super) fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::row("writing JSON", error))
}

/// What became of a creation.
#[derive(Debug)]
pub struct Created {
    pub mission: MissionRecord,
    /// False: there was one with this key, and it is unchanged.
    pub new: bool,
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
    /// After this one, in the order of the list: (created, id).
    pub after: Option<(i64, String)>,
    pub limit: i64,
}

impl KernelStore {
    /// Makes a mission, or finds the one that has its key. The governor is asked, and its token
    /// spent, only for a new one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn create(
        &self,
        org: &OrgId,
        mission: &NewMission,
        names: (&str, &str),
        actor: &Actor,
        now: EpochMs,
    ) -> Result<Created, StoreError> {
        self.create_unless(org, mission, names, None, actor, now).await
    }

    /// The same, of a roast that eval has something `against`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn create_unless(
        &self,
        org: &OrgId,
        mission: &NewMission,
        (id, key): (&str, &str),
        against: Option<Reason>,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<Created, StoreError> {
        if let Some(mission) = self.by_key(org, key).await? {
            return Ok(Created { mission, new: false });
        }
        let config = self.governor_config(org).await?.config;
        let mut tx = self.database.begin().await?;
        let decision = governor::decide(&config, mission, now);
        let mut decision = governor::after_eval(decision, against);
        if decision.action == Action::Allow {
            decision = self.take_token(&mut tx, &config, org, mission, decision, now).await?;
        }
        let (status, lane, due) = placed(&decision, now);
        let part = |name: &str| mission.context.get(name).and_then(serde_json::Value::as_str);
        let session = mission.params.get("sessionId").and_then(serde_json::Value::as_str);
        let urgency = Priority::ALL.iter().position(|p| *p == mission.priority).unwrap_or(1);
        let row: Option<Row> = on_tx!(&mut tx, c => query_as(concat!(
            "INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, lane, \
             due_ms, subject_id, session_id, site_id, machine_id, body, governance, rate_limited, \
             actor, max_attempts, created_ms, updated_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, \
             $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
             ON CONFLICT DO NOTHING RETURNING ", columns!()))
            .bind(org.as_str()).bind(id).bind(key).bind(&mission.goal.title).bind(status.as_str())
            .bind(i64::try_from(urgency).unwrap_or(1)).bind(lane).bind(due)
            .bind(mission.subject_id.as_deref()).bind(session)
            .bind(part("siteId")).bind(part("machineId"))
            .bind(text(mission)?).bind(text(&decision)?)
            .bind(i64::from(decision.action == Action::RetryLater)).bind(text(actor)?)
            .bind(i64::from(mission.max_attempts.unwrap_or(ATTEMPTS)))
            .bind(mission.created_at.unwrap_or(now).0).bind(now.0)
            .fetch_optional(c).await)
        .map_err(StoreError::query("making a mission"))?;
        if let Some(row) = row {
            tx.commit().await?;
            return Ok(Created { mission: row.record()?, new: true });
        }
        // Another instance was faster; the token goes back with the transaction.
        drop(tx);
        let found = match self.by_key(org, key).await? {
            Some(mission) => Some(mission),
            None => self.mission(org, id).await?,
        };
        let mission = found.ok_or_else(|| {
            StoreError::row("making a mission", "it was refused, and there is none like it")
        })?;
        Ok(Created { mission, new: false })
    }

    async fn by_key(&self, org: &OrgId, key: &str) -> Result<Option<MissionRecord>, StoreError> {
        let row: Option<Row> = on!(self.database, pool => query_as(concat!("SELECT ", columns!(),
            " FROM missions WHERE org_id = $1 AND idempotency_key = $2"))
            .bind(org.as_str()).bind(key).fetch_optional(pool).await)
        .map_err(StoreError::query("looking for a mission by its key"))?;
        row.map(Row::record).transpose()
    }

    /// # Errors
    /// When the database does not answer.
    pub async fn mission(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<MissionRecord>, StoreError> {
        let row: Option<Row> = on!(self.database, pool => query_as(concat!("SELECT ", columns!(),
            " FROM missions WHERE org_id = $1 AND mission_id = $2"))
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query("reading a mission"))?;
        row.map(Row::record).transpose()
    }

    /// Missions, the newest first.
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
            .equal("site_id", filter.site.as_deref())
            .equal("machine_id", filter.machine.as_deref());
        if !filter.statuses.is_empty() {
            let words: Vec<_> =
                filter.statuses.iter().map(|s| format!("'{}'", s.as_str())).collect();
            select = select.and(&format!("status IN ({})", words.join(", ")));
        }
        if let Some((created, id)) = &filter.after {
            let place = select.bind(id);
            select = select.and(&format!("(created_ms, mission_id) < ({created}, ${place})"));
        }
        let (sql, values) = select.newest(("created_ms", "mission_id"), filter.limit);
        let rows: Vec<Row> = on!(self.database, pool => {
            let mut q = query_as(AssertSqlSafe(sql));
            for value in &values {
                q = q.bind(value);
            }
            q.fetch_all(pool).await
        })
        .map_err(StoreError::query("listing missions"))?;
        rows.into_iter().map(Row::record).collect()
    }

    /// How many missions are in each state, by its name.
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

    async fn take_token(
        &self,
        tx: &mut ::store::Tx,
        config: &GovernorConfig,
        org: &OrgId,
        mission: &NewMission,
        decision: GovernanceDecision,
        now: EpochMs,
    ) -> Result<GovernanceDecision, StoreError> {
        const DOING: &str = "taking a token";
        let goal = &mission.goal.title;
        let Some(limit) = config.rate_limits.get(goal) else { return Ok(decision) };
        let bucket = governor::bucket(mission, org.as_str());
        on_tx!(tx, c => query(
            "INSERT INTO governor_buckets (org_id, bucket, tokens, updated_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (org_id, bucket) DO NOTHING")
            .bind(org.as_str()).bind(&bucket).bind(limit.capacity).bind(now.0)
            .execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let per_ms = limit.refill_per_sec / 1000.0;
        // The bucket's row orders those who take from it. A clock that went back fills nothing.
        let filled: f64 = on_tx!(tx, c => query_scalar(
            "UPDATE governor_buckets SET tokens = CASE \
               WHEN $3 <= updated_ms THEN tokens \
               WHEN tokens + ($3 - updated_ms) * $4 > $5 THEN $5 \
               ELSE tokens + ($3 - updated_ms) * $4 END, \
             updated_ms = CASE WHEN $3 > updated_ms THEN $3 ELSE updated_ms END \
             WHERE org_id = $1 AND bucket = $2 RETURNING tokens")
            .bind(org.as_str()).bind(&bucket).bind(now.0).bind(per_ms).bind(limit.capacity)
            .fetch_one(c).await)
        .map_err(StoreError::query(DOING))?;
        if filled >= 1.0 {
            on_tx!(tx, c => query("UPDATE governor_buckets SET tokens = tokens - 1 \
                                   WHERE org_id = $1 AND bucket = $2")
                .bind(org.as_str()).bind(&bucket).execute(c).await.map(drop))
            .map_err(StoreError::query(DOING))?;
            return Ok(decision);
        }
        let wait = ((1.0 - filled) / per_ms).clamp(1.0, LATEST_MS);
        #[allow(clippy::cast_possible_truncation)] // at most a day
        let next = now.plus(wait.ceil() as i64);
        Ok(governor::rate_limited(goal, &bucket, next, now))
    }
}

/// Status, lane and due time of a decision.
fn placed(
    decision: &GovernanceDecision,
    now: EpochMs,
) -> (MissionStatus, Option<i64>, Option<i64>) {
    match decision.action {
        Action::Allow => (MissionStatus::Pending, Some(super::queue::PENDING), Some(now.0)),
        Action::Quarantine if governor::waits_for_eval(decision) => {
            let due = now.plus(super::gated::AGAIN_MS);
            (MissionStatus::Quarantined, Some(super::gated::WAITING), Some(due.0))
        }
        Action::Quarantine => (MissionStatus::Quarantined, None, None),
        Action::Block => (MissionStatus::Blocked, None, None),
        Action::RetryLater => {
            let next = decision.reasons.iter().find_map(|reason| {
                EpochMs::parse_iso(reason.details.get("nextRetryAt")?.as_str()?)
            });
            let due = next.unwrap_or(now).0;
            (MissionStatus::Retry, Some(super::queue::RETRY), Some(due))
        }
    }
}
