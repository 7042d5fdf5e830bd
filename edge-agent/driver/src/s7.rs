//! Siemens S7 over ISO on TCP: reads all points in requests of a few variables each, and executes
//! one write at a time.

use std::time::Duration;

use firmware_profiles::Timing;
use firmware_profiles::address::{Address, Area, Tsaps};
use firmware_profiles::encoding::Type;
use protocols::s7::{self, ITEMS_MAX, Item, S7Error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::bus::{
    Bus, PollFuture, RawValues, ReadPoint, WritableControls, WriteFuture, answer_timeout,
};
use crate::connection::{Endpoint, Stream};
use crate::interlock::Command;
use crate::{DriverError, WriteError};

pub struct S7 {
    endpoint: Endpoint,
    tsaps: Tsaps,
    timing: Timing,
    points: Vec<ReadPoint>,
    controls: WritableControls,
    connection: Option<Box<dyn Stream>>,
    reference: u16,
}

impl S7 {
    pub const fn new(
        endpoint: Endpoint,
        tsaps: Tsaps,
        timing: Timing,
        points: Vec<ReadPoint>,
        controls: WritableControls,
    ) -> Self {
        Self { endpoint, tsaps, timing, points, controls, connection: None, reference: 0 }
    }

    const fn next_reference(&mut self) -> u16 {
        self.reference = self.reference.wrapping_add(1);
        self.reference
    }

    fn problem(&self, error: &S7Error) -> DriverError {
        DriverError::Protocol(self.endpoint.name(), error.to_string())
    }

    async fn connect(&mut self) -> Result<Box<dyn Stream>, DriverError> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let mut stream = self.endpoint.open(answer_timeout(&self.timing)).await?;
        let request = s7::connect(self.tsaps.local, self.tsaps.remote);
        let text = self.exchange(&mut stream, &request).await?;
        s7::parse_connect_answer(&text).map_err(|e| self.problem(&e))?;
        let reference = self.next_reference();
        let text = self.exchange(&mut stream, &s7::setup(reference)).await?;
        s7::parse_setup_answer(&text, reference).map_err(|e| self.problem(&e))?;
        Ok(stream)
    }

    /// Sends one request and returns its answer, without the first four bytes.
    async fn exchange(
        &self,
        stream: &mut Box<dyn Stream>,
        request: &[u8],
    ) -> Result<Vec<u8>, DriverError> {
        let broken = |error| DriverError::broken(self.endpoint.name(), error);
        stream.write_all(request).await.map_err(broken)?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.map_err(broken)?;
        let length = s7::message_length(head).map_err(|e| self.problem(&e))?;
        let mut text = vec![0; length.saturating_sub(head.len())];
        stream.read_exact(&mut text).await.map_err(broken)?;
        tokio::time::sleep(Duration::from_millis(self.timing.min_gap_ms)).await;
        Ok(text)
    }

    async fn read_all(&mut self) -> Result<RawValues, DriverError> {
        let mut stream = self.connect().await?;
        let items: Vec<Item> =
            self.points.iter().filter_map(|p| item(&p.address, p.kind)).collect();
        let mut values = Vec::with_capacity(self.points.len());
        for (points, items) in self.points.clone().chunks(ITEMS_MAX).zip(items.chunks(ITEMS_MAX)) {
            let reference = self.next_reference();
            let text = self.exchange(&mut stream, &s7::read(reference, items)).await?;
            let found =
                s7::parse_read_answer(&text, reference, items).map_err(|e| self.problem(&e))?;
            values.extend(points.iter().zip(found).map(|(point, b)| raw(point, &b?)));
        }
        self.connection = Some(stream);
        Ok(RawValues { values, failed_units: Vec::new() })
    }
}

impl S7 {
    /// Reads all points; again on a new connection if the one that was open has ended meanwhile.
    async fn read_twice(&mut self) -> Result<RawValues, DriverError> {
        let is_reused = self.connection.is_some();
        match self.read_all().await {
            Err(DriverError::Closed(_) | DriverError::Reset(_)) if is_reused => {
                self.read_all().await
            }
            read => read,
        }
    }

    /// Returns the time limit for `requests`. If a connection is to be opened first, its two
    /// answers are included.
    fn time_limit(&self, requests: usize) -> Duration {
        let connects = if self.connection.is_some() { 0 } else { 2 };
        let answers = u32::try_from(requests.saturating_add(connects)).unwrap_or(u32::MAX);
        let gaps = Duration::from_millis(self.timing.min_gap_ms).saturating_mul(answers);
        answer_timeout(&self.timing).saturating_add(gaps)
    }

    async fn write_one(&mut self, command: Command) -> Result<(), WriteError> {
        let (item, bit, bytes) = {
            let (writable, raw) = self.controls.resolve(command)?;
            let kind = writable.control.kind.ok_or(WriteError::NoSuchControl)?;
            let item = item(&writable.address, kind).ok_or(WriteError::NoSuchControl)?;
            let Address::S7 { bit, .. } = writable.address else {
                return Err(WriteError::NoSuchControl);
            };
            let order = writable.control.order.unwrap_or_default();
            let bytes = match bit {
                Some(_) => vec![u8::from(raw.abs() > f64::EPSILON)],
                None => kind.encode_bytes(order, raw).ok_or(WriteError::NoSuchControl)?,
            };
            (item, bit, bytes)
        };
        let until = Instant::now() + self.time_limit(1);
        let unsent = |error: DriverError| WriteError::NotSent(error.to_string());
        let silent = DriverError::Silent(self.endpoint.name(), self.timing.timeout_ms);
        let mut stream = match tokio::time::timeout_at(until, self.connect()).await {
            Ok(connected) => connected.map_err(unsent)?,
            Err(_) => return Err(unsent(silent)),
        };
        // From here on the controller may have executed the write, whatever happens to the answer.
        let reference = self.next_reference();
        let request = s7::write(reference, item, bit, &bytes);
        let unsure = |error: DriverError| WriteError::Unconfirmed(error.to_string());
        let answer = tokio::time::timeout_at(until, self.exchange(&mut stream, &request)).await;
        let text = answer.map_err(|_| unsure(silent))?.map_err(unsure)?;
        let outcome = s7::parse_write_answer(&text, reference);
        if !matches!(outcome, Err(S7Error::Malformed(_) | S7Error::OtherRequest)) {
            self.connection = Some(stream);
        }
        outcome.map_err(|error| unsure(self.problem(&error)))
    }
}

impl Bus for S7 {
    fn write(&mut self, command: Command, _mono_ms: u64) -> WriteFuture<'_> {
        Box::pin(self.write_one(command))
    }

    fn poll(&mut self, _mono_ms: u64) -> PollFuture<'_> {
        Box::pin(async {
            let limit = self.time_limit(self.points.len().div_ceil(ITEMS_MAX));
            // A timeout drops the connection together with the future that owns it.
            match tokio::time::timeout(limit, self.read_twice()).await {
                Ok(read) => read,
                Err(_) => Err(DriverError::Silent(self.endpoint.name(), self.timing.timeout_ms)),
            }
        })
    }
}

fn item(address: &Address, kind: Type) -> Option<Item> {
    let Address::S7 { area, byte, bit } = *address else { return None };
    let (area, block) = match area {
        Area::Input => (0x81, 0),
        Area::Output => (0x82, 0),
        Area::Flag => (0x83, 0),
        Area::Block(block) => (0x84, block),
    };
    let bytes = if bit.is_some() { 1 } else { kind.bytes() };
    Some(Item { area, block, byte, bytes })
}

/// Decodes the raw value of a point; S7 is big-endian unless the profile says otherwise.
fn raw(point: &ReadPoint, bytes: &[u8]) -> Option<f64> {
    let Address::S7 { bit, .. } = point.address else { return None };
    if let Some(bit) = bit {
        return Some(f64::from((bytes.first()? >> bit) & 1));
    }
    debug_assert!(point.kind != Type::Bool, "the linter requires a bit for every bool");
    point.kind.decode_bytes(point.order, bytes)
}
