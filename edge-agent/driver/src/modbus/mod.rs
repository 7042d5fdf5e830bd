//! Modbus over TCP and serial lines: reads runs of registers, and executes queued writes between
//! runs.
//!
//! A late answer to a request that timed out would be taken as the answer to the next request, so
//! any error or timeout closes the connection; the next request opens a new one.

mod commands;
mod plan;

use std::time::Duration;

use firmware_profiles::Timing;
use firmware_profiles::address::Table;
use tokio::time::Instant;
use tokio_modbus::client::{Client as _, Context, Reader as _, rtu, tcp};
use tokio_modbus::slave::{Slave, SlaveContext as _};
use tokio_modbus::{ExceptionCode, Request, Response};

use self::plan::{Block, Unit};
use crate::bus::{Bus, PollFuture, RawValues, ReadPoint, WriteFuture, answer_timeout};
use crate::connection::Endpoint;
use crate::health::{Health, poll_order};
use crate::interlock::Command;
use crate::{ControlQueue, DriverError, DriverHandles, WriteError};

pub struct Modbus {
    endpoint: Endpoint,
    timing: Timing,
    points: Vec<ReadPoint>,
    units: Vec<Unit>,
    health: Vec<Health>,
    connection: Option<Context>,
    /// When the port was opened, monotonic ms, for machines that restart when it is opened.
    opened_ms: Option<u64>,
    handles: DriverHandles,
    /// When the current poll began.
    began: Instant,
}

/// Why a request failed.
enum RequestError {
    /// The unit answered with an exception.
    Exception(ExceptionCode),
    /// The unit did not answer, or the answer was malformed.
    Failed(DriverError),
}

impl Modbus {
    pub fn new(
        endpoint: Endpoint,
        timing: Timing,
        points: &[ReadPoint],
        handles: DriverHandles,
    ) -> Self {
        let units = plan::plan_units(points, timing.block_max, timing.gaps);
        let health = vec![Health::default(); units.len()];
        let points = points.to_vec();
        Self {
            endpoint,
            timing,
            points,
            units,
            health,
            connection: None,
            opened_ms: None,
            handles,
            began: Instant::now(),
        }
    }

    fn name(&self, station: u8) -> String {
        format!("{} unit {station}", self.endpoint.name())
    }

    async fn connect(&mut self, mono_ms: u64) -> Result<Context, DriverError> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let stream = self.endpoint.open(answer_timeout(&self.timing)).await?;
        self.opened_ms = Some(mono_ms);
        Ok(match self.endpoint {
            Endpoint::Tcp { .. } => tcp::attach(stream),
            Endpoint::Serial { .. } => rtu::attach(stream),
        })
    }

    /// Opens the port, and returns [`DriverError::Settling`] until `settle_ms` has passed since it
    /// was opened: some machines restart each time that the port is opened.
    async fn check_settled(&mut self, mono_ms: u64) -> Result<(), DriverError> {
        if self.timing.settle_ms > 0 {
            let connection = self.connect(mono_ms).await?;
            self.connection = Some(connection);
            let settled = self.opened_ms.unwrap_or(mono_ms) + self.timing.settle_ms;
            if mono_ms < settled {
                return Err(DriverError::Settling(self.endpoint.name(), settled - mono_ms));
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
        let (start, words) = (block.start, block.words);
        let bits = |answer: Vec<bool>| answer.into_iter().map(u16::from).collect::<Vec<u16>>();
        let read = async |connection: &mut Context| match block.table {
            Table::Holding => connection.read_holding_registers(start, words).await,
            Table::Input => connection.read_input_registers(start, words).await,
            Table::Coil => connection.read_coils(start, words).await.map(|r| r.map(bits)),
            Table::Discrete => {
                connection.read_discrete_inputs(start, words).await.map(|r| r.map(bits))
            }
        };
        self.exchange(self.units[unit].station, mono_ms, read).await
    }

    /// Sends one request of any kind and returns its answer.
    async fn exchange<T>(
        &mut self,
        station: u8,
        mono_ms: u64,
        talk: impl AsyncFnOnce(&mut Context) -> tokio_modbus::Result<T>,
    ) -> Result<T, RequestError> {
        let mut connection = self.connect(mono_ms).await.map_err(RequestError::Failed)?;
        connection.set_slave(Slave(station));
        // A timeout or an error drops the connection.
        let name = self.name(station);
        let answer = tokio::time::timeout(answer_timeout(&self.timing), talk(&mut connection))
            .await
            .map_err(|_| {
                RequestError::Failed(DriverError::Silent(name.clone(), self.timing.timeout_ms))
            })?;
        let answer =
            answer.map_err(|e| RequestError::Failed(DriverError::Protocol(name, e.to_string())))?;
        self.connection = Some(connection);
        let gap = self.endpoint.frame_gap().max(Duration::from_millis(self.timing.min_gap_ms));
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
        }
        answer.map_err(RequestError::Exception)
    }

    /// Reads all blocks of one unit.
    async fn read_unit(
        &mut self,
        unit: usize,
        mono_ms: u64,
        until: Instant,
        raws: &mut RawValues,
    ) -> Result<(), DriverError> {
        let station = self.units[unit].station;
        let mut at = 0;
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
                    raws.failed_units.push(format!(
                        "{}: {code} at {}",
                        self.name(station),
                        block.start
                    ));
                }
                Err(RequestError::Failed(error)) => return Err(error),
            }
            at += 1;
        }
        Ok(())
    }

    /// Executes the next queued write, if there is one.
    async fn execute_next(&mut self, mono_ms: u64) {
        let Some(controls) = self.handles.controls.clone() else { return };
        // During a poll the current time is later than its start.
        let now_ms = mono_ms + self.elapsed_ms();
        let Some(next) = controls.next(now_ms) else { return };
        let outcome = self.send_command(next.command, mono_ms).await;
        controls.complete(next, outcome, mono_ms + self.elapsed_ms());
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
        let connection = self.connect(mono_ms).await.map_err(unsent)?;
        self.connection = Some(connection);
        let call_request = request.clone();
        let call = async |connection: &mut Context| connection.call(call_request).await;
        match self.exchange(station, mono_ms, call).await {
            Ok(response) if acknowledges(&response, &request) => Ok(()),
            Ok(_) => Err(WriteError::Unconfirmed("the answer is to another request".to_owned())),
            Err(RequestError::Exception(code)) => {
                Err(WriteError::Unconfirmed(format!("exception: {code}")))
            }
            Err(RequestError::Failed(error)) => Err(WriteError::Unconfirmed(error.to_string())),
        }
    }

    async fn poll_all(&mut self, mono_ms: u64) -> Result<RawValues, DriverError> {
        self.began = Instant::now();
        self.check_settled(mono_ms).await?;
        let mut raws =
            RawValues { values: vec![None; self.points.len()], failed_units: Vec::new() };
        let until = Instant::now() + Duration::from_millis(self.timing.poll_ms);
        let (mut any_answered, mut last) = (false, None);
        for unit in poll_order(&self.health, mono_ms) {
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
                    raws.failed_units.push(error.to_string());
                    last = Some(error);
                }
            }
        }
        for unit in (0..self.units.len()).filter(|unit| self.health[*unit].is_backing_off(mono_ms))
        {
            raws.failed_units.push(format!(
                "{} is not polled until its next retry",
                self.name(self.units[unit].station)
            ));
        }
        // All units are paused: nothing was polled, and nothing is known.
        let silent = || DriverError::Silent(self.endpoint.name(), self.timing.timeout_ms);
        if any_answered { Ok(raws) } else { Err(last.unwrap_or_else(silent)) }
    }
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
}
