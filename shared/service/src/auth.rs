//! Who is asking. Every route but `/health`, `/ready`, `/metrics` and `/openapi.json` is answered
//! only to a [`Caller`]; what a caller may see is its organisation's.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use contract::{Actor, ActorKind, OrgId};

use crate::error::ApiError;

/// What a caller may do. Each includes those before it, but [`Role::Worker`], which stands apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Viewer,
    /// Write: notes, profiles, missions.
    Operator,
    /// Decide: approve, cancel.
    Approver,
    /// Rule: policy, people, keys.
    Admin,
}

/// Who is asking, and what for them counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    pub actor: Actor,
    /// `None`: a service that works for all organisations.
    pub org: Option<OrgId>,
    pub role: Role,
}

impl Caller {
    /// # Errors
    /// 403 with a sentence, when the role is too low.
    pub fn need(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!("needs the role {role:?}; you are {:?}", self.role)))
    }

    /// A person, not a service.
    ///
    /// # Errors
    /// 403
    pub fn need_person(&self) -> Result<(), ApiError> {
        match self.actor.kind {
            ActorKind::User => Ok(()),
            _ => Err(ApiError::Forbidden("only a person may decide this".to_owned())),
        }
    }

    /// The organisation that a request is about: the caller's, or, for a service that works for
    /// all, the one it names.
    ///
    /// # Errors
    /// 403 when it is another's, 400 when nobody names one.
    pub fn org(&self, named: Option<&str>) -> Result<OrgId, ApiError> {
        let named = named.filter(|text| !text.is_empty());
        match (&self.org, named) {
            (Some(own), Some(named)) if own.as_str() != named => {
                Err(ApiError::Forbidden("of another organisation".to_owned()))
            }
            (Some(own), _) => Ok(own.clone()),
            (None, Some(named)) => OrgId::new(named).map_err(|e| ApiError::Invalid(e.to_string())),
            (None, None) => {
                Err(ApiError::Invalid("orgId: needed, since you work for all".to_owned()))
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::unauthorized)
    }
}

/// How callers are told apart.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Everybody is this one; the configuration serves loopback only.
    Dev(Caller),
}

impl Auth {
    /// Development auth: one person who may do everything in one organisation.
    #[must_use]
    pub fn dev(org: OrgId, user: &str) -> Self {
        let actor = Actor {
            kind: ActorKind::User,
            id: user.to_owned(),
            display: Some("Dev User".to_owned()),
            org: Some(org.clone()),
        };
        Self::Dev(Caller { actor, org: Some(org), role: Role::Admin })
    }

    fn caller(&self) -> Caller {
        match self {
            Self::Dev(caller) => caller.clone(),
        }
    }
}

/// Lets in whom [`Auth`] knows; to be laid around the routes with `from_fn_with_state`.
pub async fn admit(State(auth): State<Auth>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(auth.caller());
    next.run(request).await
}
