//! The signer's configuration, one TOML file. `docs/reference/configuration.md` explains each field.

use std::path::PathBuf;

use contract::{DeviceId, KeyId, SiteId};
use serde::{Deserialize, Serialize};
use service::config::{Config, Mistakes};
use service::log::LogConfig;
use service::secret::Secret;
use trust::Purpose;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignerConfig {
    pub token: TokenConfig,
    pub key: KeyConfig,
    pub socket: SocketConfig,
    pub log: LogConfig,
}

/// The PKCS#11 token, and the module that drives it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    pub label: String,
    /// A reference to the PIN: `file:…`, `env:…` or `credential:…`.
    pub pin: Secret,
    /// The number of sessions that sign in parallel; 0 means the default.
    pub sessions: usize,
}

/// The key in the token, and the device that it belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyConfig {
    pub label: String,
    pub site: String,
    pub device: String,
    /// The kinds of message that the key may sign.
    pub purposes: Vec<Purpose>,
}

impl Default for KeyConfig {
    fn default() -> Self {
        Self {
            label: "simcorp-edge".to_owned(),
            site: String::new(),
            device: String::new(),
            purposes: Purpose::DEVICE_PURPOSES.to_vec(),
        }
    }
}

/// The socket, and the users that may request signatures.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketConfig {
    /// The socket's path. Unused if systemd passes the socket in.
    pub path: PathBuf,
    /// Users that may connect, by name or number, in addition to the signer's own.
    pub users: Vec<String>,
    /// The time limit of one signature, ms. A later signature is discarded.
    pub time_limit_ms: u64,
}

impl Default for SocketConfig {
    fn default() -> Self {
        let path = "/run/simcorp-signer/socket".into();
        Self { path, users: Vec::new(), time_limit_ms: 2_000 }
    }
}

impl SignerConfig {
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        let device = DeviceId::new(self.key.device.clone()).ok()?;
        Some(KeyId::new(&device, &SiteId::new(self.key.site.clone()).ok()?))
    }

    /// Returns the user ids that may request signatures.
    ///
    /// # Errors
    /// Returns an error that names the user that does not exist on this machine.
    pub fn allowed_users(&self) -> anyhow::Result<Vec<u32>> {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let number = |name: &String| {
            if let Ok(number) = name.parse() {
                return Ok(number);
            }
            let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
            users
                .find(|fields| fields.first() == Some(&name.as_str()))
                .and_then(|fields| fields.get(2)?.parse().ok())
                .ok_or_else(|| anyhow::anyhow!("there is no user {name:?} on this machine"))
        };
        let own = rustix::process::geteuid().as_raw();
        self.socket.users.iter().map(number).chain([Ok(own)]).collect()
    }
}

impl Config for SignerConfig {
    fn check(&self, mistakes: &mut Mistakes) {
        let t = &self.token;
        mistakes.require(
            !t.module.as_os_str().is_empty(),
            "token.module",
            "is not set; for example /usr/lib/softhsm/libsofthsm2.so",
        );
        mistakes.require(!t.label.is_empty(), "token.label", "is not set");
        mistakes.require(
            t.pin.is_set(),
            "token.pin",
            "is not set; for example credential:pin or file:/etc/simcorp-signer/pin",
        );
        mistakes.require(t.sessions <= 16, "token.sessions", "must be at most 16");
        mistakes.require(!self.key.label.is_empty(), "key.label", "is not set");
        if let Err(error) = SiteId::new(self.key.site.clone()) {
            mistakes.add("key.site", error.to_string());
        }
        if let Err(error) = DeviceId::new(self.key.device.clone()) {
            mistakes.add("key.device", error.to_string());
        }
        mistakes.require(
            (50..=60_000).contains(&self.socket.time_limit_ms),
            "socket.time_limit_ms",
            "must be between 50 and 60000",
        );
        self.log.check(mistakes);
    }
}
