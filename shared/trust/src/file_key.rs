//! A private key in a file, for development. A file can be copied; a key in a PKCS#11 token cannot.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use contract::KeyId;

use crate::key::{Algorithm, PublicKey, SignError, Signer, pem_body, to_pem};

/// The largest private key file. A real one has a few hundred bytes.
const KEY_BYTES_MAX: u64 = 16 * 1024;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileKeyError {
    /// The file cannot be opened, read or written.
    #[error("cannot open the key {path}; check the path and its owner", path = path.display())]
    Open {
        /// The path of the key file.
        path: PathBuf,
        /// The reason of the operating system.
        source: std::io::Error,
    },
    /// Users other than the owner have access to the file.
    #[error(
        "the key {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}",
        path = path.display()
    )]
    Exposed {
        /// The path of the key file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file belongs to another user, and this process is not root.
    #[error("the key {path} belongs to another user (uid {owner})", path = path.display())]
    Owner {
        /// The path of the key file.
        path: PathBuf,
        /// The user id of the owner.
        owner: u32,
    },
    /// The content is not a supported private key.
    #[error(
        "{path} is not an Ed25519 or P-256 private key (PKCS#8 PEM)",
        path = path.display()
    )]
    Format {
        /// The path of the key file.
        path: PathBuf,
    },
    /// The system provided no random numbers.
    #[error("the system provided no random numbers for a new key")]
    Random,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// A key pair read from a file of mode 0600.
pub struct FileKey {
    key_id: KeyId,
    pair: Pair,
    public: PublicKey,
}

impl FileKey {
    /// Reads a private key in PKCS#8 PEM.
    ///
    /// # Errors
    /// When the file cannot be read, is not a key, belongs to another user, or is accessible to any
    /// user but its owner.
    pub fn open(path: &Path, key_id: KeyId) -> Result<Self, FileKeyError> {
        let open = |source| FileKeyError::Open { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(open)?;
        // Of the opened file, not of the path: the file cannot be exchanged in between.
        let metadata = file.metadata().map_err(open)?;
        if metadata.mode() & 0o077 != 0 {
            return Err(FileKeyError::Exposed {
                path: path.to_owned(),
                mode: metadata.mode() & 0o7777,
            });
        }
        let user = rustix::process::geteuid();
        if metadata.uid() != user.as_raw() && !user.is_root() {
            return Err(FileKeyError::Owner { path: path.to_owned(), owner: metadata.uid() });
        }
        let mut text = String::new();
        let format = || FileKeyError::Format { path: path.to_owned() };
        file.take(KEY_BYTES_MAX).read_to_string(&mut text).map_err(|_| format())?;
        let der = pem_body(&text, "PRIVATE KEY").ok_or_else(format)?;
        Self::from_pkcs8(&der, key_id).ok_or_else(format)
    }

    /// Generates a new key and writes it with mode 0600. It never overwrites an existing file.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(path: &Path, key_id: KeyId, algorithm: Algorithm) -> Result<Self, FileKeyError> {
        let key = Self::generate(key_id, algorithm)?;
        let der = match &key.pair {
            Pair::Ed25519(pair) => pair.to_pkcs8().map(|d| d.as_ref().to_vec()),
            Pair::P256(pair) => pair.to_pkcs8v1().map(|d| d.as_ref().to_vec()),
        };
        let der = der.map_err(|_| FileKeyError::Random)?;
        // Complete or not at all, and never over an existing file: hard_link fails if one exists.
        let next = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let _ = std::fs::remove_file(&next);
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
            file.write_all(to_pem("PRIVATE KEY", &der).as_bytes())?;
            file.sync_all()?;
            let linked = std::fs::hard_link(&next, path);
            std::fs::remove_file(&next)?;
            linked
        };
        write().map_err(|source| FileKeyError::Open { path: path.to_owned(), source })?;
        Ok(key)
    }

    /// Generates a key that exists in memory only, for load generators and tests.
    ///
    /// # Errors
    /// When the system provides no random numbers.
    pub fn generate(key_id: KeyId, algorithm: Algorithm) -> Result<Self, FileKeyError> {
        let pair = match algorithm {
            Algorithm::EdDsa => Ed25519KeyPair::generate().map(Pair::Ed25519),
            Algorithm::Es256 => {
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Pair::P256)
            }
        };
        pair.ok().and_then(|pair| Self::from_pair(pair, key_id)).ok_or(FileKeyError::Random)
    }

    /// Returns the public key.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn from_pkcs8(der: &[u8], key_id: KeyId) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map(Pair::Ed25519).or_else(|_| {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Pair::P256)
        });
        Self::from_pair(pair.ok()?, key_id)
    }

    fn from_pair(pair: Pair, key_id: KeyId) -> Option<Self> {
        let spki: PublicKeyX509Der<'_> = match &pair {
            Pair::Ed25519(pair) => pair.public_key().as_der().ok()?,
            Pair::P256(pair) => pair.public_key().as_der().ok()?,
        };
        let public = PublicKey::from_spki(spki.as_ref()).ok()?;
        Some(Self { key_id, pair, public })
    }
}

impl Signer for FileKey {
    fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    fn public_key(&self) -> Result<PublicKey, SignError> {
        Ok(self.public.clone())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => pair
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| SignError {
                    key_id: self.key_id.clone(),
                    problem: "no random numbers for ES256".to_owned(),
                }),
        }
    }
}
