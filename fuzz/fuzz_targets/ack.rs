//! The cloud's acknowledgements, as the agent reads them from MQTT, and what they do to its journal.
#![no_main]
use contract::{Ack, FrameRange, Refusal};
use simcorp_edge::fuzzing::{CHAIN, unsent_after};

const FRAMES: u64 = 5;

fn holds(ranges: &[FrameRange], number: u64) -> bool {
    ranges.iter().any(|range| (range.first..=range.last).contains(&number))
}

/// Returns whether a frame that was unsent is unsent after the acknowledgement.
fn stays_unsent(ack: &Ack, number: u64) -> bool {
    let kept = !holds(&ack.acked, number) || holds(&ack.need, number);
    let is_final = |reason| matches!(reason, Refusal::SequenceReused | Refusal::BrokenChain);
    let refused = ack.refused.iter().any(|r| r.frame == number && is_final(r.reason));
    ack.chain != CHAIN || (kept && !refused)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(mut ack) = serde_json::from_slice::<Ack>(bytes) else { return };
    let written = serde_json::to_vec(&ack).unwrap();
    assert_eq!(serde_json::from_slice::<Ack>(&written).unwrap(), ack);
    if bytes.first().is_some_and(u8::is_ascii_whitespace) {
        // The fuzzer rarely finds the chain of the journal by itself.
        ack.chain = CHAIN;
    }
    let expected: Vec<u64> = (1..=FRAMES).filter(|number| stays_unsent(&ack, *number)).collect();
    assert_eq!(unsent_after(&ack, FRAMES).unwrap(), expected);
});
