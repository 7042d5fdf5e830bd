//! The first bytes on the embedded broker's port, of which the version of MQTT is read.
#![no_main]

// The port itself is not opened here.
#[allow(dead_code)]
#[path = "../../cloud/simcorp/src/broker/listener.rs"]
mod listener;

use listener::protocol_level;

/// The type, the length, and the longest name of the protocol before its level.
const DECIDED_BYTES: usize = 1 + 4 + 2 + 6 + 1;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = protocol_level(bytes);
    if let Ok(Some(level)) = whole {
        assert!(bytes[0] == 0x10 && level < 0x80, "level {level}");
    }
    for end in 0..bytes.len().min(DECIDED_BYTES) {
        let start = protocol_level(&bytes[..end]);
        assert!(start == Ok(None) || start == whole, "another answer for the first {end} bytes");
    }
    assert!(whole != Ok(None) || bytes.len() < DECIDED_BYTES, "the port waits for ever");
});
