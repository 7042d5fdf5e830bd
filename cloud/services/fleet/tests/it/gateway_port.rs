//! The port of the gateways, by the router that its TLS listener serves.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use fleet::FleetConfig;
use http_stack::start::Context;
use service::metrics::Metrics;
use service::tls::{TlsPeer, install_crypto_provider};
use tower::ServiceExt as _;

#[tokio::test]
async fn made_up_methods_share_one_series_on_the_port_of_the_gateways() {
    install_crypto_provider();
    let _ = Metrics::install(); // fails if another test has installed the recorder
    let own = Metrics::separate().unwrap();
    let (folder, database) = service_testbed::open_sqlite().await;
    let context = Context {
        database: Some(database),
        data: folder.path().to_owned(),
        ..service_testbed::context()
    };
    let service = own.sync_scope(|| fleet::start(&FleetConfig::default(), &context)).unwrap();
    let router = service.tls.expect("an authority in development mode").router;
    let peer = TlsPeer::new(SocketAddr::from(([127, 0, 0, 1], 4711)), None);
    for n in 0..20 {
        let method = Method::from_bytes(format!("MADEUP{n}").as_bytes()).unwrap();
        let request = Request::builder().method(method).uri("/v1/time");
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
    let shown = own.render();
    let counted = shown.lines().filter(|line| line.starts_with("simcorp_http_requests_total{"));
    let counted: Vec<&str> = counted.collect();
    let [line] = counted.as_slice() else { panic!("{shown}") };
    for part in ["service=\"fleet-gateways\"", "method=\"OTHER\"", "route=\"/v1/time\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(line.ends_with(" 20"), "{line}");
    assert!(!shown.contains("MADEUP"), "{shown}");
}
