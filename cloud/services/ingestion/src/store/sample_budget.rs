//! How many frames one statement may read. A frame has up to 4 096 samples in up to 32 columns, so a
//! number of frames bounds no memory: the sizes are read first, then as many frames as fit.

use contract::frame::SAMPLES_MAX;

/// The maximum number of samples that one statement reads: four of the largest frames.
pub(super) const SAMPLES_A_READ: usize = 4 * SAMPLES_MAX;

/// Returns how many of the frames with these sizes may be read at once: as many as fit into
/// `samples`, and at least one if there is any.
pub(super) fn frames_within(sizes: &[i64], samples: usize) -> i64 {
    let mut sum = 0_usize;
    let within = sizes.iter().take_while(|size| {
        sum = sum.saturating_add(usize::try_from(**size).unwrap_or(0));
        sum <= samples
    });
    let within = within.count().max(usize::from(!sizes.is_empty()));
    i64::try_from(within).unwrap_or(i64::MAX)
}

/// Returns how many of the frames with these sizes hold `samples` samples, or all of them.
pub(super) fn frames_holding(sizes: &[i64], samples: usize) -> i64 {
    let mut sum = 0_usize;
    let before = sizes.iter().take_while(|size| {
        let more = sum < samples;
        sum = sum.saturating_add(usize::try_from(**size).unwrap_or(0));
        more
    });
    i64::try_from(before.count()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_frames_are_read_in_smaller_numbers() {
        assert_eq!(frames_within(&[], 100), 0);
        assert_eq!(frames_within(&[500, 1], 100), 1, "at least one");
        assert_eq!(frames_within(&[40, 0, 60, 1], 100), 3);
        assert_eq!(frames_within(&[10; 2_000], SAMPLES_A_READ), 1_638);
        assert_eq!(frames_within(&[4_096; 2_000], SAMPLES_A_READ), 4);
    }

    #[test]
    fn only_the_frames_that_hold_the_wanted_samples_are_read() {
        assert_eq!(frames_holding(&[], 100), 0);
        assert_eq!(frames_holding(&[4_096; 1_000], 1_000), 1);
        assert_eq!(frames_holding(&[40, 0, 59, 1, 7], 100), 4);
        assert_eq!(frames_holding(&[10, 10], 100), 2);
        assert_eq!(frames_holding(&[10, 10], 0), 0);
    }
}
