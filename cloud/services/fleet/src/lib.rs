//! The fleet service: the registry of gateways, their keys and certificates, the certificate
//! authority, and what the broker allows each gateway to do.
//!
//! A gateway's private key never leaves its hardware and is never requested.
//! A gateway enrols once, with an enrolment token that a person created.
//! It renews a certificate by proof of the certificate before.
//! It replaces an expired certificate by proof of the same key and a person's approval.
//! A revoked gateway is refused everywhere within a minute.
//! Every operation on a key is in the audit log.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
pub mod authority;
mod broker;
mod config;
pub mod device;
mod gateway;
pub mod places;
pub mod store;

use axum::middleware::from_fn_with_state;
use http_stack::stack::endpoint_router;
use http_stack::start::{Context, Service, StartError, TlsEndpoint, check_database};
use std::sync::Arc;

use contract::enroll::BrokerAddress;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use service::health::Health;
use tokio::sync::Notify;

use crate::authority::{CaError, CaPaths, CertificateAuthority};
pub use config::FleetConfig;
use places::{PlaceLimits, Places, take_place};
pub use store::FleetStore;

/// The reason why the fleet cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FleetStartError {
    #[error(transparent)]
    Authority(#[from] CaError),
    #[error("fleet.broker.ca_file {path}: {source}")]
    BrokerAuthority { path: String, source: std::io::Error },
    #[error("the TLS listener for gateways: {0}")]
    Tls(String),
}

/// Opens the certificate authority, builds the routers, and spawns the task that
/// synchronises the broker's access list until `stop`.
///
/// # Errors
/// When the broker is configured wrongly, or the listener for gateways cannot be set up.
pub fn start(config: &FleetConfig, context: &Context) -> Result<Service, StartError> {
    let (clock, tasks, stop) = (&context.clock, &context.tasks, &context.stop);
    let database = context.database("fleet")?;
    // Without the authority no gateway can enrol, renew or recover; everything else works.
    let (authority, problem) = match open_authority(config, context) {
        Ok(authority) => (authority.map(Arc::new), None),
        Err(error) => {
            tracing::error!(%error, "no gateway can get a certificate until this is repaired");
            (None, Some(format!("{error}; repair this, then restart the service")))
        }
    };
    let store = FleetStore::new(database.clone());
    let changed = Arc::new(Notify::new());
    let mut health = check_database(Health::new("fleet", context.clock.clone()), store.database());
    health = health.with_check("authority", move || {
        let problem = problem.clone();
        async move { problem.map_or(Ok(()), Err) }
    });
    if config.broker.dynamic_security && context.mqtt.is_configured() {
        let status = broker::start(
            (config, &context.mqtt),
            store.clone(),
            changed.clone(),
            clock.clone(),
            (tasks, stop),
        )?;
        health = health.with_check("broker", move || {
            let status = status.clone();
            async move { status.is_current() }
        });
    }
    let gateways = authority.clone().map(|authority| -> Result<TlsEndpoint, FleetStartError> {
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
        let places = Places::new(PlaceLimits::default());
        let routes = gateway::routes(state).layer(from_fn_with_state(places, take_place));
        let router = endpoint_router(routes, "fleet-gateways");
        Ok(TlsEndpoint { router, config: tls })
    });
    let state = api::State {
        store,
        clock: clock.clone(),
        authority,
        gateway_url: config.gateway_url.clone(),
        changed,
    };
    let mut service = Service::new(context, "fleet", api::routes(state), health)
        .with_idempotency(&database, &context.clock);
    service.tls = gateways.transpose().map_err(StartError::service)?;
    Ok(service)
}

fn open_authority(
    config: &FleetConfig,
    context: &Context,
) -> Result<Option<CertificateAuthority>, CaError> {
    let places = CaPaths::of(config, &context.data);
    if places.certificate.exists() {
        return CertificateAuthority::open(&places).map(Some);
    }
    if context.development {
        match CertificateAuthority::create(&places, (context.clock)()) {
            // Another instance created it first.
            Err(_) if places.certificate.exists() => {
                return CertificateAuthority::open(&places).map(Some);
            }
            made => return made.map(Some),
        }
    }
    tracing::warn!("no authority for gateways exists; create one with: simcorp authority create");
    Ok(None)
}

fn broker_address(
    config: &FleetConfig,
    authority: &CertificateAuthority,
) -> Result<Option<BrokerAddress>, FleetStartError> {
    if config.broker.host.is_empty() {
        return Ok(None);
    }
    let certified_by = match &config.broker.ca_file {
        None => authority.pem().to_owned(),
        Some(path) => std::fs::read_to_string(path).map_err(|source| {
            FleetStartError::BrokerAuthority { path: path.display().to_string(), source }
        })?,
    };
    let mut certificates = rustls_certificates(&certified_by);
    if certificates.next().is_none_or(|first| first.is_err()) || certificates.any(|c| c.is_err()) {
        return Err(FleetStartError::Tls(
            "fleet.broker.ca_file has no valid certificate".to_owned(),
        ));
    }
    drop(certificates);
    let (host, port) = (config.broker.host.clone(), config.broker.port);
    Ok(Some(BrokerAddress { host, port, authority: certified_by }))
}

/// Returns a TLS 1.3 configuration with a certificate of our own authority. If a client sends a
/// certificate, it is verified; a client without a certificate may still enrol or recover.
fn tls(
    authority: &CertificateAuthority,
    config: &FleetConfig,
) -> Result<Arc<ServerConfig>, FleetStartError> {
    let wrong = |error: &dyn std::fmt::Display| FleetStartError::Tls(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_certificates(authority.pem()) {
        roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(&error))?;
    let host = config.host().unwrap_or_default();
    let (chain, key) = authority.issue_listener_certificate(host)?;
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
