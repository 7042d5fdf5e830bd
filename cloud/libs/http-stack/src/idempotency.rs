//! `Idempotency-Key` on requests that change something (draft-ietf-httpapi-idempotency-key-header):
//! the second request with a key gets the first one's response and changes nothing.
//!
//! A caller that may only read stores nothing: nothing that it requests changes anything.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use database::idempotency::{Idempotency, KeyState};
use service::metrics::follow;

use crate::auth::{Caller, Role};
use crate::error::ApiError;

const KEY: &str = "idempotency-key";
const KEY_BYTES_MAX: usize = 200;
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Longer responses are not stored: a second request with their key gets 409 ([`NOT_STORED`]).
const ANSWER_BYTES_MAX: usize = 512 * 1024;
/// Replaces a response that is not stored because it is too long, because its organisation has
/// stored too many bytes, or because the handler set `Cache-Control: no-store`.
const NOT_STORED: &[u8] = br#"{"error":"already done; the first response was not stored"}"#;
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Answers a repeated `Idempotency-Key` with the first response. This is Axum middleware: apply it
/// with `from_fn_with_state`, inside authentication. `/missions` is exempt: it has keys of its own,
/// which last as long as the mission.
pub async fn idempotency_layer(
    State(kept): State<Idempotency>,
    request: Request,
    next: Next,
) -> Response {
    let changes = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    let own = request.uri().path() == "/missions";
    let caller = request.extensions().get::<Caller>();
    let reads = caller.is_some_and(|caller| caller.role < Role::Operator);
    let key = request.headers().get(KEY).filter(|_| changes && !own && !reads);
    let Some(key) = key else { return next.run(request).await };
    let key = key.to_str().ok().filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()));
    let Some(key) = key.map(str::to_owned) else {
        let problem = format!("Idempotency-Key: not 1 to {KEY_BYTES_MAX} printable characters");
        return ApiError::Invalid(problem).into_response();
    };
    match answer(&kept, &key, request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(
    kept: &Idempotency,
    key: &str,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = request.extensions().get::<Caller>().ok_or_else(ApiError::unauthorized)?;
    // A caller of all organisations has a quota of its own. No organisation begins with `*`.
    let own = || format!("*{}", caller.actor.id);
    let org = caller.org.as_ref().map_or_else(own, ToString::to_string);
    // The same key from another caller is a different key.
    let name = format!("{}:{key}", caller.actor.id);
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|_| ApiError::TooLarge(format!("more than {BODY_BYTES_MAX} bytes")))?;
    let mut text = format!("{} {}\n", parts.method, parts.uri).into_bytes();
    text.extend_from_slice(&body);
    let digest = trust::sha256_digest(&text).0;
    let name = [org.as_str(), name.as_str()];
    match kept.begin(&name, &digest).await? {
        KeyState::New => {}
        KeyState::Running => {
            return Err(ApiError::Conflict("a request with this key is still running".to_owned()));
        }
        KeyState::Reused => {
            return Err(ApiError::Unprocessable(
                "this key was used for another request".to_owned(),
            ));
        }
        KeyState::Answered { status, kind, body } => return Ok(replay(status, &kind, body)),
    }
    // On a task of its own: if the client disconnects, the response is still stored.
    let name = name.map(str::to_owned);
    let (kept, request) = (kept.clone(), Request::from_parts(parts, Body::from(body)));
    let done = tokio::spawn(follow(async move { run(&kept, &name, request, next).await }));
    done.await.map_err(ApiError::internal)?
}

async fn run(
    kept: &Idempotency,
    [org, key]: &[String; 2],
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let name = [org.as_str(), key.as_str()];
    let response = next.run(request).await;
    let (parts, body) = response.into_parts();
    let status = parts.status;
    let whole = to_bytes(body, 8 * BODY_BYTES_MAX).await.map_err(ApiError::internal)?;
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let told_once = parts
        .headers
        .get(header::CACHE_CONTROL)
        .is_some_and(|value| value.as_bytes() == b"no-store");
    let kept_now = if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        kept.delete(&name).await // a retry may succeed
    } else if told_once || whole.len() > ANSWER_BYTES_MAX || !has_room(kept, org, whole.len()).await
    {
        kept.store_response(&name, (409, "application/json"), NOT_STORED).await
    } else {
        kept.store_response(&name, (status.as_u16(), kind.unwrap_or_default()), &whole).await
    };
    if let Err(error) = kept_now {
        tracing::warn!(%error, "could not store a response; its key is refused for two minutes");
    }
    Ok(Response::from_parts(parts, Body::from(whole)))
}

/// Returns whether the organisation may store a response of this size.
async fn has_room(kept: &Idempotency, org: &str, bytes: usize) -> bool {
    match kept.has_room(org, bytes).await {
        Ok(true) => true,
        Ok(false) => {
            metrics::counter!("simcorp_idempotency_over_quota_total").increment(1);
            tracing::warn!(org, "did not store a response: the organisation's quota is used up");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "did not store a response: its organisation's were not counted");
            false
        }
    }
}

fn replay(status: u16, kind: &str, body: Vec<u8>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = (status, Bytes::from(body)).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    if let Some(kind) = HeaderValue::from_str(kind).ok().filter(|kind| !kind.is_empty()) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
