//! `[database]`

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use service::config::Mistakes;
use service::secret::{Secret, SecretError};

/// Where the data is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://user@host/name`, or `sqlite:path`. Nothing: `sqlite:simcorp.db` in the data
    /// folder.
    pub url: Secret,
    /// `postgres://…`: a read replica, for reads that may be a moment old.
    pub replica_url: Secret,
    /// While the replica is older than this it is left out, ms.
    pub replica_lag_max_ms: u32,
    /// Connections at most.
    pub pool_max: u32,
    /// Bring the schema up to date at start. Off for PostgreSQL unless asked: several instances
    /// may start at once, and a person should choose the moment (`simcorp migrate up`).
    pub migrate: Option<bool>,
    /// Signed frames are dropped after this many days; roasts, marks and curves stay. 0: never.
    pub retention_days: u32,
    /// Folder of the SQLite file when no address is given.
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
            "a replica of what? Set database.url to its primary",
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

    /// The address, its reference resolved.
    ///
    /// # Errors
    /// When a file or variable it refers to is not there.
    pub fn resolve_url(&self) -> Result<SecretString, SecretError> {
        let default = || format!("sqlite:{}", self.data.join("simcorp.db").display()).into();
        Ok(self.url.resolve()?.unwrap_or_else(default))
    }
}
