//! The signer's configuration: one TOML file. `docs/reference/configuration.md` explains each field.

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

/// Which token, through which module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    pub label: String,
    /// `file:…`, `env:…` or `credential:…`.
    pub pin: Secret,
    /// Sessions that sign side by side.
    pub sessions: usize,
}

/// Which key, and whose.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyConfig {
    pub label: String,
    pub site: String,
    pub device: String,
    /// What it may sign.
    pub purposes: Vec<Purpose>,
}

impl Default for KeyConfig {
    fn default() -> Self {
        Self {
            label: "simcorp-edge".to_owned(),
            site: String::new(),
            device: String::new(),
            purposes: Purpose::OF_A_DEVICE.to_vec(),
        }
    }
}

/// Who may ask, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketConfig {
    /// Left out where systemd hands the socket over.
    pub path: PathBuf,
    /// Users, by name or number, beside our own.
    pub users: Vec<String>,
    /// A signature that takes longer is none.
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

    /// The numbers of those who may ask.
    ///
    /// # Errors
    /// Names the user that this machine does not know.
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
            "is not set; such as /usr/lib/softhsm/libsofthsm2.so",
        );
        mistakes.require(!t.label.is_empty(), "token.label", "is not set");
        mistakes.require(
            t.pin.is_set(),
            "token.pin",
            "is not set; such as credential:pin or file:/etc/simcorp-signer/pin",
        );
        mistakes.require(t.sessions <= 16, "token.sessions", "more than 16");
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
            "not between 50 and 60000",
        );
        self.log.check(mistakes);
    }
}
