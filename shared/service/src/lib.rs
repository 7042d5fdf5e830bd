//! What every program needs for operation: configuration, JSON logs, health, readiness, metrics, an
//! MQTT connection, an HTTP server with limits, and a graceful shutdown.
//!
//! This crate must never contain domain knowledge: nothing in here knows what a roast is.
//!
//! A program declares its configuration as a type, and gets every mistake with its place and field:
//!
//! ```rust
//! use serde::{Deserialize, Serialize};
//! use service::config::{self, Config, Mistakes, Sources};
//!
//! #[derive(Debug, Default, Serialize, Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Settings {
//!     port: u16,
//! }
//!
//! impl Config for Settings {
//!     fn check(&self, mistakes: &mut Mistakes) {
//!         mistakes.require(self.port > 0, "port", "is 0");
//!     }
//! }
//!
//! let sources = Sources { set: vec!["port=0".to_owned()], ..Sources::default() };
//! let error = config::load::<Settings>(&sources, std::iter::empty()).unwrap_err();
//! let expected = "the configuration has 1 mistake:\n  --set port=0: port: is 0";
//! assert_eq!(error.to_string(), expected);
//! ```

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
#![warn(missing_docs)]

pub mod backoff;
pub mod clock;
pub mod config;
pub mod connections;
pub mod exit;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod mqtt;
pub mod openapi;
pub mod origin;
pub mod secret;
pub mod shutdown;
pub mod tasks;
pub mod tls;
