//! Emulates machines: answers requests as the machine of a profile would during a simulated roast,
//! over TCP or a pseudo serial line. For tests, and for profile authors.
//!
//! For Modbus, the emulator shares only the profile with the driver; for the other protocols it
//! also shares the codecs of `protocols`.

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

use contract::EventKind;
use firmware_profiles::address::Table;
use firmware_profiles::{Profile, Transport};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_serial::{SerialPort as _, SerialStream};

pub use panel::{Panel, ServedReading};

/// The `open` flag that keeps an opened line from becoming the controlling terminal of this
/// program.
const O_NOCTTY: i32 = 0o400;

/// A fault that a test injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The machine does not answer.
    Silent,
    /// The answer is delayed by this time.
    Slow(Duration),
    /// The machine refuses the request: a Modbus exception code, or an S7 error class.
    Refuses(u8),
    /// The answer is garbage.
    Garbage,
    /// The connection closes in the middle of the answer.
    HangsUp,
    /// The machine acknowledges writes and does not execute them.
    Ignores,
    /// The line carries another master's request and its answer before ours.
    OtherMaster,
    /// The machine refuses the request with this code after this time, as a gateway does whose unit
    /// does not answer.
    RefusesLate(u8, Duration),
    /// The machine closes the connection after each answer.
    ClosesAfterAnswer,
    /// The machine closes a connection on which no request came for this time. For Modbus and S7.
    ClosesIdle(Duration),
    /// The machine resets a connection at its second request, before the answer. For Modbus TCP.
    ResetsReused,
    /// Half of the answer comes, and the connection stays open.
    CutsShort,
    /// The answer names another unit. For Modbus.
    OtherUnit,
    /// The checksum of the answer is wrong. For Modbus RTU.
    WrongChecksum,
    /// The line returns each request before the answer. For Modbus RTU.
    Echoes,
    /// The line returns each request, and the machine does not answer. For Modbus RTU.
    EchoesOnly,
    /// A probe is open: a machine that sends text sends `NaN` for the second of its channels.
    OpenProbe,
}

/// The address of an emulated machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Serial(PathBuf),
}

/// An emulated machine; it runs until it is dropped.
pub struct Emulator {
    endpoint: Endpoint,
    machine: Machine,
    serving: JoinHandle<()>,
    /// The other end of the pseudo serial line. While it is open, the line does not hang up.
    _far_end: Option<std::fs::File>,
}

/// Faults by Modbus unit; `None` applies to all units, and to all other protocols.
type Faults = Vec<(Option<u8>, Fault)>;
/// The raw values of one reading, by the names of their addresses, and the events.
type PanelValues = (Vec<(String, f64)>, Vec<EventKind>);
type Written = BTreeMap<(u8, Table, u16), u16>;

/// The state that the connections of one machine share.
#[derive(Clone)]
struct Machine {
    panel: Arc<Mutex<Panel>>,
    faults: Arc<Mutex<Faults>>,
    /// The Modbus registers that a client has written, by unit; they keep the written value.
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

    /// Returns all values of the next reading, as the machine sends them.
    fn next_values(&self) -> PanelValues {
        let fault = self.fault(None);
        let mut panel = self.panel();
        let sends_text = matches!(
            panel.profile().transport,
            Transport::Tc4 { .. } | Transport::Kaleido { .. } | Transport::Line { .. }
        );
        let (mut values, marks) = panel.next_values();
        if fault == Some(Fault::OpenProbe)
            && sends_text
            && let Some((_, value)) = values.get_mut(1)
        {
            *value = f64::NAN;
        }
        (values, marks)
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
    /// Starts the machine of `profile`. Its roast advances by `step_ms` with each reading. Machines
    /// that send without being polled send every `push_every`.
    ///
    /// # Errors
    /// When no port is available, or the transport cannot be emulated.
    pub async fn start(
        profile: &Profile,
        listen: SocketAddr,
        step_ms: u64,
        push_every: Duration,
    ) -> anyhow::Result<Self> {
        let machine = Machine {
            panel: Arc::new(Mutex::new(Panel::new(profile, 7, step_ms))),
            faults: Arc::default(),
            written: Arc::default(),
            push_every,
        };
        let transport = profile.transport.clone();
        anyhow::ensure!(!matches!(transport, Transport::Boards {}), "boards have no line");
        if transport.serial().is_some() {
            let (mut near, far) = SerialStream::pair()?;
            let name = far.name().ok_or_else(|| anyhow::anyhow!("the line has no name"))?;
            // A program that opens the line as a serial port locks it; a program that opens it as a
            // file does not.
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
            let endpoint = Endpoint::Serial(name.into());
            return Ok(Self { endpoint, machine, serving, _far_end: Some(far) });
        }
        let listener = TcpListener::bind(listen).await?;
        let endpoint = Endpoint::Tcp(listener.local_addr()?);
        let serving = tokio::spawn(accept(listener, transport, machine.clone()));
        Ok(Self { endpoint, machine, serving, _far_end: None })
    }

    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the readings that clients have read completely, in order.
    #[must_use]
    pub fn served(&self) -> Vec<ServedReading> {
        self.machine.panel().served()
    }

    /// Injects a fault, at one Modbus unit or everywhere, until it is cleared.
    pub fn inject_fault(&self, station: Option<u8>, fault: Fault) {
        let mut faults = self.machine.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.retain(|(at, _)| *at != station);
        faults.push((station, fault));
    }

    /// Clears all faults.
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

/// Serves one connection until it ends.
async fn serve(wire: &mut dyn Wire, transport: &Transport, machine: &Machine) {
    // The client sees how its connection ends; the emulator does not report it.
    let _ = match transport {
        Transport::ModbusTcp { .. } => modbus::serve_tcp(wire, machine).await,
        Transport::ModbusRtu { .. } | Transport::ModbusRtuOverTcp { .. } => {
            modbus::serve_rtu(wire, machine).await
        }
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

/// Waits for the next request; an idle connection ends where the machine has this fault.
async fn next_request<T>(
    machine: &Machine,
    read: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    match machine.fault(None) {
        Some(Fault::ClosesIdle(limit)) => tokio::time::timeout(limit, read).await?,
        _ => read.await,
    }
}

/// Sends an answer, changed as the fault requires. `foreign` is another master's traffic.
async fn answer(
    wire: &mut dyn Wire,
    fault: Option<Fault>,
    bytes: &[u8],
    foreign: impl Future<Output = Vec<u8>>,
) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    match fault {
        Some(Fault::Silent | Fault::EchoesOnly) => Ok(()),
        Some(Fault::Slow(by) | Fault::RefusesLate(_, by)) => {
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
        Some(Fault::ClosesAfterAnswer) => {
            wire.write_all(bytes).await?;
            Err(std::io::ErrorKind::ConnectionAborted.into())
        }
        Some(Fault::CutsShort) => wire.write_all(&bytes[..bytes.len() / 2]).await,
        Some(Fault::OtherMaster) => {
            wire.write_all(&foreign.await).await?;
            wire.write_all(bytes).await
        }
        // The protocol's module has already encoded the fault.
        Some(
            Fault::Refuses(_)
            | Fault::Ignores
            | Fault::ClosesIdle(_)
            | Fault::ResetsReused
            | Fault::OtherUnit
            | Fault::WrongChecksum
            | Fault::Echoes
            | Fault::OpenProbe,
        )
        | None => wire.write_all(bytes).await,
    }
}
