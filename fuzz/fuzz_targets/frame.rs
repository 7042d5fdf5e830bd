//! Every byte string that decodes as a frame encodes again to an equal frame.
#![no_main]
use contract::Frame;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = contract::frame::item_length(bytes);
    if let Ok(frame) = Frame::decode(bytes) {
        let again = Frame::decode(&frame.encode());
        assert_eq!(again.as_ref(), Ok(&frame));
    }
});
