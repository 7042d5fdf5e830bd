//! Emulated machines: a profile, a simulated roast, and the bytes that such a machine would answer,
//! over TCP or a pseudo serial line. For tests, and for profile authors.
//!
//! Shares the profile and nothing else with the drivers of Modbus; of the other protocols the
//! codecs of `protocols` too.

mod modbus;
mod panel;
mod polled_text;
mod push_stream;
mod s7;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firmware_profiles::address::Table;
use firmware_profiles::{Profile, Transport};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_serial::{SerialPort as _, SerialStream};

pub use panel::{Panel, ServedReading};

/// Opening a line must not make it this program's terminal.
const O_NOCTTY: i32 = 0o400;

/// A fault to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer.
    Silent,
    /// An answer, this much later.
    Slow(Duration),
    /// The machine refuses: a Modbus exception code, an S7 error class.
    Refuses(u8),
    /// Bytes that mean nothing.
    Garbage,
    /// The connection ends in the middle of the answer.
    HangsUp,
    /// A write is answered as done, and nothing has moved.
    Ignores,
    /// Another master's request and its answer lie on the line before ours.
    OtherMaster,
}

/// Where an emulated machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Serial(PathBuf),
}

/// A machine that runs until it is dropped.
pub struct Emulator {
    place: Endpoint,
    machine: Machine,
    serving: JoinHandle<()>,
    /// Our end of the pseudo line's other side: while it is open the line does not hang up.
    _far_end: Option<std::fs::File>,
}

/// By Modbus unit; `None` is every unit, and every other protocol.
type Faults = Vec<(Option<u8>, Fault)>;
type Written = BTreeMap<(u8, Table, u16), u16>;

/// What the connections of one machine share.
#[derive(Clone)]
struct Machine {
    panel: Arc<Mutex<Panel>>,
    faults: Arc<Mutex<Faults>>,
    /// Modbus registers that a client has written, by unit: they keep the written value.
    written: Arc<Mutex<Written>>,
    /// The interval between two pushed messages.
    push_every: Duration,
}

impl Machine {
    fn panel(&self) -> MutexGuard<'_, Panel> {
        self.panel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, station: Option<u8>) -> Option<Fault> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let hit = faults.iter().find(|(at, _)| at.is_none() || *at == station);
        hit.map(|(_, fault)| *fault)
    }
}

/// A connection of either kind.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Emulator {
    /// Starts a machine of `profile` whose roast goes on by `step_ms` from one reading to the next.
    /// Machines that send without being polled do so every `tells_every`.
    ///
    /// # Errors
    /// When there is no port, or the transport cannot be emulated.
    pub async fn start(
        profile: &Profile,
        listen: SocketAddr,
        step_ms: u64,
        tells_every: Duration,
    ) -> anyhow::Result<Self> {
        let machine = Machine {
            panel: Arc::new(Mutex::new(Panel::new(profile, 7, step_ms))),
            faults: Arc::default(),
            written: Arc::default(),
            push_every: tells_every,
        };
        let transport = profile.transport.clone();
        anyhow::ensure!(!matches!(transport, Transport::Boards {}), "boards have no line");
        if transport.serial().is_some() {
            let (mut near, far) = SerialStream::pair()?;
            let name = far.name().ok_or_else(|| anyhow::anyhow!("the line has no name"))?;
            // A serial port is locked by whoever opened it as one; a file is not.
            drop(far);
            let far = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(O_NOCTTY)
                .open(&name)?;
            let serving = tokio::spawn({
                let machine = machine.clone();
                async move {
                    loop {
                        serve(&mut near, &transport, &machine).await;
                        tokio::task::yield_now().await;
                    }
                }
            });
            let place = Endpoint::Serial(name.into());
            return Ok(Self { place, machine, serving, _far_end: Some(far) });
        }
        let listener = TcpListener::bind(listen).await?;
        let place = Endpoint::Tcp(listener.local_addr()?);
        let serving = tokio::spawn(accept(listener, transport, machine.clone()));
        Ok(Self { place, machine, serving, _far_end: None })
    }

    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.place
    }

    /// What was read of it, reading by reading.
    #[must_use]
    pub fn served(&self) -> Vec<ServedReading> {
        self.machine.panel().served()
    }

    /// From now on this goes wrong, at one Modbus unit or everywhere.
    pub fn inject_fault(&self, station: Option<u8>, fault: Fault) {
        let mut faults = self.machine.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.retain(|(at, _)| *at != station);
        faults.push((station, fault));
    }

    /// From now on nothing goes wrong.
    pub fn clear_faults(&self) {
        self.machine.faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn accept(listener: TcpListener, transport: Transport, machine: Machine) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let (transport, machine) = (transport.clone(), machine.clone());
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            machine.panel().repeat_last();
            serve(&mut stream, &transport, &machine).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Speaks on one connection until it ends.
async fn serve(wire: &mut dyn Wire, transport: &Transport, machine: &Machine) {
    // How a connection ends is the other side's business.
    let _ = match transport {
        Transport::ModbusTcp { .. } => modbus::serve_tcp(wire, machine).await,
        Transport::ModbusRtu { .. } => modbus::serve_rtu(wire, machine).await,
        Transport::S7 { .. } => s7::serve(wire, machine).await,
        Transport::Tc4 { .. } => polled_text::serve_tc4(wire, machine).await,
        Transport::Kaleido { .. } => polled_text::serve_kaleido(wire, machine).await,
        Transport::Hottop { .. } => {
            push_stream::push_values(wire, machine, push_stream::hottop).await
        }
        Transport::Santoker { .. } => {
            push_stream::push_values(wire, machine, push_stream::santoker).await
        }
        Transport::Line { format: firmware_profiles::LineFormat::Jsonl, .. } => {
            push_stream::push_values(wire, machine, push_stream::json).await
        }
        Transport::Line { .. } => push_stream::push_csv(wire, machine).await,
        Transport::Boards {} => Ok(()),
    };
}

/// Sends an answer, or what the fault makes of it.
async fn answer(
    wire: &mut dyn Wire,
    fault: Option<Fault>,
    bytes: &[u8],
    foreign: impl Future<Output = Vec<u8>>,
) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    match fault {
        Some(Fault::Silent) => Ok(()),
        Some(Fault::Slow(by)) => {
            tokio::time::sleep(by).await;
            wire.write_all(bytes).await
        }
        Some(Fault::Garbage) => {
            let noise: Vec<u8> = bytes.iter().map(|b| b.wrapping_mul(31) ^ 0x5a).collect();
            wire.write_all(&noise).await
        }
        Some(Fault::HangsUp) => {
            wire.write_all(&bytes[..bytes.len() / 2]).await?;
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        Some(Fault::OtherMaster) => {
            wire.write_all(&foreign.await).await?;
            wire.write_all(bytes).await
        }
        // The protocol has made its refusal already.
        Some(Fault::Refuses(_) | Fault::Ignores) | None => wire.write_all(bytes).await,
    }
}
