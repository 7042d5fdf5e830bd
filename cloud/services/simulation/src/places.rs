//! The places of the simulations that run at once. Each takes a processor, and memory for an answer
//! of up to 16 MiB until that is sent.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes};
use contract::OrgId;
use futures_util::stream;
use service::metrics::follow;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The largest number of simulations at once.
const AT_ONCE_MAX: usize = 2;
/// The largest number of them for one organisation.
const AT_ONCE_PER_ORG_MAX: usize = AT_ONCE_MAX / 2;
/// How long a simulation waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long an answer keeps other organisations waiting while its client reads it. After that only
/// its own organisation waits, so that slow clients hold one answer of each organisation at most.
const SEND_TIME_MAX: Duration = Duration::from_secs(30);
/// The server asks for the next part of an answer when it has sent most of the last one.
const PART_BYTES: usize = 64 * 1024;

/// The places of a service. Clones share them.
#[derive(Clone)]
pub struct SimulationPlaces {
    all: Arc<Semaphore>,
    /// Those of the organisations that have a place or wait for one. `None` is the caller that works
    /// for all organisations.
    organisations: Arc<Mutex<BTreeMap<Option<OrgId>, Weak<Semaphore>>>>,
}

/// The place of one simulation.
pub struct SimulationPlace {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl SimulationPlaces {
    pub fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE_MAX)), organisations: Arc::default() }
    }

    /// Waits for a place. Returns `None` if there is none in time.
    pub async fn take(&self, org: Option<OrgId>) -> Option<SimulationPlace> {
        let own = self.of_organisation(org);
        let places = async {
            // The organisation's own first: it waits for a common place with one simulation only.
            let own = own.acquire_owned().await.ok()?;
            let all = self.all.clone().acquire_owned().await.ok()?;
            Some(SimulationPlace { own, all })
        };
        tokio::time::timeout(WAIT_MAX, places).await.ok().flatten()
    }

    fn of_organisation(&self, org: Option<OrgId>) -> Arc<Semaphore> {
        let mut organisations = self.organisations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = organisations.get(&org).and_then(Weak::upgrade) {
            return places;
        }
        organisations.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(AT_ONCE_PER_ORG_MAX));
        organisations.insert(org, Arc::downgrade(&places));
        places
    }
}

impl SimulationPlace {
    /// Returns the body of an answer, which holds the place until it has been sent or is dropped.
    pub fn body(self, answer: Vec<u8>) -> Body {
        let Self { own, all } = self;
        let sent = CancellationToken::new();
        let parts = Parts { rest: answer.into(), _own: own, _sent: sent.clone().drop_guard() };
        tokio::spawn(follow(async move {
            let _ = tokio::time::timeout(SEND_TIME_MAX, sent.cancelled()).await;
            drop(all);
        }));
        Body::from_stream(stream::iter(parts))
    }
}

/// The parts of an answer that are not sent yet.
struct Parts {
    rest: Bytes,
    _own: OwnedSemaphorePermit,
    _sent: DropGuard,
}

impl Iterator for Parts {
    type Item = Result<Bytes, Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.rest.len().min(PART_BYTES);
        (bytes > 0).then(|| Ok(self.rest.split_to(bytes)))
    }
}
