//! Tests the servers of the agent's ports.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use axum::body::{Body, Bytes};
use axum::routing::get;
use futures_util::stream;
use service::metrics::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// Returns a page, and one whose body panics: the connection polls a body, and no layer does.
fn pages() -> axum::Router {
    type Part = Option<Result<Bytes, Infallible>>;
    let broken = || async { Body::from_stream(stream::poll_fn(|_| -> Poll<Part> { panic!() })) };
    axum::Router::new().route("/", get(|| async { "the page" })).route("/broken", get(broken))
}

async fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await; // a connection that ends early is an answer
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_panic_in_a_connection_of_the_page_ends_that_connection_alone() {
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serve_http(&tasks, "page", (listener, PAGE_CONNECTIONS), pages(), &stop).unwrap();
    let broken = ask(address, "/broken").await;
    assert!(!broken.ends_with("\r\n0\r\n\r\n"), "the body has no end: {broken}");
    assert!(ask(address, "/").await.ends_with("the page"));
    assert_eq!(tasks.failure(), None);
    stop.cancel();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn the_page_is_served_again_after_a_panic_where_its_connections_are_accepted() {
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let starts = Arc::new(AtomicU32::new(0));
    let (count, until) = (starts.clone(), stop.clone());
    serve_restarting(&tasks, "page", listener, move |listener| {
        let (start, stop) = (count.fetch_add(1, Ordering::Relaxed), until.clone());
        async move {
            if start == 0 {
                let accepted = listener.accept().await;
                panic!("accepted {accepted:?}");
            }
            http::serve(BoundedListener::new(listener, PAGE_CONNECTIONS), pages(), stop).await
        }
    })
    .unwrap();
    drop(TcpStream::connect(address).await.unwrap());
    // Longer than the pause before the restart.
    tokio::time::sleep(Duration::from_secs(5)).await;
    tokio::time::resume();
    assert!(ask(address, "/").await.ends_with("the page"));
    assert_eq!((starts.load(Ordering::Relaxed), tasks.failure()), (2, None));
    stop.cancel();
    tasks.wait().await;
}

#[tokio::test]
async fn an_agent_whose_name_another_one_uses_says_so_and_is_not_ready() {
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = AgentState::new("acme/leipzig/r-1".to_owned());
    let (commands, _receiver) = sync_channel(1);
    let metrics = Metrics::separate().unwrap();
    let app = local::app(state.clone(), commands, GatewayClock::start(), metrics, stop.clone());
    serve_http(&tasks, "page", (listener, PAGE_CONNECTIONS), app, &stop).unwrap();
    assert!(ask(address, "/ready").await.starts_with("HTTP/1.1 200"));
    let conflict = "another agent uses this device's name and key";
    state.update(|state| state.name_conflict = Some(conflict.to_owned()));
    let ready = ask(address, "/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains(conflict), "{ready}");
    let status = ask(address, "/status").await;
    assert!(status.contains(&format!("\"nameConflict\":\"{conflict}\"")), "{status}");
    stop.cancel();
    tasks.wait().await;
}
