//! Eval: golden cases, the results of roasts and agents against them, and what may be promoted.
//!
//! Gates are arithmetic and decide. A person's review overrides them. A language model may be asked
//! for its opinion ([`judge`]); the opinion is stored beside the run and decides nothing.

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

use ::database::Store;
use ::database::idempotency::Idempotency;
use http_stack::AccessLayer;
use mission_worker::{SharedStats, Worker};
use service::clock::Clock;
use service::health::Health;
use service::secret::Secret;
use service_client::{ServiceClient, ServiceClientError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{EvalConfig, JudgeConfig};
pub use store::EvalStore;

/// The running eval service: its routes, their OpenAPI description and the health checks.
pub struct Eval {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Starts the workers on `tracker` and builds the routes.
///
/// # Errors
/// If an HTTP client cannot be built.
pub fn start(
    config: &EvalConfig,
    (door, token): (&AccessLayer, &Secret),
    database: Store,
    clock: &Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Eval, ServiceClientError> {
    let kept = Idempotency::new(database.clone(), clock.clone());
    let store = EvalStore::new(database);
    let runner = runner::Runner {
        store: store.clone(),
        ingestion: ServiceClient::new("ingestion", &config.ingestion_url, token)?,
        analytics: ServiceClient::new("analytics", &config.analytics_url, token)?,
        judge_enabled: config.judge.enabled,
    };
    let kernel = ServiceClient::new("kernel", &config.kernel_url, token)?;
    for _ in 0..config.workers {
        let worker = Worker {
            job: runner.clone(),
            kernel: kernel.clone(),
            clock: clock.clone(),
            status: SharedStats::default(),
            pace: config.pace(),
        };
        tracker.spawn(worker.run(stop.clone()));
    }
    if config.judge.enabled {
        let model = Arc::new(judge::messages::MessagesClient::new(&config.judge)?);
        tracker.spawn(judge::run(store.clone(), model, clock.clone(), stop.clone()));
    }
    let asked = store.clone();
    let health = Health::new("eval").with_check("database", move || {
        let store = asked.clone();
        async move { store.database().ping().await.map_err(|error| error.to_string()) }
    });
    let state = api::State { store, runner, clock: clock.clone() };
    let (router, openapi) = api::routes(state, kept, door);
    Ok(Eval { router, openapi, health })
}
