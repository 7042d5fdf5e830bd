//! Machines that answer a line of text when they are asked: TC4 and Kaleido.

use std::time::Duration;

use firmware_profiles::Timing;
use firmware_profiles::address::Address;
use protocols::{LINE_BYTES_MAX, kaleido, tc4};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::guard::Move;
use crate::port::{Place, Stream};
use crate::profile::{Bus, Order, Orders, Point, Polling, Raws, Writing, limit, never};
use crate::{DriverError, Refused};

/// Small controllers lose what comes too fast.
const BETWEEN_WORDS: Duration = Duration::from_millis(20);
/// A line that takes longer to take a greeting is none.
const GREETING_MAX: Duration = Duration::from_millis(200);

/// Which language.
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

    const fn question(self) -> &'static str {
        match self {
            Self::Tc4 => tc4::READ,
            Self::Kaleido => kaleido::READ,
        }
    }

    /// The line by which a control is moved; `None` where we never do. TC4's firmware keeps its
    /// last duty when nobody is there any more, so nothing is written to it.
    fn order(self, order: &Order, raw: f64) -> Option<String> {
        match (self, &order.address) {
            (Self::Kaleido, Address::Name(tag)) => Some(kaleido::write(tag, raw)),
            _ => None,
        }
    }

    /// The points' values in a line; `None` when it is no answer.
    fn values(self, line: &str, points: &[Point]) -> Option<Vec<Option<f64>>> {
        let name = |point: &Point| match &point.address {
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
                let found = |p: &Point| {
                    let name = name(p)?;
                    variables.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
                };
                // A reply to the handshake has one variable and no temperature.
                (variables.len() > 1).then(|| points.iter().map(found).collect())
            }
        }
    }
}

/// An open line, and what of the next answer has come.
struct Line {
    stream: Box<dyn Stream>,
    held: Vec<u8>,
    opened_ms: u64,
    greeted: bool,
}

/// A machine that is asked.
pub struct Asked {
    place: Place,
    timing: Timing,
    points: Vec<Point>,
    orders: Orders,
    dialect: Dialect,
    line: Option<Line>,
}

impl Asked {
    pub fn new(
        place: Place,
        timing: Timing,
        (points, orders): (Vec<Point>, Orders),
        dialect: Dialect,
    ) -> Self {
        Self { place, timing, points, orders, dialect, line: None }
    }

    fn silent(&self) -> DriverError {
        DriverError::Silent(self.place.name(), self.timing.timeout_ms)
    }

    /// What is said before the first question. A machine that is starting hears nothing yet.
    async fn greet(&self, line: &mut Line, mono_ms: u64) -> Result<(), DriverError> {
        let settled = line.opened_ms + self.timing.settle_ms;
        if mono_ms < settled {
            return Err(DriverError::Settling(self.place.name(), settled - mono_ms));
        }
        if line.greeted {
            return Ok(());
        }
        for word in self.dialect.handshake() {
            let said = line.stream.write_all(word.as_bytes()).await;
            said.map_err(|error| DriverError::Unreachable(self.place.name(), error))?;
            tokio::time::sleep(BETWEEN_WORDS).await;
        }
        line.greeted = true;
        Ok(())
    }

    async fn ask(&self, line: &mut Line) -> Result<Raws, DriverError> {
        let broken = |error| DriverError::Unreachable(self.place.name(), error);
        // What came unasked is not the answer to this question.
        line.held.clear();
        let mut bytes = [0; 512];
        // The rest of a line whose beginning was read away would pass for a shorter one.
        let mut in_the_middle = false;
        while let Ok(read) =
            tokio::time::timeout(Duration::ZERO, line.stream.read(&mut bytes)).await
        {
            let read = read.map_err(broken)?;
            if read == 0 {
                return Err(DriverError::Protocol(self.place.name(), "hung up".to_owned()));
            }
            in_the_middle = bytes[read - 1] != b'\n';
        }
        line.stream.write_all(self.dialect.question().as_bytes()).await.map_err(broken)?;
        loop {
            let read = line.stream.read(&mut bytes).await.map_err(broken)?;
            if read == 0 {
                return Err(DriverError::Protocol(self.place.name(), "hung up".to_owned()));
            }
            line.held.extend_from_slice(&bytes[..read]);
            while let Some(end) = line.held.iter().position(|b| *b == b'\n') {
                let text = String::from_utf8_lossy(&line.held[..end]).into_owned();
                line.held.drain(..=end);
                if std::mem::take(&mut in_the_middle) {
                    continue;
                }
                if let Some(values) = self.dialect.values(&text, &self.points) {
                    return Ok(Raws { values, ailing: Vec::new() });
                }
            }
            if line.held.len() > LINE_BYTES_MAX {
                let endless = "a line without an end; check the baud rate".to_owned();
                return Err(DriverError::Protocol(self.place.name(), endless));
            }
        }
    }

    async fn poll_once(&mut self, mono_ms: u64) -> Result<Raws, DriverError> {
        let mut line = self.open(mono_ms).await?;
        let greeting = tokio::time::timeout(GREETING_MAX, self.greet(&mut line, mono_ms)).await;
        let answer = match greeting.unwrap_or_else(|_| Err(self.silent())) {
            Ok(()) => {
                let asked = tokio::time::timeout(limit(&self.timing), self.ask(&mut line)).await;
                asked.unwrap_or_else(|_| Err(self.silent()))
            }
            Err(error) => Err(error),
        };
        // One lost answer closes nothing: an Arduino starts anew when its port is opened. A late
        // answer is read away before the next question.
        let keeps =
            matches!(answer, Ok(_) | Err(DriverError::Silent(..) | DriverError::Settling(..)));
        if matches!(answer, Err(DriverError::Silent(..))) {
            // It may have restarted behind the open port, and speaks °F until it is told.
            line.greeted = false;
        }
        if keeps {
            self.line = Some(line);
        }
        answer
    }
}

impl Asked {
    /// Says one line. Nobody answers it for certain, so whether it was done the read-back tells.
    async fn write_one(&mut self, wanted: Move, mono_ms: u64) -> Result<(), Refused> {
        let (order, raw) = self.orders.of(wanted)?;
        let words = self.dialect.order(order, raw).ok_or_else(never)?;
        let unsent = |error: DriverError| Refused::Unsent(error.to_string());
        let mut line = self.open(mono_ms).await.map_err(unsent)?;
        let greeting = tokio::time::timeout(GREETING_MAX, self.greet(&mut line, mono_ms)).await;
        if let Err(error) = greeting.unwrap_or_else(|_| Err(self.silent())) {
            if matches!(error, DriverError::Settling(..) | DriverError::Silent(..)) {
                self.line = Some(line);
            }
            return Err(unsent(error));
        }
        // A line that takes half of it is closed, so that the next words are not taken for the rest.
        let said = line.stream.write_all(words.as_bytes());
        match tokio::time::timeout(limit(&self.timing), said).await {
            Ok(Ok(())) => {
                tokio::time::sleep(BETWEEN_WORDS).await;
                self.line = Some(line);
                Ok(())
            }
            Ok(Err(error)) => Err(Refused::Unconfirmed(error.to_string())),
            Err(_) => Err(Refused::Unconfirmed(self.silent().to_string())),
        }
    }

    async fn open(&mut self, mono_ms: u64) -> Result<Line, DriverError> {
        if let Some(line) = self.line.take() {
            return Ok(line);
        }
        let stream = self.place.open(limit(&self.timing)).await?;
        Ok(Line { stream, held: Vec::new(), opened_ms: mono_ms, greeted: false })
    }
}

impl Bus for Asked {
    fn write(&mut self, wanted: Move, mono_ms: u64) -> Writing<'_> {
        Box::pin(self.write_one(wanted, mono_ms))
    }

    fn poll(&mut self, mono_ms: u64) -> Polling<'_> {
        Box::pin(self.poll_once(mono_ms))
    }
}
