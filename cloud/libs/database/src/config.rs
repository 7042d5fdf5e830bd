//! The `[database]` section of the configuration.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use service::config::Mistakes;
use service::secret::{Secret, SecretError};

/// The database, and how long it keeps data.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://user@host/name`, or `sqlite:path`. Default: `sqlite:simcorp.db` in the data
    /// folder.
    pub url: Secret,
    /// `postgres://…`: a read replica, for reads that may be slightly stale.
    pub replica_url: Secret,
    /// The replica is not used while its lag is greater than this, ms.
    pub replica_lag_max_ms: u32,
    /// The maximum number of connections.
    pub pool_max: u32,
    /// Migrate the schema at start. Off by default for PostgreSQL: several instances may start at
    /// once, and a person should choose the time (`simcorp migrate up`).
    pub migrate: Option<bool>,
    /// Signed frames are dropped after this many days; sessions, events and curves stay. 0: never.
    pub retention_days: u32,
    /// Folder of the SQLite file when `url` is not set.
    pub data: std::path::PathBuf,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            replica_url: Secret::default(),
            replica_lag_max_ms: 5_000,
            pool_max: 10,
            migrate: None,
            retention_days: 400,
            data: "var".into(),
        }
    }
}

impl DatabaseConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            (1..=200).contains(&self.pool_max),
            "database.pool_max",
            "not between 1 and 200 connections",
        );
        mistakes.require(
            !self.replica_url.is_set() || self.url.is_set(),
            "database.replica_url",
            "set without database.url; set that to its primary",
        );
        mistakes.require(
            (100..=3_600_000).contains(&self.replica_lag_max_ms),
            "database.replica_lag_max_ms",
            "not between 100 and 3600000 ms",
        );
        mistakes.require(
            self.retention_days == 0 || (30..=36_500).contains(&self.retention_days),
            "database.retention_days",
            "not 0 (for ever) or between 30 and 36500",
        );
    }

    /// Returns the address, with its secret reference resolved.
    ///
    /// # Errors
    /// When a file or variable that it refers to does not exist.
    pub fn resolve_url(&self) -> Result<SecretString, SecretError> {
        let default = || format!("sqlite:{}", self.data.join("simcorp.db").display()).into();
        Ok(self.url.resolve()?.unwrap_or_else(default))
    }
}
