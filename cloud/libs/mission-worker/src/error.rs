//! Why an attempt at a mission failed.

use service::tasks::Panicked;
use service_client::ServiceClientError;

/// Why an attempt at a mission failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
    Service(#[from] ServiceClientError),
    #[error("the policy denies {0}")]
    Denied(&'static str),
    /// Another attempt would fail in the same way.
    #[error("{0}")]
    Permanent(String),
    /// A resource of the worker itself is unavailable. A later attempt may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of our program. The mission is tried again as often as its attempts allow.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    #[error("not done within {0} s")]
    Timeout(u32),
    /// Another worker may have the mission by now, so no result is reported.
    #[error("the lease is lost")]
    LeaseLost,
}

impl WorkError {
    /// Returns whether another attempt may help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Service(error) => error.is_transient(),
            Self::Timeout(_) | Self::Unavailable(_) | Self::Panicked(_) => true,
            Self::Denied(_) | Self::Permanent(_) | Self::LeaseLost => false,
        }
    }
}
