//! Signed messages, upstream's signatures, and public keys.
#![no_main]
use contract::EpochMs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(signed) = trust::SignedMessage::parse(bytes) {
        // The private half of this key is unknown, so no signature verifies.
        assert!(signed.verify(&trust::PublicKey::Ed25519([7; 32])).is_err());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(key) = trust::PublicKey::from_pem(text) {
            assert_eq!(trust::PublicKey::from_pem(&key.to_pem()).ok(), Some(key));
        }
        let (key, payload) = (trust::PublicKey::Ed25519([7; 32]), serde_json::Value::Null);
        let signed = trust::jws::verify(text, "device:gw@leipzig", &key, &payload, EpochMs(0));
        assert!(signed.is_err());
    }
});
