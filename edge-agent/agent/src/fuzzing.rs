//! What the fuzz targets reach of the agent: its ports, and its readers of bytes from outside, without
//! a machine, a cloud or a configuration. Nothing else may use it.

use std::iter;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use axum::Router;
use contract::{Ack, ChainId, Channel, ClockQuality, Column, EpochMs, Frame, Origin};
use driver::DriverHandles;
use firmware_profiles::address::Table;
use service::config::{ConfigError, Sources};
use service::metrics::{Metrics, MetricsError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use trust::{Algorithm, CONTENT_FRAME, FileKey, SignedMessage, sha256_digest, sign_message};

use crate::agent_state::AgentState;
use crate::artisan::{modbus, websocket};
use crate::clock::GatewayClock;
use crate::config::EdgeConfig;
use crate::journal::salvage::OwnKey;
use crate::journal::{FILE, FetchLimit, Journal, StoredMessage};
use crate::journal_writer::{JournalCommand, ManualEventResult};
use crate::local;

/// The chain of every frame that is made here.
pub const CHAIN: ChainId = ChainId([1; 16]);
/// The registers 0 to this number, exclusive, of unit 1 have values.
pub const REGISTERS: u16 = 10;
const NOW: EpochMs = EpochMs(1_760_000_000_000);
const MACHINE: &str = "acme/leipzig/r-1";
const DEVICE: &str = "device:gw@leipzig";
/// The largest journal here, in MB.
const QUOTA_MB: u64 = 16;

/// Serves the registers of unit 1 to Artisan, with writes switched off, until the future is dropped.
pub async fn serve_artisan_modbus(listener: TcpListener) {
    let share = DriverHandles::default();
    let words: Vec<u16> = (0..REGISTERS).collect();
    for table in [Table::Coil, Table::Discrete, Table::Holding, Table::Input] {
        share.registers.store(1, table, 0, &words, 0);
    }
    let stop = CancellationToken::new();
    modbus::serve(listener, share, GatewayClock::start(), u64::MAX, stop).await;
}

/// Returns the WebSocket port for Artisan. It shows one sample.
pub fn artisan_websocket() -> Router {
    websocket::app(state(), GatewayClock::start(), u64::MAX, CancellationToken::new())
}

/// Returns the local page of an agent that records every event.
///
/// # Errors
/// When its metrics cannot be created.
pub fn local_page() -> Result<Router, MetricsError> {
    let (commands, received) = sync_channel(64);
    thread::spawn(move || {
        for command in received {
            if let JournalCommand::RecordEvent { done, .. } = command {
                let _ = done.send(ManualEventResult::Recorded);
            }
        }
    });
    let (clock, metrics) = (GatewayClock::start(), Metrics::separate()?);
    Ok(local::app(state(), commands, clock, metrics, CancellationToken::new()))
}

/// Returns the state of an agent that has one sample.
fn state() -> AgentState {
    let state = AgentState::new(MACHINE.to_owned());
    state.show_dropped_sample(&[(Channel::Bt, Some(180.5))], NOW.0, 0);
    state
}

/// Reads a configuration file and settings such as `machine.id=r-1`. Returns the configuration as
/// the agent prints it.
///
/// # Errors
/// When the configuration has mistakes.
pub fn read_config(file: &Path, settings: Vec<String>) -> Result<String, ConfigError> {
    let sources = Sources { config: Some(file.to_owned()), set: settings, print_config: true };
    let config: EdgeConfig = service::config::load(&sources, iter::empty())?;
    Ok(service::config::print(&config).unwrap_or_default())
}

/// Applies an acknowledgement to a journal with the frames 1 to `frames` of [`CHAIN`], all unsent.
/// Returns the numbers of those that are unsent afterwards.
///
/// # Errors
/// When the journal cannot be read or written.
pub fn unsent_after(ack: &Ack, frames: u64) -> anyhow::Result<Vec<u64>> {
    let mut journal = Journal::in_memory()?;
    store_frames(&mut journal, frames, Ok)?;
    journal.apply_ack(ack)?;
    let unsent = journal.unsent(0, i64::MAX, FetchLimit::of_frames(usize::MAX), &[])?;
    Ok(unsent.into_iter().map(|frame| frame.number).collect())
}

/// Stores the frames 1 to `frames` as `sign` makes messages of them. Returns their payloads.
fn store_frames(
    journal: &mut Journal,
    frames: u64,
    sign: impl Fn(Vec<u8>) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Vec<Vec<u8>>> {
    /// Of each third frame, so that it is too large for one page.
    const SAMPLES_MAX: u32 = 3_000;
    let origin: Origin = MACHINE.parse()?;
    journal.start_chain(CHAIN, &origin)?;
    let (mut previous, mut first_seq, mut payloads) = (None, 0_u64, Vec::new());
    for number in 1..=frames {
        let samples = if number.is_multiple_of(3) { SAMPLES_MAX } else { 10 };
        let values = (0..samples).map(|i| Some(f64::from(i % 200) + 0.5)).collect();
        let frame = Frame {
            origin: origin.clone(),
            chain: CHAIN,
            number,
            previous,
            boot_id: 1,
            first_seq,
            mono_ms: 0,
            wall: NOW,
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: (0..samples).collect(),
            columns: vec![Column { channel: Channel::Bt, values, quality: Vec::new() }],
            events: Vec::new(),
        };
        let payload = frame.encode();
        let digest = sha256_digest(&payload);
        let message = sign(payload.clone())?;
        journal.append(&frame, digest, StoredMessage::Signed(&message), None, None)?;
        (previous, first_seq) = (Some(digest), first_seq.saturating_add(u64::from(samples)));
        payloads.push(payload);
    }
    Ok(payloads)
}

/// An intact journal, whose bytes a target damages.
pub struct IntactJournal {
    key: FileKey,
    /// The database file.
    pub bytes: Vec<u8>,
    /// The payloads of its frames, in their order.
    pub payloads: Vec<Vec<u8>>,
}

impl IntactJournal {
    /// Writes a journal of `frames` signed frames into the empty folder `folder`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(folder: &Path, frames: u64) -> anyhow::Result<Self> {
        let key = FileKey::generate(DEVICE.parse()?, Algorithm::EdDsa)?;
        let mut journal = Journal::open(folder, QUOTA_MB)?;
        let payloads = store_frames(&mut journal, frames, |payload| {
            Ok(sign_message(&key, CONTENT_FRAME, payload)?)
        })?;
        drop(journal);
        Ok(Self { bytes: std::fs::read(folder.join(FILE))?, payloads, key })
    }

    /// Salvages a damaged journal in `folder`: its database file, and its write-ahead log. Returns
    /// the payloads of the frames that are sent or signed next.
    ///
    /// # Errors
    /// When the folder cannot be written, or the salvage fails.
    pub fn salvage(
        &self,
        folder: &Path,
        database: &[u8],
        log: &[u8],
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let damaged = folder.join("damaged.db");
        std::fs::write(&damaged, database)?;
        std::fs::write(folder.join("damaged.db-wal"), log)?;
        let mut journal = Journal::in_memory()?;
        journal.add_salvaged(folder, &damaged, &OwnKey::of(&self.key))?;
        let mut payloads = Vec::new();
        for frame in journal.unsent(0, i64::MAX, FetchLimit::of_frames(usize::MAX), &[])? {
            payloads.push(SignedMessage::parse(&frame.signed)?.payload().to_vec());
        }
        payloads.extend(journal.unsigned_frames(usize::MAX)?.into_iter().map(|item| item.text));
        Ok(payloads)
    }
}
