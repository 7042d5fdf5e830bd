//! Dates that are put right. A gateway without a clock chip samples and signs before it knows what day
//! it is; its frames say so. Once one of the same boot says that the clock was set from the network,
//! all of that boot have the right date: durations were right from the start.
//!
//! It does not matter which comes first, and nothing of it stands in the way of storing frames.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::store::StoreError;
use contract::{ClockQuality, Frame};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::store::IngestStore;

const EVERY: Duration = Duration::from_secs(2);
/// Everything is looked at once more: what an instance had noted when it died.
const ALL_EVERY: Duration = Duration::from_hours(1);
/// Boots noted at most; past it the next look at everything finds them.
const NOTED_MAX: usize = 100_000;

/// A chain and a boot.
type Boot = (i64, i64);

#[derive(Default)]
struct Noted {
    /// What clocks were found to be off by.
    offsets: BTreeMap<Boot, i64>,
    /// With frames whose dates nobody can believe.
    undated: BTreeSet<Boot>,
    /// Whose offset the database has.
    known: BTreeSet<Boot>,
}

/// Where the pipeline notes what it has stored.
#[derive(Clone, Default)]
pub struct Dating(Arc<Mutex<Noted>>);

impl Dating {
    /// Notes a frame that was stored as part of chain `chain_no`.
    pub fn note(&self, chain_no: i64, frame: &Frame) {
        let boot = (chain_no, frame.boot.cast_signed());
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.clock != ClockQuality::Synchronised {
            if noted.undated.len() < NOTED_MAX {
                noted.undated.insert(boot);
            }
        } else if !noted.known.contains(&boot) && noted.offsets.len() < NOTED_MAX {
            let mono = i64::try_from(frame.mono).unwrap_or(i64::MAX);
            noted.offsets.entry(boot).or_insert(frame.wall.0.saturating_sub(mono));
        }
    }

    fn take(&self) -> (BTreeMap<Boot, i64>, BTreeSet<Boot>) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut noted.offsets), std::mem::take(&mut noted.undated))
    }

    fn knows(&self, boot: Boot) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.known.len() >= NOTED_MAX {
            noted.known.clear(); // each is noted once more, which changes nothing
        }
        noted.known.insert(boot);
    }
}

/// Puts dates right until `stop`.
pub fn start(store: IngestStore, dating: Dating, tracker: &TaskTracker, stop: CancellationToken) {
    tracker.spawn(async move {
        let mut all: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let everything = all.is_none_or(|at| at.elapsed() >= ALL_EVERY);
            match pass(&store, &dating, everything).await {
                Ok(()) if everything => all = Some(Instant::now()),
                Ok(()) => {}
                Err(error) => {
                    all = None; // what was noted is found again by looking at everything
                    tracing::warn!(%error, "could not put dates right; the next pass tries again");
                }
            }
        }
    });
}

async fn pass(store: &IngestStore, dating: &Dating, everything: bool) -> Result<(), StoreError> {
    let (offsets, mut undated) = dating.take();
    for (boot, offset_ms) in offsets {
        store.note_offset(boot.0, boot.1, offset_ms).await?;
        dating.knows(boot);
        undated.insert(boot);
    }
    if everything {
        undated.extend(store.undated().await?);
    }
    for (chain_no, boot) in undated {
        let dated = store.date(chain_no, boot).await?;
        if dated > 0 {
            metrics::counter!("simcorp_ingest_frames_dated_total").increment(dated);
            tracing::info!(chain_no, frames = dated, "put the dates of a boot right");
        }
    }
    Ok(())
}
