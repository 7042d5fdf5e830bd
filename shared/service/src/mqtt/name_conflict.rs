//! Detects that another client uses this client's name at the broker, and slows the reconnects down.
//!
//! A broker keeps one connection per client name: it ends the older one when a newer one arrives. Two
//! clients with one name that reconnect at once end each other's connection many times a second. Pure:
//! the caller passes the time.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// A connection that ends sooner than this after it became ready was short.
const SHORT_CONNECTION: Duration = Duration::from_secs(10);
/// This many short connections in a row indicate a second client, even without the broker's reason.
const SHORT_CONNECTIONS_MIN: u32 = 4;
const WAIT_FIRST: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_mins(2);
/// A connection that lasts this long ends the suspicion. It is longer than [`WAIT_MAX`], so that the
/// other client's wait is not mistaken for its absence.
const CALM_AFTER: Duration = Duration::from_mins(5);

/// Why the client's name seems to be used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameConflict {
    /// The broker said that another client took the session over (MQTT 5 reason 0x8E).
    TakenOver,
    /// The broker ended several connections in a row within seconds, without saying why.
    ShortConnections,
}

/// The state of the detection on one connection.
#[derive(Debug, Clone)]
pub(super) struct ConflictDetector {
    ready_at: Option<Instant>,
    short_connections: u32,
    conflict: Option<NameConflict>,
    wait: Backoff,
}

impl Default for ConflictDetector {
    fn default() -> Self {
        Self {
            ready_at: None,
            short_connections: 0,
            conflict: None,
            wait: Backoff::new(WAIT_FIRST, WAIT_MAX),
        }
    }
}

impl ConflictDetector {
    /// Records that the connection is ready.
    pub fn on_ready(&mut self, now: Instant) {
        self.ready_at.get_or_insert(now);
    }

    /// Records that the connection failed. `taken_over` says whether the broker gave that reason.
    /// Returns how long to wait before the next attempt if another client uses the name.
    pub fn on_failure(&mut self, now: Instant, taken_over: bool, random: u64) -> Option<Duration> {
        let lasted = self.ready_at.take().map(|at| now.saturating_duration_since(at));
        if lasted.is_some_and(|lasted| lasted >= CALM_AFTER) {
            *self = Self::default();
        }
        match lasted {
            Some(lasted) if lasted < SHORT_CONNECTION => {
                self.short_connections = self.short_connections.saturating_add(1);
            }
            Some(_) => self.short_connections = 0,
            // An attempt that failed says nothing about a second client.
            None => {}
        }
        if taken_over {
            self.conflict = Some(NameConflict::TakenOver);
        } else if self.short_connections >= SHORT_CONNECTIONS_MIN {
            self.conflict = self.conflict.or(Some(NameConflict::ShortConnections));
        }
        let ended_by_other = taken_over || self.short_connections >= SHORT_CONNECTIONS_MIN;
        (self.conflict.is_some() && ended_by_other).then(|| self.wait.next(random))
    }

    /// Returns the conflict, until a connection has lasted for five minutes.
    pub fn conflict(&self, now: Instant) -> Option<NameConflict> {
        let calm = self.ready_at.is_some_and(|at| now.saturating_duration_since(at) >= CALM_AFTER);
        self.conflict.filter(|_| !calm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_taken_over_waits_longer_each_time_and_is_forgotten_after_a_calm() {
        let (mut detector, mut now) = (ConflictDetector::default(), Instant::now());
        let mut waits = Vec::new();
        for round in 0..12 {
            detector.on_ready(now);
            now += Duration::from_secs(20);
            waits.push(detector.on_failure(now, true, round * 7_919).unwrap());
            assert_eq!(detector.conflict(now), Some(NameConflict::TakenOver));
        }
        assert!(waits[0] >= WAIT_FIRST / 2 && waits[0] <= WAIT_FIRST, "{waits:?}");
        assert!(waits[11] >= WAIT_MAX / 2 && waits[11] <= WAIT_MAX, "{waits:?}");
        detector.on_ready(now);
        assert_eq!(detector.conflict(now), Some(NameConflict::TakenOver));
        now += CALM_AFTER;
        assert_eq!(detector.conflict(now), None);
        assert_eq!(detector.on_failure(now, false, 0), None);
        assert_eq!(detector.conflict(now), None);
    }

    #[test]
    fn only_short_connections_in_a_row_indicate_a_second_client() {
        let (mut detector, mut now) = (ConflictDetector::default(), Instant::now());
        // A broker that is down or restarts now and then is no conflict.
        for _ in 0..20 {
            assert_eq!(detector.on_failure(now, false, 0), None);
            now += Duration::from_secs(1);
        }
        for round in 0..20 {
            detector.on_ready(now);
            now += if round % 2 == 0 { SHORT_CONNECTION / 5 } else { SHORT_CONNECTION * 2 };
            assert_eq!(detector.on_failure(now, false, 0), None, "round {round}");
        }
        let mut waits = 0;
        for _ in 0..SHORT_CONNECTIONS_MIN {
            detector.on_ready(now);
            now += Duration::from_secs(1);
            waits += u32::from(detector.on_failure(now, false, 0).is_some());
        }
        assert_eq!((waits, detector.conflict(now)), (1, Some(NameConflict::ShortConnections)));
    }
}
