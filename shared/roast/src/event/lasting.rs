//! Ends that no curve shows: the end of first crack, of second crack and of cooling. Each follows
//! its start after the delay learned from people's marks on this machine.

use contract::EventKind;

use super::crossing::{NEAR_S, ms, within};
use super::{Inference, Method, Point, Roast};
use crate::learn::{Delay, Learned, Z90};

impl Roast {
    /// Returns the ends that are due with this sample.
    pub(super) fn last(&self, now: Point, learned: &Learned) -> [Option<Inference>; 2] {
        let pairs = [
            (EventKind::Fc, EventKind::FcEnd, &learned.first_crack_lasts, 0),
            // DROP often cuts second crack short: infer its end only if people have marked one.
            (EventKind::Sc, EventKind::ScEnd, &learned.second_crack_lasts, 1),
        ];
        pairs.map(|(begin, end, delay, marks_min)| {
            if self.mark(end).is_some() || delay.marks() < marks_min {
                return None;
            }
            let begun = self.mark(begin)?;
            let found = after(begun.at_ms, end, now, delay)?;
            Some(Inference { confidence: found.confidence * begun.confidence, ..found })
        })
    }
}

/// Returns the end of cooling of a batch dropped at `from_ms`; never without people's marks of it.
pub(super) fn cooled(from_ms: i64, now: Point, delay: &Delay) -> Option<Inference> {
    if delay.marks() == 0 { None } else { after(from_ms, EventKind::CoolEnd, now, delay) }
}

fn after(from_ms: i64, kind: EventKind, now: Point, delay: &Delay) -> Option<Inference> {
    let at_ms = from_ms + ms(delay.mean_s());
    if now.t_ms < at_ms {
        return None;
    }
    let half = ms(Z90 * delay.deviation_s());
    Some(Inference {
        kind,
        at_ms,
        from_ms: at_ms - half,
        to_ms: at_ms + half,
        known_ms: now.t_ms,
        bt_c: Some(now.bt_c),
        confidence: within(NEAR_S / delay.deviation_s()),
        method: Method::Lasting,
        revision: 0,
        curve_ms: at_ms,
    })
}
