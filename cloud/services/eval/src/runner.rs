//! Evaluates roasts against golden cases: each roast that ends against the cases of its machine,
//! once.

use contract::mission::{EVAL_GOAL, MissionRecord};
use contract::point::TelemetryPoint;
use contract::{EpochMs, OrgId};
use database::StoreError;
use mission_worker::{Job, JobFuture, MissionTools, Outcome as Ended, WorkError};
use serde_json::{Map, Value, json};
use service_client::{ServiceClient, ServiceClientError};

use crate::gates::{self, AgentConduct, RoastFacts};
use crate::golden::{Expectation, GoldenCase};
use crate::run::EvalRun;
use crate::store::{CaseFilter, EvalStore};

/// The maximum number of cases of one machine that a roast is evaluated against. The log warns when
/// the limit is reached.
const CASES_MAX: i64 = 200;
const POINTS_MAX: &str = "100000";
/// Upstream Sim-Corp's evaluator name for runs that no caller requested.
pub const AUTOMATIC: &str = "auto-evaluator";

#[derive(Clone)]
pub struct Runner {
    pub store: EvalStore,
    pub ingestion: ServiceClient,
    pub analytics: ServiceClient,
    /// Whether a language model judges new runs.
    pub judge_enabled: bool,
}

/// The input of an evaluation run.
#[derive(Default)]
pub struct Evidence {
    pub session: Option<String>,
    pub mission: Option<String>,
    pub analysis: Map<String, Value>,
    pub telemetry: Vec<TelemetryPoint>,
    pub conduct: AgentConduct,
    pub evaluator: Option<String>,
    pub transcript: Option<Vec<Value>>,
    pub notes: Option<String>,
    /// The number of the trial, the total number of trials, and the id of the trial set.
    pub trial: Option<(u32, u32, String)>,
}

impl Runner {
    /// Requests a roast's analysis from analytics. Returns `None` if there is no such roast.
    ///
    /// # Errors
    /// When analytics does not answer.
    pub async fn analysis(
        &self,
        org: &OrgId,
        session: &str,
    ) -> Result<Option<Map<String, Value>>, ServiceClientError> {
        self.analytics.get(org, &["analysis", "session", session], &[]).await
    }

    /// Requests a roast's points from ingestion. Returns no points if there is no such roast.
    ///
    /// # Errors
    /// When ingestion does not answer.
    pub async fn telemetry(
        &self,
        org: &OrgId,
        session: &str,
    ) -> Result<Vec<TelemetryPoint>, ServiceClientError> {
        let path = ["sessions", session, "telemetry"];
        let found = self.ingestion.get(org, &path, &[("limit", POINTS_MAX)]).await?;
        Ok(found.unwrap_or_default())
    }

    /// Evaluates a roast against a case. Pure, except for the random id of the run.
    ///
    /// # Errors
    /// If the system provides no random numbers.
    pub fn evaluate(
        org: &OrgId,
        case: &GoldenCase,
        evidence: Evidence,
        now: EpochMs,
    ) -> Result<EvalRun, std::io::Error> {
        let roast = RoastFacts::of(&evidence.analysis);
        let steady = gates::steadiness(&evidence.telemetry, &roast);
        let verdict = gates::judge(&case.case, &roast, steady.as_ref(), &evidence.conduct);
        let (trial_number, total_trials, trial_set_id) = match evidence.trial {
            Some((n, of, set)) => (Some(n), Some(of), Some(set)),
            None => (None, None, None),
        };
        Ok(EvalRun {
            id: format!("eval-{}", trust::random_id()?),
            session_id: evidence.session,
            mission_id: evidence.mission,
            golden_case_id: case.id.clone(),
            evaluator_id: evidence.evaluator,
            run_at: now,
            trial_number,
            trial_set_id,
            total_trials,
            outcome: verdict.outcome,
            passed_gates: verdict.passed,
            failed_gates: verdict.failed,
            unmeasured_gates: verdict.unmeasured,
            agent_rejected: verdict.rejected,
            rejection_reason: evidence.conduct.rejection_reason,
            rejection_appropriate: verdict.rejection_appropriate,
            detailed_metrics: verdict.measured,
            metrics: verdict.metrics,
            lm_judge: None,
            judge_waits: None,
            human_reviewed: false,
            human_outcome: None,
            human_notes: None,
            reviewed_by: None,
            reviewed_at: None,
            commands: evidence.conduct.commands,
            agent_transcript: evidence.transcript,
            org_id: Some(org.to_string()),
            notes: evidence.notes,
            artifacts: Vec::new(),
            observed: roast.observed(),
        })
    }

    /// Stores a run. Returns `false`, and stores nothing, if a run with the same `once` key exists.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn store_run(
        &self,
        org: &OrgId,
        run: &EvalRun,
        once: Option<&str>,
    ) -> Result<bool, StoreError> {
        let new = self.store.add_run(org, run, once, self.judge_enabled).await?;
        if new {
            let outcome = run.outcome.as_str();
            metrics::counter!("simcorp_evaluations_total", "outcome" => outcome).increment(1);
        }
        Ok(new)
    }
}

impl Runner {
    /// Stores all runs in one transaction, or none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn store_runs(&self, org: &OrgId, runs: &[EvalRun]) -> Result<(), StoreError> {
        self.store.add_runs(org, runs, self.judge_enabled).await?;
        for run in runs {
            let outcome = run.outcome.as_str();
            metrics::counter!("simcorp_evaluations_total", "outcome" => outcome).increment(1);
        }
        Ok(())
    }
}

impl Job for Runner {
    fn goal(&self) -> &'static str {
        EVAL_GOAL
    }

    fn names(&self) -> (&'static str, &'static str) {
        ("eval-agent", "eval")
    }

    fn run<'r>(
        &'r self,
        tools: &'r mut MissionTools<'_>,
        mission: &'r MissionRecord,
    ) -> JobFuture<'r> {
        Box::pin(evaluate_all(self, tools, mission))
    }
}

fn unavailable(error: &StoreError) -> WorkError {
    WorkError::Unavailable(error.to_string())
}

/// Evaluates a mission's roast against every case of its machine that expects success.
async fn evaluate_all(
    runner: &Runner,
    tools: &mut MissionTools<'_>,
    mission: &MissionRecord,
) -> Result<Ended, WorkError> {
    let impossible = |why: &str| WorkError::Permanent(why.to_owned());
    let session = mission.params.get("sessionId").and_then(Value::as_str);
    let id = session.ok_or_else(|| impossible("the mission names no roast (params.sessionId)"))?;
    let machine = mission.context.get("machineId").and_then(Value::as_str);
    let machine =
        machine.ok_or_else(|| impossible("the mission names no machine (context.machineId)"))?;
    let org = tools.org.clone();
    let filter =
        CaseFilter { machine: Some(machine.to_owned()), limit: CASES_MAX, ..CaseFilter::default() };
    let cases = runner.store.cases(&org, &filter).await.map_err(|error| unavailable(&error))?;
    if i64::try_from(cases.len()).is_ok_and(|n| n == CASES_MAX) {
        tracing::warn!(machine, CASES_MAX, "more golden cases than a roast is evaluated against");
    }
    // A finished roast does not show whether an agent refused something.
    let cases: Vec<_> = cases
        .into_iter()
        .filter(|case| case.case.expectation == Expectation::ShouldSucceed)
        .collect();
    let (mut runs, mut already_stored) = (Vec::new(), 0_usize);
    if !cases.is_empty() {
        let analysis: Option<Map<String, Value>> =
            tools.read("getAnalysis", &runner.analytics, &["analysis", "session", id], &[]).await?;
        let analysis = analysis.ok_or_else(|| impossible("analytics has no such roast"))?;
        let path = ["sessions", id, "telemetry"];
        let limit = [("limit", POINTS_MAX)];
        let telemetry: Option<Vec<TelemetryPoint>> =
            tools.read("getTelemetry", &runner.ingestion, &path, &limit).await?;
        let telemetry = telemetry.unwrap_or_default();
        for case in &cases {
            let evidence = Evidence {
                session: Some(id.to_owned()),
                mission: Some(mission.mission_id.clone()),
                analysis: analysis.clone(),
                telemetry: telemetry.clone(),
                evaluator: Some(AUTOMATIC.to_owned()),
                ..Evidence::default()
            };
            let now = tools.now();
            let run = Runner::evaluate(&org, case, evidence, now)
                .map_err(|error| WorkError::Unavailable(error.to_string()))?;
            let once = format!("{AUTOMATIC}:{id}:{}", case.id);
            let storing = tools.run_local("writeEvaluation", id, async {
                runner.store_run(&org, &run, Some(&once)).await.map_err(|error| unavailable(&error))
            });
            if storing.await? {
                runs.push(json!({"caseId": case.id, "runId": run.id, "outcome": run.outcome}));
            } else {
                already_stored = already_stored.saturating_add(1);
            }
        }
    }
    let summary = json!({"sessionId": id, "cases": cases.len(), "runs": runs});
    let all_stored = already_stored > 0 && runs.is_empty();
    Ok(if all_stored { Ended::AlreadyDone(summary) } else { Ended::Done(summary) })
}
