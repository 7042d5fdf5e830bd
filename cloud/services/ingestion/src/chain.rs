//! Tracks which frames of a chain have arrived. Pure, so that tests can try every order of arrival.

use contract::{Digest, FrameRange};

/// The maximum number of gaps in a chain. A frame that would make one more waits at the edge until
/// others are filled.
pub const GAPS_MAX: usize = 256;

/// The position of a frame relative to the frames of its chain that have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramePosition {
    /// Follows the highest number seen; its link can be checked.
    Next,
    /// Leaves a gap before it.
    Ahead,
    /// Fills a gap.
    FillsGap,
    /// A frame with this number, this one or another, has arrived before.
    Seen,
    /// The chain has too many gaps to accept the frame now.
    TooManyGaps,
}

/// The state of a chain: which of its frames have arrived.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainState {
    /// One more than the highest number seen; 0 and 1 both mean that no frame was seen.
    pub next: u64,
    /// Gaps below `next`, ascending and disjoint.
    pub gaps: Vec<FrameRange>,
    /// The digest of frame `next - 1`.
    pub last_digest: Option<Digest>,
}

impl ChainState {
    #[must_use]
    pub fn position_of(&self, number: u64) -> FramePosition {
        let next = self.next.max(1);
        if number == next {
            FramePosition::Next
        } else if number > next {
            if self.gaps.len() < GAPS_MAX {
                FramePosition::Ahead
            } else {
                FramePosition::TooManyGaps
            }
        } else if self.gaps.iter().any(|gap| (gap.first..=gap.last).contains(&number)) {
            FramePosition::FillsGap
        } else {
            FramePosition::Seen
        }
    }

    /// Returns whether the frame's link can be right: the first frame has none, the next one names
    /// the digest of the last. For a frame in or after a gap the link cannot be checked yet; the
    /// receipt's digest checks it later.
    #[must_use]
    pub fn link_is_plausible(&self, number: u64, previous: Option<Digest>) -> bool {
        match (number, self.last_digest) {
            (1, _) => previous.is_none(),
            (_, Some(last)) if number == self.next => previous == Some(last),
            _ => previous.is_some(),
        }
    }

    /// Records a frame that is being stored.
    pub fn accept(&mut self, number: u64, digest: Digest) {
        let next = self.next.max(1);
        if number >= next {
            if number > next {
                self.gaps.push(FrameRange { first: next, last: number.saturating_sub(1) });
            }
            self.next = number.saturating_add(1);
            self.last_digest = Some(digest);
            return;
        }
        let Some(i) = self.gaps.iter().position(|gap| (gap.first..=gap.last).contains(&number))
        else {
            return;
        };
        let gap = self.gaps.remove(i);
        if number < gap.last {
            self.gaps.insert(i, FrameRange { first: number.saturating_add(1), last: gap.last });
        }
        if number > gap.first {
            self.gaps.insert(i, FrameRange { first: gap.first, last: number.saturating_sub(1) });
        }
    }

    #[must_use]
    pub fn missing(&self) -> u64 {
        let lengths =
            self.gaps.iter().map(|gap| gap.last.saturating_sub(gap.first).saturating_add(1));
        lengths.fold(0, u64::saturating_add)
    }

    /// Returns whether every frame from `first` to `last` has arrived.
    #[must_use]
    pub fn covers(&self, first: u64, last: u64) -> bool {
        last < self.next && !self.gaps.iter().any(|gap| gap.first <= last && gap.last >= first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn digest(n: u64) -> Digest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Digest(bytes)
    }

    proptest! {
        /// In any order, with any repetition, the state matches a plain set of the numbers.
        #[test]
        fn frames_in_any_order_give_the_same_chain_state(numbers in prop::collection::vec(1..60_u64, 0..120)) {
            let (mut state, mut seen) = (ChainState::default(), BTreeSet::new());
            for n in numbers {
                let place = state.position_of(n);
                prop_assert_eq!(place == FramePosition::Seen, seen.contains(&n));
                if place != FramePosition::Seen {
                    state.accept(n, digest(n));
                    seen.insert(n);
                }
                let top = seen.last().copied().unwrap_or(0);
                prop_assert_eq!(state.next.max(1), top + 1);
                let missing: Vec<u64> = (1..=top).filter(|n| !seen.contains(n)).collect();
                let told: Vec<u64> = state.gaps.iter().flat_map(|g| g.first..=g.last).collect();
                prop_assert_eq!(told, missing);
                prop_assert_eq!(state.covers(1, top), state.gaps.is_empty());
            }
        }
    }

    #[test]
    fn a_frame_must_link_to_the_previous_one() {
        let mut state = ChainState::default();
        assert!(state.link_is_plausible(1, None) && !state.link_is_plausible(1, Some(digest(0))));
        state.accept(1, digest(1));
        assert!(
            state.link_is_plausible(2, Some(digest(1)))
                && !state.link_is_plausible(2, Some(digest(9)))
        );
        assert!(!state.link_is_plausible(2, None) && state.link_is_plausible(7, Some(digest(6))));
    }

    #[test]
    fn the_number_of_gaps_is_bounded() {
        let mut state = ChainState::default();
        for n in 0..GAPS_MAX as u64 {
            state.accept(2 * (n + 1), digest(n));
        }
        assert_eq!(state.position_of(10_000), FramePosition::TooManyGaps);
        assert_eq!(state.position_of(3), FramePosition::FillsGap);
    }
}
