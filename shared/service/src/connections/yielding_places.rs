//! Places of which the oldest gives way to a new one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::network_of;

/// Places of which the oldest gives way: a place beyond `max` ends the oldest one of the peer that
/// has the most. A peer that takes places again and again ends its own, not those of others.
#[derive(Debug, Clone)]
pub(crate) struct YieldingPlaces {
    max: usize,
    taken: Arc<Mutex<TakenPlaces>>,
}

#[derive(Debug, Default)]
struct TakenPlaces {
    next: u64,
    /// By number: the oldest first.
    places: BTreeMap<u64, TakenPlace>,
}

#[derive(Debug)]
struct TakenPlace {
    network: IpAddr,
    end: CancellationToken,
}

impl TakenPlaces {
    /// Returns the number of the place that gives way.
    fn surplus(&self) -> Option<u64> {
        let mut held: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for place in self.places.values() {
            let of_network = held.entry(place.network).or_default();
            *of_network = of_network.saturating_add(1);
        }
        let most = held.values().max();
        let mut places = self.places.iter();
        places.find(|(_, place)| held.get(&place.network) == most).map(|(number, _)| *number)
    }
}

impl YieldingPlaces {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, taken: Arc::default() }
    }

    pub(crate) fn take(&self, ip: IpAddr) -> YieldingPlace {
        let end = CancellationToken::new();
        let place = TakenPlace { network: network_of(ip), end: end.clone() };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.next;
        taken.next = taken.next.saturating_add(1);
        taken.places.insert(number, place);
        if taken.places.len() > self.max
            && let Some(surplus) = taken.surplus()
            && let Some(place) = taken.places.remove(&surplus)
        {
            place.end.cancel();
        }
        YieldingPlace { taken: self.taken.clone(), number, end }
    }
}

/// A place that is held until it is dropped, or ended for a newer one.
#[derive(Debug)]
pub(crate) struct YieldingPlace {
    taken: Arc<Mutex<TakenPlaces>>,
    number: u64,
    pub(super) end: CancellationToken,
}

impl YieldingPlace {
    /// Waits until the place is needed for a newer one.
    pub(crate) fn ended(&self) -> WaitForCancellationFutureOwned {
        self.end.clone().cancelled_owned()
    }
}

impl Drop for YieldingPlace {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.places.remove(&self.number);
    }
}
