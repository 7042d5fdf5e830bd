//! Access to one key of one token through PKCS#11 (OASIS, versions 2.40 and 3.0).

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Pkcs11Error, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session as Pkcs11Session, UserType};
use cryptoki::slot::Slot;
use secrecy::SecretString;
use trust::{Algorithm, PublicKey};

use crate::config::SignerConfig;

/// OIDs in DER: 1.3.101.112 as a printable curve name and as an OID (modules differ), and P-256.
const CURVE_ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";
const CURVE_ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
const CURVE_P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Why a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the module {module} cannot be loaded; check token.module: {source}")]
    Module { module: String, source: Pkcs11Error },
    #[error("the module has no token {0:?}; see: pkcs11-tool --list-slots, and token.label")]
    NoToken(String),
    #[error("the PIN cannot be read: {0}")]
    PinUnreadable(String),
    #[error("the token rejects the PIN; some tokens lock after three wrong PINs")]
    WrongPin,
    #[error("the token has no key {0:?}; create one with: simcorp-signer create")]
    NoKey(String),
    #[error("the token's key {0:?} is neither Ed25519 nor P-256")]
    UnsupportedKey(String),
    #[error("the token can create neither Ed25519 nor P-256 keys")]
    NoAlgorithm,
    #[error("while {doing}: {source}")]
    Pkcs11 { doing: &'static str, source: Pkcs11Error },
}

fn pkcs11_error(doing: &'static str) -> impl FnOnce(Pkcs11Error) -> TokenError {
    move |source| TokenError::Pkcs11 { doing, source }
}

/// A PKCS#11 token whose module is loaded.
pub struct Token {
    module: Pkcs11,
    slot: Slot,
    pin: SecretString,
    key_label: String,
}

impl Token {
    /// Loads the module and finds the token.
    ///
    /// # Errors
    /// Returns an error that names what to check: module, label or PIN.
    pub fn open(config: &SignerConfig) -> Result<Self, TokenError> {
        let t = &config.token;
        let load = |source| TokenError::Module { module: t.module.display().to_string(), source };
        let module = Pkcs11::new(&t.module).map_err(load)?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        module.initialize(arguments).map_err(pkcs11_error("starting the module"))?;
        let slots = module.get_slots_with_token().map_err(pkcs11_error("listing tokens"))?;
        let labelled = |slot: &Slot| {
            let info = module.get_token_info(*slot);
            info.is_ok_and(|info| info.label().trim_end() == t.label)
        };
        let slot =
            slots.into_iter().find(labelled).ok_or_else(|| TokenError::NoToken(t.label.clone()))?;
        let pin = t.pin.resolve().map_err(|e| TokenError::PinUnreadable(e.to_string()))?;
        let pin = pin.ok_or_else(|| TokenError::PinUnreadable("token.pin is empty".to_owned()))?;
        Ok(Self { module, slot, pin, key_label: config.key.label.clone() })
    }

    /// Opens a session and logs in.
    ///
    /// # Errors
    /// Returns an error if the token is gone, or rejects the PIN.
    pub fn session(&self) -> Result<Session, TokenError> {
        let session =
            self.module.open_rw_session(self.slot).map_err(pkcs11_error("opening a session"))?;
        match session.login(UserType::User, Some(&self.pin)) {
            // The first login of a process is valid for all of its sessions.
            Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Pkcs11Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinLocked | RvError::PinInvalid,
                _,
            )) => return Err(TokenError::WrongPin),
            Err(source) => return Err(TokenError::Pkcs11 { doing: "logging in", source }),
        }
        let mechanisms = self
            .module
            .get_mechanism_list(self.slot)
            .map_err(pkcs11_error("listing the token's mechanisms"))?;
        Ok(Session { inner: session, mechanisms, label: self.key_label.clone(), key: None })
    }
}

/// A logged-in session. Sessions are not shared: each thread has its own.
pub struct Session {
    inner: Pkcs11Session,
    mechanisms: Vec<MechanismType>,
    label: String,
    /// The private key's handle, once it has been found.
    key: Option<(ObjectHandle, Algorithm)>,
}

impl Session {
    /// Returns the public key.
    ///
    /// # Errors
    /// Returns an error if the token has no such key, or it is of another kind.
    pub fn public_key(&self) -> Result<PublicKey, TokenError> {
        const DOING: &str = "reading the public key";
        let key = self.find(ObjectClass::PUBLIC_KEY)?;
        let attributes = [AttributeType::EcParams, AttributeType::EcPoint];
        let found = self.inner.get_attributes(key, &attributes).map_err(pkcs11_error(DOING))?;
        let (mut curve, mut point) = (None, None);
        for attribute in found {
            match attribute {
                Attribute::EcParams(bytes) => curve = Some(bytes),
                Attribute::EcPoint(bytes) => point = Some(bytes),
                _ => {}
            }
        }
        curve
            .zip(point)
            .and_then(|(curve, point)| parse_public_key(&curve, &point))
            .ok_or_else(|| TokenError::UnsupportedKey(self.label.clone()))
    }

    /// Creates a key pair that cannot leave the token.
    ///
    /// # Errors
    /// Returns an error if the token cannot create one.
    pub fn create(&self, label: &str) -> Result<PublicKey, TokenError> {
        let can = |mechanism| self.mechanisms.contains(&mechanism);
        let ed25519 = can(MechanismType::ECC_EDWARDS_KEY_PAIR_GEN) && can(MechanismType::EDDSA);
        let p256 = can(MechanismType::ECC_KEY_PAIR_GEN) && can(MechanismType::ECDSA);
        let (mechanism, curve) = match (ed25519, p256) {
            (true, _) => (Mechanism::EccEdwardsKeyPairGen, CURVE_ED25519_NAME),
            (_, true) => (Mechanism::EccKeyPairGen, CURVE_P256),
            _ => return Err(TokenError::NoAlgorithm),
        };
        let name = Attribute::Label(label.as_bytes().to_vec());
        let id = Attribute::Id(label.as_bytes().to_vec());
        let public = [
            Attribute::Token(true),
            Attribute::Verify(true),
            Attribute::EcParams(curve.to_vec()),
            name.clone(),
            id.clone(),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            name,
            id,
        ];
        self.inner
            .generate_key_pair(&mechanism, &public, &private)
            .map_err(pkcs11_error("creating a key"))?;
        self.public_key()
    }

    /// Signs a message: Ed25519 over the message, ECDSA over its SHA-256, encoded as r‖s.
    ///
    /// # Errors
    /// Returns an error if the token fails; the caller must then discard the session.
    pub fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        let (key, algorithm) = if let Some(cached) = self.key {
            cached
        } else {
            let algorithm = self.public_key()?.algorithm();
            *self.key.insert((self.find(ObjectClass::PRIVATE_KEY)?, algorithm))
        };
        let signed = match algorithm {
            Algorithm::EdDsa => {
                let scheme = EddsaParams::new(EddsaSignatureScheme::Ed25519);
                self.inner.sign(&Mechanism::Eddsa(scheme), key, message)
            }
            Algorithm::Es256 => {
                let digest = trust::sha256_digest(message);
                self.inner.sign(&Mechanism::Ecdsa, key, &digest.0)
            }
        };
        signed.map_err(pkcs11_error("signing"))
    }

    fn find(&self, class: ObjectClass) -> Result<ObjectHandle, TokenError> {
        let template = [Attribute::Class(class), Attribute::Label(self.label.as_bytes().to_vec())];
        let found =
            self.inner.find_objects(&template).map_err(pkcs11_error("looking for the key"))?;
        found.first().copied().ok_or_else(|| TokenError::NoKey(self.label.clone()))
    }
}

/// Builds a public key from curve and point. Modules return the point raw or in a DER octet string.
fn parse_public_key(curve: &[u8], point: &[u8]) -> Option<PublicKey> {
    if curve == CURVE_ED25519_NAME || curve == CURVE_ED25519_OID {
        let raw = point.strip_prefix(&[0x04, 0x20]).filter(|p| p.len() == 32).unwrap_or(point);
        return raw.try_into().ok().map(PublicKey::Ed25519);
    }
    if curve == CURVE_P256 {
        let raw = point.strip_prefix(&[0x04, 0x41]).filter(|p| p.len() == 65).unwrap_or(point);
        return raw.try_into().ok().filter(|p: &[u8; 65]| p[0] == 4).map(PublicKey::P256);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_are_parsed_with_and_without_der_wrapping() {
        let raw = [7; 32];
        let wrapped = [&[0x04, 0x20][..], &raw].concat();
        let key = Some(PublicKey::Ed25519(raw));
        assert_eq!(parse_public_key(CURVE_ED25519_OID, &raw), key);
        assert_eq!(parse_public_key(CURVE_ED25519_NAME, &wrapped), key);
        let mut raw = [9; 65];
        raw[0] = 4;
        let wrapped = [&[0x04, 0x41][..], &raw].concat();
        assert_eq!(parse_public_key(CURVE_P256, &raw), Some(PublicKey::P256(raw)));
        assert_eq!(parse_public_key(CURVE_P256, &wrapped), Some(PublicKey::P256(raw)));
        assert_eq!(parse_public_key(CURVE_P256, &raw[..64]), None);
        assert_eq!(parse_public_key(&[0x06, 0x05], &raw), None);
    }
}
