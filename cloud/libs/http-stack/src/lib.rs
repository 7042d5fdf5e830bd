//! The HTTP half of every service of the cloud: the stack of layers that each request passes
//! ([`stack`]), who the caller is ([`auth`]) and what it asks ([`request`], [`extract`], [`query`]),
//! and how an error is answered ([`error`]). [`start`] is the skeleton of every service.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod access;
pub mod auth;
mod bucket;
mod cors;
pub mod error;
pub mod extract;
pub mod idempotency;
mod kernel_verifier;
pub mod limit;
pub mod query;
mod rate_limit;
pub mod request;
pub mod stack;
pub mod start;

pub use access::AccessControl;
pub use bucket::{Bucket, Rate, RateLimitDecision};
pub use cors::CorsConfig;
pub use kernel_verifier::KernelTokenVerifier;
pub use limit::{Limits, LimitsConfig};
pub use rate_limit::too_many_requests;
pub use request::OrgRequest;
