//! What handlers read of a query string: repeated names, numbers within bounds, cursors.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use crate::error::ApiError;

/// The query's names and values, in order. An empty value is none.
#[derive(Debug, Clone, Default)]
pub struct Params(Vec<(String, String)>);

/// More is nobody's honest question.
const PARAMS_MAX: usize = 64;

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state);
        let axum::extract::Query(pairs) =
            query.await.map_err(|error| ApiError::Invalid(format!("the query: {error}")))?;
        if pairs.len() > PARAMS_MAX {
            return Err(ApiError::Invalid(format!("more than {PARAMS_MAX} query parameters")));
        }
        // PostgreSQL's text cannot hold a NUL, so nothing stored has one.
        if pairs.iter().any(|(_, value)| value.contains('\0')) {
            return Err(ApiError::Invalid("a query parameter contains a NUL".to_owned()));
        }
        Ok(Self(pairs))
    }
}

impl Params {
    /// The first value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// All values of a name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let of = self.0.iter().filter(move |(known, value)| known == name && !value.is_empty());
        of.map(|(_, value)| value.as_str())
    }

    /// # Errors
    /// 400 when it is no whole number within the bounds.
    pub fn number(&self, name: &str, default: i64, least: i64, most: i64) -> Result<i64, ApiError> {
        within(self.get(name), name, default, least, most)
    }

    /// `limit`: how many at most. More than there may be is as many as there may be.
    ///
    /// # Errors
    /// 400 when it is no number from 0.
    pub fn limit(&self, default: i64, most: i64) -> Result<i64, ApiError> {
        Ok(self.number("limit", default, 0, i64::MAX)?.min(most))
    }

    /// `cursor`: where the page before ended.
    ///
    /// # Errors
    /// 400 when it is none of ours.
    pub fn cursor(&self) -> Result<Option<(i64, String)>, ApiError> {
        read_cursor(self.get("cursor"))
    }
}

/// A number within bounds; none is `default`.
///
/// # Errors
/// 400 when it is no whole number within the bounds.
pub fn within(
    text: Option<&str>,
    name: &str,
    default: i64,
    least: i64,
    most: i64,
) -> Result<i64, ApiError> {
    let Some(text) = text else { return Ok(default) };
    let number = text.parse::<i64>().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| {
        ApiError::Invalid(format!("{name}: not a whole number between {least} and {most}"))
    })
}

/// Where the page before ended.
///
/// # Errors
/// 400 when it is none of ours.
pub fn read_cursor(text: Option<&str>) -> Result<Option<(i64, String)>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let plain = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?;
        let (n, id) = plain.split_once('|')?;
        Some((n.parse().ok()?, id.to_owned()))
    };
    read().map(Some).ok_or_else(|| ApiError::Invalid("cursor: not one of ours".to_owned()))
}

/// A cursor after this row; opaque to clients.
#[must_use]
pub fn cursor(n: i64, id: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{n}|{id}"))
}

/// The header that names the next page of a list whose body is the bare list.
pub const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

/// A page of a list as the reference's clients read it, a bare array; where there may be more the
/// cursor for the rest stands in [`NEXT_CURSOR`].
pub fn page<T: Serialize>(
    items: Vec<T>,
    limit: i64,
    cursor_of: impl FnOnce(&T) -> String,
) -> Response {
    let full = i64::try_from(items.len()).is_ok_and(|n| n >= limit && n > 0);
    let next = items.last().filter(|_| full).map(cursor_of);
    let mut response = Json(items).into_response();
    if let Some(next) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
        response.headers_mut().insert(NEXT_CURSOR, next);
    }
    response
}
