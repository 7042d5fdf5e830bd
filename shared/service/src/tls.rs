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

use crate::connections::{PeerPlace, Peers, YieldingPlaces};
use crate::http::serve_and_drain;
use crate::metrics::follow;

/// A connection without any traffic for this long is closed.
const IDLE_TIME_MAX: Duration = Duration::from_mins(1);

/// The bounds on the connections of a [`TlsListener`].
#[derive(Debug, Clone, Copy)]
pub struct TlsLimits {
    /// The largest number of connections in their handshake. A further one ends the oldest of the
    /// peer that has the most: a client completes its handshake in a moment, and one that never does
    /// keeps no other out.
    pub handshakes: usize,
    /// The largest number of connections with a client certificate, after their handshake.
    pub certified: usize,
    /// The largest number of connections without a client certificate, after their handshake.
    pub strangers: usize,
    /// The largest number of connections from one peer, handshakes included. Many clients may share
    /// a router.
    pub per_peer: usize,
    /// How long a handshake may take.
    pub handshake_time: Duration,
}

impl TlsLimits {
    /// Returns the limits of a listener with at most `total` connections: an eighth of them in their
    /// handshake, a quarter without a certificate, and the others with one.
    #[must_use]
    pub const fn new(total: usize) -> Self {
        let (handshakes, strangers) = (total / 8, total / 4);
        let per_peer = match total / 16 {
            0..8 => 8,
            share @ 8..=256 => share,
            _ => 256,
        };
        Self {
            handshakes,
            certified: total.saturating_sub(handshakes.saturating_add(strangers)),
            strangers,
            per_peer,
            handshake_time: Duration::from_secs(10),
        }
    }
}

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
    /// Cancelled when no further connections are accepted.
    ended: CancellationToken,
}

impl TlsListener {
    /// Starts to accept connections from `tcp`; stops when the listener is dropped.
    ///
    /// # Errors
    /// When the local address of `tcp` cannot be read.
    pub fn new(tcp: TcpListener, config: Arc<ServerConfig>, limits: TlsLimits) -> io::Result<Self> {
        let address = tcp.local_addr()?;
        let (done, shaken) = mpsc::channel(64);
        let places = Places {
            limits,
            handshakes: YieldingPlaces::new(limits.handshakes),
            certified: Arc::new(Semaphore::new(limits.certified)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            peers: Peers::default(),
        };
        let accepting = accept(tcp, TlsAcceptor::from(config), places, done);
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard(); // dropped with the task, also when it panics
        tokio::spawn(follow(async move {
            accepting.await;
            drop(end);
        }));
        Ok(Self { connections: shaken, address, ended })
    }
}

/// The places of a listener's connections. Clones share them.
#[derive(Clone)]
struct Places {
    limits: TlsLimits,
    handshakes: YieldingPlaces,
    certified: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    peers: Peers,
}

async fn accept(
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    places: Places,
    done: mpsc::Sender<(TlsConnection, TlsPeer)>,
) {
    loop {
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
        let Some(peer) = PeerPlace::take(&places.peers, address.ip(), places.limits.per_peer)
        else {
            metrics::counter!("simcorp_connections_refused_total").increment(1);
            tracing::debug!(%address, "closed a connection: its peer has too many");
            continue;
        };
        let handshake = places.handshakes.take(address.ip());
        let (acceptor, places, done) = (acceptor.clone(), places.clone(), done.clone());
        tokio::spawn(follow(async move {
            let shaken = tokio::select! {
                shaken = shake_hands(&acceptor, stream, places.limits.handshake_time) => shaken,
                () = handshake.ended() => Err(io::Error::other("its place was needed")),
            };
            drop(handshake);
            let shaken = match shaken {
                Ok(shaken) => shaken,
                Err(error) => {
                    tracing::debug!(%address, %error, "a TLS handshake failed");
                    metrics::counter!("simcorp_tls_handshakes_failed_total").increment(1);
                    return;
                }
            };
            let shown = shaken.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let certificate: Option<Arc<[u8]>> = shown.map(|der| Arc::from(der.as_ref()));
            let free = if certificate.is_some() { places.certified } else { places.strangers };
            let Ok(permit) = free.try_acquire_owned() else {
                metrics::counter!("simcorp_connections_refused_total").increment(1);
                return;
            };
            let place = Place { _permit: permit, _peer: peer };
            let peer = TlsPeer { address, certificate, _place: Some(Arc::new(place)) };
            let _ = done.send((shaken, peer)).await;
        }));
    }
}

async fn shake_hands(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    time_max: Duration,
) -> io::Result<TlsConnection> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_read_timeout(Some(IDLE_TIME_MAX));
    stream.set_write_timeout(Some(IDLE_TIME_MAX));
    let shaken = tokio::time::timeout(time_max, acceptor.accept(Box::pin(stream))).await;
    shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Listener for TlsListener {
    type Io = TlsConnection;
    type Addr = TlsPeer;

    async fn accept(&mut self) -> (TlsConnection, TlsPeer) {
        match self.connections.recv().await {
            Some(shaken) => shaken,
            None => std::future::pending().await, // `serve` ends then
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
    let (ended, stopped) = (listener.ended.clone(), stop.clone());
    let serving = axum::serve(listener, app)
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    let serving = async {
        let failed = async {
            ended.cancelled().await;
            if stopped.is_cancelled() {
                std::future::pending::<()>().await; // it ended in order; connections are drained
            }
        };
        tokio::select! {
            done = async { serving.await } => done,
            () = failed => Err(io::Error::other("no further TLS connections are accepted")),
        }
    };
    serve_and_drain(serving, stop).await
}

#[cfg(test)]
mod tests;
