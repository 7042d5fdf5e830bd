//! Cross-origin resource sharing: which pages of other sites may call the services from a browser.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use serde::{Deserialize, Serialize};
use service::config::Mistakes;
use service::origin::AllowedOrigins;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::query::NEXT_CURSOR;

/// How long a browser may remember the answer to a preflight request.
const PREFLIGHT_AGE: Duration = Duration::from_mins(10);

/// `[cors]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorsConfig {
    /// The origins whose pages may call the services, such as `http://localhost:1420`. Empty: none.
    pub allowed_origins: Vec<String>,
}

impl CorsConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        for origin in &self.allowed_origins {
            mistakes.require(
                is_origin(origin),
                "cors.allowed_origins",
                "not an origin such as https://app.example or tauri://localhost: scheme, host and \
                 port in lower case, without a path; * is not allowed",
            );
        }
    }

    /// Returns the origins in the form in which requests are compared with them.
    #[must_use]
    pub fn origins(&self) -> AllowedOrigins {
        self.allowed_origins
            .iter()
            .filter_map(|origin| HeaderValue::from_str(as_sent(origin)).ok())
            .collect()
    }
}

/// Returns an origin as browsers send it: without the default port of its scheme.
fn as_sent(origin: &str) -> &str {
    const DEFAULT_PORTS: [(&str, &str); 2] = [("http://", ":80"), ("https://", ":443")];
    let written = DEFAULT_PORTS.iter().find(|(scheme, _)| origin.starts_with(*scheme));
    let host = written.and_then(|(scheme, port)| {
        // In `http://[::1:80]` the port would be a part of the address.
        let without = origin.strip_suffix(*port)?;
        (without.len() > scheme.len() && !without.ends_with(':')).then_some(without)
    });
    host.filter(|host| !host.contains('[') || host.ends_with(']')).unwrap_or(origin)
}

/// Returns whether `text` is an origin as browsers send it.
fn is_origin(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, host)| {
        let consists_of = |text: &str, marks: &str| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || marks.contains(c);
            !text.is_empty() && text.chars().all(plain)
        };
        consists_of(scheme, "+-.") && consists_of(host, "-.:[]_")
    })
}

/// Returns the layer that answers preflight requests and lets pages of `origins` read responses.
/// Browsers send no credentials of their own: tokens are in `Authorization`.
pub(crate) fn cors_layer(origins: &AllowedOrigins) -> CorsLayer {
    const METHODS: [Method; 5] =
        [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    const ACCEPTED: [HeaderName; 7] = [
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        HeaderName::from_static("idempotency-key"),
        HeaderName::from_static("last-event-id"),
        HeaderName::from_static("x-request-id"),
    ];
    const SHOWN: [HeaderName; 10] = [
        header::ETAG,
        header::RETRY_AFTER,
        NEXT_CURSOR,
        HeaderName::from_static("idempotency-replayed"),
        HeaderName::from_static("ratelimit"),
        HeaderName::from_static("ratelimit-policy"),
        HeaderName::from_static("x-ratelimit-limit"),
        HeaderName::from_static("x-ratelimit-remaining"),
        HeaderName::from_static("x-ratelimit-reset"),
        HeaderName::from_static("x-request-id"),
    ];
    let origins = origins.clone();
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| origins.contains(origin)))
        .allow_methods(METHODS)
        .allow_headers(ACCEPTED)
        .expose_headers(SHOWN)
        .max_age(PREFLIGHT_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_as_browsers_send_them() {
        for origin in
            ["https://app.example", "http://localhost:1420", "tauri://localhost", "http://[::1]:80"]
        {
            assert!(is_origin(origin), "{origin}");
        }
        for (written, sent) in [
            ("https://app.example:443", "https://app.example"),
            ("http://localhost:80", "http://localhost"),
            ("http://[::1]:80", "http://[::1]"),
            ("http://app.example:443", "http://app.example:443"),
            ("https://app.example:8443", "https://app.example:8443"),
            ("http://[::1:80", "http://[::1:80"),
            ("tauri://localhost", "tauri://localhost"),
        ] {
            let config = CorsConfig { allowed_origins: vec![written.to_owned()] };
            assert!(config.origins().contains(&HeaderValue::from_static(sent)), "{written}");
        }
        for other in [
            "*",
            "null",
            "",
            "app.example",
            "https://",
            "https://*.example",
            "https://a.example/",
            "https://A.example",
            "https://a b",
        ] {
            assert!(!is_origin(other), "{other}");
        }
    }
}
