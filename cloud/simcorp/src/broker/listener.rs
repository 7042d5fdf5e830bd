//! The broker's port for both versions of MQTT: it reads the version that a client names in its
//! first packet, and passes the connection on to the server of that version.
//!
//! rumqttd needs a port for each version, and clients of upstream Sim-Corp expect MQTT 3.1.1 where
//! agents expect MQTT 5.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use service::connections::ConnectionPlaces;
use service::shutdown::CancellationToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::packet_end::{PacketEnds, filler};

/// How long a client may take to send its first packet's start.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// The first byte of every client's first packet.
const CONNECT: u8 = 0x10;
/// The protocol level that MQTT 5 clients name; older versions have lower ones.
const LEVEL_5: u8 = 5;
/// The longest name of the protocol: `MQIsdp`, of MQTT 3.1. Later versions are `MQTT`.
const NAME_BYTES_MAX: u16 = 6;
/// How many bytes of a client are read at once.
const READ_BYTES: usize = 16 * 1024;

/// The addresses of the servers that speak one version each.
#[derive(Debug, Clone, Copy)]
pub struct VersionServers {
    pub v4: SocketAddr,
    pub v5: SocketAddr,
}

/// The broker's port for both versions.
#[derive(Clone)]
pub struct SharedPort {
    pub listener: Arc<TcpListener>,
    pub servers: VersionServers,
    /// One place for each client; a client that finds none, or whose peer has too many, is
    /// disconnected. A place comes back at the latest when the client has been silent for one and a
    /// half times its keep-alive, without which the servers accept no client.
    pub places: ConnectionPlaces,
}

impl SharedPort {
    /// Accepts clients until `stop`.
    pub async fn accept_clients(self, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (client, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Usually no file descriptors are left: other connections have to end first.
                    tracing::warn!(%error, "the broker cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = self.places.take(address.ip()) else {
                metrics::counter!("simcorp_connections_refused_total").increment(1);
                tracing::debug!(%address, "closed a connection: too many of its peer, or in all");
                continue;
            };
            let servers = self.servers;
            tokio::spawn(async move {
                if let Err(error) = pass_on(client, servers).await {
                    tracing::debug!(%address, %error, "a connection to the broker ended");
                }
                drop(place);
            });
        }
    }
}

/// Connects a client to the server of its version, until one of them closes the connection.
async fn pass_on(mut client: TcpStream, servers: VersionServers) -> io::Result<()> {
    let read = tokio::time::timeout(CONNECT_TIME_MAX, read_level(&mut client));
    let (start, level) = read.await.map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
    let address = if level >= LEVEL_5 { servers.v5 } else { servers.v4 };
    let mut server = TcpStream::connect(address).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let upwards = async {
        pass_packets(&mut from_client, &mut to_server, start).await?;
        to_server.shutdown().await?;
        // The server reads what is left and closes the connection.
        std::future::pending::<io::Result<()>>().await
    };
    tokio::select! {
        failed = upwards => failed,
        closed = tokio::io::copy(&mut from_server, &mut to_client) => closed.map(drop),
    }
}

/// Passes a client's packets on, with fillers behind the large ones, until it sends no more.
async fn pass_packets(
    from_client: &mut ReadHalf<'_>,
    to_server: &mut WriteHalf<'_>,
    start: Vec<u8>,
) -> io::Result<()> {
    let (mut ends, mut read) = (PacketEnds::default(), start);
    loop {
        let mut rest = read.as_slice();
        while !rest.is_empty() {
            let (taken, fillers) = ends.take(rest);
            let (passed, behind) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
            to_server.write_all(passed).await?;
            if fillers > 0 {
                let filler = filler();
                for _ in 0..fillers {
                    to_server.write_all(&filler).await?;
                }
            }
            rest = behind;
        }
        read.clear();
        read.reserve(READ_BYTES);
        if from_client.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
}

/// Reads the start of a client's first packet, up to the protocol level. Returns both.
async fn read_level(client: &mut TcpStream) -> io::Result<(Vec<u8>, u8)> {
    let mut start = Vec::with_capacity(512);
    loop {
        if client.read_buf(&mut start).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match protocol_level(&start) {
            Ok(Some(level)) => return Ok((start, level)),
            Ok(None) => {}
            Err(problem) => return Err(io::Error::new(ErrorKind::InvalidData, problem)),
        }
    }
}

/// Returns the protocol level of a CONNECT packet, or `None` if `start` does not reach that far.
pub(super) fn protocol_level(start: &[u8]) -> Result<Option<u8>, &'static str> {
    let Some((&first, rest)) = start.split_first() else { return Ok(None) };
    if first != CONNECT {
        return Err("the first packet is not CONNECT");
    }
    // The packet's length: up to four bytes, and the last one has its top bit clear.
    let Some(last) = rest.iter().take(4).position(|byte| byte & 0x80 == 0) else {
        return if rest.len() < 4 { Ok(None) } else { Err("the length of CONNECT is too long") };
    };
    let body = rest.get(last.saturating_add(1)..).unwrap_or_default();
    let Some((&name_bytes, body)) = body.split_first_chunk::<2>() else { return Ok(None) };
    let name_bytes = u16::from_be_bytes(name_bytes);
    if name_bytes > NAME_BYTES_MAX {
        return Err("the name of the protocol is too long");
    }
    // The top bit says that the client is a bridge of another broker.
    Ok(body.get(usize::from(name_bytes)).map(|level| level & 0x7f))
}

#[cfg(test)]
mod tests {
    use service::connections::ConnectionLimits;
    use tokio::net::TcpSocket;

    use super::*;

    const V5: &[u8] = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x00";

    #[test]
    fn the_level_is_found_as_soon_as_it_has_arrived() {
        for end in 0..9 {
            assert_eq!(protocol_level(&V5[..end]), Ok(None), "{end} bytes");
        }
        for end in 9..=V5.len() {
            assert_eq!(protocol_level(&V5[..end]), Ok(Some(5)), "{end} bytes");
        }
        let long = b"\x10\xff\xff\x7f\x00\x04MQTT\x04";
        assert_eq!(protocol_level(long), Ok(Some(4)));
        assert_eq!(protocol_level(b"\x10\x0e\x00\x06MQIsdp\x03"), Ok(Some(3)));
        assert_eq!(protocol_level(b"\x10\x0d\x00\x04MQTT\x84"), Ok(Some(4)), "a bridge");
    }

    #[test]
    fn anything_but_a_connect_packet_is_refused() {
        for start in
            [&b"GET / HTTP/1.1"[..], b"\x30\x00", b"\x10\xff\xff\xff\xff", b"\x10\x08\x10\x00"]
        {
            assert!(protocol_level(start).is_err(), "{start:?}");
        }
    }

    /// Starts a server that answers a client's bytes with its own name and those bytes.
    async fn server(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            client.write_all(name.as_bytes()).await.unwrap();
            client.write_all(&received).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn each_client_reaches_the_server_of_its_version_with_every_byte() {
        let servers = VersionServers { v4: server("v4").await, v5: server("v5").await };
        let listener = Arc::new(TcpListener::bind(("127.0.0.1", 0)).await.unwrap());
        let address = listener.local_addr().unwrap();
        let places = ConnectionPlaces::new(ConnectionLimits::without_probes(4));
        let port = SharedPort { listener, servers, places };
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(port.accept_clients(stop.clone()));
        for (name, level) in [("v4", 4), ("v5", 5)] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let mut sent = V5.to_vec();
            sent[8] = level;
            for byte in &sent {
                client.write_all(&[*byte]).await.unwrap();
            }
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, [name.as_bytes(), &sent].concat());
        }
        stop.cancel();
        accepting.await.unwrap();
    }

    #[tokio::test]
    async fn one_peer_does_not_take_the_places_of_the_others() {
        let servers = VersionServers { v4: server("v4").await, v5: server("v5").await };
        let listener = Arc::new(TcpListener::bind(("127.0.0.1", 0)).await.unwrap());
        let address = listener.local_addr().unwrap();
        let limits = ConnectionLimits { per_local_peer: 3, ..ConnectionLimits::without_probes(4) };
        let port = SharedPort { listener, servers, places: ConnectionPlaces::new(limits) };
        tokio::spawn(port.accept_clients(CancellationToken::new()));
        let connect_from = async |peer: u8| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, peer], 0))).unwrap();
            socket.connect(address).await.unwrap()
        };
        // They send nothing, and hold their places for as long as a client may take to CONNECT.
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(connect_from(2).await);
        }
        let mut refused = connect_from(2).await;
        let mut byte = [0];
        let closed = tokio::time::timeout(CONNECT_TIME_MAX / 2, refused.read(&mut byte)).await;
        assert!(!matches!(closed.unwrap(), Ok(1..)), "the peer has too many");
        let mut other = connect_from(3).await;
        other.write_all(V5).await.unwrap();
        other.shutdown().await.unwrap();
        let mut answer = Vec::new();
        other.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [b"v5", V5].concat());
    }
}
