//! Reports: a worker that claims `generate-roast-report` missions, reads what is stored about the
//! roast, writes the report (as text, and as a page that can be printed), and sends the outcome to
//! the kernel.
//!
//! A roast has one report, however often its mission runs: a second attempt finds the report of the
//! first and returns it as the outcome.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
mod config;
mod markdown;
mod page;
mod worker;

use std::sync::Arc;

use http_stack::start::{Context, Service, StartError, check_service};
use mission_worker::{SharedStats, Worker};
use service::health::Health;
use service_client::ServiceClient;

pub use config::ReportsConfig;

/// Clients of the services that the worker calls.
#[derive(Clone)]
pub(crate) struct ServiceClients {
    pub kernel: ServiceClient,
    pub ingestion: ServiceClient,
    pub analytics: ServiceClient,
}

/// Starts the service: its workers run on the context's tasks.
///
/// # Errors
/// When no HTTP client can be created.
pub fn start(config: &ReportsConfig, context: &Context) -> Result<Service, StartError> {
    let clients = ServiceClients {
        kernel: context.client("kernel", &config.kernel_url)?,
        ingestion: context.client("ingestion", &config.ingestion_url)?,
        analytics: context.client("analytics", &config.analytics_url)?,
    };
    let status = SharedStats::default();
    for _ in 0..config.workers {
        let worker = Worker {
            job: worker::ReportJob(clients.clone()),
            kernel: clients.kernel.clone(),
            clock: context.clock.clone(),
            status: status.clone(),
            pace: config.pace(),
        };
        // A mission that a run loses is claimed again when its lease has expired.
        let (worker, stop) = (Arc::new(worker), context.stop.clone());
        context.tasks.spawn_restarting("report-worker", move || {
            let (worker, stop) = (worker.clone(), stop.clone());
            async move { worker.run(stop).await }
        });
    }
    let health = check_service(
        Health::new("report-worker", context.clock.clone()),
        "kernel",
        &clients.kernel,
    );
    Ok(Service::new(context, "reports", api::routes(api::State { clients, status }), health))
}
