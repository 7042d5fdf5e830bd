//! What governance is measured by, has found, and proposes.

use std::collections::BTreeMap;

use ::store::sqlx::{query, query_as, query_scalar};
use ::store::{StoreError, Tx, on, on_tx};
use contract::{Actor, EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::KernelStore;
use super::missions::{json as read, text};
use crate::governance::breaker::{Rule, defaults};
use crate::governance::cycle::Proposal;
use crate::governance::metrics::{AutonomyMetrics, Counts, Fact, Period};
use crate::governance::{Phase, State};

const MINUTE_MS: i64 = 60_000;
/// Longer than any window that anything is judged over.
const FACTS_KEPT_MS: i64 = 400 * 86_400_000;
const COUNT: &str = "INSERT INTO autonomy_counts AS c (org_id, minute, what, n) \
    VALUES ($1, $2, $3, $4) ON CONFLICT (org_id, minute, what) DO UPDATE SET n = c.n + EXCLUDED.n";

/// A kind of [`Record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Metrics,
    Readiness,
    Report,
    Proposal,
    Event,
    Incident,
}

impl Kind {
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

/// Something that governance keeps.
pub struct Record<'r, T> {
    pub kind: Kind,
    pub id: &'r str,
    pub at: EpochMs,
    pub status: &'r str,
    /// Of one key there is one.
    pub once: Option<&'r str>,
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
    /// Counts something that happened.
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
        .map_err(StoreError::query("counting what happened"))
    }

    /// What happened from `start` until `end`, by whole minutes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn autonomy(
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

    /// The organisations of which something was counted since.
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

    /// Where an organisation stands, and the version of that.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn autonomy_state(
        &self,
        org: &OrgId,
        now: EpochMs,
    ) -> Result<(i64, State), StoreError> {
        const DOING: &str = "reading the state of autonomy";
        // Whoever looks first begins it.
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
        Ok((version, State { phase, since: EpochMs(since), known: read(DOING, &body)? }))
    }

    /// Changes where an organisation stands, with `change` again when somebody else was faster.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn change_autonomy(
        &self,
        org: &OrgId,
        actor: &Actor,
        (action, now): (&str, EpochMs),
        mut change: impl FnMut(&mut State),
    ) -> Result<State, StoreError> {
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
                .bind(text(&state.known)?).execute(c).await.map(|done| done.rows_affected() > 0))
            .map_err(StoreError::query("changing the state of autonomy"))?;
            if changed {
                let details = json!({"before": before, "after": state});
                self.audit(&mut tx, org, actor, (action, "autonomy", details), now).await?;
                tx.commit().await?;
                return Ok(state);
            }
        }
    }

    /// The rules of an organisation: the program's, with what it has changed.
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
            .bind(org.as_str()).bind(&rule.name).bind(text(rule)?).execute(c).await.map(drop))
        .map_err(StoreError::query("changing a rule"))?;
        let details = json!({"rule": rule});
        self.audit(&mut tx, org, actor, ("breaker.rule", &rule.name, details), now).await?;
        tx.commit().await
    }

    /// Keeps a record; `false`: of its `once` key there is one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn keep_record<T: Serialize>(
        &self,
        org: &OrgId,
        record: &Record<'_, T>,
    ) -> Result<bool, StoreError> {
        on!(self.database, pool => query(
            "INSERT INTO governance_records (org_id, kind, record_id, at_ms, status, once_key, body) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING")
            .bind(org.as_str()).bind(record.kind.as_str()).bind(record.id).bind(record.at.0)
            .bind(record.status).bind(record.once).bind(text(record.body)?)
            .execute(pool).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("keeping a record of governance"))
    }

    /// Records, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn records<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        kind: Kind,
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

    /// Changes a record that stands at `from`: its body by `change`, which also names the status to
    /// come, or leaves it as it is. `None`: there is none that stands there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn change_record<T: DeserializeOwned + Serialize>(
        &self,
        org: &OrgId,
        (kind, id, from): (Kind, &str, &str),
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
            let body = text(&record)?;
            let mut tx: Tx = self.database.begin().await?;
            // What has ended makes room for the next of its key.
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

    /// Keeps a record, and counts what it is about, or neither.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn keep_with_facts<T: Serialize>(
        &self,
        org: &OrgId,
        record: &Record<'_, T>,
        facts: &[Fact],
    ) -> Result<(), StoreError> {
        const DOING: &str = "keeping a record of governance";
        let body = text(record.body)?;
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

    /// Keeps what was looked at last, in place of what was before.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn keep_latest<T: Serialize>(
        &self,
        org: &OrgId,
        kind: Kind,
        at: EpochMs,
        body: &T,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "INSERT INTO governance_records (org_id, kind, record_id, at_ms, status, body) \
             VALUES ($1, $2, 'latest', $3, 'kept', $4) ON CONFLICT (org_id, kind, record_id) \
             DO UPDATE SET at_ms = EXCLUDED.at_ms, body = EXCLUDED.body")
            .bind(org.as_str()).bind(kind.as_str()).bind(at.0).bind(text(body)?)
            .execute(pool).await.map(drop))
        .map_err(StoreError::query("keeping what was looked at"))
    }

    /// Rejects what waits to be approved.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn drop_proposals(&self, org: &OrgId) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "UPDATE governance_records SET status = 'rejected', once_key = NULL, \
             version = version + 1 WHERE org_id = $1 AND kind = 'proposal' AND status = 'pending'")
            .bind(org.as_str()).execute(pool).await.map(drop))
        .map_err(StoreError::query("rejecting proposals"))
    }

    /// Keeps a proposal's approvals; with the last of them also the new state, in one transaction.
    /// `false`: somebody was faster, with either.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn approve_proposal(
        &self,
        org: &OrgId,
        (version, proposal): (i64, &Proposal),
        expanded: Option<(i64, &State)>,
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
            .bind(org.as_str()).bind(id).bind(version).bind(status).bind(text(proposal)?)
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
                .bind(text(&state.known)?).execute(c).await.map(|done| done.rows_affected() > 0))
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

    /// A proposal that waits, and its version.
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

    /// Forgets counts past their time.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_facts(&self, now: EpochMs) -> Result<(), StoreError> {
        on!(self.database, pool => query("DELETE FROM autonomy_counts WHERE minute < $1")
            .bind((now.0 - FACTS_KEPT_MS).div_euclid(MINUTE_MS)).execute(pool).await.map(drop))
        .map_err(StoreError::query("forgetting old counts"))
    }

    /// How many roasts ended since, by the missions that followed them.
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
