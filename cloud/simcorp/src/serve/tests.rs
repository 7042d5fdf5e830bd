//! Tests of the servers that `simcorp serve` runs, with small services on loopback.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::header;
use axum::routing::get;
use futures_util::stream;
use http_stack::start::check_mqtt;
use service::health::Health;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use utoipa::openapi::OpenApi;

use super::*;

/// Much longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

fn running() -> RunningServers {
    let stop = CancellationToken::new();
    RunningServers {
        requests: RequestRuntime::start().unwrap(),
        process_metrics: Metrics::separate().unwrap(),
        tasks: Tasks::new(stop.clone()),
        connections: ConnectionLimits::new(4_096),
        stop,
        servers: tokio::task::JoinSet::new(),
    }
}

/// Serves a service on a port of its own, and returns its address.
async fn serve(running: &mut RunningServers, service: Service) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    running.serve(service, Metrics::separate().unwrap(), (listener, None)).unwrap();
    address
}

/// Sends a request on a connection of its own, and returns the response.
async fn read(address: SocketAddr, path: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).await.unwrap();
    response
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("the server does nothing")
}

#[tokio::test]
async fn health_is_answered_within_100_ms_while_all_handlers_compute() {
    let mut running = running();
    let (computing, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, end) = (computing.clone(), done.clone());
    // Holds its thread without yielding, until the test has its answers.
    let compute = get(async move || {
        count.fetch_add(1, Ordering::SeqCst);
        while !end.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        "computed"
    });
    let context = service_testbed::context();
    let health = Health::new("computing", context.clock.clone());
    let routes = Router::new().route("/compute", compute);
    let service = Service::new(&context, "computing", (routes, OpenApi::default()), health);
    let service = service.without_authentication(); // nor a rate limit
    let address = serve(&mut running, service).await;

    let threads = running.requests.handlers().metrics().num_workers();
    let requests: Vec<_> = (0..2 * threads)
        .map(|_| tokio::spawn(async move { read(address, "/compute").await }))
        .collect();
    let all_compute = async {
        while computing.load(Ordering::SeqCst) < threads {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(all_compute).await;
    let mut slowest = [Duration::ZERO; 2];
    let mut fastest = [PATIENCE; 2];
    for _ in 0..5 {
        for (i, path) in ["/health", "/ready"].into_iter().enumerate() {
            let begun = Instant::now();
            let answer = within(read(address, path)).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            slowest[i] = slowest[i].max(begun.elapsed());
            fastest[i] = fastest[i].min(begun.elapsed());
        }
    }
    // Other tests may hold the processors for a moment; a handler would hold all answers.
    let limit = Duration::from_millis(100);
    assert!(fastest.iter().all(|took| *took < limit), "{fastest:?} to {slowest:?}");
    assert_eq!(computing.load(Ordering::SeqCst), threads, "the others still wait");
    done.store(true, Ordering::SeqCst);
    for request in requests {
        let answer = within(request).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("computed"), "{answer}");
    }
}

#[tokio::test]
async fn handlers_and_the_events_of_streams_run_on_threads_apart_from_the_connections() {
    fn thread() -> String {
        std::thread::current().name().unwrap_or_default().to_owned()
    }
    let events = async || {
        let event = stream::once(async { Ok::<_, Infallible>(thread()) });
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(event))
    };
    let routes = Router::new()
        .route("/handler", get(async || thread()))
        .route("/events", get(events))
        .route(
            "/body",
            get(async || Body::from_stream(stream::once(async { Ok::<_, Infallible>(thread()) }))),
        );
    let mut running = running();
    let context = service_testbed::context();
    let health = Health::new("named", context.clock.clone());
    let service = Service::new(&context, "named", (routes, OpenApi::default()), health);
    let address = serve(&mut running, service).await;
    for (path, expected) in
        [("/handler", "requests"), ("/events", "requests"), ("/body", "connections")]
    {
        let answer = within(read(address, path)).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(body.contains(expected), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_handler_that_panics_on_its_own_thread_is_answered_with_500() {
    let mut running = running();
    let routes = Router::new().route("/fail", get(async || -> &'static str { panic!("a fault") }));
    let context = service_testbed::context();
    let health = Health::new("failing", context.clock.clone());
    let service = Service::new(&context, "failing", (routes, OpenApi::default()), health);
    let address = serve(&mut running, service).await;
    for (path, status) in [("/fail", 500), ("/health", 200)] {
        let answer = within(read(address, path)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_server_that_ends_by_itself_fails_ready_and_ends_the_process() {
    for (ends, reason) in [
        ("in order", "an HTTP server ended"),
        ("with an error", "an HTTP server ended: no more connections"),
        ("with a panic", "panicked"),
    ] {
        let mut running = running();
        let (tasks, stop) = (running.tasks.clone(), running.stop.clone());
        let context = Context { tasks: tasks.clone(), ..service_testbed::context() };
        let health = Health::new("other", context.clock.clone());
        let other = Service::new(&context, "other", (Router::new(), OpenApi::default()), health);
        let ready = service_router(&other, Metrics::separate().unwrap());
        serve(&mut running, other).await;
        running.servers.spawn(async move {
            match ends {
                "in order" => Ok(()),
                "with an error" => Err(std::io::Error::other("no more connections")),
                _ => panic!("a fault"),
            }
        });
        let ended = within(running.run_until_stopped()).await.unwrap_err().to_string();
        assert!(stop.is_cancelled(), "a server ended {ends}");
        let failure = tasks.failure().unwrap_or_default();
        assert!(failure.contains(reason), "{ends}: {failure}");
        assert!(ended.contains(failure), "{ends}: {ended}");
        let probed = Probe::start(ready).await;
        let answer = within(read(probed.address, "/ready")).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("an HTTP server ended"), "{answer}");
    }
}

#[tokio::test]
async fn a_server_that_stops_when_asked_is_no_failure() {
    let mut running = running();
    let (tasks, stop) = (running.tasks.clone(), running.stop.clone());
    let stopping = stop.clone();
    running.servers.spawn(async move {
        stopping.cancelled().await;
        Ok(())
    });
    stop.cancel();
    within(running.run_until_stopped()).await.unwrap();
    assert_eq!(tasks.failure(), None);
}

/// Serves a router apart from the servers under test.
struct Probe {
    address: SocketAddr,
    _server: tokio::task::JoinSet<std::io::Result<()>>,
}

impl Probe {
    async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = BoundedListener::new(listener, ConnectionLimits::new(4_096));
        let mut server = tokio::task::JoinSet::new();
        server.spawn(http::serve(listener, router, CancellationToken::new()));
        Self { address, _server: server }
    }
}

/// An ingestion that is connected to its broker.
const INGESTION: ServiceEntry = ServiceEntry {
    name: ServiceName::Ingestion,
    field: "ingestion.listen",
    listen: |config| config.ingestion.listen,
    stores: false,
    start: |_, context| {
        let health = check_mqtt(Health::new("ingestion", context.clock.clone()), || true);
        Ok(Service::new(context, "ingestion", (Router::new(), OpenApi::default()), health))
    },
};

#[tokio::test]
async fn ready_says_that_the_embedded_broker_has_no_passwords_where_callers_authenticate() {
    for (mode, host, is_told) in [
        (AuthMode::Oidc, "", true),
        (AuthMode::Clerk, "", true),
        (AuthMode::Dev, "", false),
        (AuthMode::Oidc, "broker.example", false),
    ] {
        let mut config = CloudConfig::default();
        config.auth.mode = mode;
        host.clone_into(&mut config.mqtt.host);
        let note = broker_note(&config, &|_| true);
        let context = service_testbed::context();
        let service = start_service(&INGESTION, &config, &context, note).unwrap();
        let mut running = running();
        let address = serve(&mut running, service).await;
        let ready = within(read(address, "/ready")).await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        assert_eq!(
            ready.contains("the embedded broker has no passwords"),
            is_told,
            "{mode:?} {host}"
        );
    }
    let mut config = CloudConfig::default();
    config.auth.mode = AuthMode::Oidc;
    let elsewhere = broker_note(&config, &|name| name != ServiceName::Ingestion);
    assert_eq!(elsewhere, None, "another process runs the broker");
}
