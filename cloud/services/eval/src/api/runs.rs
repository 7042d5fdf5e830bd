//! Evaluation runs: create, list and review them; and what they allow.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use contract::OrgId;
use contract::point::TelemetryPoint;
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::{self, Params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{State, changed_by, check_text};
use crate::gates::{AgentConduct, summarise_trials};
use crate::golden::GoldenCase;
use crate::run::{EvalRun, Outcome, RunCommand, TrialSet};
use crate::runner::{Evidence, Runner};
use crate::store::RunFilter;

/// The most commands of a run.
pub const COMMANDS_MAX: usize = 1_000;
/// The most trials of a request.
pub const TRIALS_MAX: usize = 50;
/// The most lines of a run's transcript.
pub const TRANSCRIPT_MAX: usize = 500;
/// The largest run, in bytes of the JSON that is stored.
pub const RUN_BYTES_MAX: usize = 256 * 1024;

/// Lists runs, newest first.
#[utoipa::path(get, path = "/evaluations", tag = "runs",
    params(("sessionId" = Option<String>, Query), ("goldenCaseId" = Option<String>, Query),
           ("limit" = Option<i64>, Query, description = "1 to 200; 50"), ("cursor" = Option<String>, Query),
           ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<EvalRun>), (status = 400), (status = 403)))]
pub async fn list(
    Extract(state): Extract<State>,
    OrgRequest { org, params, .. }: OrgRequest,
) -> Result<Response, ApiError> {
    let filter = RunFilter {
        session: params.get("sessionId").map(str::to_owned),
        case: params.get("goldenCaseId").map(str::to_owned),
        after: params.cursor()?,
        limit: params.limit(50, 200)?.max(1),
    };
    let runs = state.store.runs(&org, &filter).await?;
    Ok(query::page(runs, filter.limit, |run: &EvalRun| query::encode_cursor(run.run_at.0, &run.id)))
}

/// Returns one run.
#[utoipa::path(get, path = "/evaluations/{id}", tag = "runs",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = EvalRun), (status = 403), (status = 404)))]
pub async fn one(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
) -> Result<Json<EvalRun>, ApiError> {
    state.store.run(&request.org, &id).await?.map(Json).ok_or(ApiError::NotFound("evaluation"))
}

/// A request to evaluate a session.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewRun {
    pub session_id: String,
    pub golden_case_id: String,
    /// The session's analysis. If absent, eval requests it from analytics. Free-form: eval reads
    /// the fields that it knows, of upstream's canonical or legacy format.
    #[serde(default)]
    pub analysis: Option<Map<String, Value>>,
    /// The session's points. If absent, eval requests them from ingestion.
    #[serde(default)]
    pub telemetry: Option<Vec<TelemetryPoint>>,
    #[serde(default)]
    pub commands: Vec<RunCommand>,
    /// Whether the agent refused; without it a run whose commands were all rejected counts as
    /// refused.
    #[serde(default)]
    pub agent_rejected: Option<bool>,
    #[serde(default)]
    pub rejection_reason: Option<String>,
    /// The lines of the agent's transcript. Free-form: eval stores them unchanged.
    #[serde(default)]
    pub agent_transcript: Option<Vec<Value>>,
    #[serde(default)]
    pub mission_id: Option<String>,
    #[serde(default)]
    pub org_id: Option<String>,
    #[serde(default)]
    pub evaluator_id: Option<String>,
    #[serde(default)]
    pub notes: Option<String>,
}

impl NewRun {
    fn check(&self) -> Result<(), ApiError> {
        check_text("sessionId", &self.session_id, 200)?;
        let optional = [
            ("evaluatorId", &self.evaluator_id),
            ("missionId", &self.mission_id),
            ("rejectionReason", &self.rejection_reason),
            ("notes", &self.notes),
        ];
        for (field, text) in optional {
            if let Some(text) = text {
                check_text(field, text, 4_000)?;
            }
        }
        let transcript = self.agent_transcript.as_ref().map_or(0, Vec::len);
        if self.commands.len() > COMMANDS_MAX || transcript > TRANSCRIPT_MAX {
            return Err(ApiError::TooLarge(format!(
                "more than {COMMANDS_MAX} commands or {TRANSCRIPT_MAX} lines of transcript"
            )));
        }
        Ok(())
    }
}

impl State {
    /// Collects a session's data and requests from other services what the caller did not send.
    async fn evidence(&self, org: &OrgId, new: NewRun) -> Result<Evidence, ApiError> {
        let analysis = match new.analysis {
            Some(analysis) => analysis,
            None => self
                .runner
                .analysis(org, &new.session_id)
                .await?
                .ok_or(ApiError::NotFound("session"))?,
        };
        let telemetry = match new.telemetry {
            Some(telemetry) => telemetry,
            None => self.runner.telemetry(org, &new.session_id).await?,
        };
        Ok(Evidence {
            session: Some(new.session_id),
            mission: new.mission_id,
            analysis,
            telemetry,
            conduct: AgentConduct {
                commands: new.commands,
                agent_rejected: new.agent_rejected,
                rejection_reason: new.rejection_reason,
            },
            evaluator: new.evaluator_id,
            transcript: new.agent_transcript,
            notes: new.notes,
            trial: None,
        })
    }

    fn build_run(
        &self,
        org: &OrgId,
        case: &GoldenCase,
        evidence: Evidence,
    ) -> Result<EvalRun, ApiError> {
        let now = (self.clock)();
        let run = Runner::evaluate(org, case, evidence, now).map_err(ApiError::internal)?;
        let text = serde_json::to_string(&run).map_err(ApiError::internal)?;
        if text.len() > RUN_BYTES_MAX || text.contains("\\u0000") {
            return Err(ApiError::TooLarge(format!(
                "a run of {} bytes: more than {RUN_BYTES_MAX}, or with a NUL",
                text.len()
            )));
        }
        Ok(run)
    }
}

/// Evaluates a session against a golden case.
#[utoipa::path(post, path = "/evaluations/run", tag = "runs", request_body = NewRun,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = EvalRun), (status = 400), (status = 403), (status = 404),
              (status = 413), (status = 503)))]
pub async fn run(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
    JsonBody(new): JsonBody<NewRun>,
) -> Result<Response, ApiError> {
    caller.require_role(Role::Operator)?;
    let org = caller.resolve_org(params.get("orgId").or(new.org_id.as_deref()))?;
    new.check()?;
    let (_, case) = state.case(&org, &new.golden_case_id).await?;
    let evidence = state.evidence(&org, new).await?;
    let run = state.build_run(&org, &case, evidence)?;
    state.runner.store_run(&org, &run, None).await?;
    Ok((StatusCode::CREATED, Json(run)).into_response())
}

/// Several trials of one case: each is another session, or another attempt of an agent.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewTrials {
    pub golden_case_id: String,
    /// The trials. If absent, `sessionId` and the other fields are the only trial, as upstream
    /// Sim-Corp documents the request.
    #[serde(default)]
    pub trials: Option<Vec<Trial>>,
    #[serde(default)]
    pub session_id: Option<String>,
    #[serde(default)]
    pub analysis: Option<Map<String, Value>>,
    #[serde(default)]
    pub telemetry: Option<Vec<TelemetryPoint>>,
    #[serde(default)]
    pub commands: Vec<RunCommand>,
    #[serde(default)]
    pub agent_rejected: Option<bool>,
    #[serde(default)]
    pub rejection_reason: Option<String>,
}

impl NewTrials {
    /// Returns the trials: those of the list, or the only one.
    fn into_trials(self) -> Result<Vec<Trial>, ApiError> {
        let trials = match (self.trials, self.session_id) {
            (Some(trials), _) => trials,
            (None, Some(session_id)) => vec![Trial {
                session_id,
                analysis: self.analysis,
                telemetry: self.telemetry,
                commands: self.commands,
                agent_rejected: self.agent_rejected,
                rejection_reason: self.rejection_reason,
            }],
            (None, None) => Vec::new(),
        };
        if !(1..=TRIALS_MAX).contains(&trials.len()) {
            let problem = format!("not 1 to {TRIALS_MAX}, and no sessionId of a single trial");
            return Err(ApiError::Issues(vec![Issue::new("trials", problem)]));
        }
        Ok(trials)
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    pub session_id: String,
    /// The session's analysis, as in a single run.
    #[serde(default)]
    pub analysis: Option<Map<String, Value>>,
    #[serde(default)]
    pub telemetry: Option<Vec<TelemetryPoint>>,
    #[serde(default)]
    pub commands: Vec<RunCommand>,
    #[serde(default)]
    pub agent_rejected: Option<bool>,
    #[serde(default)]
    pub rejection_reason: Option<String>,
}

impl Trial {
    /// Returns the request for the run of this trial.
    fn into_run(self, case: &str) -> NewRun {
        NewRun {
            session_id: self.session_id,
            golden_case_id: case.to_owned(),
            analysis: self.analysis,
            telemetry: self.telemetry,
            commands: self.commands,
            agent_rejected: self.agent_rejected,
            rejection_reason: self.rejection_reason,
            ..NewRun::default()
        }
    }
}

/// Evaluates several trials of a case and returns their combined result.
#[utoipa::path(post, path = "/evaluations/run-multi-trial", tag = "runs", request_body = NewTrials,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = TrialSet), (status = 400), (status = 403), (status = 404),
              (status = 413), (status = 503)))]
pub async fn run_trials(
    Extract(state): Extract<State>,
    OrgRequest { caller, org, .. }: OrgRequest,
    JsonBody(new): JsonBody<NewTrials>,
) -> Result<Response, ApiError> {
    caller.require_role(Role::Operator)?;
    let (_, case) = state.case(&org, &new.golden_case_id).await?;
    let trials = new.into_trials()?;
    let set = format!("trialset-{}", trust::random_id().map_err(ApiError::internal)?);
    let of = u32::try_from(trials.len()).unwrap_or(u32::MAX);
    // All runs are made before any is stored; only the run of each roast stays in memory.
    let mut runs = Vec::with_capacity(trials.len());
    for (n, trial) in (1..).zip(trials) {
        let new = trial.into_run(&case.id);
        new.check()?;
        let mut evidence = state.evidence(&org, new).await?;
        evidence.trial = Some((n, of, set.clone()));
        runs.push(state.build_run(&org, &case, evidence)?);
    }
    state.runner.store_runs(&org, &runs).await?;
    let summary = summarise_trials(&case.case, &runs, (&set, (state.clock)()));
    Ok((StatusCode::CREATED, Json(summary)).into_response())
}

/// Whether a session's runs allow its promotion.
#[derive(Serialize, ToSchema)]
pub struct Promotion {
    pub allowed: bool,
    /// False: the session has no evaluation yet.
    pub evaluated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Returns whether a session may be promoted: at least one run passed, none failed, and none waits
/// for a review by a person.
#[utoipa::path(get, path = "/evaluations/promotion/{sessionId}", tag = "runs",
    params(("sessionId" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Promotion), (status = 403)))]
pub async fn promotion(
    Extract(state): Extract<State>,
    Path(session): Path<String>,
    request: OrgRequest,
) -> Result<Json<Promotion>, ApiError> {
    let outcomes = state.store.outcomes(&request.org, &session).await?;
    let count = |outcome| outcomes.iter().find(|(o, _)| *o == outcome).map_or(0, |(_, n)| *n);
    let (passed, failed) = (count(Outcome::Pass), count(Outcome::Fail));
    let waiting = count(Outcome::NeedsReview);
    let reason = if outcomes.is_empty() {
        Some("the session was not evaluated".to_owned())
    } else if failed > 0 {
        Some(format!("{failed} of its evaluations failed"))
    } else if waiting > 0 {
        Some(format!("{waiting} of its evaluations wait for a person's review"))
    } else if passed == 0 {
        Some("none of its evaluations passed".to_owned())
    } else {
        None
    };
    Ok(Json(Promotion { allowed: reason.is_none(), evaluated: !outcomes.is_empty(), reason }))
}

/// How many sessions were evaluated.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// The number of days that are counted.
    pub days: i64,
    pub sessions_evaluated: i64,
}

/// Counts the sessions that were evaluated in the last days.
#[utoipa::path(get, path = "/evaluations/coverage", tag = "runs",
    params(("days" = Option<i64>, Query, description = "1 to 365; 30"), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Coverage), (status = 400), (status = 403)))]
pub async fn coverage(
    Extract(state): Extract<State>,
    request: OrgRequest,
) -> Result<Json<Coverage>, ApiError> {
    let days = request.params.number("days", 30, 1, 365)?;
    let since = request.now().minus_ms(days.saturating_mul(86_400_000));
    let sessions_evaluated = state.store.evaluated_since(&request.org, since).await?;
    Ok(Json(Coverage { days, sessions_evaluated }))
}

#[derive(Deserialize, ToSchema)]
pub struct Review {
    pub outcome: Outcome,
    #[serde(default)]
    pub notes: Option<String>,
}

/// Sets a run's outcome by review, which overrides the gates. Requires a human caller.
#[utoipa::path(post, path = "/evaluations/{id}/review", tag = "runs", request_body = Review,
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = EvalRun), (status = 400), (status = 403), (status = 404)))]
pub async fn review(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
    JsonBody(review): JsonBody<Review>,
) -> Result<Json<EvalRun>, ApiError> {
    request.caller.require_person_as(Role::Approver)?;
    let notes = review.notes.filter(|notes| !notes.is_empty());
    if let Some(notes) = &notes {
        check_text("notes", notes, 4_000)?;
    }
    let outcome = (review.outcome, notes);
    let run = state.store.review(&request.org, &id, outcome, changed_by(&request)).await?;
    run.map(Json).ok_or(ApiError::NotFound("evaluation"))
}
