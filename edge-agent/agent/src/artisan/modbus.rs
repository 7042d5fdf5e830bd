//! A Modbus TCP server that shows the machine's registers as the agent has
//! read them last, so that Artisan connects to the gateway in place of the machine. It asks the
//! machine nothing, and it writes nothing: a control is moved through the agent's own rules alone.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use driver::{Image, NoImage};
use firmware_profiles::address::Table;
use tokio::net::TcpListener;
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::Server;
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Past it a new connection is closed.
const CONNECTIONS_MAX: usize = 8;

/// What one connection is served from.
struct Mirror {
    image: Image,
    clock: Clock,
    age_max_ms: u64,
    open: Arc<AtomicUsize>,
}

impl Mirror {
    fn answer(&self, asked: &SlaveRequest<'static>) -> Result<Response, ExceptionCode> {
        let read = |table, start, count| {
            let now = self.clock.mono_ms();
            let read = self.image.read(asked.slave, table, start, count, now, self.age_max_ms);
            read.map_err(|none| match none {
                NoImage::Unknown => ExceptionCode::IllegalDataAddress,
                // As a gateway says it whose machine does not answer.
                NoImage::Stale => ExceptionCode::GatewayTargetDevice,
            })
        };
        let bits = |words: Vec<u16>| words.into_iter().map(|word| word != 0).collect();
        match asked.request {
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
            _ => {
                tracing::warn!(unit = asked.slave, "somebody would write to the machine: refused");
                Err(ExceptionCode::IllegalFunction)
            }
        }
    }
}

impl Service for Mirror {
    type Request = SlaveRequest<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Response, ExceptionCode>>;

    fn call(&self, asked: Self::Request) -> Self::Future {
        ready(self.answer(&asked))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves until `stop`; values older than `age_max_ms` are not shown.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    image: Image,
    clock: Clock,
    age_max_ms: u64,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let open = Arc::<AtomicUsize>::default();
    let connected = |stream, from| {
        let taken = open.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX;
        let mirror = Mirror { image: image.clone(), clock, age_max_ms, open: Arc::clone(&open) };
        if !taken {
            tracing::warn!(%from, "more connections than {CONNECTIONS_MAX}; one is closed");
        }
        // Dropped, it gives its place back.
        ready(Ok(taken.then_some((mirror, stream))))
    };
    let ended = |error: std::io::Error| tracing::debug!(%error, "a connection of Artisan's ended");
    let server = Server::new(listener);
    server.serve_until(&connected, ended, async move { stop.cancelled().await }).await.map(drop)
}
