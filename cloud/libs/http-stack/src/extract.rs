//! Axum extractors for request bodies, with errors that name the field.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Issue};

/// The bytes of a JSON body that is not parsed yet. An empty body is read as `{}`, so that a POST
/// without a body is accepted; any other must name its content type. A page of another site can make
/// a browser send a body without a content type, but not one with `application/json`.
pub struct JsonBytes(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let json = kind.is_some_and(|kind| {
            let essence = kind.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json") || essence.ends_with("+json")
        });
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| ApiError::TooLarge(error.body_text()))?;
        if bytes.is_empty() {
            return Ok(Self(Bytes::from_static(b"{}")));
        }
        if !json {
            return Err(ApiError::MediaType(
                "the content-type of the body is not application/json".to_owned(),
            ));
        }
        Ok(Self(bytes))
    }
}

/// A parsed JSON body, with the rules of [`JsonBytes`].
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let JsonBytes(bytes) = JsonBytes::from_request(request, state).await?;
        parse_body(&bytes).map(Self)
    }
}

/// Parses JSON.
///
/// # Errors
/// 400 with the path of the field and what is wrong with it.
pub fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        ApiError::Issues(vec![Issue::new(&path, error.into_inner())])
    })?;
    reader.end().map_err(|error| ApiError::Invalid(format!("the body: {error}")))?;
    Ok(value)
}
