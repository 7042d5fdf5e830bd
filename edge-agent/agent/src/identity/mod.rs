//! The gateway's identity in the cloud: the certificate of its key, and how the certificate is
//! renewed.

pub mod enroll;
mod fleet_client;
pub mod renewal;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use contract::EpochMs;
use contract::enroll::CertificateGrant;
use rustls::ClientConfig;
use tokio::sync::Notify;
use trust::tls::{ClientCertificate, HandshakeKey};
use trust::x509::{Certificate, X509Error};
use trust::{SignError, Signer};

use crate::config::EdgeConfig;
use crate::files::write_atomically;
use crate::trusted_clock::TrustedClock;

const FILE: &str = "identity.json";

/// Why the gateway has no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path} cannot be used: {problem}; enrol again", path = path.display())]
    File { path: PathBuf, problem: String },
    #[error("{path}: {source}", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the certificate belongs to another key than the gateway's; enrol again")]
    KeyMismatch,
    #[error("the certificate: {0}")]
    Certificate(#[from] X509Error),
    #[error(transparent)]
    Key(#[from] SignError),
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// The result of an enrolment or a renewal, with the parsed certificate.
#[derive(Debug, Clone)]
pub struct Enrolled {
    pub granted: CertificateGrant,
    pub certificate: Certificate,
}

impl Enrolled {
    /// Reads a stored enrolment. Does not compare the certificate with the key, because the signer
    /// may start later than the agent.
    ///
    /// # Errors
    /// When it contains no certificate.
    pub fn from_stored(granted: CertificateGrant) -> Result<Self, IdentityError> {
        let certificate = Certificate::from_pem(&granted.certificate)?;
        Ok(Self { granted, certificate })
    }

    /// Checks an enrolment that the fleet has just returned.
    ///
    /// # Errors
    /// When the certificate does not belong to that key, or an authority's certificate is invalid.
    pub fn from_grant(
        granted: CertificateGrant,
        signer: &dyn Signer,
    ) -> Result<Self, IdentityError> {
        let enrolled = Self::from_stored(granted)?;
        if enrolled.certificate.public_key != signer.public_key()? {
            return Err(IdentityError::KeyMismatch);
        }
        // What is stored must be usable at the next start.
        tls::parse_ca_certificates(&enrolled.granted.authority)?;
        if let Some(broker) = &enrolled.granted.broker {
            tls::parse_ca_certificates(&broker.authority)?;
        }
        Ok(enrolled)
    }
}

/// Returns the folder in which the enrolment is stored.
#[must_use]
pub fn folder(config: &EdgeConfig) -> PathBuf {
    config.journal.folder.join("identity")
}

/// Reads the stored enrolment. Returns `None` if this gateway has never enrolled.
///
/// # Errors
/// When the file is damaged or cannot be read.
pub fn read(folder: &Path) -> Result<Option<CertificateGrant>, IdentityError> {
    let path = folder.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(IdentityError::File { path, problem: error.to_string() }),
    };
    let damaged =
        |error: serde_json::Error| IdentityError::File { path, problem: error.to_string() };
    serde_json::from_str(&text).map(Some).map_err(damaged)
}

/// Stores the enrolment.
///
/// # Errors
/// When the folder cannot be written.
pub fn save(folder: &Path, granted: &CertificateGrant) -> Result<(), IdentityError> {
    let path = folder.join(FILE);
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        write_atomically(&path, serde_json::to_string_pretty(granted)?.as_bytes())?;
        chown_to_agent(folder, &path)
    };
    write().map_err(|source| IdentityError::Write { path: path.clone(), source })
}

/// Gives the written files to the owner of the journal's folder: root may enrol, but the agent's
/// own user must be able to renew.
fn chown_to_agent(folder: &Path, file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let Some(journal) = folder.parent() else { return Ok(()) };
    let owner = std::fs::metadata(journal)?;
    for path in [folder, file] {
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// The identity as the running agent uses it. The uplink presents it and the renewal replaces it;
/// both share it.
#[derive(Clone)]
pub struct Identity {
    folder: PathBuf,
    signer: Arc<dyn Signer>,
    enrolled: Arc<Mutex<Enrolled>>,
    shown: ClientCertificate,
    time: TrustedClock,
    /// Notified when the fleet has named another broker.
    broker_changed: Arc<Notify>,
}

impl Identity {
    /// Opens the stored identity, ready to be presented in a handshake. Returns `None` if this
    /// gateway has never enrolled.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn open(
        folder: &Path,
        signer: Arc<dyn Signer>,
        time: TrustedClock,
    ) -> Result<Option<Self>, IdentityError> {
        let Some(granted) = read(folder)? else { return Ok(None) };
        let enrolled = Enrolled::from_stored(granted)?;
        time.raise_floor(enrolled.certificate.not_before);
        let shown = ClientCertificate::default();
        let folder = folder.to_owned();
        let current = Arc::new(Mutex::new(enrolled.clone()));
        let identity =
            Self { folder, signer, enrolled: current, shown, time, broker_changed: Arc::default() };
        identity.present(&enrolled);
        Ok(Some(identity))
    }

    fn present(&self, enrolled: &Enrolled) {
        let key = HandshakeKey::new(self.signer.clone(), &enrolled.certificate.public_key);
        self.shown.replace(&enrolled.certificate.der, key);
    }

    /// Returns the present enrolment.
    #[must_use]
    pub fn enrolled(&self) -> Enrolled {
        self.enrolled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when the present certificate expires.
    #[must_use]
    pub fn expires(&self) -> EpochMs {
        self.enrolled().certificate.not_after
    }

    /// Stores `enrolled` and uses it from the next handshake on, also after a restart.
    fn replace(&self, enrolled: Enrolled) -> Result<(), IdentityError> {
        save(&self.folder, &enrolled.granted)?;
        self.present(&enrolled);
        self.time.raise_floor(enrolled.certificate.not_before);
        let broker_changed = self.enrolled().granted.broker != enrolled.granted.broker;
        *self.enrolled.lock().unwrap_or_else(PoisonError::into_inner) = enrolled;
        if broker_changed {
            self.broker_changed.notify_one();
        }
        Ok(())
    }

    /// Waits until the fleet names another broker than before.
    pub async fn broker_changed(&self) {
        self.broker_changed.notified().await;
    }

    /// Returns a TLS configuration that trusts servers certified by `authorities` (PEM) and
    /// presents this gateway's certificate.
    ///
    /// # Errors
    /// When `authorities` contains no valid certificate.
    pub fn client_config(&self, authorities: &str) -> Result<ClientConfig, IdentityError> {
        tls::client_config(authorities, Some(self.shown.clone()), &self.time)
    }
}
