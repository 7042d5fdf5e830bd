//! Modbus over TCP and serial lines: reads runs of registers, and executes queued writes between
//! runs.
//!
//! A late answer to a request that timed out would be taken as the answer to the next request, so
//! any error or timeout closes the connection; the next request opens a new one. A read whose
//! connection ended before a byte of the answer is repeated once; a write is never repeated after
//! one of its bytes was sent.

mod commands;
mod plan;
mod wire;

use std::time::Duration;

use firmware_profiles::Timing;
use protocols::modbus_answer::{AnswerError, Echo, Exception, Framing};
use tokio::time::Instant;
use tokio_modbus::client::{Client as _, Context, rtu, tcp};
use tokio_modbus::slave::{Slave, SlaveContext as _};
use tokio_modbus::{ExceptionCode, Request, Response};

use self::plan::{Block, Unit};
use self::wire::{ConnectionEnd, ObservedStream, WireLog};
use crate::bus::{Bus, PollFuture, RawValues, ReadPoint, WriteFuture, answer_timeout};
use crate::connection::Endpoint;
use crate::health::{Health, poll_order};
use crate::interlock::Command;
use crate::{ControlQueue, DriverError, DriverHandles, WriteError};

/// The time before a write on an open connection, so that the end of a connection that the machine
/// closed behind its last answer is known before anything is sent.
const CLOSE_NOTICE: Duration = Duration::from_millis(2);

pub struct Modbus {
    endpoint: Endpoint,
    framing: Framing,
    timing: Timing,
    points: Vec<ReadPoint>,
    /// The units; those with points that are read first come first.
    units: Vec<Unit>,
    health: Vec<Health>,
    /// The last failure of each unit.
    failures: Vec<String>,
    connection: Option<Context>,
    wire: WireLog,
    /// What to try for the failures of the last poll.
    advice: Vec<&'static str>,
    /// When the port was opened, monotonic ms, for machines that restart when it is opened.
    opened_ms: Option<u64>,
    handles: DriverHandles,
    /// When the current poll began.
    began: Instant,
}

/// Why a request failed.
enum RequestError {
    /// The unit, or a gateway in its place, answered with an exception.
    Exception(ExceptionCode),
    /// The unit did not answer, or the answer was malformed.
    Failed(DriverError),
}

impl Modbus {
    pub fn new(
        endpoint: Endpoint,
        framing: Framing,
        timing: Timing,
        points: &[ReadPoint],
        handles: DriverHandles,
    ) -> Self {
        let units = plan::plan_units(points, timing.block_max, timing.gaps);
        let health = vec![Health::default(); units.len()];
        let failures = vec![String::new(); units.len()];
        let points = points.to_vec();
        Self {
            endpoint,
            framing,
            timing,
            points,
            units,
            health,
            failures,
            connection: None,
            wire: WireLog::new(framing),
            advice: Vec::new(),
            opened_ms: None,
            handles,
            began: Instant::now(),
        }
    }

    fn name(&self, station: u8) -> String {
        format!("{} unit {station}", self.endpoint.name())
    }

    async fn connect(&mut self, mono_ms: u64, limit: Duration) -> Result<Context, DriverError> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let stream = self.endpoint.open(limit).await?;
        self.opened_ms = Some(mono_ms);
        let stream = ObservedStream::new(stream, self.wire.clone());
        Ok(match self.framing {
            Framing::Tcp => tcp::attach(stream),
            Framing::Rtu => rtu::attach(stream),
        })
    }

    /// Opens the port, and returns [`DriverError::Settling`] until `settle_ms` has passed since it
    /// was opened: some machines restart each time that the port is opened.
    async fn check_settled(&mut self, mono_ms: u64) -> Result<(), DriverError> {
        if self.timing.settle_ms > 0 {
            let connection = self.connect(mono_ms, answer_timeout(&self.timing)).await?;
            self.connection = Some(connection);
            let opened_ms = self.opened_ms.unwrap_or(mono_ms);
            let left_ms = opened_ms.saturating_add(self.timing.settle_ms).saturating_sub(mono_ms);
            if left_ms > 0 {
                return Err(DriverError::Settling(self.endpoint.name(), left_ms));
            }
        }
        Ok(())
    }

    /// Reads one block and returns its words.
    async fn request(
        &mut self,
        unit: usize,
        block: &Block,
        mono_ms: u64,
    ) -> Result<Vec<u16>, RequestError> {
        let station = self.units[unit].station;
        let count = usize::from(block.words);
        let words = match self.exchange(station, mono_ms, &block.request()).await? {
            Response::ReadHoldingRegisters(words) | Response::ReadInputRegisters(words) => words,
            // Bits come in whole bytes.
            Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits) => {
                bits.into_iter().take(count).map(u16::from).collect()
            }
            _ => Vec::new(), // the client accepts an answer of the requested function only
        };
        if words.len() != count {
            // What follows on this connection may belong to another request too.
            self.connection = None;
            let error = AnswerError::Count { received: words.len(), requested: count };
            return Err(RequestError::Failed(DriverError::Misunderstood(
                self.name(station),
                error,
            )));
        }
        Ok(words)
    }

    /// Sends one request and returns its answer. Reconnects once if the connection had ended: for a
    /// read, before a byte of the answer came; for a write, before a byte of it was sent.
    async fn exchange(
        &mut self,
        station: u8,
        mono_ms: u64,
        request: &Request<'static>,
    ) -> Result<Response, RequestError> {
        self.wire.begin();
        let limit = answer_timeout(&self.timing);
        let is_reused = self.connection.is_some();
        let mut connection = self.connect(mono_ms, limit).await.map_err(RequestError::Failed)?;
        if is_reused && !is_modbus_read(request) && matches!(self.endpoint, Endpoint::Tcp { .. }) {
            tokio::time::sleep(CLOSE_NOTICE).await;
        }
        let until = Instant::now() + limit;
        let mut may_reconnect = self.timing.settle_ms == 0;
        loop {
            connection.set_slave(Slave(station));
            self.wire.begin();
            let call = connection.call(request.clone());
            let answer = tokio::time::timeout_at(until, call).await;
            let error = match answer {
                Ok(Ok(answer)) => {
                    self.connection = Some(connection);
                    self.pause().await;
                    return answer.map_err(RequestError::Exception);
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            // The failed connection is not used again.
            drop(connection);
            let rest = until.saturating_duration_since(Instant::now());
            if !may_reconnect || rest.is_zero() || !self.may_repeat(request) {
                return Err(RequestError::Failed(self.failure(station, error)));
            }
            may_reconnect = false;
            connection = self.connect(mono_ms, rest).await.map_err(RequestError::Failed)?;
        }
    }

    /// Waits for the shortest time between two requests.
    async fn pause(&self) {
        let gap = self.endpoint.frame_gap().max(Duration::from_millis(self.timing.min_gap_ms));
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
        }
    }

    /// Returns whether the failed request may be sent again on a new connection.
    fn may_repeat(&self, request: &Request<'_>) -> bool {
        let ended = matches!(self.wire.end(), Some(ConnectionEnd::Closed | ConnectionEnd::Reset));
        let is_unanswered = self.wire.explain().is_none();
        ended && is_unanswered && (is_modbus_read(request) || self.wire.is_unsent())
    }

    /// Returns what happened to the request that just failed. `error` is that of the client; `None`
    /// for a timeout.
    fn failure(&self, station: u8, error: Option<tokio_modbus::Error>) -> DriverError {
        let name = self.name(station);
        if let Some(problem) = self.wire.explain() {
            return DriverError::Misunderstood(name, problem);
        }
        match (self.wire.end(), error) {
            (Some(ConnectionEnd::Closed), _) => DriverError::Closed(name),
            (Some(ConnectionEnd::Reset), _) => DriverError::Reset(name),
            (_, Some(tokio_modbus::Error::Transport(error))) => {
                DriverError::Unreachable(name, error)
            }
            (_, Some(error)) => DriverError::Protocol(name, error.to_string()),
            (_, None) => DriverError::Silent(name, self.timing.timeout_ms),
        }
    }

    /// Reads all blocks of one unit. Returns the error after which the unit counts as failed: no
    /// answer, a gateway's exception, or temporary exceptions in place of every value.
    async fn read_unit(
        &mut self,
        unit: usize,
        mono_ms: u64,
        until: Instant,
        raws: &mut RawValues,
    ) -> Result<(), DriverError> {
        let station = self.units[unit].station;
        let (mut at, mut has_values, mut refusal) = (0_usize, false, None);
        while let Some(block) = self.units[unit].blocks.get(at).cloned() {
            if Instant::now() >= until {
                // Values of two different moments do not form a sample.
                raws.failed_units
                    .push(format!("{}: too slow to be read completely", self.name(station)));
                return Ok(());
            }
            // A write waits for one run of registers, not for all of them.
            self.execute_next(mono_ms).await;
            match self.request(unit, &block, mono_ms).await {
                Ok(words) => {
                    has_values = true;
                    self.handles.registers.store(
                        station,
                        block.table,
                        block.start,
                        &words,
                        mono_ms,
                    );
                    for point in &block.points {
                        raws.values[*point] = plan::raw(&self.points[*point], &block, &words);
                    }
                }
                // Some controllers refuse a run that contains a register they do not have.
                Err(RequestError::Exception(ExceptionCode::IllegalDataAddress))
                    if block.points.len() > 1 =>
                {
                    let singles = plan::split_block(&block, &self.points);
                    self.units[unit].blocks.splice(at..=at, singles);
                    continue;
                }
                Err(RequestError::Exception(code)) => {
                    let exception = Exception(u8::from(code));
                    let name = format!("{}, {}", self.name(station), block.address());
                    let error = DriverError::Exception(name, exception);
                    self.report(&error, raws);
                    if exception.is_of_gateway() {
                        return Err(error);
                    }
                    if exception.is_temporary() {
                        refusal = Some(error);
                    }
                }
                Err(RequestError::Failed(error)) => {
                    self.report(&error, raws);
                    return Err(error);
                }
            }
            at = at.saturating_add(1);
        }
        refusal.filter(|_| !has_values).map_or(Ok(()), Err)
    }

    /// Adds an error to those of the current poll.
    fn report(&mut self, error: &DriverError, raws: &mut RawValues) {
        raws.failed_units.push(error.to_string());
        if let Some(advice) = error.advice()
            && !self.advice.contains(&advice)
        {
            self.advice.push(advice);
        }
    }

    /// Executes the next queued write, if there is one.
    async fn execute_next(&mut self, mono_ms: u64) {
        let Some(controls) = self.handles.controls.clone() else { return };
        // During a poll the current time is later than its start.
        let now_ms = mono_ms.saturating_add(self.elapsed_ms());
        let Some(next) = controls.next(now_ms) else { return };
        let outcome = self.send_command(next.command, mono_ms).await;
        controls.complete(next, outcome, mono_ms.saturating_add(self.elapsed_ms()));
    }

    /// Returns the time since the poll began, ms.
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Sends one write. Only an answer that repeats the request acknowledges it.
    async fn send_command(&mut self, command: Command, mono_ms: u64) -> Result<(), WriteError> {
        let profile = self.handles.controls.as_ref().map(ControlQueue::profile);
        let (station, request) = profile
            .and_then(|profile| commands::request(profile, command))
            .ok_or(WriteError::NoSuchControl)?;
        let unsent = |error: DriverError| WriteError::NotSent(error.to_string());
        self.check_settled(mono_ms).await.map_err(unsent)?;
        let connection = self.connect(mono_ms, answer_timeout(&self.timing)).await;
        self.connection = Some(connection.map_err(unsent)?);
        self.learn_echo(station, mono_ms).await;
        match self.exchange(station, mono_ms, &request).await {
            Ok(response) if acknowledges(&response, &request) => Ok(()),
            Ok(_) => Err(WriteError::Unconfirmed("the answer is to another request".to_owned())),
            Err(RequestError::Exception(code)) => {
                Err(WriteError::Unconfirmed(Exception(u8::from(code)).to_string()))
            }
            Err(RequestError::Failed(error)) if self.wire.is_unsent() => Err(unsent(error)),
            Err(RequestError::Failed(error)) => Err(WriteError::Unconfirmed(error.to_string())),
        }
    }

    /// Reads a block before the first write on an RTU line, to learn whether the line returns our
    /// own requests: the echo of a write looks like its acknowledgement.
    async fn learn_echo(&mut self, station: u8, mono_ms: u64) {
        if self.framing != Framing::Rtu || self.wire.echo() != Echo::Unknown {
            return;
        }
        let unit = self.units.iter().position(|unit| unit.station == station).unwrap_or(0);
        let block = self.units.get(unit).and_then(|unit| unit.blocks.first()).cloned();
        if let Some(block) = block {
            // Without an answer the write is still sent; its echo then does not confirm it.
            let _ = self.request(unit, &block, mono_ms).await;
        }
    }

    async fn poll_all(&mut self, mono_ms: u64) -> Result<RawValues, DriverError> {
        self.began = Instant::now();
        self.advice.clear();
        self.check_settled(mono_ms).await?;
        let mut raws =
            RawValues { values: vec![None; self.points.len()], failed_units: Vec::new() };
        let until = Instant::now() + Duration::from_millis(self.timing.poll_ms);
        let (mut any_answered, mut last) = (false, None);
        let read_first = self.units.iter().filter(|unit| unit.read_first).count();
        let order = poll_order(&self.health, read_first, mono_ms);
        for unit in order.iter().copied() {
            match self.read_unit(unit, mono_ms, until, &mut raws).await {
                Ok(()) => {
                    self.health[unit].answered();
                    any_answered = true;
                }
                Err(error) => {
                    let station = self.units[unit].station.to_string();
                    metrics::counter!("simcorp_edge_unit_failures_total", "unit" => station)
                        .increment(1);
                    self.health[unit].failed(mono_ms, self.units[unit].station.into());
                    self.failures[unit] = error.to_string();
                    last = Some(error);
                }
            }
        }
        let mut paused = None;
        for unit in (0..self.units.len()).filter(|unit| !order.contains(unit)) {
            let name = self.name(self.units[unit].station);
            let error = DriverError::Paused(name, self.failures[unit].clone());
            raws.failed_units.push(error.to_string());
            paused = Some(error);
        }
        if any_answered {
            return Ok(raws);
        }
        // All units are paused: nothing was polled, and nothing is known.
        let silent = || DriverError::Silent(self.endpoint.name(), self.timing.timeout_ms);
        Err(last.or(paused).unwrap_or_else(silent))
    }
}

/// Returns whether a Modbus request changes nothing at the machine.
#[must_use]
pub const fn is_modbus_read(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::ReadCoils(..)
            | Request::ReadDiscreteInputs(..)
            | Request::ReadHoldingRegisters(..)
            | Request::ReadInputRegisters(..)
    )
}

/// Returns whether a response acknowledges this request.
fn acknowledges(response: &Response, request: &Request<'_>) -> bool {
    let length = |of: usize, count: u16| usize::from(count) == of;
    match (response, request) {
        (Response::WriteSingleCoil(at, on), Request::WriteSingleCoil(a, o)) => (at, on) == (a, o),
        (Response::WriteSingleRegister(at, word), Request::WriteSingleRegister(a, w)) => {
            (at, word) == (a, w)
        }
        (Response::WriteMultipleCoils(at, count), Request::WriteMultipleCoils(a, bits)) => {
            at == a && length(bits.len(), *count)
        }
        (
            Response::WriteMultipleRegisters(at, count),
            Request::WriteMultipleRegisters(a, words),
        ) => at == a && length(words.len(), *count),
        (Response::MaskWriteRegister(at, and, or), Request::MaskWriteRegister(a, n, o)) => {
            (at, and, or) == (a, n, o)
        }
        _ => false,
    }
}

impl Bus for Modbus {
    fn poll(&mut self, mono_ms: u64) -> PollFuture<'_> {
        Box::pin(self.poll_all(mono_ms))
    }

    fn write(&mut self, command: Command, mono_ms: u64) -> WriteFuture<'_> {
        Box::pin(self.send_command(command, mono_ms))
    }

    fn advice(&self) -> Vec<&'static str> {
        self.advice.clone()
    }
}
