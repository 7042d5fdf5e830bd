//! The bytes on the embedded broker's port: the version of MQTT is read of the first ones, and the ends
//! of large packets are found in all.
#![no_main]

// The port itself is not opened here.
#[allow(dead_code)]
#[path = "../../cloud/simcorp/src/broker/listener.rs"]
mod listener;
#[allow(dead_code)]
#[path = "../../cloud/simcorp/src/broker/packet_end.rs"]
mod packet_end;

use listener::protocol_level;
use packet_end::PacketEnds;

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
    let (mut ends, mut rest, mut fillers) = (PacketEnds::default(), bytes, 0);
    while !rest.is_empty() {
        let (taken, more) = ends.take(rest);
        assert!(taken > 0 && taken <= rest.len(), "{taken} of {} bytes", rest.len());
        (rest, fillers) = (&rest[taken..], fillers + more);
    }
    assert!(fillers * 4096 <= bytes.len() * 4, "{fillers} for {} bytes", bytes.len());
    assert!(whole != Ok(None) || bytes.len() < DECIDED_BYTES, "the port waits for ever");
});
