//! Bounds on the TCP connections of a server: how many there are, how many one peer has, and how
//! long one may be idle or take to send a request. A stranger's connections end before they keep
//! others out or exhaust the process's file descriptors.

mod yielding_places;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use yielding_places::YieldingPlace;
pub(crate) use yielding_places::YieldingPlaces;

/// The bounds of one listener.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The largest number of connections, those for probes included.
    pub total: usize,
    /// How many of them are left for probes ([`Admission::ProbesOnly`]) while the others are taken.
    pub probes: usize,
    /// The largest number of connections from one peer on another computer: an IPv4 address, or a
    /// network of 64 bits of global IPv6 addresses.
    pub per_peer: usize,
    /// The largest number of connections from one address of this computer, whose programs share
    /// it.
    pub per_local_peer: usize,
    /// A connection without traffic for this long is closed. Longer than clients keep a connection
    /// in their pools (90 s), so that the client closes first.
    pub idle: Duration,
    /// A request that is not answered this long after its first byte ends its connection: its head
    /// or body comes too slowly. Longer than a handler may take.
    pub request: Duration,
}

/// How many bytes of a connection are read at once. The HTTP server keeps a buffer of up to 400 KB for
/// a connection that has once filled it, for as long as the connection stays.
const READ_BYTES_MAX: usize = 8 * 1024;

impl ConnectionLimits {
    /// Returns the limits of a listener with at most `total` connections. A sixteenth of them, at
    /// least 4 and at most 32, is for probes; half of the others may come from one peer, which may
    /// be a proxy.
    #[must_use]
    pub const fn new(total: usize) -> Self {
        let probes = match total / 16 {
            0..4 => 4,
            share @ 4..=32 => share,
            _ => 32,
        };
        Self::with_probes(total, probes)
    }

    /// Returns the limits of a port that answers no probes.
    #[must_use]
    pub const fn without_probes(total: usize) -> Self {
        Self::with_probes(total, 0)
    }

    const fn with_probes(total: usize, probes: usize) -> Self {
        let half = total.saturating_sub(probes).div_ceil(2);
        Self {
            total,
            probes,
            per_peer: half,
            per_local_peer: half,
            idle: Duration::from_mins(2),
            request: Duration::from_mins(1),
        }
    }

    /// Returns these limits with a quarter of the connections for a peer on another computer: for
    /// a port that is behind no proxy.
    #[must_use]
    pub const fn with_quarter_per_peer(self) -> Self {
        Self { per_peer: self.ordinary().div_ceil(4), ..self }
    }

    /// Returns the limits of each of `listeners` listeners of a process that may open `files` files.
    /// 256 files are left for databases, brokers and calls to other services.
    #[must_use]
    pub fn shared(files: usize, listeners: usize) -> Self {
        let free = files.saturating_sub(RESERVED_FILES);
        let each = free.checked_div(listeners).unwrap_or(free);
        Self::new(each.clamp(LISTENER_FILES_MIN, 4_096))
    }

    /// Returns the number of connections that may send any request.
    const fn ordinary(&self) -> usize {
        self.total.saturating_sub(self.probes)
    }

    fn of_peer(&self, ip: IpAddr) -> usize {
        if ip.to_canonical().is_loopback() { self.per_local_peer } else { self.per_peer }
    }
}

/// How many files listeners leave for everything else in the cloud's process.
pub const RESERVED_FILES: usize = 256;
/// The fewest files of a listener of [`ConnectionLimits::shared`].
pub const LISTENER_FILES_MIN: usize = 16;
/// The number of files that a process asks for.
const FILES_WANTED: u64 = 65_536;

/// Raises the number of files that this process may open to what its user may have, at most
/// 65,536, and returns it. Logs the number, and warns if it is below `needed`: the largest number of
/// connections of all listeners, and the files that everything else needs.
#[must_use]
pub fn raise_file_limit(needed: usize) -> usize {
    let (before, files) = raise_soft_limit();
    if files < needed {
        tracing::warn!(
            files,
            needed,
            "this process may open fewer files than its connections need; raise LimitNOFILE"
        );
    } else if files > before {
        tracing::info!(files, before, needed, "raised the number of files that may be open");
    } else {
        tracing::info!(files, needed, "the number of files that may be open is sufficient");
    }
    files
}

/// Raises the soft limit of open files. Returns it before and after.
fn raise_soft_limit() -> (usize, usize) {
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
    let bounded = |files: u64| usize::try_from(files.min(FILES_WANTED)).unwrap_or(1_024);
    (bounded(current), bounded(files))
}

/// What a connection may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Any request.
    AnyRequest,
    /// One request of `/health`, `/ready` or `/metrics`: the listener has no other place, or the
    /// peer has too many.
    ProbesOnly,
}

/// How many connections for probes a peer may have.
const PROBES_PER_PEER_MAX: usize = 2;
/// How long a connection for a probe lasts: longer than the checks of `/ready` may take.
const PROBE_TIME_MAX: Duration = Duration::from_secs(5);

/// The number of connections of each peer.
pub(crate) type Peers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A listener that accepts connections within [`ConnectionLimits`].
///
/// A connection that finds no place, or whose peer has too many, is accepted for one probe
/// ([`Admission::ProbesOnly`]) and lasts at most 5 s. There are [`ConnectionLimits::probes`] of
/// these, at most two of them from one peer, and a further one ends the oldest of the peer with the
/// most, so that health can be asked for whatever holds the other places. No other connection is
/// ended for a new one: which of them waits for a request and which streams a response is known to
/// HTTP only.
pub struct BoundedListener {
    tcp: TcpListener,
    limits: ConnectionLimits,
    places: ConnectionPlaces,
    probes: YieldingPlaces,
    probing_peers: Peers,
}

impl BoundedListener {
    /// Wraps a bound listener.
    #[must_use]
    pub fn new(tcp: TcpListener, limits: ConnectionLimits) -> Self {
        Self {
            tcp,
            limits,
            places: ConnectionPlaces::new(limits),
            probes: YieldingPlaces::new(limits.probes),
            probing_peers: Peers::default(),
        }
    }

    /// Takes a place for a connection from `ip`; `None` if it has too many.
    fn admit(&self, ip: IpAddr) -> Option<Place> {
        if let Some(place) = self.places.take(ip) {
            return Some(Place::Ordinary { _place: place });
        }
        let peer = PeerPlace::take(&self.probing_peers, ip, PROBES_PER_PEER_MAX)?;
        Some(Place::Probe { place: self.probes.take(ip), _peer: peer })
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        loop {
            match self.tcp.accept().await {
                Ok((stream, address)) => {
                    if let Some(place) = self.admit(address.ip()) {
                        return (BoundedStream::new(stream, self.limits, place), address);
                    }
                    metrics::counter!("simcorp_connections_refused_total").increment(1);
                    tracing::debug!(%address, "closed a connection: its peer has too many");
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

impl Connected<IncomingStream<'_, BoundedListener>> for Admission {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        stream.io().admission()
    }
}

/// What a connection holds until it ends.
enum Place {
    Ordinary { _place: ConnectionPlace },
    Probe { place: YieldingPlace, _peer: PeerPlace },
}

/// The places of a port's connections, within [`ConnectionLimits`]: those in all, without the ones
/// for probes, and those of each peer. Clones share them.
#[derive(Debug, Clone)]
pub struct ConnectionPlaces {
    limits: ConnectionLimits,
    free: Arc<Semaphore>,
    peers: Peers,
}

/// The place of a connection, until it is dropped.
#[derive(Debug)]
pub struct ConnectionPlace {
    _permit: OwnedSemaphorePermit,
    _peer: PeerPlace,
}

impl ConnectionPlaces {
    /// Creates places that are all free.
    #[must_use]
    pub fn new(limits: ConnectionLimits) -> Self {
        let free = Arc::new(Semaphore::new(limits.ordinary()));
        Self { limits, free, peers: Peers::default() }
    }

    /// Takes a place for a connection from `ip`; `None` if there is none, or the peer has too many.
    #[must_use]
    pub fn take(&self, ip: IpAddr) -> Option<ConnectionPlace> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        let peer = PeerPlace::take(&self.peers, ip, self.limits.of_peer(ip))?;
        Some(ConnectionPlace { _permit: permit, _peer: peer })
    }
}

/// The place of a connection among those of its peer.
#[derive(Debug)]
pub(crate) struct PeerPlace {
    peers: Peers,
    network: IpAddr,
}

impl PeerPlace {
    pub(crate) fn take(peers: &Peers, ip: IpAddr, per_peer: usize) -> Option<Self> {
        let network = network_of(ip);
        let mut counts = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let held = counts.get(&network).copied().unwrap_or(0);
        if held >= per_peer {
            return None;
        }
        counts.insert(network, held.saturating_add(1));
        Some(Self { peers: peers.clone(), network })
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let mut counts = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

/// Returns what a peer is counted by: its address, or the first 64 bits of a global IPv6 address,
/// because a peer can choose the other 64. Local IPv6 addresses, whose first bits a whole site
/// shares, are counted one by one.
#[must_use]
pub fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(address) if address.segments()[0] & 0xe000 == 0x2000 => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        address => address,
    }
}

/// A connection that ends when it is idle, or a request too slow.
pub struct BoundedStream {
    stream: TcpStream,
    limits: ConnectionLimits,
    timer: Pin<Box<Sleep>>,
    /// When the first byte came that nothing was written after.
    request_began: Option<Instant>,
    /// Ends a connection for probes when its place is needed.
    yields: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: Place,
}

impl BoundedStream {
    fn new(stream: TcpStream, limits: ConnectionLimits, place: Place) -> Self {
        let (yields, time) = match &place {
            // A connection must send its first byte as fast as a request.
            Place::Ordinary { .. } => (None, limits.request),
            Place::Probe { place, .. } => (Some(Box::pin(place.ended())), PROBE_TIME_MAX),
        };
        let timer = Box::pin(sleep_until(Instant::now() + time));
        Self { stream, limits, timer, request_began: None, yields, _place: place }
    }

    const fn admission(&self) -> Admission {
        if self.yields.is_some() { Admission::ProbesOnly } else { Admission::AnyRequest }
    }

    fn has_read(&mut self) {
        let now = Instant::now();
        let began = *self.request_began.get_or_insert(now);
        self.expire_at((began + self.limits.request).min(now + self.limits.idle));
    }

    fn has_written(&mut self) {
        self.request_began = None;
        self.expire_at(Instant::now() + self.limits.idle);
    }

    /// Moves the end of the connection. That of a connection for probes is fixed.
    fn expire_at(&mut self, end: Instant) {
        if self.yields.is_none() {
            self.timer.as_mut().reset(end);
        }
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

    /// Returns an error once the connection has been idle, or its request has taken, too long, or
    /// its place for probes is needed.
    fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let yields = self.yields.as_mut();
        if !yields.is_some_and(|ended| ended.as_mut().poll(context).is_ready()) {
            ready!(self.timer.as_mut().poll(context));
        }
        metrics::counter!("simcorp_connections_expired_total").increment(1);
        let why = "idle, or a request that came too slowly";
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let part_bytes = buffer.remaining().min(READ_BYTES_MAX);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(part_bytes));
        let read = Pin::new(&mut self.stream).poll_read(context, &mut part);
        let read_bytes = part.filled().len();
        buffer.advance(read_bytes);
        match read {
            Poll::Pending => self.poll_expired(context).map(Err),
            ready @ Poll::Ready(_) => {
                if read_bytes > 0 {
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
mod tests;
