//! Who is asking: people by tokens of an OIDC issuer, services and scripts by API keys. The kernel
//! alone knows; every other service asks it.

pub mod keys;
pub mod oidc;

use std::pin::Pin;

use service::auth::{Caller, Who};
use service::error::ApiError;

use crate::Clock;
use crate::store::KernelStore;

/// Tells callers apart.
pub struct People {
    store: KernelStore,
    clock: Clock,
    oidc: oidc::Oidc,
}

impl People {
    #[must_use]
    pub const fn new(store: KernelStore, clock: Clock, oidc: oidc::Oidc) -> Self {
        Self { store, clock, oidc }
    }

    async fn find(&self, token: &str) -> Result<Caller, ApiError> {
        let now = (self.clock)();
        if keys::Token::looks_like(token) {
            let token = keys::Token::parse(token).ok_or_else(ApiError::unauthorized)?;
            let key = self.store.key(token.id()).await?;
            let key =
                key.filter(|key| key.opens(&token, now)).ok_or_else(ApiError::unauthorized)?;
            return Ok(key.caller());
        }
        let mut caller = self.oidc.caller(token, now).await?;
        // What is set here counts before what the issuer says.
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

impl Who for People {
    fn who<'w>(
        &'w self,
        token: &'w str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, ApiError>> + Send + 'w>> {
        Box::pin(self.find(token))
    }
}
