//! The connection to a machine: TCP or a serial line, opened when needed and closed on any error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use firmware_profiles::{Parity, Serial};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_serial::{ClearBuffer, SerialPort as _, SerialPortBuilderExt as _, SerialStream};

use crate::DriverError;

/// The address of a machine.
#[derive(Debug, Clone)]
pub enum Endpoint {
    Tcp { host: String, port: u16 },
    Serial { device: PathBuf, serial: Serial },
}

/// Both kinds of connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug {}
impl Stream for TcpStream {}
impl Stream for SerialStream {}

impl Endpoint {
    pub fn name(&self) -> String {
        match self {
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Serial { device, .. } => device.display().to_string(),
        }
    }

    /// Opens the connection.
    ///
    /// # Errors
    /// When the machine cannot be reached, or not within `limit`.
    pub async fn open(&self, limit: Duration) -> Result<Box<dyn Stream>, DriverError> {
        let unreachable = |error| DriverError::Unreachable(self.name(), error);
        match self {
            Self::Tcp { host, port } => {
                let connect = TcpStream::connect((host.as_str(), *port));
                let Ok(stream) = tokio::time::timeout(limit, connect).await else {
                    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                    return Err(DriverError::NotAccepted(self.name(), limit_ms));
                };
                let stream = stream.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                Ok(Box::new(stream))
            }
            Self::Serial { device, serial } => {
                leave_signals_up(device);
                let stream = open_serial(&device.display().to_string(), serial)
                    .map_err(|e| unreachable(e.into()))?;
                // Bytes sent to the program that had the line before must not be read as our
                // answer.
                for _ in 0..2 {
                    stream.clear(ClearBuffer::All).map_err(|e| unreachable(e.into()))?;
                    tokio::time::sleep(self.frame_gap().saturating_mul(2)).await;
                }
                stream.clear(ClearBuffer::Input).map_err(|e| unreachable(e.into()))?;
                Ok(Box::new(stream))
            }
        }
    }

    /// Returns the silence that ends a frame on a serial line: 3.5 characters, at least
    /// 1.75 ms. Zero for TCP.
    pub fn frame_gap(&self) -> Duration {
        match self {
            Self::Tcp { .. } => Duration::ZERO,
            Self::Serial { serial, .. } => {
                let baud = u64::from(serial.baud.max(1));
                let micros = 38_500_000_u64.checked_div(baud).unwrap_or_default();
                Duration::from_micros(micros.max(1_750))
            }
        }
    }
}

/// Clears HUPCL, so that closing the line does not drop its control signals. Some boards (every
/// Arduino) restart when the signals drop, so reopening a line after an error would restart the
/// machine. Errors here are ignored: opening the line then reports them.
fn leave_signals_up(device: &Path) {
    use rustix::fs::{Mode, OFlags};
    use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let _ = rustix::fs::open(device, flags, Mode::empty()).and_then(|line| {
        let mut modes = tcgetattr(&line)?;
        modes.control_modes.remove(ControlModes::HUPCL);
        tcsetattr(&line, OptionalActions::Now, &modes)
    });
}

/// Opens the line exclusively, so that two programs never use it at once.
fn open_serial(device: &str, serial: &Serial) -> tokio_serial::Result<SerialStream> {
    let data_bits = if serial.data_bits == 7 {
        tokio_serial::DataBits::Seven
    } else {
        tokio_serial::DataBits::Eight
    };
    let stop_bits = if serial.stop_bits == 2 {
        tokio_serial::StopBits::Two
    } else {
        tokio_serial::StopBits::One
    };
    let parity = match serial.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Odd => tokio_serial::Parity::Odd,
        Parity::Even => tokio_serial::Parity::Even,
    };
    let builder = tokio_serial::new(device, serial.baud);
    builder.data_bits(data_bits).stop_bits(stop_bits).parity(parity).open_native_async()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};

    #[tokio::test]
    async fn a_closed_line_keeps_its_control_signals() {
        let (_near, far) = SerialStream::pair().unwrap();
        let device = PathBuf::from(far.name().unwrap());
        drop(far); // A serial port is locked by the program that opened it as one.
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let line = rustix::fs::open(&device, flags, Mode::empty()).unwrap();
        let mut modes = tcgetattr(&line).unwrap();
        modes.control_modes |= ControlModes::HUPCL;
        tcsetattr(&line, OptionalActions::Now, &modes).unwrap();
        leave_signals_up(&device);
        assert!(!tcgetattr(&line).unwrap().control_modes.contains(ControlModes::HUPCL));
        let serial = Serial { baud: 9600, data_bits: 8, parity: Parity::None, stop_bits: 1 };
        let opened = Endpoint::Serial { device, serial }.open(Duration::from_secs(1)).await;
        assert!(opened.is_ok(), "{opened:?}");
        assert!(!tcgetattr(&line).unwrap().control_modes.contains(ControlModes::HUPCL));
    }
}
