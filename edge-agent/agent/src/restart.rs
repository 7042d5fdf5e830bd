//! Decides after a start of the agent whether a roast goes on that was running before, and how much
//! time has passed since its CHARGE. Pure.
//!
//! The kernel's clock measures it exactly if only the agent was restarted. After a restart of the
//! gateway only the wall clock can tell, and it may not be set: a gap that is impossible is not
//! believed.

use contract::EpochMs;

use crate::clock::KernelTime;
use crate::recorder::RunningRoast;

/// A roast goes on after a gap of less than this, in ms.
const GAP_MAX_MS: i64 = 30 * 60 * 1000;

/// The gateway's clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// Milliseconds since the agent started.
    pub mono_ms: u64,
    pub wall: EpochMs,
    pub kernel: Option<KernelTime>,
}

/// Returns the time of a roast's CHARGE on the agent's monotonic clock, in ms; negative for a CHARGE
/// before the start. `newest` is the date of the newest stored frame, which the recorder
/// has counted from the start of the roast. Returns `None` if the roast was interrupted for too
/// long.
pub fn charge_ms(roast: &RunningRoast, newest: EpochMs, now: &ClockReading) -> Option<i64> {
    let until_newest = newest.ms_since(roast.started).max(0);
    let since_charge = match roast.charge.zip(now.kernel) {
        Some((charge, kernel)) if charge.boot == kernel.boot && kernel.ms >= charge.ms => {
            kernel.ms.saturating_sub(charge.ms)
        }
        clocks => {
            // The gateway was off: at least since its kernel started.
            let at_least = clocks
                .filter(|(charge, kernel)| charge.boot != kernel.boot)
                .map_or(0, |(_, kernel)| kernel.ms);
            let by_wall = now.wall.ms_since(newest);
            // A clock that went back tells nothing. One that leapt ahead may be right: the roast is
            // then over.
            until_newest.saturating_add(by_wall.max(at_least))
        }
    };
    let gap = since_charge.saturating_sub(until_newest);
    let mono = i64::try_from(now.mono_ms).unwrap_or(i64::MAX);
    (gap < GAP_MAX_MS).then(|| mono.saturating_sub(since_charge))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::KernelBoot;
    use contract::SessionId;

    const STARTED: EpochMs = EpochMs(1_760_000_000_000);
    const DAY: i64 = 86_400_000;

    /// Returns the time since CHARGE that is found after a restart, in seconds. The newest frame is
    /// from 60 s after CHARGE, which was at second 100 of kernel boot 1.
    fn since_charge_s(wall_s: i64, kernel: Option<(u128, i64)>) -> Option<i64> {
        let time = |(boot, s): (u128, i64)| KernelTime { boot: KernelBoot(boot), ms: s * 1_000 };
        let roast = RunningRoast {
            session: SessionId::new("S-1").unwrap(),
            started: STARTED,
            first_seq: 0,
            first_frame: 1,
            event_kinds: Vec::new(),
            charge: Some(time((1, 100))),
        };
        let now = ClockReading {
            mono_ms: 500,
            wall: STARTED.plus_ms(wall_s * 1_000),
            kernel: kernel.map(time),
        };
        charge_ms(&roast, STARTED.plus_ms(60_000), &now).map(|charge_ms| (500 - charge_ms) / 1_000)
    }

    #[test]
    fn the_kernel_clock_measures_a_restart_of_the_agent_whatever_the_wall_clock_says() {
        for wall_s in [65, -300 * DAY / 1_000, 300 * DAY / 1_000, 0] {
            assert_eq!(since_charge_s(wall_s, Some((1, 165))), Some(65), "{wall_s}");
            assert_eq!(since_charge_s(wall_s, Some((1, 100 + 60 + 1_800))), None, "{wall_s}");
        }
        assert_eq!(since_charge_s(0, Some((1, 100))), Some(0), "exactly at CHARGE");
    }

    #[test]
    fn after_a_restart_of_the_gateway_an_impossible_gap_is_not_believed() {
        assert_eq!(
            since_charge_s(90, Some((2, 20))),
            Some(90),
            "a gap of 30 s, 20 s after its start"
        );
        assert_eq!(since_charge_s(65, Some((2, 20))), Some(80), "off since its kernel started");
        assert_eq!(
            since_charge_s(-300 * DAY / 1_000, Some((2, 20))),
            Some(80),
            "the clock was ahead"
        );
        assert_eq!(since_charge_s(300 * DAY / 1_000, Some((2, 20))), None, "the roast is over");
        assert_eq!(
            since_charge_s(90, Some((2, 1_800))),
            None,
            "up for half an hour without the agent"
        );
    }

    #[test]
    fn without_a_kernel_clock_the_wall_clock_tells_the_gap() {
        assert_eq!(since_charge_s(90, None), Some(90));
        assert_eq!(
            since_charge_s(-90, None),
            Some(60),
            "no time less than that of the newest frame"
        );
        assert_eq!(since_charge_s(60 + 1_800, None), None);
    }
}
