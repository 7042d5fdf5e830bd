//! How far a chain of frames has arrived: pure, so that every order of arrival can be tried.

use contract::{Digest, FrameRange};

/// Holes kept a chain. A frame that would make one more waits at the edge until others are filled.
pub const GAPS_MAX: usize = 256;

/// Where a frame stands in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Follows the last one; its link can be checked.
    Next,
    /// Leaves a hole behind it.
    Ahead,
    /// Fills a hole.
    Fill,
    /// Was here before, or something with its number was.
    Seen,
    /// There are too many holes to take it now.
    TooManyGaps,
}

/// What is known of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainState {
    /// One more than the highest number seen; 0 and 1 both mean that nothing was.
    pub next: u64,
    /// Holes below `next`, ascending, apart.
    pub gaps: Vec<FrameRange>,
    /// Of frame `next - 1`.
    pub last_digest: Option<Digest>,
}

impl ChainState {
    #[must_use]
    pub fn place(&self, number: u64) -> Place {
        let next = self.next.max(1);
        if number == next {
            Place::Next
        } else if number > next {
            if self.gaps.len() < GAPS_MAX { Place::Ahead } else { Place::TooManyGaps }
        } else if self.gaps.iter().any(|gap| (gap.first..=gap.last).contains(&number)) {
            Place::Fill
        } else {
            Place::Seen
        }
    }

    /// True when the frame's link can be the truth: the first frame has none, the next one names
    /// the last. Behind a hole nothing can be said yet; the receipt will.
    #[must_use]
    pub fn links(&self, number: u64, previous: Option<Digest>) -> bool {
        match (number, self.last_digest) {
            (1, _) => previous.is_none(),
            (_, Some(last)) if number == self.next => previous == Some(last),
            _ => previous.is_some(),
        }
    }

    /// Notes a frame that is being stored.
    pub fn accept(&mut self, number: u64, digest: Digest) {
        let next = self.next.max(1);
        if number >= next {
            if number > next {
                self.gaps.push(FrameRange { first: next, last: number - 1 });
            }
            self.next = number + 1;
            self.last_digest = Some(digest);
            return;
        }
        let Some(i) = self.gaps.iter().position(|gap| (gap.first..=gap.last).contains(&number))
        else {
            return;
        };
        let gap = self.gaps.remove(i);
        if number < gap.last {
            self.gaps.insert(i, FrameRange { first: number + 1, last: gap.last });
        }
        if number > gap.first {
            self.gaps.insert(i, FrameRange { first: gap.first, last: number - 1 });
        }
    }

    #[must_use]
    pub fn missing(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.last - gap.first + 1).sum()
    }

    /// True when every frame from `first` to `last` is here.
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
        /// Any order, any repetition: the state always says what a plain set of numbers says.
        #[test]
        fn any_order_of_arrival_leaves_the_truth(numbers in prop::collection::vec(1..60_u64, 0..120)) {
            let (mut state, mut seen) = (ChainState::default(), BTreeSet::new());
            for n in numbers {
                let place = state.place(n);
                prop_assert_eq!(place == Place::Seen, seen.contains(&n));
                if place != Place::Seen {
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
    fn a_frame_must_name_the_one_before_it() {
        let mut state = ChainState::default();
        assert!(state.links(1, None) && !state.links(1, Some(digest(0))));
        state.accept(1, digest(1));
        assert!(state.links(2, Some(digest(1))) && !state.links(2, Some(digest(9))));
        assert!(!state.links(2, None) && state.links(7, Some(digest(6))));
    }

    #[test]
    fn holes_are_bounded() {
        let mut state = ChainState::default();
        for n in 0..GAPS_MAX as u64 {
            state.accept(2 * (n + 1), digest(n));
        }
        assert_eq!(state.place(10_000), Place::TooManyGaps);
        assert_eq!(state.place(3), Place::Fill);
    }
}
