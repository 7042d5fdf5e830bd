//! Eval: golden cases, how roasts and agents did at them, and what may be promoted.
//!
//! Gates are arithmetic and decide. A person's review decides over them. A language model may be
//! asked for its opinion ([`judge`]); it is kept beside the run and decides nothing.

mod api;
mod config;
pub mod gates;
pub mod golden;
pub mod judge;
pub mod run;
mod runner;
pub mod saturation;
pub mod store;

use std::sync::Arc;

use ::store::Store;
use ::store::idempotency::Idempotency;
use guard::Door;
use peer::work::{Clock, Status, Worker};
use peer::{Peer, PeerError};
use service::health::Health;
use service::secret::Secret;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{EvalConfig, JudgeConfig};
pub use store::EvalStore;

/// A running eval: its routes, and what they need.
pub struct Eval {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Starts the workers on `tracker` and builds the routes.
///
/// # Errors
/// When the system gives no HTTP client.
pub fn start(
    config: &EvalConfig,
    (door, token): (&Door, &Secret),
    database: Store,
    clock: &Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Eval, PeerError> {
    let kept = Idempotency::new(database.clone(), clock.clone());
    let store = EvalStore::new(database);
    let runner = runner::Runner {
        store: store.clone(),
        ingestion: Peer::new("ingestion", &config.ingestion_url, token)?,
        analytics: Peer::new("analytics", &config.analytics_url, token)?,
        judged: config.judge.enabled,
    };
    let kernel = Peer::new("kernel", &config.kernel_url, token)?;
    for _ in 0..config.workers {
        let worker = Worker {
            job: runner.clone(),
            kernel: kernel.clone(),
            clock: clock.clone(),
            status: Status::default(),
            pace: config.pace(),
        };
        tracker.spawn(worker.run(stop.clone()));
    }
    if config.judge.enabled {
        let model = Arc::new(judge::messages::Messages::new(&config.judge)?);
        tracker.spawn(judge::run(store.clone(), model, clock.clone(), stop.clone()));
    }
    let asked = store.clone();
    let health = Health::new("eval").check("database", move || {
        let store = asked.clone();
        async move { store.database().ping().await.map_err(|error| error.to_string()) }
    });
    let state = api::State { store, runner, clock: clock.clone() };
    let (router, openapi) = api::routes(state, kept, door);
    Ok(Eval { router, openapi, health })
}
