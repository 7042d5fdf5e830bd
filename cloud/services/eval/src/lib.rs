//! Eval: golden cases, the results of roasts and agents against them, and what may be promoted.
//!
//! Gates are arithmetic and decide. A person's review overrides them. A language model may be asked
//! for its opinion ([`judge`]); the opinion is stored beside the run and decides nothing.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
mod config;
pub mod gates;
pub mod golden;
pub mod judge;
pub mod run;
mod runner;
pub mod saturation;
pub mod store;

use http_stack::start::{Context, Service, StartError, check_database};
use std::sync::Arc;

use mission_worker::{SharedStats, Worker};
use service::health::Health;

pub use api::limits;
pub use config::{EvalConfig, JudgeConfig};
pub use store::EvalStore;

/// Starts the service: its workers run on the context's tasks.
///
/// # Errors
/// When there is no database, or no HTTP client can be created.
pub fn start(config: &EvalConfig, context: &Context) -> Result<Service, StartError> {
    let (clock, database) = (&context.clock, context.database("eval")?);
    let health = check_database(Health::new("eval", context.clock.clone()), &database);
    let store = EvalStore::new(database.clone());
    let runner = runner::Runner {
        store: store.clone(),
        ingestion: context.client("ingestion", &config.ingestion_url)?,
        analytics: context.client("analytics", &config.analytics_url)?,
        judge_enabled: config.judge.enabled,
    };
    let kernel = context.client("kernel", &config.kernel_url)?;
    for _ in 0..config.workers {
        let worker = Worker {
            job: runner.clone(),
            kernel: kernel.clone(),
            clock: clock.clone(),
            status: SharedStats::default(),
            pace: config.pace(),
        };
        // A mission that a run loses is claimed again when its lease has expired.
        let (worker, stop) = (Arc::new(worker), context.stop.clone());
        context.tasks.spawn_restarting("eval-worker", move || {
            let (worker, stop) = (worker.clone(), stop.clone());
            async move { worker.run(stop).await }
        });
    }
    if config.judge.enabled {
        let model = Arc::new(judge::messages::MessagesClient::new(&config.judge)?);
        let per_day = config.judge.questions_per_day;
        // A run of eval that is lost is judged again when its lease has expired.
        let parts = (store.clone(), model, clock.clone(), context.stop.clone());
        context.tasks.spawn_restarting("judge", move || {
            let (store, model, clock, stop) = parts.clone();
            judge::run(store, (model, per_day), clock, stop)
        });
    }
    let state = api::State { store, runner, clock: clock.clone() };
    Ok(Service::new(context, "eval", api::routes(state), health)
        .with_idempotency(&database, &context.clock))
}
