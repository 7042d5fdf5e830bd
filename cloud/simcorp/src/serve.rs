//! `simcorp serve`: binds the ports, opens the database, starts the services, and drains them on
//! shutdown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cache::{Cache, Redis};
use contract::{Actor, ActorKind, EpochMs, KeyId, MachineId, OrgId, SiteId};
use database::Database;
use fleet::FleetStore;
use fleet::device::{NewDevice, RegisterOutcome};
use fleet::store::ChangedBy;
use http_stack::stack::service_router;
use http_stack::start::{Context, Service};
use http_stack::{AccessControl, Limits};
use service::connections::{
    BoundedListener, ConnectionLimits, LISTENER_FILES_MIN, RESERVED_FILES, raise_file_limit,
};
use service::metrics::Metrics;
use service::shutdown::{self, CancellationToken};
use service::tasks::Tasks;
use service::tls::TlsLimits;
use service::{http, log, tls};
use tokio::net::TcpListener;

use crate::broker;
use crate::config::{AuthMode, CloudConfig};
use crate::process_usage;
use crate::request_runtime::RequestRuntime;

/// The longest time for writing pending data and answering open requests on shutdown.
const STOP_TIME_MAX: Duration = Duration::from_secs(25);
/// The configuration key of the second listener of the fleet, for gateways with a certificate.
const GATEWAY_LISTEN: &str = "fleet.gateway_listen";
/// What operators must know of the embedded broker where callers of the services authenticate.
const OPEN_BROKER: &str = "the embedded broker has no passwords: every process on this computer can \
    publish and subscribe for every organisation; set mqtt.host to a broker of your own with \
    accounts and access rules where others can log in to this computer";
const PARTITIONS_EVERY: Duration = Duration::from_hours(6);
const METRICS_UPKEEP_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceName {
    Kernel,
    Ingestion,
    /// Detects roast events for machines that send none
    Inference,
    Analytics,
    Eval,
    Reports,
    Dispatcher,
    /// The digital twin, and simulated machines
    Simulation,
    /// The registry of gateways, their keys and certificates
    Fleet,
    Console,
}

/// Returns the time of the wall clock.
#[allow(clippy::disallowed_methods)] // this is where time enters
pub fn now() -> EpochMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    EpochMs(i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX))
}

/// Creates the data folder: SQLite creates its file, but not the folder that contains it.
pub fn make_data_folder(config: &CloudConfig) -> anyhow::Result<()> {
    if config.database.url.is_set() {
        return Ok(());
    }
    let folder = &config.database.data;
    std::fs::create_dir_all(folder).with_context(|| {
        format!("cannot make the data folder {} (database.data)", folder.display())
    })
}

/// Opens the database, applies pending migrations if `database.migrate` is set (on SQLite by
/// default), then checks that the schema fits this program.
pub async fn open_with_schema(config: &CloudConfig) -> anyhow::Result<Database> {
    make_data_folder(config)?;
    let database = Database::open(&config.database).await?;
    if config.database.migrate.unwrap_or(!database.is_postgres()) {
        database.migrate_up().await?;
    }
    database.check_schema().await?;
    Ok(database)
}

/// The running HTTP servers, and what they share.
struct RunningServers {
    requests: RequestRuntime,
    /// The registry of what no service records, which the first service shows.
    process_metrics: Metrics,
    tasks: Tasks,
    /// The bounds of each listener.
    connections: ConnectionLimits,
    stop: CancellationToken,
    servers: tokio::task::JoinSet<std::io::Result<()>>,
}

impl RunningServers {
    /// Returns the registry of the next service: that of the process for the first one.
    fn next_metrics(&self) -> anyhow::Result<Metrics> {
        let first = self.servers.is_empty();
        let metrics = if first { self.process_metrics.clone() } else { Metrics::separate()? };
        let (kept, stop) = (metrics.clone(), self.stop.clone());
        self.tasks.spawn_restarting("metrics-upkeep", move || {
            run_metrics_upkeep(kept.clone(), stop.clone())
        });
        Ok(metrics)
    }

    /// Serves a started service on its listener, and its TLS endpoint on the second one.
    fn serve(
        &mut self,
        mut service: Service,
        metrics: Metrics,
        (listener, tls_listener): (TcpListener, Option<TcpListener>),
    ) -> anyhow::Result<()> {
        tracing::info!(listen = ?listener.local_addr().ok(), "{} is ready", service.health.service());
        service.routes = self.requests.with_own_threads(service.routes);
        let app = service_router(&service, metrics.clone());
        let listener = BoundedListener::new(listener, self.connections);
        let serving = http::serve(listener, app, self.stop.clone());
        self.servers.spawn_on(metrics.clone().scope(serving), self.requests.connections());
        if let Some((endpoint, listener)) = service.tls.zip(tls_listener) {
            let limits = TlsLimits::new(self.connections.total);
            let start = || {
                // The listener spawns the handshakes, which compute.
                let _handlers = self.requests.handlers().enter();
                tls::TlsListener::new(listener, endpoint.config, limits)
            };
            let listener = metrics.sync_scope(start)?;
            let serving = tls::serve(listener, endpoint.router, self.stop.clone());
            self.servers.spawn_on(metrics.scope(serving), self.requests.handlers());
        }
        Ok(())
    }

    /// Waits for the signal to stop, then until pending data is written and open requests are
    /// answered, at most `STOP_TIME_MAX`.
    async fn run_until_stopped(mut self) -> anyhow::Result<()> {
        tokio::select! {
            () = self.stop.cancelled() => {}
            // A server ends by itself only when its listener fails or it panics.
            Some(ended) = self.servers.join_next() => {
                let reason = match ended {
                    Ok(Ok(())) => "an HTTP server ended".to_owned(),
                    Ok(Err(error)) => format!("an HTTP server ended: {error}"),
                    Err(panicked) => format!("an HTTP server ended: {panicked}"),
                };
                self.tasks.end_process(reason);
            }
        }
        let drain = async {
            while let Some(ended) = self.servers.join_next().await {
                ended??;
            }
            self.tasks.wait().await;
            anyhow::Ok(())
        };
        match tokio::time::timeout(STOP_TIME_MAX, drain).await {
            Ok(done) => done?,
            Err(_) => {
                tracing::warn!(limit_s = STOP_TIME_MAX.as_secs(), "stopped without having drained");
            }
        }
        if let Some(failure) = self.tasks.failure() {
            anyhow::bail!("{failure}; the log has its place");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// One service of `simcorp serve`.
struct ServiceEntry {
    name: ServiceName,
    /// The configuration key of its address, which names the listener.
    field: &'static str,
    listen: fn(&CloudConfig) -> SocketAddr,
    /// Whether it needs the database.
    stores: bool,
    start: fn(&CloudConfig, &Context) -> anyhow::Result<Service>,
}

/// Every service. To add one is to add a line; see `docs/guides/add-a-service.md`.
const SERVICES: [ServiceEntry; 11] = {
    use ServiceName as S;
    const fn entry(
        name: S,
        field: &'static str,
        stores: bool,
        listen: fn(&CloudConfig) -> SocketAddr,
        start: fn(&CloudConfig, &Context) -> anyhow::Result<Service>,
    ) -> ServiceEntry {
        ServiceEntry { name, field, listen, stores, start }
    }
    [
        entry(S::Kernel, "kernel.listen", true, |c| c.kernel.listen, start_kernel),
        entry(S::Ingestion, "ingestion.listen", true, |c| c.ingestion.listen, start_ingestion),
        entry(
            S::Fleet,
            "fleet.listen",
            true,
            |c| c.fleet.listen,
            |c, x| Ok(fleet::start(&c.fleet, x)?),
        ),
        entry(S::Eval, "eval.listen", true, |c| c.eval.listen, |c, x| Ok(eval::start(&c.eval, x)?)),
        entry(
            S::Inference,
            "inference.listen",
            true,
            |c| c.inference.listen,
            |c, x| Ok(inference::start(&c.inference, x)?),
        ),
        entry(
            S::Simulation,
            "simulation.twin_listen",
            true,
            |c| c.simulation.twin_listen,
            |c, x| Ok(simulation::start_twin(&c.simulation, x)?),
        ),
        entry(
            S::Simulation,
            "simulation.publisher_listen",
            true,
            |c| c.simulation.publisher_listen,
            start_publisher,
        ),
        entry(
            S::Analytics,
            "analytics.listen",
            false,
            |c| c.analytics.listen,
            |c, x| Ok(analytics::start(&c.analytics, x)?),
        ),
        entry(
            S::Reports,
            "reports.listen",
            false,
            |c| c.reports.listen,
            |c, x| Ok(reports::start(&c.reports, x)?),
        ),
        entry(
            S::Dispatcher,
            "dispatcher.listen",
            false,
            |c| c.dispatcher.listen,
            |c, x| Ok(dispatcher::start(&c.dispatcher, x)?),
        ),
        entry(
            S::Console,
            "console.listen",
            false,
            |c| c.console.listen,
            |c, x| Ok(console::start(&c.console, x)?),
        ),
    ]
};

/// Starts the kernel, which verifies tokens itself; the other services send them to the kernel.
fn start_kernel(config: &CloudConfig, context: &Context) -> anyhow::Result<Service> {
    let store = kernel::KernelStore::new(context.database("kernel")?);
    let auth = config.kernel_auth(store, context.cache.clone(), context.clock.clone())?;
    let access = AccessControl { auth, limits: context.access.limits.clone() };
    Ok(kernel::start(&config.kernel, &Context { access, ..context.clone() })?)
}

/// Starts ingestion, and the upkeep of the partitions that it writes to.
fn start_ingestion(config: &CloudConfig, context: &Context) -> anyhow::Result<Service> {
    let (database, days) = (context.database("ingestion")?, config.database.retention_days);
    let stop = context.stop.clone();
    context.tasks.spawn_restarting("partitions", move || {
        maintain_partitions(database.clone(), days, stop.clone())
    });
    Ok(ingestion::start(&config.ingestion, context)?)
}

/// Starts the simulated machines, which register their keys in the fleet's registry.
fn start_publisher(config: &CloudConfig, context: &Context) -> anyhow::Result<Service> {
    let store = FleetStore::new(context.database("simulation")?);
    let registry = Arc::new(FleetRegistry { store });
    Ok(simulation::start_publisher(&config.simulation, context, registry)?)
}

/// Returns the limits of each listener, which fit the number of files that this process may open.
fn connection_limits() -> ConnectionLimits {
    // Every service, the TLS port of the gateways, and the broker's port.
    const LISTENERS: usize = SERVICES.len() + 1 + broker::FILES_PER_CLIENT;
    const FILES_MIN: usize = RESERVED_FILES + LISTENERS * LISTENER_FILES_MIN;
    ConnectionLimits::shared(raise_file_limit(FILES_MIN), LISTENERS)
}

/// Runs the named services, or all if none is named.
pub async fn serve(mut config: CloudConfig, names: &[ServiceName]) -> anyhow::Result<()> {
    log::LogConfig::start(&config.log);
    let runs = |name: ServiceName| names.is_empty() || names.contains(&name);
    tls::install_crypto_provider();
    let stop = shutdown::on_signal()?;
    let mut running = RunningServers {
        requests: RequestRuntime::start()?,
        process_metrics: Metrics::install()?,
        tasks: Tasks::new(stop.clone()),
        connections: connection_limits(),
        stop,
        servers: tokio::task::JoinSet::new(),
    };
    let embeds = config.embeds_broker() && runs(ServiceName::Ingestion);
    let broker_note = broker_note(&config, &runs);
    if config.embeds_broker() {
        config.mqtt.host = config.broker.listen.ip().to_string();
        config.mqtt.port = config.broker.listen.port();
    }
    // Outside development, simulated machines run beside real ones only if that is configured.
    config.simulation.publish.get_or_insert(config.auth.mode == AuthMode::Dev);
    let mut listeners = bind_ports(&config, &runs).await?;
    let redis = Redis::open(&config.redis).map_err(|problem| anyhow::anyhow!(problem))?;
    let limits = Limits::new(&config.limits, redis.as_ref(), Arc::new(now));
    let mut context = Context {
        access: AccessControl { auth: config.service_auth()?, limits },
        cache: Cache::new(redis.as_ref()),
        clock: Arc::new(now),
        database: None,
        mqtt: config.mqtt.clone(),
        service_token: config.auth.service_token.clone(),
        data: config.database.data.clone(),
        development: config.auth.mode == AuthMode::Dev,
        origins: config.cors.origins(),
        tasks: running.tasks.clone(),
        stop: running.stop.clone(),
    };
    if SERVICES.iter().any(|entry| entry.stores && runs(entry.name)) {
        if embeds {
            let clients_max = running.connections.total;
            let tasks = (&running.tasks, &running.stop);
            context.mqtt.local = Some(broker::start(&config.broker, clients_max, tasks).await?);
            if let Some(note) = broker_note {
                tracing::warn!("{note}");
            }
        }
        context.database = Some(open_database(&config, &running).await?);
    }
    for entry in &SERVICES {
        if let Some(listener) = listeners.remove(entry.field) {
            let metrics = running.next_metrics()?;
            let own = context.with_metrics(&metrics);
            let start = || start_service(entry, &config, &own, broker_note);
            let service = metrics.sync_scope(start)?;
            let tls_listener = service.tls.as_ref().and_then(|_| listeners.remove(GATEWAY_LISTEN));
            running.serve(service, metrics, (listener, tls_listener))?;
        }
    }
    let stop = running.stop.clone();
    running
        .tasks
        .spawn_restarting("process-metrics", move || publish_process_metrics(stop.clone()));
    running.run_until_stopped().await
}

/// Returns what operators must know of the broker: that it has no passwords, if this process runs it
/// while the callers of its services authenticate.
fn broker_note(config: &CloudConfig, runs: &impl Fn(ServiceName) -> bool) -> Option<&'static str> {
    let embeds = config.embeds_broker() && runs(ServiceName::Ingestion);
    (embeds && config.auth.mode != AuthMode::Dev).then_some(OPEN_BROKER)
}

/// Starts a service. `/ready` of ingestion shows the note about the broker.
fn start_service(
    entry: &ServiceEntry,
    config: &CloudConfig,
    context: &Context,
    broker_note: Option<&'static str>,
) -> anyhow::Result<Service> {
    let mut service = (entry.start)(config, context)?;
    if entry.name == ServiceName::Ingestion
        && let Some(note) = broker_note
    {
        service.health = service.health.with_note("mqtt", note);
    }
    Ok(service)
}

/// Opens the database, brings its schema up to date where that is configured, and watches the
/// replica.
async fn open_database(config: &CloudConfig, running: &RunningServers) -> anyhow::Result<Database> {
    let opened = open_with_schema(config).await?;
    let set_aside = opened.sessions_set_aside().await?;
    if set_aside > 0 {
        tracing::warn!(
            sessions = set_aside,
            "sessions with impossible numbers are set aside; see the table set_aside_sessions"
        );
    }
    let lag_max = Duration::from_millis(config.database.replica_lag_max_ms.into());
    let (watched, stop) = (opened.clone(), running.stop.clone());
    running.tasks.spawn_restarting("replica-watch", move || {
        watched.clone().watch_replica(lag_max, stop.clone())
    });
    Ok(opened)
}

/// Registers simulated gateways in the fleet's device registry, so that their signatures are
/// accepted.
struct FleetRegistry {
    store: FleetStore,
}

fn simulation_actor(org: &OrgId) -> Actor {
    let org = Some(org.clone());
    Actor { kind: ActorKind::System, id: "simulation".to_owned(), display: None, org }
}

impl simulation::Registry for FleetRegistry {
    fn add<'r>(
        &'r self,
        org: &'r OrgId,
        kid: &'r KeyId,
        site: &'r SiteId,
        machines: &'r [String],
        key: &'r trust::PublicKey,
    ) -> simulation::RegistryFuture<'r> {
        Box::pin(async move {
            // Simulated data must never be mistaken for measurements of a real machine.
            for machine in machines {
                let real = self.store.is_real(org, site.as_str(), machine).await;
                if real.map_err(|error| error.to_string())? {
                    return Err(format!(
                        "{machine} is a real machine; simulate under another name"
                    ));
                }
            }
            let machines = machines.iter().map(|name| MachineId::new(name.clone()));
            let machines: Vec<MachineId> =
                machines.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
            let new = NewDevice {
                org,
                key_id: kid,
                site,
                machines: &machines,
                public: key,
                enrols: false,
                replaces: false,
                compromised: false,
            };
            let actor = simulation_actor(org);
            let by = ChangedBy { actor: &actor, now: now() };
            let registered = self.store.register(&new, by).await;
            match registered.map_err(|error| error.to_string())? {
                RegisterOutcome::Accepted(_) => Ok(()),
                RegisterOutcome::OtherKey | RegisterOutcome::Revoked => {
                    Err(format!("{kid} has another key"))
                }
            }
        })
    }

    fn revoke<'r>(&'r self, org: &'r OrgId, kid: &'r KeyId) -> simulation::RegistryFuture<'r> {
        Box::pin(async move {
            let actor = simulation_actor(org);
            let by = ChangedBy { actor: &actor, now: now() };
            let revoked = self.store.revoke(org, kid.as_str(), by).await;
            revoked.map(drop).map_err(|error| error.to_string())
        })
    }
}

/// Binds all ports before any service starts, so that a port in use is reported clearly.
async fn bind_ports(
    config: &CloudConfig,
    runs: &impl Fn(ServiceName) -> bool,
) -> anyhow::Result<BTreeMap<&'static str, TcpListener>> {
    let gateways = (ServiceName::Fleet, config.fleet.gateway_listen, GATEWAY_LISTEN);
    let endpoints = SERVICES.iter().map(|entry| (entry.name, (entry.listen)(config), entry.field));
    let mut listeners = BTreeMap::new();
    for (_, address, field) in endpoints.chain([gateways]).filter(|(name, ..)| runs(*name)) {
        listeners.insert(field, http::listen(address, field).await?);
    }
    Ok(listeners)
}

/// Creates upcoming partitions and drops those past the retention time, every `PARTITIONS_EVERY`.
async fn maintain_partitions(store: Database, retention_days: u32, stop: CancellationToken) {
    let retention_ms = i64::from(retention_days).saturating_mul(86_400_000);
    loop {
        if let Err(error) = store.ensure_partitions(now()).await {
            tracing::warn!(%error, "could not create partitions; frames go to the default one");
        }
        if retention_ms > 0
            && let Err(error) = store.drop_frames(now().minus_ms(retention_ms)).await
        {
            tracing::warn!(%error, "could not drop old frames; the next pass retries");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PARTITIONS_EVERY) => {}
        }
    }
}

async fn run_metrics_upkeep(metrics: Metrics, stop: CancellationToken) {
    let mut every = tokio::time::interval(METRICS_UPKEEP_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => metrics.upkeep(),
        }
    }
}

/// Publishes the memory and the processor time of this process, by upstream Sim-Corp's names.
async fn publish_process_metrics(stop: CancellationToken) {
    let mut every = tokio::time::interval(METRICS_UPKEEP_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        if let Some(bytes) = process_usage::resident_bytes() {
            metrics::gauge!("simcorp_process_resident_memory_bytes").set(bytes as f64);
        }
        if let Some(seconds) = process_usage::cpu_seconds() {
            metrics::counter!("simcorp_process_cpu_seconds_total").absolute(seconds.total);
            metrics::counter!("simcorp_process_cpu_user_seconds_total").absolute(seconds.user);
            metrics::counter!("simcorp_process_cpu_system_seconds_total").absolute(seconds.system);
        }
    }
}

#[cfg(test)]
mod tests;
