//! Routes of the registry of agents and tools, and of the policy check of tool use.

use axum::Json;
use axum::extract::{Path, State as Extract};
use contract::EpochMs;
use http_stack::auth::{Caller, Role};
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use http_stack::query::Params;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::ApiState;
use crate::governance::metrics::Fact;
use crate::store::CardKind;

/// A tool with this policy tag is denied to every agent.
const RESTRICTED: &str = "restricted";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentCard {
    pub id: String,
    pub name: String,
    pub role: String,
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default)]
    pub capabilities: Vec<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub metadata: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolCard {
    pub id: String,
    pub name: String,
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default)]
    pub capabilities: Vec<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub policy_tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub metadata: Option<Map<String, Value>>,
}

fn check_texts(fields: &[(&str, &str)]) -> Result<(), ApiError> {
    let fits = |text: &str| (1..=200).contains(&text.len()) && !text.contains('\0');
    let wrong = fields.iter().filter(|(_, text)| !fits(text));
    let issues: Vec<_> = wrong.map(|(field, _)| Issue::new(field, "not 1 to 200 bytes")).collect();
    if issues.is_empty() { Ok(()) } else { Err(ApiError::Issues(issues)) }
}

async fn register(
    state: &ApiState,
    caller: &Caller,
    params: &Params,
    kind: CardKind,
    (id, card): (&str, Value),
) -> Result<Json<Value>, ApiError> {
    const CARD_BYTES_MAX: usize = 64 * 1024;
    caller.require_role(Role::Operator)?;
    let text = card.to_string();
    if text.len() > CARD_BYTES_MAX || text.contains("\\u0000") {
        return Err(ApiError::Invalid(format!("card: more than {CARD_BYTES_MAX} bytes, or a NUL")));
    }
    let org = caller.resolve_org(params.get("orgId"))?;
    let now = (state.clock)();
    state.store.upsert_card(&org, kind, (id, &card), &caller.actor, now).await?;
    Ok(Json(card))
}

async fn cards(
    state: &ApiState,
    caller: &Caller,
    params: &Params,
    kind: CardKind,
) -> Result<Json<Vec<Value>>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    Ok(Json(state.store.cards(&org, kind).await?))
}

async fn card(
    state: &ApiState,
    caller: &Caller,
    params: &Params,
    kind: CardKind,
    id: &str,
) -> Result<Json<Value>, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let found = state.store.card(&org, kind, id).await?;
    found.map(Json).ok_or(ApiError::NotFound(kind.as_str()))
}

/// Registers an agent. Replaces its earlier card.
#[utoipa::path(post, path = "/agents", tag = "registry", request_body = AgentCard,
    responses((status = 200, body = AgentCard), (status = 400), (status = 403)))]
pub async fn register_agent(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
    JsonBody(agent): JsonBody<AgentCard>,
) -> Result<Json<Value>, ApiError> {
    check_texts(&[
        ("id", &agent.id),
        ("name", &agent.name),
        ("role", &agent.role),
        ("version", &agent.version),
    ])?;
    let card = serde_json::to_value(&agent).map_err(ApiError::internal)?;
    register(&state, &caller, &params, CardKind::Agent, (&agent.id, card)).await
}

/// Lists the registered agents.
#[utoipa::path(get, path = "/agents", tag = "registry", responses((status = 200, body = Vec<AgentCard>)))]
pub async fn agents(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    cards(&state, &caller, &params, CardKind::Agent).await
}

/// Returns one agent.
#[utoipa::path(get, path = "/agents/{id}", tag = "registry", params(("id" = String, Path)),
    responses((status = 200, body = AgentCard), (status = 404)))]
pub async fn agent(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    card(&state, &caller, &params, CardKind::Agent, &id).await
}

/// Registers a tool. Replaces its earlier card.
#[utoipa::path(post, path = "/tools", tag = "registry", request_body = ToolCard,
    responses((status = 200, body = ToolCard), (status = 400), (status = 403)))]
pub async fn register_tool(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
    JsonBody(tool): JsonBody<ToolCard>,
) -> Result<Json<Value>, ApiError> {
    check_texts(&[("id", &tool.id), ("name", &tool.name), ("version", &tool.version)])?;
    let card = serde_json::to_value(&tool).map_err(ApiError::internal)?;
    register(&state, &caller, &params, CardKind::Tool, (&tool.id, card)).await
}

/// Lists the registered tools.
#[utoipa::path(get, path = "/tools", tag = "registry", responses((status = 200, body = Vec<ToolCard>)))]
pub async fn tools(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    cards(&state, &caller, &params, CardKind::Tool).await
}

/// Returns one tool.
#[utoipa::path(get, path = "/tools/{id}", tag = "registry", params(("id" = String, Path)),
    responses((status = 200, body = ToolCard), (status = 404)))]
pub async fn tool(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    card(&state, &caller, &params, CardKind::Tool, &id).await
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCheck {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub agent_id: String,
    pub tool: String,
    pub action: String,
    pub resource: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mission_id: Option<String>,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub context: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<EpochMs>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAnswer {
    pub request: PolicyCheck,
    /// ALLOW or DENY
    pub decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub checked_at: EpochMs,
    pub evaluator_id: &'static str,
    pub violations: Vec<&'static str>,
}

/// Checks whether an agent may perform an action with a tool.
///
/// A restricted tool is denied to every agent, whatever the request's `context` contains.
#[utoipa::path(post, path = "/policy/check", tag = "registry", request_body = PolicyCheck,
    responses((status = 200, body = PolicyAnswer), (status = 400)))]
pub async fn check_policy(
    Extract(state): Extract<ApiState>,
    caller: Caller,
    params: Params,
    JsonBody(request): JsonBody<PolicyCheck>,
) -> Result<Json<PolicyAnswer>, ApiError> {
    check_texts(&[
        ("agentId", &request.agent_id),
        ("tool", &request.tool),
        ("action", &request.action),
        ("resource", &request.resource),
    ])?;
    let org = caller.resolve_org(params.get("orgId"))?;
    let card = state.store.card(&org, CardKind::Tool, &request.tool).await?;
    let tags = card.as_ref().and_then(|card| card["policyTags"].as_array());
    let denied = tags.is_some_and(|tags| tags.iter().any(|tag| tag == RESTRICTED));
    if denied {
        state.store.count_fact(&org, Fact::SafetyGate, 1, (state.clock)()).await?;
    }
    Ok(Json(PolicyAnswer {
        decision: if denied { "DENY" } else { "ALLOW" },
        reason: denied.then(|| format!("the tool {} is restricted", request.tool)),
        checked_at: (state.clock)(),
        evaluator_id: "policy-engine",
        violations: if denied { vec!["restricted-tool"] } else { Vec::new() },
        request,
    }))
}
