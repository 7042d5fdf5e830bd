//! Routes of the weekly review, of an organisation's autonomy state, and of proposals to expand it.

use axum::Json;
use axum::extract::{Path, State as Extract};
use contract::{EpochMs, OrgId};
use http_stack::OrgRequest;
use http_stack::auth::{Caller, Role};
use http_stack::error::ApiError;
use http_stack::extract::JsonBody;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiState;
use super::governance::{DAY_MS, latest, new_id};
use super::responses::RecordChanged;
use crate::governance::breaker::BreakerEvent;
use crate::governance::weekly_review::{self, Approval, Proposal, REPORT_EVENTS_MAX, Report};
use crate::governance::{AutonomyState, Phase};
use crate::store::{GovernanceRecord, RecordFilter, RecordKind};

impl ApiState {
    /// Returns whether the circuit breaker has no open event.
    async fn is_quiet(&self, org: &OrgId) -> Result<bool, ApiError> {
        let filter = RecordFilter { status: Some("open"), limit: 1, id: None };
        let open: Vec<BreakerEvent> = self.store.records(org, RecordKind::Event, filter).await?;
        Ok(open.is_empty())
    }
}

/// Runs the weekly review now. Stores a report and, if agents are ready, a proposal to expand.
#[utoipa::path(post, path = "/api/governance/run-cycle", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Report), (status = 403)))]
pub async fn run_cycle(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Report>, ApiError> {
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    caller.require_role(Role::Approver)?;
    let (month, readiness) = state.readiness(&org, now).await?;
    let (_, autonomy) = state.store.autonomy_state(&org, now).await?;
    let week = state.store.autonomy_metrics(&org, (now.plus_ms(-7 * DAY_MS), now)).await?;
    let limit = i64::try_from(REPORT_EVENTS_MAX).unwrap_or(10);
    let filter = RecordFilter { limit, ..RecordFilter::default() };
    let events: Vec<BreakerEvent> = state.store.records(&org, RecordKind::Event, filter).await?;
    let quiet = state.is_quiet(&org).await?;
    let mut expansion = None;
    if readiness.overall.ready && quiet {
        expansion = weekly_review::propose(&autonomy, &month, &readiness, (new_id()?, now));
    }
    if let Some(proposal) = &expansion {
        let record = GovernanceRecord {
            kind: RecordKind::Proposal,
            id: &proposal.proposal_id,
            at: now,
            status: "pending",
            unique_key: Some("pending"),
            body: proposal,
        };
        if !state.store.insert_record(&org, &record).await? {
            expansion = None; // a proposal is already pending
        }
    }
    let mut report = Report {
        id: new_id()?,
        week_start: now.plus_ms(-7 * DAY_MS),
        week_end: now,
        generated_at: now,
        metrics: week,
        recommendations: readiness.recommendations.clone(),
        next_actions: readiness.next_actions.clone(),
        readiness,
        expansion,
        circuit_breaker_events: events,
        summary: String::new(),
    };
    report.summary = weekly_review::summary(&autonomy, &report);
    let record = GovernanceRecord {
        kind: RecordKind::Report,
        id: &report.id,
        at: now,
        status: "kept",
        unique_key: None,
        body: &report,
    };
    state.store.insert_record(&org, &record).await?;
    let doing = ("governance.cycle", now);
    let proposed = report.expansion.is_some();
    let note = |s: &mut AutonomyState| {
        s.known.last_report = Some(now);
        if proposed {
            s.known.last_expansion = Some(now);
        }
    };
    state.store.change_autonomy(&org, &caller.actor, doing, note).await?;
    Ok(Json(report))
}

/// Lists reports, newest first.
#[utoipa::path(get, path = "/api/governance/reports", tag = "governance",
    params(("limit" = Option<i64>, Query, description = "0 to 100; default 10"), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Report>), (status = 400), (status = 403)))]
pub async fn reports(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<Report>>, ApiError> {
    let filter = RecordFilter { limit: request.params.limit(10, 100)?, ..RecordFilter::default() };
    Ok(Json(state.store.records(&request.org, RecordKind::Report, filter).await?))
}

/// Returns the newest report, or `null`.
#[utoipa::path(get, path = "/api/governance/reports/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Report>), (status = 403)))]
pub async fn report_latest(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Option<Report>>, ApiError> {
    latest(&state, &request.org, RecordKind::Report, None).await
}

/// Returns one report, or `null`.
#[utoipa::path(get, path = "/api/governance/reports/{id}", tag = "governance",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Report>), (status = 403)))]
pub async fn report(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<Option<Report>>, ApiError> {
    latest(&state, &request.org, RecordKind::Report, Some(&id)).await
}

/// How much autonomy an organisation's agents have now.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutonomyStatus {
    /// Command types of agents for which a high autonomy level counts.
    pub command_whitelist: Vec<String>,
    /// True while the circuit breaker has paused commands.
    pub commands_paused: bool,
    pub current_phase: Phase,
    pub days_since_phase_start: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_expansion_date: Option<EpochMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_report_date: Option<EpochMs>,
    pub phase_start_date: EpochMs,
}

/// Returns the organisation's autonomy state: phase, whitelist and whether commands are paused.
#[utoipa::path(get, path = "/api/governance/state", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = AutonomyStatus), (status = 403)))]
pub async fn state(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<AutonomyStatus>, ApiError> {
    let (_, autonomy) = state.store.autonomy_state(&request.org, request.now()).await?;
    Ok(Json(AutonomyStatus {
        commands_paused: state.paused(&request.org).await?,
        current_phase: autonomy.phase,
        days_since_phase_start: autonomy.days(request.now()),
        last_expansion_date: autonomy.known.last_expansion,
        last_report_date: autonomy.known.last_report,
        phase_start_date: autonomy.since,
        command_whitelist: autonomy.known.whitelist,
    }))
}

/// Lists the pending proposals.
#[utoipa::path(get, path = "/api/governance/proposals", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Proposal>), (status = 403)))]
pub async fn proposals(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<Proposal>>, ApiError> {
    let filter = RecordFilter { status: Some("pending"), limit: 20, id: None };
    Ok(Json(state.store.records(&request.org, RecordKind::Proposal, filter).await?))
}

/// Which of the required approvals the caller gives.
#[derive(Deserialize, ToSchema)]
pub struct ApproveAs {
    /// tech-lead, ops-lead, product-lead or exec-sponsor; default: the first missing approval.
    #[serde(default, rename = "as")]
    pub role: Option<String>,
}

/// The state of a proposal after a person approved it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProposalApproved {
    /// True if all required approvals were given, so that the phase has changed.
    pub approved: bool,
    pub approved_by: String,
    pub id: String,
    /// How many required approvals are missing.
    pub missing_approvals: usize,
    /// Always true.
    pub success: bool,
}

/// Approves a proposal as one of the required approvers.
///
/// The caller is the approver; two approvals need two people. The last required approval changes
/// the phase.
#[utoipa::path(post, path = "/api/governance/proposals/{id}/approve", tag = "governance",
    request_body = ApproveAs, params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = ProposalApproved), (status = 400), (status = 403), (status = 404),
              (status = 409)))]
pub async fn approve(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
    JsonBody(approval): JsonBody<ApproveAs>,
) -> Result<Json<ProposalApproved>, ApiError> {
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    caller.require_person_as(Role::Admin)?;
    let proposal = loop {
        let found = state.store.pending_proposal(&org, &id).await?;
        let (version, mut proposal) = found.ok_or(ApiError::NotFound("pending proposal"))?;
        let (state_version, mut autonomy) = state.store.autonomy_state(&org, now).await?;
        // The conditions for the proposal must still hold.
        let outdated = autonomy.phase != proposal.expansion.current_phase
            || autonomy.since > proposal.timestamp;
        if outdated || !state.is_quiet(&org).await? {
            return Err(ApiError::Conflict(
                "the phase changed or a circuit-breaker event is open; resolve it, then run a cycle"
                    .to_owned(),
            ));
        }
        sign(&mut proposal, approval.role.as_deref(), &caller, now)?;
        let mut expanded = None;
        if proposal.approvals.len() >= proposal.required_approvals.len() {
            autonomy.phase = proposal.expansion.target_phase;
            autonomy.since = now;
            autonomy.known.whitelist.extend(proposal.expansion.commands_to_whitelist.clone());
            expanded = Some((state_version, &autonomy));
        }
        let by = (&caller.actor, now);
        if state.store.approve_proposal(&org, (version, &proposal), expanded, by).await? {
            break proposal;
        }
    };
    let done = proposal.approvals.len() >= proposal.required_approvals.len();
    let missing = proposal.required_approvals.len().saturating_sub(proposal.approvals.len());
    Ok(Json(ProposalApproved {
        approved: done,
        approved_by: caller.actor.id,
        id,
        missing_approvals: missing,
        success: true,
    }))
}

/// Adds a person's approval to a proposal.
fn sign(
    proposal: &mut Proposal,
    role: Option<&str>,
    caller: &Caller,
    now: EpochMs,
) -> Result<(), ApiError> {
    let given = |role: &str| proposal.approvals.iter().any(|one| one.role == role);
    let missing = proposal.required_approvals.iter().find(|role| !given(role)).cloned();
    let role = role.map(str::to_owned).or(missing).unwrap_or_default();
    if !proposal.required_approvals.contains(&role) || given(&role) {
        let problem = format!("{role}: not one of the missing approvals");
        return Err(ApiError::Conflict(problem));
    }
    if proposal.approvals.iter().any(|one| one.approved_by == caller.actor.id) {
        let problem = "you have already approved this; another person must approve it";
        return Err(ApiError::Conflict(problem.to_owned()));
    }
    let approved_by = caller.actor.id.clone();
    proposal.approvals.push(Approval { role, approved_by, at: now });
    Ok(())
}

/// Rejects a proposal. Requires a human caller.
#[utoipa::path(post, path = "/api/governance/proposals/{id}/reject", tag = "governance",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = RecordChanged), (status = 403), (status = 404)))]
pub async fn reject(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<RecordChanged>, ApiError> {
    request.caller.require_person_as(Role::Approver)?;
    let who = (&request.caller.actor, "governance.reject", request.now());
    let target = (RecordKind::Proposal, id.as_str(), "pending");
    let found: Option<Proposal> =
        state.store.change_record(&request.org, target, who, |_| Some("rejected")).await?;
    found.ok_or(ApiError::NotFound("pending proposal"))?;
    Ok(Json(RecordChanged::new(id)))
}
