//! Refuses requests that a page of another site makes a browser send: by a name that its own DNS
//! points here (DNS rebinding), or across sites (CSRF, WebSocket). For servers that trust their
//! network in place of credentials.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

/// The origins of other sites whose pages may call a server, as their browsers send them. Clones
/// share them.
#[derive(Debug, Clone, Default)]
pub struct AllowedOrigins(Arc<[HeaderValue]>);

impl AllowedOrigins {
    /// Returns whether no origin is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether pages of `origin` may call the server.
    #[must_use]
    pub fn contains(&self, origin: &HeaderValue) -> bool {
        self.0.contains(origin)
    }
}

impl FromIterator<HeaderValue> for AllowedOrigins {
    fn from_iter<I: IntoIterator<Item = HeaderValue>>(origins: I) -> Self {
        Self(origins.into_iter().collect())
    }
}

/// Returns whether a page of another site cannot be served under this host: `localhost`, or an IP
/// address, which no DNS of another site can point elsewhere.
fn is_own(host: &str) -> bool {
    let name = without_port(host);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            // In `[::1]` the last colon is inside the brackets.
            if name.starts_with('[') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

/// Refuses a request whose `Host` is neither `localhost` nor an IP address (421), or that another
/// site's page sent (403). A client that is not a browser sends neither `Origin` nor `Sec-Fetch-Site` and passes.
pub async fn refuse_foreign_pages(request: Request, next: Next) -> Response {
    refuse_other_pages(State(AllowedOrigins::default()), request, next).await
}

/// Refuses what [`refuse_foreign_pages`] refuses, except requests of pages of the allowed origins.
pub async fn refuse_other_pages(
    State(allowed): State<AllowedOrigins>,
    request: Request,
    next: Next,
) -> Response {
    match check(request.method(), request.headers(), &allowed) {
        Ok(()) => next.run(request).await,
        Err((status, sentence)) => {
            metrics::counter!("simcorp_http_foreign_requests_total").increment(1);
            (status, Json(serde_json::json!({ "error": sentence }))).into_response()
        }
    }
}

fn check(
    method: &Method,
    headers: &HeaderMap,
    allowed: &AllowedOrigins,
) -> Result<(), (StatusCode, &'static str)> {
    const HOST: &str = "this server is not addressed by this name; use localhost or an IP address";
    const ORIGIN: &str = "a page of another site sent this request";
    let text = |name| headers.get(name).map(HeaderValue::to_str);
    let host = match text(header::HOST) {
        Some(Ok(host)) if is_own(host) => Some(host),
        None => None, // HTTP/1.0: no browser
        Some(_) => return Err((StatusCode::MISDIRECTED_REQUEST, HOST)),
    };
    if headers.get(header::ORIGIN).is_some_and(|origin| allowed.contains(origin)) {
        return Ok(());
    }
    if let Some(origin) = text(header::ORIGIN) {
        let own = origin.ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
        if own.zip(host).is_none_or(|(own, host)| !own.eq_ignore_ascii_case(host)) {
            return Err((StatusCode::FORBIDDEN, ORIGIN));
        }
    }
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    // A link to a page may come from any site.
    if !reads && site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err((StatusCode::FORBIDDEN, ORIGIN));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &Method, headers: &[(&'static str, &str)]) -> u16 {
        status_with(&AllowedOrigins::default(), method, headers)
    }

    fn status_with(
        allowed: &AllowedOrigins,
        method: &Method,
        headers: &[(&'static str, &str)],
    ) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        check(method, &map, allowed).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn only_own_names_and_addresses_are_answered() {
        for host in [
            "localhost",
            "localhost:8080",
            "LOCALHOST:1",
            "127.0.0.1:4001",
            "192.168.1.7:80",
            "[::1]",
        ] {
            assert_eq!(status(&Method::GET, &[("host", host)]), 200, "{host}");
        }
        for host in ["[::1]:4001", "[fe80::1]"] {
            assert_eq!(status(&Method::POST, &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "roastery.example",
            "localhost.evil",
            "127.0.0.1.evil",
            "",
            "é",
        ] {
            assert_eq!(status(&Method::GET, &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status(&Method::POST, &[]), 200, "no browser");
    }

    #[test]
    fn a_page_of_an_allowed_origin_passes_under_an_own_name_only() {
        let allowed = ["tauri://localhost", "https://app.example"].map(HeaderValue::from_static);
        let allowed = allowed.into_iter().collect();
        for (host, origin, expected) in [
            ("localhost:3000", "tauri://localhost", 200),
            ("localhost:3000", "https://app.example", 200),
            ("localhost:3000", "https://app.example.evil", 403),
            ("localhost:3000", "http://app.example", 403),
            ("evil.example", "https://app.example", 421),
        ] {
            let headers = [("host", host), ("origin", origin), ("sec-fetch-site", "cross-site")];
            assert_eq!(status_with(&allowed, &Method::POST, &headers), expected, "{host} {origin}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let host = ("host", "localhost:8080");
        for (method, header, expected) in [
            (Method::POST, ("origin", "http://localhost:8080"), 200),
            (Method::POST, ("origin", "http://localhost:8081"), 403),
            (Method::POST, ("origin", "https://evil.example"), 403),
            (Method::POST, ("origin", "null"), 403),
            // The handshake of a WebSocket is a GET with an origin.
            (Method::GET, ("origin", "https://evil.example"), 403),
            (Method::POST, ("sec-fetch-site", "cross-site"), 403),
            (Method::DELETE, ("sec-fetch-site", "same-site"), 403),
            (Method::POST, ("sec-fetch-site", "same-origin"), 200),
            (Method::POST, ("sec-fetch-site", "none"), 200),
            (Method::GET, ("sec-fetch-site", "cross-site"), 200), // a link
        ] {
            assert_eq!(status(&method, &[host, header]), expected, "{method} {header:?}");
        }
    }
}
