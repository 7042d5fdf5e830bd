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
    Ingestion,
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

/// Runs the named services, or all.
pub async fn serve(mut config: CloudConfig, names: &[ServiceName]) -> anyhow::Result<()> {
    log::LogConfig::start(&config.log);
    let runs = |name: ServiceName| names.is_empty() || names.contains(&name);
    // The first provider wins; there is only one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let metrics = Metrics::install()?;
    let stop = shutdown::on_signal()?;
    let tracker = TaskTracker::new();
    let mut serving = tokio::task::JoinSet::new();

    let embeds = config.embeds_broker() && runs(ServiceName::Ingestion);
    if config.embeds_broker() {
        config.mqtt.host = config.broker.listen.ip().to_string();
        config.mqtt.port = config.broker.listen.port();
    }
    if runs(ServiceName::Ingestion) {
        let listener = http::listen(config.ingestion.listen, "ingestion.listen").await?;
        if embeds {
            broker::start(&config.broker)?;
        }
        make_data_folder(&config)?;
        let database = Store::open(&config.database).await?;
        prepare_schema(&config, &database).await?;
        let org = config.org().context("auth.dev_org is not set")?;
        let clock: ingestion::Clock = Arc::new(now);
        let keep = config.database.retention_days;
        tracker.spawn(keep_partitions(database.clone(), keep, stop.clone()));
        let started = ingestion::start(
            &config.ingestion,
            &config.mqtt,
            org,
            database,
            &clock,
            &tracker,
            &stop,
        )?;
        let app = http::shell(started.router, started.openapi, started.health, metrics.clone());
        serving.spawn(http::serve(listener, app, stop.clone()));
        tracing::info!(listen = %config.ingestion.listen, "ingestion is ready");
    }
    if runs(ServiceName::Console) {
        let listener = http::listen(config.console.listen, "console.listen").await?;
        let console = console::start(&config.console, Arc::new(now), stop.clone())?;
        let app = http::shell(console.router, console.openapi, console.health, metrics.clone());
        serving.spawn(http::serve(listener, app, stop.clone()));
        tracing::info!(listen = %config.console.listen, "console is ready");
    }
    tokio::spawn(upkeep(metrics, stop.clone()));

    stop.cancelled().await;
    tracker.close();
    let drain = async {
        while let Some(ended) = serving.join_next().await {
            ended??;
        }
        tracker.wait().await;
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
