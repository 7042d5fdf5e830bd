//! Actors: who or what did something.

use serde::{Deserialize, Serialize};

use crate::OrgId;

/// The kind of an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ActorKind {
    /// A person.
    User,
    /// A mission agent.
    Agent,
    /// A gateway.
    Device,
    /// A service of the cloud itself.
    System,
}

/// Who did something: a person, an agent, a device or a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Actor {
    /// What the actor is.
    pub kind: ActorKind,
    /// The actor's identity within its kind.
    pub id: String,
    /// A name to show to people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<String>,
    /// The organisation that the actor belongs to.
    #[serde(default, rename = "orgId", skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgId>,
}
