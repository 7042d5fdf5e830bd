//! A Modbus TCP server that serves the machine's registers as the agent last read them, so that
//! Artisan connects to the gateway in place of the machine. Writes by Artisan pass through the
//! agent's one guarded queue of writes if profile and site allow writes; otherwise they are
//! refused.

use std::future::{Future, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use driver::{CacheMiss, ControlQueue, DriverHandles, WriteError, is_modbus_read};
use firmware_profiles::address::Table;
use service::connections::{ConnectionLimits, ConnectionPlace, ConnectionPlaces};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::Server;
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest};
use tokio_util::sync::CancellationToken;

use super::checked_stream::CheckedStream;
use crate::clock::GatewayClock;

/// The bounds on open connections: 8, of which a computer has at most 2, and the programs of this
/// one 4. A further one is closed at once.
pub const CONNECTIONS: ConnectionLimits =
    ConnectionLimits::without_probes(8).with_quarter_per_peer();

/// A connection without a request for this long is closed, so that it does not keep Artisan out.
const IDLE_TIME_MAX: Duration = Duration::from_mins(5);

/// The time after an error of the listener until it accepts again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The state from which one connection is served.
struct RegisterServer {
    share: DriverHandles,
    clock: GatewayClock,
    age_max_ms: u64,
    _place: ConnectionPlace,
}

impl RegisterServer {
    /// Answers a read request from the registers last read.
    fn answer(&self, slave_request: &SlaveRequest<'static>) -> Result<Response, ExceptionCode> {
        let read = |table, start, count| {
            let now = self.clock.mono_ms();
            let read = self.share.registers.read(
                slave_request.slave,
                table,
                start,
                count,
                now,
                self.age_max_ms,
            );
            read.map_err(|none| match none {
                CacheMiss::NotInProfile => ExceptionCode::IllegalDataAddress,
                // The exception of a Modbus gateway whose target device does not answer.
                CacheMiss::Stale => ExceptionCode::GatewayTargetDevice,
            })
        };
        let bits = |words: Vec<u16>| words.into_iter().map(|word| word != 0).collect();
        match slave_request.request {
            Request::ReadCoils(start, count) => {
                read(Table::Coil, start, count).map(bits).map(Response::ReadCoils)
            }
            Request::ReadDiscreteInputs(start, count) => {
                read(Table::Discrete, start, count).map(bits).map(Response::ReadDiscreteInputs)
            }
            Request::ReadHoldingRegisters(start, count) => {
                read(Table::Holding, start, count).map(Response::ReadHoldingRegisters)
            }
            Request::ReadInputRegisters(start, count) => {
                read(Table::Input, start, count).map(Response::ReadInputRegisters)
            }
            _ => Err(ExceptionCode::IllegalFunction),
        }
    }
}

/// Executes a write request, if the machine's profile allows it now.
async fn write(
    controls: Option<ControlQueue>,
    slave_request: SlaveRequest<'static>,
    mono_ms: u64,
) -> Result<Response, ExceptionCode> {
    let SlaveRequest { slave: unit, request } = slave_request;
    let done = match &request {
        Request::WriteSingleCoil(at, on) => Response::WriteSingleCoil(*at, *on),
        Request::WriteSingleRegister(at, word) => Response::WriteSingleRegister(*at, *word),
        // The length of a request allows at most 1968 coils or 123 registers.
        Request::WriteMultipleCoils(at, bits) => {
            Response::WriteMultipleCoils(*at, u16::try_from(bits.len()).unwrap_or(u16::MAX))
        }
        Request::WriteMultipleRegisters(at, words) => {
            Response::WriteMultipleRegisters(*at, u16::try_from(words.len()).unwrap_or(u16::MAX))
        }
        Request::MaskWriteRegister(at, and, or) => Response::MaskWriteRegister(*at, *and, *or),
        _ => return Err(ExceptionCode::IllegalFunction),
    };
    let outcome = match controls {
        Some(controls) => controls.write_modbus("Artisan", unit, &request, mono_ms).await,
        None => Err(WriteError::Disabled),
    };
    outcome
        .map(|description| tracing::info!(moved = description, "Artisan moved a control"))
        .map_err(|refused| {
            tracing::warn!(unit, %refused, "a write by Artisan was refused");
            metrics::counter!("simcorp_edge_artisan_writes_refused_total").increment(1);
            exception(&refused)
        })?;
    Ok(done)
}

/// Returns the Modbus exception that comes nearest to the refusal; the log names the exact rule.
const fn exception(refused: &WriteError) -> ExceptionCode {
    match refused {
        WriteError::Disabled | WriteError::LocalOnly(_) => ExceptionCode::IllegalFunction,
        WriteError::NoSuchControl => ExceptionCode::IllegalDataAddress,
        WriteError::OutOfRange { .. }
        | WriteError::StepTooLarge { .. }
        | WriteError::Forbidden(_) => ExceptionCode::IllegalDataValue,
        WriteError::TooSoon { .. } | WriteError::WriteBudgetSpent(_) | WriteError::Busy => {
            ExceptionCode::ServerDeviceBusy
        }
        WriteError::NeedNotMet { .. }
        | WriteError::ReadingsUnreliable(_)
        | WriteError::NotFollowed(_) => ExceptionCode::ServerDeviceFailure,
        WriteError::NotSent(_) => ExceptionCode::GatewayPathUnavailable,
        WriteError::Unconfirmed(_) => ExceptionCode::GatewayTargetDevice,
    }
}

impl Service for RegisterServer {
    type Request = SlaveRequest<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = Pin<Box<dyn Future<Output = Result<Response, ExceptionCode>> + Send>>;

    fn call(&self, slave_request: Self::Request) -> Self::Future {
        if is_modbus_read(&slave_request.request) {
            return Box::pin(ready(self.answer(&slave_request)));
        }
        Box::pin(write(self.share.controls.clone(), slave_request, self.clock.mono_ms()))
    }
}

/// Sets TCP keep-alive, so that the connection of a computer that was switched off, or that left the
/// wireless network, is closed within about 20 s: Artisan connects again at once, and a computer has
/// only two of [`CONNECTIONS`].
fn enable_keepalive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let result = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, Duration::from_secs(10)))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5)))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, 2))
        // While sent data is unacknowledged, no keep-alive probe is sent; this limit applies then.
        .and_then(|()| sockopt::set_tcp_user_timeout(stream, 20_000));
    if let Err(error) = result {
        tracing::debug!(%error, "TCP keep-alive cannot be set on a connection from Artisan");
    }
}

/// Serves until `stop`. A read of values older than `age_max_ms` gets an exception.
///
/// An error of the listener, usually because no file descriptor is left, ends the open connections
/// and not the listener: Artisan connects again.
pub async fn serve(
    listener: TcpListener,
    share: DriverHandles,
    clock: GatewayClock,
    age_max_ms: u64,
    stop: CancellationToken,
) {
    let places = ConnectionPlaces::new(CONNECTIONS);
    let connected = |stream: TcpStream, from: SocketAddr| {
        let Some(place) = places.take(from.ip()) else {
            metrics::counter!("simcorp_connections_refused_total").increment(1);
            tracing::debug!(%from, "closed a connection: too many of its computer, or in all");
            return ready(Ok(None));
        };
        enable_keepalive(&stream);
        let server = RegisterServer { share: share.clone(), clock, age_max_ms, _place: place };
        let mut stream = TimeoutStream::new(CheckedStream::new(stream));
        stream.set_read_timeout(Some(IDLE_TIME_MAX));
        stream.set_write_timeout(Some(IDLE_TIME_MAX));
        ready(Ok(Some((server, Box::pin(stream)))))
    };
    let ended = |error: io::Error| tracing::debug!(%error, "a connection from Artisan ended");
    let server = Server::new(listener);
    let serving = serve_again(|| server.serve(&connected, ended));
    stop.run_until_cancelled(serving).await;
}

/// Serves without end: after an error it waits and serves again.
async fn serve_again<F: Future<Output = io::Result<()>>>(serve: impl Fn() -> F) {
    loop {
        if let Err(error) = serve().await {
            tracing::warn!(%error, "cannot accept connections from Artisan; trying again");
            metrics::counter!("simcorp_edge_artisan_accept_errors_total").increment(1);
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn an_error_of_the_listener_does_not_end_the_server() {
        let (calls, serving_again) = (AtomicUsize::new(0), Notify::new());
        let serve = || async {
            if calls.fetch_add(1, Ordering::Relaxed) < 2 {
                return Err(io::Error::from_raw_os_error(24)); // no file descriptor is left
            }
            serving_again.notify_one();
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            () = serve_again(serve) => panic!("the server has ended"),
            () = serving_again.notified() => {}
        }
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }
}
