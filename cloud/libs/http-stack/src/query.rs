//! Query strings and pages: repeated names, numbers within bounds, cursors.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use crate::error::ApiError;

/// The names and values of a query string, in order. An empty value counts as absent.
#[derive(Debug, Clone, Default)]
pub struct Params(Vec<(String, String)>);

/// The largest number of query parameters; no legitimate request needs more.
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
        // PostgreSQL text cannot contain a NUL, so no stored value can match one.
        if pairs.iter().any(|(_, value)| value.contains('\0')) {
            return Err(ApiError::Invalid("a query parameter contains a NUL".to_owned()));
        }
        Ok(Self(pairs))
    }
}

impl Params {
    /// Returns the first value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Returns all values of a name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let of = self.0.iter().filter(move |(known, value)| known == name && !value.is_empty());
        of.map(|(_, value)| value.as_str())
    }

    /// Returns a whole number from `least` to `most`; `default` when the parameter is absent.
    ///
    /// # Errors
    /// 400 when the value is not a whole number within the bounds.
    pub fn number(&self, name: &str, default: i64, least: i64, most: i64) -> Result<i64, ApiError> {
        parse_within(self.get(name), name, default, least, most)
    }

    /// Returns `limit`, the largest number of items to return. A value above `most` is clamped to
    /// `most`.
    ///
    /// # Errors
    /// 400 when the value is not a whole number of 0 or more.
    pub fn limit(&self, default: i64, most: i64) -> Result<i64, ApiError> {
        Ok(self.number("limit", default, 0, i64::MAX)?.min(most))
    }

    /// Returns a decimal number; `None` when the parameter is absent.
    ///
    /// # Errors
    /// 400 when the value is not a finite number.
    pub fn decimal(&self, name: &str) -> Result<Option<f64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| ApiError::Invalid(format!("{name}: not a number")))
    }

    /// Returns `cursor`: the position where the previous page ended.
    ///
    /// # Errors
    /// 400 when the value is not a cursor that [`encode_cursor`] created.
    pub fn cursor(&self) -> Result<Option<(i64, String)>, ApiError> {
        decode_cursor(self.get("cursor"))
    }
}

/// Parses a whole number from `least` to `most`; returns `default` when `text` is `None`.
///
/// # Errors
/// 400 when the text is not a whole number within the bounds.
pub fn parse_within(
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

/// Decodes a cursor: the position where the previous page ended.
///
/// # Errors
/// 400 when the text is not a cursor that [`encode_cursor`] created.
pub fn decode_cursor(text: Option<&str>) -> Result<Option<(i64, String)>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let plain = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?;
        let (n, id) = plain.split_once('|')?;
        Some((n.parse().ok()?, id.to_owned()))
    };
    read().map(Some).ok_or_else(|| ApiError::Invalid("cursor: not a cursor of this API".to_owned()))
}

/// Encodes the cursor that continues after this row. It is opaque to clients.
#[must_use]
pub fn encode_cursor(n: i64, id: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{n}|{id}"))
}

/// The header with the cursor of the next page, for lists whose body is a bare array.
pub const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

/// Returns a page of a list as upstream Sim-Corp's clients read it: a bare array. When there may be
/// more items, the header [`NEXT_CURSOR`] holds the cursor for the next page.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_is_finite_and_an_empty_one_is_absent() {
        let of = |text: &str| Params(vec![("from".to_owned(), text.to_owned())]).decimal("from");
        assert_eq!(of("-1.5").unwrap(), Some(-1.5));
        assert_eq!(of("").unwrap(), None);
        for wrong in ["x", "NaN", "inf", "1,5"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
