//! A connection that passes only well-formed Modbus requests on. The decoder behind it panics on
//! some others, and in a packaged agent a panic ends the whole program.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use protocols::modbus_tcp::{REQUEST_BYTES_MAX, first_request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of whole, checked requests. Any other bytes end it with an error.
#[derive(Debug)]
pub struct CheckedStream<S> {
    inner: S,
    /// The bytes of a request that is not complete yet.
    partial: Vec<u8>,
    /// Checked bytes that the reader has not taken yet.
    checked: VecDeque<u8>,
}

impl<S> CheckedStream<S> {
    pub const fn new(inner: S) -> Self {
        Self { inner, partial: Vec::new(), checked: VecDeque::new() }
    }
}

impl<S: AsyncRead + Unpin> CheckedStream<S> {
    /// Reads until a whole request is checked, or the peer has closed the connection.
    fn poll_request(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match first_request(&self.partial) {
                Ok(Some(length)) => {
                    self.checked.extend(self.partial.drain(..length));
                    return Poll::Ready(Ok(()));
                }
                Ok(None) => {}
                Err(error) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
            // An incomplete request is shorter than the longest one: there is room.
            let mut bytes = [0; REQUEST_BYTES_MAX];
            let mut buffer = ReadBuf::new(&mut bytes[self.partial.len()..]);
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.partial.extend_from_slice(buffer.filled());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CheckedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.checked.is_empty() {
            ready!(self.poll_request(context))?;
        }
        let count = buffer.remaining().min(self.checked.len());
        let bytes: Vec<u8> = self.checked.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CheckedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const READ: [u8; 12] = [0, 9, 0, 0, 0, 6, 1, 3, 0, 2, 0, 1];

    #[tokio::test]
    async fn whole_requests_pass_and_the_first_invalid_one_ends_the_stream() {
        let (mut client, server) = duplex(64);
        let mut server = CheckedStream::new(server);
        // In pieces, then two at once.
        client.write_all(&READ[..5]).await.unwrap();
        client.write_all(&READ[5..]).await.unwrap();
        let mut request = [0; 12];
        server.read_exact(&mut request).await.unwrap();
        assert_eq!(request, READ);
        let hostile = [0, 1, 0, 0, 0, 8, 1, 0x0f, 0, 0, 0xff, 0xff, 1, 0];
        client.write_all(&[&READ[..], &hostile].concat()).await.unwrap();
        server.read_exact(&mut request).await.unwrap();
        assert_eq!(request, READ);
        let error = server.read(&mut request).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }

    #[tokio::test]
    async fn a_closed_connection_is_the_end_of_the_stream() {
        let (mut client, server) = duplex(64);
        let mut server = CheckedStream::new(server);
        client.write_all(&READ[..7]).await.unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0; 12]).await.unwrap(), 0);
    }
}
