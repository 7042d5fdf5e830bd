//! `simcorp serve`: binds the ports, opens the database, starts the services, and drains them on
//! shutdown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cache::{Cache, Redis};
use contract::{Actor, ActorKind, EpochMs, KeyId, MachineId, OrgId, SiteId};
use database::Store;
use fleet::FleetStore;
use fleet::device::{NewDevice, RegisterOutcome};
use fleet::store::ChangedBy;
use http_stack::{AccessLayer, Limits};
use service::metrics::Metrics;
use service::secret::Secret;
use service::shutdown::{self, CancellationToken};
use service::{http, log, tls};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::broker;
use crate::config::{AuthMode, CloudConfig};

/// The longest time for writing pending data and answering open requests on shutdown.
const STOP_TIME_MAX: Duration = Duration::from_secs(25);
const PARTITIONS_EVERY: Duration = Duration::from_hours(6);

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

/// Applies pending migrations if `database.migrate` is set (on SQLite by default), then checks that
/// the schema fits this program.
pub async fn prepare_schema(config: &CloudConfig, store: &Store) -> anyhow::Result<()> {
    if config.database.migrate.unwrap_or(!store.is_postgres()) {
        store.migrate_up().await?;
    }
    store.check_schema().await?;
    Ok(())
}

/// The running HTTP servers, and what they share.
struct RunningServers {
    metrics: Metrics,
    tracker: TaskTracker,
    stop: CancellationToken,
    servers: tokio::task::JoinSet<std::io::Result<()>>,
}

/// A service's routes, OpenAPI document and health checks.
type ServiceParts = (axum::Router, utoipa::openapi::OpenApi, service::health::Health);

impl RunningServers {
    fn serve(
        &mut self,
        listener: tokio::net::TcpListener,
        (router, openapi, health): ServiceParts,
    ) {
        tracing::info!(listen = ?listener.local_addr().ok(), "{} is ready", health.service());
        let app = http::service_router(router, &openapi, health, self.metrics.clone());
        self.servers.spawn(http::serve(listener, app, self.stop.clone()));
    }

    /// Waits for the signal to stop, then until pending data is written and open requests are
    /// answered, at most `STOP_TIME_MAX`.
    async fn run_until_stopped(mut self) -> anyhow::Result<()> {
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

/// The context with which every service is started.
struct StartContext<'s> {
    config: &'s CloudConfig,
    access: AccessLayer,
    token: &'s Secret,
    cache: Cache,
    clock: Arc<dyn Fn() -> EpochMs + Send + Sync>,
    listeners: BTreeMap<&'static str, TcpListener>,
    serving: RunningServers,
}

/// Runs the named services, or all if none is named.
pub async fn serve(mut config: CloudConfig, names: &[ServiceName]) -> anyhow::Result<()> {
    log::LogConfig::start(&config.log);
    let runs = |name: ServiceName| names.is_empty() || names.contains(&name);
    // Fails if a provider is installed already; only this one is used.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let serving = RunningServers {
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
    // Outside development, simulated machines run beside real ones only if that is configured.
    config.simulation.publish.get_or_insert(config.auth.mode == AuthMode::Dev);
    let listeners = bind_ports(&config, &runs).await?;
    let redis = Redis::open(&config.redis).map_err(|problem| anyhow::anyhow!(problem))?;
    let limits = Limits::new(&config.limits, redis.as_ref());
    let start = StartContext {
        access: AccessLayer { auth: config.service_auth()?, limits },
        token: &config.auth.service_token,
        cache: Cache::new(redis.as_ref()),
        clock: Arc::new(now),
        listeners,
        serving,
        config: &config,
    };
    let stored = [
        ServiceName::Kernel,
        ServiceName::Ingestion,
        ServiceName::Inference,
        ServiceName::Eval,
        ServiceName::Simulation,
        ServiceName::Fleet,
    ];
    let mut database = None;
    if stored.into_iter().any(runs) {
        if embeds {
            broker::start(&config.broker)?;
        }
        make_data_folder(&config)?;
        let opened = Store::open(&config.database).await?;
        prepare_schema(&config, &opened).await?;
        let lag_max = Duration::from_millis(config.database.replica_lag_max_ms.into());
        let watching = opened.clone().watch_replica(lag_max, start.serving.stop.clone());
        start.serving.tracker.spawn(watching);
        database = Some(opened);
    }
    let serving = start.start_all(database)?;
    tokio::spawn(run_metrics_upkeep(serving.metrics.clone(), serving.stop.clone()));
    serving.run_until_stopped().await
}

impl StartContext<'_> {
    /// Starts every service that has a listener.
    fn start_all(mut self, database: Option<Store>) -> anyhow::Result<RunningServers> {
        if let Some(database) = database {
            self.start_stateful(&database)?;
            self.start_mqtt_services(&database)?;
        }
        self.start_stateless()?;
        Ok(self.serving)
    }

    /// Starts the services that store data.
    fn start_stateful(&mut self, database: &Store) -> anyhow::Result<()> {
        let Self { config, token, clock, .. } = self;
        let (config, token, clock) = (*config, *token, clock.clone());
        let (tracker, stop) = (self.serving.tracker.clone(), self.serving.stop.clone());
        if let Some(listener) = self.listeners.remove("kernel.listen") {
            let store = kernel::KernelStore::new(database.clone());
            let auth = config.kernel_auth(store, self.cache.clone(), clock.clone())?;
            // The kernel verifies tokens itself; the other services ask the kernel.
            let door = AccessLayer { auth, limits: self.access.limits.clone() };
            let (section, stop) = (&config.kernel, stop.clone());
            let database = database.clone();
            let with = (&door, token);
            let k = kernel::start(section, with, database, clock.clone(), &tracker, stop)?;
            self.serving.serve(listener, (k.router, k.openapi, k.health));
        }
        if let Some(listener) = self.listeners.remove("ingestion.listen") {
            let keep = config.database.retention_days;
            tracker.spawn(maintain_partitions(database.clone(), keep, stop.clone()));
            let section = (&config.ingestion, &config.mqtt);
            let with = (&self.access, &self.cache);
            let i = ingestion::start(section, with, database.clone(), &clock, &tracker, &stop)?;
            self.serving.serve(listener, (i.router, i.openapi, i.health));
        }
        if let Some(listener) = self.listeners.remove("fleet.listen") {
            let home = fleet::FleetPaths {
                data: &config.database.data,
                create_ca_if_missing: config.auth.mode == AuthMode::Dev,
            };
            let (section, database) = ((&config.fleet, &config.mqtt), database.clone());
            let f = fleet::start(section, &self.access, database, home, &clock, (&tracker, &stop))?;
            let gateways = self.listeners.remove("fleet.gateway_listen").zip(f.gateways);
            if let Some((listener, gateways)) = gateways {
                let listener = tls::TlsListener::new(listener, gateways.tls)?;
                self.serving.servers.spawn(tls::serve(listener, gateways.router, stop.clone()));
            }
            self.serving.serve(listener, (f.router, f.openapi, f.health));
        }
        if let Some(listener) = self.listeners.remove("eval.listen") {
            let with = (&self.access, token);
            let e = eval::start(&config.eval, with, database.clone(), &clock, &tracker, &stop)?;
            self.serving.serve(listener, (e.router, e.openapi, e.health));
        }
        Ok(())
    }

    /// Starts the services that subscribe to, or publish on, the machines' MQTT topics.
    fn start_mqtt_services(&mut self, database: &Store) -> anyhow::Result<()> {
        let (config, clock) = (self.config, self.clock.clone());
        let (tracker, stop) = (self.serving.tracker.clone(), self.serving.stop.clone());
        if let Some(listener) = self.listeners.remove("inference.listen") {
            let (section, mqtt, door) = (&config.inference, &config.mqtt, &self.access);
            let (database, clock) = (database.clone(), clock.clone());
            let i = inference::start(section, mqtt, door, database, clock, &tracker, &stop)?;
            self.serving.serve(listener, (i.router, i.openapi, i.health));
        }
        if let Some(listener) = self.listeners.remove("simulation.twin_listen") {
            let s = simulation::twin(&self.access, clock.clone());
            self.serving.serve(listener, (s.router, s.openapi, s.health));
        }
        if let Some(listener) = self.listeners.remove("simulation.publisher_listen") {
            let believed = FleetRegistry { store: FleetStore::new(database.clone()) };
            let (section, mqtt, door) = (&config.simulation, &config.mqtt, &self.access);
            let believed = Arc::new(believed);
            let s = simulation::publisher(section, mqtt, door, believed, clock, &tracker, &stop)?;
            self.serving.serve(listener, (s.router, s.openapi, s.health));
        }
        Ok(())
    }

    /// Starts the services without a database.
    fn start_stateless(&mut self) -> anyhow::Result<()> {
        let (config, clock) = (self.config, self.clock.clone());
        let (tracker, stop) = (self.serving.tracker.clone(), self.serving.stop.clone());
        let callers = (&self.access, self.token);
        if let Some(listener) = self.listeners.remove("analytics.listen") {
            let cache = self.cache.clone();
            let a = analytics::start(&config.analytics, callers, cache, clock.clone())?;
            self.serving.serve(listener, (a.router, a.openapi, a.health));
        }
        if let Some(listener) = self.listeners.remove("reports.listen") {
            let r = reports::start(&config.reports, callers, &clock, &tracker, &stop)?;
            self.serving.serve(listener, (r.router, r.openapi, r.health));
        }
        if let Some(listener) = self.listeners.remove("dispatcher.listen") {
            let (section, mqtt, clock) = (&config.dispatcher, &config.mqtt, clock.clone());
            let d = dispatcher::start(section, mqtt, callers, clock, &tracker, &stop)?;
            self.serving.serve(listener, (d.router, d.openapi, d.health));
        }
        if let Some(listener) = self.listeners.remove("console.listen") {
            let c = console::start(&config.console, clock, stop)?;
            self.serving.serve(listener, (c.router, c.openapi, c.health));
        }
        Ok(())
    }
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
    let simulation = &config.simulation;
    let wanted = [
        (ServiceName::Kernel, config.kernel.listen, "kernel.listen"),
        (ServiceName::Ingestion, config.ingestion.listen, "ingestion.listen"),
        (ServiceName::Inference, config.inference.listen, "inference.listen"),
        (ServiceName::Analytics, config.analytics.listen, "analytics.listen"),
        (ServiceName::Eval, config.eval.listen, "eval.listen"),
        (ServiceName::Reports, config.reports.listen, "reports.listen"),
        (ServiceName::Dispatcher, config.dispatcher.listen, "dispatcher.listen"),
        (ServiceName::Simulation, simulation.twin_listen, "simulation.twin_listen"),
        (ServiceName::Simulation, simulation.publisher_listen, "simulation.publisher_listen"),
        (ServiceName::Fleet, config.fleet.listen, "fleet.listen"),
        (ServiceName::Fleet, config.fleet.gateway_listen, "fleet.gateway_listen"),
        (ServiceName::Console, config.console.listen, "console.listen"),
    ];
    let mut listeners = BTreeMap::new();
    for (_, address, field) in wanted.into_iter().filter(|(name, ..)| runs(*name)) {
        listeners.insert(field, http::listen(address, field).await?);
    }
    Ok(listeners)
}

/// Creates upcoming partitions and drops those past the retention time, every `PARTITIONS_EVERY`.
async fn maintain_partitions(store: Store, retention_days: u32, stop: CancellationToken) {
    let kept_ms = i64::from(retention_days) * 86_400_000;
    loop {
        if let Err(error) = store.ensure_partitions(now()).await {
            tracing::warn!(%error, "could not create partitions; frames go to the default one");
        }
        if kept_ms > 0
            && let Err(error) = store.drop_frames(now().plus_ms(-kept_ms)).await
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
    let mut every = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => metrics.upkeep(),
        }
    }
}
