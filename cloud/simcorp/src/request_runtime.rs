//! The threads of the HTTP servers. What machines send, and all background work, runs on the threads
//! of `main`: a request that computes for long holds none of those.
//!
//! Connections and handlers have threads of their own. `/health`, `/ready` and `/metrics` are answered
//! by those of the connections, also while every handler computes.

use std::panic::resume_unwind;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, StreamExt as _};
use service::metrics::follow;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

/// The number of threads for connections, which compute little.
const CONNECTION_THREADS: usize = 2;
/// The smallest number of threads for handlers.
const HANDLER_THREADS_MIN: usize = 4;
/// How many events of a stream may wait to be sent.
const EVENTS_MAX: usize = 16;
/// What is added to the nice value of all these threads: while the processors are busy, what machines
/// send comes first.
const NICE: i32 = 5;

/// The runtimes of the HTTP servers. They end without waiting for what runs on them.
pub struct RequestRuntime {
    connections: Handle,
    handlers: Handle,
    /// Taken when it ends.
    runtimes: Option<[Runtime; 2]>,
}

impl RequestRuntime {
    /// Creates the threads.
    ///
    /// # Errors
    /// When the system creates none.
    pub fn start() -> std::io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let connections = runtime("connections", CONNECTION_THREADS)?;
        let handlers = runtime("requests", HANDLER_THREADS_MIN.max(processors))?;
        Ok(Self {
            connections: connections.handle().clone(),
            handlers: handlers.handle().clone(),
            runtimes: Some([connections, handlers]),
        })
    }

    /// Returns the handle of the threads that accept connections, read requests and send responses.
    pub const fn connections(&self) -> &Handle {
        &self.connections
    }

    /// Returns the handle of the threads that compute.
    pub const fn handlers(&self) -> &Handle {
        &self.handlers
    }

    /// Returns the routes with their handlers, and the events of their streams, on the threads that
    /// compute.
    pub fn with_own_threads(&self, routes: Router) -> Router {
        routes.layer(from_fn_with_state(self.handlers.clone(), run_handler))
    }
}

fn runtime(name: &str, threads: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .worker_threads(threads)
        .thread_name(name)
        .on_thread_start(|| {
            // On Linux this is the value of the calling thread, which may always raise it.
            let nice = rustix::process::getpriority_process(None).unwrap_or(0);
            let _ = rustix::process::setpriority_process(None, nice.saturating_add(NICE));
        })
        .build()
}

/// Runs the handler of a request on `threads`, with the metrics and the log fields of the request. The
/// handler ends with its connection.
async fn run_handler(State(threads): State<Handle>, request: Request, next: Next) -> Response {
    let handling = follow(next.run(request)).in_current_span();
    match AbortOnDropHandle::new(threads.spawn(handling)).await {
        Ok(response) => with_events_from(&threads, response),
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic), // the layer for panics answers
            Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(), // the process stops
        },
    }
}

/// Lets `threads` make the events of a stream. Every other body is complete, and stays as it is.
fn with_events_from(threads: &Handle, response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| !kind.as_bytes().starts_with(b"text/event-stream")) {
        return response;
    }
    let (head, body) = response.into_parts();
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let mut events = body.into_data_stream();
    let making = AbortOnDropHandle::new(threads.spawn(follow(async move {
        while let Some(event) = events.next().await {
            if sender.send(event).await.is_err() {
                return; // the client has left
            }
        }
    })));
    let made = stream::unfold((receiver, making), |(mut receiver, making)| async move {
        let event = receiver.recv().await?;
        Some((event, (receiver, making)))
    });
    Response::from_parts(head, Body::from_stream(made))
}

impl Drop for RequestRuntime {
    fn drop(&mut self) {
        for runtime in self.runtimes.take().into_iter().flatten() {
            // A runtime that is dropped waits, which no task may do.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_run_on_threads_that_yield_to_the_others() {
        let own = rustix::process::getpriority_process(None).unwrap();
        let runtime = RequestRuntime::start().unwrap();
        for (threads, name) in
            [(runtime.connections(), "connections"), (runtime.handlers(), "requests")]
        {
            let nice = threads.spawn(async {
                (
                    std::thread::current().name().map(str::to_owned),
                    rustix::process::getpriority_process(None).unwrap(),
                )
            });
            assert_eq!(nice.await.unwrap(), (Some(name.to_owned()), (own + NICE).min(19)));
        }
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), own, "only those threads");
    }
}
