//! The rate-limit layer: it takes a token from each bucket of a request, and tells the caller what is
//! left.

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use contract::EpochMs;
use serde::Serialize;

use crate::auth::{Caller, Role};
use crate::bucket::RateLimitDecision;
use crate::error::ApiError;
use crate::limit::{Limits, RateLimitMetrics};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
const OLD_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const OLD_LEFT: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const OLD_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Takes a token from each bucket of the request, or refuses the request with 429. This is Axum
/// middleware.
pub(crate) async fn rate_limit(
    State(limits): State<Limits>,
    request: Request,
    next: Next,
) -> Response {
    let Some(caller) = request.extensions().get::<Caller>() else {
        return ApiError::unauthorized().into_response();
    };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let buckets = limits.of_request(caller, request.method(), route);
    if buckets.is_empty() {
        return next.run(request).await; // one of our services, which works for all organisations
    }
    let (taken, now) = (limits.take(&buckets).await, limits.now());
    let mut response = if taken.allowed {
        next.run(request).await
    } else {
        limits.count_refusal(&taken);
        too_many_requests(&taken, now)
    };
    add_headers(response.headers_mut(), &taken, now);
    response
}

/// Adds the rate-limit headers for the bucket that is nearest to its limit: those of
/// `draft-ietf-httpapi-ratelimit-headers`, and upstream Sim-Corp's.
fn add_headers(headers: &mut axum::http::HeaderMap, taken: &RateLimitDecision, now: EpochMs) {
    let RateLimitDecision { kind, limit, remaining: left, reset_after_s: full_s, .. } = taken;
    for (name, value) in [
        (POLICY, format!("\"{kind}\";q={limit};w={}", taken.window_s)),
        (LEFT, format!("\"{kind}\";r={left};t={full_s}")),
        (OLD_LIMIT, limit.to_string()),
        (OLD_LEFT, left.to_string()),
        (OLD_RESET, after_s(now, *full_s).to_string()),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// The body of a 429 response.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TooManyRequests {
    error: &'static str,
    message: String,
    /// When a repeated request may succeed.
    retry_after: EpochMs,
}

/// Returns the time that is `seconds` after `now`.
fn after_s(now: EpochMs, seconds: u64) -> EpochMs {
    now.plus_ms(i64::try_from(seconds.saturating_mul(1_000)).unwrap_or(i64::MAX))
}

/// Returns a 429 response in upstream Sim-Corp's format. `Retry-After` has the wait in seconds, and
/// the body the time.
#[must_use]
pub fn too_many_requests(taken: &RateLimitDecision, now: EpochMs) -> Response {
    let wait = taken.retry_after_s.max(1);
    let body = TooManyRequests {
        error: "Too Many Requests",
        message: format!("too many requests of this {}; again in {wait} s", taken.kind),
        retry_after: after_s(now, wait),
    };
    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, wait.to_string())], Json(body))
        .into_response()
}

/// Returns the counts of requests and refusals; for admins only.
pub(crate) fn metrics_for(
    limits: &Limits,
    caller: &Caller,
) -> Result<Json<RateLimitMetrics>, ApiError> {
    caller.require_role(Role::Admin)?;
    Ok(Json(limits.metrics(caller)))
}
