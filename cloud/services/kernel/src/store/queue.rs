//! The queue: claims, leases, and how a mission ends. Every step is one conditional statement, so
//! that of two concurrent attempts exactly one succeeds.

use std::fmt::Write as _;

use ::database::sqlx::{AssertSqlSafe, query_as, query_scalar};
use ::database::{StoreError, on, on_tx};
use contract::mission::{
    Action, Confidence, Decider, GovernanceDecision, LastError, MissionRecord, MissionStatus,
    Priority, Reason,
};
use contract::{Actor, EpochMs, OrgId};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::KernelStore;
use super::lane::{PENDING, RETRY, RUNNING};
use super::mission_row::{MissionRow, columns, to_json};
use super::turns::waiting_sql;
use crate::governor::governor_decision;

/// The wait after the first failure, ms; it doubles with each further failure.
const RETRY_DELAY_MS: i64 = 2_000;
const RETRY_DELAY_MAX_MS: i64 = 900_000;
/// Why a worker's step is refused while the mission runs.
const LEASE_LOST: &str = "the lease has expired or belongs to another worker";
/// The most missions that one pass quarantines.
const QUARANTINE_BATCH_MAX: i64 = 100;

/// The result of a step.
#[derive(Debug)]
pub enum Transition {
    Done(Box<MissionRecord>),
    /// No mission has this id.
    NotFound,
    /// The mission's state does not allow the step; the text has the state and the reason.
    Conflict(String),
}

/// How an attempt failed.
#[derive(Debug, Clone)]
pub struct AttemptFailure {
    pub error: LastError,
    /// False if another attempt will not help.
    pub retryable: bool,
}

/// Returns the condition that a mission has one of `goals` goals, whose parameters begin at number
/// `first`; empty for any goal.
pub(super) fn in_goals(goals: usize, first: usize) -> String {
    if goals == 0 {
        return String::new();
    }
    let parameters: Vec<_> = (first..).take(goals).map(|number| format!("${number}")).collect();
    format!(" AND goal IN ({})", parameters.join(", "))
}

impl KernelStore {
    /// Claims the most urgent available mission for a worker. Of one urgency: pending missions
    /// first, then retries that are due, then missions whose worker was lost; each in order of
    /// time. A worker of all organisations serves those that wait in turn.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn claim(
        &self,
        org: Option<&OrgId>,
        worker: &str,
        goals: &[String],
        lease: (&str, u32),
        now: EpochMs,
    ) -> Result<Option<MissionRecord>, StoreError> {
        if let Some(org) = org {
            return self.claim_of(Some(org.as_str()), worker, goals, lease, now).await;
        }
        if self.turns.is_list_due(goals, Instant::now()) {
            self.turns.add(goals, self.waiting_orgs(goals, now).await?);
        }
        while let Some(org) = self.turns.next(goals) {
            let claimed = self.claim_of(Some(&org), worker, goals, lease, now).await?;
            if claimed.is_some() {
                return Ok(claimed);
            }
            self.turns.remove(goals, &org);
        }
        self.claim_of(None, worker, goals, lease, now).await
    }

    /// Claims the most urgent available mission of one organisation, or of all.
    async fn claim_of(
        &self,
        org: Option<&str>,
        worker: &str,
        goals: &[String],
        (lease_id, lease_ms): (&str, u32),
        now: EpochMs,
    ) -> Result<Option<MissionRecord>, StoreError> {
        let sql = self.claim_sql(goals.len(), org.is_some());
        let expires = now.plus_ms(i64::from(lease_ms)).0;
        let _turn = self.database.write_turn().await;
        let row: Option<MissionRow> = on!(self.database, pool => {
            let mut q = query_as(AssertSqlSafe(sql))
                .bind(worker).bind(now.0).bind(lease_id).bind(expires);
            for goal in goals {
                q = q.bind(goal);
            }
            if let Some(org) = org {
                q = q.bind(org);
            }
            q.fetch_optional(pool).await
        })
        .map_err(StoreError::query("claiming a mission"))?;
        row.map(MissionRow::record).transpose()
    }

    /// Returns the organisations that have an available mission of these goals. It looks into an
    /// index for each organisation with open missions, however many those are.
    async fn waiting_orgs(
        &self,
        goals: &[String],
        now: EpochMs,
    ) -> Result<Vec<String>, StoreError> {
        let sql = waiting_sql(goals.len());
        on!(self.database, pool => {
            let mut q = query_scalar(AssertSqlSafe(sql)).bind(now.0);
            for goal in goals {
                q = q.bind(goal);
            }
            q.fetch_all(pool).await
        })
        .map_err(StoreError::query("listing the organisations that wait"))
    }

    /// Returns the statement that searches each urgency and lane in turn and stops at the first
    /// mission. Each search reads the first entry of an index, however many missions wait for a
    /// later time. Pending missions are available without regard to the time.
    fn claim_sql(&self, goals: usize, of_org: bool) -> String {
        let mut conditions = in_goals(goals, 5);
        if of_org {
            let _ = write!(conditions, " AND org_id = ${}", goals.saturating_add(5));
        }
        let lock = if self.database.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
        let mut looks = Vec::new();
        for urgency in 0..Priority::ALL.len() {
            for lane in [PENDING, RETRY, RUNNING] {
                let due = if lane == PENDING { "" } else { " AND due_ms <= $2" };
                looks.push(format!(
                    "SELECT * FROM (SELECT org_id, mission_id FROM missions WHERE urgency = {urgency} \
                     AND lane = {lane} AND attempts < max_attempts{due}{conditions} \
                     ORDER BY due_ms LIMIT 1{lock}) AS look_{urgency}_{lane}"
                ));
            }
        }
        format!(
            "UPDATE missions SET status = 'RUNNING', lane = {RUNNING}, claimed_by = $1, \
             claimed_ms = $2, heartbeat_ms = $2, updated_ms = $2, lease_id = $3, \
             lease_expires_ms = $4, due_ms = $4, attempts = attempts + 1 \
             WHERE (org_id, mission_id) = \
             (SELECT org_id, mission_id FROM ({}) AS looks LIMIT 1) RETURNING {}",
            looks.join(" UNION ALL "),
            columns!()
        )
    }

    /// Renews a worker's lease for its full duration.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn heartbeat(
        &self,
        org: &OrgId,
        id: &str,
        (lease_id, worker): (&str, Option<&str>),
        lease_ms: u32,
        now: EpochMs,
    ) -> Result<Transition, StoreError> {
        let row: Option<MissionRow> = on!(self.database, pool => query_as(concat!(
            "UPDATE missions SET lease_expires_ms = $4, due_ms = $4, heartbeat_ms = $5, updated_ms = $5 \
             WHERE org_id = $1 AND mission_id = $2 AND status = 'RUNNING' AND lease_id = $3 \
             AND lease_expires_ms > $5 AND (CAST($6 AS TEXT) IS NULL OR claimed_by = $6) RETURNING ",
            columns!()))
            .bind(org.as_str()).bind(id).bind(lease_id).bind(now.plus_ms(i64::from(lease_ms)).0)
            .bind(now.0).bind(worker).fetch_optional(pool).await)
        .map_err(StoreError::query("renewing a lease"))?;
        self.transition_result(org, id, row, LEASE_LOST).await
    }

    /// Marks a mission as done. Without a lease id this succeeds only while the lease is valid.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn complete(
        &self,
        org: &OrgId,
        id: &str,
        lease_id: Option<&str>,
        result: Option<&Map<String, Value>>,
        now: EpochMs,
    ) -> Result<Transition, StoreError> {
        let result = result.map(to_json).transpose()?;
        let row: Option<MissionRow> = on!(self.database, pool => query_as(concat!(
            "UPDATE missions SET status = 'DONE', lane = NULL, due_ms = NULL, completed_ms = $4, \
             updated_ms = $4, result = $5, claimed_by = NULL, lease_id = NULL, \
             lease_expires_ms = NULL, heartbeat_ms = NULL \
             WHERE org_id = $1 AND mission_id = $2 AND status = 'RUNNING' AND \
             (lease_id = $3 OR (CAST($3 AS TEXT) IS NULL AND lease_expires_ms > $4)) RETURNING ",
            columns!()))
            .bind(org.as_str()).bind(id).bind(lease_id).bind(now.0).bind(result)
            .fetch_optional(pool).await)
        .map_err(StoreError::query("completing a mission"))?;
        self.transition_result(org, id, row, LEASE_LOST).await
    }

    /// Records a failed attempt. The mission is retried after a wait that doubles each time, or it
    /// has failed for good.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn fail(
        &self,
        org: &OrgId,
        id: &str,
        lease_id: Option<&str>,
        failure: &AttemptFailure,
        now: EpochMs,
    ) -> Result<Transition, StoreError> {
        let Some(mission) = self.mission(org, id).await? else { return Ok(Transition::NotFound) };
        let again = failure.retryable && mission.attempts < mission.max_attempts;
        let wait = RETRY_DELAY_MS << mission.attempts.saturating_sub(1).min(16);
        let due = again.then(|| now.plus_ms(wait.min(RETRY_DELAY_MAX_MS)).0);
        // The condition includes `attempts` as read above: a mission that changed since is left
        // alone.
        let row: Option<MissionRow> = on!(self.database, pool => query_as(concat!(
            "UPDATE missions SET status = $5, lane = $6, due_ms = $7, failed_ms = $8, updated_ms = $4, \
             last_error = $9, claimed_by = NULL, lease_id = NULL, lease_expires_ms = NULL, \
             heartbeat_ms = NULL WHERE org_id = $1 AND mission_id = $2 AND status = 'RUNNING' AND \
             (lease_id = $3 OR (CAST($3 AS TEXT) IS NULL AND lease_expires_ms > $4)) \
             AND attempts = $10 RETURNING ", columns!()))
            .bind(org.as_str()).bind(id).bind(lease_id).bind(now.0)
            .bind(if again { "RETRY" } else { "FAILED" }).bind(again.then_some(RETRY)).bind(due)
            .bind((!again).then_some(now.0)).bind(to_json(&failure.error)?)
            .bind(i64::from(mission.attempts)).fetch_optional(pool).await)
        .map_err(StoreError::query("failing a mission"))?;
        self.transition_result(org, id, row, LEASE_LOST).await
    }

    /// Records a person's approval of a quarantined, blocked or failed mission, so that it runs.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn approve(
        &self,
        org: &OrgId,
        id: &str,
        note: Option<&str>,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<Transition, StoreError> {
        let Some(mission) = self.mission(org, id).await? else { return Ok(Transition::NotFound) };
        let reason = Reason::new("HUMAN_APPROVAL", note.unwrap_or("approved"))
            .with("previousStatus", mission.status.as_str());
        let decision = GovernanceDecision {
            action: Action::Allow,
            confidence: mission.governance.map_or_else(Default::default, |g| g.confidence),
            reasons: vec![reason],
            decided_at: now,
            decided_by: Decider::Human,
        };
        let mut tx = self.database.begin().await?;
        let row: Option<MissionRow> = on_tx!(&mut tx, c => query_as(concat!(
            "UPDATE missions SET status = 'PENDING', lane = 0, due_ms = $3, updated_ms = $3, \
             attempts = 0, approved = 1, governance = $4, actor = $5 \
             WHERE org_id = $1 AND mission_id = $2 AND status IN ('QUARANTINED', 'BLOCKED', 'FAILED') RETURNING ", columns!()))
            .bind(org.as_str()).bind(id).bind(now.0).bind(to_json(&decision)?).bind(to_json(actor)?)
            .fetch_optional(c).await)
        .map_err(StoreError::query("approving a mission"))?;
        let details = json!({"note": note, "previousStatus": mission.status.as_str()});
        let change = ("mission.approve", id, details);
        let otherwise = "it does not wait for an approval";
        self.end_change(tx, org, (actor, now), change, row, otherwise).await
    }

    /// Cancels a mission that has not ended, for a person.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cancel(
        &self,
        org: &OrgId,
        id: &str,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<Transition, StoreError> {
        let mut tx = self.database.begin().await?;
        let row: Option<MissionRow> = on_tx!(&mut tx, c => query_as(concat!(
            "UPDATE missions SET status = 'CANCELED', lane = NULL, due_ms = NULL, updated_ms = $3, \
             actor = $4, claimed_by = NULL, lease_id = NULL, lease_expires_ms = NULL, \
             heartbeat_ms = NULL WHERE org_id = $1 AND mission_id = $2 \
             AND status NOT IN ('DONE', 'FAILED', 'CANCELED') RETURNING ", columns!()))
            .bind(org.as_str()).bind(id).bind(now.0).bind(to_json(actor)?).fetch_optional(c).await)
        .map_err(StoreError::query("canceling a mission"))?;
        let change = ("mission.cancel", id, json!({}));
        self.end_change(tx, org, (actor, now), change, row, "it has already ended").await
    }

    /// Makes the next attempt of a mission due at once, for a person.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retry_now(
        &self,
        org: &OrgId,
        id: &str,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<Transition, StoreError> {
        let Some(mission) = self.mission(org, id).await? else { return Ok(Transition::NotFound) };
        let mut decision = mission.governance.unwrap_or_else(|| GovernanceDecision {
            action: Action::Allow,
            confidence: Confidence::Med,
            reasons: Vec::new(),
            decided_at: now,
            decided_by: Decider::Human,
        });
        decision.reasons.push(Reason::new("MANUAL_RETRY_NOW", "a person requested the retry"));
        let mut tx = self.database.begin().await?;
        let row: Option<MissionRow> = on_tx!(&mut tx, c => query_as(concat!(
            "UPDATE missions SET due_ms = $3, updated_ms = $3, governance = $4, actor = $5 \
             WHERE org_id = $1 AND mission_id = $2 AND status = 'RETRY' RETURNING ", columns!()))
            .bind(org.as_str()).bind(id).bind(now.0).bind(to_json(&decision)?).bind(to_json(actor)?)
            .fetch_optional(c).await)
        .map_err(StoreError::query("retrying a mission"))?;
        let change = ("mission.retryNow", id, json!({}));
        self.end_change(tx, org, (actor, now), change, row, "it does not wait for a retry").await
    }

    /// Quarantines missions that have used up their attempts by losing their workers: a mission
    /// that kills one worker would kill the next. A person may examine and approve them again.
    /// Returns how many were quarantined.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn quarantine_poison(&self, now: EpochMs) -> Result<usize, StoreError> {
        let reason = Reason::new(
            "POISON_MISSION",
            "every worker that claimed it was lost; see their logs, then approve or cancel it",
        );
        let decision = governor_decision(Action::Quarantine, Confidence::Low, vec![reason], now);
        let error = LastError { error: "its worker was lost each time".to_owned(), details: None };
        let lock = if self.database.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
        let sql = format!(
            "UPDATE missions SET status = 'QUARANTINED', lane = NULL, due_ms = NULL, updated_ms = $1, \
             governance = $2, last_error = $3, claimed_by = NULL, lease_id = NULL, \
             lease_expires_ms = NULL, heartbeat_ms = NULL WHERE (org_id, mission_id) IN \
             (SELECT org_id, mission_id FROM missions WHERE lane = {RUNNING} AND due_ms <= $1 \
              AND attempts >= max_attempts LIMIT {QUARANTINE_BATCH_MAX}{lock}) RETURNING {}",
            columns!()
        );
        let rows: Vec<MissionRow> = on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(now.0).bind(to_json(&decision)?).bind(to_json(&error)?).fetch_all(pool).await)
        .map_err(StoreError::query("quarantining missions"))?;
        Ok(rows.len())
    }

    /// Ends the transaction of a person's change: one that changed a mission is audited and
    /// committed.
    async fn end_change(
        &self,
        mut tx: ::database::Tx,
        org: &OrgId,
        (actor, now): (&Actor, EpochMs),
        (action, id, details): (&str, &str, Value),
        row: Option<MissionRow>,
        otherwise: &str,
    ) -> Result<Transition, StoreError> {
        if row.is_some() {
            self.audit(&mut tx, org, actor, (action, id, details), now).await?;
            tx.commit().await?;
        } else {
            drop(tx); // the query below needs a connection
        }
        self.transition_result(org, id, row, otherwise).await
    }

    async fn transition_result(
        &self,
        org: &OrgId,
        id: &str,
        row: Option<MissionRow>,
        otherwise: &str,
    ) -> Result<Transition, StoreError> {
        if let Some(row) = row {
            return Ok(Transition::Done(Box::new(row.record()?)));
        }
        Ok(match self.mission(org, id).await? {
            None => Transition::NotFound,
            Some(mission) => {
                let not_running = mission.status != MissionStatus::Running;
                let why = if not_running && otherwise == LEASE_LOST {
                    "no worker runs it"
                } else {
                    otherwise
                };
                Transition::Conflict(format!("the mission is {}: {why}", mission.status.as_str()))
            }
        })
    }

    pub(super) async fn audit(
        &self,
        tx: &mut ::database::Tx,
        org: &OrgId,
        actor: &Actor,
        (action, subject, details): (&str, &str, Value),
        at: EpochMs,
    ) -> Result<(), StoreError> {
        tx.audit(&::database::audit::AuditChange { org, actor, at, action, subject, details }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_claim_for_one_organisation_reads_nothing_of_the_others() {
        let (_folder, database) = service_testbed::open_sqlite().await;
        let store = KernelStore::new(database);
        for (goals, index) in
            [(0, "missions_claimable_of_org "), (1, "missions_claimable_of_org_by_goal ")]
        {
            let sql = format!("EXPLAIN QUERY PLAN {}", store.claim_sql(goals, true));
            let rows: Vec<(i64, i64, i64, String)> =
                on!(store.database, pool => query_as(AssertSqlSafe(sql)).fetch_all(pool).await)
                    .unwrap();
            let looks: Vec<_> = rows.iter().filter(|row| row.3.contains("claimable")).collect();
            assert_eq!(looks.len(), 9);
            assert!(looks.iter().all(|row| row.3.contains(index)), "{looks:?}");
        }
    }
}
