//! `simcorp serve`: ports first, then database, then services; and the way back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cache::{Cache, Redis};
use contract::{Actor, ActorKind, EpochMs, KeyId, MachineId, OrgId, SiteId};
use fleet::FleetStore;
use fleet::device::{NewDevice, Registered};
use fleet::store::By;
use guard::{Door, Limits};
use service::metrics::Metrics;
use service::secret::Secret;
use service::shutdown::{self, CancellationToken};
use service::{http, log, tls};
use store::Store;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::broker;
use crate::config::{AuthMode, CloudConfig};

/// Everything must be written and answered by then.
const STOP_TIME_MAX: Duration = Duration::from_secs(25);
const PARTITIONS_EVERY: Duration = Duration::from_hours(6);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceName {
    Kernel,
    Ingestion,
    /// Marks of machines that send none
    Inference,
    Analytics,
    Eval,
    Reports,
    Dispatcher,
    /// The twin, and simulated machines
    Simulation,
    /// Gateways, their keys and certificates
    Fleet,
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
        let app = http::shell(router, &openapi, health, self.metrics.clone());
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

/// What every service is started with.
struct Start<'s> {
    config: &'s CloudConfig,
    door: Door,
    token: &'s Secret,
    cache: Cache,
    clock: Arc<dyn Fn() -> EpochMs + Send + Sync>,
    listeners: BTreeMap<&'static str, TcpListener>,
    serving: Serving,
}

/// Runs the named services, or all.
pub async fn serve(mut config: CloudConfig, names: &[ServiceName]) -> anyhow::Result<()> {
    log::LogConfig::start(&config.log);
    let runs = |name: ServiceName| names.is_empty() || names.contains(&name);
    // The first provider wins; there is only one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let serving = Serving {
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
    // Simulated machines stand beside real ones only where somebody has said so.
    config.simulation.publish.get_or_insert(config.auth.mode == AuthMode::Dev);
    let listeners = listen(&config, &runs).await?;
    let redis = Redis::open(&config.redis).map_err(|problem| anyhow::anyhow!(problem))?;
    let limits = Limits::new(&config.limits, redis.as_ref());
    let start = Start {
        door: Door { auth: config.callers()?, limits },
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
    let serving = start.all(database)?;
    tokio::spawn(upkeep(serving.metrics.clone(), serving.stop.clone()));
    serving.until_stopped().await
}

impl Start<'_> {
    /// Starts what has a listener.
    fn all(mut self, database: Option<Store>) -> anyhow::Result<Serving> {
        if let Some(database) = database {
            self.stored(&database)?;
            self.following(&database)?;
        }
        self.stateless()?;
        Ok(self.serving)
    }

    /// Services that keep something.
    fn stored(&mut self, database: &Store) -> anyhow::Result<()> {
        let Self { config, token, clock, .. } = self;
        let (config, token, clock) = (*config, *token, clock.clone());
        let (tracker, stop) = (self.serving.tracker.clone(), self.serving.stop.clone());
        if let Some(listener) = self.listeners.remove("kernel.listen") {
            let store = kernel::KernelStore::new(database.clone());
            let auth = config.kernel_callers(store, self.cache.clone(), clock.clone())?;
            // The kernel knows callers by itself; everybody else asks it.
            let door = Door { auth, limits: self.door.limits.clone() };
            let (section, stop) = (&config.kernel, stop.clone());
            let database = database.clone();
            let with = (&door, token);
            let k = kernel::start(section, with, database, clock.clone(), &tracker, stop)?;
            self.serving.serve(listener, (k.router, k.openapi, k.health));
        }
        if let Some(listener) = self.listeners.remove("ingestion.listen") {
            let keep = config.database.retention_days;
            tracker.spawn(keep_partitions(database.clone(), keep, stop.clone()));
            let section = (&config.ingestion, &config.mqtt);
            let with = (&self.door, &self.cache);
            let i = ingestion::start(section, with, database.clone(), &clock, &tracker, &stop)?;
            self.serving.serve(listener, (i.router, i.openapi, i.health));
        }
        if let Some(listener) = self.listeners.remove("fleet.listen") {
            let home = fleet::Home {
                data: &config.database.data,
                make_authority: config.auth.mode == AuthMode::Dev,
            };
            let (section, database) = ((&config.fleet, &config.mqtt), database.clone());
            let f = fleet::start(section, &self.door, database, home, &clock, (&tracker, &stop))?;
            let gateways = self.listeners.remove("fleet.gateway_listen").zip(f.gateways);
            if let Some((listener, gateways)) = gateways {
                let listener = tls::TlsListener::new(listener, gateways.tls)?;
                self.serving.servers.spawn(tls::serve(listener, gateways.router, stop.clone()));
            }
            self.serving.serve(listener, (f.router, f.openapi, f.health));
        }
        if let Some(listener) = self.listeners.remove("eval.listen") {
            let with = (&self.door, token);
            let e = eval::start(&config.eval, with, database.clone(), &clock, &tracker, &stop)?;
            self.serving.serve(listener, (e.router, e.openapi, e.health));
        }
        Ok(())
    }

    /// Services that stand on the bus beside the machines.
    fn following(&mut self, database: &Store) -> anyhow::Result<()> {
        let (config, clock) = (self.config, self.clock.clone());
        let (tracker, stop) = (self.serving.tracker.clone(), self.serving.stop.clone());
        if let Some(listener) = self.listeners.remove("inference.listen") {
            let (section, mqtt, door) = (&config.inference, &config.mqtt, &self.door);
            let (database, clock) = (database.clone(), clock.clone());
            let i = inference::start(section, mqtt, door, database, clock, &tracker, &stop)?;
            self.serving.serve(listener, (i.router, i.openapi, i.health));
        }
        if let Some(listener) = self.listeners.remove("simulation.twin_listen") {
            let s = simulation::twin(&self.door, clock.clone());
            self.serving.serve(listener, (s.router, s.openapi, s.health));
        }
        if let Some(listener) = self.listeners.remove("simulation.publisher_listen") {
            let believed = Believed { store: FleetStore::new(database.clone()) };
            let (section, mqtt, door) = (&config.simulation, &config.mqtt, &self.door);
            let believed = Arc::new(believed);
            let s = simulation::publisher(section, mqtt, door, believed, clock, &tracker, &stop)?;
            self.serving.serve(listener, (s.router, s.openapi, s.health));
        }
        Ok(())
    }

    /// Services that keep nothing.
    fn stateless(&mut self) -> anyhow::Result<()> {
        let (config, clock) = (self.config, self.clock.clone());
        let (tracker, stop) = (self.serving.tracker.clone(), self.serving.stop.clone());
        let callers = (&self.door, self.token);
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

/// Where simulated gateways become ones that are believed: the fleet's own list.
struct Believed {
    store: FleetStore,
}

fn simulation(org: &OrgId) -> Actor {
    let org = Some(org.clone());
    Actor { kind: ActorKind::System, id: "simulation".to_owned(), display: None, org }
}

impl simulation::Registry for Believed {
    fn add<'r>(
        &'r self,
        org: &'r OrgId,
        kid: &'r KeyId,
        site: &'r SiteId,
        machines: &'r [String],
        key: &'r trust::PublicKey,
    ) -> simulation::Told<'r> {
        Box::pin(async move {
            // Nothing simulated may ever pass for what a real machine has measured.
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
            let actor = simulation(org);
            let by = By { actor: &actor, now: now() };
            let registered = self.store.register(&new, by).await;
            match registered.map_err(|error| error.to_string())? {
                Registered::As(_) => Ok(()),
                Registered::OtherKey | Registered::Revoked => Err(format!("{kid} has another key")),
            }
        })
    }

    fn revoke<'r>(&'r self, org: &'r OrgId, kid: &'r KeyId) -> simulation::Told<'r> {
        Box::pin(async move {
            let actor = simulation(org);
            let by = By { actor: &actor, now: now() };
            let revoked = self.store.revoke(org, kid.as_str(), by).await;
            revoked.map(drop).map_err(|error| error.to_string())
        })
    }
}

/// Takes all ports before anything is started, so that a busy one is a clear sentence.
async fn listen(
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
