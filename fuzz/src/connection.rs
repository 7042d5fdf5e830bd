//! An HTTP server whose connections are in memory: the parser and the routes are those of the real
//! port, without its sockets.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long an answer to arbitrary bytes is read: it may be a stream without an end.
const STREAM_TIME_MAX: Duration = Duration::from_millis(300);
/// How long an answer to a request may take, also on a busy machine.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 64 * 1024;

struct MemoryListener(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for MemoryListener {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A server, and the end of it to which clients connect.
pub struct MemoryServer {
    runtime: Runtime,
    connect: mpsc::UnboundedSender<DuplexStream>,
}

impl MemoryServer {
    /// Serves an app.
    #[must_use]
    pub fn start(app: Router) -> Self {
        let runtime = crate::runtime();
        let (connect, connecting) = mpsc::unbounded_channel();
        runtime.spawn(async move { axum::serve(MemoryListener(connecting), app).await });
        Self { runtime, connect }
    }

    /// Sends any bytes on a new connection, and closes it for writing. Returns what the server
    /// answers.
    #[must_use]
    pub fn send(&self, bytes: &[u8]) -> Vec<u8> {
        self.runtime.block_on(self.exchange(bytes, true, STREAM_TIME_MAX)).0
    }

    /// Sends bytes after which the server must close the connection. Returns what it answers.
    ///
    /// # Panics
    /// When the server leaves the connection open.
    #[must_use]
    pub fn ask(&self, request: &[u8]) -> Vec<u8> {
        let exchange = self.exchange(request, false, ANSWER_TIME_MAX);
        let (answer, closed) = self.runtime.block_on(exchange);
        assert!(closed, "no end of the answer to {}", request.escape_ascii());
        answer
    }

    /// Returns what the server answers, and whether it closed the connection in time.
    async fn exchange(&self, sent: &[u8], close: bool, time_max: Duration) -> (Vec<u8>, bool) {
        let (client, server) = duplex(BUFFER_BYTES);
        self.connect.send(server).expect("the server has ended");
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let mut received = Vec::new();
        let write = async {
            // An error: the server has closed the connection.
            let _ = to_server.write_all(sent).await;
            if close {
                let _ = to_server.shutdown().await;
            }
        };
        let read = from_server.read_to_end(&mut received);
        let both = async { tokio::join!(write, read) };
        let closed = timeout(time_max, both).await.is_ok();
        (received, closed)
    }

    /// Returns the status of an answer in HTTP/1; `None` if there is none.
    #[must_use]
    pub fn status(answer: &[u8]) -> Option<u16> {
        let digits = answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }
}
