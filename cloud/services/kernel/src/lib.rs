//! The kernel, upstream's name for the mission service: missions and the policy that admits them
//! ([`governor`]), what agents did ([`trace`]), which agents and tools are registered, and which
//! tools the agents may use.
//!
//! Missions are a durable queue. A worker holds a lease and renews it by heartbeats. When a lease
//! expires, the next worker may claim the mission; a mission that loses its worker at every attempt
//! is quarantined. Two workers must never hold the same mission, and two creations with the same
//! idempotency key create one mission.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
pub mod audit_checkpoint;
pub mod authentication;
mod config;
pub mod governance;
pub mod governor;
mod metric;
pub mod missions;
mod promotion;
pub mod store;
pub mod trace;

use http_stack::start::{Context, Service, StartError, check_database};
use std::sync::Arc;
use std::time::Duration;

use contract::mission::{EVAL_GOAL, REPORT_GOAL};
use database::StoreError;
use service::clock::Clock;
use service::health::Health;
use tokio_util::sync::CancellationToken;

pub use api::limits;
use audit_checkpoint::{CheckpointFile, CheckpointSigner, CheckpointWriter};
pub use config::KernelConfig;
pub use store::KernelStore;

const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);
const PASSES_A_MINUTE: u32 = 12;

/// Starts the service: maintenance, circuit breaker and the queries to eval run on the context's
/// tasks.
///
/// # Errors
/// When there is no database, no HTTP client can be created, or the audit key was replaced.
pub fn start(config: &KernelConfig, context: &Context) -> Result<Service, StartError> {
    let (clock, tasks, stop) = (&context.clock, &context.tasks, &context.stop);
    let database = context.database("kernel")?;
    let health = check_database(Health::new("company-kernel", context.clock.clone()), &database);
    let store = KernelStore::new(database.clone());
    let eval = context.client("eval", &config.eval_url)?;
    let parts = (store.clone(), clock.clone(), stop.clone());
    tasks.spawn_restarting("circuit-breaker", move || {
        let (store, clock, stop) = parts.clone();
        governance::breaker_watch::watch(store, clock, stop)
    });
    let parts = (store.clone(), clock.clone(), stop.clone());
    tasks.spawn_restarting("kernel-maintenance", move || {
        let (store, clock, stop) = parts.clone();
        maintain(store, clock, stop)
    });
    let parts = (store.clone(), eval.clone(), clock.clone(), stop.clone());
    tasks.spawn_restarting("eval-poll", move || {
        let (store, eval, clock, stop) = parts.clone();
        promotion::poll_eval(store, eval, clock, stop)
    });
    let audit_signer = start_audit_checkpoints(config, context, &database)?;
    let state = api::ApiState {
        store,
        audit_signer,
        clock: clock.clone(),
        lease_ms: config.lease_ms,
        eval,
        development: context.development,
    };
    Ok(Service::new(context, "kernel", api::routes(state), health)
        .with_idempotency(&database, &context.clock))
}

/// Starts the task that writes signed checkpoints of the audit log, and returns their key. Without a
/// writable folder for the key the kernel works, and says at its start that there are none.
///
/// # Errors
/// When the key or its public key was replaced or removed.
fn start_audit_checkpoints(
    config: &KernelConfig,
    context: &Context,
    database: &::database::Database,
) -> Result<Option<Arc<CheckpointSigner>>, StartError> {
    let path = config.audit_key_file(&context.data);
    let signer = match CheckpointSigner::open_or_create(&path) {
        Ok(signer) => Arc::new(signer),
        Err(error) if error.is_evidence() => return Err(StartError::service(error)),
        Err(error) => {
            tracing::error!(%error, "the audit log gets no checkpoints: set kernel.audit_key_file to a file that can be written");
            return Ok(None);
        }
    };
    if config.audit_checkpoint_minutes > 0 {
        let writer = CheckpointWriter {
            database: database.clone(),
            signer: signer.clone(),
            file: Arc::new(CheckpointFile::new(path.with_file_name("audit-checkpoints.jsonl"))),
            clock: context.clock.clone(),
            every: Duration::from_secs(60 * u64::from(config.audit_checkpoint_minutes)),
        };
        let stop = context.stop.clone();
        let run = move || writer.clone().run(stop.clone());
        context.tasks.spawn_restarting("audit-checkpoints", run);
    }
    Ok(Some(signer))
}

/// Publishes the mission counts and, with `events`, the unresolved events of the circuit breaker,
/// for which all governance records are read.
async fn publish_counts(store: &KernelStore, events: bool) {
    let counted = async {
        let counts = store.counts(None).await?;
        metric::counts(counts, &store.running_of_goals(&[REPORT_GOAL, EVAL_GOAL]).await?);
        if events {
            metric::unresolved_events(store.open_events().await?);
        }
        Ok::<_, StoreError>(())
    };
    if let Err(error) = counted.await {
        tracing::debug!(%error, "could not count missions and events");
    }
}

/// Quarantines missions that lost every worker, publishes the mission counts as metrics, and
/// deletes old idempotency keys and fact counts. Any number of instances may run it.
async fn maintain(store: KernelStore, clock: Clock, stop: CancellationToken) {
    let mut passes = 0_u32;
    loop {
        match store.quarantine_poison(clock()).await {
            Ok(0) => {}
            Ok(parked) => {
                tracing::warn!(parked, "quarantined missions that lost every worker");
            }
            Err(error) => {
                tracing::warn!(%error, "could not quarantine missions; the next pass tries again");
            }
        }
        publish_counts(&store, passes.is_multiple_of(PASSES_A_MINUTE)).await;
        passes = passes.wrapping_add(1);
        if let Err(error) = store.database().delete_expired_idempotency_keys(clock()).await {
            tracing::debug!(%error, "could not delete old keys; the next pass tries again");
        }
        if let Err(error) = store.delete_old_facts(clock()).await {
            tracing::debug!(%error, "could not delete old counts; the next pass tries again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(MAINTENANCE_INTERVAL) => {}
        }
    }
}
