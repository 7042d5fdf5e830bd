//! The fleet as a gateway asks it.

use std::time::Duration;

use contract::EpochMs;
use contract::enroll::{Enroll, Granted, Hello, Recover, Renew, Time, Waiting};
use reqwest::{Method, StatusCode};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);
/// Behind bad internet, and a key in a TPM at both ends.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(45);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why the fleet did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Later may be better.
    #[error("the fleet at {url} cannot be asked: {problem}")]
    Away { url: String, problem: String },
    /// It says no, and why.
    #[error("the fleet refuses: {problem}")]
    Refused { status: u16, problem: String },
}

/// What a gateway with an expired certificate is answered.
pub enum Recovered {
    Granted(Box<Granted>),
    Waiting(Waiting),
}

pub struct Fleet {
    url: String,
    http: reqwest::Client,
}

impl Fleet {
    /// # Errors
    /// When the system gives no HTTP client.
    #[allow(clippy::disallowed_methods)] // with its limits
    pub fn at(url: &str, tls: ClientConfig) -> Result<Self, AskError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME_MAX)
            .timeout(ANSWER_TIME_MAX)
            .pool_max_idle_per_host(0) // asked once in days
            .build()
            .map_err(|error| AskError::Away { url: url.to_owned(), problem: error.to_string() })?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    pub async fn enroll(&self, asked: &Enroll) -> Result<Granted, AskError> {
        let (_, body) = self.ask(Method::POST, "/v1/enroll", Some(asked)).await?;
        self.read(&body)
    }

    pub async fn renew(&self, asked: &Renew) -> Result<Granted, AskError> {
        let (_, body) = self.ask(Method::POST, "/v1/renew", Some(asked)).await?;
        self.read(&body)
    }

    pub async fn recover(&self, asked: &Recover) -> Result<Recovered, AskError> {
        let (status, body) = self.ask(Method::POST, "/v1/recover", Some(asked)).await?;
        if status == StatusCode::ACCEPTED {
            return self.read(&body).map(Recovered::Waiting);
        }
        self.read(&body).map(|granted| Recovered::Granted(Box::new(granted)))
    }

    pub async fn hello(&self) -> Result<Hello, AskError> {
        let (_, body) = self.ask(Method::GET, "/v1/hello", None::<&()>).await?;
        self.read(&body)
    }

    /// The fleet's clock. It is told to anybody, so that nobody needs a good certificate to learn that
    /// theirs has expired.
    pub async fn time(&self) -> Result<EpochMs, AskError> {
        let (_, body) = self.ask(Method::GET, "/v1/time", None::<&()>).await?;
        self.read::<Time>(&body).map(|time| time.now)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Vec<u8>), AskError> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request.send().await.map_err(|error| self.away(&error))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.away(&error))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                let problem = format!("its answer is longer than {ANSWER_BYTES_MAX} bytes");
                return Err(AskError::Away { url: self.url.clone(), problem });
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok((status, bytes));
        }
        let told: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let told = told.as_ref().and_then(|body| body["error"].as_str());
        let problem = told.map_or_else(|| status.to_string(), str::to_owned);
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(AskError::Away { url: self.url.clone(), problem });
        }
        Err(AskError::Refused { status: status.as_u16(), problem })
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, AskError> {
        serde_json::from_slice(body).map_err(|error| AskError::Away {
            url: self.url.clone(),
            problem: format!("its answer cannot be read: {error}"),
        })
    }

    /// The cause is what helps: "error sending request" is not.
    fn away(&self, error: &reqwest::Error) -> AskError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        AskError::Away { url: self.url.clone(), problem: cause.to_string() }
    }
}
