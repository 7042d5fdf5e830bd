//! What every handler asks of its request: who calls, for which organisation, with which parameters,
//! and when.

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use contract::{EpochMs, OrgId};
use service::clock::Clock;

use crate::auth::Caller;
use crate::error::ApiError;
use crate::query::Params;

/// A request that concerns one organisation: the caller's, or, for a service that works for all
/// organisations, the one in the query parameter `orgId`.
///
/// A handler whose organisation is in the body takes a [`Caller`] and calls
/// [`Caller::resolve_org`].
///
/// # Errors
/// As an extractor: 401 without a caller, 403 when `orgId` is not the caller's organisation, 400
/// when it is missing or no identity, or the query cannot be read.
pub struct OrgRequest {
    pub caller: Caller,
    pub org: OrgId,
    pub params: Params,
    clock: Clock,
}

impl OrgRequest {
    /// Returns the time. It is read at the call and not when the request arrives: a body may arrive
    /// slowly, and a lease may expire meanwhile.
    #[must_use]
    pub fn now(&self) -> EpochMs {
        (self.clock)()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for OrgRequest
where
    Clock: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let params = Params::from_request_parts(parts, state).await?;
        let org = caller.resolve_org(params.get("orgId"))?;
        Ok(Self { caller, org, params, clock: Clock::from_ref(state) })
    }
}
