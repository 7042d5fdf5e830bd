//! Routes of the registry of agents and tools, and of the policy check of tool use.

use axum::Json;
use axum::extract::{Path, State as Extract};
use contract::EpochMs;
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::{ApiError, Issue};
use http_stack::extract::JsonBody;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::ApiState;
use crate::governance::metrics::Fact;
use crate::store::CardKind;

/// A tool with this policy tag is denied to every agent.
const RESTRICTED: &str = "restricted";

/// What an agent is, as it registers itself.
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
    /// Free-form JSON of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// What a tool is, and its policy tags.
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
    /// Free-form JSON of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

fn check_texts(fields: &[(&str, &str)]) -> Result<(), ApiError> {
    let fits = |text: &str| (1..=200).contains(&text.len()) && !text.contains('\0');
    let wrong = fields.iter().filter(|(_, text)| !fits(text));
    let issues: Vec<_> = wrong.map(|(field, _)| Issue::new(field, "not 1 to 200 bytes")).collect();
    if issues.is_empty() { Ok(()) } else { Err(ApiError::Issues(issues)) }
}

/// The largest card, in bytes of JSON.
pub const CARD_BYTES_MAX: usize = 64 * 1024;

/// Checks and stores a card.
async fn register(
    state: &ApiState,
    request: &OrgRequest,
    kind: CardKind,
    (id, card): (&str, &impl Serialize),
) -> Result<(), ApiError> {
    request.caller.require_role(Role::Operator)?;
    let text = serde_json::to_string(card).map_err(ApiError::internal)?;
    if text.len() > CARD_BYTES_MAX || text.contains("\\u0000") {
        return Err(ApiError::Invalid(format!("card: more than {CARD_BYTES_MAX} bytes, or a NUL")));
    }
    let now = request.now();
    let OrgRequest { caller, org, .. } = request;
    Ok(state.store.upsert_card(org, kind, (id, card), &caller.actor, now).await?)
}

/// Registers an agent. Replaces its earlier card.
#[utoipa::path(post, path = "/agents", tag = "registry", request_body = AgentCard,
    responses((status = 200, body = AgentCard), (status = 400), (status = 403)))]
pub async fn register_agent(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(agent): JsonBody<AgentCard>,
) -> Result<Json<AgentCard>, ApiError> {
    check_texts(&[
        ("id", &agent.id),
        ("name", &agent.name),
        ("role", &agent.role),
        ("version", &agent.version),
    ])?;
    register(&state, &request, CardKind::Agent, (&agent.id, &agent)).await?;
    Ok(Json(agent))
}

/// Lists the registered agents.
#[utoipa::path(get, path = "/agents", tag = "registry", responses((status = 200, body = Vec<AgentCard>)))]
pub async fn agents(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<AgentCard>>, ApiError> {
    Ok(Json(state.store.cards(&request.org, CardKind::Agent).await?))
}

/// Returns one agent.
#[utoipa::path(get, path = "/agents/{id}", tag = "registry", params(("id" = String, Path)),
    responses((status = 200, body = AgentCard), (status = 404)))]
pub async fn agent(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<AgentCard>, ApiError> {
    let found = state.store.card(&request.org, CardKind::Agent, &id).await?;
    found.map(Json).ok_or(ApiError::NotFound("agent"))
}

/// Registers a tool. Replaces its earlier card.
#[utoipa::path(post, path = "/tools", tag = "registry", request_body = ToolCard,
    responses((status = 200, body = ToolCard), (status = 400), (status = 403)))]
pub async fn register_tool(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(tool): JsonBody<ToolCard>,
) -> Result<Json<ToolCard>, ApiError> {
    check_texts(&[("id", &tool.id), ("name", &tool.name), ("version", &tool.version)])?;
    register(&state, &request, CardKind::Tool, (&tool.id, &tool)).await?;
    Ok(Json(tool))
}

/// Lists the registered tools.
#[utoipa::path(get, path = "/tools", tag = "registry", responses((status = 200, body = Vec<ToolCard>)))]
pub async fn tools(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
) -> Result<Json<Vec<ToolCard>>, ApiError> {
    Ok(Json(state.store.cards(&request.org, CardKind::Tool).await?))
}

/// Returns one tool.
#[utoipa::path(get, path = "/tools/{id}", tag = "registry", params(("id" = String, Path)),
    responses((status = 200, body = ToolCard), (status = 404)))]
pub async fn tool(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    Path(id): Path<String>,
) -> Result<Json<ToolCard>, ApiError> {
    let found = state.store.card(&request.org, CardKind::Tool, &id).await?;
    found.map(Json).ok_or(ApiError::NotFound("tool"))
}

/// A use of a tool, to be checked.
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
    /// Free-form JSON of the client.
    #[serde(default)]
    pub context: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<EpochMs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyDecision {
    Allow,
    Deny,
}

/// The decision about the use of a tool.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAnswer {
    pub request: PolicyCheck,
    pub decision: PolicyDecision,
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
    responses((status = 200, body = PolicyAnswer), (status = 400), (status = 403)))]
pub async fn check_policy(
    Extract(state): Extract<ApiState>,
    request: OrgRequest,
    JsonBody(check): JsonBody<PolicyCheck>,
) -> Result<Json<PolicyAnswer>, ApiError> {
    request.caller.require_role(Role::Operator)?;
    check_texts(&[
        ("agentId", &check.agent_id),
        ("tool", &check.tool),
        ("action", &check.action),
        ("resource", &check.resource),
    ])?;
    let now = request.now();
    let OrgRequest { org, .. } = request;
    let tool: Option<ToolCard> = state.store.card(&org, CardKind::Tool, &check.tool).await?;
    let denied = tool.is_some_and(|tool| tool.policy_tags.iter().any(|tag| tag == RESTRICTED));
    if denied {
        state.store.count_fact(&org, Fact::SafetyGate, 1, now).await?;
    }
    Ok(Json(PolicyAnswer {
        decision: if denied { PolicyDecision::Deny } else { PolicyDecision::Allow },
        reason: denied.then(|| format!("the tool {} is restricted", check.tool)),
        checked_at: now,
        evaluator_id: "policy-engine",
        violations: if denied { vec!["restricted-tool"] } else { Vec::new() },
        request: check,
    }))
}
