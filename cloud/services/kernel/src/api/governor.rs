//! Routes of the governor's policy and of the audit log.

use axum::Json;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use contract::ActorKind;
use contract::mission::{Action, GovernanceDecision};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;

use super::ApiState;
use crate::governance::metrics::Fact;
use crate::governor::{self, CommandFacts, CommandRequest, GovernorConfig};
use crate::store::VersionedConfig;

/// Returns the policy in force. Its version is the `ETag`.
#[utoipa::path(get, path = "/governor/config", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = GovernorConfig), (status = 403)))]
pub async fn get(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Response, ApiError> {
    Ok(answer(state.store.governor_config(&request.org).await?))
}

/// Replaces the policy. With `If-Match`, returns 412 if the current version is a different one.
#[utoipa::path(put, path = "/governor/config", tag = "governance", request_body = GovernorConfig,
    params(("orgId" = Option<String>, Query), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = GovernorConfig), (status = 400), (status = 403), (status = 412)))]
pub async fn put(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    headers: HeaderMap,
    JsonBody(config): JsonBody<GovernorConfig>,
) -> Result<Response, ApiError> {
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    caller.require_role(Role::Admin)?;
    let issues: Vec<Issue> =
        config.problems().iter().map(|(field, problem)| Issue::new(field, problem)).collect();
    if !issues.is_empty() {
        return Err(ApiError::Issues(issues));
    }
    let before = state.store.governor_config(&org).await?;
    let faster = || ApiError::Precondition("the policy has changed; read it again".to_owned());
    if let Some(if_match) = headers.get(header::IF_MATCH)
        && if_match.as_bytes() != etag(before.version).as_bytes()
    {
        return Err(faster());
    }
    let set = state.store.set_governor_config(&org, &before, config, &caller.actor, now).await?;
    Ok(answer(set.ok_or_else(faster)?))
}

fn etag(version: i64) -> String {
    format!("\"{version}\"")
}

fn answer(versioned: VersionedConfig) -> Response {
    ([(header::ETAG, etag(versioned.version))], Json(versioned.config)).into_response()
}

/// Checks whether a command may be proposed, before the proposal is made.
///
/// An allowed command still needs a person's approval.
#[utoipa::path(post, path = "/governor/commands/check", tag = "governance",
    request_body = CommandRequest, params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = GovernanceDecision), (status = 400), (status = 403)))]
pub async fn check_command(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(mut command): JsonBody<CommandRequest>,
) -> Result<Json<GovernanceDecision>, ApiError> {
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    caller.require_role(Role::Operator)?;
    // An agent must not claim that a person proposes the command.
    if caller.actor.kind == ActorKind::Agent {
        command.proposed_by = ActorKind::Agent;
    }
    let autonomy = state.store.governor_config(&org).await?.config.command_autonomy;
    let window_ms = i64::from(autonomy.evaluation_window_minutes).saturating_mul(60_000);
    let recent = state.store.autonomy_metrics(&org, (now.minus_ms(window_ms), now)).await?;
    let failure_rate =
        if recent.commands.ended() > 0 { 1.0 - recent.rates.success_rate } else { 0.0 };
    let (_, current) = state.store.autonomy_state(&org, now).await?;
    let whitelisted = current.known.whitelist.contains(&command.command_type);
    let facts = CommandFacts { failure_rate, paused: state.paused(&org).await?, whitelisted };
    let decision = governor::decide_command(&autonomy, &command, &facts, now);
    if decision.action != Action::Allow {
        state.store.count_fact(&org, Fact::SafetyGate, 1, now).await?;
    }
    Ok(Json(decision))
}
