//! Routes of the circuit breaker: its events and its rules.

use axum::Json;
use axum::extract::{Path, State as Extract};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiState;
use super::responses::RecordChanged;
use crate::governance::breaker::{BreakerAction, BreakerEvent, Rule, Severity};
use crate::store::{RecordFilter, RecordKind};

/// Lists the circuit breaker's last 20 events.
#[utoipa::path(get, path = "/api/circuit-breaker/events", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<BreakerEvent>), (status = 403)))]
pub async fn events(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<BreakerEvent>>, ApiError> {
    let filter = RecordFilter { limit: 20, ..RecordFilter::default() };
    Ok(Json(state.store.records(&request.org, RecordKind::Event, filter).await?))
}

/// Lists the circuit breaker's unresolved events.
#[utoipa::path(get, path = "/api/circuit-breaker/events/unresolved", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<BreakerEvent>), (status = 403)))]
pub async fn unresolved(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<BreakerEvent>>, ApiError> {
    let filter = RecordFilter { status: Some("open"), limit: 100, id: None };
    Ok(Json(state.store.records(&request.org, RecordKind::Event, filter).await?))
}

/// Resolves a circuit-breaker event. Requires a human caller.
#[utoipa::path(post, path = "/api/circuit-breaker/events/{id}/resolve", tag = "circuit breaker",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = RecordChanged), (status = 403), (status = 404)))]
pub async fn resolve(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<RecordChanged>, ApiError> {
    request.caller.require_person_as(Role::Approver)?;
    let who = (&request.caller.actor, "breaker.resolve", request.now());
    let target = (RecordKind::Event, id.as_str(), "open");
    let resolve = |event: &mut BreakerEvent| {
        event.resolved = true;
        event.resolved_at = Some(request.now());
        Some("resolved")
    };
    let found: Option<BreakerEvent> =
        state.store.change_record(&request.org, target, who, resolve).await?;
    found.ok_or(ApiError::NotFound("unresolved event"))?;
    Ok(Json(RecordChanged::new(id)))
}

/// Lists the circuit breaker's rules.
#[utoipa::path(get, path = "/api/circuit-breaker/rules", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Rule>), (status = 403)))]
pub async fn rules(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<Rule>>, ApiError> {
    Ok(Json(state.store.breaker_rules(&request.org).await?))
}

/// Lists the circuit breaker's enabled rules.
#[utoipa::path(get, path = "/api/circuit-breaker/rules/enabled", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Rule>), (status = 403)))]
pub async fn rules_enabled(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<Rule>>, ApiError> {
    let mut rules = state.store.breaker_rules(&request.org).await?;
    rules.retain(|rule| rule.enabled);
    Ok(Json(rules))
}

/// The fields of a rule to change.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RulePatch {
    #[serde(default)]
    pub enabled: Option<bool>,
    #[serde(default)]
    pub condition: Option<String>,
    #[serde(default)]
    pub window: Option<String>,
    #[serde(default)]
    pub action: Option<BreakerAction>,
    #[serde(default)]
    pub alert_severity: Option<Severity>,
}

/// The response after a rule was changed.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuleChanged {
    pub name: String,
    /// Always true.
    pub success: bool,
}

/// Changes a rule. Fields that are left out keep their values.
#[utoipa::path(patch, path = "/api/circuit-breaker/rules/{name}", tag = "circuit breaker",
    request_body = RulePatch, params(("name" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = RuleChanged), (status = 400), (status = 403), (status = 404)))]
pub async fn change_rule(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(name): Path<String>,
    JsonBody(patch): JsonBody<RulePatch>,
) -> Result<Json<RuleChanged>, ApiError> {
    request.caller.require_role(Role::Admin)?;
    let rules = state.store.breaker_rules(&request.org).await?;
    let found = rules.into_iter().find(|rule| rule.name == name);
    let before = found.ok_or(ApiError::NotFound("rule"))?;
    let rule = Rule {
        enabled: patch.enabled.unwrap_or(before.enabled),
        condition: patch.condition.unwrap_or(before.condition),
        window: patch.window.unwrap_or(before.window),
        action: patch.action.unwrap_or(before.action),
        alert_severity: patch.alert_severity.unwrap_or(before.alert_severity),
        name: before.name,
    };
    rule.check().map_err(|error| ApiError::Issues(vec![Issue::new("", error)]))?;
    state.store.set_breaker_rule(&request.org, &rule, &request.caller.actor, request.now()).await?;
    Ok(Json(RuleChanged { name, success: true }))
}
