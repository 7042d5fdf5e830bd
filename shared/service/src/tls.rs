//! A TLS listener that passes each client's certificate to the handlers.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::connections::{PeerPlace, Peers};
use crate::http::serve_and_drain;
use crate::metrics::follow;

/// The largest number of open connections, including those in their handshake. At the bound, new
/// connections wait in the system's queue.
const CONNECTIONS_MAX: usize = 4_096;
/// The largest number of open connections without a client certificate, after their handshake. The
/// others are left for clients with one.
const STRANGERS_MAX: usize = CONNECTIONS_MAX / 2;
/// The largest number of open connections from one IP address: many clients may share a router.
const PER_PEER_MAX: usize = 256;
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// A connection without any traffic for this long is closed.
const IDLE_TIME_MAX: Duration = Duration::from_mins(1);

/// Makes aws-lc-rs the process's provider of cryptography for TLS. Every TLS client needs one; a
/// repeated call changes nothing.
pub fn install_crypto_provider() {
    // Fails if a provider is installed already; only this one is used.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The client at the other end of a connection.
#[derive(Clone, Debug)]
pub struct TlsPeer {
    /// The address that the client connects from.
    pub address: SocketAddr,
    /// The client's certificate (DER), whose key the client has proven to hold. It is verified as
    /// the listener's configuration says.
    pub certificate: Option<Arc<[u8]>>,
    /// The connection's place; released when the last clone is dropped, which is the connection's.
    _place: Option<Arc<Place>>,
}

/// What a connection holds until it ends.
#[derive(Debug)]
struct Place {
    _permit: OwnedSemaphorePermit,
    _peer: PeerPlace,
    /// Of a connection without a client certificate.
    _stranger: Option<OwnedSemaphorePermit>,
}

impl TlsPeer {
    /// Describes a client that is not at the end of a [`TlsListener`]'s connection.
    #[must_use]
    pub const fn new(address: SocketAddr, certificate: Option<Arc<[u8]>>) -> Self {
        Self { address, certificate, _place: None }
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for TlsPeer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// The byte stream of a TLS connection.
pub type TlsConnection = TlsStream<Pin<Box<TimeoutStream<TcpStream>>>>;

/// Accepts TLS connections. Handshakes run on tasks of their own, so that a slow client does not
/// delay the others.
pub struct TlsListener {
    connections: mpsc::Receiver<(TlsConnection, TlsPeer)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Starts to accept connections from `tcp`; stops when the listener is dropped.
    ///
    /// # Errors
    /// When the local address of `tcp` cannot be read.
    pub fn new(tcp: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let address = tcp.local_addr()?;
        let (done, shaken) = mpsc::channel(64);
        tokio::spawn(follow(accept(tcp, TlsAcceptor::from(config), done)));
        Ok(Self { connections: shaken, address })
    }
}

async fn accept(
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<(TlsConnection, TlsPeer)>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let peers = Peers::default();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = tcp.accept() => accepted,
            () = done.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Usually no file descriptors are left: other connections have to end first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(peer_place) = PeerPlace::take(&peers, address.ip(), PER_PEER_MAX) else {
            metrics::counter!("simcorp_connections_refused_total").increment(1);
            tracing::debug!(%address, "closed a connection: its peer has too many");
            continue;
        };
        let (acceptor, done, strangers) = (acceptor.clone(), done.clone(), strangers.clone());
        tokio::spawn(follow(async move {
            let mut stream = TimeoutStream::new(stream);
            stream.set_read_timeout(Some(IDLE_TIME_MAX));
            stream.set_write_timeout(Some(IDLE_TIME_MAX));
            let shake = acceptor.accept(Box::pin(stream));
            let shaken = match tokio::time::timeout(HANDSHAKE_TIME_MAX, shake).await {
                Ok(Ok(shaken)) => shaken,
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "a TLS handshake failed");
                    metrics::counter!("simcorp_tls_handshakes_failed_total").increment(1);
                    return;
                }
                Err(_) => return,
            };
            let shown = shaken.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let certificate: Option<Arc<[u8]>> = shown.map(|der| Arc::from(der.as_ref()));
            let stranger = if certificate.is_some() {
                None
            } else {
                let Ok(permit) = strangers.try_acquire_owned() else {
                    metrics::counter!("simcorp_connections_refused_total").increment(1);
                    return;
                };
                Some(permit)
            };
            let place = Place { _permit: permit, _peer: peer_place, _stranger: stranger };
            let peer = TlsPeer { address, certificate, _place: Some(Arc::new(place)) };
            let _ = done.send((shaken, peer)).await;
        }));
    }
}

impl Listener for TlsListener {
    type Io = TlsConnection;
    type Addr = TlsPeer;

    async fn accept(&mut self) -> (TlsConnection, TlsPeer) {
        match self.connections.recv().await {
            Some(shaken) => shaken,
            None => std::future::pending().await, // the accept task ended: no more connections
        }
    }

    fn local_addr(&self) -> io::Result<TlsPeer> {
        Ok(TlsPeer::new(self.address, None))
    }
}

/// Serves until `stop`, like [`crate::http::serve`]; handlers get a [`TlsPeer`] from `ConnectInfo`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TlsListener,
    app: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let stopping = stop.clone();
    let app = app.into_make_service_with_connect_info::<TlsPeer>();
    let serving = axum::serve(listener, app)
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    serve_and_drain(async { serving.await }, stop).await
}
