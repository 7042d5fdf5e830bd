//! `simcorp serve`: ports first, then database, then services; and the way back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use contract::EpochMs;
use service::metrics::Metrics;
use service::shutdown::{self, CancellationToken};
use service::{http, log};
use store::Store;
use tokio_util::task::TaskTracker;

use crate::broker;
use crate::config::CloudConfig;

/// Everything must be written and answered by then.
const STOP_TIME_MAX: Duration = Duration::from_secs(25);
const PARTITIONS_EVERY: Duration = Duration::from_hours(6);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceName {
    Kernel,
    Ingestion,
    Analytics,
    Reports,
    Dispatcher,
    Console,
}

/// The wall clock.
#[allow(clippy::disallowed_methods)] // this is where time enters
pub fn now() -> EpochMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    EpochMs(i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX))
}

/// SQLite makes its file, not the folder around it.
pub fn make_data_folder(config: &CloudConfig) -> anyhow::Result<()> {
    if config.database.url.is_set() {
        return Ok(());
    }
    let folder = &config.database.data;
    std::fs::create_dir_all(folder).with_context(|| {
        format!("cannot make the data folder {} (database.data)", folder.display())
    })
}

/// Migrates where that is configured, and otherwise checks that program and database fit.
pub async fn prepare_schema(config: &CloudConfig, store: &Store) -> anyhow::Result<()> {
    if config.database.migrate.unwrap_or(!store.is_postgres()) {
        store.migrate_up().await?;
    }
    store.check_schema().await?;
    Ok(())
}

/// What is served, and what all of it shares.
struct Serving {
    metrics: Metrics,
    tracker: TaskTracker,
    stop: CancellationToken,
    servers: tokio::task::JoinSet<std::io::Result<()>>,
}

/// A service's routes and what its shell needs.
type Routes = (axum::Router, utoipa::openapi::OpenApi, service::health::Health);

impl Serving {
    fn serve(&mut self, listener: tokio::net::TcpListener, (router, openapi, health): Routes) {
        tracing::info!(listen = ?listener.local_addr().ok(), "{} is ready", health.service());
        let app = http::shell(router, openapi, health, self.metrics.clone());
        self.servers.spawn(http::serve(listener, app, self.stop.clone()));
    }

    /// Waits for the signal to stop, then until everything is written and answered.
    async fn until_stopped(mut self) -> anyhow::Result<()> {
        self.stop.cancelled().await;
        self.tracker.close();
        let drain = async {
            while let Some(ended) = self.servers.join_next().await {
                ended??;
            }
            self.tracker.wait().await;
            anyhow::Ok(())
        };
        match tokio::time::timeout(STOP_TIME_MAX, drain).await {
            Ok(done) => done?,
            Err(_) => {
                tracing::warn!(limit_s = STOP_TIME_MAX.as_secs(), "stopped without having drained");
            }
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Runs the named services, or all.
pub async fn serve(mut config: CloudConfig, names: &[ServiceName]) -> anyhow::Result<()> {
    log::LogConfig::start(&config.log);
    let runs = |name: ServiceName| names.is_empty() || names.contains(&name);
    // The first provider wins; there is only one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut serving = Serving {
        metrics: Metrics::install()?,
        tracker: TaskTracker::new(),
        stop: shutdown::on_signal()?,
        servers: tokio::task::JoinSet::new(),
    };
    let embeds = config.embeds_broker() && runs(ServiceName::Ingestion);
    if config.embeds_broker() {
        config.mqtt.host = config.broker.listen.ip().to_string();
        config.mqtt.port = config.broker.listen.port();
    }
    let mut listeners = listen(&config, &runs).await?;
    let auth = config.callers()?;
    let token = config.auth.service_token.clone();
    let clock: Arc<dyn Fn() -> EpochMs + Send + Sync> = Arc::new(now);
    let mut take = |name: ServiceName| {
        let at = listeners.iter().position(|(known, _)| *known == name)?;
        Some(listeners.swap_remove(at).1)
    };

    let kernel = take(ServiceName::Kernel);
    let ingestion = take(ServiceName::Ingestion);
    let mut database = None;
    if kernel.is_some() || ingestion.is_some() {
        if embeds {
            broker::start(&config.broker)?;
        }
        make_data_folder(&config)?;
        let opened = Store::open(&config.database).await?;
        prepare_schema(&config, &opened).await?;
        database = Some(opened);
    }
    if let Some((listener, database)) = kernel.zip(database.clone()) {
        let (tracker, stop) = (&serving.tracker, serving.stop.clone());
        let store = kernel::KernelStore::new(database.clone());
        let auth = config.kernel_callers(store, clock.clone())?;
        let k = kernel::start(&config.kernel, auth, database, clock.clone(), tracker, stop);
        serving.serve(listener, (k.router, k.openapi, k.health));
    }
    if let Some((listener, database)) = ingestion.zip(database) {
        let (tracker, stop) = (&serving.tracker, &serving.stop);
        let keep = config.database.retention_days;
        tracker.spawn(keep_partitions(database.clone(), keep, stop.clone()));
        let (section, mqtt) = (&config.ingestion, &config.mqtt);
        let i = ingestion::start(section, mqtt, auth.clone(), database, &clock, tracker, stop)?;
        serving.serve(listener, (i.router, i.openapi, i.health));
    }
    let callers = (auth, &token);
    if let Some(listener) = take(ServiceName::Analytics) {
        let a = analytics::start(&config.analytics, callers.clone(), clock.clone())?;
        serving.serve(listener, (a.router, a.openapi, a.health));
    }
    if let Some(listener) = take(ServiceName::Reports) {
        let (tracker, stop) = (&serving.tracker, &serving.stop);
        let r = reports::start(&config.reports, callers.clone(), &clock, tracker, stop)?;
        serving.serve(listener, (r.router, r.openapi, r.health));
    }
    if let Some(listener) = take(ServiceName::Dispatcher) {
        let (tracker, stop) = (&serving.tracker, &serving.stop);
        let (section, mqtt) = (&config.dispatcher, &config.mqtt);
        let d = dispatcher::start(section, mqtt, callers, clock.clone(), tracker, stop)?;
        serving.serve(listener, (d.router, d.openapi, d.health));
    }
    if let Some(listener) = take(ServiceName::Console) {
        let c = console::start(&config.console, clock, serving.stop.clone())?;
        serving.serve(listener, (c.router, c.openapi, c.health));
    }
    tokio::spawn(upkeep(serving.metrics.clone(), serving.stop.clone()));
    serving.until_stopped().await
}

/// Takes all ports before anything is started, so that a busy one is a clear sentence.
async fn listen(
    config: &CloudConfig,
    runs: &impl Fn(ServiceName) -> bool,
) -> anyhow::Result<Vec<(ServiceName, tokio::net::TcpListener)>> {
    let wanted = [
        (ServiceName::Kernel, config.kernel.listen, "kernel.listen"),
        (ServiceName::Ingestion, config.ingestion.listen, "ingestion.listen"),
        (ServiceName::Analytics, config.analytics.listen, "analytics.listen"),
        (ServiceName::Reports, config.reports.listen, "reports.listen"),
        (ServiceName::Dispatcher, config.dispatcher.listen, "dispatcher.listen"),
        (ServiceName::Console, config.console.listen, "console.listen"),
    ];
    let mut listeners = Vec::with_capacity(wanted.len());
    for (name, address, field) in wanted.into_iter().filter(|(name, ..)| runs(*name)) {
        listeners.push((name, http::listen(address, field).await?));
    }
    Ok(listeners)
}

/// Makes the partitions to come and drops those past their time.
async fn keep_partitions(store: Store, retention_days: u32, stop: CancellationToken) {
    let kept_ms = i64::from(retention_days) * 86_400_000;
    loop {
        if let Err(error) = store.ensure_partitions(now()).await {
            tracing::warn!(%error, "could not make partitions; frames go to the default one");
        }
        if kept_ms > 0
            && let Err(error) = store.drop_frames(now().plus(-kept_ms)).await
        {
            tracing::warn!(%error, "could not drop old frames; the next pass tries again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PARTITIONS_EVERY) => {}
        }
    }
}

async fn upkeep(metrics: Metrics, stop: CancellationToken) {
    let mut every = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => metrics.upkeep(),
        }
    }
}
