//! Machines that talk unasked: Hottop, Santoker, and any source of lines. A value counts once, in
//! the reading after it came; what did not come again is missing, never repeated.

use firmware_profiles::address::Address;
use firmware_profiles::{LineFormat, Timing};
use protocols::line::Csv;
use protocols::{LINE_BYTES_MAX, hottop, line, santoker};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::guard::Move;
use crate::port::{Place, Stream};
use crate::profile::{Bus, Order, Orders, Point, Polling, Raws, Writing, limit, never};
use crate::{DriverError, Refused};

/// What one reading takes from the connection: a source that floods does not hold up the rest.
const BYTES_MAX: usize = 64 * 1024;

/// Silent readings after which a connection is opened anew.
const SILENT_MAX: u32 = 3;

/// Understands what it hears.
pub enum Ear {
    Hottop(hottop::Decoder),
    Santoker(santoker::Decoder),
    Json { held: Vec<u8> },
    Csv { held: Vec<u8>, table: Csv },
}

impl Ear {
    pub fn hottop() -> Self {
        Self::Hottop(hottop::Decoder::default())
    }

    pub fn santoker() -> Self {
        Self::Santoker(santoker::Decoder::default())
    }

    pub fn line(format: LineFormat) -> Self {
        match format {
            LineFormat::Jsonl => Self::Json { held: Vec::new() },
            LineFormat::Csv => Self::Csv { held: Vec::new(), table: Csv::default() },
        }
    }

    /// Takes bytes and notes the values in them under the points' addresses.
    fn hear(&mut self, bytes: &[u8], heard: &mut BTreeMap<String, f64>) {
        match self {
            Self::Hottop(decoder) => {
                if let Some(status) = decoder.push(bytes) {
                    let names = firmware_profiles::address::HOTTOP_READS.iter();
                    heard.extend(names.filter_map(|n| Some(((*n).to_owned(), status.get(n)?))));
                }
            }
            Self::Santoker(decoder) => {
                let messages = decoder.push(bytes).into_iter();
                heard.extend(messages.map(|m| (format!("{:02X}", m.target), m.raw())));
            }
            Self::Json { held } => {
                for text in lines(held, bytes) {
                    heard.extend(line::parse_json(&text).unwrap_or_default());
                }
            }
            Self::Csv { held, table } => {
                for text in lines(held, bytes) {
                    heard.extend(table.parse(&text).unwrap_or_default());
                }
            }
        }
    }

    /// A new connection begins in the middle of nothing.
    fn forget(&mut self) {
        *self = match self {
            Self::Hottop(_) => Self::hottop(),
            Self::Santoker(_) => Self::santoker(),
            Self::Json { .. } => Self::line(LineFormat::Jsonl),
            Self::Csv { .. } => Self::line(LineFormat::Csv),
        };
    }

    /// The bytes by which a control is moved; `None` where we never do. Hottop drops its
    /// beans when whoever took the controls falls silent for a second, so nothing is written to it.
    fn order(&self, order: &Order, raw: f64) -> Option<Vec<u8>> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0–255 by the filter
        let data = Some(raw.round()).filter(|raw| (0.0..=255.0).contains(raw))? as u32;
        match (self, &order.address) {
            (Self::Santoker(_), Address::Target(target)) => {
                Some(santoker::Message { target: *target, data }.encode(santoker::HOST_BYTES))
            }
            _ => None,
        }
    }

    /// Whether a state that was not told again still holds: Santoker tells an event once.
    const fn states_last(&self) -> bool {
        matches!(self, Self::Santoker(_))
    }
}

/// Whole lines; half of one is held. A line without an end is dropped.
fn lines(held: &mut Vec<u8>, bytes: &[u8]) -> Vec<String> {
    held.extend_from_slice(bytes);
    let mut lines = Vec::new();
    while let Some(end) = held.iter().position(|b| *b == b'\n') {
        lines.push(String::from_utf8_lossy(&held[..end]).into_owned());
        held.drain(..=end);
    }
    if held.len() > LINE_BYTES_MAX {
        held.clear();
    }
    lines
}

/// A machine that tells.
pub struct Told {
    place: Place,
    timing: Timing,
    points: Vec<Point>,
    orders: Orders,
    ear: Ear,
    stream: Option<Box<dyn Stream>>,
    /// Readings in a row in which nothing came.
    silent: u32,
}

impl Told {
    pub fn new(
        place: Place,
        timing: Timing,
        (points, orders): (Vec<Point>, Orders),
        ear: Ear,
    ) -> Self {
        Self { place, timing, points, orders, ear, stream: None, silent: 0 }
    }

    /// Sends one message. Nobody answers it, so whether it was done the read-back tells.
    async fn write_one(&mut self, wanted: Move) -> Result<(), Refused> {
        let (order, raw) = self.orders.of(wanted)?;
        let bytes = self.ear.order(order, raw).ok_or_else(never)?;
        let unsent = |error: DriverError| Refused::Unsent(error.to_string());
        let mut stream = self.open().await.map_err(unsent)?;
        // Half a message may have left: the next one begins on a new connection.
        match tokio::time::timeout(limit(&self.timing), stream.write_all(&bytes)).await {
            Ok(Ok(())) => {
                self.stream = Some(stream);
                Ok(())
            }
            Ok(Err(error)) => Err(Refused::Unconfirmed(error.to_string())),
            Err(_) => {
                let silent = DriverError::Silent(self.place.name(), self.timing.timeout_ms);
                Err(Refused::Unconfirmed(silent.to_string()))
            }
        }
    }

    async fn open(&mut self) -> Result<Box<dyn Stream>, DriverError> {
        if let Some(stream) = self.stream.take() {
            return Ok(stream);
        }
        self.ear.forget();
        self.place.open(limit(&self.timing)).await
    }

    /// Reads what has come, and waits for something if nothing has.
    async fn listen(
        &mut self,
        stream: &mut Box<dyn Stream>,
    ) -> Result<BTreeMap<String, f64>, DriverError> {
        let mut heard = BTreeMap::new();
        let mut bytes = [0; 1024];
        let mut taken = 0;
        // One limit for all of it: garbage that never ends is no answer either.
        let until = Instant::now() + limit(&self.timing);
        while taken < BYTES_MAX {
            let wait = if heard.is_empty() { until } else { Instant::now() };
            match tokio::time::timeout_at(wait, stream.read(&mut bytes)).await {
                Ok(Ok(0)) => {
                    return Err(DriverError::Protocol(self.place.name(), "hung up".to_owned()));
                }
                Ok(Ok(read)) => {
                    taken += read;
                    self.ear.hear(&bytes[..read], &mut heard);
                }
                Ok(Err(error)) => return Err(DriverError::Unreachable(self.place.name(), error)),
                Err(_) => return Ok(heard),
            }
        }
        // More than we can follow: what is heard would be older with each reading.
        let flood = "sends more than can be read; the connection is closed".to_owned();
        Err(DriverError::Protocol(self.place.name(), flood))
    }

    async fn poll_once(&mut self) -> Result<Raws, DriverError> {
        let mut stream = self.open().await?;
        let heard = self.listen(&mut stream).await?;
        if heard.is_empty() {
            self.silent += 1;
            // A machine that was switched off leaves a connection that looks alive for ever.
            if self.silent < SILENT_MAX || matches!(self.place, Place::Serial { .. }) {
                self.stream = Some(stream);
            } else {
                self.silent = 0;
            }
            return Err(DriverError::Silent(self.place.name(), self.timing.timeout_ms));
        }
        self.silent = 0;
        self.stream = Some(stream);
        let told_once = self.ear.states_last();
        let value = |point: &Point| match &point.address {
            Address::Name(name) => heard.get(name).copied(),
            Address::Target(target) => {
                let value = heard.get(&format!("{target:02X}")).copied();
                // An event's message is its beginning; between two there is none.
                let is_event = told_once && (0x80..=0x84).contains(target);
                if is_event { Some(f64::from(value.is_some_and(|v| v != 0.0))) } else { value }
            }
            _ => None,
        };
        let values = self.points.iter().map(value).collect();
        Ok(Raws { values, ailing: Vec::new() })
    }
}

impl Bus for Told {
    fn write(&mut self, wanted: Move, _mono_ms: u64) -> Writing<'_> {
        Box::pin(self.write_one(wanted))
    }

    fn poll(&mut self, _mono_ms: u64) -> Polling<'_> {
        Box::pin(self.poll_once())
    }
}
