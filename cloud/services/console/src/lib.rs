//! The console: the web pages for people, and the only service that browsers access. It renders
//! pages, forwards reads and streams to ingestion, and stores no data.
//!
//! It must never show a value without its age, or show an unknown value as zero.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod assets;
mod config;
mod pages;
mod proxy;
mod view;

use http_stack::start::{Context, Service, StartError};
use std::time::Duration;

use service::clock::Clock;
use service::health::Health;
use service::shutdown::CancellationToken;

pub use config::ConsoleConfig;

/// The longest time that ingestion may take to answer a request.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// The state that the handlers share.
#[derive(Clone)]
struct ConsoleState {
    http: reqwest::Client,
    ingestion: String,
    clock: Clock,
    stop: CancellationToken,
}

/// Starts the service: it has no background tasks.
///
/// # Errors
/// When the HTTP client cannot be created.
#[allow(clippy::disallowed_methods)] // the one client, with its limits
pub fn start(config: &ConsoleConfig, context: &Context) -> Result<Service, StartError> {
    let http = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(2))
        .read_timeout(Duration::from_mins(1))
        .build()
        .map_err(StartError::service)?;
    let ingestion = config.ingestion_url.trim_end_matches('/').to_owned();
    let (clock, stop) = (context.clock.clone(), context.stop.clone());
    let state = ConsoleState { http, ingestion, clock, stop };
    let checked = state.clone();
    let health = Health::new("console", context.clock.clone()).with_check("ingestion", move || {
        let (http, url) = (checked.http.clone(), format!("{}/health", checked.ingestion));
        async move {
            let answer = http.get(url).timeout(ANSWER_TIME_MAX).send().await;
            answer
                .and_then(reqwest::Response::error_for_status)
                .map(drop)
                .map_err(|e| e.to_string())
        }
    });
    let router = pages::routes().merge(proxy::routes()).with_state(state).merge(assets::routes());
    let openapi = <proxy::Doc as utoipa::OpenApi>::openapi();
    Ok(Service::new(context, "console", (router, openapi), health).without_authentication())
}
