//! Errors as clients read them: `{"error": "…"}` and a status.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use database::StoreError;
use serde::Serialize;
use service_client::ServiceClientError;

/// One problem of a request, in the form that upstream Sim-Corp's clients read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Issue {
    pub code: &'static str,
    pub path: Vec<String>,
    pub message: String,
}

impl Issue {
    /// Creates an issue. `path` is written like `goal.title`.
    #[must_use]
    pub fn new(path: &str, problem: impl std::fmt::Display) -> Self {
        let path = path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Self { code: "invalid", path, message: problem.to_string() }
    }
}

/// The error that a handler returns when it cannot fulfil a request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 400: the request is invalid; the text says where.
    #[error("{0}")]
    Invalid(String),
    /// 400: several problems, each with its field.
    #[error("{}", join_issues(.0))]
    Issues(Vec<Issue>),
    /// 401
    #[error("{0}")]
    Unauthorized(String),
    /// 403
    #[error("{0}")]
    Forbidden(String),
    /// 404
    #[error("{0} not found")]
    NotFound(&'static str),
    /// 409: the state of the resource does not allow this.
    #[error("{0}")]
    Conflict(String),
    /// 412: another request has changed the resource first.
    #[error("{0}")]
    Precondition(String),
    /// 413
    #[error("{0}")]
    TooLarge(String),
    /// 422: the request is well-formed but cannot be fulfilled.
    #[error("{0}")]
    Unprocessable(String),
    /// 415
    #[error("{0}")]
    MediaType(String),
    /// 503: try again later.
    #[error("{0}")]
    Unavailable(String),
    /// 500: the cause is logged and never sent to the client.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ApiError {
    #[must_use]
    pub fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }

    #[must_use]
    pub fn unauthorized() -> Self {
        Self::Unauthorized("missing or invalid token; send Authorization: Bearer …".to_owned())
    }

    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::Issues(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Precondition(_) => StatusCode::PRECONDITION_FAILED,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Maps a database that does not answer to 503, an invalid value to 400 and the rest to 500.
impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_unavailable() {
            tracing::warn!(%error, "the database does not answer");
            return Self::Unavailable("the database does not answer; try again".to_owned());
        }
        // A NUL in a text, or a number out of range: no stored value is like that.
        if error.is_about_values() {
            return Self::Invalid("a value that cannot be stored or searched".to_owned());
        }
        Self::internal(error)
    }
}

/// Maps a service that does not answer to 503, and its 400 and 403 to the same.
impl From<ServiceClientError> for ApiError {
    fn from(error: ServiceClientError) -> Self {
        match &error {
            ServiceClientError::Unreachable { .. } | ServiceClientError::Busy { .. } => {
                tracing::warn!(%error, "a service does not answer");
                Self::Unavailable(error.to_string())
            }
            ServiceClientError::Rejected { status: 403, problem, .. } => {
                Self::Forbidden(problem.clone())
            }
            ServiceClientError::Rejected { status: 400, problem, .. } => {
                Self::Invalid(problem.clone())
            }
            _ => Self::internal(error),
        }
    }
}

/// The body of an error response.
#[derive(Serialize)]
struct ErrorBody<'e> {
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    issues: Option<&'e [Issue]>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal(source) = &self {
            tracing::error!(error = %source, "a request failed with an internal error");
        }
        let issues = match &self {
            Self::Issues(issues) => Some(issues.as_slice()),
            _ => None,
        };
        let body = ErrorBody { error: self.to_string(), issues };
        (self.status(), Json(body)).into_response()
    }
}

fn join_issues(issues: &[Issue]) -> String {
    let tell = |issue: &Issue| match issue.path.as_slice() {
        [] => issue.message.clone(),
        path => format!("{}: {}", path.join("."), issue.message),
    };
    issues.iter().map(tell).collect::<Vec<_>>().join("; ")
}
