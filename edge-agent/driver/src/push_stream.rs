//! Machines that send values without being polled: Hottop, Santoker, and any source of text lines.
//! A value is used once, in the reading after it arrived; a value that did not arrive again is
//! missing, never repeated.

use firmware_profiles::address::Address;
use firmware_profiles::{LineFormat, Timing};
use protocols::line::Csv;
use protocols::{LINE_BYTES_MAX, hottop, line, santoker};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::bus::{
    Bus, PollFuture, RawValues, ReadPoint, WritableControl, WritableControls, WriteFuture,
    answer_timeout, write_unsupported,
};
use crate::connection::{Endpoint, Stream};
use crate::interlock::Command;
use crate::{DriverError, WriteError};

/// The most bytes that one reading takes, so that a flooding source does not delay the rest.
const BYTES_MAX: usize = 64 * 1024;

/// Readings without data after which a TCP connection is reopened.
const SILENT_MAX: u32 = 3;

/// Decodes the bytes of one protocol.
pub enum StreamDecoder {
    Hottop(hottop::Decoder),
    Santoker(santoker::Decoder),
    Json { buffer: Vec<u8> },
    Csv { buffer: Vec<u8>, table: Csv },
}

impl StreamDecoder {
    pub fn hottop() -> Self {
        Self::Hottop(hottop::Decoder::default())
    }

    pub fn santoker() -> Self {
        Self::Santoker(santoker::Decoder::default())
    }

    pub fn line(format: LineFormat) -> Self {
        match format {
            LineFormat::Jsonl => Self::Json { buffer: Vec::new() },
            LineFormat::Csv => Self::Csv { buffer: Vec::new(), table: Csv::default() },
        }
    }

    /// Decodes bytes and stores their values by the points' addresses.
    fn decode(&mut self, bytes: &[u8], values: &mut BTreeMap<String, f64>) {
        match self {
            Self::Hottop(decoder) => {
                if let Some(status) = decoder.push(bytes) {
                    let names = firmware_profiles::address::HOTTOP_READS.iter();
                    values.extend(names.filter_map(|n| Some(((*n).to_owned(), status.get(n)?))));
                }
            }
            Self::Santoker(decoder) => {
                let messages = decoder.push(bytes).into_iter();
                values.extend(messages.map(|m| (format!("{:02X}", m.target), m.raw())));
            }
            Self::Json { buffer } => {
                for text in lines(buffer, bytes) {
                    values.extend(line::parse_json(&text).unwrap_or_default());
                }
            }
            Self::Csv { buffer, table } => {
                for text in lines(buffer, bytes) {
                    values.extend(table.parse(&text).unwrap_or_default());
                }
            }
        }
    }

    /// Resets the decoder for a new connection.
    fn reset(&mut self) {
        *self = match self {
            Self::Hottop(_) => Self::hottop(),
            Self::Santoker(_) => Self::santoker(),
            Self::Json { .. } => Self::line(LineFormat::Jsonl),
            Self::Csv { .. } => Self::line(LineFormat::Csv),
        };
    }

    /// Returns the bytes that write a control; `None` for protocols on which the agent never
    /// writes. A Hottop ejects its beans when the program that controls it sends nothing for a
    /// second, so the agent never writes to it.
    fn encode_write(&self, control: &WritableControl, raw: f64) -> Option<Vec<u8>> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0–255 by the filter
        let data = Some(raw.round()).filter(|raw| (0.0..=255.0).contains(raw))? as u32;
        match (self, &control.address) {
            (Self::Santoker(_), Address::Target(target)) => {
                Some(santoker::Message { target: *target, data }.encode(santoker::HOST_BYTES))
            }
            _ => None,
        }
    }

    /// Returns whether the protocol sends an event once, so that no message means no event:
    /// Santoker.
    const fn sends_events_once(&self) -> bool {
        matches!(self, Self::Santoker(_))
    }
}

/// Returns complete lines and buffers a partial one. A line that is too long is dropped.
fn lines(buffer: &mut Vec<u8>, bytes: &[u8]) -> Vec<String> {
    buffer.extend_from_slice(bytes);
    let mut lines = Vec::new();
    while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
        lines.push(String::from_utf8_lossy(&buffer[..end]).into_owned());
        buffer.drain(..=end);
    }
    if buffer.len() > LINE_BYTES_MAX {
        buffer.clear();
    }
    lines
}

/// A machine that sends values without being polled.
pub struct PushStream {
    endpoint: Endpoint,
    timing: Timing,
    points: Vec<ReadPoint>,
    writable: WritableControls,
    decoder: StreamDecoder,
    stream: Option<Box<dyn Stream>>,
    /// Readings in a row without data.
    silent_polls: u32,
}

impl PushStream {
    pub fn new(
        endpoint: Endpoint,
        timing: Timing,
        (points, writable): (Vec<ReadPoint>, WritableControls),
        decoder: StreamDecoder,
    ) -> Self {
        Self { endpoint, timing, points, writable, decoder, stream: None, silent_polls: 0 }
    }

    /// Sends one message. The machine does not acknowledge it; only the readback shows its effect.
    async fn write_one(&mut self, command: Command) -> Result<(), WriteError> {
        let (control, raw) = self.writable.resolve(command)?;
        let bytes = self.decoder.encode_write(control, raw).ok_or_else(write_unsupported)?;
        let unsent = |error: DriverError| WriteError::NotSent(error.to_string());
        let mut stream = self.open().await.map_err(unsent)?;
        // After an error half a message may have been sent, so the connection is closed.
        match tokio::time::timeout(answer_timeout(&self.timing), stream.write_all(&bytes)).await {
            Ok(Ok(())) => {
                self.stream = Some(stream);
                Ok(())
            }
            Ok(Err(error)) => Err(WriteError::Unconfirmed(error.to_string())),
            Err(_) => {
                let silent = DriverError::Silent(self.endpoint.name(), self.timing.timeout_ms);
                Err(WriteError::Unconfirmed(silent.to_string()))
            }
        }
    }

    async fn open(&mut self) -> Result<Box<dyn Stream>, DriverError> {
        if let Some(stream) = self.stream.take() {
            return Ok(stream);
        }
        self.decoder.reset();
        self.endpoint.open(answer_timeout(&self.timing)).await
    }

    /// Reads the bytes that have arrived, and waits for some if there are none. Returns the values
    /// in them, and the number of bytes.
    async fn receive(
        &mut self,
        stream: &mut Box<dyn Stream>,
    ) -> Result<(BTreeMap<String, f64>, usize), DriverError> {
        let mut values = BTreeMap::new();
        let mut bytes = [0; 1024];
        let mut total = 0_usize;
        // One time limit for the whole read: endless garbage is no answer either.
        let until = Instant::now() + answer_timeout(&self.timing);
        while total < BYTES_MAX {
            let wait = if values.is_empty() { until } else { Instant::now() };
            match tokio::time::timeout_at(wait, stream.read(&mut bytes)).await {
                Ok(Ok(0)) => {
                    return Err(DriverError::Closed(self.endpoint.name()));
                }
                Ok(Ok(read)) => {
                    total = total.saturating_add(read);
                    self.decoder.decode(&bytes[..read], &mut values);
                }
                Ok(Err(error)) => {
                    return Err(DriverError::broken(self.endpoint.name(), error));
                }
                Err(_) => return Ok((values, total)),
            }
        }
        // More than we can read: the values would be older with each reading.
        let flood = "sends more than can be read; the connection is closed".to_owned();
        Err(DriverError::Protocol(self.endpoint.name(), flood))
    }

    async fn poll_once(&mut self) -> Result<RawValues, DriverError> {
        let mut stream = self.open().await?;
        let (received, total) = self.receive(&mut stream).await?;
        if received.is_empty() {
            self.silent_polls = self.silent_polls.saturating_add(1);
            // A machine that was switched off leaves a connection that stays open.
            if self.silent_polls < SILENT_MAX || matches!(self.endpoint, Endpoint::Serial { .. }) {
                self.stream = Some(stream);
            } else {
                self.silent_polls = 0;
            }
            let (name, limit_ms) = (self.endpoint.name(), self.timing.timeout_ms);
            return Err(DriverError::unanswered(name, total, limit_ms));
        }
        self.silent_polls = 0;
        self.stream = Some(stream);
        let events_once = self.decoder.sends_events_once();
        let value = |point: &ReadPoint| match &point.address {
            Address::Name(name) => received.get(name).copied(),
            Address::Target(target) => {
                let value = received.get(&format!("{target:02X}")).copied();
                // An event's message is its beginning; between two there is none.
                let is_event = events_once && (0x80..=0x84).contains(target);
                if is_event { Some(f64::from(value.is_some_and(|v| v != 0.0))) } else { value }
            }
            _ => None,
        };
        let values = self.points.iter().map(value).collect();
        Ok(RawValues { values, failed_units: Vec::new() })
    }
}

impl Bus for PushStream {
    fn write(&mut self, command: Command, _mono_ms: u64) -> WriteFuture<'_> {
        Box::pin(self.write_one(command))
    }

    fn poll(&mut self, _mono_ms: u64) -> PollFuture<'_> {
        Box::pin(self.poll_once())
    }
}
