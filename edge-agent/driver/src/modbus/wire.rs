//! Observes what a connection carries during one request, so that an error says what happened, and
//! passes on only what can be the answer.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use protocols::modbus_answer::{AnswerError, Echo, Framing, explain, find_rtu_answer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Stream;

/// The received bytes that are kept, to find the answer in them or to explain them.
const RECEIVED_MAX: usize = 2048;
/// The reads by which bytes that arrived before a request are discarded.
const DISCARDING_READS_MAX: usize = 8;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The peer closed it.
    Closed,
    /// The peer reset it.
    Reset,
    /// The system reports another error.
    Failed,
}

/// What happened since a request began.
#[derive(Debug)]
struct Exchange {
    framing: Framing,
    sent: Vec<u8>,
    received: Vec<u8>,
    /// The bytes that the decoder has not taken yet.
    to_deliver: VecDeque<u8>,
    has_answer: bool,
    end: Option<ConnectionEnd>,
    /// Whether the line returns our requests. Kept from one request to the next.
    echo: Echo,
}

impl Exchange {
    fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = RECEIVED_MAX.saturating_sub(self.received.len());
        self.received.extend_from_slice(&bytes[..bytes.len().min(room)]);
        match self.framing {
            Framing::Tcp => self.to_deliver.extend(bytes),
            Framing::Rtu if self.has_answer => {}
            Framing::Rtu => {
                if let Some(answer) = find_rtu_answer(&self.sent, &self.received, self.echo) {
                    self.echo = answer.echo;
                    self.has_answer = true;
                    self.to_deliver.extend(&self.received[answer.frame]);
                } else if room <= bytes.len() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "endless noise"));
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, error: &io::Error) {
        let end = match error.kind() {
            io::ErrorKind::UnexpectedEof => ConnectionEnd::Closed,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => ConnectionEnd::Reset,
            _ => ConnectionEnd::Failed,
        };
        self.end.get_or_insert(end);
    }
}

/// The record of the current request, shared by the driver and its connection.
#[derive(Debug, Clone)]
pub struct WireLog(Arc<Mutex<Exchange>>);

impl WireLog {
    pub fn new(framing: Framing) -> Self {
        Self(Arc::new(Mutex::new(Exchange {
            framing,
            sent: Vec::new(),
            received: Vec::new(),
            to_deliver: VecDeque::new(),
            has_answer: false,
            end: None,
            echo: Echo::Unknown,
        })))
    }

    /// Forgets the last request: another one begins.
    pub fn begin(&self) {
        let mut exchange = self.exchange();
        exchange.sent.clear();
        exchange.received.clear();
        exchange.to_deliver.clear();
        exchange.has_answer = false;
        exchange.end = None;
    }

    /// Returns whether no byte of the request was sent.
    pub fn is_unsent(&self) -> bool {
        self.exchange().sent.is_empty()
    }

    /// Returns how the connection ended; `None` while it is open.
    pub fn end(&self) -> Option<ConnectionEnd> {
        self.exchange().end
    }

    /// Returns whether the line returns our own requests.
    pub fn echo(&self) -> Echo {
        self.exchange().echo
    }

    /// Returns why the received bytes are not the answer; `None` if no byte came.
    pub fn explain(&self) -> Option<AnswerError> {
        let exchange = self.exchange();
        explain(exchange.framing, &exchange.sent, &exchange.received, exchange.echo)
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection whose traffic is recorded in a [`WireLog`]. On an RTU line it delivers the answer
/// alone, without echo, noise and other units' frames.
#[derive(Debug)]
pub struct ObservedStream {
    inner: Box<dyn Stream>,
    log: WireLog,
}

impl ObservedStream {
    pub const fn new(inner: Box<dyn Stream>, log: WireLog) -> Self {
        Self { inner, log }
    }

    /// Discards bytes that arrived before the request, and returns an error if the peer has closed
    /// the connection meanwhile: nothing is sent then.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let mut bytes = [0; 256];
        for _ in 0..DISCARDING_READS_MAX {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.inner).poll_read(context, &mut buffer) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsyncRead for ObservedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let mut exchange = this.log.exchange();
            if !exchange.to_deliver.is_empty() {
                let count = buffer.remaining().min(exchange.to_deliver.len());
                let bytes: Vec<u8> = exchange.to_deliver.drain(..count).collect();
                buffer.put_slice(&bytes);
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 512];
            let mut received = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut this.inner).poll_read(context, &mut received)) {
                Ok(()) if received.filled().is_empty() => {
                    exchange.end.get_or_insert(ConnectionEnd::Closed);
                    return Poll::Ready(Ok(()));
                }
                Ok(()) => exchange.receive(received.filled())?,
                Err(error) => {
                    exchange.end(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.log.is_unsent()
            && let Err(error) = this.poll_discard(context)
        {
            this.log.exchange().end(&error);
            return Poll::Ready(Err(error));
        }
        let written = ready!(Pin::new(&mut this.inner).poll_write(context, bytes));
        let mut exchange = this.log.exchange();
        match &written {
            Ok(count) => exchange.sent.extend_from_slice(&bytes[..*count]),
            Err(error) => exchange.end(error),
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
