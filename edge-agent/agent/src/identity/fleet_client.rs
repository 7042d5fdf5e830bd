//! The HTTP client of the fleet service, for enrolment and certificates.

use std::time::Duration;

use contract::EpochMs;
use contract::enroll::{
    CertificateGrant, EnrollRequest, FleetTime, GatewayIdentity, PendingDecision, RecoverRequest,
    RenewRequest,
};
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
pub enum FleetError {
    /// The fleet could not be reached, failed, or sent an invalid response. A retry may succeed.
    #[error("the request to the fleet at {url} failed: {problem}")]
    Unavailable { url: String, problem: String },
    /// The fleet rejected the request and gave this reason.
    #[error("the fleet refuses: {problem}")]
    Refused { status: u16, problem: String },
}

/// The fleet's response to a gateway whose certificate has expired.
pub enum RecoveryResult {
    /// A new certificate.
    Granted(Box<CertificateGrant>),
    /// A person has not decided yet.
    Pending(PendingDecision),
}

/// The client of one fleet service.
pub struct FleetClient {
    url: String,
    http: reqwest::Client,
}

impl FleetClient {
    /// Creates a client for the fleet at `url`.
    ///
    /// # Errors
    /// When the HTTP client cannot be created.
    #[allow(clippy::disallowed_methods)] // its time limits are set here
    pub fn new(url: &str, tls: ClientConfig) -> Result<Self, FleetError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME_MAX)
            .timeout(ANSWER_TIME_MAX)
            .pool_max_idle_per_host(0) // requests are days apart
            .build()
            .map_err(|error| FleetError::Unavailable {
                url: url.to_owned(),
                problem: error.to_string(),
            })?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    /// Exchanges an enrolment token for a certificate.
    pub async fn enroll(&self, request: &EnrollRequest) -> Result<CertificateGrant, FleetError> {
        let (_, body) = self.send(Method::POST, "/v1/enroll", Some(request)).await?;
        self.read(&body)
    }

    /// Requests the next certificate, authenticated by the present one.
    pub async fn renew(&self, request: &RenewRequest) -> Result<CertificateGrant, FleetError> {
        let (_, body) = self.send(Method::POST, "/v1/renew", Some(request)).await?;
        self.read(&body)
    }

    /// Requests a certificate after the last one has expired; a person must approve it.
    pub async fn recover(&self, request: &RecoverRequest) -> Result<RecoveryResult, FleetError> {
        let (status, body) = self.send(Method::POST, "/v1/recover", Some(request)).await?;
        if status == StatusCode::ACCEPTED {
            return self.read(&body).map(RecoveryResult::Pending);
        }
        self.read(&body).map(|granted| RecoveryResult::Granted(Box::new(granted)))
    }

    /// Verifies that the fleet accepts our certificate; returns what it answers.
    pub async fn hello(&self) -> Result<GatewayIdentity, FleetError> {
        let (_, body) = self.send(Method::GET, "/v1/hello", None::<&()>).await?;
        self.read(&body)
    }

    /// Returns the fleet's time. This route needs no client certificate, so that a gateway can find
    /// out that its own has expired.
    pub async fn time(&self) -> Result<EpochMs, FleetError> {
        let (_, body) = self.send(Method::GET, "/v1/time", None::<&()>).await?;
        self.read::<FleetTime>(&body).map(|time| time.now)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Vec<u8>), FleetError> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request.send().await.map_err(|error| self.unavailable(&error))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unavailable(&error))? {
            if bytes.len().saturating_add(chunk.len()) > ANSWER_BYTES_MAX {
                let problem = format!("its response is longer than {ANSWER_BYTES_MAX} bytes");
                return Err(FleetError::Unavailable { url: self.url.clone(), problem });
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok((status, bytes));
        }
        let message: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let message = message.as_ref().and_then(|body| body["error"].as_str());
        let problem = message.map_or_else(|| status.to_string(), str::to_owned);
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(FleetError::Unavailable { url: self.url.clone(), problem });
        }
        Err(FleetError::Refused { status: status.as_u16(), problem })
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, FleetError> {
        serde_json::from_slice(body).map_err(|error| FleetError::Unavailable {
            url: self.url.clone(),
            problem: format!("its response is invalid: {error}"),
        })
    }

    /// Returns the innermost cause, because the outer "error sending request" does not help.
    fn unavailable(&self, error: &reqwest::Error) -> FleetError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        FleetError::Unavailable { url: self.url.clone(), problem: cause.to_string() }
    }
}
