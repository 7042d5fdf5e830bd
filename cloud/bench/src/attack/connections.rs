//! Connections from chosen addresses of loopback, which a listener counts as different peers, and
//! connections that are held without a complete request.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use service::shutdown::CancellationToken;
use tokio::net::{TcpSocket, TcpStream};

use super::SentCounts;

const CONNECT_TIME_MAX: Duration = Duration::from_millis(200);
/// How often held connections are looked at.
const ROUND: Duration = Duration::from_secs(2);
/// The most reads of one connection in a round: a server that streams must not keep the others.
const READS_MAX: usize = 16;

/// The connections of one kind that are held on one port.
pub struct Hold {
    pub kind: &'static str,
    pub port: u16,
    pub count: usize,
    /// The beginning of a request that never ends. Nothing is ever sent if it is empty.
    pub start: &'static [u8],
}

/// Connects to a port of loopback from the address `from`.
pub async fn connect(from: Ipv4Addr, port: u16) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::from((from, 0))).ok()?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    tokio::time::timeout(CONNECT_TIME_MAX, socket.connect(to)).await.ok()?.ok()
}

/// Reads what the server has sent. Returns false if it has closed the connection.
pub fn is_open(stream: &TcpStream) -> bool {
    let mut bytes = [0; 4096];
    for _ in 0..READS_MAX {
        match stream.try_read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
    true
}

/// Sends the next byte of a request that never ends. Returns false if the connection has ended.
pub fn send_byte(stream: &TcpStream) -> bool {
    match stream.try_write(b"x") {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// Holds connections until `stop`, and opens those again that a server closes. Returns how many of
/// each kind were opened.
pub async fn hold(
    from: Ipv4Addr,
    holds: Vec<Hold>,
    only: String,
    stop: CancellationToken,
) -> anyhow::Result<SentCounts> {
    let mut held: Vec<(&Hold, Option<TcpStream>)> = Vec::new();
    for hold in holds.iter().filter(|hold| hold.kind.contains(&only)) {
        held.extend(std::iter::repeat_with(|| (hold, None)).take(hold.count));
    }
    let mut opened = SentCounts::new();
    while !stop.is_cancelled() {
        for (hold, connection) in &mut held {
            let continues = |stream: &TcpStream| {
                is_open(stream) && (hold.start.is_empty() || send_byte(stream))
            };
            if connection.as_ref().is_some_and(continues) {
                continue;
            }
            *connection = connect(from, hold.port).await;
            if let Some(stream) = connection {
                if !hold.start.is_empty() {
                    let _ = stream.try_write(hold.start);
                }
                *opened.entry(hold.kind).or_default() += 1;
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(ROUND) => {}
        }
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 77);

    #[tokio::test]
    async fn a_connection_comes_from_its_address_and_is_open_until_the_server_closes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = connect(PEER, port).await.unwrap();
        let (mut server, address) = listener.accept().await.unwrap();
        assert_eq!(address.ip(), PEER);
        assert!(is_open(&client) && send_byte(&client));
        server.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        client.readable().await.unwrap();
        assert!(is_open(&client), "it has answered, and not closed");
        drop(server);
        while is_open(&client) {
            client.readable().await.unwrap();
        }
    }

    #[tokio::test]
    async fn connections_of_the_chosen_kind_only_are_held() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let holds = vec![
            Hold { kind: "silent connections", port, count: 2, start: b"" },
            Hold { kind: "slow requests", port, count: 3, start: b"GET / HTTP/1.1\r\n" },
        ];
        let holding = tokio::spawn(hold(PEER, holds, "slow".to_owned(), stop.clone()));
        let mut accepted = Vec::new();
        for _ in 0..3 {
            accepted.push(listener.accept().await.unwrap());
        }
        for (stream, _) in &mut accepted {
            let mut bytes = [0; 16];
            stream.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"GET / HTTP/1.1\r\n");
        }
        stop.cancel();
        let opened = holding.await.unwrap().unwrap();
        assert_eq!(opened, SentCounts::from([("slow requests", 3)]));
    }
}
