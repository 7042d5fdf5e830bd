//! Storage of governance: fact counts, autonomy states, circuit-breaker rules, and records.

use std::collections::BTreeMap;

use ::database::sqlx::{query, query_as, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};
use contract::{Actor, EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::KernelStore;
use super::mission_row::{from_json as read, to_json};
use crate::governance::breaker::{Rule, defaults};
use crate::governance::metrics::{AutonomyMetrics, Counts, Fact, Period};
use crate::governance::weekly_review::Proposal;
use crate::governance::{AutonomyState, Phase};

const MINUTE_MS: i64 = 60_000;
/// How long fact counts are kept, ms: longer than any window that is evaluated.
const FACTS_RETENTION_MS: i64 = 400 * 86_400_000;
const COUNT: &str = "INSERT INTO autonomy_counts AS c (org_id, minute, what, n) \
    VALUES ($1, $2, $3, $4) ON CONFLICT (org_id, minute, what) DO UPDATE SET n = c.n + EXCLUDED.n";

/// A kind of [`GovernanceRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    Metrics,
    Readiness,
    Report,
    Proposal,
    Event,
    Incident,
}

impl RecordKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Readiness => "readiness",
            Self::Report => "report",
            Self::Proposal => "proposal",
            Self::Event => "event",
            Self::Incident => "incident",
        }
    }
}

/// A record that governance stores.
pub struct GovernanceRecord<'r, T> {
    pub kind: RecordKind,
    pub id: &'r str,
    pub at: EpochMs,
    pub status: &'r str,
    /// A unique key: only one record of this kind may have it at a time.
    pub unique_key: Option<&'r str>,
    pub body: &'r T,
}

/// Which records to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecordFilter<'f> {
    pub id: Option<&'f str>,
    pub status: Option<&'f str>,
    pub limit: i64,
}

impl KernelStore {
    /// Adds `n` to the count of a fact.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn count_fact(
        &self,
        org: &OrgId,
        fact: Fact,
        n: i64,
        at: EpochMs,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query(COUNT)
            .bind(org.as_str()).bind(at.0.div_euclid(MINUTE_MS)).bind(fact.as_str()).bind(n)
            .execute(pool).await.map(drop))
        .map_err(StoreError::query("counting a fact"))
    }

    /// Returns the metrics from `start` until `end`, by whole minutes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn autonomy_metrics(
        &self,
        org: &OrgId,
        (start, end): (EpochMs, EpochMs),
    ) -> Result<AutonomyMetrics, StoreError> {
        let rows: Vec<(String, i64)> = on!(self.database, pool => query_as(
            "SELECT what, CAST(sum(n) AS bigint) FROM autonomy_counts \
             WHERE org_id = $1 AND minute >= $2 AND minute <= $3 GROUP BY what")
            .bind(org.as_str()).bind(start.0.div_euclid(MINUTE_MS)).bind(end.0.div_euclid(MINUTE_MS))
            .fetch_all(pool).await)
        .map_err(StoreError::query("counting commands"))?;
        let counts: Counts = rows.into_iter().collect();
        Ok(AutonomyMetrics::of(Period { start, end }, &counts))
    }

    /// Returns the organisations for which a fact was counted since `since`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn active_orgs(&self, since: EpochMs) -> Result<Vec<OrgId>, StoreError> {
        const DOING: &str = "listing organisations";
        let rows: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT DISTINCT org_id FROM autonomy_counts WHERE minute >= $1")
            .bind(since.0.div_euclid(MINUTE_MS)).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.into_iter().map(|org| OrgId::new(org).map_err(|e| StoreError::row(DOING, e))).collect()
    }

    /// Returns an organisation's autonomy state and its version. Creates the state if it is
    /// missing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn autonomy_state(
        &self,
        org: &OrgId,
        now: EpochMs,
    ) -> Result<(i64, AutonomyState), StoreError> {
        const DOING: &str = "reading the state of autonomy";
        // The first reader creates the state.
        on!(self.database, pool => query(
            "INSERT INTO autonomy_state (org_id, phase, phase_start_ms, body) VALUES ($1, $2, $3, '{}') \
             ON CONFLICT (org_id) DO NOTHING")
            .bind(org.as_str()).bind(Phase::L3.as_str()).bind(now.0).execute(pool).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let (version, phase, since, body): (i64, String, i64, String) = on!(self.database, pool =>
            query_as("SELECT version, phase, phase_start_ms, body FROM autonomy_state WHERE org_id = $1")
                .bind(org.as_str()).fetch_one(pool).await)
        .map_err(StoreError::query(DOING))?;
        let phase = Phase::parse(&phase).ok_or_else(|| StoreError::row(DOING, phase))?;
        Ok((version, AutonomyState { phase, since: EpochMs(since), known: read(DOING, &body)? }))
    }

    /// Changes an organisation's autonomy state. Calls `change` again if another writer was faster.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn change_autonomy(
        &self,
        org: &OrgId,
        actor: &Actor,
        (action, now): (&str, EpochMs),
        mut change: impl FnMut(&mut AutonomyState),
    ) -> Result<AutonomyState, StoreError> {
        loop {
            let (version, mut state) = self.autonomy_state(org, now).await?;
            let before = state.clone();
            change(&mut state);
            if state == before {
                return Ok(state);
            }
            let mut tx = self.database.begin().await?;
            let changed = on_tx!(&mut tx, c => query(
                "UPDATE autonomy_state SET phase = $3, phase_start_ms = $4, body = $5, \
                 version = version + 1 WHERE org_id = $1 AND version = $2")
                .bind(org.as_str()).bind(version).bind(state.phase.as_str()).bind(state.since.0)
                .bind(to_json(&state.known)?).execute(c).await.map(|done| done.rows_affected() > 0))
            .map_err(StoreError::query("changing the state of autonomy"))?;
            if changed {
                let details = json!({"before": before, "after": state});
                self.audit(&mut tx, org, actor, (action, "autonomy", details), now).await?;
                tx.commit().await?;
                return Ok(state);
            }
        }
    }

    /// Returns an organisation's circuit-breaker rules: the program's defaults with its own
    /// changes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn breaker_rules(&self, org: &OrgId) -> Result<Vec<Rule>, StoreError> {
        const DOING: &str = "reading the circuit breaker's rules";
        let rows: Vec<(String, String)> = on!(self.database, pool => query_as(
            "SELECT name, body FROM breaker_rules WHERE org_id = $1")
            .bind(org.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let changed: BTreeMap<String, String> = rows.into_iter().collect();
        let rule = |rule: Rule| match changed.get(&rule.name) {
            Some(body) => read(DOING, body),
            None => Ok(rule),
        };
        defaults().into_iter().map(rule).collect()
    }

    /// Stores an organisation's own version of a rule.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_breaker_rule(
        &self,
        org: &OrgId,
        rule: &Rule,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        on_tx!(&mut tx, c => query(
            "INSERT INTO breaker_rules (org_id, name, body) VALUES ($1, $2, $3) \
             ON CONFLICT (org_id, name) DO UPDATE SET body = EXCLUDED.body")
            .bind(org.as_str()).bind(&rule.name).bind(to_json(rule)?).execute(c).await.map(drop))
        .map_err(StoreError::query("changing a rule"))?;
        let details = json!({"rule": rule});
        self.audit(&mut tx, org, actor, ("breaker.rule", &rule.name, details), now).await?;
        tx.commit().await
    }

    /// Stores a record. Returns `false` if a record with its `once` key exists.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn insert_record<T: Serialize>(
        &self,
        org: &OrgId,
        record: &GovernanceRecord<'_, T>,
    ) -> Result<bool, StoreError> {
        on!(self.database, pool => query(
            "INSERT INTO governance_records (org_id, kind, record_id, at_ms, status, once_key, body) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING")
            .bind(org.as_str()).bind(record.kind.as_str()).bind(record.id).bind(record.at.0)
            .bind(record.status).bind(record.unique_key).bind(to_json(record.body)?)
            .execute(pool).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("storing a record of governance"))
    }

    /// Returns records, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn records<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        kind: RecordKind,
        filter: RecordFilter<'_>,
    ) -> Result<Vec<T>, StoreError> {
        const DOING: &str = "listing records of governance";
        let rows: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM governance_records WHERE org_id = $1 AND kind = $2 \
             AND ($3 = '' OR status = $3) AND ($4 = '' OR record_id = $4) \
             ORDER BY at_ms DESC, record_id DESC LIMIT $5")
            .bind(org.as_str()).bind(kind.as_str()).bind(filter.status.unwrap_or_default())
            .bind(filter.id.unwrap_or_default()).bind(filter.limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|body| read(DOING, body)).collect()
    }

    /// Changes a record whose status is `from`. `change` edits the body and returns the new status,
    /// or `None` to leave the record unchanged. Returns `None` if no such record has the status
    /// `from`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn change_record<T: DeserializeOwned + Serialize>(
        &self,
        org: &OrgId,
        (kind, id, from): (RecordKind, &str, &str),
        (actor, action, now): (&Actor, &str, EpochMs),
        mut change: impl FnMut(&mut T) -> Option<&'static str>,
    ) -> Result<Option<T>, StoreError> {
        const DOING: &str = "changing a record of governance";
        loop {
            let row: Option<(i64, String)> = on!(self.database, pool => query_as(
                "SELECT version, body FROM governance_records \
                 WHERE org_id = $1 AND kind = $2 AND record_id = $3 AND status = $4")
                .bind(org.as_str()).bind(kind.as_str()).bind(id).bind(from)
                .fetch_optional(pool).await)
            .map_err(StoreError::query(DOING))?;
            let Some((version, body)) = row else { return Ok(None) };
            let mut record: T = read(DOING, &body)?;
            let Some(to) = change(&mut record) else { return Ok(Some(record)) };
            let body = to_json(&record)?;
            let mut tx: Tx = self.database.begin().await?;
            // A record that changes its status releases its unique key for the next one.
            let changed = on_tx!(&mut tx, c => query(
                "UPDATE governance_records SET status = $5, body = $6, version = version + 1, \
                 once_key = CASE WHEN $5 = status THEN once_key ELSE NULL END \
                 WHERE org_id = $1 AND kind = $2 AND record_id = $3 AND version = $4")
                .bind(org.as_str()).bind(kind.as_str()).bind(id).bind(version).bind(to).bind(&body)
                .execute(c).await.map(|done| done.rows_affected() > 0))
            .map_err(StoreError::query(DOING))?;
            if changed {
                let details = json!({"status": to});
                self.audit(&mut tx, org, actor, (action, id, details), now).await?;
                tx.commit().await?;
                return Ok(Some(record));
            }
        }
    }

    /// Stores a record and counts its facts, in one transaction.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn insert_record_with_facts<T: Serialize>(
        &self,
        org: &OrgId,
        record: &GovernanceRecord<'_, T>,
        facts: &[Fact],
    ) -> Result<(), StoreError> {
        const DOING: &str = "storing a record of governance";
        let body = to_json(record.body)?;
        let mut tx = self.database.begin().await?;
        on_tx!(&mut tx, c => query(
            "INSERT INTO governance_records (org_id, kind, record_id, at_ms, status, body) \
             VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(org.as_str()).bind(record.kind.as_str()).bind(record.id).bind(record.at.0)
            .bind(record.status).bind(&body).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        for fact in facts {
            on_tx!(&mut tx, c => query(COUNT)
                .bind(org.as_str()).bind(record.at.0.div_euclid(MINUTE_MS)).bind(fact.as_str())
                .bind(1_i64).execute(c).await.map(drop))
            .map_err(StoreError::query(DOING))?;
        }
        tx.commit().await
    }

    /// Stores the latest result of a kind. Replaces the previous one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn upsert_latest<T: Serialize>(
        &self,
        org: &OrgId,
        kind: RecordKind,
        at: EpochMs,
        body: &T,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "INSERT INTO governance_records (org_id, kind, record_id, at_ms, status, body) \
             VALUES ($1, $2, 'latest', $3, 'kept', $4) ON CONFLICT (org_id, kind, record_id) \
             DO UPDATE SET at_ms = EXCLUDED.at_ms, body = EXCLUDED.body")
            .bind(org.as_str()).bind(kind.as_str()).bind(at.0).bind(to_json(body)?)
            .execute(pool).await.map(drop))
        .map_err(StoreError::query("storing the latest result"))
    }

    /// Returns the number of unresolved events of the circuit breaker, of all organisations.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open_events(&self) -> Result<i64, StoreError> {
        on!(self.database, pool => query_scalar(
            "SELECT count(*) FROM governance_records WHERE kind = 'event' AND status = 'open'")
            .fetch_one(pool).await)
        .map_err(StoreError::query("counting unresolved events"))
    }

    /// Rejects all pending proposals.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn reject_pending_proposals(&self, org: &OrgId) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "UPDATE governance_records SET status = 'rejected', once_key = NULL, \
             version = version + 1 WHERE org_id = $1 AND kind = 'proposal' AND status = 'pending'")
            .bind(org.as_str()).execute(pool).await.map(drop))
        .map_err(StoreError::query("rejecting proposals"))
    }

    /// Stores a proposal's approvals and, with the last one, the new autonomy state, in one
    /// transaction. Returns `false` if another writer changed the proposal or the state first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn approve_proposal(
        &self,
        org: &OrgId,
        (version, proposal): (i64, &Proposal),
        expanded: Option<(i64, &AutonomyState)>,
        (actor, now): (&Actor, EpochMs),
    ) -> Result<bool, StoreError> {
        const DOING: &str = "approving a proposal";
        let id = proposal.proposal_id.as_str();
        let status = if expanded.is_some() { "approved" } else { "pending" };
        let mut tx = self.database.begin().await?;
        let changed = on_tx!(&mut tx, c => query(
            "UPDATE governance_records SET status = $4, body = $5, version = version + 1, \
             once_key = CASE WHEN $4 = 'pending' THEN once_key ELSE NULL END \
             WHERE org_id = $1 AND kind = 'proposal' AND record_id = $2 AND version = $3 \
             AND status = 'pending'")
            .bind(org.as_str()).bind(id).bind(version).bind(status).bind(to_json(proposal)?)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query(DOING))?;
        if !changed {
            return Ok(false);
        }
        if let Some((version, state)) = expanded {
            let changed = on_tx!(&mut tx, c => query(
                "UPDATE autonomy_state SET phase = $3, phase_start_ms = $4, body = $5, \
                 version = version + 1 WHERE org_id = $1 AND version = $2")
                .bind(org.as_str()).bind(version).bind(state.phase.as_str()).bind(state.since.0)
                .bind(to_json(&state.known)?).execute(c).await.map(|done| done.rows_affected() > 0))
            .map_err(StoreError::query(DOING))?;
            if !changed {
                return Ok(false);
            }
        }
        let details = json!({"status": status, "phase": expanded.map(|(_, state)| state.phase)});
        self.audit(&mut tx, org, actor, ("governance.approve", id, details), now).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns a pending proposal and its version.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn pending_proposal(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<(i64, Proposal)>, StoreError> {
        const DOING: &str = "reading a proposal";
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT version, body FROM governance_records WHERE org_id = $1 AND kind = 'proposal' \
             AND record_id = $2 AND status = 'pending'")
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|(version, body)| Ok((version, read(DOING, &body)?))).transpose()
    }

    /// Deletes counts that are older than their retention time.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delete_old_facts(&self, now: EpochMs) -> Result<(), StoreError> {
        let before = now.minus_ms(FACTS_RETENTION_MS).0.div_euclid(MINUTE_MS);
        on!(self.database, pool => query("DELETE FROM autonomy_counts WHERE minute < $1")
            .bind(before).execute(pool).await.map(drop))
        .map_err(StoreError::query("deleting old counts"))
    }

    /// Returns how many roasts ended since `since`, counted by the report missions that followed
    /// them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn roasts_since(&self, org: &OrgId, since: EpochMs) -> Result<i64, StoreError> {
        on!(self.database, pool => query_scalar(
            "SELECT count(DISTINCT session_id) FROM missions \
             WHERE org_id = $1 AND goal = $2 AND created_ms >= $3")
            .bind(org.as_str()).bind(contract::mission::REPORT_GOAL).bind(since.0)
            .fetch_one(pool).await)
        .map_err(StoreError::query("counting roasts"))
    }
}
