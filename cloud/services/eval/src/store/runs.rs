//! SQL for evaluation runs.

use std::sync::PoisonError;

use ::database::sqlx::{AssertSqlSafe, FromRow, query, query_as, query_scalar};
use ::database::{StoreError, on, on_tx};
use contract::{EpochMs, OrgId};
use serde_json::json;

use super::{ChangedBy, EvalStore, read, text};
use crate::run::{EvalRun, Outcome};
use crate::saturation::History;

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    pub session: Option<String>,
    pub case: Option<String>,
    /// The page begins after the run with this time (ms) and id.
    pub after: Option<(i64, String)>,
    pub limit: i64,
}

/// A run that is leased to this instance, so that it asks the language model about the run.
#[derive(Debug, Clone)]
pub struct PendingJudgement {
    pub org: OrgId,
    pub run: EvalRun,
    /// How often the model was asked, including this time.
    pub tries: i64,
    /// The end of the lease: no other instance asks until then, and an instance that takes longer
    /// may lose the run to another one.
    pub lease: EpochMs,
}

#[derive(FromRow)]
struct HistoryRow {
    case_id: String,
    total: i64,
    passed: i64,
    recent: i64,
    recent_passed: i64,
    recent_outcomes: i64,
    first_ms: i64,
    last_ms: i64,
}

const INSERT: &str = "INSERT INTO eval_runs (org_id, run_id, session_id, case_id, once_key, outcome, \
    run_ms, judge_due_ms, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
    ON CONFLICT (org_id, once_key) DO NOTHING";

/// Leases the next run of the first organisation after $3 that has one. The index
/// `eval_runs_to_judge_of_org` has that run first, however many runs wait.
const CLAIM: &str = "UPDATE eval_runs SET judge_due_ms = $2, judge_tries = judge_tries + 1 \
    WHERE (org_id, run_id) IN (SELECT org_id, run_id FROM eval_runs \
        WHERE judge_due_ms <= $1 AND org_id > $3 \
        ORDER BY org_id, judge_due_ms LIMIT 1) AND judge_due_ms <= $1 \
    RETURNING org_id, body, judge_tries";

impl EvalStore {
    /// Stores a run. Of all runs with the same `once` key only the first is stored: returns `false`
    /// if there is one already.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_run(
        &self,
        org: &OrgId,
        run: &EvalRun,
        once: Option<&str>,
        judge: bool,
    ) -> Result<bool, StoreError> {
        on!(self.database, pool => query(INSERT)
            .bind(org.as_str()).bind(&run.id).bind(run.session_id.as_deref())
            .bind(&run.golden_case_id).bind(once).bind(run.outcome.as_str()).bind(run.run_at.0)
            .bind(judge.then_some(run.run_at.0)).bind(text(run)?)
            .execute(pool).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query("storing a run"))
    }

    /// Stores all runs in one transaction, or none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_runs(
        &self,
        org: &OrgId,
        runs: &[EvalRun],
        judge: bool,
    ) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        for run in runs {
            on_tx!(&mut tx, c => query(INSERT)
                .bind(org.as_str()).bind(&run.id).bind(run.session_id.as_deref())
                .bind(&run.golden_case_id).bind(None::<&str>).bind(run.outcome.as_str())
                .bind(run.run_at.0).bind(judge.then_some(run.run_at.0)).bind(text(run)?)
                .execute(c).await.map(drop))
            .map_err(StoreError::query("storing runs"))?;
        }
        tx.commit().await
    }

    /// Returns a run.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run(&self, org: &OrgId, id: &str) -> Result<Option<EvalRun>, StoreError> {
        const DOING: &str = "reading a run";
        let body: Option<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM eval_runs WHERE org_id = $1 AND run_id = $2")
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        body.map(|body| read(DOING, &body)).transpose()
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn runs(&self, org: &OrgId, filter: &RunFilter) -> Result<Vec<EvalRun>, StoreError> {
        const DOING: &str = "listing runs";
        let (column, value) = match (&filter.session, &filter.case) {
            (Some(session), _) => ("AND session_id = $4", Some(session)),
            (None, Some(case)) => ("AND case_id = $4", Some(case)),
            (None, None) => ("", None),
        };
        let sql = format!(
            "SELECT body FROM eval_runs WHERE org_id = $1 AND (run_ms, run_id) < ($2, $3) {column} \
             ORDER BY run_ms DESC, run_id DESC LIMIT {}",
            filter.limit
        );
        let (time, id) = filter.after.clone().unwrap_or((i64::MAX, String::new()));
        let rows: Vec<String> = on!(self.database, pool => {
            let q = query_scalar(AssertSqlSafe(sql)).bind(org.as_str()).bind(time).bind(id);
            let q = match value { Some(value) => q.bind(value), None => q };
            q.fetch_all(pool).await
        })
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|body| read(DOING, body)).collect()
    }

    /// Counts the runs of a roast by outcome.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn outcomes(
        &self,
        org: &OrgId,
        session: &str,
    ) -> Result<Vec<(Outcome, i64)>, StoreError> {
        const DOING: &str = "counting a roast's outcomes";
        let rows: Vec<(String, i64)> = on!(self.database, pool => query_as(
            "SELECT outcome, count(*) FROM eval_runs WHERE org_id = $1 AND session_id = $2 \
             GROUP BY outcome")
            .bind(org.as_str()).bind(session).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let parse = |(name, n): (String, i64)| match Outcome::parse(&name) {
            Some(outcome) => Ok((outcome, n)),
            None => Err(StoreError::row(DOING, name)),
        };
        rows.into_iter().map(parse).collect()
    }

    /// Counts the roasts that were evaluated automatically, when they ended, since `since`. Does
    /// not count evaluations that a caller requested.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn evaluated_since(&self, org: &OrgId, since: EpochMs) -> Result<i64, StoreError> {
        on!(self.database, pool => query_scalar(
            "SELECT count(DISTINCT session_id) FROM eval_runs \
             WHERE org_id = $1 AND run_ms >= $2 AND once_key IS NOT NULL")
            .bind(org.as_str()).bind(since.0).fetch_one(pool).await)
        .map_err(StoreError::query("counting evaluated roasts"))
    }

    /// Returns the history of each case with its id; only of one case if `case` is given.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn histories(
        &self,
        org: &OrgId,
        case: Option<&str>,
        recent: EpochMs,
    ) -> Result<Vec<(String, History)>, StoreError> {
        let case_filter = if case.is_some() { "AND case_id = $3" } else { "" };
        let sql = format!(
            "SELECT case_id, count(*) AS total, \
             count(CASE WHEN outcome = 'PASS' THEN 1 END) AS passed, \
             count(CASE WHEN run_ms >= $2 THEN 1 END) AS recent, \
             count(CASE WHEN run_ms >= $2 AND outcome = 'PASS' THEN 1 END) AS recent_passed, \
             count(DISTINCT CASE WHEN run_ms >= $2 THEN outcome END) AS recent_outcomes, \
             min(run_ms) AS first_ms, max(run_ms) AS last_ms \
             FROM eval_runs WHERE org_id = $1 {case_filter} GROUP BY case_id"
        );
        let rows: Vec<HistoryRow> = on!(self.database, pool => {
            let q = query_as(AssertSqlSafe(sql)).bind(org.as_str()).bind(recent.0);
            let q = match case { Some(case) => q.bind(case), None => q };
            q.fetch_all(pool).await
        })
        .map_err(StoreError::query("counting the runs of cases"))?;
        let history = |row: HistoryRow| {
            let history = History {
                total: row.total,
                passed: row.passed,
                recent: row.recent,
                recent_passed: row.recent_passed,
                recent_outcomes: row.recent_outcomes,
                first: Some(EpochMs(row.first_ms)),
                last: Some(EpochMs(row.last_ms)),
            };
            (row.case_id, history)
        };
        Ok(rows.into_iter().map(history).collect())
    }

    /// Stores a person's review of a run. Returns `None` if there is no such run.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn review(
        &self,
        org: &OrgId,
        id: &str,
        (outcome, notes): (Outcome, Option<String>),
        by: ChangedBy<'_>,
    ) -> Result<Option<EvalRun>, StoreError> {
        loop {
            let Some((version, mut run)) = self.run_with_version(org, id).await? else {
                return Ok(None);
            };
            run.human_reviewed = true;
            run.human_outcome = Some(outcome);
            run.human_notes.clone_from(&notes);
            run.reviewed_by = Some(by.actor.id.clone());
            run.reviewed_at = Some(by.now);
            let mut tx = self.database.begin().await?;
            let changed = on_tx!(&mut tx, c => query(
                "UPDATE eval_runs SET outcome = $4, body = $5, version = version + 1 \
                 WHERE org_id = $1 AND run_id = $2 AND version = $3")
                .bind(org.as_str()).bind(id).bind(version).bind(outcome.as_str()).bind(text(&run)?)
                .execute(c).await.map(|done| done.rows_affected() > 0))
            .map_err(StoreError::query("reviewing a run"))?;
            if changed {
                let details = json!({"outcome": outcome, "gates": run.outcome, "notes": notes});
                Self::audit(&mut tx, org, by, ("evaluation.review", id, details)).await?;
                tx.commit().await?;
                return Ok(Some(run));
            }
        }
    }

    async fn run_with_version(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<(i64, EvalRun)>, StoreError> {
        const DOING: &str = "reading a run";
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT version, body FROM eval_runs WHERE org_id = $1 AND run_id = $2")
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|(version, body)| Ok((version, read(DOING, &body)?))).transpose()
    }

    /// Leases the next run that the language model has to be asked about: of the organisations that
    /// wait, each has its turn, and of one organisation the run that has waited longest is the
    /// next. No other instance gets it before `until`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn claim_run_to_judge(
        &self,
        now: EpochMs,
        until: EpochMs,
    ) -> Result<Option<PendingJudgement>, StoreError> {
        let last = self.judged_org.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut claimed = self.claim_run_after(&last, now, until).await?;
        if claimed.is_none() && !last.is_empty() {
            claimed = self.claim_run_after("", now, until).await?;
        }
        if let Some(claimed) = &claimed {
            let mut last = self.judged_org.lock().unwrap_or_else(PoisonError::into_inner);
            claimed.org.as_str().clone_into(&mut last);
        }
        Ok(claimed)
    }

    /// Leases the next run of the first organisation after `after` that has one.
    async fn claim_run_after(
        &self,
        after: &str,
        now: EpochMs,
        until: EpochMs,
    ) -> Result<Option<PendingJudgement>, StoreError> {
        const DOING: &str = "leasing a run to judge";
        // Two instances that select the same row update it one after the other; the second finds
        // that the row is not due any more.
        let row: Option<(String, String, i64)> = on!(self.database, pool => query_as(
            CLAIM)
            .bind(now.0).bind(until.0).bind(after).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|(org, body, tries)| {
            let org = OrgId::new(org).map_err(|error| StoreError::row(DOING, error))?;
            Ok(PendingJudgement { org, run: read(DOING, &body)?, tries, lease: until })
        })
        .transpose()
    }

    /// Schedules the next question about a run, not before `due`. An attempt that is not `counted`,
    /// because its failure had nothing to do with the run, does not use up a try.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn postpone_judgement(
        &self,
        waiting: &PendingJudgement,
        due: EpochMs,
        counted: bool,
    ) -> Result<(), StoreError> {
        on!(self.database, pool => query(
            "UPDATE eval_runs SET judge_due_ms = $4, judge_tries = judge_tries - $5 \
             WHERE org_id = $1 AND run_id = $2 AND judge_due_ms = $3")
            .bind(waiting.org.as_str()).bind(&waiting.run.id).bind(waiting.lease.0).bind(due.0)
            .bind(i64::from(!counted)).execute(pool).await.map(drop))
        .map_err(StoreError::query("postponing a judgement"))
    }

    /// Postpones a run whose organisation has used up its budget until `due`, and stores why. The
    /// model was not asked: no try is used up.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn postpone_over_budget(
        &self,
        waiting: &PendingJudgement,
        due: EpochMs,
        reason: &str,
    ) -> Result<(), StoreError> {
        let change = |run: &mut EvalRun| run.judge_waits = Some(reason.to_owned());
        self.end_lease(waiting, Some(due), change).await
    }

    /// Stores the language model's judgement; with `None`, the run stays without one and the model
    /// is not asked again. Changes nothing if this instance has lost the run in the meantime.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn store_judgement(
        &self,
        waiting: &PendingJudgement,
        judgement: Option<crate::run::Judgement>,
    ) -> Result<(), StoreError> {
        let change = |run: &mut EvalRun| {
            run.lm_judge.clone_from(&judgement);
            run.judge_waits = None;
        };
        self.end_lease(waiting, None, change).await
    }

    /// Changes a run and ends its lease. The model is asked about it again at `due`, if there is
    /// one; then this try does not count.
    async fn end_lease(
        &self,
        waiting: &PendingJudgement,
        due: Option<EpochMs>,
        change: impl Fn(&mut EvalRun) + Send + Sync,
    ) -> Result<(), StoreError> {
        let (org, id) = (&waiting.org, waiting.run.id.as_str());
        // A person may have reviewed it since it was read.
        while let Some((version, mut run)) = self.run_with_version(org, id).await? {
            change(&mut run);
            let mut tx = self.database.begin().await?;
            let changed = on_tx!(&mut tx, c => query(
                "UPDATE eval_runs SET judge_due_ms = $6, judge_tries = judge_tries - $7, \
                 body = $5, version = version + 1 \
                 WHERE org_id = $1 AND run_id = $2 AND version = $3 AND judge_due_ms = $4")
                .bind(org.as_str()).bind(id).bind(version).bind(waiting.lease.0).bind(text(&run)?)
                .bind(due.map(|due| due.0)).bind(i64::from(due.is_some()))
                .execute(c).await.map(|done| done.rows_affected() > 0))
            .map_err(StoreError::query("storing a judgement"))?;
            let ours: Option<i64> = on_tx!(&mut tx, c => query_scalar(
                "SELECT 1 FROM eval_runs WHERE org_id = $1 AND run_id = $2 AND judge_due_ms = $3")
                .bind(org.as_str()).bind(id).bind(waiting.lease.0).fetch_optional(c).await)
            .map_err(StoreError::query("storing a judgement"))?;
            tx.commit().await?;
            if changed || ours.is_none() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ::database::Pool;
    use ::database::sqlx::raw_sql;
    use testbed::Postgres;

    use super::*;

    #[tokio::test]
    async fn a_run_to_judge_is_found_by_its_organisation_on_sqlite() {
        let (_folder, database) = service_testbed::open_sqlite().await;
        let sql = format!("EXPLAIN QUERY PLAN {CLAIM}");
        let Pool::Sqlite(pool) = database.pool() else { panic!("SQLite") };
        let rows: Vec<(i64, i64, i64, String)> =
            query_as(AssertSqlSafe(sql)).fetch_all(pool).await.unwrap();
        let plan = rows.into_iter().map(|row| row.3).collect::<Vec<_>>().join("\n");
        assert!(plan.contains("eval_runs_to_judge_of_org (org_id>?)"), "{plan}");
        assert!(!plan.contains("SCAN eval_runs"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }

    #[tokio::test]
    async fn a_run_to_judge_is_found_by_its_organisation_on_postgresql() {
        let cluster = Postgres::start().await.unwrap();
        let database = service_testbed::open_database(cluster.url()).await;
        let Pool::Postgres(pool) = database.pool() else { panic!("PostgreSQL") };
        // Of 100 runs of each organisation, ten wait; one organisation has most of the runs.
        raw_sql(
            "INSERT INTO eval_runs (org_id, run_id, case_id, outcome, run_ms, judge_due_ms, body) \
             SELECT 'org-' || (CASE WHEN n > 10000 THEN 50 ELSE n % 100 END), 'run-' || n, 'c', \
             'PASS', n, CASE WHEN n % 1000 < 100 OR n > 10000 THEN n END, '{}' \
             FROM generate_series(1, 30000) AS n; ANALYZE eval_runs",
        )
        .execute(pool)
        .await
        .unwrap();
        let sql = CLAIM.replace("$1", "1000000").replace("$2", "1").replace("$3", "'org-50'");
        let rows: Vec<String> =
            query_scalar(AssertSqlSafe(format!("EXPLAIN {sql}"))).fetch_all(pool).await.unwrap();
        let plan = rows.join("\n");
        assert!(plan.contains("using eval_runs_to_judge_of_org on"), "{plan}");
        assert!(!plan.contains("Seq Scan on eval_runs"), "{plan}");
    }
}
