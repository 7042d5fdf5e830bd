//! Secrets in a configuration: references that are resolved once, at start, and always masked.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A secret as written in a configuration: `file:/run/secrets/x`, `env:NAME`, `credential:NAME`
/// (systemd's `LoadCredential`), or, for development, the secret itself.
#[derive(Clone, Default)]
pub struct Secret(Option<SecretString>);

/// Why a secret reference cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file of a `file:` or `credential:` reference cannot be read.
    #[error("the file {path} cannot be read: {source}")]
    File {
        /// The path of the file.
        path: String,
        /// The reason of the operating system.
        source: std::io::Error,
    },
    /// The environment variable of this name is not set.
    #[error("the environment variable {0} is not set")]
    Env(String),
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self((!text.is_empty()).then(|| text.into()))
    }
}

impl Secret {
    /// Returns true if anything is configured, without resolving it.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Reads the secret itself; `None` when nothing is configured.
    ///
    /// # Errors
    /// When the file cannot be read or the variable is not set.
    pub fn resolve(&self) -> Result<Option<SecretString>, SecretError> {
        let Some(configured) = &self.0 else { return Ok(None) };
        let text = configured.expose_secret();
        if let Some(path) = text.strip_prefix("file:") {
            let read = std::fs::read_to_string(path);
            let mut content =
                read.map_err(|source| SecretError::File { path: path.to_owned(), source })?;
            // Truncated in place: a copy would stay behind in memory.
            content.truncate(content.trim_end().len());
            return Ok(Some(content.into()));
        }
        if let Some(name) = text.strip_prefix("credential:") {
            let folder = std::env::var("CREDENTIALS_DIRECTORY")
                .map_err(|_| SecretError::Env("CREDENTIALS_DIRECTORY".to_owned()))?;
            return Self::from(format!("file:{folder}/{name}")).resolve();
        }
        if let Some(name) = text.strip_prefix("env:") {
            let value = std::env::var(name).map_err(|_| SecretError::Env(name.to_owned()))?;
            return Ok(Some(value.into()));
        }
        Ok(Some(configured.clone()))
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// Reads a string. Refuses every other type, such as a PIN without quotes, which is a number.
    /// The error must never contain the value.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = toml::Value::deserialize(deserializer).ok().and_then(|value| match value {
            toml::Value::String(text) => Some(text),
            _ => None,
        });
        let refused = || D::Error::custom("invalid type, expected a string in quotes");
        text.map(Self::from).ok_or_else(refused)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "Secret(***)" } else { "Secret(none)" })
    }
}

impl Serialize for Secret {
    /// Writes a reference as it is, because it helps the reader; writes `***` for a secret.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.0.as_ref().map_or("", ExposeSecret::expose_secret);
        let reference =
            ["file:", "env:", "credential:"].iter().any(|p| text.starts_with(p)) || text.is_empty();
        serializer.serialize_str(if reference { text } else { "***" })
    }
}
