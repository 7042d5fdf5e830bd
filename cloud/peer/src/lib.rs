//! How one service asks another: HTTP with a time limit, a service's own credential, and errors that
//! say whether asking again can help. And how a service works on missions ([`work`]).

mod tools;
pub mod work;

use std::pin::Pin;
use std::time::Duration;

use contract::OrgId;
use reqwest::{Method, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use service::auth::{Caller, Who};
use service::error::ApiError;
use service::secret::{Secret, SecretError};

pub use tools::Tools;

/// A service that has not answered by then is away.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// The largest answer: a day's roast at 10 Hz is smaller.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Another service.
#[derive(Clone)]
pub struct Peer {
    name: &'static str,
    base: String,
    token: Credential,
    http: reqwest::Client,
}

/// What we show another service.
#[derive(Clone)]
enum Credential {
    /// Our own, read anew each time, so that it can be changed while we run.
    Own(Secret),
    /// Somebody's who asked us: shown as it came, never taken for a reference.
    Shown(SecretString),
}

/// Why another service did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody answers, or not in time: later may be better.
    #[error("{peer} does not answer: {problem}")]
    Away { peer: &'static str, problem: String },
    /// It is busy or broken (429, 5xx): later may be better.
    #[error("{peer} is busy: {status}: {problem}")]
    Busy { peer: &'static str, status: u16, problem: String },
    /// It says no (4xx).
    #[error("{peer} refuses: {status}: {problem}")]
    Refused { peer: &'static str, status: u16, problem: String },
    /// It said something else than was agreed.
    #[error("{peer} answered what cannot be read: {problem}")]
    Answer { peer: &'static str, problem: String },
    #[error("our own credential: {0}")]
    Credential(#[from] SecretError),
}

impl PeerError {
    /// True when asking again later may help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Busy { .. })
    }

    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } | Self::Busy { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl From<PeerError> for ApiError {
    fn from(error: PeerError) -> Self {
        match &error {
            PeerError::Away { .. } | PeerError::Busy { .. } => {
                tracing::warn!(%error, "a service does not answer");
                Self::Unavailable(error.to_string())
            }
            PeerError::Refused { status: 403, problem, .. } => Self::Forbidden(problem.clone()),
            PeerError::Refused { status: 400, problem, .. } => Self::Invalid(problem.clone()),
            _ => Self::internal(error),
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub struct Answer<T> {
    pub status: u16,
    /// Which version it is, where the service says so.
    pub etag: Option<String>,
    pub body: T,
}

impl Peer {
    /// `base` as `http://host:port`; without a token nobody is told who asks.
    ///
    /// # Errors
    /// When the system gives no HTTP client.
    #[allow(clippy::disallowed_methods)] // this is where it is made, with its limits
    pub fn new(name: &'static str, base: &str, token: &Secret) -> Result<Self, PeerError> {
        let http = reqwest::Client::builder()
            .timeout(ANSWER_TIME_MAX)
            .connect_timeout(CONNECT_TIME_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| PeerError::Away { peer: name, problem: error.to_string() })?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { name, base, token: Credential::Own(token.clone()), http })
    }

    /// For `/ready`: whether it answers at all.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), PeerError> {
        let answer = self.http.get(format!("{}/health", self.base)).send().await;
        answer.map(drop).map_err(|error| self.away(&error))
    }

    /// Who we are, by the credential that we show.
    ///
    /// # Errors
    /// [`PeerError`]
    pub async fn me<T: DeserializeOwned>(&self) -> Result<T, PeerError> {
        let answer = self.send::<T>(Method::GET, None, &["whoami"], &[], |asked| asked).await?;
        answer.map(|answer| answer.body).ok_or_else(|| self.unreadable("an empty body"))
    }

    /// Reads; `None`: there is none (404).
    ///
    /// # Errors
    /// [`PeerError`]
    pub async fn get<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Option<T>, PeerError> {
        Ok(self.get_tagged(org, path, query).await?.map(|answer| answer.body))
    }

    /// Reads, with the version.
    ///
    /// # Errors
    /// [`PeerError`]
    pub async fn get_tagged<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Option<Answer<T>>, PeerError> {
        match self.send::<T>(Method::GET, Some(org), path, query, |asked| asked).await {
            Ok(Some(answer)) => Ok(Some(answer)),
            Ok(None) => Err(self.unreadable("an empty body")),
            Err(PeerError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands something in; `None`: it has nothing to say (204).
    ///
    /// # Errors
    /// [`PeerError`]
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        org: Option<&OrgId>,
        path: &[&str],
        body: &B,
    ) -> Result<Option<Answer<T>>, PeerError> {
        self.send(Method::POST, org, path, &[], |asked| asked.json(body)).await
    }

    /// Hands in what is no JSON.
    ///
    /// # Errors
    /// [`PeerError`]
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        org: &OrgId,
        path: &[&str],
        (kind, bytes): (&'static str, Vec<u8>),
    ) -> Result<Option<Answer<T>>, PeerError> {
        let with =
            |asked: reqwest::RequestBuilder| asked.header(header::CONTENT_TYPE, kind).body(bytes);
        self.send(Method::POST, Some(org), path, &[], with).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        org: Option<&OrgId>,
        path: &[&str],
        query: &[(&str, &str)],
        with: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Option<Answer<T>>, PeerError> {
        let mut url = reqwest::Url::parse(&self.base)
            .map_err(|error| PeerError::Away { peer: self.name, problem: error.to_string() })?;
        if let Ok(mut segments) = url.path_segments_mut() {
            // Each part is escaped: an id can never become another path.
            segments.pop_if_empty().extend(path);
        }
        let named = org.map(|org| ("orgId", org.as_str()));
        for (name, value) in named.iter().chain(query) {
            url.query_pairs_mut().append_pair(name, value);
        }
        let mut request = self.http.request(method, url);
        let token = match &self.token {
            Credential::Own(secret) => secret.resolve()?,
            Credential::Shown(token) => Some(token.clone()),
        };
        if let Some(token) = token {
            request = request.bearer_auth(token.expose_secret());
        }
        let answer = with(request).send().await.map_err(|error| self.away(&error))?;
        let status = answer.status();
        let etag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let etag = etag.map(str::to_owned);
        if answer.content_length().is_some_and(|n| n > ANSWER_BYTES_MAX as u64) {
            return Err(self.unreadable("it is too large"));
        }
        let bytes = answer.bytes().await.map_err(|error| self.away(&error))?;
        if status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.refusal(status, &bytes));
        }
        let body = serde_json::from_slice(&bytes).map_err(|error| self.unreadable(error))?;
        Ok(Some(Answer { status: status.as_u16(), etag, body }))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> PeerError {
        let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let sentence = told.as_ref().and_then(|body| body["error"].as_str());
        let (peer, problem) = (self.name, sentence.unwrap_or("no reason given").to_owned());
        let status_code = status.as_u16();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            PeerError::Busy { peer, status: status_code, problem }
        } else {
            PeerError::Refused { peer, status: status_code, problem }
        }
    }

    fn away(&self, error: &reqwest::Error) -> PeerError {
        let mut problem = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            problem = format!("{problem}: {source}");
            cause = source.source();
        }
        PeerError::Away { peer: self.name, problem }
    }

    fn unreadable(&self, problem: impl std::fmt::Display) -> PeerError {
        PeerError::Answer { peer: self.name, problem: problem.to_string() }
    }
}

/// Asks the kernel who shows a token.
pub struct Whoami(Peer);

impl Whoami {
    /// The kernel at `base`.
    ///
    /// # Errors
    /// When the system gives no HTTP client.
    pub fn of(base: &str) -> Result<Self, PeerError> {
        Ok(Self(Peer::new("kernel", base, &Secret::default())?))
    }
}

impl Who for Whoami {
    fn who<'w>(
        &'w self,
        token: &'w str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, ApiError>> + Send + 'w>> {
        Box::pin(async move {
            let token = Credential::Shown(token.to_owned().into());
            let shown = Peer { token, ..self.0.clone() };
            let path = ["whoami"];
            match shown.send::<Caller>(Method::GET, None, &path, &[], |asked| asked).await {
                Ok(Some(answer)) => Ok(answer.body),
                Err(PeerError::Refused { status: 401, .. }) => Err(ApiError::unauthorized()),
                Ok(None) => Err(ApiError::Unavailable("the kernel says nobody".to_owned())),
                Err(error) => Err(error.into()),
            }
        })
    }
}
