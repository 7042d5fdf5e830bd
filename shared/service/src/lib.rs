//! What every program needs to be operable: one way to configure, JSON logs, health, readiness,
//! metrics, an HTTP shell with limits, and a shutdown that drains.
//!
//! Nothing in here knows what a roast is.

pub mod auth;
pub mod backoff;
pub mod config;
pub mod error;
pub mod extract;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod mqtt;
pub mod openapi;
pub mod query;
pub mod secret;
pub mod shutdown;
pub mod tls;
