//! Authentication. Every route except `/health`, `/ready`, `/metrics` and `/openapi.json` answers
//! only an authenticated [`Caller`]. A caller may see only the data of its organisation.

use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use contract::{Actor, ActorKind, OrgId};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::ApiError;

/// What a caller may do. Each role includes the roles before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May read.
    Viewer,
    /// May also write: notes, profiles, missions.
    Operator,
    /// May also decide: approve, cancel.
    Approver,
    /// May also administer: policy, people, keys.
    Admin,
}

impl Role {
    const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Approver, Self::Admin];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Admin => "admin",
        }
    }

    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str().eq_ignore_ascii_case(word))
    }
}

/// An authenticated caller, with its organisation and role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Caller {
    pub actor: Actor,
    /// `None`, and absent in JSON, for a service that works for all organisations.
    #[serde(default, rename = "orgId", skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgId>,
    pub role: Role,
}

impl Caller {
    /// Checks that the caller has at least `role`.
    ///
    /// # Errors
    /// 403 with a sentence, when the role is too low.
    pub fn require_role(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        let (needed, own) = (role.as_str(), self.role.as_str());
        Err(ApiError::Forbidden(format!("needs the role {needed}; you are {own}")))
    }

    /// Checks that the caller is a person, not a service.
    ///
    /// # Errors
    /// 403 when the caller is not a person.
    pub fn require_person(&self) -> Result<(), ApiError> {
        match self.actor.kind {
            ActorKind::User => Ok(()),
            _ => Err(ApiError::Forbidden("only a person may do this, not a service".to_owned())),
        }
    }

    /// Checks that the caller is a person with at least a role.
    ///
    /// # Errors
    /// 403 when the caller is not a person, or has a lower role.
    pub fn require_person_as(&self, role: Role) -> Result<(), ApiError> {
        self.require_person()?;
        self.require_role(role)
    }

    /// Returns the organisation that a request is about: the caller's, or, for a service that works
    /// for all organisations, the one that the request names.
    ///
    /// # Errors
    /// 403 when the request names an organisation that is not the caller's. 400 when the caller
    /// works for all organisations and the request names none, or its text is not an identity.
    pub fn resolve_org(&self, named: Option<&str>) -> Result<OrgId, ApiError> {
        let named = named.filter(|text| !text.is_empty());
        match (&self.org, named) {
            (Some(own), Some(named)) if own.as_str() != named => {
                Err(ApiError::Forbidden("orgId names another organisation".to_owned()))
            }
            (Some(own), _) => Ok(own.clone()),
            (None, Some(named)) => OrgId::new(named).map_err(|e| ApiError::Invalid(e.to_string())),
            (None, None) => {
                Err(ApiError::Invalid("orgId is required: this caller may act for any".to_owned()))
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

/// Looks up callers by their bearer tokens.
pub trait TokenVerifier: Send + Sync {
    /// Returns the caller that `token` belongs to.
    ///
    /// # Errors
    /// 401 when the token is invalid or unknown, 503 when it cannot be verified now.
    fn verify<'w>(
        &'w self,
        token: &'w str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, ApiError>> + Send + 'w>>;
}

/// How callers are authenticated.
#[derive(Clone)]
pub enum Auth {
    /// Every request is from this caller. The configuration allows this on loopback only.
    Dev(Box<Caller>),
    /// By bearer tokens. Lookup results are cached for a short time.
    Bearer(Arc<TokenCache>),
}

/// How long a successful token lookup is cached. The kernel caches lookups, and so does each
/// service that asks the kernel: a revocation takes effect after at most twice this time.
const VALID_TTL: Duration = Duration::from_secs(14);
/// How long a lookup that found no caller is cached.
const UNKNOWN_TTL: Duration = Duration::from_secs(5);
/// While tokens cannot be verified, a caller is still accepted until its cached lookup is this old.
const STALE_MAX: Duration = Duration::from_mins(10);
/// About the largest number of cached tokens. At this bound the ones that are used least are evicted.
const CACHED_TOKENS_MAX: usize = 10_000;

/// A cached lookup result. `caller` is `None` for an invalid or unknown token.
#[derive(Clone)]
struct CachedLookup {
    caller: Option<Caller>,
    at: Instant,
}

/// A cache in front of a [`TokenVerifier`].
pub struct TokenCache {
    verifier: Box<dyn TokenVerifier>,
    entries: Cache<u128, CachedLookup>,
    /// The cache is keyed by keyed hashes of the tokens, so it never holds a token.
    hashers: [RandomState; 2],
}

impl TokenCache {
    fn key(&self, token: &str) -> u128 {
        let [a, b] = &self.hashers;
        u128::from(a.hash_one(token)) << 64 | u128::from(b.hash_one(token))
    }

    async fn lookup(&self, token: &str) -> Result<Caller, ApiError> {
        let key = self.key(token);
        let known = self.entries.get(&key).map(|found| (found.caller, found.at.elapsed()));
        match &known {
            Some((Some(caller), age)) if *age < VALID_TTL => return Ok(caller.clone()),
            Some((None, age)) if *age < UNKNOWN_TTL => return Err(ApiError::unauthorized()),
            _ => {}
        }
        let asked = self.verifier.verify(token).await;
        match (&asked, known) {
            (Ok(caller), _) => self.insert(key, Some(caller.clone())),
            (Err(ApiError::Unauthorized(_)), _) => self.insert(key, None),
            (Err(error), Some((Some(caller), age))) if age < STALE_MAX => {
                tracing::warn!(%error, "cannot verify the token; accepting the cached caller");
                return Ok(caller);
            }
            _ => {}
        }
        asked
    }

    fn insert(&self, key: u128, caller: Option<Caller>) {
        self.entries.insert(key, CachedLookup { caller, at: Instant::now() });
    }
}

impl Auth {
    /// Returns development authentication: every request is from one person who is an admin of one
    /// organisation.
    #[must_use]
    pub fn dev(org: OrgId, user: &str) -> Self {
        let actor = Actor {
            kind: ActorKind::User,
            id: user.to_owned(),
            display: Some("Dev User".to_owned()),
            org: Some(org.clone()),
        };
        Self::Dev(Box::new(Caller { actor, org: Some(org), role: Role::Admin }))
    }

    /// Returns authentication by bearer tokens, which `who` looks up.
    #[must_use]
    pub fn bearer(who: impl TokenVerifier + 'static) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self::Bearer(Arc::new(TokenCache {
            verifier: Box::new(who),
            entries: Cache::new(CACHED_TOKENS_MAX),
            hashers,
        }))
    }

    async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        match self {
            Self::Dev(caller) => Ok(caller.as_ref().clone()),
            Self::Bearer(known) => {
                let text = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
                let (scheme, token) = text
                    .and_then(|text| text.split_once(' '))
                    .ok_or_else(ApiError::unauthorized)?;
                let token = token.trim();
                if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
                    return Err(ApiError::unauthorized());
                }
                known.lookup(token).await
            }
        }
    }
}

/// Authenticates each request with [`Auth`] and stores the [`Caller`] in its extensions. This is
/// Axum middleware: apply it to the routes with `from_fn_with_state`.
pub async fn authenticate(State(auth): State<Auth>, mut request: Request, next: Next) -> Response {
    match auth.authenticate(request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Knows one token, and counts how often it is asked.
    struct OneToken(Arc<AtomicUsize>);

    impl TokenVerifier for OneToken {
        fn verify<'w>(
            &'w self,
            token: &'w str,
        ) -> Pin<Box<dyn Future<Output = Result<Caller, ApiError>> + Send + 'w>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let Auth::Dev(caller) = Auth::dev(OrgId::new("acme").unwrap(), "ada") else { panic!() };
            let found = if token == "known" { Ok(*caller) } else { Err(ApiError::unauthorized()) };
            Box::pin(std::future::ready(found))
        }
    }

    fn cache() -> (Arc<TokenCache>, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let Auth::Bearer(cache) = Auth::bearer(OneToken(asked.clone())) else { panic!() };
        (cache, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_tokens_do_not_evict_one_that_is_in_use() {
        let (cache, asked) = cache();
        for i in 0..2 * CACHED_TOKENS_MAX {
            assert!(cache.lookup(&format!("guess {i}")).await.is_err());
            assert!(cache.lookup("known").await.is_ok());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2 * CACHED_TOKENS_MAX + 1);
        // The cache rounds its capacity up, to a multiple of its shards.
        let most = cache.entries.capacity();
        assert!(cache.entries.len() as u64 <= most, "{} of {most}", cache.entries.len());
    }
}
