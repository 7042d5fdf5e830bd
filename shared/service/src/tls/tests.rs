//! Tests the listener with real handshakes on loopback.

use axum::extract::ConnectInfo;
use axum::routing::get;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use testbed::TestCa;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

use super::*;

const LIMITS: TlsLimits = TlsLimits {
    handshakes: 2,
    certified: 2,
    strangers: 1,
    per_peer: 100,
    handshake_time: Duration::from_secs(30),
};

/// A listener whose handler tells whether the client has a certificate, and its clients.
struct Server {
    address: SocketAddr,
    stranger: Arc<ClientConfig>,
    certified: Arc<ClientConfig>,
}

/// Issues a certificate with this name, and returns it with its key.
fn issue(authority: &TestCa, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let issued = authority.issue(name).unwrap();
    let certificate = CertificateDer::from_pem_file(&issued.certificate).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_file(&issued.key).unwrap())
}

/// Returns the certificates that a server and its clients trust.
fn roots(authority: &TestCa) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.certificate()).unwrap()).unwrap();
    Arc::new(roots)
}

/// Listens on a port of its own.
async fn listen(authority: &TestCa, limits: TlsLimits) -> TlsListener {
    install_crypto_provider();
    let verifier = WebPkiClientVerifier::builder(roots(authority)).allow_unauthenticated();
    let (certificates, key) = issue(authority, "localhost");
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(certificates, key)
        .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TlsListener::new(tcp, Arc::new(config), limits).unwrap()
}

impl Server {
    async fn start(limits: TlsLimits) -> Self {
        let authority = TestCa::new().unwrap();
        let listener = listen(&authority, limits).await;
        let (address, roots) = (listener.address, roots(&authority));
        let (certificates, key) = issue(&authority, "gateway");
        let client = || ClientConfig::builder().with_root_certificates(roots.clone());
        let certified = client().with_client_auth_cert(certificates, key).unwrap();

        let known = async |ConnectInfo(peer): ConnectInfo<TlsPeer>| {
            if peer.certificate.is_some() { "a gateway" } else { "a stranger" }
        };
        let app = Router::new().route("/", get(known));
        tokio::spawn(serve(listener, app, CancellationToken::new()));
        Self {
            address,
            stranger: Arc::new(client().with_no_client_auth()),
            certified: Arc::new(certified),
        }
    }

    async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Connects and sends a request. Returns the connection, which stays open, and the answer, which
    /// is empty if the server closed the connection.
    async fn ask(&self, client: &Arc<ClientConfig>) -> (Option<ClientStream<TcpStream>>, String) {
        let name = ServerName::try_from("localhost").unwrap();
        let tcp = self.plain().await;
        let Ok(mut stream) = TlsConnector::from(client.clone()).connect(name, tcp).await else {
            return (None, String::new());
        };
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut answer = String::new();
        while !answer.ends_with("a gateway") && !answer.ends_with("a stranger") {
            let mut bytes = [0; 1024];
            match within(stream.read(&mut bytes)).await {
                Ok(count) if count > 0 => answer += &String::from_utf8_lossy(&bytes[..count]),
                _ => break,
            }
        }
        (Some(stream), answer)
    }

    async fn serves_a_gateway(&self) -> bool {
        self.ask(&self.certified).await.1.ends_with("a gateway")
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("the server does nothing")
}

/// Waits until the server closes the connection, and returns what it sent.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = within(stream.read_to_end(&mut bytes)).await; // closed or reset
    bytes
}

#[tokio::test]
async fn handshakes_that_never_end_are_closed_and_count_against_their_peer() {
    let time = Duration::from_millis(900);
    let limits = TlsLimits { handshakes: 10, per_peer: 2, handshake_time: time, ..LIMITS };
    let server = Server::start(limits).await;
    let begun = tokio::time::Instant::now();
    let mut held = [server.plain().await, server.plain().await];
    assert!(rest(&mut server.plain().await).await.is_empty());
    assert!(begun.elapsed() < time, "a third handshake of the peer began");
    for stream in &mut held {
        assert!(rest(stream).await.is_empty());
    }
    assert!(begun.elapsed() >= time);
    assert!(server.serves_a_gateway().await, "the peer has its places again");
}

#[tokio::test]
async fn held_handshakes_and_strangers_keep_no_client_with_a_certificate_out() {
    let server = Server::start(LIMITS).await;
    let mut held = Vec::new();
    for _ in 0..3 * LIMITS.handshakes {
        held.push(server.plain().await);
    }
    let (_stranger, answer) = server.ask(&server.stranger).await;
    assert!(answer.ends_with("a stranger"), "{answer}");
    let (_, answer) = server.ask(&server.stranger).await;
    assert_eq!(answer, "", "a second stranger");
    let (_gateway, answer) = server.ask(&server.certified).await;
    assert!(answer.ends_with("a gateway"), "{answer}");
    assert!(server.serves_a_gateway().await);
    assert!(rest(&mut held[0]).await.is_empty(), "the oldest handshake has given way");
}

#[tokio::test]
async fn plain_text_is_no_handshake_and_ends_only_its_own_connection() {
    let server = Server::start(LIMITS).await;
    let mut plain = server.plain().await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = rest(&mut plain).await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    assert!(server.serves_a_gateway().await);
}

#[tokio::test]
async fn a_server_whose_accept_loop_ends_by_itself_fails_and_one_that_is_stopped_does_not() {
    let authority = TestCa::new().unwrap();
    for is_stopped in [false, true] {
        let listener = listen(&authority, LIMITS).await;
        let (ended, stop) = (listener.ended.clone(), CancellationToken::new());
        if is_stopped {
            stop.cancel();
        }
        ended.cancel(); // as the task of the accept loop does at its end, also when it panics
        let served = within(serve(listener, Router::new(), stop)).await;
        let problem = served.err().map(|error| error.to_string());
        let expected = (!is_stopped).then_some("no further TLS connections are accepted");
        assert_eq!(problem.as_deref(), expected);
    }
}
