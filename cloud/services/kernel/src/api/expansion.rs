//! Routes of the weekly review, of an organisation's autonomy state, and of proposals to expand it.

use axum::Json;
use axum::extract::{Path, State as Extract};
use contract::{EpochMs, OrgId};
use http_stack::auth::{Caller, Role};
use http_stack::error::ApiError;
use http_stack::extract::JsonBody;
use http_stack::query::Params;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::governance::{DAY_MS, latest, new_id};
use crate::governance::breaker::BreakerEvent;
use crate::governance::cycle::{self, Approval, Proposal, REPORT_EVENTS_MAX, Report};
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
    caller: Caller,
    params: Params,
) -> Result<Json<Report>, ApiError> {
    caller.require_role(Role::Approver)?;
    let org = caller.resolve_org(params.get("orgId"))?;
    let now = (state.clock)();
    let (month, readiness) = state.readiness(&org).await?;
    let (_, autonomy) = state.store.autonomy_state(&org, now).await?;
    let week = state.store.autonomy_metrics(&org, (now.plus_ms(-7 * DAY_MS), now)).await?;
    let told = i64::try_from(REPORT_EVENTS_MAX).unwrap_or(10);
    let filter = RecordFilter { limit: told, ..RecordFilter::default() };
    let events: Vec<BreakerEvent> = state.store.records(&org, RecordKind::Event, filter).await?;
    let quiet = state.is_quiet(&org).await?;
    let mut expansion = None;
    if readiness.overall.ready && quiet {
        expansion = cycle::propose(&autonomy, &month, &readiness, (new_id()?, now));
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
    report.summary = cycle::summary(&autonomy, &report);
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
    let note = |s: &mut crate::governance::AutonomyState| {
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
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Report>>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let filter = RecordFilter { limit: params.limit(10, 100)?, ..RecordFilter::default() };
    Ok(Json(state.store.records(&org, RecordKind::Report, filter).await?))
}

/// Returns the newest report, or `null`.
#[utoipa::path(get, path = "/api/governance/reports/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Report>), (status = 403)))]
pub async fn report_latest(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, RecordKind::Report, None).await
}

/// Returns one report, or `null`.
#[utoipa::path(get, path = "/api/governance/reports/{id}", tag = "governance",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Report>), (status = 403)))]
pub async fn report(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, RecordKind::Report, Some(&id)).await
}

/// Returns the organisation's autonomy state: phase, whitelist and whether commands are paused.
#[utoipa::path(get, path = "/api/governance/state", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 403)))]
pub async fn state(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let now = (state.clock)();
    let (_, found) = state.store.autonomy_state(&org, now).await?;
    let known = &found.known;
    let paused = state.paused(&org).await?;
    let mut body = json!({"currentPhase": found.phase, "phaseStartDate": found.since,
        "commandWhitelist": known.whitelist, "daysSincePhaseStart": found.days(now),
        "commandsPaused": paused});
    for (name, time) in
        [("lastReportDate", known.last_report), ("lastExpansionDate", known.last_expansion)]
    {
        if let Some(time) = time {
            body[name] = json!(time);
        }
    }
    Ok(Json(body))
}

/// Lists the pending proposals.
#[utoipa::path(get, path = "/api/governance/proposals", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Proposal>), (status = 403)))]
pub async fn proposals(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Proposal>>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let filter = RecordFilter { status: Some("pending"), limit: 20, id: None };
    Ok(Json(state.store.records(&org, RecordKind::Proposal, filter).await?))
}

#[derive(Deserialize, ToSchema)]
pub struct ApproveAs {
    /// tech-lead, ops-lead, product-lead or exec-sponsor; default: the first missing approval.
    #[serde(default, rename = "as")]
    pub role: Option<String>,
}

/// Approves a proposal as one of the required approvers.
///
/// The caller is the approver; two approvals need two people. The last required approval changes
/// the phase.
#[utoipa::path(post, path = "/api/governance/proposals/{id}/approve", tag = "governance",
    request_body = ApproveAs, params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403), (status = 404),
              (status = 409)))]
pub async fn approve(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    JsonBody(approval): JsonBody<ApproveAs>,
) -> Result<Json<Value>, ApiError> {
    caller.require_person()?;
    caller.require_role(Role::Admin)?;
    let org = caller.resolve_org(params.get("orgId"))?;
    let now = (state.clock)();
    let proposal = loop {
        let found = state.store.pending_proposal(&org, &id).await?;
        let (version, mut proposal) = found.ok_or(ApiError::NotFound("pending proposal"))?;
        let (state_version, mut stands) = state.store.autonomy_state(&org, now).await?;
        // The conditions for the proposal must still hold.
        let moved =
            stands.phase != proposal.expansion.current_phase || stands.since > proposal.timestamp;
        if moved || !state.is_quiet(&org).await? {
            return Err(ApiError::Conflict(
                "the phase changed or a circuit-breaker event is open; resolve it, then run a cycle"
                    .to_owned(),
            ));
        }
        sign(&mut proposal, approval.role.as_deref(), &caller, now)?;
        let mut expanded = None;
        if proposal.approvals.len() >= proposal.required_approvals.len() {
            stands.phase = proposal.expansion.target_phase;
            stands.since = now;
            stands.known.whitelist.extend(proposal.expansion.commands_to_whitelist.clone());
            expanded = Some((state_version, &stands));
        }
        let by = (&caller.actor, now);
        if state.store.approve_proposal(&org, (version, &proposal), expanded, by).await? {
            break proposal;
        }
    };
    let done = proposal.approvals.len() >= proposal.required_approvals.len();
    let missing = proposal.required_approvals.len() - proposal.approvals.len();
    Ok(Json(json!({"success": true, "id": id, "approvedBy": caller.actor.id,
                   "approved": done, "missingApprovals": missing})))
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
    responses((status = 200, body = Object), (status = 403), (status = 404)))]
pub async fn reject(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    caller.require_person()?;
    caller.require_role(Role::Approver)?;
    let org = caller.resolve_org(params.get("orgId"))?;
    let who = (&caller.actor, "governance.reject", (state.clock)());
    let place = (RecordKind::Proposal, id.as_str(), "pending");
    let found: Option<Proposal> =
        state.store.change_record(&org, place, who, |_| Some("rejected")).await?;
    found.ok_or(ApiError::NotFound("pending proposal"))?;
    Ok(Json(json!({"success": true, "id": id})))
}
