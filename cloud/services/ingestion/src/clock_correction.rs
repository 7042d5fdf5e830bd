//! Corrects the dates of frames. A gateway without a clock chip samples and signs before it knows
//! the date; its frames say so. Once a frame of the same boot says that the clock was set from the
//! network, the dates of all frames of that boot are corrected: durations were right from the
//! start. Until then the dates are estimated from the arrival of live frames, and marked as
//! estimated.
//!
//! The order of arrival does not matter, and the correction never delays the storing of frames.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::database::StoreError;
use contract::ClockQuality;
use quick_cache::sync::Cache;
use service::tasks::Tasks;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::arrival_estimate::ArrivalEstimate;
use crate::store::{ESTIMATE_TOLERANCE_MS, IngestStore};
use crate::sweep::Quarantine;
use crate::verified_frame::VerifiedFrame;

const EVERY: Duration = Duration::from_secs(2);
/// How often the whole database is checked, for boots that an instance had noted when it died.
const ALL_EVERY: Duration = Duration::from_hours(1);
/// The maximum number of noted boots; the next check of the whole database finds further ones.
const NOTED_MAX: usize = 100_000;
/// The maximum number of boots that are remembered as known. At this bound each new one evicts one
/// that sends no more frames; an evicted one is noted again, which changes nothing.
const KNOWN_MAX: usize = 100_000;

/// A chain number and a boot id.
type Boot = (i64, i64);

#[derive(Default)]
struct PendingBoots {
    /// The clock offset of each boot, ms.
    offsets: BTreeMap<Boot, i64>,
    /// The estimated offset of each boot whose clock is wrong, ms.
    estimates: BTreeMap<Boot, i64>,
    /// Boots with frames whose clock was not synchronised.
    undated: BTreeSet<Boot>,
}

/// Collects from the pipeline the boots that may need a correction. Clones share them.
#[derive(Clone)]
pub struct ClockCorrection {
    pending: Arc<Mutex<PendingBoots>>,
    /// Boots whose offset is in the database.
    known: Arc<Cache<Boot, ()>>,
    /// The arrivals of boots whose clocks are not set.
    arrivals: Arc<Cache<Boot, ArrivalEstimate>>,
}

impl Default for ClockCorrection {
    fn default() -> Self {
        Self::with_capacity(KNOWN_MAX)
    }
}

impl ClockCorrection {
    fn with_capacity(known_max: usize) -> Self {
        Self {
            pending: Arc::default(),
            known: Arc::new(Cache::new(known_max)),
            arrivals: Arc::new(Cache::new(known_max)),
        }
    }

    /// Notes a frame that was stored as part of chain `chain_no`.
    pub fn note(&self, chain_no: i64, verified: &VerifiedFrame) {
        let frame = &verified.frame;
        let boot = (chain_no, frame.boot_id.cast_signed());
        let synchronised = frame.clock == ClockQuality::Synchronised && verified.ahead_ms() == 0;
        let known = self.is_known(boot);
        if synchronised && known {
            return;
        }
        // A frame that does not state its clock, as of an imported recording, has another date than
        // that of its arrival.
        let unset = frame.clock == ClockQuality::FreeRunning || verified.ahead_ms() > 0;
        let estimate = if unset && !known { self.estimate(boot, verified) } else { None };
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if !synchronised {
            if pending.undated.len() < NOTED_MAX {
                pending.undated.insert(boot);
            }
            if let Some(offset_ms) = estimate
                && pending.estimates.len() < NOTED_MAX
            {
                pending.estimates.insert(boot, offset_ms);
            }
        } else if pending.offsets.len() < NOTED_MAX {
            let mono = i64::try_from(frame.mono_ms).unwrap_or(i64::MAX);
            pending.offsets.entry(boot).or_insert(frame.wall.0.saturating_sub(mono));
        }
    }

    /// Returns the boot's clock offset as estimated from the arrival of its frames, if the gateway's
    /// clock is wrong: because frames that arrive live have another date, or because it is ahead of
    /// their arrival.
    fn estimate(&self, boot: Boot, verified: &VerifiedFrame) -> Option<i64> {
        let frame = &verified.frame;
        let last = frame.offsets_ms.last().copied().map_or(0, i64::from);
        let mono = i64::try_from(frame.mono_ms).unwrap_or(i64::MAX);
        let made_ms = mono.saturating_add(last);
        let (estimate, offset_ms) =
            ArrivalEstimate::update(self.arrivals.get(&boot), made_ms, verified.received);
        self.arrivals.insert(boot, estimate);
        let ahead = verified.ahead_ms() > 0;
        let offset_ms = offset_ms.or_else(|| ahead.then(|| estimate.bound_ms()));
        let wall_offset_ms = frame.wall.0.saturating_sub(mono);
        offset_ms.filter(|offset_ms| {
            offset_ms.saturating_sub(wall_offset_ms).saturating_abs() >= ESTIMATE_TOLERANCE_MS
        })
    }

    fn take(&self) -> PendingBoots {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *pending)
    }

    fn is_known(&self, boot: Boot) -> bool {
        self.known.get(&boot).is_some()
    }

    fn mark_known(&self, boot: Boot) {
        self.known.insert(boot, ());
    }
}

/// Corrects dates until `stop`. After a panic it checks the whole database, which holds what was
/// noted and not yet corrected.
pub fn start(store: IngestStore, dating: ClockCorrection, tasks: &Tasks, stop: CancellationToken) {
    tasks.spawn_restarting("clock-correction", move || {
        run(store.clone(), dating.clone(), stop.clone())
    });
}

async fn run(store: IngestStore, dating: ClockCorrection, stop: CancellationToken) {
    let mut quarantine = quarantine();
    let mut all: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let everything = all.is_none_or(|at| at.elapsed() >= ALL_EVERY);
        match pass(&store, &dating, &mut quarantine, everything).await {
            Ok(()) if everything => all = Some(Instant::now()),
            Ok(()) => {}
            Err(error) => {
                all = None; // a check of the whole database finds the noted boots again
                tracing::warn!(%error, "could not correct dates; the next pass retries");
            }
        }
    }
}

/// Returns the quarantine of boots whose dates cannot be corrected.
pub(crate) const fn quarantine() -> Quarantine {
    Quarantine::new("correct-dates")
}

/// Corrects the dates of the boots that were noted, or of all that need it if `everything` is set.
pub(crate) async fn pass(
    store: &IngestStore,
    dating: &ClockCorrection,
    quarantine: &mut Quarantine,
    everything: bool,
) -> Result<(), StoreError> {
    let PendingBoots { offsets, estimates, undated } = dating.take();
    let mut boots: Vec<Boot> = undated.into_iter().collect();
    for (boot, offset_ms) in estimates {
        let noted = store.note_estimate(boot.0, boot.1, offset_ms);
        quarantine.each(&name_of(boot), Instant::now(), noted).await?;
    }
    for (boot, offset_ms) in offsets {
        let noted = async {
            store.note_offset(boot.0, boot.1, offset_ms).await?;
            dating.mark_known(boot);
            Ok::<(), StoreError>(())
        };
        quarantine.each(&name_of(boot), Instant::now(), noted).await?;
        boots.push(boot);
    }
    if everything {
        boots.extend(store.undated_boots().await?);
    }
    let mut corrected = BTreeSet::new();
    for boot in boots {
        if corrected.insert(boot) {
            let done = correct(store, boot.0, boot.1);
            quarantine.each(&name_of(boot), Instant::now(), done).await?;
        }
    }
    Ok(())
}

fn name_of((chain_no, boot): Boot) -> String {
    format!("chain {chain_no}, boot {boot}")
}

async fn correct(store: &IngestStore, chain_no: i64, boot: i64) -> Result<(), StoreError> {
    let dated = store.correct_dates(chain_no, boot).await?;
    if dated > 0 {
        metrics::counter!("simcorp_ingest_frames_dated_total").increment(dated);
        tracing::info!(chain_no, frames = dated, "corrected the dates of a boot");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use contract::{ChainId, EpochMs, Frame};

    use super::*;
    use crate::verified_frame::{Numbering, Trust};

    const NOW: EpochMs = EpochMs(1_760_000_000_000);
    const BOOT: Boot = (1, 7);

    /// A frame of one second, made at `second` by a clock that is `error_ms` off, and received a
    /// second later.
    fn live(second: i64, error_ms: i64, clock: ClockQuality) -> VerifiedFrame {
        let frame = Frame {
            origin: "acme/leipzig/r-1".parse().unwrap(),
            chain: ChainId([1; 16]),
            number: 1,
            previous: None,
            boot_id: 7,
            first_seq: 0,
            mono_ms: u64::try_from(second * 1_000).unwrap(),
            wall: NOW.plus_ms(second * 1_000 + error_ms),
            clock,
            profile_digest: None,
            offsets_ms: vec![0, 1_000],
            columns: Vec::new(),
            events: Vec::new(),
        };
        VerifiedFrame {
            digest: trust::sha256_digest(&[]),
            signed: Vec::new(),
            frame,
            kid: "device:gw@leipzig".to_owned(),
            trust: Trust::Verified,
            numbering: Numbering::Edge,
            received: NOW.plus_ms(second * 1_000 + 2_000),
            published: None,
        }
    }

    /// Notes a minute of live frames; returns the offset and the estimate that result.
    fn noted(error_ms: i64, clock: ClockQuality) -> (Option<i64>, Option<i64>) {
        let dating = ClockCorrection::default();
        for second in 0..60 {
            dating.note(BOOT.0, &live(second, error_ms, clock));
        }
        let noted = dating.take();
        let since = |offsets: &BTreeMap<Boot, i64>| offsets.get(&BOOT).map(|at| at - NOW.0);
        (since(&noted.offsets), since(&noted.estimates))
    }

    #[test]
    fn a_clock_that_is_not_set_is_estimated_from_arrival_only_if_it_is_wrong() {
        let free = ClockQuality::FreeRunning;
        let week_ms = 7 * 86_400_000;
        assert_eq!(noted(-2 * week_ms, free), (None, Some(1_000)), "two weeks behind");
        assert_eq!(noted(-19_800_000, free), (None, Some(1_000)), "in local time");
        assert_eq!(noted(300 * 86_400_000, free), (None, Some(1_000)), "300 days ahead");
        assert_eq!(noted(2_000, free), (None, None), "as good as an estimate");
        assert_eq!(noted(-2 * week_ms, ClockQuality::Unknown), (None, None), "imported");
        assert_eq!(noted(-week_ms, ClockQuality::Synchronised), (Some(-week_ms), None));
    }

    #[test]
    fn a_synchronised_clock_that_is_ahead_of_arrival_is_not_believed() {
        let leap_ms = 4_294_967_296_000 - NOW.0;
        assert_eq!(noted(leap_ms, ClockQuality::Synchronised), (None, Some(1_000)));
    }

    #[tokio::test]
    async fn an_estimate_within_the_drift_of_a_long_uptime_moves_no_date() {
        let (_folder, database) = service_testbed::open_sqlite().await;
        let store = IngestStore::new(database);
        let uptime_ms = 10 * 86_400_000;
        let made = live(uptime_ms / 1_000, -7 * 86_400_000, ClockQuality::FreeRunning);
        let origin = made.frame.origin.clone();
        let no = store.chain_no(&origin, made.frame.chain, "", NOW).await.unwrap();
        store.commit(&[no], &[made], NOW).await.unwrap();
        let dated = async |offset_ms: i64| -> i64 {
            store.note_estimate(no.chain, BOOT.1, NOW.0 + offset_ms).await.unwrap();
            store.correct_dates(no.chain, BOOT.1).await.unwrap();
            let t0_ms: i64 = ::database::on!(store.database(), pool =>
                ::database::sqlx::query_scalar("SELECT t0_ms FROM frames").fetch_one(pool).await)
            .unwrap();
            t0_ms - uptime_ms - NOW.0
        };
        assert_eq!(dated(5_000).await, 5_000);
        assert_eq!(dated(-100_000).await, 5_000, "less than 500 ppm of ten days");
        assert_eq!(dated(-500_000).await, -500_000);
    }

    #[test]
    fn a_boot_in_use_stays_known_when_the_bound_is_passed() {
        let dating = ClockCorrection::with_capacity(100);
        dating.mark_known((0, 0));
        for n in 1..1_000 {
            dating.mark_known((n, n));
            assert!(dating.is_known((0, 0)), "after {n} others");
            assert!(dating.known.len() <= 100);
        }
    }
}
