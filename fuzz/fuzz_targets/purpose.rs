#![no_main]
//! Requests to the signer, and what they ask it to sign.

use trust::{PublicKey, Purpose};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let kid = "device:gw@leipzig".parse().unwrap();
    let _ = Purpose::classify(bytes, &kid, &PublicKey::Ed25519([7; 32]));
    let _ = trust::socket::read_request(&mut &bytes[..]);
});
