//! Who certifies gateways: a certificate, and a key in a file or behind a signer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use contract::{EpochMs, KeyId, OrgId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use trust::x509::{Certificate, Issuing, X509Error};
use trust::{Algorithm, FileKey, FileKeyError, PublicKey, SignError, Signer, SocketKey};

use crate::config::FleetConfig;

/// The name under which an authority's key is asked for.
const KEY_ID: &str = "device:authority@fleet";
const SIGN_TIME_MAX: Duration = Duration::from_secs(5);
/// Gateways' clocks may be this much behind ours, or a tenth of the certificate's life.
const CLOCK_SLACK_MS: i64 = 60 * 60 * 1000;
const DAY_S: u32 = 86_400;
const OWN_LIFE_S: u32 = 3_650 * DAY_S;

/// Why there is no authority, or why it does not certify.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority's certificate {path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the authority's certificate {path} cannot be written: {source}", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the authority's certificate {path}: {source}", path = path.display())]
    Certificate { path: PathBuf, source: X509Error },
    #[error(transparent)]
    Key(#[from] FileKeyError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the authority's certificate is of another key; look at fleet.authority")]
    OtherKey,
    #[error("there is an authority already: {path}", path = path.display())]
    Exists { path: PathBuf },
    #[error("cannot make a certificate: {0}")]
    Make(String),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Make(error.to_string())
    }
}

/// Where an authority's things are.
#[derive(Debug, Clone)]
pub struct Places {
    pub certificate: PathBuf,
    key: PathBuf,
    socket: Option<PathBuf>,
}

impl Places {
    /// As configured, else in the data folder.
    #[must_use]
    pub fn of(config: &FleetConfig, data: &Path) -> Self {
        let a = &config.authority;
        Self {
            certificate: a.cert_file.clone().unwrap_or_else(|| data.join("authority.pem")),
            key: a.key_file.clone().unwrap_or_else(|| data.join("authority.key")),
            socket: a.signer_socket.clone(),
        }
    }

    fn key_id() -> Result<KeyId, AuthorityError> {
        KEY_ID.parse().map_err(|error: contract::IdError| AuthorityError::Make(error.to_string()))
    }

    fn signer(&self) -> Result<Arc<dyn Signer>, AuthorityError> {
        let id = Self::key_id()?;
        Ok(match &self.socket {
            Some(socket) => Arc::new(SocketKey::new(socket, id, SIGN_TIME_MAX)),
            None => Arc::new(FileKey::open(&self.key, id)?),
        })
    }
}

/// Certifies gateways.
pub struct Authority {
    signer: Arc<dyn Signer>,
    certificate: Certificate,
    /// All that are believed, the issuing one first, PEM.
    pem: String,
}

impl Authority {
    /// Makes an authority of its own: a key, unless a signer has one, and a certificate of it by
    /// itself, good for ten years.
    ///
    /// # Errors
    /// When there is one already, or files cannot be written.
    pub fn create(places: &Places, now: EpochMs) -> Result<Self, AuthorityError> {
        if places.certificate.exists() {
            return Err(AuthorityError::Exists { path: places.certificate.clone() });
        }
        for file in [&places.certificate, &places.key] {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|source| AuthorityError::Write { path: file.clone(), source })?;
            }
        }
        let signer = match &places.socket {
            Some(_) => places.signer()?,
            // A key without a certificate is what an interrupted creation leaves.
            None if places.key.exists() => places.signer()?,
            None => Arc::new(FileKey::create(&places.key, Places::key_id()?, Algorithm::Es256)?),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = named(None, "Sim-Corp fleet authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        limits(&mut params, now, OWN_LIFE_S)?;
        let made = params.self_signed(&Issuing::new(&*signer)?)?;
        let certificate = Certificate::from_der(made.der())
            .map_err(|error| AuthorityError::Make(error.to_string()))?;
        let path = &places.certificate;
        // Whole or not at all: half a certificate would stop every start after it.
        let next = path.with_extension("pem.new");
        std::fs::write(&next, certificate.to_pem())
            .and_then(|()| std::fs::rename(&next, path))
            .map_err(|source| AuthorityError::Write { path: path.clone(), source })?;
        Ok(Self { signer, pem: certificate.to_pem(), certificate })
    }

    /// Opens the one that was made.
    ///
    /// # Errors
    /// When certificate or key cannot be read, or do not belong together.
    pub fn open(places: &Places) -> Result<Self, AuthorityError> {
        let path = &places.certificate;
        let pem = std::fs::read_to_string(path)
            .map_err(|source| AuthorityError::Read { path: path.clone(), source })?;
        let certificate = Certificate::from_pem(&pem)
            .map_err(|source| AuthorityError::Certificate { path: path.clone(), source })?;
        let signer = places.signer()?;
        if signer.public_key()? != certificate.public {
            return Err(AuthorityError::OtherKey);
        }
        Ok(Self { signer, certificate, pem })
    }

    /// All that are believed, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// A certificate by which a gateway shows who it is: `name` is its common name, organisation and
    /// key are told beside it for people.
    ///
    /// # Errors
    /// When the authority's key cannot be used now.
    pub fn certify(
        &self,
        (org, key_id, name): (&OrgId, &KeyId, &str),
        public: &PublicKey,
        life_s: u32,
        now: EpochMs,
    ) -> Result<Certificate, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(Some(org.as_str()), name);
        let uri = format!("urn:simcorp:{org}:{key_id}");
        let uri = uri.try_into().map_err(|_| AuthorityError::Make("a name".to_owned()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        limits(&mut params, now, life_s)?;
        self.sign(params, public)
    }

    /// What our own listener shows to gateways: a key that lives in memory alone, certified for
    /// `host`.
    ///
    /// # Errors
    /// When the authority's key cannot be used now.
    pub fn listener(
        &self,
        host: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthorityError> {
        let key = rcgen::KeyPair::generate()?;
        let public = PublicKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key))
            .map_err(|error| AuthorityError::Make(error.to_string()))?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name = named(None, "Sim-Corp fleet");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // As long as the authority itself, and from when it was made: a gateway whose clock is behind
        // reaches us, and one that has run for years too. The key ends with this process.
        between(&mut params, self.certificate.not_before, self.certificate.not_after)?;
        let certificate = self.sign(params, &public)?;
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        // The authority's own too: a gateway that enrols knows it by its fingerprint alone.
        let chain = vec![certificate.der.into(), self.certificate.der.clone().into()];
        Ok((chain, private.into()))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        public: &PublicKey,
    ) -> Result<Certificate, AuthorityError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let der = CertificateDer::from(self.certificate.der.clone());
        let issuer = Issuer::from_ca_cert_der(&der, Issuing::new(&*self.signer)?)?;
        let subject = SubjectPublicKeyInfo::from_der(&public.to_spki())?;
        let signed = params.signed_by(&subject, &issuer)?;
        Certificate::from_der(signed.der()).map_err(|error| AuthorityError::Make(error.to_string()))
    }
}

fn named(org: Option<&str>, name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    if let Some(org) = org {
        full.push(DnType::OrganizationName, org);
    }
    full.push(DnType::CommonName, name);
    full
}

/// 128 random bits; the first is 0, since a serial number is positive (RFC 5280, 4.1.2.2).
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes: [u8; 16] =
        trust::random().map_err(|error| AuthorityError::Make(error.to_string()))?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// From a little before now, for clocks that are behind ours.
fn limits(params: &mut CertificateParams, now: EpochMs, life_s: u32) -> Result<(), AuthorityError> {
    let slack_ms = CLOCK_SLACK_MS.min(i64::from(life_s) * 100);
    between(params, now.plus(-slack_ms), now.plus(i64::from(life_s) * 1000))
}

fn between(
    params: &mut CertificateParams,
    from: EpochMs,
    to: EpochMs,
) -> Result<(), AuthorityError> {
    let date = |at: EpochMs| {
        let since = Duration::from_millis(u64::try_from(at.0).unwrap_or(0));
        rcgen::date_time_ymd(1970, 1, 1).checked_add(since.try_into().ok()?)
    };
    let none = || AuthorityError::Make("a date that is none".to_owned());
    params.not_before = date(from).ok_or_else(none)?;
    params.not_after = date(to).ok_or_else(none)?;
    Ok(())
}
