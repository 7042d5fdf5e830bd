//! Storage of missions: create once, find, list, count.

use std::collections::BTreeMap;

use ::database::sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use ::database::{StoreError, on, on_tx};
use contract::mission::{
    Action, GovernanceDecision, MissionRecord, MissionStatus, NewMission, Priority, Reason,
};
use contract::{Actor, EpochMs, OrgId};

use super::KernelStore;
use super::lane::{AWAITING_EVAL, EVAL_POLL_MS, PENDING, RETRY};
use super::mission_row::{MissionRow, columns, to_json};
use super::select::Select;
use crate::governor::{self, GovernorConfig};

/// The longest wait for a token, ms: a bucket that never refills is checked once a day.
const TOKEN_WAIT_MAX_MS: f64 = 86_400_000.0;
/// The default of `maxAttempts`.
const DEFAULT_MAX_ATTEMPTS: u32 = 5;

/// The result of creating a mission.
#[derive(Debug)]
pub struct CreateOutcome {
    pub mission: MissionRecord,
    /// False if a mission with this key or id existed; that mission is unchanged.
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
    /// The page starts after this mission, in the order of the list: (created, id).
    pub after: Option<(i64, String)>,
    pub limit: i64,
}

impl KernelStore {
    /// Creates a mission, or returns the existing one with its key. The governor decides, and a
    /// rate-limit token is taken, only for a new mission.
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
    ) -> Result<CreateOutcome, StoreError> {
        self.create_with_promotion_blocker(org, mission, names, None, actor, now).await
    }

    /// Creates a mission in the same way. `against` is eval's reason not to promote its roast, if
    /// any.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn create_with_promotion_blocker(
        &self,
        org: &OrgId,
        mission: &NewMission,
        (id, key): (&str, &str),
        against: Option<Reason>,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<CreateOutcome, StoreError> {
        if let Some(mission) = self.mission_by_key(org, key).await? {
            return Ok(CreateOutcome { mission, new: false });
        }
        let config = self.governor_config(org).await?.config;
        let mut tx = self.database.begin().await?;
        let decision = governor::decide(&config, mission, now);
        let mut decision = governor::apply_promotion_blocker(decision, against);
        if decision.action == Action::Allow {
            decision = self.take_token(&mut tx, &config, org, mission, decision, now).await?;
        }
        let (status, lane, due) = initial_state(&decision, now);
        let part = |name: &str| mission.context.get(name).and_then(serde_json::Value::as_str);
        let session = mission.params.get("sessionId").and_then(serde_json::Value::as_str);
        let urgency = Priority::ALL.iter().position(|p| *p == mission.priority).unwrap_or(1);
        let row: Option<MissionRow> = on_tx!(&mut tx, c => query_as(concat!(
            "INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, lane, \
             due_ms, subject_id, session_id, site_id, machine_id, body, governance, rate_limited, \
             actor, max_attempts, created_ms, updated_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, \
             $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
             ON CONFLICT DO NOTHING RETURNING ", columns!()))
            .bind(org.as_str()).bind(id).bind(key).bind(&mission.goal.title).bind(status.as_str())
            .bind(i64::try_from(urgency).unwrap_or(1)).bind(lane).bind(due)
            .bind(mission.subject_id.as_deref()).bind(session)
            .bind(part("siteId")).bind(part("machineId"))
            .bind(to_json(mission)?).bind(to_json(&decision)?)
            .bind(i64::from(decision.action == Action::RetryLater)).bind(to_json(actor)?)
            .bind(i64::from(mission.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS)))
            .bind(mission.created_at.unwrap_or(now).0).bind(now.0)
            .fetch_optional(c).await)
        .map_err(StoreError::query("creating a mission"))?;
        if let Some(row) = row {
            tx.commit().await?;
            return Ok(CreateOutcome { mission: row.record()?, new: true });
        }
        // Another instance was faster. Rolling back the transaction returns the token.
        drop(tx);
        let found = match self.mission_by_key(org, key).await? {
            Some(mission) => Some(mission),
            None => self.mission(org, id).await?,
        };
        let mission = found.ok_or_else(|| {
            StoreError::row("creating a mission", "it conflicts, but no mission has its key or id")
        })?;
        Ok(CreateOutcome { mission, new: false })
    }

    async fn mission_by_key(
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

    async fn take_token(
        &self,
        tx: &mut ::database::Tx,
        config: &GovernorConfig,
        org: &OrgId,
        mission: &NewMission,
        decision: GovernanceDecision,
        now: EpochMs,
    ) -> Result<GovernanceDecision, StoreError> {
        const DOING: &str = "taking a token";
        let goal = &mission.goal.title;
        let Some(limit) = config.rate_limits.get(goal) else { return Ok(decision) };
        let bucket = governor::bucket_name(mission, org.as_str());
        on_tx!(tx, c => query(
            "INSERT INTO governor_buckets (org_id, bucket, tokens, updated_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (org_id, bucket) DO NOTHING")
            .bind(org.as_str()).bind(&bucket).bind(limit.capacity).bind(now.0)
            .execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let per_ms = limit.refill_per_sec / 1000.0;
        // The lock on the bucket's row serialises its users. A clock that was set back refills
        // nothing.
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
        let wait = ((1.0 - filled) / per_ms).clamp(1.0, TOKEN_WAIT_MAX_MS);
        #[allow(clippy::cast_possible_truncation)] // at most a day
        let next = now.plus_ms(wait.ceil() as i64);
        Ok(governor::rate_limited(goal, &bucket, next, now))
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
