//! Bounds on the TCP connections of a server: how many there are, how many one peer has, and how
//! long one may be idle or take to send a request. A stranger's connections end before they keep
//! others out or exhaust the process's file descriptors.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// The bounds of one listener.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The largest number of connections. Further ones wait in the system's queue.
    pub total: usize,
    /// The largest number of connections from one IP address. Further ones are closed at once.
    pub per_peer: usize,
    /// A connection without traffic for this long is closed. Longer than clients keep a connection
    /// in their pools (90 s), so that the client closes first.
    pub idle: Duration,
    /// A request that is not answered this long after its first byte ends its connection: its head
    /// or body comes too slowly. Longer than a handler may take.
    pub request: Duration,
}

impl ConnectionLimits {
    /// Returns the limits of a listener with at most `total` connections, half of them from one
    /// peer.
    #[must_use]
    pub const fn new(total: usize) -> Self {
        Self {
            total,
            per_peer: total.div_ceil(2),
            idle: Duration::from_mins(2),
            request: Duration::from_mins(1),
        }
    }

    /// Returns the limits of each of `listeners` listeners of a process that may open `files` files.
    /// 256 files are left for databases, brokers and calls to other services.
    #[must_use]
    pub fn shared(files: usize, listeners: usize) -> Self {
        let each = files.saturating_sub(RESERVED_FILES) / listeners.max(1);
        Self::new(each.clamp(16, 4_096))
    }
}

/// How many files listeners leave for everything else.
const RESERVED_FILES: usize = 256;
/// The number of files that a process asks for.
const FILES_WANTED: u64 = 65_536;

/// Raises the number of files that this process may open to what its user may have, at most
/// 65,536, and returns it.
#[must_use]
pub fn raise_file_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES_WANTED, |hard| hard.min(FILES_WANTED));
    let current = limit.current.unwrap_or(FILES_WANTED);
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    let files = if wanted > current && setrlimit(Resource::Nofile, raised).is_ok() {
        wanted
    } else {
        current
    };
    usize::try_from(files.min(FILES_WANTED)).unwrap_or(1_024)
}

/// The number of connections of each peer.
pub(crate) type Peers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A listener that accepts connections within [`ConnectionLimits`].
pub struct BoundedListener {
    tcp: TcpListener,
    limits: ConnectionLimits,
    places: Arc<Semaphore>,
    peers: Peers,
}

impl BoundedListener {
    /// Wraps a bound listener.
    #[must_use]
    pub fn new(tcp: TcpListener, limits: ConnectionLimits) -> Self {
        let places = Arc::new(Semaphore::new(limits.total));
        Self { tcp, limits, places, peers: Peers::default() }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        loop {
            let Ok(permit) = self.places.clone().acquire_owned().await else {
                return std::future::pending().await; // the semaphore is never closed
            };
            match self.tcp.accept().await {
                Ok((stream, address)) => {
                    let Some(peer) =
                        PeerPlace::take(&self.peers, address.ip(), self.limits.per_peer)
                    else {
                        metrics::counter!("simcorp_connections_refused_total").increment(1);
                        tracing::debug!(%address, "closed a connection: its peer has too many");
                        continue;
                    };
                    let place = Place { _permit: permit, _peer: peer };
                    return (BoundedStream::new(stream, self.limits, place), address);
                }
                Err(error) => {
                    // Usually no file descriptors are left: other connections have to end first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// What a connection holds until it ends.
struct Place {
    _permit: OwnedSemaphorePermit,
    _peer: PeerPlace,
}

/// The place of a connection among those of its peer.
#[derive(Debug)]
pub(crate) struct PeerPlace {
    peers: Peers,
    ip: IpAddr,
}

impl PeerPlace {
    pub(crate) fn take(peers: &Peers, ip: IpAddr, per_peer: usize) -> Option<Self> {
        let mut counts = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= per_peer {
            return None;
        }
        *count += 1;
        Some(Self { peers: peers.clone(), ip })
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let mut counts = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

/// A connection that ends when it is idle, or a request too slow.
pub struct BoundedStream {
    stream: TcpStream,
    limits: ConnectionLimits,
    timer: Pin<Box<Sleep>>,
    /// When the first byte came that nothing was written after.
    request_began: Option<Instant>,
    _place: Place,
}

impl BoundedStream {
    fn new(stream: TcpStream, limits: ConnectionLimits, place: Place) -> Self {
        // A connection must send its first byte as fast as a request.
        let timer = Box::pin(sleep_until(Instant::now() + limits.request));
        Self { stream, limits, timer, request_began: None, _place: place }
    }

    fn has_read(&mut self) {
        let now = Instant::now();
        let began = *self.request_began.get_or_insert(now);
        let end = (began + self.limits.request).min(now + self.limits.idle);
        self.timer.as_mut().reset(end);
    }

    fn has_written(&mut self) {
        self.request_began = None;
        self.timer.as_mut().reset(Instant::now() + self.limits.idle);
    }

    fn poll_after_write(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.has_written();
            return written;
        }
        // A peer that reads nothing holds its place no longer than an idle one.
        self.poll_expired(context).map(Err)
    }

    /// Returns an error once the connection has been idle, or its request has taken, too long.
    fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.timer.as_mut().poll(context).map(|()| {
            metrics::counter!("simcorp_connections_expired_total").increment(1);
            io::Error::new(io::ErrorKind::TimedOut, "idle, or a request that came too slowly")
        })
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.poll_expired(context).map(Err),
            ready @ Poll::Ready(_) => {
                if buffer.filled().len() > before {
                    self.has_read();
                }
                ready
            }
        }
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.poll_after_write(context, written)
    }

    // A large body goes out without being copied behind its head.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.poll_after_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        total: 4,
        per_peer: 3,
        idle: Duration::from_millis(300),
        request: Duration::from_millis(200),
    };

    async fn serve() -> SocketAddr {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let app = Router::new().route("/", get(async || "here"));
        let listener = BoundedListener::new(tcp, LIMITS);
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    /// Waits until the server closes the connection, and returns what it sent.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        let read = stream.read_to_end(&mut text);
        let closed = tokio::time::timeout(Duration::from_secs(10), read).await;
        let _ = closed.expect("the connection stays open"); // closed or reset
        String::from_utf8_lossy(&text).into_owned()
    }

    #[test]
    fn listeners_share_the_files_and_leave_some() {
        assert_eq!(ConnectionLimits::shared(1_024, 12).total, 64);
        assert_eq!(ConnectionLimits::shared(65_536, 12).total, 4_096);
        assert_eq!(ConnectionLimits::shared(100, 12).total, 16);
        let files = raise_file_limit();
        assert!(files >= 256 && raise_file_limit() == files, "{files}");
    }

    #[tokio::test]
    async fn a_silent_and_a_slow_connection_are_closed() {
        let address = serve().await;
        let mut silent = connect(address).await;
        let mut slow = connect(address).await;
        // A byte in each half of the time limit: the connection is never idle.
        let (mut reader, mut writer) = slow.split();
        let trickle = async {
            let head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".iter().chain([b'x'; 200].iter());
            for byte in head {
                if writer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("the server waits for a slow request");
        };
        let mut answer = Vec::new();
        tokio::select! {
            () = trickle => {}
            _ = reader.read_to_end(&mut answer) => {}
        }
        assert!(!String::from_utf8_lossy(&answer).contains("here"));
        assert_eq!(rest(&mut silent).await, "");
    }

    #[tokio::test]
    async fn one_peer_does_not_take_every_place_and_a_place_comes_back() {
        let address = serve().await;
        let mut held = Vec::new();
        for _ in 0..LIMITS.per_peer {
            let mut stream = connect(address).await;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap(); // served, and kept alive
            held.push(stream);
        }
        assert_eq!(rest(&mut connect(address).await).await, "", "closed without an answer");
        drop(held);
        // The server sees the ends of the others at some moment.
        for _ in 0..100 {
            let mut stream = connect(address).await;
            let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(request).await;
            if rest(&mut stream).await.ends_with("here") {
                return;
            }
        }
        panic!("no place came back");
    }
}
