//! What a gateway and the fleet service send each other: requests and grants as JSON, enrolment
//! tokens, requests for certificates, and certificates.
#![no_main]
use std::sync::LazyLock;

use contract::KeyId;
use contract::enroll::{
    CertificateGrant, EnrollRequest, FleetTime, GatewayIdentity, PendingDecision, RecoverRequest,
    RenewRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trust::x509::{Certificate, create_request, not_before, verify_request};
use trust::{Algorithm, EnrollmentToken, FileKey, Signer};

/// Keys of both algorithms, each with a valid request.
static KEYS: LazyLock<[(FileKey, Vec<u8>); 2]> = LazyLock::new(|| {
    [Algorithm::EdDsa, Algorithm::Es256].map(|algorithm| {
        let key = FileKey::generate("device:gw@leipzig".parse().unwrap(), algorithm).unwrap();
        let request = create_request(&key).unwrap();
        (key, request)
    })
});

/// Checks that a message that can be read is written as one that reads as the same.
fn read_again<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&message).unwrap();
        let again: T = serde_json::from_slice(&written).unwrap();
        assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    }
}

/// Changes valid requests by pairs of a place and a difference. A changed request may only prove the
/// key that made the valid one.
fn change_requests(changes: &[u8]) {
    for (key, request) in &*KEYS {
        let mut changed = request.clone();
        for [place, difference] in changes.as_chunks::<2>().0 {
            let place = usize::from(*place) * changed.len() / 256;
            changed[place] ^= difference;
        }
        match verify_request(&changed, Signer::key_id(key)) {
            Ok(proved) => assert_eq!(&proved, key.public_key()),
            Err(_) => assert!(changed != *request, "the valid request is refused"),
        }
    }
}

fn read_text(text: &str) {
    if let Some(token) = EnrollmentToken::parse(text) {
        assert!(token.url.starts_with("https://"), "{}", token.url);
        let again = EnrollmentToken::parse(&token.reveal()).unwrap();
        assert_eq!((again.url.as_str(), again.digest()), (token.url.as_str(), token.digest()));
    }
    if let Ok(id) = text.parse::<KeyId>() {
        assert_eq!(id.as_str(), text);
    }
    if let Ok(certificate) = Certificate::from_pem(text) {
        assert_eq!(Certificate::from_pem(&certificate.to_pem()).unwrap(), certificate);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    read_again::<EnrollRequest>(bytes);
    read_again::<RenewRequest>(bytes);
    read_again::<RecoverRequest>(bytes);
    read_again::<CertificateGrant>(bytes);
    read_again::<PendingDecision>(bytes);
    read_again::<GatewayIdentity>(bytes);
    read_again::<FleetTime>(bytes);
    change_requests(bytes);
    for (key, _) in &*KEYS {
        let _ = verify_request(bytes, Signer::key_id(key));
    }
    if let Ok(certificate) = Certificate::from_der(bytes) {
        assert_eq!(not_before(bytes), Some(certificate.not_before));
        assert_eq!(certificate.der, bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        read_text(text);
    }
});
