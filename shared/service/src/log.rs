//! Logs on standard error: one JSON object a line, or plain text for a person at a terminal.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line, for log collectors.
    #[default]
    Json,
    /// Plain text, for a person at a terminal.
    Text,
}

/// The configuration section `[log]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, or a filter such as `info,ingestion=debug`.
    pub level: String,
    /// `json` or `text`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        // `cryptoki` logs an error for each of the dozens of mechanisms that a token offers and it
        // does not know.
        let level = "info,rumqttd=warn,cryptoki::mechanism=off".to_owned();
        Self { level, format: LogFormat::Json }
    }
}

impl LogConfig {
    /// Reports a `level` that is not a valid filter.
    pub fn check(&self, mistakes: &mut crate::config::Mistakes) {
        if let Err(error) = EnvFilter::try_new(&self.level) {
            mistakes.add("log.level", format!("{error}; use error, warn, info or debug"));
        }
    }

    /// Starts logging for this process. A second call has no effect.
    pub fn start(&self) {
        let filter = EnvFilter::try_new(&self.level).unwrap_or_else(|_| EnvFilter::new("info"));
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // Fails only when logging has already started.
        let _ = match self.format {
            LogFormat::Json => {
                builder.json().flatten_event(true).with_current_span(false).try_init()
            }
            LogFormat::Text => builder.compact().try_init(),
        };
    }
}
