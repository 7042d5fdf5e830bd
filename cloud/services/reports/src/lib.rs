//! Reports: a worker that claims `generate-roast-report` missions, reads what is stored about the
//! roast, writes the report (as text, and as a page that can be printed), and sends the outcome to
//! the kernel.
//!
//! A roast has one report, however often its mission runs: a second attempt finds the report of the
//! first and returns it as the outcome.

mod api;
mod config;
mod markdown;
mod page;
mod worker;

use http_stack::AccessLayer;
use mission_worker::{SharedStats, Worker};
use service::clock::Clock;
use service::health::Health;
use service::secret::Secret;
use service_client::{ServiceClient, ServiceClientError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::ReportsConfig;

/// A running report worker: its router, OpenAPI document and health checks.
pub struct Reports {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Clients of the services that the worker calls.
#[derive(Clone)]
pub(crate) struct Peers {
    pub kernel: ServiceClient,
    pub ingestion: ServiceClient,
    pub analytics: ServiceClient,
}

/// Starts the workers on `tracker`, and builds the router.
///
/// # Errors
/// When the HTTP client cannot be created.
pub fn start(
    config: &ReportsConfig,
    (door, token): (&AccessLayer, &Secret),
    clock: &Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Reports, ServiceClientError> {
    let peers = Peers {
        kernel: ServiceClient::new("kernel", &config.kernel_url, token)?,
        ingestion: ServiceClient::new("ingestion", &config.ingestion_url, token)?,
        analytics: ServiceClient::new("analytics", &config.analytics_url, token)?,
    };
    let status = SharedStats::default();
    for _ in 0..config.workers {
        let worker = Worker {
            job: worker::ReportJob(peers.clone()),
            kernel: peers.kernel.clone(),
            clock: clock.clone(),
            status: status.clone(),
            pace: config.pace(),
        };
        tracker.spawn(worker.run(stop.clone()));
    }
    let asked = peers.kernel.clone();
    let health = Health::new("report-worker").with_check("kernel", move || {
        let kernel = asked.clone();
        async move { kernel.ping().await.map_err(|error| error.to_string()) }
    });
    let (router, openapi) = api::routes(api::State { peers, status }, door);
    Ok(Reports { router, openapi, health })
}
