//! The kernel: missions and who may do them ([`governor`]), what agents did ([`trace`]), which agents
//! and tools there are, and what they may touch.
//!
//! Missions are a durable queue. A worker holds a lease and says that it lives; one that falls silent
//! loses its mission to the next, and a mission that kills its workers is parked. A mission is never
//! claimed by two, and of two creations with one key there is one mission.

mod api;
mod config;
pub mod governance;
pub mod governor;
pub mod people;
mod promotion;
pub mod store;
pub mod trace;

use std::sync::Arc;
use std::time::Duration;

use ::store::Store;
use ::store::idempotency::Idempotency;
use contract::EpochMs;
use guard::Door;
use peer::{Peer, PeerError};
use service::health::Health;
use service::secret::Secret;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::KernelConfig;
pub use store::KernelStore;

/// The wall clock, passed in so that tests can hold it.
pub type Clock = Arc<dyn Fn() -> EpochMs + Send + Sync>;

const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// A running kernel: its routes, and what they need.
pub struct Kernel {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Starts the kernel's upkeep and circuit breaker on `tracker` and builds its routes.
///
/// # Errors
/// When the system gives no HTTP client.
pub fn start(
    config: &KernelConfig,
    (door, token): (&Door, &Secret),
    database: Store,
    clock: Clock,
    tracker: &TaskTracker,
    stop: CancellationToken,
) -> Result<Kernel, PeerError> {
    let kept = Idempotency::new(database.clone(), clock.clone());
    let store = KernelStore::new(database);
    tracker.spawn(governance::watch::watch(store.clone(), clock.clone(), stop.clone()));
    let asking = stop.clone();
    tracker.spawn(upkeep(store.clone(), clock.clone(), stop));
    let asked = store.clone();
    let health = Health::new("company-kernel").check("database", move || {
        let store = asked.clone();
        async move { store.database().ping().await.map_err(|error| error.to_string()) }
    });
    let eval = Peer::new("eval", &config.eval_url, token)?;
    tracker.spawn(promotion::ask(store.clone(), eval.clone(), clock.clone(), asking));
    let state = api::State { store, clock, lease_ms: config.lease_ms, eval };
    let (router, openapi) = api::routes(state, kept, door);
    Ok(Kernel { router, openapi, health })
}

/// Parks poison and tells how many missions there are. Any number of instances may.
async fn upkeep(store: KernelStore, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(UPKEEP_EVERY) => {}
        }
        match store.park_poison(clock()).await {
            Ok(0) => {}
            Ok(parked) => {
                tracing::warn!(parked, "parked missions that lost every worker");
            }
            Err(error) => {
                tracing::warn!(%error, "could not park missions; the next pass tries again");
            }
        }
        match store.counts(None).await {
            Ok(counts) => {
                for (what, n) in counts {
                    metrics::gauge!("simcorp_missions", "status" => what).set(n as f64);
                }
            }
            Err(error) => tracing::debug!(%error, "could not count missions"),
        }
        if let Err(error) = store.database().forget_idempotency_keys(clock()).await {
            tracing::debug!(%error, "could not forget old keys; the next pass tries again");
        }
        if let Err(error) = store.forget_facts(clock()).await {
            tracing::debug!(%error, "could not forget old counts; the next pass tries again");
        }
    }
}
