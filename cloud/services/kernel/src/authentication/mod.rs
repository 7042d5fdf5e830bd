//! Authentication: people by tokens of an OIDC issuer, services and scripts by API keys. Only the
//! kernel verifies them; every other service asks the kernel.

pub mod keys;
pub mod oidc;

use std::pin::Pin;

use http_stack::auth::{Caller, TokenVerifier};
use http_stack::error::ApiError;

use crate::store::KernelStore;
use service::clock::Clock;

/// Authenticates callers.
pub struct Authenticator {
    store: KernelStore,
    clock: Clock,
    oidc: oidc::Oidc,
}

impl Authenticator {
    #[must_use]
    pub const fn new(store: KernelStore, clock: Clock, oidc: oidc::Oidc) -> Self {
        Self { store, clock, oidc }
    }

    async fn authenticate(&self, token: &str) -> Result<Caller, ApiError> {
        let now = (self.clock)();
        if keys::ApiKeyToken::has_key_prefix(token) {
            let token = keys::ApiKeyToken::parse(token).ok_or_else(ApiError::unauthorized)?;
            let key = self.store.key(token.id()).await?;
            let key =
                key.filter(|key| key.accepts(&token, now)).ok_or_else(ApiError::unauthorized)?;
            return Ok(key.caller());
        }
        let mut caller = self.oidc.authenticate(token, now).await?;
        // A role override takes precedence over the issuer's role.
        if let Some(org) = &caller.org {
            match self.store.role(org, &caller.actor.id).await? {
                None => {}
                Some(Some(role)) => caller.role = role,
                Some(None) => return Err(ApiError::unauthorized()),
            }
        }
        Ok(caller)
    }
}

impl TokenVerifier for Authenticator {
    fn verify<'w>(
        &'w self,
        token: &'w str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, ApiError>> + Send + 'w>> {
        Box::pin(self.authenticate(token))
    }
}
