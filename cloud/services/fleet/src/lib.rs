//! The fleet: which gateways there are, which keys they have, who certified them, and what the broker
//! lets them do.
//!
//! A gateway's private key never leaves its hardware and is never asked for. A person's token lets a
//! gateway in once; a certificate is renewed by proof of the one before; one that has expired, by
//! proof of the same key and a person's consent. Whoever is revoked is refused everywhere within a
//! minute. Every operation on a key is in the audit log.

mod api;
pub mod authority;
mod broker;
mod config;
pub mod device;
mod gateway;
pub mod store;

use std::path::Path;
use std::sync::Arc;

use ::database::Store;
use ::database::idempotency::Idempotency;
use contract::EpochMs;
use contract::enroll::BrokerAddress;
use http_stack::AccessLayer;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use service::clock::Clock;
use service::health::Health;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authority::{Authority, AuthorityError, Places};
pub use config::FleetConfig;
pub use store::FleetStore;

/// Gateways answered at once: strangers reach these routes, and share the database with everybody.
const AT_ONCE_MAX: usize = 64;

/// A running fleet: its routes, and what they need.
pub struct Fleet {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
    /// For gateways, by TLS. `None` while there is no authority.
    pub gateways: Option<Gateways>,
}

/// What gateways are answered with.
pub struct Gateways {
    pub router: axum::Router,
    pub tls: Arc<ServerConfig>,
}

/// Why the fleet cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("fleet.broker.ca_file {path}: {source}")]
    BrokerAuthority { path: String, source: std::io::Error },
    #[error("the listener for gateways: {0}")]
    Tls(String),
    #[error(transparent)]
    Broker(#[from] service::mqtt::BrokerError),
}

/// Where the authority is, and whether one may be made.
#[derive(Debug, Clone, Copy)]
pub struct Home<'h> {
    pub data: &'h Path,
    /// In development, so that nothing has to be set up.
    pub make_authority: bool,
}

/// Opens the authority, builds the routes, and keeps the broker's list on `tracker` until `stop`.
///
/// # Errors
/// When authority or broker are configured wrongly.
pub fn start(
    (config, mqtt): (&FleetConfig, &service::mqtt::Broker),
    door: &AccessLayer,
    database: Store,
    home: Home<'_>,
    clock: &Clock,
    (tracker, stop): (&TaskTracker, &CancellationToken),
) -> Result<Fleet, StartError> {
    // Without it nobody new is let in; all else goes on.
    let (authority, problem) = match open_authority(config, home, clock()) {
        Ok(authority) => (authority.map(Arc::new), None),
        Err(error) => {
            tracing::error!(%error, "no gateway can be certified until this is mended");
            (None, Some(format!("{error}; start anew when it is mended")))
        }
    };
    let kept = Idempotency::new(database.clone(), clock.clone());
    let store = FleetStore::new(database);
    let changed = Arc::new(Notify::new());
    let mut health = Health::new("fleet");
    let asked = store.clone();
    health = health.check("database", move || {
        let store = asked.clone();
        async move { store.database().ping().await.map_err(|error| error.to_string()) }
    });
    health = health.check("authority", move || {
        let problem = problem.clone();
        async move { problem.map_or(Ok(()), Err) }
    });
    if config.broker.dynamic_security && mqtt.is_configured() {
        let told = broker::start(
            (config, mqtt),
            store.clone(),
            changed.clone(),
            clock.clone(),
            (tracker, stop),
        )?;
        health = health.check("broker", move || {
            let told = told.clone();
            async move { told.is_current() }
        });
    }
    let gateways = authority.clone().map(|authority| -> Result<Gateways, StartError> {
        let tls = tls(&authority, config)?;
        let state = gateway::State {
            store: store.clone(),
            clock: clock.clone(),
            broker: broker_address(config, &authority)?,
            authority,
            life_s: config.certificate_life_s,
            gateway_url: config.gateway_url.clone(),
            changed: changed.clone(),
        };
        let router = service::http::bare(gateway::routes(state), "fleet-gateways", AT_ONCE_MAX);
        Ok(Gateways { router, tls })
    });
    let state = api::State {
        store,
        clock: clock.clone(),
        authority,
        gateway_url: config.gateway_url.clone(),
        changed,
    };
    let (router, openapi) = api::routes(state, kept, door);
    Ok(Fleet { router, openapi, health, gateways: gateways.transpose()? })
}

fn open_authority(
    config: &FleetConfig,
    home: Home<'_>,
    now: EpochMs,
) -> Result<Option<Authority>, AuthorityError> {
    let places = Places::of(config, home.data);
    if places.certificate.exists() {
        return Authority::open(&places).map(Some);
    }
    if home.make_authority {
        match Authority::create(&places, now) {
            // Another instance was faster.
            Err(_) if places.certificate.exists() => return Authority::open(&places).map(Some),
            made => return made.map(Some),
        }
    }
    tracing::warn!("there is no authority for gateways; make one with: simcorp authority create");
    Ok(None)
}

fn broker_address(
    config: &FleetConfig,
    authority: &Authority,
) -> Result<Option<BrokerAddress>, StartError> {
    if config.broker.host.is_empty() {
        return Ok(None);
    }
    let certified_by = match &config.broker.ca_file {
        None => authority.pem().to_owned(),
        Some(path) => std::fs::read_to_string(path).map_err(|source| {
            StartError::BrokerAuthority { path: path.display().to_string(), source }
        })?,
    };
    let mut certificates = rustls_certificates(&certified_by);
    if certificates.next().is_none_or(|first| first.is_err()) || certificates.any(|c| c.is_err()) {
        return Err(StartError::Tls("fleet.broker.ca_file holds no certificate".to_owned()));
    }
    drop(certificates);
    let (host, port) = (config.broker.host.clone(), config.broker.port);
    Ok(Some(BrokerAddress { host, port, authority: certified_by }))
}

/// TLS 1.3 with a certificate of our own authority. Who shows a certificate is verified; who shows
/// none may still enrol or recover.
fn tls(authority: &Authority, config: &FleetConfig) -> Result<Arc<ServerConfig>, StartError> {
    let wrong = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_certificates(authority.pem()) {
        roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(&error))?;
    let host = config.host().unwrap_or_default();
    let (chain, key) = authority.listener(host)?;
    let mut tls = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&error))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

fn rustls_certificates(
    pem: &str,
) -> impl Iterator<
    Item = Result<rustls::pki_types::CertificateDer<'static>, rustls::pki_types::pem::Error>,
> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::pem_slice_iter(pem.as_bytes())
}
