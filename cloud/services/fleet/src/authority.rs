//! The certificate authority (CA) for gateways: a certificate, and a key in a file or in a separate
//! signer process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use contract::{EpochMs, KeyId, OrgId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use trust::x509::{Certificate, RcgenSigner, X509Error};
use trust::{Algorithm, FileKey, FileKeyError, PublicKey, SignError, Signer, SocketKey};

use crate::config::FleetConfig;

/// The key id of the authority's key, also in requests to the signer.
const KEY_ID: &str = "device:authority@fleet";
const SIGN_TIME_MAX: Duration = Duration::from_secs(5);
/// How much a gateway's clock may be behind ours, unless a tenth of the certificate's lifetime is
/// shorter.
const CLOCK_SLACK_MS: i64 = 60 * 60 * 1000;
const DAY_S: u32 = 86_400;
const OWN_LIFE_S: u32 = 3_650 * DAY_S;

/// The reason why the authority cannot be opened or created, or cannot issue a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
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
    #[error("the authority's certificate belongs to another key; check fleet.authority")]
    OtherKey,
    #[error("there is an authority already: {path}", path = path.display())]
    Exists { path: PathBuf },
    #[error("cannot make a certificate: {0}")]
    Make(String),
}

impl From<rcgen::Error> for CaError {
    fn from(error: rcgen::Error) -> Self {
        Self::Make(error.to_string())
    }
}

/// The paths of an authority's certificate and key, or of its signer's socket.
#[derive(Debug, Clone)]
pub struct CaPaths {
    pub certificate: PathBuf,
    key: PathBuf,
    socket: Option<PathBuf>,
}

impl CaPaths {
    /// Returns the configured paths. Paths that are not configured are in the data folder.
    #[must_use]
    pub fn of(config: &FleetConfig, data: &Path) -> Self {
        let a = &config.authority;
        Self {
            certificate: a.cert_file.clone().unwrap_or_else(|| data.join("authority.pem")),
            key: a.key_file.clone().unwrap_or_else(|| data.join("authority.key")),
            socket: a.signer_socket.clone(),
        }
    }

    fn key_id() -> Result<KeyId, CaError> {
        KEY_ID.parse().map_err(|error: contract::IdError| CaError::Make(error.to_string()))
    }

    fn signer(&self) -> Result<Arc<dyn Signer>, CaError> {
        let id = Self::key_id()?;
        Ok(match &self.socket {
            Some(socket) => Arc::new(SocketKey::new(socket, id, SIGN_TIME_MAX)),
            None => Arc::new(FileKey::open(&self.key, id)?),
        })
    }
}

/// The certificate authority: issues the certificates of gateways and of our own listener.
pub struct CertificateAuthority {
    signer: Arc<dyn Signer>,
    certificate: Certificate,
    /// All trusted CA certificates, PEM; the issuing certificate is first.
    pem: String,
}

impl CertificateAuthority {
    /// Creates a new authority: a key, unless a signer or an earlier attempt has one, and a
    /// self-signed certificate for it that is valid for ten years.
    ///
    /// # Errors
    /// When an authority exists already, or files cannot be written.
    pub fn create(places: &CaPaths, now: EpochMs) -> Result<Self, CaError> {
        if places.certificate.exists() {
            return Err(CaError::Exists { path: places.certificate.clone() });
        }
        for file in [&places.certificate, &places.key] {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|source| CaError::Write { path: file.clone(), source })?;
            }
        }
        let signer = match &places.socket {
            Some(_) => places.signer()?,
            // An interrupted creation leaves a key without a certificate.
            None if places.key.exists() => places.signer()?,
            None => Arc::new(FileKey::create(&places.key, CaPaths::key_id()?, Algorithm::Es256)?),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(None, "Sim-Corp fleet authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        set_validity_from_now(&mut params, now, OWN_LIFE_S)?;
        let made = params.self_signed(&RcgenSigner::new(&*signer)?)?;
        let certificate =
            Certificate::from_der(made.der()).map_err(|error| CaError::Make(error.to_string()))?;
        let path = &places.certificate;
        // Write the file atomically: half a certificate would make every later start fail.
        let next = path.with_extension("pem.new");
        std::fs::write(&next, certificate.to_pem())
            .and_then(|()| std::fs::rename(&next, path))
            .map_err(|source| CaError::Write { path: path.clone(), source })?;
        Ok(Self { signer, pem: certificate.to_pem(), certificate })
    }

    /// Opens an existing authority.
    ///
    /// # Errors
    /// When the certificate or the key cannot be read, or they do not belong together.
    pub fn open(places: &CaPaths) -> Result<Self, CaError> {
        let path = &places.certificate;
        let pem = std::fs::read_to_string(path)
            .map_err(|source| CaError::Read { path: path.clone(), source })?;
        let certificate = Certificate::from_pem(&pem)
            .map_err(|source| CaError::Certificate { path: path.clone(), source })?;
        let signer = places.signer()?;
        if signer.public_key()? != certificate.public_key {
            return Err(CaError::OtherKey);
        }
        Ok(Self { signer, certificate, pem })
    }

    /// Returns all trusted CA certificates, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Issues a certificate with which a gateway authenticates. `name` is its common name. The
    /// certificate also contains the organisation and the key id, for people to read.
    ///
    /// # Errors
    /// When the authority's key cannot be used now.
    pub fn issue_gateway_certificate(
        &self,
        (org, key_id, name): (&OrgId, &KeyId, &str),
        public: &PublicKey,
        life_s: u32,
        now: EpochMs,
    ) -> Result<Certificate, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(Some(org.as_str()), name);
        let uri = format!("urn:simcorp:{org}:{key_id}");
        let uri = uri.try_into().map_err(|_| CaError::Make("URI is not ASCII".to_owned()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        set_validity_from_now(&mut params, now, life_s)?;
        self.sign(params, public)
    }

    /// Returns the certificate chain and the private key with which our own listener authenticates
    /// to gateways. The key exists only in memory, and the certificate is issued for `host`.
    ///
    /// # Errors
    /// When the authority's key cannot be used now.
    pub fn issue_listener_certificate(
        &self,
        host: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let key = rcgen::KeyPair::generate()?;
        let public = PublicKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key))
            .map_err(|error| CaError::Make(error.to_string()))?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name = distinguished_name(None, "Sim-Corp fleet");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Valid exactly as long as the authority's own certificate: a gateway whose clock is behind
        // must reach us, also when this process has run for years. The key ends with this process.
        set_validity(&mut params, self.certificate.not_before, self.certificate.not_after)?;
        let certificate = self.sign(params, &public)?;
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        // The chain includes the CA certificate: a gateway that enrols knows only its fingerprint.
        let chain = vec![certificate.der.into(), self.certificate.der.clone().into()];
        Ok((chain, private.into()))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        public: &PublicKey,
    ) -> Result<Certificate, CaError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let der = CertificateDer::from(self.certificate.der.clone());
        let issuer = Issuer::from_ca_cert_der(&der, RcgenSigner::new(&*self.signer)?)?;
        let subject = SubjectPublicKeyInfo::from_der(&public.to_spki())?;
        let signed = params.signed_by(&subject, &issuer)?;
        Certificate::from_der(signed.der()).map_err(|error| CaError::Make(error.to_string()))
    }
}

fn distinguished_name(org: Option<&str>, name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    if let Some(org) = org {
        full.push(DnType::OrganizationName, org);
    }
    full.push(DnType::CommonName, name);
    full
}

/// Returns a random serial number of 128 bits. The first bit is 0, because a serial number is
/// positive (RFC 5280, 4.1.2.2).
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes: [u8; 16] = trust::random().map_err(|error| CaError::Make(error.to_string()))?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets the validity, which starts a little before now for clocks that are behind ours.
fn set_validity_from_now(
    params: &mut CertificateParams,
    now: EpochMs,
    life_s: u32,
) -> Result<(), CaError> {
    let life_ms = i64::from(life_s).saturating_mul(1000);
    let slack_ms = CLOCK_SLACK_MS.min(life_ms / 10);
    set_validity(params, now.minus_ms(slack_ms), now.plus_ms(life_ms))
}

fn set_validity(params: &mut CertificateParams, from: EpochMs, to: EpochMs) -> Result<(), CaError> {
    let date = |at: EpochMs| {
        let since = Duration::from_millis(u64::try_from(at.0).unwrap_or(0));
        rcgen::date_time_ymd(1970, 1, 1).checked_add(since.try_into().ok()?)
    };
    let none = || CaError::Make("a date is out of range".to_owned());
    params.not_before = date(from).ok_or_else(none)?;
    params.not_after = date(to).ok_or_else(none)?;
    Ok(())
}
