//! Starts the agent's threads and tasks, and stops them in order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use contract::{ChainId, KeyId, Origin};
use driver::{ControlQueue, DriverHandles};
use roast::machine_model::MachineModel;
use service::connections::{BoundedListener, ConnectionLimits, raise_file_limit};
use service::tasks::Tasks;
use service::{http, shutdown};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use trust::{FileKey, Signer, SocketKey};

use crate::agent_state::AgentState;
use crate::clock::GatewayClock;
use crate::config::EdgeConfig;
use crate::identity::{self, Identity, renewal};
use crate::journal::{FetchLimit, Journal, JournalError};
use crate::journal_opener::JournalOpening;
use crate::journal_writer::{JournalCommand, JournalWriter};
use crate::recorder::{JournalPosition, Recorder};
use crate::trusted_clock::TrustedClock;
use crate::uplink_supervisor::UplinkSupervisor;
use crate::{artisan, local, machine, sampler, watchdog};

/// How many samples and requests may wait for the journal writer: over a minute of samples at 10
/// Hz.
const COMMANDS_MAX: usize = 1024;
const LIVE_MAX: usize = 64;
/// The bounds on the connections of the local page.
const PAGE_CONNECTIONS: ConnectionLimits = ConnectionLimits::new(32).with_quarter_per_peer();
/// The files that the agent may need at once: the connections of all its ports, and 64 for the
/// machine, the journal and the uplink.
const FILES_NEEDED: usize = PAGE_CONNECTIONS.total
    + artisan::modbus::CONNECTIONS.total
    + artisan::websocket::CONNECTIONS.total
    + 64;
/// How long the cloud may take to acknowledge a played recording.
const DELIVERY_TIME_MAX: Duration = Duration::from_mins(2);
/// How long the tasks may take to end at the stop: a request to a fleet service that does not answer
/// takes longer, and systemd waits for 30 s in all.
const TASKS_STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// When the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCondition {
    /// On a signal.
    Stopped,
    /// When a recording has been played and the cloud has acknowledged all of it, or on a signal.
    Delivered,
}

/// Returns the origin that the configuration names.
pub fn origin(config: &EdgeConfig) -> anyhow::Result<Origin> {
    config.origin().context("the configuration names no machine")
}

/// Returns the key id of the device that the configuration names.
pub fn key_id(config: &EdgeConfig) -> anyhow::Result<KeyId> {
    config.key_id().context("the configuration names no device")
}

/// How long a signature may take. After that the frame is signed later, since the journal writer
/// has other work.
const SIGN_TIME_MAX: Duration = Duration::from_secs(1);

/// Opens this gateway's key: behind the signer's socket if one is configured, else in a file.
pub fn signer(config: &EdgeConfig, key_id: &KeyId) -> anyhow::Result<Arc<dyn Signer>> {
    let identity = &config.identity;
    if identity.uses_signer_socket() {
        let socket = &identity.signer_socket;
        return Ok(Arc::new(SocketKey::new(socket, key_id.clone(), SIGN_TIME_MAX)));
    }
    Ok(Arc::new(FileKey::open(&identity.key_file, key_id.clone())?))
}

/// Runs the agent until `until` or a signal.
pub fn run(config: EdgeConfig, until: StopCondition) -> anyhow::Result<()> {
    config.log.start();
    // One worker besides the main thread: the agent mostly waits, and memory is scarce.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(2)
        .thread_stack_size(512 * 1024)
        .enable_all()
        .build()?;
    runtime.block_on(run_agent(config, until))
}

async fn run_agent(config: EdgeConfig, until: StopCondition) -> anyhow::Result<()> {
    let clock = GatewayClock::start();
    let _ = raise_file_limit(FILES_NEEDED);
    let (origin, key_id) = (origin(&config)?, key_id(&config)?);
    let metrics = service::metrics::Metrics::install()?;
    let stop = shutdown::on_signal()?;
    let tasks = Tasks::new(stop.clone());
    let listener = http::listen(config.local.listen, "local.listen").await?;
    let signer = signer(&config, &key_id)?;
    let folder = identity::folder(&config);
    let time = TrustedClock::open(&folder, clock);
    // Samples are stored even if the identity cannot be read.
    let identity = Identity::open(&folder, signer.clone(), time).unwrap_or_else(|error| {
        tracing::error!(%error, "the identity cannot be read; no authentication to the cloud");
        None
    });
    let state = AgentState::new(origin.to_string());
    let (commands, command_receiver) = sync_channel(COMMANDS_MAX);
    let (live, live_in) = mpsc::channel(LIVE_MAX);
    // The sampler starts first: while a large journal is being opened, samples wait in the queue.
    let share = driver_handles(&config);
    let sampling =
        start_sampler(&config, clock, commands.clone(), &state, share.clone(), stop.clone())?;
    let writer = open_journal_writer(&config, &origin, signer, clock, &state, live)?;
    let origins = writer.watch_origins();
    let writer_thread = start_journal_writer(writer, command_receiver, stop.clone())?;
    if let Some(identity) = identity.clone() {
        let share = f64::from(u32::from_le_bytes(trust::random()?)) / f64::from(u32::MAX);
        let parts = (identity, config.clone(), state.clone(), stop.clone());
        tasks.spawn_restarting("certificate-renewal", move || {
            let (identity, config, state, stop) = parts.clone();
            renewal::run(identity, config, state, share, stop)
        });
    }
    let sends = config.uplink.is_configured()
        || identity.as_ref().is_some_and(|i| i.enrolled().granted.broker.is_some());
    let link =
        UplinkSupervisor { config: config.clone(), identity, key_id: key_id.clone(), origins };
    tasks.spawn("uplink", link.run(commands.clone(), live_in, state.clone(), stop.clone()));
    if let Some(listen) = config.artisan.modbus {
        let listener = http::listen(listen, "artisan.modbus").await?;
        let age_max_ms = config.sampling.period_ms.saturating_mul(3);
        let stop = stop.clone();
        serve_restarting(&tasks, "artisan-modbus", listener, move |listener| {
            let (share, stop) = (share.clone(), stop.clone());
            async move {
                artisan::modbus::serve(listener, share, clock, age_max_ms, stop).await;
                Ok(())
            }
        })?;
    }
    if let Some(listen) = config.artisan.websocket {
        let listener = http::listen(listen, "artisan.websocket").await?;
        let age_max_ms =
            config.sampling.period_ms.saturating_mul(3).saturating_add(config.sampling.frame_ms);
        let app = artisan::websocket::app(state.clone(), clock, age_max_ms, stop.clone());
        let limits = artisan::websocket::CONNECTIONS;
        serve_http(&tasks, "artisan-websocket", (listener, limits), app, &stop)?;
    }
    let app = local::app(state.clone(), commands.clone(), clock, metrics.clone(), stop.clone());
    serve_http(&tasks, "local-page", (listener, PAGE_CONNECTIONS), app, &stop)?;
    tasks.spawn("metrics", upkeep(metrics, stop.clone()));
    let idle_ms = config.sampling.period_ms.max(config.sampling.frame_ms);
    tasks.spawn("watchdog", watchdog::run(state.clone(), clock, idle_ms, stop.clone()));
    watchdog::ready();
    tracing::info!(
        %origin, kid = %key_id, listen = %config.local.listen, version = env!("CARGO_PKG_VERSION"),
        "the agent is running"
    );

    let delivered = (until == StopCondition::Delivered && sends).then_some(&commands);
    let ended = wait_for_end(sampling, delivered, &stop).await;
    stop.cancel();
    // Also after an error: the samples are stored first; then the rest stops.
    let _ = commands.send(JournalCommand::Stop);
    tokio::task::spawn_blocking(move || writer_thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the journal writer panicked"))?;
    if tokio::time::timeout(TASKS_STOP_TIME_MAX, tasks.wait()).await.is_err() {
        tracing::warn!("stopping without the tasks that have not ended");
    }
    if let Some(failure) = tasks.failure() {
        anyhow::bail!("{failure}; systemd starts the agent again");
    }
    ended?;
    tracing::info!("stopped");
    Ok(())
}

/// Waits until the agent must stop: on a signal, or when a recording has been played and, with
/// `delivered`, the cloud has acknowledged all of it.
///
/// # Errors
/// When the sampler panicked, or the cloud does not acknowledge the recording.
async fn wait_for_end(
    sampling: JoinHandle<sampler::SamplerEnd>,
    delivered: Option<&SyncSender<JournalCommand>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let played = tokio::task::spawn_blocking(move || sampling.join());
    let ended = played.await?.map_err(|_| anyhow::anyhow!("the sampler thread panicked"))?;
    if ended == sampler::SamplerEnd::Played {
        tracing::info!("the recording has been played");
        match delivered {
            Some(commands) => wait_until_delivered(commands, stop).await?,
            None => stop.cancelled().await,
        }
    }
    Ok(())
}

/// Opens the journal, and creates the journal writer with its recorder. If the disk cannot be used
/// now or the journal is damaged, the writer starts with a journal in memory, and another thread
/// opens or salvages the one on disk.
fn open_journal_writer(
    config: &EdgeConfig,
    origin: &Origin,
    signer: Arc<dyn Signer>,
    clock: GatewayClock,
    state: &AgentState,
    live: mpsc::Sender<crate::journal::OutgoingFrame>,
) -> anyhow::Result<JournalWriter> {
    let (folder, quota_mb) = (config.journal.folder.clone(), config.journal.quota_mb);
    let fresh = ChainId(trust::random()?);
    let previous = config.previous_origin(origin);
    let previous = previous.as_ref();
    let opened = Journal::open_after_salvage(&folder, quota_mb, clock.wall())
        .and_then(|journal| load_position(journal, origin, previous, fresh));
    let ((journal, position, learned), problem) = match opened {
        Ok(loaded) => (loaded, None),
        Err(problem) if problem.is_passing() => {
            tracing::error!(%problem, "the journal cannot be opened; samples are kept in memory");
            (load_position(Journal::in_memory()?, origin, previous, fresh)?, Some(problem))
        }
        Err(problem) => return Err(problem.into()),
    };
    let s = &config.sampling;
    let boot = u64::from_le_bytes(trust::random()?);
    let recorder = Recorder::new(
        origin.clone(),
        boot,
        s.period_ms,
        s.frame_ms,
        config.infers_events(),
        learned,
        position,
    )
    .with_profile(config.profile_digest())
    .with_kernel_clock(clock.kernel_at_start());
    let opening = JournalOpening { folder, quota_mb, signer, clock };
    let mut writer =
        JournalWriter::new(recorder, journal, opening, state.clone(), live, s.frame_ms);
    writer.resume()?;
    writer.publish_origins();
    if let Some(problem) = problem {
        writer.start_opening(&problem);
    }
    Ok(writer)
}

/// Loads what the recorder continues from: the journal's position, and what was learned.
fn load_position(
    journal: Journal,
    origin: &Origin,
    previous: Option<&Origin>,
    fresh: ChainId,
) -> Result<(Journal, JournalPosition, MachineModel), JournalError> {
    let position = journal.load_or_start_chain(origin, fresh)?;
    let learned = match previous {
        Some(previous) => journal.learned_since_rename(previous)?,
        None => journal.learned()?,
    };
    Ok((journal, position, learned))
}

/// Starts the thread of the journal writer. If it panics, the agent stops, and systemd starts it
/// again: without this thread nothing would be stored.
fn start_journal_writer(
    writer: JournalWriter,
    commands: Receiver<JournalCommand>,
    stop: CancellationToken,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("journal-writer".to_owned()).spawn(move || {
        let _stops_all = stop.drop_guard();
        writer.run(&commands);
    })
}

/// Returns what other tasks may use of the machine. It includes the queue of guarded writes only if
/// `artisan.writes` is set and the profile can be loaded; each write must also be allowed by the
/// profile.
fn driver_handles(config: &EdgeConfig) -> DriverHandles {
    let checked = config.artisan.writes.then(|| config.machine.profile.load().ok()).flatten();
    let timeout_ms = config.machine.profile.timeout_ms;
    let controls = checked.map(|checked| {
        let ms = timeout_ms.unwrap_or(checked.profile.timing.timeout_ms);
        ControlQueue::new(&checked.profile, Duration::from_millis(ms))
    });
    DriverHandles { controls, ..DriverHandles::default() }
}

fn start_sampler(
    config: &EdgeConfig,
    clock: GatewayClock,
    commands: SyncSender<JournalCommand>,
    state: &AgentState,
    share: DriverHandles,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<sampler::SamplerEnd>> {
    let config = config.clone();
    // Opened once here, so that an invalid recording fails the start and not only the thread.
    drop(machine::open(&config, share.clone())?);
    let state = state.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("sampler".to_owned()).spawn(move || {
        let Ok(driver) = machine::open(&config, share) else { return sampler::SamplerEnd::Stopped };
        runtime.block_on(sampler::run(
            driver,
            config.sampling.period_ms,
            clock,
            commands,
            state,
            stop,
        ))
    });
    Ok(thread?)
}

/// Serves HTTP on a port until `stop`, and again after a panic.
fn serve_http(
    tasks: &Tasks,
    name: &'static str,
    (listener, limits): (TcpListener, ConnectionLimits),
    app: axum::Router,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let stop = stop.clone();
    serve_restarting(tasks, name, listener, move |listener| {
        http::serve(BoundedListener::new(listener, limits), app.clone(), stop.clone())
    })
}

/// Serves a port with `serve`, and again after a panic: the port stays open meanwhile. After an
/// error the agent samples on without it.
fn serve_restarting<F>(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    serve: impl Fn(TcpListener) -> F + Send + 'static,
) -> std::io::Result<()>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = listener.into_std()?;
    tasks.spawn_restarting(name, move || {
        let serving = listener.try_clone().and_then(TcpListener::from_std).map(&serve);
        async move {
            let ended = async { serving?.await }.await;
            if let Err(error) = ended {
                tracing::error!(%error, "a listener of the gateway failed");
            }
        }
    });
    Ok(())
}

async fn upkeep(metrics: service::metrics::Metrics, stop: CancellationToken) {
    let mut every = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => metrics.upkeep(),
        }
    }
}

/// Waits until the cloud has acknowledged every frame.
///
/// # Errors
/// When that takes longer than [`DELIVERY_TIME_MAX`].
async fn wait_until_delivered(
    commands: &SyncSender<JournalCommand>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let wait = async {
        loop {
            let (answer, waiting) = tokio::sync::oneshot::channel();
            let sent = commands.try_send(JournalCommand::ReadUnsent {
                after: 0,
                before: i64::MAX,
                room: FetchLimit::of_frames(1),
                except: Vec::new(),
                answer,
            });
            if sent.is_ok() && waiting.await.is_ok_and(|unsent| unsent.is_empty()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    // The last samples may not be in a frame yet.
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        done = tokio::time::timeout(DELIVERY_TIME_MAX, wait) => {
            done.context("the cloud did not acknowledge all frames; they are stored and sent later")
        }
    }
}

#[cfg(test)]
mod tests;
