//! How long lookups of tokens are cached.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;

use crate::{App, read};

#[tokio::test(start_paused = true)]
async fn a_lookup_is_cached_for_a_short_time() {
    let app = App::default();
    let router = app.router();
    let lookups = || app.tokens.lookups.load(Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(read(&router, "/orders", "ada").await.status, StatusCode::OK);
        assert_eq!(read(&router, "/orders", "x").await.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(lookups(), 2, "one for each token");
    tokio::time::advance(Duration::from_secs(6)).await;
    read(&router, "/orders", "ada").await;
    assert_eq!(lookups(), 2, "a valid token is cached for longer");
    read(&router, "/orders", "x").await;
    assert_eq!(lookups(), 3, "an unknown token may be valid by now");
    tokio::time::advance(Duration::from_secs(9)).await;
    read(&router, "/orders", "ada").await;
    assert_eq!(lookups(), 4);
}

#[tokio::test(start_paused = true)]
async fn while_tokens_cannot_be_verified_a_known_caller_is_accepted_for_ten_minutes() {
    let app = App::default();
    let router = app.router();
    assert_eq!(read(&router, "/orders", "ada").await.status, StatusCode::OK);
    app.tokens.is_down.store(true, Ordering::SeqCst);
    let stranger = read(&router, "/orders", "bob").await;
    assert_eq!(stranger.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(stranger.body, json!({"error": "the kernel does not answer"}));
    tokio::time::advance(Duration::from_secs(599)).await;
    assert_eq!(read(&router, "/orders", "ada").await.status, StatusCode::OK);
    tokio::time::advance(Duration::from_secs(1)).await;
    let known = read(&router, "/orders", "ada").await;
    assert_eq!(known.status, StatusCode::SERVICE_UNAVAILABLE);
}
