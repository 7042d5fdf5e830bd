//! The HTTP client of the fleet service, for enrolment and certificates.

use std::time::Duration;

use contract::EpochMs;
use contract::enroll::{Enroll, Granted, Hello, Recover, Renew, Time, Waiting};
use reqwest::{Method, StatusCode};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);
/// Allows for a bad internet connection, and for a key in a TPM at both ends.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(45);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why a request to the fleet failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The fleet could not be reached, failed, or sent an invalid response. A retry may succeed.
    #[error("the request to the fleet at {url} failed: {problem}")]
    Away { url: String, problem: String },
    /// The fleet rejected the request and gave this reason.
    #[error("the fleet refuses: {problem}")]
    Refused { status: u16, problem: String },
}

/// The fleet's response to a gateway whose certificate has expired.
pub enum Recovered {
    /// A new certificate.
    Granted(Box<Granted>),
    /// A person has not decided yet.
    Waiting(Waiting),
}

/// The client of one fleet service.
pub struct Fleet {
    url: String,
    http: reqwest::Client,
}

impl Fleet {
    /// Creates a client for the fleet at `url`.
    ///
    /// # Errors
    /// When the HTTP client cannot be created.
    #[allow(clippy::disallowed_methods)] // its time limits are set here
    pub fn at(url: &str, tls: ClientConfig) -> Result<Self, AskError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME_MAX)
            .timeout(ANSWER_TIME_MAX)
            .pool_max_idle_per_host(0) // requests are days apart
            .build()
            .map_err(|error| AskError::Away { url: url.to_owned(), problem: error.to_string() })?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    /// Exchanges an enrolment token for a certificate.
    pub async fn enroll(&self, asked: &Enroll) -> Result<Granted, AskError> {
        let (_, body) = self.ask(Method::POST, "/v1/enroll", Some(asked)).await?;
        self.read(&body)
    }

    /// Requests the next certificate, authenticated by the present one.
    pub async fn renew(&self, asked: &Renew) -> Result<Granted, AskError> {
        let (_, body) = self.ask(Method::POST, "/v1/renew", Some(asked)).await?;
        self.read(&body)
    }

    /// Requests a certificate after the last one has expired; a person must approve it.
    pub async fn recover(&self, asked: &Recover) -> Result<Recovered, AskError> {
        let (status, body) = self.ask(Method::POST, "/v1/recover", Some(asked)).await?;
        if status == StatusCode::ACCEPTED {
            return self.read(&body).map(Recovered::Waiting);
        }
        self.read(&body).map(|granted| Recovered::Granted(Box::new(granted)))
    }

    /// Verifies that the fleet accepts our certificate; returns what it answers.
    pub async fn hello(&self) -> Result<Hello, AskError> {
        let (_, body) = self.ask(Method::GET, "/v1/hello", None::<&()>).await?;
        self.read(&body)
    }

    /// Returns the fleet's time. This route needs no client certificate, so that a gateway can find
    /// out that its own has expired.
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
                let problem = format!("its response is longer than {ANSWER_BYTES_MAX} bytes");
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
            problem: format!("its response is invalid: {error}"),
        })
    }

    /// Returns the innermost cause, because the outer "error sending request" does not help.
    fn away(&self, error: &reqwest::Error) -> AskError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        AskError::Away { url: self.url.clone(), problem: cause.to_string() }
    }
}
