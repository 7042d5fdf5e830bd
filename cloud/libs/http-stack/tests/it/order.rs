//! Which layer answers a request, and that each refusal has a request id.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use http_stack::LimitsConfig;
use serde_json::json;
use service::origin::AllowedOrigins;

use crate::{App, read, request, send, slow};

#[tokio::test]
async fn health_needs_no_token() {
    let router = App::default().router();
    let health = read(&router, "/health", "").await;
    assert_eq!(health.status, StatusCode::OK);
    assert_eq!(health.body["service"], "orders");
    assert!(health.header("x-request-id").is_some());
    for open in ["/ready", "/metrics", "/openapi.json"] {
        assert_eq!(read(&router, open, "").await.status, StatusCode::OK, "{open}");
    }
}

#[tokio::test]
async fn a_request_without_a_valid_token_is_refused_with_401() {
    let router = App::default().router();
    for token in ["", "unknown"] {
        let refused = read(&router, "/orders", token).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        let told = "missing or invalid token; send Authorization: Bearer …";
        assert_eq!(refused.body, json!({"error": told}));
        assert_eq!(refused.header("x-request-id").map(str::len), Some(16));
    }
    let mut other_scheme = request(Method::GET, "/orders", "");
    other_scheme.headers_mut().insert(header::AUTHORIZATION, "Basic ada".parse().unwrap());
    assert_eq!(send(&router, other_scheme).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn past_the_burst_a_request_is_refused_with_429_until_a_token_is_back() {
    let limits = LimitsConfig { route: slow(2), ..LimitsConfig::default() };
    let router = App { limits, ..App::default() }.router();
    for left in ["1", "0"] {
        let answer = read(&router, "/orders", "ada").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(left));
    }
    let refused = read(&router, "/orders", "ada").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.header("retry-after"), Some("1000"));
    let full = crate::NOW.plus_ms(2_000_000).to_string();
    assert_eq!(refused.header("x-ratelimit-reset"), Some(full.as_str()));
    assert_eq!(refused.header("ratelimit"), Some("\"route\";r=0;t=2000"));
    assert_eq!(refused.header("ratelimit-policy"), Some("\"route\";q=2;w=2000"));
    assert!(refused.header("x-request-id").is_some());
    let told = "too many requests of this route; again in 1000 s";
    let again = crate::NOW.plus_ms(1_000_000);
    let body = json!({"error": "Too Many Requests", "message": told, "retryAfter": again});
    assert_eq!(refused.body, body);
    // The limit is each caller's own.
    assert_eq!(read(&router, "/orders", "bob").await.status, StatusCode::OK);
    tokio::time::advance(Duration::from_secs(1000)).await;
    assert_eq!(read(&router, "/orders", "ada").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_service_for_all_organisations_has_no_rate_limit() {
    let limits = LimitsConfig { route: slow(1), ..LimitsConfig::default() };
    let router = App { limits, ..App::default() }.router();
    for _ in 0..3 {
        let answer = read(&router, "/orders?orgId=acme", "service").await;
        assert_eq!((answer.status, answer.header("ratelimit")), (StatusCode::OK, None));
    }
}

#[tokio::test]
async fn a_limited_caller_can_still_read_its_limits() {
    let limits = LimitsConfig { user: slow(1), ..LimitsConfig::default() };
    let router = App { limits, ..App::default() }.router();
    assert_eq!(read(&router, "/orders", "ada").await.status, StatusCode::OK);
    assert_eq!(read(&router, "/orders", "ada").await.status, StatusCode::TOO_MANY_REQUESTS);
    // 403, not 429: ada is no admin.
    let limits = read(&router, "/_rate-limit/metrics", "ada").await;
    assert_eq!(limits.status, StatusCode::FORBIDDEN);
    assert_eq!(read(&router, "/_rate-limit/metrics", "").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_large_body_is_refused_with_413_before_its_sender_is_authenticated() {
    let app = App::default();
    let router = app.router();
    let length = 1024 * 1024 + 1;
    for token in ["", "ada"] {
        let mut large = request(Method::POST, "/orders", token);
        large.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        *large.body_mut() = Body::from(vec![b' '; length]);
        let refused = send(&router, large).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(refused.header("x-request-id").is_some());
    }
    assert_eq!(app.orders.count(), 0);
    assert_eq!(app.tokens.lookups.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_panic_in_a_handler_is_a_500_and_the_service_goes_on() {
    let router = App::default().router();
    let broken = read(&router, "/fail", "ada").await;
    assert_eq!(broken.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(broken.header("x-request-id").is_some());
    assert_eq!(read(&router, "/orders", "ada").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_caller_s_plain_request_id_is_kept_and_any_other_is_replaced() {
    let router = App::default().router();
    for (given, kept) in [("job-7.a_b", true), ("a b", false), ("<script>", false)] {
        let mut asked = request(Method::GET, "/health", "");
        asked.headers_mut().insert("x-request-id", given.parse().unwrap());
        let answer = send(&router, asked).await;
        assert_eq!(answer.header("x-request-id") == Some(given), kept, "{given}");
    }
}

#[tokio::test]
async fn every_answer_is_counted_by_its_route_and_status() {
    let router = App::default().router();
    read(&router, "/orders", "").await;
    read(&router, "/nowhere", "ada").await;
    let metrics = crate::METRICS.render();
    let counted = |route: &str, status: u16| {
        metrics.lines().any(|line| {
            line.starts_with("simcorp_http_requests_total{")
                && line.contains("service=\"orders\"")
                && line.contains(&format!("route=\"{route}\""))
                && line.contains(&format!("status_code=\"{status}\""))
        })
    };
    assert!(counted("/orders", 401), "{metrics}");
    assert!(counted("unmatched", 404), "{metrics}");
}

#[tokio::test]
async fn in_development_mode_no_page_of_another_site_is_answered() {
    let router = App { development: true, ..App::default() }.router();
    let ask = async |name: &'static str, value: &'static str| {
        let mut post = request(Method::POST, "/orders", "ada");
        post.headers_mut().insert(header::HOST, "localhost:3000".parse().unwrap());
        post.headers_mut().insert(name, value.parse().unwrap());
        send(&router, post).await
    };
    let rebound = ask("host", "evil.example").await;
    assert_eq!(rebound.status, StatusCode::MISDIRECTED_REQUEST);
    assert!(rebound.header("x-request-id").is_some());
    assert_eq!(ask("origin", "https://evil.example").await.status, StatusCode::FORBIDDEN);
    assert_eq!(ask("sec-fetch-site", "cross-site").await.status, StatusCode::FORBIDDEN);
    assert_eq!(ask("origin", "http://localhost:3000").await.status, StatusCode::CREATED);
    // Callers with credentials of their own may use any name.
    let mut named = request(Method::GET, "/orders", "ada");
    named.headers_mut().insert(header::HOST, "cloud.example".parse().unwrap());
    assert_eq!(send(&App::default().router(), named).await.status, StatusCode::OK);
}

/// A request of a page of `origin`, as its browser sends it.
fn from_page(method: Method, origin: &'static str) -> axum::extract::Request {
    let mut asked = request(method, "/orders", "ada");
    for (name, value) in
        [("host", "localhost:3000"), ("origin", origin), ("sec-fetch-site", "cross-site")]
    {
        asked.headers_mut().insert(name, value.parse().unwrap());
    }
    asked
}

#[tokio::test]
async fn pages_of_allowed_origins_may_call_and_read_and_no_others() {
    const ALLOW: &str = "access-control-allow-origin";
    let origins: AllowedOrigins =
        ["tauri://localhost"].map(HeaderValue::from_static).into_iter().collect();
    for development in [false, true] {
        let router = App { development, origins: origins.clone(), ..App::default() }.router();
        let mut preflight = from_page(Method::OPTIONS, "tauri://localhost");
        preflight.headers_mut().remove(header::AUTHORIZATION);
        preflight.headers_mut().insert("access-control-request-method", "PUT".parse().unwrap());
        let answer = send(&router, preflight).await;
        assert_eq!(
            (answer.status, answer.header(ALLOW)),
            (StatusCode::OK, Some("tauri://localhost"))
        );
        assert!(answer.header("access-control-allow-methods").unwrap().contains("PUT"));
        let accepted = answer.header("access-control-allow-headers").unwrap();
        for name in ["authorization", "content-type", "if-match", "if-none-match"] {
            assert!(accepted.contains(name), "{name}");
        }
        let made = send(&router, from_page(Method::POST, "tauri://localhost")).await;
        assert_eq!(
            (made.status, made.header(ALLOW)),
            (StatusCode::CREATED, Some("tauri://localhost"))
        );
        // A page reads why it is refused, too.
        let mut refused = from_page(Method::GET, "tauri://localhost");
        refused.headers_mut().remove(header::AUTHORIZATION);
        let refused = send(&router, refused).await;
        assert_eq!(
            (refused.status, refused.header(ALLOW)),
            (StatusCode::UNAUTHORIZED, Some("tauri://localhost"))
        );
        let other = send(&router, from_page(Method::POST, "https://evil.example")).await;
        assert_eq!(other.header(ALLOW), None);
        assert_eq!(other.status == StatusCode::FORBIDDEN, development);
    }
    let closed = App::default().router();
    let answer = send(&closed, from_page(Method::OPTIONS, "tauri://localhost")).await;
    assert_eq!((answer.status, answer.header(ALLOW)), (StatusCode::METHOD_NOT_ALLOWED, None));
}
