#![no_main]
use contract::Receipt;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(receipt) = Receipt::decode(bytes) {
        assert_eq!(Receipt::decode(&receipt.encode()), Ok(receipt));
    }
});
