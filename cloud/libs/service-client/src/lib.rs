//! The HTTP client with which one service calls another: it has a time limit, sends the service's
//! own credential, and its errors state whether a retry can help.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::time::Duration;

use contract::OrgId;
use reqwest::{Method, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use service::secret::{Secret, SecretError};

/// A service that has not answered within this time counts as unreachable.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest accepted response; a roast of one day at 10 Hz is smaller.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A client of another service.
#[derive(Clone)]
pub struct ServiceClient {
    name: &'static str,
    base: String,
    token: Credential,
    http: reqwest::Client,
}

/// The credential that is sent to another service.
#[derive(Clone)]
enum Credential {
    /// The service's own credential, read for each request, so that it can be changed at run time.
    Own(Secret),
    /// A caller's token: forwarded unchanged, and never interpreted as a reference to a secret.
    Forwarded(SecretString),
}

/// Why a request to another service failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceClientError {
    /// The service does not answer, or not in time. A later retry may help.
    #[error("{peer} does not answer: {problem}")]
    Unreachable { peer: &'static str, problem: String },
    /// The service is busy or broken (429, 5xx). A later retry may help.
    #[error("{peer} is busy: {status}: {problem}")]
    Busy { peer: &'static str, status: u16, problem: String },
    /// The service rejected the request (4xx).
    #[error("{peer} rejects the request: {status}: {problem}")]
    Rejected { peer: &'static str, status: u16, problem: String },
    /// The response does not have the agreed form.
    #[error("{peer} sent an unreadable response: {problem}")]
    InvalidResponse { peer: &'static str, problem: String },
    #[error("this service's own credential: {0}")]
    Credential(#[from] SecretError),
}

impl ServiceClientError {
    /// Returns whether a later retry may help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. })
    }

    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Rejected { status, .. } | Self::Busy { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A service's response.
#[derive(Debug)]
pub struct ServiceResponse<T> {
    pub status: u16,
    /// The version of the body, if the service returns one.
    pub etag: Option<String>,
    pub body: T,
}

impl ServiceClient {
    /// Creates a client. `base` is `http://host:port`; with an empty `token`, requests have no
    /// credential.
    ///
    /// # Errors
    /// When no HTTP client can be created.
    #[allow(clippy::disallowed_methods)] // the client is created here, with its limits
    pub fn new(name: &'static str, base: &str, token: &Secret) -> Result<Self, ServiceClientError> {
        service::tls::install_crypto_provider();
        let http = reqwest::Client::builder()
            .timeout(RESPONSE_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ServiceClientError::Unreachable {
                peer: name,
                problem: error.to_string(),
            })?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { name, base, token: Credential::Own(token.clone()), http })
    }

    /// Checks whether the service answers at all, for `/ready`.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), ServiceClientError> {
        let answer = self.http.get(format!("{}/health", self.base)).send().await;
        answer.map(drop).map_err(|error| self.unreachable(&error))
    }

    /// Returns the caller that this client's credential authenticates (`GET /whoami`).
    ///
    /// # Errors
    /// [`ServiceClientError`]
    pub async fn whoami<T: DeserializeOwned>(&self) -> Result<T, ServiceClientError> {
        let answer = self.send::<T>(Method::GET, None, &["whoami"], &[], |asked| asked).await?;
        answer.map(|answer| answer.body).ok_or_else(|| self.unreadable("an empty body"))
    }

    /// Sends a GET request. Returns `None` on 404.
    ///
    /// # Errors
    /// [`ServiceClientError`]
    pub async fn get<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Option<T>, ServiceClientError> {
        Ok(self.get_tagged(org, path, query).await?.map(|answer| answer.body))
    }

    /// Sends a GET request and returns the body with its version; `None` on 404.
    ///
    /// # Errors
    /// [`ServiceClientError`]
    pub async fn get_tagged<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Option<ServiceResponse<T>>, ServiceClientError> {
        match self.send::<T>(Method::GET, Some(org), path, query, |asked| asked).await {
            Ok(Some(answer)) => Ok(Some(answer)),
            Ok(None) => Err(self.unreadable("an empty body")),
            Err(ServiceClientError::Rejected { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a POST request with a JSON body. Returns `None` on 204.
    ///
    /// # Errors
    /// [`ServiceClientError`]
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        org: Option<&OrgId>,
        path: &[&str],
        body: &B,
    ) -> Result<Option<ServiceResponse<T>>, ServiceClientError> {
        self.send(Method::POST, org, path, &[], |asked| asked.json(body)).await
    }

    /// Sends a POST request with a body of another type than JSON.
    ///
    /// # Errors
    /// [`ServiceClientError`]
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        path: &[&str],
        (kind, bytes): (&'static str, Vec<u8>),
    ) -> Result<Option<ServiceResponse<T>>, ServiceClientError> {
        let with =
            |asked: reqwest::RequestBuilder| asked.header(header::CONTENT_TYPE, kind).body(bytes);
        self.send(Method::POST, Some(org), path, &[], with).await
    }

    /// Sends a PUT request. With `if_match`, the service changes only that version of the resource.
    ///
    /// # Errors
    /// [`ServiceClientError`]
    pub async fn put<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        org: &OrgId,
        path: &[&str],
        if_match: Option<&str>,
        body: &B,
    ) -> Result<Option<ServiceResponse<T>>, ServiceClientError> {
        let with = |asked: reqwest::RequestBuilder| match if_match {
            Some(version) => asked.header(header::IF_MATCH, version).json(body),
            None => asked.json(body),
        };
        self.send(Method::PUT, Some(org), path, &[], with).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        org: Option<&OrgId>,
        path: &[&str],
        query: &[(&str, &str)],
        with: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Option<ServiceResponse<T>>, ServiceClientError> {
        let mut url = reqwest::Url::parse(&self.base).map_err(|error| {
            ServiceClientError::Unreachable { peer: self.name, problem: error.to_string() }
        })?;
        if let Ok(mut segments) = url.path_segments_mut() {
            // Each segment is escaped, so that an id can never become another path.
            segments.pop_if_empty().extend(path);
        }
        let named = org.map(|org| ("orgId", org.as_str()));
        for (name, value) in named.iter().chain(query) {
            url.query_pairs_mut().append_pair(name, value);
        }
        let mut request = self.http.request(method, url);
        let token = match &self.token {
            Credential::Own(secret) => secret.resolve()?,
            Credential::Forwarded(token) => Some(token.clone()),
        };
        if let Some(token) = token {
            request = request.bearer_auth(token.expose_secret());
        }
        let mut answer = with(request).send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let etag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let etag = etag.map(str::to_owned);
        if answer.content_length().is_some_and(|n| n > RESPONSE_BYTES_MAX as u64) {
            return Err(self.unreadable("it is too large"));
        }
        // A response may have no length, or another one.
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            if bytes.len().saturating_add(chunk.len()) > RESPONSE_BYTES_MAX {
                return Err(self.unreadable("it is too large"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.status_error(status, &bytes));
        }
        let body = serde_json::from_slice(&bytes).map_err(|error| self.unreadable(error))?;
        Ok(Some(ServiceResponse { status: status.as_u16(), etag, body }))
    }

    fn status_error(&self, status: StatusCode, body: &[u8]) -> ServiceClientError {
        let answer: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let sentence = answer.as_ref().and_then(|body| body["error"].as_str());
        let (peer, problem) = (self.name, sentence.unwrap_or("no reason given").to_owned());
        let status_code = status.as_u16();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            ServiceClientError::Busy { peer, status: status_code, problem }
        } else {
            ServiceClientError::Rejected { peer, status: status_code, problem }
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> ServiceClientError {
        let mut problem = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            problem = format!("{problem}: {source}");
            cause = source.source();
        }
        ServiceClientError::Unreachable { peer: self.name, problem }
    }

    /// Sends a GET request with a caller's token instead of the service's own credential.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_with_token<T: DeserializeOwned>(
        &self,
        token: &str,
        path: &[&str],
    ) -> Result<Option<T>, ServiceClientError> {
        let token = Credential::Forwarded(token.to_owned().into());
        let client = Self { token, ..self.clone() };
        let response = client.send(Method::GET, None, path, &[], |request| request).await?;
        Ok(response.map(|response| response.body))
    }

    fn unreadable(&self, problem: impl std::fmt::Display) -> ServiceClientError {
        ServiceClientError::InvalidResponse { peer: self.name, problem: problem.to_string() }
    }
}
