//! Sends the acknowledgements of a batch: to the bus one message for each chain, to each HTTP
//! request its own.

use contract::{Ack, Origin};
use tokio::sync::mpsc;

use super::Reply;
use super::slot::{Slot, SlotState};
use crate::legacy;

pub(super) struct Replies {
    /// To the bus.
    pub(super) acks: mpsc::Sender<(Origin, Ack)>,
}

impl Replies {
    /// Sends the acknowledgements of the slots that have one.
    pub(super) fn send(&self, slots: Vec<Slot>) {
        let mut for_bus: Vec<(Origin, Ack)> = Vec::new();
        for Slot { origin, reply, state } in slots {
            let SlotState::Done(Some(ack)) = state else { continue };
            match reply {
                Reply::Request(waiting) => {
                    // A client that has gone away needs no answer.
                    let _ = waiting.send(ack);
                }
                // Publishers of upstream Sim-Corp read no acknowledgements.
                Reply::Bus if ack.chain == legacy::CHAIN => {}
                Reply::Bus => add_to_chain(&mut for_bus, origin, ack),
            }
        }
        for ack in for_bus {
            // Without a bus there is no receiver for acknowledgements; the edge resends later.
            if self.acks.try_send(ack).is_err() {
                metrics::counter!("simcorp_ingest_acks_dropped_total").increment(1);
            }
        }
    }
}

/// Adds an acknowledgement to that of its machine and chain, or to the list if it is the first.
fn add_to_chain(acks: &mut Vec<(Origin, Ack)>, origin: Origin, ack: Ack) {
    match acks.iter_mut().find(|(other, of)| *other == origin && of.chain == ack.chain) {
        Some((_, joined)) => join(joined, ack),
        None => acks.push((origin, ack)),
    }
}

fn join(joined: &mut Ack, ack: Ack) {
    for range in ack.acked {
        (range.first..=range.last).for_each(|frame| joined.push_acked(frame));
    }
    joined.refused.extend(ack.refused);
    if !ack.need.is_empty() {
        joined.need = ack.need;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::{ChainId, FrameRange};

    const CHAIN: ChainId = ChainId([1; 16]);

    fn slot(chain: ChainId, frame: u64, reply: Reply) -> Slot {
        let mut ack = Ack::new(chain);
        ack.push_acked(frame);
        let origin = "acme/leipzig/r-1".parse().unwrap();
        Slot { origin, reply, state: SlotState::Done(Some(ack)) }
    }

    #[test]
    fn the_bus_gets_one_acknowledgement_a_chain_and_a_request_its_own() {
        let (sender, mut acks) = mpsc::channel(8);
        let (request, mut answer) = tokio::sync::oneshot::channel();
        Replies { acks: sender }.send(vec![
            slot(CHAIN, 1, Reply::Bus),
            slot(ChainId([2; 16]), 7, Reply::Bus),
            slot(CHAIN, 2, Reply::Bus),
            slot(legacy::CHAIN, 1, Reply::Bus),
            slot(CHAIN, 3, Reply::Request(request)),
            Slot { state: SlotState::Done(None), ..slot(CHAIN, 4, Reply::Bus) },
        ]);
        let mut acked = Vec::new();
        while let Ok((_, ack)) = acks.try_recv() {
            acked.push((ack.chain, ack.acked));
        }
        let range = |first, last| vec![FrameRange { first, last }];
        assert_eq!(acked, [(CHAIN, range(1, 2)), (ChainId([2; 16]), range(7, 7))]);
        assert_eq!(answer.try_recv().unwrap().acked, range(3, 3));
    }
}
