//! What a gateway's key may sign. The signer classifies each message before it signs it; it must
//! never sign a message that has none of these purposes. The forms cannot be mistaken for each
//! other: a COSE structure begins with 0x84, a TLS 1.3 proof with 64 spaces, a certificate request
//! with 0x30.

use contract::KeyId;
use coset::iana::Algorithm as CoseAlgorithm;
use coset::{CborSerializable as _, ContentType, Header, RegisteredLabelWithPrivate};
use serde::{Deserialize, Serialize};

use crate::cose::{CONTENT_FRAME, CONTENT_OUTCOME, CONTENT_RECEIPT};
use crate::key::{Algorithm, PublicKey};

/// The largest message that can be signed, in bytes: a frame and its headers.
pub const MESSAGE_BYTES_MAX: usize = 300 * 1024;
/// RFC 8446, 4.4.3: what a TLS 1.3 client signs, before the transcript's hash.
const TLS_CONTEXT: &[u8] = b"TLS 1.3, client CertificateVerify\0";
const TLS_PADDING: usize = 64;
/// The OID of a common name, 2.5.4.3, in DER.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// The purpose of a message that is to be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A frame of samples and events.
    Frame,
    /// The receipt of a closed roast.
    Receipt,
    /// The outcome of a command.
    Outcome,
    /// A request for a certificate of the signing key itself.
    CertificateRequest,
    /// The proof of possession of the key in a TLS 1.3 handshake.
    TlsHandshake,
    /// A certificate. Only a certificate authority's key signs these, and it signs nothing else.
    Certificate,
}

impl Purpose {
    /// The purposes for which a gateway's key signs.
    pub const DEVICE_PURPOSES: [Self; 5] =
        [Self::Frame, Self::Receipt, Self::Outcome, Self::CertificateRequest, Self::TlsHandshake];

    /// Returns the purpose of `message`; `None` if the key `key_id` with the public key `public`
    /// must not sign it.
    #[must_use]
    pub fn classify(message: &[u8], key_id: &KeyId, public: &PublicKey) -> Option<Self> {
        match message.first()? {
            _ if message.len() > MESSAGE_BYTES_MAX => None,
            0x84 => cose_purpose(message, key_id, public.algorithm()),
            b' ' => is_tls_handshake(message).then_some(Self::TlsHandshake),
            0x30 if is_certificate_request(message, key_id, public) => {
                Some(Self::CertificateRequest)
            }
            0x30 => is_certificate(message).then_some(Self::Certificate),
            _ => None,
        }
    }
}

/// Returns the purpose of a COSE `Sig_structure` (RFC 9052, 4.4):
/// `["Signature1", protected, external, payload]`. Returns `None` for any other message.
fn cose_purpose(message: &[u8], key_id: &KeyId, algorithm: Algorithm) -> Option<Purpose> {
    let rest = message.strip_prefix(b"\x84\x6aSignature1")?;
    let (protected, rest) = cbor_byte_string(rest)?;
    let (external, rest) = cbor_byte_string(rest)?;
    let (_payload, rest) = cbor_byte_string(rest)?;
    if !external.is_empty() || !rest.is_empty() {
        return None;
    }
    let header = Header::from_slice(protected).ok()?;
    let expected = match algorithm {
        Algorithm::EdDsa => CoseAlgorithm::EdDSA,
        Algorithm::Es256 => CoseAlgorithm::ES256,
    };
    let ours = header.alg == Some(RegisteredLabelWithPrivate::Assigned(expected))
        && header.key_id == key_id.as_str().as_bytes()
        && header.crit.is_empty()
        && header.rest.is_empty();
    let Some(ContentType::Text(content)) = header.content_type.filter(|_| ours) else {
        return None;
    };
    match content.as_str() {
        CONTENT_FRAME => Some(Purpose::Frame),
        CONTENT_RECEIPT => Some(Purpose::Receipt),
        CONTENT_OUTCOME => Some(Purpose::Outcome),
        _ => None,
    }
}

/// Splits `bytes` after a definite CBOR byte string: its content, and the bytes that follow it.
fn cbor_byte_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = match first {
        0x40..=0x57 => (usize::from(first & 0x1f), rest),
        0x58 => (usize::from(*rest.first()?), &rest[1..]),
        0x59 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        0x5a => (usize::try_from(u32::from_be_bytes(*rest.first_chunk()?)).ok()?, &rest[4..]),
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn is_tls_handshake(message: &[u8]) -> bool {
    let Some((padding, rest)) = message.split_at_checked(TLS_PADDING) else { return false };
    let Some(hash) = rest.strip_prefix(TLS_CONTEXT) else { return false };
    padding.iter().all(|b| *b == b' ') && matches!(hash.len(), 32 | 48)
}

/// Checks a `CertificationRequestInfo` of RFC 2986: version 0, a subject that is our own name and
/// nothing else, our own public key, and no attributes. Our signature must never get a certificate
/// for another key, another name or another use.
fn is_certificate_request(message: &[u8], key_id: &KeyId, public: &PublicKey) -> bool {
    let inner = || {
        let (0x30, inner, []) = der_element(message)? else { return None };
        let (0x02, [0], rest) = der_element(inner)? else { return None };
        let (0x30, subject, rest) = der_element(rest)? else { return None };
        let (0x31, name, []) = der_element(subject)? else { return None };
        let (0x30, name, []) = der_element(name)? else { return None };
        let name = name.strip_prefix(&COMMON_NAME)?;
        let (0x0c, name, []) = der_element(name)? else { return None };
        if name != key_id.as_str().as_bytes() {
            return None;
        }
        let spki = public.to_spki();
        let rest = rest.strip_prefix(spki.as_slice())?;
        let (0xa0, [], []) = der_element(rest)? else { return None };
        Some(())
    };
    inner().is_some()
}

/// Checks a `TBSCertificate` of RFC 5280, 4.1: version 3, then its serial number.
fn is_certificate(message: &[u8]) -> bool {
    let Some((0x30, inner, [])) = der_element(message) else { return false };
    let Some((0xa0, [0x02, 0x01, 0x02], rest)) = der_element(inner) else { return false };
    matches!(der_element(rest), Some((0x02, _, _)))
}

/// Splits off one DER element: its tag, its content, and the bytes that follow it.
fn der_element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = bytes else { return None };
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileKey, SignError, Signer, sign_message};

    fn kid() -> KeyId {
        "device:gw@leipzig".parse().unwrap()
    }

    /// Keeps what it is asked to sign.
    struct Spy(FileKey, std::sync::Mutex<Vec<u8>>);

    impl Signer for Spy {
        fn key_id(&self) -> &KeyId {
            Signer::key_id(&self.0)
        }
        fn public_key(&self) -> Result<PublicKey, SignError> {
            Signer::public_key(&self.0)
        }
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
            *self.1.lock().unwrap() = message.to_vec();
            self.0.sign(message)
        }
    }

    fn asked(algorithm: Algorithm, content: &str, payload: Vec<u8>) -> (Vec<u8>, PublicKey) {
        let key = FileKey::generate(kid(), algorithm).unwrap();
        let public = key.public_key().clone();
        let spy = Spy(key, std::sync::Mutex::default());
        sign_message(&spy, content, payload).unwrap();
        (spy.1.into_inner().unwrap(), public)
    }

    #[test]
    fn our_own_statements_are_known_and_others_are_not() {
        for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
            for (content, purpose) in [
                (CONTENT_FRAME, Some(Purpose::Frame)),
                (CONTENT_RECEIPT, Some(Purpose::Receipt)),
                (CONTENT_OUTCOME, Some(Purpose::Outcome)),
                ("application/vnd.simcorp.command+cbor", None),
                ("application/vnd.simcorp.profile+toml", None),
            ] {
                for length in [0, 20, 200, 70_000] {
                    let (message, public) = asked(algorithm, content, vec![7; length]);
                    assert_eq!(Purpose::classify(&message, &kid(), &public), purpose, "{content}");
                    let other: KeyId = "device:other@leipzig".parse().unwrap();
                    assert_eq!(
                        Purpose::classify(&message, &other, &public),
                        None,
                        "another's name"
                    );
                    let longer = [&message[..], &[0]].concat();
                    assert_eq!(Purpose::classify(&longer, &kid(), &public), None);
                }
            }
        }
    }

    #[test]
    fn a_handshake_is_exactly_tls_13s() {
        let (_, public) = asked(Algorithm::Es256, CONTENT_FRAME, vec![]);
        let proof = |context: &[u8], hash: usize| {
            let message = [&[b' '; 64][..], context, &vec![1; hash]].concat();
            Purpose::classify(&message, &kid(), &public)
        };
        assert_eq!(proof(TLS_CONTEXT, 32), Some(Purpose::TlsHandshake));
        assert_eq!(proof(TLS_CONTEXT, 48), Some(Purpose::TlsHandshake));
        assert_eq!(proof(TLS_CONTEXT, 33), None);
        assert_eq!(proof(b"TLS 1.3, server CertificateVerify\0", 32), None);
    }

    #[test]
    fn a_certificate_is_asked_for_our_own_key_alone() {
        let (_, public) = asked(Algorithm::EdDsa, CONTENT_FRAME, vec![]);
        let (_, another) = asked(Algorithm::EdDsa, CONTENT_FRAME, vec![]);
        let tlv = |tag: u8, body: &[u8]| -> Vec<u8> {
            [&[tag, 0x81, u8::try_from(body.len()).unwrap()][..], body].concat()
        };
        let info = |name: &str, key: &PublicKey, attributes: &[u8]| {
            let name = [&COMMON_NAME[..], &tlv(0x0c, name.as_bytes())].concat();
            let subject = tlv(0x30, &tlv(0x31, &tlv(0x30, &name)));
            let attributes = tlv(0xa0, attributes);
            tlv(0x30, &[&[0x02, 1, 0][..], &subject, &key.to_spki(), &attributes].concat())
        };
        let is = |message: &[u8]| Purpose::classify(message, &kid(), &public);
        let ours = kid().as_str().to_owned();
        assert_eq!(is(&info(&ours, &public, &[])), Some(Purpose::CertificateRequest));
        assert_eq!(is(&info(&ours, &another, &[])), None, "another's key");
        assert_eq!(is(&info("device:eve@leipzig", &public, &[])), None, "another's name");
        assert_eq!(is(&info(&ours, &public, &[0x30, 0])), None, "more than was agreed on");
    }
}
