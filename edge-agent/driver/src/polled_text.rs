//! Machines that are polled with a line of text: TC4 and Kaleido.

use std::time::Duration;

use firmware_profiles::Timing;
use firmware_profiles::address::Address;
use protocols::{LINE_BYTES_MAX, kaleido, tc4};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bus::{
    Bus, PollFuture, RawValues, ReadPoint, WritableControl, WritableControls, WriteFuture,
    answer_timeout, write_unsupported,
};
use crate::connection::{Endpoint, Stream};
use crate::interlock::Command;
use crate::{DriverError, WriteError};

/// The pause after each line: small controllers lose lines that come too fast.
const LINE_GAP: Duration = Duration::from_millis(20);
/// The time limit for the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_millis(200);

/// The protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Tc4,
    Kaleido,
}

impl Dialect {
    const fn handshake(self) -> [&'static str; 3] {
        match self {
            Self::Tc4 => tc4::HANDSHAKE,
            Self::Kaleido => kaleido::HANDSHAKE,
        }
    }

    const fn read_request(self) -> &'static str {
        match self {
            Self::Tc4 => tc4::READ,
            Self::Kaleido => kaleido::READ,
        }
    }

    /// Returns the line that writes a control; `None` for protocols on which the agent never
    /// writes. TC4 firmware keeps its last duty when the connection is lost, so the agent never
    /// writes to it.
    fn encode_write(self, control: &WritableControl, raw: f64) -> Option<String> {
        match (self, &control.address) {
            (Self::Kaleido, Address::Name(tag)) => Some(kaleido::write(tag, raw)),
            _ => None,
        }
    }

    /// Returns the points' values in a line; `None` when the line is not an answer.
    fn values(self, line: &str, points: &[ReadPoint]) -> Option<Vec<Option<f64>>> {
        let name = |point: &ReadPoint| match &point.address {
            Address::Name(name) => Some(name.clone()),
            _ => None,
        };
        match self {
            Self::Tc4 => {
                let reading = tc4::parse(line)?;
                Some(points.iter().map(|p| reading.get(&name(p)?)).collect())
            }
            Self::Kaleido => {
                let variables = kaleido::parse(line);
                let variable = |p: &ReadPoint| {
                    let name = name(p)?;
                    variables.iter().find(|(n, _)| *n == name)
                };
                let numbers = variables.iter().filter(|(_, value)| value.is_some()).count();
                // A reply to the handshake has one variable and no temperature. In an answer, the
                // profile's variables need not all be numbers.
                let is_answer = numbers > 1
                    || (variables.len() > 1 && points.iter().any(|p| variable(p).is_some()));
                let value = |p: &ReadPoint| variable(p).and_then(|(_, value)| *value);
                is_answer.then(|| points.iter().map(value).collect())
            }
        }
    }
}

/// An open line, and the bytes of the next answer received so far.
struct Line {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// The bytes received since the last request.
    received: usize,
    opened_ms: u64,
    handshake_sent: bool,
}

/// A machine that is polled with text lines.
pub struct PolledText {
    endpoint: Endpoint,
    timing: Timing,
    points: Vec<ReadPoint>,
    controls: WritableControls,
    dialect: Dialect,
    line: Option<Line>,
}

impl PolledText {
    pub fn new(
        endpoint: Endpoint,
        timing: Timing,
        (points, controls): (Vec<ReadPoint>, WritableControls),
        dialect: Dialect,
    ) -> Self {
        Self { endpoint, timing, points, controls, dialect, line: None }
    }

    fn silent(&self) -> DriverError {
        DriverError::Silent(self.endpoint.name(), self.timing.timeout_ms)
    }

    /// Sends the handshake before the first request, once the machine has started (`settle_ms`).
    async fn send_handshake(&self, line: &mut Line, mono_ms: u64) -> Result<(), DriverError> {
        let settled_ms = line.opened_ms.saturating_add(self.timing.settle_ms);
        let left_ms = settled_ms.saturating_sub(mono_ms);
        if left_ms > 0 {
            return Err(DriverError::Settling(self.endpoint.name(), left_ms));
        }
        if line.handshake_sent {
            return Ok(());
        }
        for text in self.dialect.handshake() {
            let result = line.stream.write_all(text.as_bytes()).await;
            result.map_err(|error| DriverError::Unreachable(self.endpoint.name(), error))?;
            tokio::time::sleep(LINE_GAP).await;
        }
        line.handshake_sent = true;
        Ok(())
    }

    async fn request_values(&self, line: &mut Line) -> Result<RawValues, DriverError> {
        let broken = |error| DriverError::broken(self.endpoint.name(), error);
        // Bytes that arrived before the request do not belong to its answer.
        line.buffer.clear();
        line.received = 0;
        let mut bytes = [0; 512];
        // The rest of a line whose beginning was discarded could be mistaken for a shorter line.
        let mut in_the_middle = false;
        while let Ok(read) =
            tokio::time::timeout(Duration::ZERO, line.stream.read(&mut bytes)).await
        {
            let read = read.map_err(broken)?;
            if read == 0 {
                return Err(DriverError::Closed(self.endpoint.name()));
            }
            in_the_middle = !bytes[..read].ends_with(b"\n");
        }
        line.stream.write_all(self.dialect.read_request().as_bytes()).await.map_err(broken)?;
        loop {
            let read = line.stream.read(&mut bytes).await.map_err(broken)?;
            if read == 0 {
                return Err(DriverError::Closed(self.endpoint.name()));
            }
            line.received = line.received.saturating_add(read);
            line.buffer.extend_from_slice(&bytes[..read]);
            while let Some(end) = line.buffer.iter().position(|b| *b == b'\n') {
                let text = String::from_utf8_lossy(&line.buffer[..end]).into_owned();
                line.buffer.drain(..=end);
                if std::mem::take(&mut in_the_middle) {
                    continue;
                }
                if let Some(values) = self.dialect.values(&text, &self.points) {
                    return Ok(RawValues { values, failed_units: Vec::new() });
                }
            }
            if line.buffer.len() > LINE_BYTES_MAX {
                let endless = "a line without an end; check the baud rate".to_owned();
                return Err(DriverError::Protocol(self.endpoint.name(), endless));
            }
        }
    }

    async fn poll_once(&mut self, mono_ms: u64) -> Result<RawValues, DriverError> {
        let mut line = self.open(mono_ms).await?;
        let greeting =
            tokio::time::timeout(HANDSHAKE_MAX, self.send_handshake(&mut line, mono_ms)).await;
        let answer = match greeting.unwrap_or_else(|_| Err(self.silent())) {
            Ok(()) => {
                let result = tokio::time::timeout(
                    answer_timeout(&self.timing),
                    self.request_values(&mut line),
                )
                .await;
                result.unwrap_or_else(|_| {
                    let (name, limit_ms) = (self.endpoint.name(), self.timing.timeout_ms);
                    Err(DriverError::unanswered(name, line.received, limit_ms))
                })
            }
            Err(error) => Err(error),
        };
        // One lost answer does not close the line: an Arduino restarts when its port is opened. A
        // late answer is discarded before the next request.
        let is_unanswered =
            matches!(answer, Err(DriverError::Silent(..) | DriverError::Unreadable(..)));
        let keeps = is_unanswered || matches!(answer, Ok(_) | Err(DriverError::Settling(..)));
        if is_unanswered {
            // The machine may have restarted while the port was open. It then sends °F until the
            // handshake.
            line.handshake_sent = false;
        }
        if keeps {
            self.line = Some(line);
        }
        answer
    }
}

impl PolledText {
    /// Sends one line. An acknowledgement is not certain; only the readback shows its effect.
    async fn write_one(&mut self, command: Command, mono_ms: u64) -> Result<(), WriteError> {
        let (control, raw) = self.controls.resolve(command)?;
        let text = self.dialect.encode_write(control, raw).ok_or_else(write_unsupported)?;
        let unsent = |error: DriverError| WriteError::NotSent(error.to_string());
        let mut line = self.open(mono_ms).await.map_err(unsent)?;
        let greeting =
            tokio::time::timeout(HANDSHAKE_MAX, self.send_handshake(&mut line, mono_ms)).await;
        if let Err(error) = greeting.unwrap_or_else(|_| Err(self.silent())) {
            if matches!(error, DriverError::Settling(..) | DriverError::Silent(..)) {
                self.line = Some(line);
            }
            return Err(unsent(error));
        }
        // A partial write closes the line, so that the machine does not take the next line as the
        // rest.
        let sending = line.stream.write_all(text.as_bytes());
        match tokio::time::timeout(answer_timeout(&self.timing), sending).await {
            Ok(Ok(())) => {
                tokio::time::sleep(LINE_GAP).await;
                self.line = Some(line);
                Ok(())
            }
            Ok(Err(error)) => Err(WriteError::Unconfirmed(error.to_string())),
            Err(_) => Err(WriteError::Unconfirmed(self.silent().to_string())),
        }
    }

    async fn open(&mut self, mono_ms: u64) -> Result<Line, DriverError> {
        if let Some(line) = self.line.take() {
            return Ok(line);
        }
        let stream = self.endpoint.open(answer_timeout(&self.timing)).await?;
        Ok(Line {
            stream,
            buffer: Vec::new(),
            received: 0,
            opened_ms: mono_ms,
            handshake_sent: false,
        })
    }
}

impl Bus for PolledText {
    fn write(&mut self, command: Command, mono_ms: u64) -> WriteFuture<'_> {
        Box::pin(self.write_one(command, mono_ms))
    }

    fn poll(&mut self, mono_ms: u64) -> PollFuture<'_> {
        Box::pin(self.poll_once(mono_ms))
    }
}
