use std::pin::Pin;

use service::secret::Secret;
use service_client::{ServiceClient, ServiceClientError};

use crate::auth::{Caller, TokenVerifier};
use crate::error::ApiError;

/// Verifies callers' tokens by asking the kernel.
pub struct KernelTokenVerifier(ServiceClient);

impl KernelTokenVerifier {
    /// Creates a verifier that asks the kernel at `base`.
    ///
    /// # Errors
    /// When no HTTP client can be created.
    pub fn new(base: &str) -> Result<Self, ServiceClientError> {
        Ok(Self(ServiceClient::new("kernel", base, &Secret::default())?))
    }
}

impl TokenVerifier for KernelTokenVerifier {
    fn verify<'w>(
        &'w self,
        token: &'w str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, ApiError>> + Send + 'w>> {
        Box::pin(async move {
            match self.0.get_with_token::<Caller>(token, &["whoami"]).await {
                Ok(Some(caller)) => Ok(caller),
                Err(ServiceClientError::Rejected { status: 401, .. }) => {
                    Err(ApiError::unauthorized())
                }
                Ok(None) => Err(ApiError::Unavailable("the kernel returned no caller".to_owned())),
                Err(error) => Err(error.into()),
            }
        })
    }
}
