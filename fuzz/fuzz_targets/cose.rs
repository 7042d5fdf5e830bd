#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(signed) = trust::SignedMessage::parse(bytes) {
        // The private half of this key is unknown, so no signature verifies.
        assert!(signed.verify(&trust::PublicKey::Ed25519([7; 32])).is_err());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = trust::PublicKey::from_pem(text);
    }
});
