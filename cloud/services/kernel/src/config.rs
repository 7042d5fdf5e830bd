//! The configuration section `[kernel]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelConfig {
    pub listen: SocketAddr,
    /// A worker that sends no heartbeat for this long loses its mission, ms.
    pub lease_ms: u32,
    /// Base URL of eval, which reports the roasts that may be promoted and how many were evaluated.
    pub eval_url: String,
    /// The key that signs checkpoints of the audit log; created if it does not exist. Empty:
    /// `audit-key.pem` in the data folder. The checkpoints are written beside it.
    pub audit_key_file: PathBuf,
    /// How often the audit log gets a checkpoint, min; 0: never.
    pub audit_checkpoint_minutes: u32,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            lease_ms: 30_000,
            eval_url: "http://127.0.0.1:4007".to_owned(),
            audit_key_file: PathBuf::new(),
            audit_checkpoint_minutes: 15,
        }
    }
}

impl KernelConfig {
    /// Returns the path of the key that signs checkpoints of the audit log.
    #[must_use]
    pub fn audit_key_file(&self, data: &Path) -> PathBuf {
        let file = &self.audit_key_file;
        if file.as_os_str().is_empty() { data.join("audit-key.pem") } else { file.clone() }
    }

    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            (1_000..=3_600_000).contains(&self.lease_ms),
            "kernel.lease_ms",
            "not between 1000 and 3600000 ms",
        );
        mistakes.require_http_url("kernel.eval_url", &self.eval_url);
        mistakes.require(
            self.audit_checkpoint_minutes <= 1_440,
            "kernel.audit_checkpoint_minutes",
            "not between 0 and 1440 min",
        );
    }
}
