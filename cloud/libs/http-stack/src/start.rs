//! The skeleton of a service: what every service is started with, and what it returns.
//!
//! A service crate has one `start(&Config, &Context) -> Result<Service, StartError>`. `simcorp
//! serve` is a table of them; see `docs/guides/add-a-service.md`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cache::Cache;
use database::idempotency::Idempotency;
use database::{Database, StoreError};
use rustls::ServerConfig;
use service::clock::Clock;
use service::health::Health;
use service::metrics::Metrics;
use service::mqtt::{BrokerError, BrokerSettings};
use service::origin::AllowedOrigins;
use service::secret::Secret;
use service::tasks::Tasks;
use service_client::{ServiceClient, ServiceClientError};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;

use crate::access::AccessControl;

/// A service, ready to be served by [`crate::stack::service_router`].
pub struct Service {
    /// The name in the configuration and on the command line.
    pub name: &'static str,
    /// The routes, without any layer.
    pub routes: axum::Router,
    pub openapi: OpenApi,
    pub health: Health,
    /// Who may call the routes. `None`: they need no credentials, and have no rate limit.
    pub access: Option<AccessControl>,
    /// Whether callers need no credentials, because the service listens on this machine alone. Then
    /// what pages of other sites make a browser send is refused.
    pub development: bool,
    /// The origins of other sites whose pages may call the routes.
    pub origins: AllowedOrigins,
    /// Where the responses to requests with an `Idempotency-Key` are stored. `None`: the header is
    /// ignored.
    pub idempotency: Option<Idempotency>,
    /// A second listener, for clients that show a certificate.
    pub tls: Option<TlsEndpoint>,
}

/// The router and the TLS configuration of a second listener.
pub struct TlsEndpoint {
    pub router: axum::Router,
    pub config: Arc<ServerConfig>,
}

impl Service {
    /// Creates a service whose callers authenticate, and whose rate is limited.
    #[must_use]
    pub fn new(
        context: &Context,
        name: &'static str,
        (routes, openapi): (axum::Router, OpenApi),
        health: Health,
    ) -> Self {
        let access = Some(context.access.clone());
        let health = health.with_tasks(&context.tasks);
        let development = context.development;
        let origins = context.origins.clone();
        Self {
            name,
            routes,
            openapi,
            health,
            access,
            development,
            origins,
            idempotency: None,
            tls: None,
        }
    }

    /// Lets anyone call the routes, but no page of another site.
    #[must_use]
    pub fn without_authentication(self) -> Self {
        Self { access: None, origins: AllowedOrigins::default(), ..self }
    }

    /// Answers repeated requests with the same `Idempotency-Key` from `database`.
    #[must_use]
    pub fn with_idempotency(self, database: &Database, clock: &Clock) -> Self {
        let keys = Idempotency::new(database.clone(), clock.clone());
        Self { idempotency: Some(keys), ..self }
    }
}

/// What the services of a process share.
#[derive(Clone)]
pub struct Context {
    pub access: AccessControl,
    pub cache: Cache,
    pub clock: Clock,
    /// `None` if no service of this process stores anything.
    pub database: Option<Database>,
    pub mqtt: BrokerSettings,
    /// The API key that services send to each other.
    pub service_token: Secret,
    /// The folder for files that a service creates.
    pub data: PathBuf,
    /// Whether callers need no credentials. Everything then listens on loopback only.
    pub development: bool,
    /// The origins of other sites whose pages may call the services.
    pub origins: AllowedOrigins,
    /// Background tasks; a shutdown waits for them.
    pub tasks: Tasks,
    /// Cancelled when the process stops.
    pub stop: CancellationToken,
}

/// Why a service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} needs a database, and this process has opened none")]
    NoDatabase(&'static str),
    #[error(transparent)]
    Database(#[from] StoreError),
    #[error(transparent)]
    Client(#[from] ServiceClientError),
    #[error(transparent)]
    Mqtt(#[from] BrokerError),
    /// An error that only one service can have.
    #[error(transparent)]
    Service(Box<dyn std::error::Error + Send + Sync>),
}

impl StartError {
    /// Wraps an error that only this service can have, for `map_err`.
    pub fn service(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Service(error.into())
    }
}

impl Context {
    /// Returns the database, for a service that cannot work without one.
    ///
    /// # Errors
    /// [`StartError::NoDatabase`] with the service's name.
    pub fn database(&self, service: &'static str) -> Result<Database, StartError> {
        self.database.clone().ok_or(StartError::NoDatabase(service))
    }

    /// Returns the context of one service: its tasks record to `metrics`.
    #[must_use]
    pub fn with_metrics(&self, metrics: &Metrics) -> Self {
        Self { tasks: self.tasks.with_metrics(metrics), ..self.clone() }
    }

    /// Creates a client of another service, with the credential of our own services.
    ///
    /// # Errors
    /// When no HTTP client can be created.
    pub fn client(&self, service: &'static str, url: &str) -> Result<ServiceClient, StartError> {
        Ok(ServiceClient::new(service, url, &self.service_token)?)
    }
}

/// Adds the check that the database answers.
#[must_use]
pub fn check_database(health: Health, database: &Database) -> Health {
    let database = database.clone();
    health.with_check("database", move || {
        let database = database.clone();
        async move { database.ping().await.map_err(|error| error.to_string()) }
    })
}

/// Adds the check that another service answers.
#[must_use]
pub fn check_service(health: Health, name: &'static str, client: &ServiceClient) -> Health {
    let client = client.clone();
    health.with_check(name, move || {
        let client = client.clone();
        async move { client.ping().await.map_err(|error| error.to_string()) }
    })
}

/// Adds the check that the broker is connected.
#[must_use]
pub fn check_mqtt(health: Health, connected: impl Fn() -> bool + Send + Sync + 'static) -> Health {
    health.with_check("mqtt", move || {
        let up = connected();
        async move { if up { Ok(()) } else { Err("not connected to the broker".to_owned()) } }
    })
}

/// Adds the check that the broker is connected, by the flag that its connection keeps.
#[must_use]
pub fn check_mqtt_flag(health: Health, connected: Arc<AtomicBool>) -> Health {
    check_mqtt(health, move || connected.load(Ordering::Relaxed))
}
