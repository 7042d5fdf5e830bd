//! An HTTP service that answers as a test says, and records the requests that it receives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a test waits for a request.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A request that a [`FakeService`] received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedRequest {
    pub method: String,
    /// The path as it was sent, with its escapes.
    pub path: String,
    /// The query as it was sent, without the `?`; empty if there is none.
    pub query: String,
    pub authorization: Option<String>,
    pub content_type: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl ReceivedRequest {
    /// Returns whether this is a request of `method` to `path`.
    #[must_use]
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path == path
    }

    /// Returns the body as JSON; null if it is empty or not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

type Answer = dyn Fn(&ReceivedRequest) -> Response + Send + Sync;

struct FakeState {
    answer: Box<Answer>,
    received: watch::Sender<Vec<ReceivedRequest>>,
}

/// An HTTP service on a free loopback port. It ends when it is dropped.
pub struct FakeService {
    address: SocketAddr,
    received: watch::Receiver<Vec<ReceivedRequest>>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl FakeService {
    /// Starts a service that answers every request with `answer`.
    ///
    /// # Errors
    /// When no loopback port is free.
    pub async fn start<R: IntoResponse + 'static>(
        answer: impl Fn(&ReceivedRequest) -> R + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (sender, received) = watch::channel(Vec::new());
        let answer = move |request: &ReceivedRequest| answer(request).into_response();
        let state = FakeState { answer: Box::new(answer), received: sender };
        let app = Router::new().fallback(receive).with_state(Arc::new(state));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, received, serving })
    }

    /// Returns its address as `http://host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests that it received so far, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.received.borrow().clone()
    }

    /// Waits for a request of `method` to `path` and returns the first one.
    ///
    /// # Errors
    /// When it receives none within ten seconds.
    pub async fn wait_for_request(
        &self,
        method: &str,
        path: &str,
    ) -> anyhow::Result<ReceivedRequest> {
        let mut received = self.received.clone();
        let arrived = received.wait_for(|all| all.iter().any(|request| request.is(method, path)));
        let what = || format!("{method} {path}: not within {REQUEST_WAIT_MAX:?}");
        let all = tokio::time::timeout(REQUEST_WAIT_MAX, arrived).await.with_context(what)??;
        all.iter().find(|request| request.is(method, path)).cloned().with_context(what)
    }
}

impl Drop for FakeService {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn receive(State(state): State<Arc<FakeState>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let header = |name: HeaderName| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let request = ReceivedRequest {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        authorization: header(header::AUTHORIZATION),
        content_type: header(header::CONTENT_TYPE),
        headers: parts.headers,
        body,
    };
    let response = (state.answer)(&request);
    state.received.send_modify(|all| all.push(request));
    response
}
