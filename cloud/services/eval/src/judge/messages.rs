//! Implements [`Model`] with the Anthropic Messages API,
//! <https://docs.anthropic.com/en/api/messages>.

use std::pin::Pin;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::json;
use service::backoff::Backoff;
use service::secret::Secret;

use super::{JudgeError, Model};
use crate::config::JudgeConfig;

const VERSION: &str = "2023-06-01";
const TOKENS_MAX: u32 = 2_000;
const TEMPERATURE: f64 = 0.3;
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Attempts for one question. If all of them fail, the model is asked about the run again later.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(20);

pub struct MessagesClient {
    http: reqwest::Client,
    url: String,
    key: Secret,
    model: String,
}

#[derive(Deserialize)]
struct Answer {
    content: Vec<Part>,
    #[serde(default)]
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

impl MessagesClient {
    /// Creates a client for the configured API.
    ///
    /// # Errors
    /// If the HTTP client cannot be built.
    #[allow(clippy::disallowed_methods)] // the client is built here, with its limits
    pub fn new(config: &JudgeConfig) -> Result<Self, service_client::ServiceClientError> {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_millis(config.answer_ms.into()))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| service_client::ServiceClientError::Unreachable {
                peer: "judge",
                problem: error.to_string(),
            })?;
        Ok(Self {
            http,
            url: format!("{}/v1/messages", config.url.trim_end_matches('/')),
            key: config.api_key.clone(),
            model: config.model.clone(),
        })
    }

    async fn send_once(&self, body: &serde_json::Value) -> Result<String, JudgeError> {
        let key =
            self.key.resolve().map_err(|error| JudgeError::AccessDenied(error.to_string()))?;
        let key = key.ok_or_else(|| JudgeError::AccessDenied("no API key".to_owned()))?;
        let request = self.http.post(&self.url).header("anthropic-version", VERSION).json(body);
        let request = request.header("x-api-key", sensitive(key.expose_secret())?);
        let away = |error: reqwest::Error| JudgeError::Unavailable(error.without_url().to_string());
        let mut answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(away)? {
            bytes.extend_from_slice(&part);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(JudgeError::Answer("too large".to_owned()));
            }
        }
        // 529: overloaded.
        if status.is_server_error() || status.as_u16() == 429 || status.as_u16() == 408 {
            return Err(JudgeError::Unavailable(status.to_string()));
        }
        if matches!(status.as_u16(), 401 | 403 | 404) {
            return Err(JudgeError::AccessDenied(status.to_string()));
        }
        if !status.is_success() {
            return Err(JudgeError::Refused(status.to_string()));
        }
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|error| JudgeError::Answer(error.to_string()))?;
        if answer.stop_reason.as_deref() == Some("max_tokens") {
            return Err(JudgeError::Answer("cut off at max_tokens".to_owned()));
        }
        Ok(answer.content.into_iter().map(|part| part.text).collect())
    }
}

fn sensitive(key: &str) -> Result<reqwest::header::HeaderValue, JudgeError> {
    let mut value = reqwest::header::HeaderValue::from_str(key).map_err(|_| {
        JudgeError::AccessDenied("the API key is not a valid header value".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

impl Model for MessagesClient {
    fn name(&self) -> &str {
        &self.model
    }

    fn ask<'m>(
        &'m self,
        system: &'m str,
        question: &'m str,
    ) -> Pin<Box<dyn Future<Output = Result<String, JudgeError>> + Send + 'm>> {
        Box::pin(async move {
            let body = json!({
                "model": self.model, "max_tokens": TOKENS_MAX, "temperature": TEMPERATURE,
                "system": system, "messages": [{"role": "user", "content": question}],
            });
            let mut wait = Backoff::new(FIRST_WAIT, LAST_WAIT);
            let mut attempt = 1_u32;
            loop {
                match self.send_once(&body).await {
                    Err(JudgeError::Unavailable(_)) if attempt < ATTEMPTS => {}
                    other => return other,
                }
                attempt = attempt.saturating_add(1);
                let spread = trust::jitter();
                tokio::time::sleep(wait.next(spread)).await;
            }
        })
    }
}
