//! What every program needs for operation: configuration, JSON logs, health, readiness, metrics,
//! authentication, an MQTT connection, an HTTP shell with limits, and a graceful shutdown.
//!
//! This crate must never contain domain knowledge: nothing in here knows what a roast is.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod mqtt;
pub mod openapi;
pub mod secret;
pub mod shutdown;
pub mod tls;
