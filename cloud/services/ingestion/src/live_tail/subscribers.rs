//! Which organisations have subscribers: of the others no frame is read.

use std::collections::{BTreeMap, BTreeSet};

use contract::OrgId;

/// The organisations that have subscribers.
#[derive(Default)]
pub struct SubscribedOrgs {
    /// The subscribers of each, and the generation in which it came.
    orgs: BTreeMap<OrgId, (usize, u64)>,
    /// Grows when an organisation comes.
    generation: u64,
}

impl SubscribedOrgs {
    pub fn is_empty(&self) -> bool {
        self.orgs.is_empty()
    }

    /// Returns the organisations whose rows the next pass reads.
    pub fn wanted(&self) -> WantedOrgs {
        let orgs = self.orgs.keys().map(|org| org.as_str().to_owned()).collect();
        WantedOrgs { orgs, generation: self.generation }
    }

    /// Adds a subscriber; returns the first generation whose rows it receives.
    pub fn join(&mut self, org: &OrgId) -> u64 {
        if !self.orgs.contains_key(org) {
            self.generation = self.generation.saturating_add(1);
        }
        let generation = self.generation;
        let (subscribers, since) = self.orgs.entry(org.clone()).or_insert((0, generation));
        *subscribers = subscribers.saturating_add(1);
        *since
    }

    pub fn leave(&mut self, org: &OrgId) {
        if let Some((subscribers, _)) = self.orgs.get_mut(org) {
            *subscribers = subscribers.saturating_sub(1);
            if *subscribers == 0 {
                self.orgs.remove(org);
            }
        }
    }
}

/// The organisations whose rows a pass reads.
pub struct WantedOrgs {
    pub orgs: BTreeSet<String>,
    pub generation: u64,
}

impl WantedOrgs {
    pub fn wants(&self, org: &str) -> bool {
        self.orgs.contains(org)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organisation_that_comes_waits_for_a_pass_that_reads_its_rows() {
        let (acme, other) = (OrgId::new("acme").unwrap(), OrgId::new("other").unwrap());
        let mut orgs = SubscribedOrgs::default();
        assert_eq!((orgs.join(&acme), orgs.join(&acme)), (1, 1));
        assert_eq!((orgs.join(&other), orgs.join(&acme)), (2, 1));
        for _ in 0..3 {
            orgs.leave(&acme);
        }
        assert_eq!(orgs.orgs.len(), 1);
        assert_eq!(orgs.join(&acme), 3, "after it was gone");
    }
}
