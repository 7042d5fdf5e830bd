//! The door of a service: who asks ([`service::auth`]), how much they may ([`limit`]), and how many at
//! once.

mod bucket;
pub mod limit;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use service::auth::{Auth, Caller, Role, admit};
use service::error::ApiError;

pub use bucket::{Bucket, Rate, Taken};
pub use limit::{Limits, LimitsConfig};

/// What every service's routes stand behind.
#[derive(Clone)]
pub struct Door {
    pub auth: Auth,
    pub limits: Limits,
}

impl Door {
    /// Lays the door around a service's routes.
    pub fn guard(&self, routes: Router) -> Router {
        let shown = self.limits.clone();
        routes
            .layer(middleware::from_fn_with_state(self.limits.clone(), limited))
            // Not limited, so that one can look while one is.
            .route(
                "/_rate-limit/metrics",
                get(async move |caller: Caller| shown_to(&shown, &caller)),
            )
            .layer(middleware::from_fn_with_state(self.auth.clone(), admit))
    }
}

fn shown_to(limits: &Limits, caller: &Caller) -> Response {
    if let Err(error) = caller.need(Role::Admin) {
        return error.into_response();
    }
    Json(limits.shown(caller)).into_response()
}

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
const OLD_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const OLD_LEFT: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// Takes a token of each bucket that the request is of, or refuses it.
async fn limited(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>() else {
        return ApiError::unauthorized().into_response();
    };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let buckets = limits.of_request(caller, request.method(), route);
    if buckets.is_empty() {
        return next.run(request).await; // one of ours, that works for all
    }
    let taken = limits.take(&buckets).await;
    let mut response = if taken.allowed {
        next.run(request).await
    } else {
        limits.note(&taken);
        refusal(&taken)
    };
    tell(response.headers_mut(), &taken);
    response
}

/// The standard's headers (`draft-ietf-httpapi-ratelimit-headers`) for the bucket that is nearest to
/// its end, and the names of the reference.
fn tell(headers: &mut axum::http::HeaderMap, taken: &Taken) {
    let Taken { kind, limit, left, full_s, .. } = taken;
    for (name, value) in [
        (POLICY, format!("\"{kind}\";q={limit};w={}", taken.window_s)),
        (LEFT, format!("\"{kind}\";r={left};t={full_s}")),
        (OLD_LIMIT, limit.to_string()),
        (OLD_LEFT, left.to_string()),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// 429 in the reference's shape.
#[must_use]
pub fn refusal(taken: &Taken) -> Response {
    let wait = taken.wait_s.max(1);
    let message = format!("too many requests of this {}; again in {wait} s", taken.kind);
    let body = json!({"error": "Too Many Requests", "message": message, "retryAfter": wait});
    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, wait.to_string())], Json(body))
        .into_response()
}
