//! An emulated Modbus TCP machine, read byte by byte by a client that shares no code with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod curve;
mod faults;

use std::time::Duration;

use emulator::{Emulator, Endpoint};
use firmware_profiles::{Profile, check, shipped};
use roast::twin::{PRESETS, Reading, Twin};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The time by which the roast advances from one reading to the next, ms.
const STEP_MS: u64 = 4_000;
/// The seed of every emulated machine, and the time until its first CHARGE, ms.
const SEED: u64 = 7;
const CHARGE_AT_MS: u64 = 20_000;
/// How long a test waits for an answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// The bean temperature of `toper.tkm-sx.plc` and its burner: holding registers of unit 1.
const BT: u16 = 2;
const BURNER: u16 = 1105;

fn profile(id: &str) -> Profile {
    check(shipped(id).unwrap().text).unwrap().profile
}

async fn start(profile: &Profile) -> Emulator {
    let any = "127.0.0.1:0".parse().unwrap();
    Emulator::start(profile, any, STEP_MS, Duration::from_secs(1)).await.unwrap()
}

/// Returns the first readings of the roast that every emulated machine simulates.
fn simulated(readings: usize) -> Vec<Reading> {
    let mut twin = Twin::new(PRESETS[0], SEED, CHARGE_AT_MS);
    let next = |_| {
        twin.advance(STEP_MS);
        twin.reading()
    };
    (0..readings).map(next).collect()
}

/// Returns the bean temperature of a reading as `toper.tkm-sx.plc` shows it: in tenths of a degree.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 400 °C
fn tenths(reading: &Reading) -> u16 {
    (reading.bt_c * 10.0).round() as u16
}

/// Returns the request to read holding registers.
fn read_holding(register: u16, count: u8) -> Vec<u8> {
    let [high, low] = register.to_be_bytes();
    vec![3, high, low, 0, count]
}

/// One Modbus TCP message.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    transaction: u16,
    unit: u8,
    pdu: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    transaction: u16,
}

impl Client {
    async fn connect(emulator: &Emulator) -> Self {
        let Endpoint::Tcp(address) = emulator.endpoint() else { panic!("a serial line") };
        Self { stream: TcpStream::connect(address).await.unwrap(), transaction: 0 }
    }

    /// Sends a request and returns its transaction identifier.
    async fn send(&mut self, unit: u8, pdu: &[u8]) -> u16 {
        self.transaction += 1;
        let length = u16::try_from(pdu.len() + 1).unwrap();
        let mut bytes = self.transaction.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.push(unit);
        bytes.extend(pdu);
        self.stream.write_all(&bytes).await.unwrap();
        self.transaction
    }

    async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = self.stream.read_exact(&mut bytes);
        timeout(ANSWER_WAIT_MAX, read).await.expect("an answer").unwrap();
        bytes
    }

    async fn receive(&mut self) -> Message {
        let head = self.bytes(7).await;
        assert_eq!(head[2..4], [0, 0], "the protocol identifier");
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let pdu = self.bytes(length - 1).await;
        Message { transaction: u16::from_be_bytes([head[0], head[1]]), unit: head[6], pdu }
    }

    /// Sends a request and returns the answer, which must be the next message.
    async fn ask(&mut self, unit: u8, pdu: &[u8]) -> Vec<u8> {
        let transaction = self.send(unit, pdu).await;
        let answer = self.receive().await;
        assert_eq!((answer.transaction, answer.unit), (transaction, unit));
        answer.pdu
    }

    /// Reads one holding register.
    async fn holding(&mut self, unit: u8, register: u16) -> u16 {
        let answer = self.ask(unit, &read_holding(register, 1)).await;
        let [3, 2, high, low] = answer[..] else { panic!("{answer:?}") };
        u16::from_be_bytes([high, low])
    }

    /// Reads the bean temperature of `toper.tkm-sx.plc`, in tenths of a degree.
    async fn bt(&mut self) -> u16 {
        self.holding(1, BT).await
    }
}
